"""Training in many processes, each with its share of every batch: `here` says which one this is."""

from __future__ import annotations

from ...errors import OptionError
from . import launcher
from .alone import Alone
from .base import Exchange


def here(device: str = "cpu") -> Exchange:
    """The exchange of this process with the others of its job.

    Without a launcher (mpiexec, srun, ...), or with one that has started one process, it is `Alone`, and MPI
    is not imported. Else it is `Mpi`, or `Nccl` for GPUs. Processes on one machine share its CPUs: convkit's
    kernels take CPUs / processes threads, unless the variable CONVKIT_NUM_THREADS says otherwise. From here
    on, an error that nobody catches in one process ends the job.

    Parameters
    ----------
    device : {"cpu", "cuda", "cuda:1", ...}
        With "cuda", each process gets a GPU of its own: see the result's `device`.

    Raises
    ------
    MissingExtra
        If there is a launcher but no mpi4py.
    RunError
        For GPUs, where CuPy finds no NCCL.
    OptionError
        If the launcher belongs to another MPI than mpi4py's, and if there are fewer GPUs than processes on a
        machine.
    """
    started = launcher.launched()
    if started == 1:
        return Alone(device)
    from . import mpi

    MPI = mpi.load()
    found = MPI.COMM_WORLD.Get_size()
    if started is not None and found != started:
        raise OptionError(
            f"the launcher has started {started} processes, but mpi4py's MPI sees {found}: they belong to "
            f"different MPIs; mpi4py uses {MPI.Get_library_version().splitlines()[0].strip()}"
        )
    if found == 1:
        return Alone(device)
    with mpi.ending(MPI):
        if device == "cpu":
            return mpi.Mpi(MPI)
        from .nccl import Nccl

        return Nccl(MPI, device)
