"""What `convkit tune` has found to be faster than the default: one file, which the registry asks.

A choice is for one question (op, problem, layout, arithmetic, flags) on one machine: the device, and what
compiles for it and drives it. It names the implementation, with its tile, and the default that it was
measured against, and has the hash of the source of each. Where one of these is another now, the choice does
not count.

The file is read once in a process, when an implementation is first chosen. What cannot be read is ignored,
with a warning.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import arrays, checked, devices, paths, registry
from .cpu import extension, threads
from .cuda.prepare import Runner, tiled
from .errors import ConvkitWarning, OptionError
from .op import Problem
from .registry import Implementation

#: Version of the file.
FORMAT = 1
#: Names the file; `OFF`: there is none.
VARIABLE, OFF = "CONVKIT_TUNED", "off"
_CPU = Path(extension.__file__).parent


# ---------------------------------------------------------------------------------------------------
# What a choice is valid for
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Question:
    """What an implementation is chosen for.

    Attributes
    ----------
    op : str
    problem : Problem
    device : {"cpu", "cuda"}
    layout : str
        As `Implementation.layout`.
    math : str
        The coarsest arithmetic that is accepted.
    flags : tuple of str
        Flags of the op that are given.
    """

    op: str
    problem: Problem
    device: str = "cpu"
    layout: str = "NCHW"
    math: str = "fp32"
    flags: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        plain = {name: getattr(self, name) for name in ("op", "device", "layout", "math")}
        return {**plain, "flags": sorted(self.flags), "problem": asdict(self.problem)}


def machine(device: str) -> dict[str, str]:
    """What a choice is measured on: "device", its "name", and the "driver" (with the compiler), as here.

    On a CPU the driver is the instruction set of the C++ kernels, and the number of threads.
    """
    if device == "cpu":
        driver = f"{extension.isa()}, {threads.count()} threads"
        return {"device": device, "name": _cpu_name(), "driver": driver}
    if devices.emulating() or not devices.gpu_found():
        return {"device": "emulator", "name": "", "driver": ""}
    return _gpu(int(arrays._cupy().cuda.runtime.getDevice()))


@functools.cache
def _gpu(number: int) -> dict[str, str]:
    from .cuda import nvrtc

    runtime = arrays._cupy().cuda.runtime
    found = runtime.getDeviceProperties(number)
    name = found["name"].decode() if isinstance(found["name"], bytes) else str(found["name"])
    words = [f"driver {_driver()}" if _driver() else "", f"CUDA {runtime.driverGetVersion()}"]
    try:
        words.append(f"NVRTC {nvrtc.version()}")
    except ImportError:  # then it compiles nothing, and there is nothing to choose
        pass
    sms = found.get("multiProcessorCount")  # fewer on a part of a GPU
    return {"device": "cuda", "name": f"{name}, {sms} SMs", "driver": ", ".join(filter(None, words))}


def _driver() -> str:
    """Version of NVIDIA's driver, as the kernel module of Linux says it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(r"Kernel Module\D*([\d.]+)", text)
    return match[1] if match else ""


@functools.cache
def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def digest(implementation: Implementation) -> str:
    """A hash of what an implementation is made from; empty where it has no file.

    Of what convkit ships for the CPU, that is the whole backend: the compiled kernels are one module.
    """
    sources = implementation.sources
    if sources.digest != checked.SHIPPED:
        return sources.digest
    if implementation.device == "cpu":
        return _backend(extension.isa())
    return _of_files(tuple(sources.files))


@functools.cache
def _backend(_isa: str) -> str:
    whole = hashlib.sha256()
    module = getattr(extension.kernels(), "__file__", None)
    for path in (*sorted(_CPU.glob("*.py")), *([Path(module)] if module else [])):
        whole.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


@functools.cache
def _of_files(files: tuple[str, ...]) -> str:
    try:
        return checked.digest_of([Path(file).resolve() for file in files])
    except OSError:
        return ""


def named(implementation: Implementation) -> dict[str, Any]:
    """An implementation as a choice names it."""
    return {
        "implementation": implementation.name,
        "tile": dict(implementation.tile),
        "source": digest(implementation),
    }


def key_of(question: Question, on: Mapping[str, str]) -> str:
    """The key of a question on a machine."""
    text = json.dumps({**question.as_dict(), "machine": dict(on)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


# ---------------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------------
def default_path() -> Path | None:
    """The file that is read: `CONVKIT_TUNED`, else `tuned.json` among the caches; None where that is off."""
    asked = os.environ.get(VARIABLE, "").strip()
    if asked:
        return None if asked == OFF else Path(asked).expanduser().absolute()
    folders = list(paths.cache_folders())
    found = (folder / "tuned.json" for folder in folders)
    return next((path for path in found if path.is_file()), folders[0] / "tuned.json" if folders else None)


@dataclass
class Store:
    """The content of a file.

    Attributes
    ----------
    path : Path, optional
        None: nothing is kept.
    choices : dict
        By key (`key_of`): the question, the machine, "default" and "chosen" (`named`), what was measured.
    gates : dict of str to str
        What the gate said of candidates, by their key: empty where they passed.
    """

    path: Path | None = None
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    gates: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> Store:
        """A file's content; empty where there is none.

        Raises
        ------
        OptionError
            If it is no file of this format.
        """
        if path is None:
            return cls()
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, RecursionError) as error:
            raise OptionError(f"{path} cannot be read: {str(error) or type(error).__name__}") from None
        found = document.get("format") if isinstance(document, dict) else None
        if found != FORMAT:
            what = f"has format {found!r}" if found is not None else "says no format"
            raise OptionError(f"{path} {what}; this convkit reads {FORMAT}")
        parts = document.get("choices"), document.get("gates")
        if not all(isinstance(part, dict) for part in parts) or not all(
            isinstance(entry, dict) for entry in parts[0].values()
        ):
            raise OptionError(f"{path} is no file of choices: 'choices' and 'gates' must be tables")
        return cls(path, *parts)

    def put(
        self,
        choices: Mapping[str, dict[str, Any] | None] | None = None,
        gates: Mapping[str, str | None] | None = None,
    ) -> None:
        """Add to the file, and to this; None takes out. Other processes may do the same meanwhile.

        Raises
        ------
        OptionError
            If the file cannot be written.
        """
        if self.path is None:
            _update(self.choices, choices or {})
            _update(self.gates, gates or {})
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.path.with_name(f".{self.path.name}.lock")):
                now = Store.read(self.path)
                _update(now.choices, choices or {})
                _update(now.gates, gates or {})
                now._write()
        except OSError as error:
            raise OptionError(f"cannot write {self.path}: {error.strerror}") from error
        self.choices, self.gates = now.choices, now.gates

    def _write(self) -> None:
        """In one step: whoever reads finds the old file or the new one."""
        assert self.path is not None
        document = {"format": FORMAT, "choices": self.choices, "gates": self.gates}
        descriptor, draft = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for other processes that change the file; not where the system has no such locks.

    The lock's file stays: one that was removed could be held by two.
    """
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _update(table: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value


# ---------------------------------------------------------------------------------------------------
# What the registry asks
# ---------------------------------------------------------------------------------------------------
_store: Store | None = None
_lock = threading.Lock()


def current() -> Store:
    """What this process has read."""
    global _store
    if _store is None:
        with _lock:
            if _store is None:
                _store = _read_or_warn(default_path())
    return _store


def _read_or_warn(path: Path | None) -> Store:
    try:
        return Store.read(path)
    except OptionError as error:
        warnings.warn(f"tuned choices are ignored: {error}", ConvkitWarning, stacklevel=checked.outside())
        return Store()


def reload() -> None:
    """Read the file again; what was bound by the earlier choices is forgotten."""
    forget(None)


@contextlib.contextmanager
def using(store: Store) -> Iterator[None]:
    """For a block of code, these choices in the place of those of the file."""
    before = _store
    forget(store)
    try:
        yield
    finally:
        forget(before)


def forget(store: Store | None) -> None:
    """Take other choices; None: those of the file, when they are next asked for."""
    global _store
    _store = store
    _faster.cache_clear()
    registry.changed()


def better(
    default: Implementation, problem: Problem, math: str, flags: tuple[str, ...]
) -> Implementation | None:
    """What is to run in the place of the default, or None: the registry's `tuner`."""
    store = current()
    if not store.choices:
        return None
    question = Question(default.op, problem, default.device, default.layout, math, flags)
    return _faster(question, default.name, registry.generation(), _place(default.device))


def _place(device: str) -> Any:
    """What tells apart the machines that one process may have."""
    if device == "cpu":
        return threads.count(), devices.cpu_kernels
    if devices.emulating() or not devices.gpu_found():
        return None
    return arrays._cupy().cuda.runtime.getDevice()


@functools.lru_cache(maxsize=4096)
def _faster(question: Question, default: str, _generation: int, _place: Any) -> Implementation | None:
    entry = current().choices.get(key_of(question, machine(question.device)))
    return None if entry is None else chosen(entry, question, default)


def chosen(entry: Mapping[str, Any], question: Question, default: str) -> Implementation | None:
    """The implementation that an entry names, with its tile; None where it names the default itself.

    Also None where the entry no longer holds: the default is another now, or a source.
    """
    here = registry.implementations(question.op, device=question.device, layout=question.layout)
    try:
        before, best = entry["default"], entry["chosen"]
        if best == before or before["implementation"] != default:
            return None
        for one in (before, best):
            found = next((i for i in here if i.name == one["implementation"]), None)
            if found is None or not one["source"] or digest(found) != one["source"]:
                return None
        tile = {str(name): int(value) for name, value in best["tile"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):  # an entry that someone has written by hand
        return None
    assert found is not None
    return with_tile(found, tile)


def with_tile(implementation: Implementation, tile: Mapping[str, int]) -> Implementation | None:
    """An implementation with a tile, always the same object; None where it has no such tile."""
    if not tile:
        return implementation
    run = implementation.run
    if not isinstance(run, Runner) or not set(tile) <= set(run.kernel.header.tile):
        return None
    return _tiled(_Same(implementation), tuple(sorted(tile.items())))


@dataclass(frozen=True)
class _Same:
    """An implementation by its identity: its fields need not be hashable."""

    implementation: Implementation

    def __hash__(self) -> int:
        return id(self.implementation)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.implementation is self.implementation


@functools.lru_cache(maxsize=1024)
def _tiled(same: _Same, tile: tuple[tuple[str, int], ...]) -> Implementation:
    return tiled(same.implementation, dict(tile))
