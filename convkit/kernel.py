"""A kernel file -> an implementation: its header, its translation unit, its launches.

A `.cu` file opens with prose, then a TOML block between `// /// kernel` and `// ///`, then the code.
`docs/kernels.md` explains the header; `Header` lists its keys. Nothing here compiles or runs: an executor
(a GPU, or the emulator) does, from the same translation unit and the same arguments.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from . import devices, expressions
from .errors import OptionError, unknown
from .executors import KEPT, Argument, Bound, Executor, Extent, Function
from .geometry import Problem
from .paths import kernels_dir
from .registry import ALL_DTYPES, MATH, OPS, Implementation, Op

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_OPEN, _CLOSE = "// /// kernel", "// ///"

#: How a storage dtype is called in CUDA C++.
STORAGE = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}
#: Types that an option may have, with what Python passes for each.
OPTION_TYPES: dict[str, type] = {
    "int": np.int32,
    "float": np.float32,
    "double": np.float64,
    "unsigned long long": np.uint64,
}
#: Type of a flag of the op: an array of one int32 on the device, and the null pointer where it is not given.
FLAG_TYPE = "const int*"


@dataclass(frozen=True)
class Launch:
    """One `<<<grid, block, shared>>>` of a kernel file. All launches of a file get the same arguments."""

    entry: str
    grid: tuple[str, ...]
    block: tuple[str, ...]
    shared: str = "0"


@dataclass(frozen=True)
class Header:
    """What a kernel file declares.

    Attributes
    ----------
    op : str
    dtypes : tuple of str
    tile : dict of str to int
        Reach the source as `constexpr int`.
    tune : dict of str to list of int
        Other values of the tile that are worth trying.
    launches : tuple of Launch
        One, from `grid`, `block` and `shared`, or those of `launch`.
    options : dict of str to str
        Options and flags of the op that the kernel takes, with their C types, in order.
    let : dict of str to str
        Expressions by name, in order; each sees those before it, and every other expression sees them all.
    when : str
        Expression over the problem and the tile: whether the kernel takes the problem.
    workspace : str
        Expression: bytes of scratch memory, passed as the last pointer.
    geometry : str
        "argument", or "constexpr": compiled anew for each problem, whose numbers are constants.
    rank, error, math, layout
        As in `Implementation`.
    """

    op: str
    dtypes: tuple[str, ...] = ("float32",)
    tile: dict[str, int] = field(default_factory=dict)
    tune: dict[str, list[int]] = field(default_factory=dict)
    launches: tuple[Launch, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    let: dict[str, str] = field(default_factory=dict)
    when: str = ""
    workspace: str = ""
    geometry: str = "argument"
    rank: int = 0
    error: float = 1e-6
    math: str = "fp32"
    layout: str = "NCHW"


@dataclass(frozen=True)
class KernelFile:
    """A kernel file that has been read and found well-formed."""

    path: Path
    header: Header
    source: str

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def name(self) -> str:
        """Name of the implementation: the stem without the op."""
        return self.stem.removeprefix(self.header.op).lstrip("_") or "kernel"

    @property
    def op(self) -> Op:
        return OPS[self.header.op]


# ---------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------
def read(path: Path) -> KernelFile:
    """Read a kernel file and check its header.

    Raises
    ------
    OptionError
        Names the file and the line or key at fault.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path.name} cannot be read: {error}") from None
    try:
        return KernelFile(path, _header(path.stem, _block(source)), source)
    except OptionError as error:
        raise OptionError(f"{path.name}: {error}") from None


def _block(source: str) -> dict[str, Any]:
    """The TOML block, as a dict; an error in it names the line of the file."""
    lines = source.splitlines()
    try:
        first = next(i for i, line in enumerate(lines) if line.strip() == _OPEN)
        last = next(i for i, line in enumerate(lines) if i > first and line.strip() == _CLOSE)
    except StopIteration:
        raise OptionError(
            f"no header: a kernel file declares itself between a line {_OPEN!r} and a line {_CLOSE!r}"
        ) from None
    body = [re.sub(r"^\s*// ?", "", line) for line in lines[first + 1 : last]]
    try:
        return tomllib.loads("\n".join(body))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = first + 1 + int(found.group(1)) if found else first + 1
        raise OptionError(f"line {line}: the header is not valid TOML: {error}") from None


def _header(stem: str, block: dict[str, Any]) -> Header:
    known = {f.name for f in fields(Header)} - {"launches"} | {"launch", "grid", "block", "shared"}
    for key in block:
        if key not in known:
            raise unknown("header key", key, known)
    if "op" not in block:
        raise OptionError("the header has no 'op'")
    op = block["op"]
    if op not in OPS:
        raise unknown("op", op, OPS)
    tile = block.get("tile", {})
    if not isinstance(tile, dict) or not all(type(v) is int and k.isidentifier() for k, v in tile.items()):
        raise OptionError(f"'tile' must be a table of integers by name, not {tile!r}")
    for key in block.get("tune", {}):
        if key not in tile:
            raise OptionError(f"'tune' names {key!r}, which is not in 'tile'")
    for key, ctype in block.get("options", {}).items():
        if key not in (*OPS[op].options, *OPS[op].flags):
            raise unknown(f"option of {op}", key, (*OPS[op].options, *OPS[op].flags))
        types = (FLAG_TYPE,) if key in OPS[op].flags else tuple(OPTION_TYPES)
        if ctype not in types:
            raise unknown(f"type for option {key!r}", ctype, types)
    if not all(name.isidentifier() and isinstance(text, str) for name, text in block.get("let", {}).items()):
        raise OptionError(f"'let' must be a table of expressions by name, not {block['let']!r}")
    for text in (*block.get("let", {}).values(), block.get("when") or "0", block.get("workspace") or "0"):
        expressions.parse(text)
    for dtype in block.get("dtypes", ()):
        if dtype not in ALL_DTYPES:
            raise unknown("dtype", dtype, ALL_DTYPES)
    if block.get("math", "fp32") not in MATH:
        raise unknown("math", block["math"], MATH)
    if block.get("geometry", "argument") not in ("argument", "constexpr"):
        raise OptionError(f"'geometry' must be 'argument' or 'constexpr', not {block['geometry']!r}")
    header = {k: v for k, v in block.items() if k not in ("launch", "grid", "block", "shared")}
    if "dtypes" in header:
        header["dtypes"] = tuple(header["dtypes"])
    return Header(**header, launches=_launches(stem, block))


def _launches(stem: str, block: dict[str, Any]) -> tuple[Launch, ...]:
    rows = block.get("launch") or [{k: block[k] for k in ("grid", "block", "shared") if k in block}]
    found = []
    for row in rows:
        for key in ("grid", "block"):
            sizes = row.get(key)
            if not isinstance(sizes, list) or not 1 <= len(sizes) <= 3:
                raise OptionError(f"{key!r} must be a list of one to three expressions, not {sizes!r}")
        grid, threads = (tuple(map(str, row[key])) for key in ("grid", "block"))
        launch = Launch(row.get("entry", stem), grid, threads, str(row.get("shared", "0")))
        for text in (*launch.grid, *launch.block, launch.shared):
            expressions.parse(text)
        found.append(launch)
    return tuple(found)


# ---------------------------------------------------------------------------------------------------
# Translation unit
# ---------------------------------------------------------------------------------------------------
def translation_unit(kernel: KernelFile, problem: Problem, tile: Mapping[str, int] | None = None) -> str:
    """The whole source that is compiled, for NVRTC, nvcc and the emulator alike.

    In front of the file stand the problem's struct, `storage_t` (the type of the arrays), the tile, and
    `GEOMETRY(type)`, the kernel's first parameter: it declares `g`, at run time or, where the header says
    `geometry = "constexpr"`, as a constant. `#line` makes messages name the file's own lines.
    """
    kind = type(problem).__name__
    values = {**kernel.header.tile, **(tile or {})}
    lines = [
        f"// {kernel.stem}: what convkit declares in front of the file",
        problem.c_struct(),
        f"#define CONVKIT_STORAGE_{problem.dtype} 1",  # type: ignore[attr-defined]
    ]
    lines += [f"[[maybe_unused]] constexpr int {name} = {value};" for name, value in values.items()]
    if kernel.header.geometry == "constexpr":
        numbers = ", ".join(f"{v!r}f" if isinstance(v, float) else str(v) for v in problem.scalars().values())
        lines += [f"constexpr {kind} g = {{{numbers}}};", "#define GEOMETRY(type) const type"]
    else:
        lines += ["#define GEOMETRY(type) const type g"]
    path = str(kernel.path).replace("\\", "/")
    return "\n".join([*lines, f'#line 1 "{path}"', kernel.source])


# ---------------------------------------------------------------------------------------------------
# Implementation
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Ready:
    """A kernel file for one problem, wherever it is to run.

    Attributes
    ----------
    struct : np.void
        The problem's numbers, which the kernels receive by value.
    launches : tuple of (str, tuple, tuple, int)
        Entry point, grid, block, and bytes of dynamic shared memory of each launch that has a block at all.
    """

    struct: np.void
    launches: tuple[tuple[str, Extent, Extent, int], ...]


class Prepared:
    """A kernel file for one problem on one executor: a call packs its arguments and launches."""

    __slots__ = ("_count", "_functions", "_options", "_pack", "_struct", "_workspace", "bound")

    def __init__(
        self,
        executor: Executor,
        kernel: KernelFile,
        struct: np.void,
        functions: Sequence[Function],
        bound: Sequence[Bound],
    ) -> None:
        self._pack, self._struct, self.bound = executor.pack, struct, tuple(bound)
        self._functions = functions  # which the executor forgets when nobody has them
        self._count = len(kernel.op.inputs) + len(kernel.op.outputs)
        self._workspace = bool(kernel.header.workspace)
        self._options = [(name, OPTION_TYPES.get(ctype)) for name, ctype in kernel.header.options.items()]

    def values(self, tensors: Sequence[Any], options: Mapping[str, Any], workspace: Any = None) -> list[Any]:
        """What the kernels receive, in the order of their parameters: arrays, None, NumPy scalars."""
        if len(tensors) != self._count:
            raise TypeError(f"{self._count} tensors are needed, not {len(tensors)}")
        values = [self._struct, *tensors]
        if self._workspace:
            values.append(workspace)
        for name, convert in self._options:
            # A flag is an array, and the null pointer where it is not given.
            values.append(convert(options[name]) if convert else options.get(name))
        return values

    def __call__(self, *tensors: Any, workspace: Any = None, **options: Any) -> None:
        # All launches of a file get the same arguments.
        arguments = self._pack(self.values(tensors, options, workspace))
        for launch in self.bound:
            launch(arguments)


class Runner:
    """What a kernel file does when it is called: evaluate its header for the problem, and launch.

    What depends on the problem alone is worked out once for each, as long as it is among the last of them;
    what depends on the executor too is kept by the executor.
    """

    def __init__(self, kernel: KernelFile) -> None:
        self.kernel = kernel
        keep = functools.lru_cache(maxsize=KEPT)
        self.ready = keep(self._ready)
        self.refusal = keep(self._refusal)
        self.workspace = keep(self._workspace)

    def scope(self, problem: Problem) -> dict[str, Any]:
        """The names that the header's expressions see."""
        names = {**problem.scalars(), **self.kernel.header.tile}
        for name, text in self.kernel.header.let.items():
            names[name] = expressions.evaluate(text, names)
        return names

    def _refusal(self, problem: Problem) -> str | None:
        """Why `when` does not hold, or None."""
        when = self.kernel.header.when
        if not when or expressions.evaluate(when, self.scope(problem)):
            return None
        scope = self.scope(problem)
        values = ", ".join(f"{name} = {scope[name]}" for name in sorted(expressions.names(when)))
        return f"needs {when}; here {values}"

    def _workspace(self, problem: Problem) -> int:
        """Bytes of scratch memory for the problem."""
        return max(1, int(expressions.evaluate(self.kernel.header.workspace, self.scope(problem))))

    def parameters(self, launch: int = 0) -> tuple[Argument, ...]:
        """The kernels' parameters, in their order and without values, as a launch of the file uses them."""
        op, header = self.kernel.op, self.kernel.header
        found = [Argument(name, None) for name in ("g", *op.inputs)]
        # What one launch has written, the next one may read.
        outputs = (*op.outputs, "workspace") if header.workspace else op.outputs
        found += [Argument(name, None, output=True, reads=launch > 0) for name in outputs]
        found += [Argument(name, None) for name in header.options]
        return tuple(found)

    def prepare(self, problem: Problem) -> Prepared:
        """What launches the kernels for a problem on the current executor; kept by that."""
        executor = devices.current()
        return executor.prepared.get((self, problem), lambda: self._prepare(executor, problem))

    def _prepare(self, executor: Executor, problem: Problem) -> Prepared:
        kernel, ready = self.kernel, self.ready(problem)
        source, include = translation_unit(kernel, problem), (kernel.path.parent,)
        functions, bound = [], []
        for index, (entry, grid, block, shared) in enumerate(ready.launches):
            functions.append(executor.function(source, entry, include=include, name=kernel.stem))
            bound.append(functions[-1].bind(grid, block, shared, self.parameters(index)))
        return Prepared(executor, kernel, ready.struct, functions, bound)

    def __call__(self, problem: Problem, *tensors: Any, workspace: Any = None, **options: Any) -> None:
        self.prepare(problem)(*tensors, workspace=workspace, **options)

    def _ready(self, problem: Problem) -> Ready:
        launches = ((one.entry, *self.extents(one, problem)) for one in self.kernel.header.launches)
        # An empty grid: nothing to do, which CUDA itself would refuse to launch.
        launches_made = tuple(launch for launch in launches if 0 not in launch[1])
        return Ready(problem.struct()[0], launches_made)

    def extents(self, launch: Launch, problem: Problem) -> tuple[Extent, Extent, int]:
        """Grid, block and shared bytes of a launch for a problem."""
        scope = self.scope(problem)

        def three(texts: Sequence[str]) -> Extent:
            x, y, z = ([int(expressions.evaluate(t, scope)) for t in texts] + [1, 1])[:3]
            return x, y, z

        return three(launch.grid), three(launch.block), int(expressions.evaluate(launch.shared, scope))


def implementation(path: Path) -> Implementation:
    """The implementation that a kernel file is."""
    kernel = read(path)
    runner, header = Runner(kernel), kernel.header
    return Implementation(
        header.op,
        kernel.name,
        runner,
        device="cuda",
        dtypes=header.dtypes,
        layout=header.layout,
        rank=header.rank,
        error=header.error,
        math=header.math,
        when=runner.refusal,
        workspace=runner.workspace if header.workspace else None,
        prepare=runner.prepare,
        flags=tuple(name for name in kernel.op.flags if name in header.options),
        source=str(path),
    )


def builtin_files() -> list[Path]:
    """The kernel files that convkit ships."""
    return sorted(kernels_dir().glob("*.cu"))
