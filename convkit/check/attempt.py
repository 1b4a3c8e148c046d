"""One run of an implementation, in memory where every liberty that it takes shows.

Each tensor lies between guard bands inside a larger buffer, an output between bands of another content than
any input's. The bands, the outputs and the workspace are full of what `Setting` says.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import layouts
from ..call import Call
from ..cuda.header import Header
from ..cuda.launch import KernelError
from ..cuda.prepare import Runner
from ..devices import emulating
from ..op import OPS, Op, Problem, Tensors
from ..registry import Implementation
from . import inputs as fill
from .cases import Case
from .device import Twins
from .faults import LACKING, Lost, Misdeclared, Raised, kind_of
from .guarded import GUARD, LARGE, NAN, SMALL, Guarded
from .tolerance import Expected, expected

#: Bands around inputs and outputs by the setting's (`None`: that one): numbers of either sign, and no
#: output's is an input's, so that what is computed of one tensor's band and written to another's shows.
INPUT_BANDS = {NAN: (None,), LARGE: (None, 0xDA, 0x5B, 0xDB), 0: (None,)}
OUTPUT_BANDS = {NAN: (0x7E, 0xFE, 0x7D), LARGE: (0xBC, 0x3B, 0xBB), 0: (0x7E, 0xFE, 0x7D)}


@dataclass(frozen=True)
class Question:
    """A case in one dtype, with its inputs and what is expected; one serves every implementation."""

    case: Case
    inputs: Tensors
    others: Tensors
    wanted: dict[str, Expected]

    @classmethod
    def of(cls, case: Case, dtype: str, seed: int = 0) -> Question:
        """Make inputs, reference and bounds.

        Parameters
        ----------
        case : Case
        dtype : str
        seed : int
            The same seed gives the same inputs.
        """
        case = case.of(dtype)
        inputs = fill.make(case, seed)
        opposite = {name: int(not value) for name, value in case.flags.items()}
        others = fill.make(replace(case, fill="normal", flags=opposite), seed, salt=1)
        return cls(case, inputs, others, expected(case.op, case.problem, inputs, case.options))

    @property
    def problem(self) -> Problem:
        return self.case.problem

    @property
    def op(self) -> Op:
        return OPS[self.case.op]


@dataclass(frozen=True)
class Setting:
    """What surrounds the tensors in one run, and what lies in the memory that is to be written."""

    band: int = NAN
    poison: int = NAN
    scratch: int = NAN
    aligned: bool = True
    guard: int = GUARD
    live: bool = False  # whether a kernel reads from memory what its header calls live

    def shifted(self, case: Case, output: bool) -> bool:
        """Whether a tensor begins an element beyond the widest access's multiple.

        Where not all are aligned, all begin there, or the inputs alone, or the outputs alone: the case
        decides. So a kernel that looks at some of its addresses, and not at all, is found.
        """
        return not self.aligned and (None, False, True)[zlib.crc32(str(case).encode()) % 3] in (None, output)

    def around(self, number: int, output: bool) -> int:
        """The band of a tensor, the how-manieth input or output it is."""
        bands = (OUTPUT_BANDS if output else INPUT_BANDS)[self.band]
        found = bands[number % len(bands)]
        return self.band if found is None else found


FIRST = Setting()
SECOND = Setting(LARGE, SMALL, LARGE, aligned=False, live=True)


@dataclass
class Run:
    """The outputs of a run, and what the implementation did that it must not (empty: nothing).

    `kind` is that of what it raised, if it raised something (`faults.kind_of`).
    """

    outputs: dict[str, np.ndarray]
    fault: str = ""
    kind: str = ""

    @property
    def lacks(self) -> bool:
        """Whether the fault is that something is not there, rather than wrong."""
        return self.kind in LACKING


def attempt(
    implementation: Implementation,
    question: Question,
    setting: Setting,
    *,
    first_on: Tensors | None = None,
    inplace: dict[str, str] | None = None,
) -> Run:
    """Run an implementation once, and look at the memory around its tensors.

    Parameters
    ----------
    implementation : Implementation
    question : Question
    setting : Setting
    first_on : dict, optional
        Tensors of a run before this one, in the same memory.
    inplace : dict, optional
        For an output's name, the input in whose place it is written.
    """
    op, problem, inplace = question.op, question.problem, inplace or {}
    given, taken = _memory(implementation, question, setting, inplace)
    seen: list[np.ndarray | None] = []
    for name in op.inputs:
        array = given[name].array.view() if name in given else None
        if array is not None and name not in inplace.values():
            array.flags.writeable = False
        seen.append(array)
    outputs = tuple(taken[name].array for name in op.outputs)

    options = dict(question.case.options)
    if setting.live and (header := _header(implementation)) is not None:
        # What comes by value does not count then.
        options |= {**dict.fromkeys(header.live, 0), **header.live_arrays(options)}
    for name in question.case.flags:
        flag = given[name].array.view()
        flag.flags.writeable = False
        options[name] = flag
    scratch = None
    for inputs in (first_on, question.inputs):
        if inputs is None:
            continue
        for name, memory in given.items():
            array = inputs[name]
            assert array is not None
            memory.put(array)
        for name, memory in taken.items():
            if name not in inplace:
                memory.bytes.fill(setting.poison)
        try:
            if implementation.workspace is not None and not problem.empty:
                wanted = int(implementation.workspace(problem))
                band = setting.around(len(op.outputs), output=True)
                scratch = Guarded((wanted,), "uint8", band, empty=_source(implementation))
                scratch.bytes.fill(setting.scratch)
                options["workspace"] = scratch.array
            call = Call(op, implementation, problem, tuple(seen), outputs, options)
            if implementation.device == "cuda" and not emulating() and not _source(implementation):
                _run_on_gpu(call, given, taken, scratch)
            else:
                call.run()
        except (Lost, Misdeclared) as error:
            return Run({}, str(error))
        except Raised as error:
            return Run({}, f"raised {error}", error.kind)
        except (Exception, SystemExit) as error:
            return Run({}, "raised " + last_line(error), kind_of(error))
    fault = _trespass(question, given, taken, scratch, inplace)
    return Run({name: memory.get() for name, memory in taken.items()}, fault)


def _memory(
    implementation: Implementation, question: Question, setting: Setting, inplace: dict[str, str]
) -> tuple[dict[str, Guarded], dict[str, Guarded]]:
    """Memory of the inputs that are there, and of the outputs, some of which lie in an input's place."""
    problem = question.problem

    def guarded(name: str, number: int, output: bool) -> Guarded:
        return Guarded(
            problem.shape(name),
            problem.dtype_of(name),
            setting.around(number, output=output),
            aligned=not setting.shifted(question.case, output),
            layout=layouts.of(implementation.layout, name),
            empty=_source(implementation),
            guard=setting.guard,
        )

    given = {
        name: guarded(name, number, output=False)
        for number, (name, array) in enumerate(question.inputs.items())
        if array is not None
    }
    taken = {
        name: given[inplace[name]] if name in inplace else guarded(name, number, output=True)
        for number, name in enumerate(question.op.outputs)
    }
    return given, taken


def _source(implementation: Implementation) -> Callable[[int], np.ndarray] | None:
    """Where its memory comes from, where that is shared with another process."""
    return getattr(implementation.run, "empty", None)


def _header(implementation: Implementation) -> Header | None:
    """That of a kernel file, wherever it runs."""
    runner = getattr(implementation.run, "runner", implementation.run)
    return runner.kernel.header if isinstance(runner, Runner) else None


def _run_on_gpu(
    call: Call, given: dict[str, Guarded], taken: dict[str, Guarded], scratch: Guarded | None
) -> None:
    """Run a call on copies of its memory on the GPU, and copy that back, guard bands and all."""
    import cupy

    memories = [*given.values(), *taken.values(), *([scratch] if scratch else [])]
    twins = Twins(memories)
    options = {**call.options, **({"workspace": twins.array(scratch)} if scratch else {})}
    options |= {name: twins.array(given[name]) for name in call.op.flags if name in given}
    options |= {
        name: cupy.asarray(value)
        for name, value in options.items()
        if isinstance(value, np.ndarray) and name.startswith("live_")
    }
    inputs = tuple(twins.array(given[name]) if name in given else None for name in call.op.inputs)
    outputs = tuple(twins.array(taken[name]) for name in call.op.outputs)
    replace(call, inputs=inputs, outputs=outputs, options=options).run()
    twins.bring_back()


def _trespass(
    question: Question,
    given: dict[str, Guarded],
    taken: dict[str, Guarded],
    scratch: Guarded | None,
    inplace: dict[str, str],
) -> str:
    for name, memory in taken.items():
        if where := memory.trespass():
            return f"wrote outside its output {name}: {where}"
        if not question.problem.empty and (what := memory.spare()):
            return f"{what}: output {name}"
    for name, memory in given.items():
        if where := memory.trespass():
            return f"wrote outside its input {name}: {where}"
        before = question.inputs[name]
        if before is None or name in inplace.values():
            continue
        if not np.array_equal(bits(memory.get(copy=False)), bits(before)) or memory.spare():
            return f"changed its input {name}"
    if scratch is not None and (where := scratch.trespass()):
        return f"wrote outside its workspace of {scratch.bytes.size} bytes: {where}"
    return ""


def last_line(error: BaseException) -> str:
    """An error in one line, with the line that raised it: the candidate's, if that is known."""
    if isinstance(error, (Lost, Raised, Misdeclared)):
        return str(error)
    if isinstance(error, KernelError):  # it says where in the kernel
        return f"KernelError: {error}"
    text = traceback.format_exception_only(type(error), error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not librarys(f.filename)] or frames
    return f"{text} ({Path(theirs[-1].filename).name}:{theirs[-1].lineno})" if theirs else text


#: Folders of Python's own modules, of installed packages and of convkit.
_LIBRARIES = tuple(
    f"{folder}{os.sep}"
    for folder in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        str(Path(__file__).parents[1]),
    }
)


def librarys(file: str) -> bool:
    """Whether a line is a library's, and no candidate's."""
    return file.startswith((*_LIBRARIES, "<"))


def bits(array: np.ndarray) -> np.ndarray:
    """The elements as whole numbers, in a row."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
