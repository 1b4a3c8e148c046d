"""Files that are on the disk as a whole, or not at all; and files without a name."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def replace(path: Path, content: bytes, draft: Path) -> None:
    """Write a file; it is on the disk when this returns.

    Parameters
    ----------
    path : Path
        A file that is there is replaced in one step, or stays as it was.
    content : bytes
    draft : Path
        The file's name while it is written, in the same folder. A process that is killed may leave it.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems have no fsync of folders
            raise
    finally:
        os.close(handle)


def unnamed() -> int:
    """A file without a name, in memory where the system has that: a descriptor, which is the caller's."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("convkit")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
