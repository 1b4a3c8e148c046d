"""Implementations that run in another process, for whoever takes an `Implementation`."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import devices
from ...checked import SHIPPED, Sources
from ...cuda import prepare
from ...cuda.emulate import Emulator
from ...cuda.emulator import Counter
from ...cuda.prepare import Runner
from ...errors import OptionError
from ...registry import Implementation
from ..faults import Lost, Misdeclared, Raised
from .judge import LOADING, Limits, Process, refuse_inside
from .memory import Shared

#: Functions of an implementation that are asked in its process.
ASKED = ("when", "missing", "workspace", "flops")

#: Seconds that the emulator is given to end a launch by itself, which says more than a process that is ended.
GRACE = 10.0


class Contained:
    """Implementations of one origin, in a process of their own; a new one where the last was lost.

    Parameters
    ----------
    what : {"file", "pickled", "shipped"}
    given : path, bytes or list of keys
        What the process loads.
    limits : Limits

    Attributes
    ----------
    implementations : list of Implementation
        In the place of those in the process: `run` and the functions that declare something ask it.
    lost : int
        Processes that it has lost.
    """

    def __init__(self, what: str, given: Any, limits: Limits, *, name: str = "") -> None:
        self.what, self.given, self.limits, self.name = what, given, limits, name
        self.shared = Shared()
        self.lost, self._last, self._refused = 0, "", ""
        self._lock = threading.RLock()
        self._process: Process | None = None
        self._printed: list[str] = []
        self.implementations: list[Implementation] = []
        self.unconfined = ""

    def load(self) -> list[Implementation]:
        """Start the process, and have it load what it is for.

        Raises
        ------
        OptionError
            What is given cannot be loaded, or registers nothing.
        Lost
            The process did not live through it.
        """
        file = self._kernel_file()
        rows = self._start()
        try:
            self.implementations = [self._proxy(index, row, file) for index, row in enumerate(rows)]
        except (TypeError, KeyError, AttributeError):
            self.close()
            raise Lost("its process answered what is no answer") from None
        return self.implementations

    def _kernel_file(self) -> Implementation | None:
        # A kernel file's header is read as data: what it declares need not be asked for.
        if self.what == "file" and Path(self.given).suffix == ".cu":
            return prepare.implementation(Path(self.given))
        return None

    def _start(self) -> list[dict[str, Any]]:
        gpu = not devices.emulating() and devices.gpu_found()
        try:
            self._process = Process(self.shared, self.limits, own_caches=self.what != "shipped", gpu=gpu)
            self.unconfined = self._process.unconfined
            message = {"do": "load", "what": self.what, "given": self.given}
            return self._process.ask(message, grace=LOADING).get("rows", [])
        except Lost as error:
            self._note_loss(error)
            raise
        except Raised as error:
            self.close()
            # In the process the error was raised by the same code that would have raised it here.
            kind, _, text = str(error).rpartition(" (")[0].partition(": ")
            raise OptionError(text if kind == "OptionError" else str(error)) from None

    def _proxy(self, index: int, row: dict[str, Any], file: Implementation | None) -> Implementation:
        if file is not None:
            return replace(file, run=Remote(self, index, file), prepare=None)
        asked = row.pop("asked")
        known = {f.name for f in fields(Implementation)}
        declared: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in known
        }
        said = _Declared(self, index)
        functions: dict[str, Any] = {what: getattr(said, what) for what in asked if what in ASKED}
        if self.what == "file":
            sources = Sources.of(declared["source"], str(self.given))
            declared |= {"origin": str(self.given), "sources": sources}
        blank = Implementation(run=print, **declared, **functions)
        return replace(blank, run=Remote(self, index, blank))

    # -- asking -------------------------------------------------------------------------------------
    def ask(self, message: dict[str, Any], *, grace: float = 0.0) -> dict[str, Any]:
        """Ask the process, which is started anew where the last was lost."""
        with self._lock:
            if self.stopped:
                raise Lost(self.why_stopped)
            if self._process is None:
                self._start()
            assert self._process is not None
            try:
                return self._process.ask(message, grace=grace)
            except Lost as error:
                self._note_loss(error)
                raise
            except Raised as error:
                if error.kind == "timeout":  # the emulator's: as good as a process that had to be ended
                    self._note_loss(error)
                raise
            except BaseException:
                self.close()
                raise

    @property
    def took(self) -> int:
        """Nanoseconds from asking until the last answer began to come."""
        return self._process.took if self._process is not None else 0

    @property
    def waited(self) -> tuple[int, int]:
        """Nanoseconds that this thread, and the process's first, waited for a core meanwhile."""
        return self._process.waited if self._process is not None else (0, 0)

    def pause(self) -> None:
        """Have the process stand still until it is next asked."""
        if self._process is not None:
            self._process.pause()

    def _note_loss(self, error: Exception) -> None:
        self.lost, self._last = self.lost + 1, str(error).splitlines()[0]
        # What has hung once is not waited for as long again.
        self.limits = replace(
            self.limits, timeout=min(self.limits.timeout, max(10.0, self.limits.timeout / 6))
        )
        self.close()

    def refuse(self, why: str, declared: Sequence[Implementation]) -> list[Implementation]:
        """Implementations that are never run: what they are of could not be loaded."""
        self._refused = why
        self.implementations = [
            replace(i, run=Remote(self, n, i), prepare=None) for n, i in enumerate(declared)
        ]
        return self.implementations

    @property
    def stopped(self) -> bool:
        """Whether it is not run any more."""
        return bool(self._refused) or self.lost >= self.limits.losses

    @property
    def why_stopped(self) -> str:
        """Why it is not run any more."""
        return self._refused or f"{self.lost} processes were lost to it; of the last one: {self._last}"

    def renew(self) -> None:
        """Have the next call run in a new process."""
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
            if text := self._process.printed():
                self._printed.append(text)
            self._process = None

    def printed(self) -> str:
        """What its processes have printed, each text once."""
        return "".join(dict.fromkeys(self._printed))


class _Declared:
    """What an implementation in another process says of itself and of problems.

    Each problem is asked about twice, with time between: what says something else then cannot be relied on.
    """

    def __init__(self, group: Contained, index: int) -> None:
        self.group, self.index = group, index
        self._said: dict[Any, tuple[int, dict[str, Any]]] = {}
        self._lacks: tuple[str | None] | None = None

    def _about(self, problem: Any) -> dict[str, Any]:
        times, said = self._said.get(problem, (0, {}))
        if times < (1 if self.group.what == "shipped" else 2):
            now = self.group.ask({"do": "about", "index": self.index, "problem": problem})
            for what in said:
                if said[what] != now.get(what):
                    raise Misdeclared(
                        f"its `{what}` gave {said[what]!r} and then {now.get(what)!r} for the same problem"
                    )
            self._said[problem] = times + 1, (said := now)
        return said

    def missing(self) -> str | None:
        if self._lacks is None:
            self._lacks = (self.group.ask({"do": "missing", "index": self.index}).get("value"),)
        return self._lacks[0]

    def when(self, problem: Any) -> Any:
        return self._about(problem).get("when")

    def workspace(self, problem: Any) -> Any:
        size, most = self._about(problem).get("workspace"), self.group.limits.memory
        if isinstance(size, int) and size > most:
            raise Misdeclared(
                f"asks for a workspace of {size / 2**30:.3g} GiB; a candidate may take {most / 2**30:.3g} GiB"
            )
        return size

    def flops(self, problem: Any) -> Any:
        return self._about(problem).get("flops")


class Remote:
    """Runs an implementation that is in another process.

    Arrays that lie in the memory of both processes are used where they are, others are copied there and back.
    """

    def __init__(self, group: Contained, index: int, declared: Implementation) -> None:
        self.group, self.index = group, index
        self.device = declared.device
        #: What launches a kernel file, for whoever wants to know its launches.
        self.runner = declared.run if isinstance(declared.run, Runner) else None
        self._hints: tuple[list[int], list[int], str] | None = None

    def empty(self, size: int) -> np.ndarray:
        """Bytes of the memory of both processes."""
        return self.group.shared.empty(size)

    def hints(self) -> tuple[list[int], list[int], str]:
        """As `sizes.hints`."""
        if self._hints is None:
            told: dict[str, Any] = {}
            with contextlib.suppress(Lost, Raised):  # its cases will tell
                told = self.group.ask({"do": "hints", "index": self.index})
            declared, code = (
                [n for n in told.get(key, ()) if type(n) is int] for key in ("declared", "code")
            )
            self._hints = declared, code, str(told.get("text", ""))
        return self._hints

    def __call__(self, problem: Any, *tensors: np.ndarray | None, **options: Any) -> None:
        copies: list[tuple[np.ndarray, np.ndarray]] = []

        def place(array: np.ndarray) -> dict[str, Any]:
            there = array
            if self.group.shared.block_of(array) is None:
                there = self.empty(array.nbytes)[: array.nbytes].view(array.dtype).reshape(array.shape)
                there[...] = array
                if array.flags.writeable:
                    copies.append((array, there))
                there.flags.writeable = array.flags.writeable
            kept.append(there)
            return self.group.shared.place(there)

        kept: list[np.ndarray] = []
        executor = devices.current() if self.device == "cuda" and devices.emulating() else None
        message = {
            "do": "run",
            "index": self.index,
            "problem": problem,
            "tensors": [None if t is None else place(t) for t in tensors],
            "options": {n: place(v) if isinstance(v, np.ndarray) else v for n, v in options.items()},
            "emulate": self._emulation(executor),
            "gpu": self.device == "cuda" and executor is None,
        }
        before = self.group.shared.touched()
        answer = self.group.ask(message, grace=GRACE if executor else 0.0)
        # Each page of every block has been filled: one more lies outside of all.
        if not copies and (outside := self.group.shared.touched() - before) > 0:
            raise Misdeclared(f"reads or writes far outside its tensors: {outside} bytes or more of memory")
        if isinstance(executor, Emulator) and "counted" in answer:
            executor.counted += [Counter(**row) for row in answer["counted"]]
        for array, there in copies:
            array[...] = there

    def _emulation(self, executor: Any) -> tuple[Any, ...] | None:
        if executor is None:
            return None
        if not hasattr(executor, "told"):
            raise OptionError("a candidate in a process of its own runs on a GPU or inside `convkit.emulate`")
        return executor.told(self.group.limits.timeout)


def group_of(implementation: Implementation) -> Contained | None:
    """The process of an implementation; None where it runs in this one."""
    return implementation.run.group if isinstance(implementation.run, Remote) else None


# ---------------------------------------------------------------------------------------------------
# What is put into a process
# ---------------------------------------------------------------------------------------------------
def of_file(path: str | Path, limits: Limits) -> Contained:
    """The implementations of a file, which is loaded in a process of its own alone.

    Raises
    ------
    OptionError
        If there is no such file, or it cannot be loaded.
    """
    try:
        path = Path(path).resolve()
    except (OSError, RuntimeError) as error:  # links that lead in a circle
        raise OptionError(f"cannot read {path}: {error}") from None
    if not path.is_file():
        raise OptionError(f"{'not a file' if path.exists() else 'no such file'}: {path}")
    return Contained("file", str(path), limits, name=path.name)


def _pickled(implementation: Implementation) -> bytes | None:
    """An implementation by value, functions of a notebook among it; None where that cannot be."""
    try:
        import cloudpickle
    except ImportError:
        from numba import cloudpickle
    try:
        data: bytes = cloudpickle.dumps([implementation])
        pickle.loads(data)
    except Exception:
        return None
    return data


@contextlib.contextmanager
def contained(
    chosen: Sequence[Implementation], limits: Limits, *, all_of_them: bool = True
) -> Iterator[tuple[list[Implementation], list[Contained]]]:
    """Implementations in processes of their own, one for each file that they are of.

    Parameters
    ----------
    chosen : sequence of Implementation
        What is in a process of its own already (`of_file`) stays there; what cannot be put into another
        process stays in this one.
    limits : Limits
    all_of_them : bool
        Those that convkit ships too; else these stay in this process.

    Yields
    ------
    implementations : list of Implementation
        In the same order.
    groups : list of Contained
        Those that were made here, and those of what was contained before.
    """
    refuse_inside()
    found = list(chosen)
    groups = list(dict.fromkeys(i.run.group for i in chosen if isinstance(i.run, Remote)))
    numbers: dict[Any, list[int]] = {}
    for number, i in enumerate(chosen):
        if not isinstance(i.run, Remote):
            own = i.sources.digest == SHIPPED
            numbers.setdefault("shipped" if own else i.origin or number, []).append(number)
    with contextlib.ExitStack() as stack:
        for key, members in numbers.items():
            what, given, name = "file", key, Path(str(key)).name
            if key == "shipped":
                if not all_of_them:
                    continue
                what, given, name = key, [_key(chosen[n]) for n in members], "convkit"
            elif isinstance(key, int):
                what, given, name = "pickled", _pickled(chosen[key]), chosen[key].name
                if given is None:
                    continue
            group = Contained(what, given, limits, name=name)
            stack.callback(group.close)
            try:
                loaded = group.load()
            except (Lost, OptionError) as error:
                loaded = group.refuse(f"could not be loaded: {error}", [chosen[n] for n in members])
            proxies = {_key(p): p for p in loaded}
            for number in members:
                if (proxy := proxies.get(_key(chosen[number]))) is None:
                    raise OptionError(f"{key} no longer registers {chosen[number].label!r}")
                found[number] = proxy
            groups.append(group)
        yield found, groups


def _key(i: Implementation) -> tuple[str, str, str, str]:
    return i.op, i.device, i.name, i.layout
