"""Compiled kernels on disk: a folder of files whose names say what they were made from and what they hold.

An entry is called ``KEY.DIGEST.SUFFIX``: KEY stands for everything that went into it, DIGEST for its bytes.
It is built in a folder of its own and renamed into place, so several processes may build the same one at
once, a process that dies leaves no half of one, and an entry that was cut short later does not match its name
and is built anew. A lock only spares processes that want the same entry at the same time the work.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..paths import cache_folders

_ABANDONED = 24 * 3600.0  # seconds after which an unfinished build's folder may be removed


def key_of(parts: Iterable[str | bytes]) -> str:
    """A name for everything that an entry is made from; the boundaries between the parts count too."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


class Cache:
    """A folder of built files.

    Parameters
    ----------
    folder : path, optional
        Default: ``CONVKIT_CACHE``, else ``convkit`` below ``XDG_CACHE_HOME`` or ``~/.cache``. Where that
        cannot be written, a folder of this user's among the temporary files.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._given = Path(folder) if folder is not None else None

    def folder(self) -> Path:
        """The folder that comes first."""
        return next(self._folders())

    def get(self, key: str, build: Callable[[Path], None], *, suffix: str = ".so") -> Path:
        """The entry of that key; where there is none that is whole, `build(path)` writes it first.

        What `build` raises passes through, and leaves nothing behind.
        """
        for folder in self._folders():
            found = self._find(folder, key, suffix)
            if found:
                return found
        for folder in self._folders():
            with contextlib.ExitStack() as stack:
                try:
                    _make_private(folder)
                    workshop = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
                except OSError:
                    continue  # read-only, or no folder can be there
                stack.callback(shutil.rmtree, workshop, ignore_errors=True)
                stack.enter_context(_lock(folder / f".{key}.lock"))
                found = self._find(folder, key, suffix)
                if found:  # another process has built it meanwhile
                    return found
                _sweep(folder)
                draft = workshop / f"{key}{suffix}"
                build(draft)
                final = folder / f"{key}.{_digest(draft)}{suffix}"
                os.replace(draft, final)
                return final
        raise OSError("convkit finds no folder that it may write to; set CONVKIT_CACHE to one")

    def _folders(self) -> Iterator[Path]:
        return cache_folders(self._given)

    @staticmethod
    def _find(folder: Path, key: str, suffix: str) -> Path | None:
        try:
            candidates = sorted(folder.glob(f"{key}.*{suffix}"))
        except OSError:
            return None
        for path in candidates:
            try:
                if path.name == f"{key}.{_digest(path)}{suffix}":
                    return path
                path.unlink()  # cut short, or altered
            except OSError:
                continue
        return None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits for other processes that hold the lock; does nothing where files cannot be locked."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open("w"))
            stack.callback(path.unlink, missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _make_private(folder: Path) -> None:
    """Entries are code that will run: no other user may put one there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _sweep(folder: Path) -> None:
    for path in folder.glob(".building-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
