"""A stand-in for `cupy.cuda.nccl` on the stand-in for CuPy: what it copies goes through MPI.

It is not kinder than NCCL. Work is queued on the stream that is given, which must be the current one, on the
communicator's own GPU; what is not in a group must be complete in itself; the number of bytes must be the
same on both sides; and it knows nothing but bytes and int32.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import fake_cupy
import numpy as np

NCCL_UINT8, NCCL_INT32, NCCL_MIN = 1, 2, 3
#: The calls of the open groups: (send, pointer, bytes, peer, communicator).
_open: list[list[tuple[bool, int, int, int, Any]]] = []
#: How many groups have been queued.
groups = [0]


def get_unique_id() -> bytes:
    return bytes(128)


def groupStart() -> None:
    _open.append([])


def groupEnd() -> None:
    calls = _open.pop()
    if not calls:
        return
    groups[0] += 1
    stream, pieces = fake_cupy.current_stream(), []
    for send, pointer, size, peer, ring in calls:
        memory, values = fake_cupy.Memory.at(pointer, size)
        memory.use(stream, write=not send)
        pieces.append((send, values, peer, ring.comm))

    def work() -> None:
        from mpi4py import MPI

        received = [(comm.Irecv(values, peer), values) for send, values, peer, comm in pieces if not send]
        sent = [comm.Isend(values, peer) for send, values, peer, comm in pieces if send]
        for request, values in received:
            status = MPI.Status()
            request.Wait(status)
            assert status.Get_count() == values.size, "another number of bytes was sent"
        MPI.Request.Waitall(sent)

    fake_cupy.queue(1e-5, work)


class NcclCommunicator:
    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        from mpi4py import MPI

        assert len(commId) == 128
        self.comm, self.device = MPI.COMM_WORLD.Dup(), fake_cupy.current_device[0]
        assert (ndev, rank) == (self.comm.size, self.comm.rank)

    def _check(self, stream: int) -> None:
        assert stream == fake_cupy.current_stream().ptr, "another stream than the current one"
        assert self.device == fake_cupy.current_device[0], "another GPU than the communicator's"

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._check(stream)
        assert datatype == NCCL_UINT8 and count > 0 and peer != self.comm.rank and _open
        _open[-1].append((True, sendbuf, count, peer, self))

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._check(stream)
        assert datatype == NCCL_UINT8 and count > 0 and peer != self.comm.rank and _open
        _open[-1].append((False, recvbuf, count, peer, self))

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        from mpi4py import MPI

        self._check(stream)
        assert datatype == NCCL_INT32 and op == NCCL_MIN and sendbuf == recvbuf
        memory, values = fake_cupy.Memory.at(recvbuf, 4 * count)
        memory.use(fake_cupy.current_stream(), write=True)
        words = values.view(np.int32)
        fake_cupy.queue(1e-5, lambda: self.comm.Allreduce(MPI.IN_PLACE, words, MPI.MIN))


def module(available: bool = True) -> types.SimpleNamespace:
    """What to put in the place of `cupy.cuda.nccl`."""
    names = ("NCCL_UINT8", "NCCL_INT32", "NCCL_MIN", "get_unique_id", "groupStart", "groupEnd")
    members: dict[str, int | Callable[..., Any]] = {name: globals()[name] for name in names}
    return types.SimpleNamespace(available=available, NcclCommunicator=NcclCommunicator, **members)
