"""The disk cache, tuned choices, and the environment variables."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
import tempfile
from pathlib import Path

from ... import tuned
from ...cuda.cache import Cache
from ...errors import OptionError
from .row import BROKEN, OK, UNKNOWN, Row

#: The environment variables that convkit reads, and what for.
VARIABLES = {
    "CONVKIT_BUILD_ISAS": "instruction sets that an install compiles for",
    "CONVKIT_BUILD_PROGRESS": "file that an install writes its progress to",
    "CONVKIT_CACHE": "folder of compiled kernels, and of what has passed the gate",
    "CONVKIT_CUDNN": "libcudnn, or its folder",
    "CONVKIT_FUZZ_CALL": "tests: only this call",
    "CONVKIT_FUZZ_CALLS": "tests: number of calls",
    "CONVKIT_FUZZ_SEED": "tests: seed of the calls",
    "CONVKIT_ISA": "instruction set of the C++ kernels",
    "CONVKIT_KERNELS": "folder of the CUDA kernels",
    "CONVKIT_NUM_THREADS": "threads of the CPU backend",
    "CONVKIT_REQUIRE_NATIVE": "an install fails where the C++ extension does",
    "CONVKIT_SANITIZE": "sanitizers that an install compiles with",
    "CONVKIT_TUNED": "file of what `convkit tune` has chosen, or off",
}


def disk_cache() -> Row:
    """The folder that kernels are compiled into: the first that can be written."""
    name, asked = "disk cache", os.environ.get("CONVKIT_CACHE")
    folders = list(Cache()._folders())
    folder = next((f for f in folders if _writable(f)), None)
    refused = f"{folders[0]} cannot be written" if folders else "there is no home folder"
    set_it = "set CONVKIT_CACHE to a folder that you can write to"
    if folder is None:
        return Row(name, BROKEN, refused, set_it, path=str(folders[0]) if folders else "")
    count, size = _contents(folder)
    made = f"{count} entries, {size / 2**20:.1f} MiB" if folder.is_dir() else "not made yet"
    clear = f"to clear it: rm -r {shlex.quote(str(folder))}" if count else ""
    if folder == folders[0]:
        return Row(name, OK, f"{folder}: {made}", clear, path=str(folder))
    found = f"{refused}; in its place {folder}: {made}"
    return Row(name, BROKEN if asked else OK, found, set_it, path=str(folder))


def tuned_choices() -> Row:
    """What `convkit tune` has kept, and how much of it is for this machine's CPU, or its GPU."""
    name = "tuned choices"
    path = tuned.default_path()
    if path is None:
        return Row(name, OK, f"switched off ({tuned.VARIABLE}={tuned.OFF})")
    try:
        choices = tuned.Store.read(path).choices.values()
    except OptionError as error:
        remove = f"remove it: rm {shlex.quote(str(path))}"
        advice = remove if path.is_file() else f"set {tuned.VARIABLE} to a file"
        return Row(name, BROKEN, f"ignored: {error}", advice, path=str(path))
    if not choices:
        return Row(name, OK, "none: the ranks and the model of waves choose")
    machines = [tuned.machine(device) for device in ("cpu", "cuda")]
    here = sum(entry.get("machine") in machines for entry in choices)
    found = f"{path}: {here} for this machine, {len(choices) - here} for others, or for other drivers"
    return Row(name, OK, found, "`convkit tune --forget` takes them out", path=str(path))


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself; nothing is left behind."""
    try:
        if folder.exists():
            with tempfile.TemporaryFile(dir=folder):
                return True
        above = next(parent for parent in folder.parents if parent.exists())
    except (OSError, StopIteration):
        return False
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def _contents(folder: Path) -> tuple[int, int]:
    """Entries of a cache, and their bytes."""
    sizes = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # another process may remove it meanwhile
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                    sizes.append(entry.stat().st_size)
    return len(sizes), sum(sizes)


def variables() -> list[Row]:
    """CONVKIT_* as they are set, those that convkit does not read too."""
    rows = []
    for name in sorted(name for name in os.environ if name.upper().startswith("CONVKIT_")):
        value = os.environ[name]
        if name in VARIABLES:
            rows.append(Row(name, OK, f"{value or 'empty'} ({VARIABLES[name]})"))
            continue
        near = difflib.get_close_matches(name.upper(), VARIABLES, n=1)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(VARIABLES))}"
        rows.append(Row(name, UNKNOWN, f"{value or 'empty'}; convkit has no such variable", advice))
    return rows
