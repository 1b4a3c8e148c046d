"""Repeating a command whenever a file is saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

#: Seconds between two looks at the files.
_POLL = 0.3


def stamps(paths: Sequence[str | Path]) -> dict[str, tuple[int, int]]:
    """When each file was written, and its size; a file that is not there is left out.

    Headers beside the files count too: a kernel includes them.
    """
    files = {Path(p) for p in paths}
    files |= {header for file in files for header in file.parent.glob("*.cuh")}
    found = {}
    for file in files:
        try:
            status = file.stat()
        except OSError:  # an editor that writes a new file in the old one's place
            continue
        found[str(file)] = (status.st_mtime_ns, status.st_size)
    return found


def changed(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> list[str]:
    """Names of the files that are not what they were; one that is away for the moment does not count."""
    return sorted(Path(path).name for path, stamp in now.items() if before.get(path) != stamp)


def watch(
    paths: Sequence[str | Path],
    once: Callable[[list[str]], int],
    *,
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Run something now and after each change of the files, until Ctrl-C.

    Parameters
    ----------
    paths : sequence of path
    once : callable
        Is given the names of what has changed, none at first; returns an exit status.
    wait : callable
        Waits for so many seconds.

    Returns
    -------
    int
        The last exit status; 130 where not one run came to an end.
    """
    status, names = 130, list[str]()
    before = stamps(paths)
    try:
        while True:
            status = once(names)
            print(f"\nwatching {', '.join(Path(p).name for p in paths)}: Ctrl-C ends it", flush=True)
            while not (names := changed(before, now := stamps(paths))):
                wait(_POLL)
            before = now
    except KeyboardInterrupt:
        print()
        return status
