"""What a candidate's process may do: taken away by itself, before it loads the candidate.

Nothing here stops code that is out to break the machine; `docs/security.md` says what is and is not kept off.
"""

from __future__ import annotations

import ctypes
import glob
import os
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# From linux/landlock.h: what is done to files, but to read and to execute them.
_WRITE_FILE, _READ_FILE, _READ_DIR, _EXECUTE, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 0, 1 << 14
#: Rights that each version of landlock knows: bits below this.
_KNOWN = {1: 13, 2: 14, 3: 15}
_TCP = 0b11  # to bind and to connect
_SCOPES = 0b11  # abstract Unix sockets and signals of processes outside
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_NO_NEW_PRIVILEGES, _DEATH_SIGNAL = 38, 1
#: Devices that may be written to: none of them is a terminal or a disk.
_DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/nvidia*",
    "/dev/dri/*",
)


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def end_with_parent() -> None:
    """Have the system end this process when the judge's ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def data_bytes() -> int:
    """Bytes of private memory that this process may write to, as RLIMIT_DATA counts them."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def limit_memory(size: int) -> None:
    """Refuse this process more than so many bytes beyond what it has: an allocation fails then."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if size and (has := data_bytes()):
        resource.setrlimit(resource.RLIMIT_DATA, (has + size, has + size))


def keep_off(writable: Iterable[str | Path]) -> str:
    """Confine this process by landlock: it writes below these folders alone, and opens no TCP connection.

    Nor does it signal, trace or read the memory of a process that is not its child.

    Parameters
    ----------
    writable : paths

    Returns
    -------
    str
        Why this is not so, where the system cannot; else empty.
    """
    if sys.platform != "linux":
        return "landlock is Linux's"
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    version = call(_CREATE, None, 0, 1)
    if version < 1:
        return f"landlock: {os.strerror(ctypes.get_errno())}"
    rights = (1 << _KNOWN.get(version, 15)) - 1 & ~(_READ_FILE | _READ_DIR | _EXECUTE)
    rules = _Ruleset(rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    # An older kernel refuses fields that it does not know, unless they are left out.
    size = 8 if version < 4 else 16 if version < 6 else 24
    fd = call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if fd < 0:
        return f"landlock: {os.strerror(ctypes.get_errno())}"
    try:
        devices = [path for pattern in _DEVICES for path in glob.glob(pattern)]
        for path in [*writable, "/dev/shm", *devices]:
            _allow(call, fd, path, rights)
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        if call(_RESTRICT, fd, 0) != 0:
            return f"landlock: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(fd)
    return ""


def _allow(call: Any, ruleset: int, path: str | Path, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        rights &= _WRITE_FILE | _TRUNCATE
    rule = _Beneath(rights, parent)
    call(_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0)
    os.close(parent)
