"""What the launcher of a job (mpiexec, srun, ...) has told this process, and its share of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

#: Variables with the number of processes: of Open MPI; of MPICH, Intel MPI and Slurm's PMI-2; of MVAPICH2.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
#: A variable that says only that there is a launcher (PMIx: Slurm, PRRTE).
_RANKS = ("PMIX_RANK",)


def launched(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many processes the launcher has started: 1 without a launcher, None where it does not say."""
    for name in _SIZES:
        value = environment.get(name, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return None if any(name in environment for name in _RANKS) else 1


def cpus() -> list[int]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def threads(own: Iterable[int], all_: Sequence[Iterable[int]]) -> int:
    """Threads for one of several processes on a machine, so that they do not contend for its CPUs.

    Parameters
    ----------
    own : iterable of int
        CPUs that the process may run on.
    all_ : sequence of iterable of int
        The same for each process on the machine, this one among them.

    Returns
    -------
    int
        Each CPU counts for as much as it is shared by; at least 1.
    """
    users: dict[int, int] = {}
    for each in all_:
        for cpu in set(each):
            users[cpu] = users.get(cpu, 0) + 1
    return max(1, int(sum((Fraction(1, users[cpu]) for cpu in set(own)), Fraction(0))))
