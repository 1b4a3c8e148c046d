"""Many processes with a GPU each: gradients go through NCCL, by CuPy; all else goes through MPI.

Not yet run on a GPU: it was walked with stand-ins for CuPy and NCCL.

Bits      As in `mpi`: each process adds up a piece of every gradient in the order of the ranks. NCCL's own
          reductions order their additions by topology, so only its copies are used: send and receive, in
          groups, once for the pieces and once for the sums.
Streams   A step calls its hooks with its GPU and its stream as CuPy's current ones, and all of it is queued
          there. The host waits for nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

from ... import arrays
from ...devices import on_gpu
from ...errors import OptionError
from ..errors import RunError
from .mpi import Mpi


def load() -> Any:
    """CuPy's module for NCCL.

    Raises
    ------
    RunError
        Where CuPy finds no NCCL.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what CuPy says where it finds no NCCL is said below
        try:
            from cupy.cuda import nccl
        except ImportError:
            nccl = None
    if not getattr(nccl, "available", False):
        raise RunError(
            "training on many GPUs needs NCCL, and CuPy finds none: pip install nvidia-nccl-cu13, "
            "or nvidia-nccl-cu12 for CUDA 12"
        )
    return nccl


class Nccl(Mpi):
    """Processes that MPI's launcher has started, each with a GPU of its own.

    Parameters
    ----------
    MPI : module
        `mpi4py.MPI`.
    device : {"cuda", "cuda:1", ...}
        With "cuda", the processes of a machine take its GPUs in turn.
    """

    piece = 16 << 20

    def __init__(self, MPI: Any, device: str = "cuda") -> None:
        super().__init__(MPI, device)
        with on_gpu(device, "train on the CPU"):
            pass  # there is such a GPU
        self._cuda = arrays._cupy().cuda
        self.device = self._own(device)
        self._number = int(self.device.partition(":")[2])
        self._nccl = load()
        self._require_one_each()
        name = self.broadcast(self._nccl.get_unique_id() if self.rank == 0 else None)
        with self._cuda.Device(self._number):
            self._ring = self._nccl.NcclCommunicator(self.size, name, self.rank)

    def _own(self, device: str) -> str:
        """The GPU of this process."""
        if device != "cuda":
            return device
        count = self._cuda.runtime.getDeviceCount()
        if count == 1:  # where a launcher shows each process its own
            return "cuda:0"
        if count < self.local_size:
            raise OptionError(
                f"{self.local_size} processes on one machine need a GPU each, and CuPy sees {count}"
            )
        return f"cuda:{self.local_rank}"

    def _require_one_each(self) -> None:
        """NCCL takes each GPU once."""
        bus = self._cuda.runtime.deviceGetPCIBusId(self._number)
        users: dict[tuple[str, str], list[int]] = {}
        for rank, place in enumerate(self.gather((self._MPI.Get_processor_name(), bus))):
            users.setdefault(place, []).append(rank)
        for (machine, _), ranks in users.items():
            if len(ranks) > 1:
                raise OptionError(
                    f"processes {' and '.join(map(str, ranks[:2]))} have the same GPU of {machine}; "
                    f"each needs its own: start as many as there are GPUs, with the device cuda"
                )

    # -- gradients --------------------------------------------------------------------------------------
    def _add_chunk(self, values: Any) -> None:
        cupy = arrays._cupy()
        cuts = [values.size * rank // self.size for rank in range(self.size + 1)]
        pieces = [values[cuts[rank] : cuts[rank + 1]] for rank in range(self.size)]
        own, others = pieces[self.rank], [rank for rank in range(self.size) if rank != self.rank]
        # CuPy's pool hands memory out in the order of the current stream, so it need not be kept.
        parts = [own if rank == self.rank else cupy.empty_like(own) for rank in range(self.size)]
        self._copy([(rank, pieces[rank]) for rank in others], [(rank, parts[rank]) for rank in others])
        if own.size:
            wide = arrays.np_dtype("float32") if values.itemsize == 2 else values.dtype
            total = cupy.empty(own.shape, wide)
            total[...] = parts[0]
            for part in parts[1:]:
                cupy.add(total, part if part.dtype == wide else part.astype(wide), out=total)
            own[...] = total
        self._copy([(rank, own) for rank in others], [(rank, pieces[rank]) for rank in others])

    def _copy(self, send: list[tuple[int, Any]], receive: list[tuple[int, Any]]) -> None:
        """Send arrays to processes and receive others, all at once, on the current stream."""
        nccl, stream = self._nccl, self._cuda.get_current_stream().ptr
        nccl.groupStart()
        try:
            for call, both in ((self._ring.send, send), (self._ring.recv, receive)):
                for rank, array in both:
                    if array.size:
                        call(array.data.ptr, array.nbytes, nccl.NCCL_UINT8, rank, stream)
        finally:
            nccl.groupEnd()

    def _agree(self, finite: Any, willing: bool) -> None:
        if not willing:
            finite.fill(0)
        nccl, flag, stream = self._nccl, finite.data.ptr, self._cuda.get_current_stream().ptr
        self._ring.allReduce(flag, flag, 1, nccl.NCCL_INT32, nccl.NCCL_MIN, stream)
