"""What C libraries print to stderr, caught: libjpeg and libpng say there alone that a file is damaged."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..disk import unnamed

#: Lines of these libraries begin so; all others are passed on.
_THEIRS = (
    "Corrupt JPEG data", "Premature end of JPEG", "Invalid SOS", "Inconsistent progression", "Unknown Adobe",
    "Warning: unknown JFIF", "Application transferred too", "Unsupported marker", "libpng ",
)  # fmt: skip
_LOCK = threading.RLock()
#: The process that it belongs to, and the file that takes the messages.
_file: tuple[int, int] | None = None

# A process that is forked while another thread decodes would write its own stderr into the file.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class Messages:
    """What has been caught.

    Attributes
    ----------
    lines : list of str
        Filled at the end.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []


@contextmanager
def captured() -> Iterator[Messages]:
    """Inside, the process's stderr goes to a file. One thread at a time gets in.

    What other threads print meanwhile is printed afterwards. Costs a few microseconds.
    """
    messages = Messages()
    with _LOCK:
        try:
            file = _own_file()
            kept = os.dup(2)
        except OSError:  # there is no stderr, or nowhere to put a file
            yield messages
            return
        try:
            os.dup2(file, 2)
            yield messages
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if size := os.lseek(file, 0, os.SEEK_CUR):
                text = os.pread(file, size, 0).decode(errors="replace")
                os.lseek(file, 0, os.SEEK_SET)
                lines = text.splitlines(keepends=True)
                messages.lines = [line.strip() for line in lines if line.startswith(_THEIRS)]
                if others := "".join(line for line in lines if not line.startswith(_THEIRS)):
                    os.write(2, others.encode(errors="replace"))


def _own_file() -> int:
    global _file
    if _file is None or _file[0] != os.getpid():
        _file = os.getpid(), unnamed()
    return _file[1]
