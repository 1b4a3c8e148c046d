"""Memory that two processes share: blocks for tensors and what lies around them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import mmap
import os
import sys
import tempfile
import weakref
from typing import Any

import numpy as np

#: Bytes of address space. Memory is taken where it is touched, and no more than is touched at once.
SPACE = 64 << 30
PAGE = 4096


@functools.lru_cache(maxsize=1)
def _fallocate() -> Any:
    return ctypes.CDLL(None).fallocate


def _give_back(fd: int, start: int, end: int) -> None:
    """Give the pages of a block back to the system: then all that there are belong to blocks in use."""
    if sys.platform == "linux":  # 3: make a hole, keep the size
        _fallocate()(fd, 3, ctypes.c_long(start), ctypes.c_long(-(-end // PAGE) * PAGE - start))


class Shared:
    """A file without a name, mapped into memory; another process that has `fd` maps the same.

    Parameters
    ----------
    fd : int, optional
        Of memory that another process has made; new memory by default.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = self._file()
        self.fd = fd
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # as NumPy asks for its own large arrays
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._whole = np.frombuffer(self._map, np.uint8)
        self.start = self._whole.ctypes.data
        weakref.finalize(self._whole, os.close, fd)
        self._used: list[tuple[int, int]] = []  # (first byte, first byte behind), in order

    @staticmethod
    def _file() -> int:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("convkit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, SPACE)
        if sys.platform == "linux":  # who has the file may not cut it short under the other one
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    def block(self, offset: int, size: int) -> np.ndarray:
        """These bytes, as an array of uint8."""
        # Not a slice: views of a slice would keep the whole alive, but not the slice.
        return np.frombuffer(self._map, np.uint8, size, offset)

    def empty(self, size: int) -> np.ndarray:
        """A block of its own, at the start of a page, in whatever state; free when no view is left."""
        size, first = max(size, 1), 0
        for start, end in self._used:
            if start - first >= size:
                break
            first = -(-end // PAGE) * PAGE
        if first + size > self._whole.size:
            raise MemoryError(f"{size} bytes are more than the memory of two processes has left")
        block, taken = self.block(first, size), (first, first + size)
        block[::PAGE] = 0  # each page is there: what appears later, `touched` tells, is no block's
        self._used = sorted([*self._used, taken])
        weakref.finalize(block, self._used_no_more, taken)
        return block

    def _used_no_more(self, taken: tuple[int, int]) -> None:
        self._used.remove(taken)
        _give_back(self.fd, *taken)

    def block_of(self, array: np.ndarray) -> tuple[int, int] | None:
        """(first byte, first byte behind) of the block in which an array lies, or None if in none."""
        offset = array.ctypes.data - self.start
        return next(((a, b) for a, b in self._used if a <= offset and offset + array.nbytes <= b), None)

    def touched(self) -> int:
        """Bytes of all pages that have been read or written since their block was given."""
        return os.fstat(self.fd).st_blocks * 512

    def place(self, array: np.ndarray) -> dict[str, Any]:
        """Where an array of this memory is, as the other process is told."""
        return {
            "block": self.block_of(array),
            "at": array.ctypes.data - self.start,
            "shape": array.shape,
            "dtype": array.dtype.name,
            "writable": array.flags.writeable,
        }
