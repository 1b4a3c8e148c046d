"""A folder that one process uses at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import weakref
from pathlib import Path

from .errors import RunError


class Lock:
    """A lock on a file. It ends with `release`, and with the process, however that ends.

    Parameters
    ----------
    path : Path
        The file; its folder is what is locked. The holder's number and host are written in it.

    Raises
    ------
    RunError
        If another process has it, or another `Lock` of this one; it names the process.
    """

    _held: weakref.WeakSet[Lock] = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        try:
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(f"cannot write {path}: {os.strerror(error.errno or 0)}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunError(f"{path.parent} is in use: {holder} trains there") from None
            raise RunError(f"cannot lock {path}: {os.strerror(error.errno or 0)}") from error
        with contextlib.suppress(OSError):  # on a full disk it holds all the same
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        Lock._held.add(self)

    def release(self) -> None:
        """Give it up."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @classmethod
    def _forget(cls) -> None:
        # A worker that outlives its killed parent would hold the lock otherwise.
        for lock in cls._held:
            lock.release()


os.register_at_fork(after_in_child=Lock._forget)
