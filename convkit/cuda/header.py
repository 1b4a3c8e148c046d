"""A kernel file's header: what it declares, read and checked. Nothing here compiles or runs.

A `.cu` file opens with prose, then a TOML block between `// /// kernel` and `// ///`, then the code.
`docs/kernels.md` explains the header; `Header` lists its keys.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OptionError, unknown
from ..op import OPS, Op, Problem
from ..paths import kernels_dir
from ..registry import MATH, require_dtype
from . import expressions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: What `heuristics` must know of a tile to choose among several; and of a thread's sums, or a warp's.
MODELLED = ("TILE_M", "TILE_N", "TILE_K", "PER_SM")
MODELLED_SUMS = (("THREAD_M", "THREAD_N"), ("WARP_M", "WARP_N"))
_OPEN, _CLOSE = "// /// kernel", "// ///"

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
        Also pairs, "bfloat16/float32": see `storage.cuh`.
    tile : dict of str to int
        Reach the source as `constexpr int`.
    tiles : tuple of dict of str to int
        Other tiles, as what differs from `tile`. For each problem `heuristics.fitted` chooses one of them
        all, by numbers of the tile (`MODELLED`) and by BLOCKS, SLICES and STEPS in `let`.
    tune : dict of str to list of int
        Other values of the tile that are worth trying.
    launches : tuple of Launch
        One, from `grid`, `block` and `shared`, or those of `launch`.
    options : dict of str to str
        Options and flags of the op that the kernel takes, with their C types, in order.
    live : tuple of str
        Options that may also come from memory on the device. Behind all options the kernel has a pointer for
        each, which is null where the option comes by value.
    let : dict of str to str
        Expressions by name, in order; each sees those before it, and every other expression sees them all.
    dividers : dict of str to str
        Numbers by which the kernel divides: expressions by name. They reach it as members of `g`.
    when : str
        Expression over the problem and the tile: whether the kernel takes the problem.
    workspace : str
        Expression: bytes of scratch memory, passed as the last pointer.
    geometry : str
        "argument", or "constexpr": compiled anew for each problem, whose numbers are constants.
    rank, error, math, truncates, layout
        As in `Implementation`.
    """

    op: str
    dtypes: tuple[str, ...] = ("float32",)
    tile: dict[str, int] = field(default_factory=dict)
    tiles: tuple[dict[str, int], ...] = ()
    tune: dict[str, list[int]] = field(default_factory=dict)
    launches: tuple[Launch, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    live: tuple[str, ...] = ()
    let: dict[str, str] = field(default_factory=dict)
    dividers: dict[str, str] = field(default_factory=dict)
    when: str = ""
    workspace: str = ""
    geometry: str = "argument"
    rank: int = 0
    error: float = 1e-6
    math: str = "fp32"
    truncates: bool = False
    layout: str = "NCHW"

    @property
    def pointers(self) -> tuple[str, ...]:
        """Names of the kernel's pointers to live options."""
        return tuple(f"live_{name}" for name in self.live)

    def live_arrays(self, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The live options as arrays of one element, by the names of the kernel's pointers to them."""
        return {
            pointer: np.array([options[name]], OPTION_TYPES[self.options[name]])
            for name, pointer in zip(self.live, self.pointers, strict=True)
        }

    def scope(self, problem: Problem) -> dict[str, Any]:
        """The names that expressions see: the problem's numbers, the tile, and those of `let`."""
        names = {**problem.scalars(), **self.tile}
        for name, text in self.let.items():
            names[name] = expressions.evaluate(text, names)
        return names


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

    def tiled(self, tile: Mapping[str, int]) -> KernelFile:
        """The same file with other values in its tile, and no choice of tiles."""
        return replace(self, header=replace(self.header, tile={**self.header.tile, **tile}, tiles=()))


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


#: Keys of the header that say how a kernel is launched: a function of the host's has none of them.
LAUNCHED = ("launch", "grid", "block", "shared", "dividers", "geometry", "tune", "tiles", "live")


def read_host(path: Path) -> KernelFile:
    """Read a C++ file for the CPU: its header is a kernel's without what is said of launches.

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
        block = _block(source)
        for key in LAUNCHED:
            if key in block:
                raise OptionError(
                    f"{key!r} is for CUDA kernels: a C++ function is called once, with all arrays"
                )
        return KernelFile(path, _header(path.stem, {**block, "grid": ["1"], "block": ["1"]}), source)
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
    except RecursionError:
        raise OptionError(f"line {first + 1}: the header is nested too deeply") from None


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
    tiles = block.get("tiles", [])
    if not isinstance(tiles, list) or not all(
        isinstance(one, dict) and set(one) <= set(tile) and all(type(v) is int for v in one.values())
        for one in tiles
    ):
        raise OptionError(f"'tiles' must be a list of tables of integers by names of 'tile', not {tiles!r}")
    numbers_of = {*tile, *block.get("let", {})}
    if tiles and not (
        {*MODELLED, "BLOCKS", "SLICES", "STEPS"} <= numbers_of
        and any(numbers_of.issuperset(sums) for sums in MODELLED_SUMS)
    ):
        raise OptionError(
            f"'tiles' needs {', '.join(MODELLED)}, and {' or '.join(map(' and '.join, MODELLED_SUMS))}, "
            "in 'tile', and BLOCKS, SLICES and STEPS in 'let': by these one of them is chosen"
        )
    for key in block.get("tune", {}):
        if key not in tile:
            raise OptionError(f"'tune' names {key!r}, which is not in 'tile'")
    for key, ctype in block.get("options", {}).items():
        if key not in (*OPS[op].options, *OPS[op].flags):
            raise unknown(f"option of {op}", key, (*OPS[op].options, *OPS[op].flags))
        types = (FLAG_TYPE,) if key in OPS[op].flags else tuple(OPTION_TYPES)
        if ctype not in types:
            raise unknown(f"type for option {key!r}", ctype, types)
    numbers = [key for key, ctype in block.get("options", {}).items() if ctype in OPTION_TYPES]
    live = block.get("live", [])
    if not isinstance(live, list) or not all(isinstance(key, str) for key in live):
        raise OptionError(f"'live' must be a list of options, not {live!r}")
    for key in live:
        if key not in numbers:
            raise unknown("option in 'live'", key, numbers)
    named: list[str] = []
    for key in ("let", "dividers"):
        table = block.get(key, {})
        if not isinstance(table, dict) or not all(
            name.isidentifier() and isinstance(text, str) for name, text in table.items()
        ):
            raise OptionError(f"{key!r} must be a table of expressions by name, not {table!r}")
        named += table.values()
    for text in (*named, block.get("when") or "0", block.get("workspace") or "0"):
        expressions.parse(text)
    for dtype in block.get("dtypes", ()):
        require_dtype(op, dtype)
    if block.get("math", "fp32") not in MATH:
        raise unknown("math", block["math"], MATH)
    if type(block.get("truncates", False)) is not bool:
        raise OptionError(f"'truncates' must be true or false, not {block['truncates']!r}")
    if block.get("geometry", "argument") not in ("argument", "constexpr"):
        raise OptionError(f"'geometry' must be 'argument' or 'constexpr', not {block['geometry']!r}")
    header = {k: v for k, v in block.items() if k not in ("launch", "grid", "block", "shared")}
    for key in ("dtypes", "tiles", "live"):
        if key in header:
            header[key] = tuple(header[key])
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


def builtin_files() -> list[Path]:
    """The kernel files that convkit ships."""
    return sorted(kernels_dir().glob("*.cu"))
