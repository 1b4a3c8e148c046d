"""Which implementations have passed the gate, as they are now and on this engine: a small store on disk.

What convkit ships counts as checked: its continuous integration does that. Any other implementation is
known by its sources: the file that it comes from, and the files that this one includes, imports or names.
Where one of them changes, the implementation has another digest, and counts as unchecked until it passes
again. On another engine (the CPU, the emulator, the PTX runner, each model of GPU) it has to pass there.

The store is for the user who forgot a check, not against one who forges an entry.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import functools
import hashlib
import json
import os
import re
import shlex
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from . import arrays, devices, paths
from .errors import UncheckedWarning
from .version import __version__

#: The digest of what convkit ships.
SHIPPED = "shipped"
#: What a table says of an implementation that has not passed.
UNCHECKED = "unchecked"
#: Files that are read for an implementation, and bytes of one that is named: a script that imports half a
#: project must not take seconds to register.
MOST_FILES, MOST_BYTES = 200, 64 << 20
#: Entries that the store keeps, of some 300 bytes each: those written last.
MOST_ENTRIES = 2000
_PACKAGE = Path(__file__).resolve().parent
#: Folders of what convkit ships. A checkout has the kernels beside the package, a wheel has them in it.
_OWN = (_PACKAGE,) if (_PACKAGE / "_kernels").is_dir() else (_PACKAGE, _PACKAGE.parent / "kernels")
_OWN_NAMES = tuple(f"{folder}{os.sep}" for folder in _OWN)
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


# ---------------------------------------------------------------------------------------------------
# Where an implementation comes from
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sources:
    """The files that an implementation is made from, as they were when it was registered.

    Attributes
    ----------
    files : tuple of str
        The file of its code; also the one that registers it, where that is another.
    digest : str
        SHA-256 of these and of what belongs to them; `SHIPPED` for convkit's own; empty where there is no
        file, as for a function typed into a notebook.
    """

    files: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, *files: str) -> Sources:
        """The sources of what is loaded now from these files; an empty name stands for no file."""
        names = tuple(dict.fromkeys(files))
        if all(name.startswith(_OWN_NAMES) for name in names):
            return cls(names, SHIPPED)
        found = [Path(name).resolve() for name in names if name and Path(name).is_file()]
        if not found or len(found) < len(names):
            return cls(names, "")
        if all(map(_shipped, found)):
            return cls(names, SHIPPED)
        try:
            return cls(names, digest_of(found))
        except OSError:  # it cannot be read any more
            return cls(names, "")


def _shipped(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _OWN)


def digest_of(files: list[Path]) -> str:
    """SHA-256 of the files' names and bytes. The folder does not count: a file that is moved is the same."""
    parts, waiting = dict.fromkeys(files), list(files)
    while waiting and len(parts) < MOST_FILES:
        for path in _beside(waiting.pop()):
            if path not in parts and not (_shipped(path) and path.suffix == ".py"):
                parts[path] = None
                waiting.append(path)
    whole = hashlib.sha256()
    for path in sorted(parts, key=lambda path: (path.name, path)):
        whole.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _beside(path: Path) -> list[Path]:
    """The files that a file includes, imports or names, as far as they lie with it."""
    if path.suffix == ".py":
        return _modules_and_names(path)
    return headers(path) if path.suffix in (".cu", ".cuh", ".h", ".hpp", ".cpp", ".cc", ".c") else []


def headers(path: Path) -> list[Path]:
    """Files that a C++ or CUDA file includes by quotes: beside it, or in `kernels/`."""
    names = _INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace"))
    places = [folder / name for name in names for folder in (path.parent, paths.kernels_dir())]
    return list(dict.fromkeys(place.resolve() for place in places if place.is_file()))


def _modules_and_names(path: Path) -> list[Path]:
    """Modules that a Python file imports from its own folder, and files there that a string in it names.

    A string may name the `.cu` file whose text becomes a kernel, or the library that ctypes loads.
    """
    folder = path.parent
    if folder in {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}:
        return []  # others' libraries lie beside it
    status = path.stat()
    imported, strings = _mentioned(path, status.st_mtime_ns, status.st_size)
    found: list[Path] = []
    for level, name in imported:
        found += _module(path.parents[min(max(level, 1), len(path.parents)) - 1], name)
    for text in strings:
        found += _named(folder, text)
    return found


@functools.lru_cache(maxsize=256)
def _mentioned(path: Path, _changed: int, _size: int) -> tuple[list[tuple[int, str]], list[str]]:
    """(level, name) of each module that a Python file imports, and the strings in it that may name a file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return [], []
    imported: dict[tuple[int, str], None] = {}
    strings: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for parts in (alias.name.split(".") for alias in node.names):  # of a.b, a is imported as well
                imported |= dict.fromkeys((0, ".".join(parts[:end])) for end in range(1, len(parts) + 1))
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            names = [".".join(base[:end]) for end in range(1, len(base) + 1)]
            names += [".".join((*base, alias.name)) for alias in node.names]
            imported |= dict.fromkeys((node.level, name) for name in names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if 0 < len(text) <= 200 and text.isprintable() and not os.path.isabs(text):
                strings[text] = None
    return list(imported), list(strings)


def _module(folder: Path, name: str) -> list[Path]:
    """The files of a module: its source, its package's `__init__`, or a compiled one."""
    place = folder.joinpath(*name.split("."))
    candidates = [place.with_name(f"{place.name}.py"), place / "__init__.py"]
    if place.parent.is_dir():
        candidates += sorted(place.parent.glob(f"{place.name}.*so"))
    return [one.resolve() for one in candidates if one.is_file()]


def _named(folder: Path, text: str) -> list[Path]:
    with contextlib.suppress(OSError, ValueError):
        place = folder / text
        if place.is_file() and place.stat().st_size <= MOST_BYTES:
            return [place.resolve()]
    return []


# ---------------------------------------------------------------------------------------------------
# The store
# ---------------------------------------------------------------------------------------------------
if TYPE_CHECKING:

    class Candidate(Protocol):
        """What is asked of an implementation; see `registry.Implementation`."""

        @property
        def op(self) -> str: ...
        @property
        def name(self) -> str: ...
        @property
        def label(self) -> str: ...
        @property
        def device(self) -> str: ...
        @property
        def dtypes(self) -> tuple[str, ...]: ...
        @property
        def run(self) -> Any: ...
        @property
        def sources(self) -> Sources: ...

    class Judgement(Protocol):
        """What is asked of a verdict; see `check.verdicts.Verdict`."""

        @property
        def dtype(self) -> str: ...
        @property
        def ok(self) -> bool: ...
        @property
        def declined(self) -> bool: ...
        @property
        def missing(self) -> bool: ...
        @property
        def seed(self) -> int: ...


@dataclass(frozen=True)
class Pass:
    """What is kept of a pass.

    Attributes
    ----------
    date : str
        The day, "2026-11-29".
    cases : int
        That were run.
    quick : bool
        Whether only the quick cases were.
    seed : int
    version : str
        Of the convkit whose gate it was.
    """

    date: str
    cases: int
    quick: bool
    seed: int
    version: str

    def __str__(self) -> str:
        return f"{self.date}, quick" if self.quick else self.date


#: Passes of functions without a file, as long as this process lives, and of others where nothing can be
#: written; the function is kept too, so that its `id` is that of no other.
_here: dict[Any, tuple[Any, Pass]] = {}
#: What has been warned of in this process.
_warned: set[Any] = set()


def engine(device: str) -> str:
    """What runs implementations of a device here: "cpu", "emulator", "ptx", or "cuda:" and the GPU's name."""
    if device != "cuda":
        return device
    if devices.emulating():
        return getattr(devices.current(), "engine", "emulator")
    if not devices.gpu_found():
        return "emulator"
    runtime = arrays._cupy().cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"]
    return f"cuda:{name.decode() if isinstance(name, bytes) else name}"


def _identity(implementation: Candidate) -> dict[str, Any]:
    """What a pass is valid for."""
    return {
        "op": implementation.op, "implementation": implementation.label, "device": implementation.device,
        "engine": engine(implementation.device), "digest": implementation.sources.digest,
        "dtypes": list(implementation.dtypes),
    }  # fmt: skip


def _key(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _key_here(implementation: Candidate, identity: dict[str, Any]) -> Any:
    own = () if implementation.sources.digest else (id(implementation.run),)
    return (_key(identity), *own)


def _folders() -> list[Path]:
    return [folder / "checked" for folder in paths.cache_folders()]


def found(implementation: Candidate) -> Pass | None:
    """The pass of an implementation as it was registered, on the engine that would run it here."""
    identity = _identity(implementation)
    if implementation.sources.digest:
        for folder in _folders():
            if (kept := _read(folder / f"{_key(identity)}.json", identity)) is not None:
                return kept
    kept_here = _here.get(_key_here(implementation, identity))
    return kept_here[1] if kept_here else None


def _read(path: Path, identity: dict[str, Any]) -> Pass | None:
    """An entry; None where there is none, or where it is not whole, or is another's."""
    try:
        entry = json.loads(path.read_bytes())
        if {key: entry[key] for key in identity} != identity:
            return None
        kept = Pass(**entry["passed"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    expected = {"date": str, "cases": int, "quick": bool, "seed": int, "version": str}
    return kept if all(type(getattr(kept, name)) is kind for name, kind in expected.items()) else None


def record(implementation: Candidate, verdicts: Iterable[Judgement], *, quick: bool) -> bool:
    """Keep that an implementation has passed the gate, or forget it where it failed.

    Parameters
    ----------
    implementation : Implementation
        As it was registered before the check. What convkit ships is not kept.
    verdicts : iterable of Verdict
        Its own, of a whole check: every dtype that it declares.
    quick : bool
        Whether cases were left out. Such a pass does not take the place of a full one.

    Returns
    -------
    bool
        Whether a pass is on record now. Not where nothing was run, where a dtype was left out, where this
        machine lacked what a case needs, or where the file changed while it was checked: what ran is then
        not known.
    """
    mine = list(verdicts)
    if implementation.sources.digest == SHIPPED:
        return False
    if any(not verdict.ok for verdict in mine):
        forget(implementation)
        return False
    ran = [verdict for verdict in mine if not verdict.declined]
    if not ran or not {verdict.dtype for verdict in mine}.issuperset(implementation.dtypes):
        return False
    if any(verdict.missing for verdict in mine):  # cases that it takes, and that could not be run here
        return False
    if implementation.sources != Sources.of(*implementation.sources.files):
        return False
    before = found(implementation)
    if quick and before is not None and not before.quick:
        return True
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    _keep(implementation, Pass(day, len(ran), quick, ran[0].seed, __version__))
    return True


def _keep(implementation: Candidate, kept: Pass) -> None:
    identity = _identity(implementation)
    if implementation.sources.digest:
        entry = {**identity, "files": implementation.sources.files, "passed": asdict(kept)}
        text = json.dumps(entry, indent=1)
        if any(_write(folder, f"{_key(identity)}.json", text) for folder in _folders()):
            return
    _here[_key_here(implementation, identity)] = implementation.run, kept


def _write(folder: Path, name: str, text: str) -> bool:
    """Put an entry in its place, in one step: other processes find the old one or the new one."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            os.replace(draft, folder / name)
        except OSError:
            os.unlink(draft)
            raise
    except OSError:  # read-only, full, or a file stands there
        return False
    _trim(folder)
    return True


def _trim(folder: Path) -> None:
    with contextlib.suppress(OSError):
        entries = list(folder.glob("*.json"))
        if len(entries) > MOST_ENTRIES:
            entries.sort(key=lambda path: path.stat().st_mtime)
            for path in entries[: len(entries) - MOST_ENTRIES]:
                path.unlink(missing_ok=True)


def forget(implementation: Candidate) -> None:
    """Take a pass off the record."""
    identity = _identity(implementation)
    for folder in _folders():
        with contextlib.suppress(OSError):
            (folder / f"{_key(identity)}.json").unlink()
    _here.pop(_key_here(implementation, identity), None)


# ---------------------------------------------------------------------------------------------------
# What is said of it
# ---------------------------------------------------------------------------------------------------
def state(implementation: Candidate) -> str:
    """For a table: "shipped", the day of its pass (", quick" after it), or "unchecked"."""
    if implementation.sources.digest == SHIPPED:
        return SHIPPED
    kept = found(implementation)
    return UNCHECKED if kept is None else str(kept)


def mark(implementation: Candidate) -> str:
    """For a table's marks: "unchecked", or empty where it has passed, or convkit ships it."""
    return UNCHECKED if state(implementation) == UNCHECKED else ""


def lacking(implementation: Candidate, *, full: bool = False) -> str | None:
    """What is to be said of an implementation that has not passed, with the command that checks it; or None.

    Parameters
    ----------
    implementation : Implementation
    full : bool
        Whether a quick check is not enough.
    """
    if implementation.sources.digest == SHIPPED:
        return None
    kept = found(implementation)
    if kept is not None and not (full and kept.quick):
        return None
    where = {"cpu": "", "emulator": " under the emulator", "ptx": " as PTX"}.get(
        on := engine(implementation.device), f" on {on.removeprefix('cuda:')}"
    )
    if not implementation.sources.digest:
        call = f"convkit.check.check({implementation.op!r}, {implementation.name!r}"
        call += ")" if implementation.device == "cpu" else f", device={implementation.device!r})"
        return (
            f"{implementation.op} {implementation.label!r} has not passed the gate in this process{where}: "
            f"{call}. It has no file, so a pass cannot be remembered for the next one"
        )
    file = _shown(implementation.sources.files[-1])
    option = " --emulate" if on == "emulator" and devices.gpu_found() else ""
    option = " --engine ptx" if on == "ptx" else option
    how = "has passed the quick check only" if kept else "has not passed the gate as it is now"
    return (
        f"{implementation.op} {implementation.label!r} ({Path(file).name}) {how}{where}: "
        f"convkit check{option} {shlex.quote(file)}"
    )


def _shown(file: str) -> str:
    """A path as it may be typed here."""
    relative = os.path.relpath(file)
    return os.path.abspath(file) if relative.startswith(os.pardir) else relative


def warn(implementation: Candidate) -> None:
    """Warn of an implementation that has been chosen and has not passed: once in a process.

    To be called where a call is bound, not each time that it runs.
    """
    if implementation.sources.digest == SHIPPED:
        return
    key = _key_here(implementation, _identity(implementation))
    if key in _warned or (reason := lacking(implementation)) is None:
        return
    warnings.warn(reason, UncheckedWarning, stacklevel=outside())
    _warned.add(key)  # not where the warning is an error: that comes again


def outside() -> int:
    """How many frames above `warn` the user's code lies: code of no installed library, else not convkit's."""
    own = (f"{_PACKAGE}{os.sep}", "<bound call of ")
    libraries = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib"))
    frame: FrameType | None = sys._getframe(1)
    level, nearest = 1, 0
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(own):
            if not name.startswith(libraries):
                return level
            nearest = nearest or level
        frame, level = frame.f_back, level + 1
    return nearest or level
