"""Many processes on MPI, with arrays on the CPU.

Idea      Each process adds up a piece of every gradient: it gets that piece from all others (Alltoallv), adds
          in the order of the ranks, and gives the sum to all (Allgatherv).
Bits      The order of the additions is that of the ranks, whatever the messages' timing: the same bits in all
          processes, and in two runs with as many processes. MPI's Allreduce promises neither.
Memory    Gradients go in chunks of `piece` bytes for each process, so that what is received is added while it
          is still in the cache.
16 bits   Gradients in float16 and bfloat16 are added up in float32, and rounded once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np

from ... import arrays
from ...arrays import Array
from ...cpu import threads
from ...errors import ConvkitError, MissingExtra
from ...network.network import Network
from ..errors import RunError
from . import launcher
from .base import Exchange
from .gradients import Gradients

#: Unsigned integers by the bytes of an element: MPI has no type for each dtype, and needs none to copy.
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
#: Seconds that a process with an error waits, so that rank 0 may be first where all have the same one.
_PATIENCE = 3.0


def load() -> Any:
    """The module `mpi4py.MPI`; importing it starts MPI.

    Raises
    ------
    MissingExtra
        Where there is no mpi4py, or no MPI that it finds.
    """
    purpose = "training in many processes"
    try:
        from mpi4py import MPI
    except ImportError:
        raise MissingExtra(purpose, "mpi4py", "mpi") from None
    except RuntimeError as error:  # mpi4py's own, where it finds no libmpi
        reason = " ".join(str(error).split())
        raise MissingExtra(purpose, f"an MPI library (mpi4py says: {reason})", "mpi") from None
    return MPI


# ---------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------
#: Whether this process ends the job as it exits.
_ends = False


def end_job(MPI: Any, error: BaseException) -> None:
    """Have all processes end when this one exits. Without it, Python would wait for all others at its exit.

    Parameters
    ----------
    MPI : module
    error : BaseException
        Why. Whoever catches it prints it, as in a program of one process. The exit status is Python's for it;
        for a `ConvkitError` 2, as the command has it.
    """
    from mpi4py.run import set_abort_status

    global _ends
    if _ends or (isinstance(error, SystemExit) and not error.code):
        return
    _ends = True
    if MPI.COMM_WORLD.Get_rank():  # all may have the same error, which is to be printed once
        time.sleep(_PATIENCE)
    set_abort_status(2 if isinstance(error, ConvkitError) else error)


@contextlib.contextmanager
def ending(MPI: Any) -> Iterator[None]:
    """A block whose errors end the job."""
    try:
        yield
    except BaseException as error:
        end_job(MPI, error)
        raise


def _end_with_errors(MPI: Any) -> None:
    """From here on, an error that nobody catches ends the job."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        end_job(MPI, error)
        before(kind, error, trace)

    sys.excepthook = hook


# ---------------------------------------------------------------------------------------------------
# The exchange
# ---------------------------------------------------------------------------------------------------
class Mpi(Exchange):
    """Processes that MPI's launcher has started.

    Parameters
    ----------
    MPI : module
        `mpi4py.MPI`.
    device : str
    """

    #: Bytes of a gradient that a process adds up at a time.
    piece = 1 << 20

    def __init__(self, MPI: Any, device: str = "cpu") -> None:
        self._MPI, self.device = MPI, device
        self._comm = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self._received: dict[str, np.ndarray] = {}
        _end_with_errors(MPI)
        local = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        #: Number of this process among those of its machine, and how many these are.
        self.local_rank, self.local_size = local.Get_rank(), local.Get_size()
        all_ = local.allgather(launcher.cpus())
        local.Free()
        # Each process has its part of the machine's CPUs; what the user says counts.
        if self.local_size > 1 and not os.environ.get(threads.VARIABLE, "").strip():
            os.environ[threads.VARIABLE] = str(launcher.threads(all_[self.local_rank], all_))

    # -- errors -----------------------------------------------------------------------------------------
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            end_job(self._MPI, error)

    # -- training ---------------------------------------------------------------------------------------
    def attach(self, net: Network) -> None:
        self._require_alike(net)
        if not self.same(net):
            self._take_from_first(net)
        hooks = Gradients(net, self._add_up, self._agree, lambda: self._absent)
        net.on_gradient, net.before_update = hooks.on_gradient, hooks.before_update

    def _require_alike(self, net: Network) -> None:
        about = {"dtype": net.dtype, "update rule": repr(net.update)}
        about |= {name: "x".join(map(str, w.shape)) for name, w in net.params.items()}
        found = self.gather(about)
        for rank, other in enumerate(found):
            if other != found[0]:
                keys = [key for key in {**found[0], **other} if found[0].get(key) != other.get(key)]
                what = "; ".join(f"{key}: {found[0].get(key)} and {other.get(key)}" for key in keys[:3])
                raise RunError(f"processes 0 and {rank} have different networks: {what}")

    def same(self, net: Network) -> bool:
        found = self.gather(_digest(net))
        return all(each == found[0] for each in found)

    def _take_from_first(self, net: Network) -> None:
        own = net.seed, net.dropout_offset, net.scaling
        net.seed, net.dropout_offset, net.scaling = self.broadcast(own)
        for array in (*net.params.values(), *net.velocities.values()):
            values = _host(array)
            self._comm.Bcast(_words(values.reshape(-1)))
            if self.rank and values is not array:
                with arrays.on(array):
                    arrays.assign(array, values)

    def _add_up(self, values: Any) -> None:
        """Replace a contiguous array by its sum over the processes."""
        step = max(1, self.piece // values.itemsize) * self.size
        for start in range(0, values.size, step):
            self._add_chunk(values[start : start + step])

    def _add_chunk(self, values: Any) -> None:
        cuts = [values.size * rank // self.size for rank in range(self.size + 1)]
        starts, counts = cuts[:-1], np.diff(cuts).tolist()
        own = values[cuts[self.rank] : cuts[self.rank + 1]]
        received = self._memory(values.dtype, self.size * own.size).reshape(self.size, own.size)
        words = _words(values)
        rows = [own.size * rank for rank in range(self.size)]
        self._comm.Alltoallv(
            [words, (counts, starts)], [_words(received.reshape(-1)), ([own.size] * self.size, rows)]
        )
        wide = np.float32 if values.itemsize == 2 else values.dtype
        with np.errstate(all="ignore"):  # infinities and NaN are for the step's checks
            total = received[0].astype(wide, copy=False)
            for part in received[1:]:
                np.add(total, part, out=total, dtype=wide)
            own[...] = total
        self._comm.Allgatherv(self._MPI.IN_PLACE, [words, (counts, starts)])

    def _memory(self, dtype: np.dtype, size: int) -> np.ndarray:
        """Memory for what is received, which is kept."""
        found = self._received.get(dtype.name)
        if found is None or found.size < size:
            found = self._received[dtype.name] = np.empty(size, dtype)
        return found[:size]

    def _agree(self, finite: Array, willing: bool) -> None:
        flag = np.array([bool(finite[0]) and willing], np.int32)
        self._comm.Allreduce(self._MPI.IN_PLACE, flag, self._MPI.MIN)
        finite[...] = flag

    # -- small things -----------------------------------------------------------------------------------
    def add(self, values: Any) -> np.ndarray:
        own = np.array(values, np.float64, order="C")
        all_ = np.empty((self.size, *own.shape))
        self._comm.Allgather(own, all_)
        total = all_[0].copy()
        for each in all_[1:]:
            total += each
        return total

    def broadcast(self, value: Any) -> Any:
        return self._comm.bcast(value, 0)

    def gather(self, value: Any) -> list[Any]:
        return list(self._comm.allgather(value))


def _words(values: np.ndarray) -> np.ndarray:
    """An array as unsigned integers of its elements' size, which MPI can copy."""
    return values.view(_WORDS[values.itemsize])


def _host(array: Array) -> np.ndarray:
    """An array on the CPU: itself, or a copy."""
    if isinstance(array, np.ndarray):
        return array
    with arrays.on(array):
        return array.get()


def _digest(net: Network) -> bytes:
    """A hash of all that decides how a network goes on."""
    found = hashlib.sha256(f"{net.seed} {net.dropout_offset} {net.scaling}".encode())
    for array in (*net.params.values(), *net.velocities.values()):
        found.update(_words(_host(array).reshape(-1)).data)
    return found.digest()
