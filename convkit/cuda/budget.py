"""What every shipped kernel compiles to, held against `kernels/budget.json`: with no GPU.

    python -m convkit.cuda.budget [--kernel NAME] [--update]        make budget

For each kernel file, entry, dtype and architecture, with each of the shipped tiles. No kernel may spill or
keep a stack. Registers and shared memory must not grow, and the main loops of tiled kernels must not grow
thinner in multiply-adds, unless the file of budgets changes too: `--update` writes what is measured, and the
diff shows what a change costs. Fewer registers than the budget has are no complaint.

The figures are those of one version of NVRTC, which the file names; under another one, the limits alone are
checked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import ConvkitError, OptionError, unknown
from ..op import OPS, Problem
from ..paths import kernels_dir
from . import nvrtc, sass
from .cache import Cache, key_of
from .header import KernelFile, builtin_files, read
from .nvrtc import ARCHITECTURES
from .prepare import Runner
from .source import translation_unit

#: What no kernel may have, for any reason.
FORBIDDEN = {
    "spill_bytes": "bytes of spilled registers",
    "stack_bytes": "bytes of stack",
    "local_accesses": "accesses to local memory in the main loop",
}
#: What may not exceed the budget.
AT_MOST = ("registers", "shared_bytes")
#: What may not fall below the budget by more than this: of a main loop that multiplies with FFMA, or on
#: tensor cores. `load_to_use` is in instructions.
FFMA_LOOP = {"ffma_density": 0.02, "lds128_share": 0.02, "ffma_per_lds128": 0.5, "load_to_use": 16}
HMMA_LOOP = {"hmma_density": 0.02, "hmma_per_ldsm": 0.1, "async_copies": 0}
AT_LEAST = {**FFMA_LOOP, **HMMA_LOOP}
#: On tensor cores, a load of a fragment from shared memory has to feed so many multiplications.
HMMA_PER_LDSM = 4
UPDATE = "`make budget` writes what is measured now into kernels/budget.json"

#: Measured: by "ENTRY DTYPE ARCHITECTURE", and behind that another tile's values, the figures above by name.
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Build:
    """One compilation of a kernel file; `tile` is one of the header's `tiles`, or empty for its `tile`."""

    path: Path
    dtype: str
    arch: str
    tile: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.path.stem} ({self.key.replace(' ', ', ')})"

    @property
    def key(self) -> str:
        """What stands behind the entry in the keys of its rows."""
        tile = ",".join(f"{name}={value}" for name, value in self.tile)
        return " ".join(filter(None, (self.dtype, self.arch, tile)))


def builds(paths: Iterable[Path] | None = None) -> list[Build]:
    """Every compilation that the budget covers."""
    files = [read(path) for path in (builtin_files() if paths is None else paths)]
    return [
        Build(k.path, dtype, arch, tuple(tile.items()))
        for k in files
        for tile in ({}, *k.header.tiles)
        for dtype in k.header.dtypes
        for arch in ARCHITECTURES
    ]


# ---------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------
def measure(build: Build) -> Rows:
    """Compile, and count; from the disk cache where neither the kernel nor the way of counting has changed.

    Raises
    ------
    CompileError
        If it does not compile.
    MissingExtra
        If the wheels of the extra `[static]` are not installed.
    """
    kernel = read(build.path).tiled(dict(build.tile))
    source = translation_unit(kernel, _sample(kernel, build.dtype))
    include = (build.path.parent,)
    counting = [Path(module).read_bytes() for module in (__file__, sass.__file__)]
    key = key_of([nvrtc.cache_key(source, build.arch, include=include), *counting])

    def write(path: Path) -> None:
        cubin = nvrtc.compile_cubin(source, build.arch, include=include, name=build.path.stem)
        path.write_text(json.dumps(_rows(kernel, build, cubin)))

    found = Cache().get(f"{build.path.stem}-{build.arch}-{key}", write, suffix=".json")
    return json.loads(found.read_text())


def _sample(kernel: KernelFile, dtype: str) -> Problem:
    """A problem that the kernel accepts. Only where the geometry is `constexpr` does it matter which."""
    asked = OPS[kernel.header.op].cases
    for _, problem in chain(asked.layers(), asked.edges()):
        problem = replace(problem, dtype=dtype)  # type: ignore[call-arg]
        if Runner(kernel).refusal(problem) is None:
            return problem
    raise OptionError(f"{kernel.stem}: none of the gate's cases fulfils when = {kernel.header.when!r}")


def _rows(kernel: KernelFile, build: Build, cubin: nvrtc.Cubin) -> Rows:
    resources = cubin.resources()
    tiled = _multiplies(kernel) and any(
        r.shared_bytes or launch.shared != "0"
        for launch in kernel.header.launches
        if (r := resources.get(launch.entry))
    )
    loops = sass.facts(sass.disassemble(cubin.code)) if tiled else {}
    rows: Rows = {}
    for entry, used in resources.items():
        row = rows[f"{entry} {build.key}"] = dict(vars(used))
        loop = loops.get(entry)
        if loop and (loop.hmma or (loop.ffma and loop.shared_loads)):
            row["local_accesses"] = loop.local_accesses
            counted = HMMA_LOOP if loop.hmma else FFMA_LOOP
            row.update({name: round(getattr(loop, name), 2) for name in counted})
    return rows


def _multiplies(kernel: KernelFile) -> bool:
    """Whether the op is a matrix product, so that a kernel with shared memory is a tiled one."""
    family, _, direction = kernel.header.op.partition("_")
    return family in ("conv2d", "linear") and direction.partition("_")[0] in ("fprop", "dgrad", "wgrad")


# ---------------------------------------------------------------------------------------------------
# The file of budgets
# ---------------------------------------------------------------------------------------------------
def budget_path() -> Path:
    return kernels_dir() / "budget.json"


def load() -> dict[str, Any]:
    """The budget: "compiler", and "kernels": rows by kernel file."""
    path = budget_path()
    if not path.exists():
        return {"compiler": compiler(), "kernels": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def save(rows: Mapping[str, Rows]) -> None:
    """Write the budget, a line per row, so that a diff can be read."""

    def lines(kernel: str) -> str:
        kept = {key: _budgeted(row) for key, row in rows[kernel].items()}
        body = ",\n".join(f"   {json.dumps(key)}: {json.dumps(row)}" for key, row in kept.items())
        return f"  {json.dumps(kernel)}: {{\n{body}\n  }}"

    body = ",\n".join(lines(kernel) for kernel in sorted(rows))
    text = f'{{\n "compiler": {json.dumps(compiler())},\n "kernels": {{\n{body}\n }}\n}}\n'
    budget_path().write_text(text, encoding="utf-8")


def _budgeted(row: Mapping[str, float]) -> dict[str, float]:
    """What of a row the file keeps: not what is forbidden, of which there is no budget to have."""
    return {name: row[name] for name in (*AT_MOST, *AT_LEAST) if name in row}


def compiler() -> str:
    return f"NVRTC {nvrtc.version()}"


# ---------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------
def broken_limits(rows: Rows) -> list[str]:
    """What no budget can allow: one line for each row."""
    found = []
    for key, row in rows.items():
        has = [f"{row[name]} {what}" for name, what in FORBIDDEN.items() if row.get(name)]
        if has:
            found.append(f"{key}: has {', '.join(has)}; none is allowed")
        if row.get("hmma_per_ldsm", HMMA_PER_LDSM) < HMMA_PER_LDSM:
            found.append(
                f"{key}: {row['hmma_per_ldsm']} HMMA to an LDSM; at least {HMMA_PER_LDSM} are asked for"
            )
        if row.get("async_copies") == 0:
            found.append(f"{key}: the main loop has no cp.async (LDGSTS)")
    return found


def overruns(build: Build, rows: Rows, budget: Mapping[str, Any]) -> list[str]:
    """Where the rows of one compilation do not keep to the budget, or are not in it."""
    allowed: Rows = budget["kernels"].get(build.path.stem, {})
    ours = {key for key in allowed if key.partition(" ")[2] == build.key}
    found = [
        f"{key}: is in the budget, and not in the kernel; {UPDATE}" for key in sorted(ours - rows.keys())
    ]
    for key, row in rows.items():
        limits = allowed.get(key)
        if limits is None:
            found.append(f"{key}: is not in the budget; {UPDATE}")
            continue
        found += [
            f"{key}: {name} is {row[name]}, over the budget's {limits.get(name)}; {UPDATE}"
            for name in AT_MOST
            if row[name] > limits.get(name, -1)
        ]
        for name, slack in AT_LEAST.items():
            if (name in limits) != (name in row):
                where = "the budget" if name in limits else "the kernel"
                found.append(f"{key}: only {where} has a main loop on shared memory ({name}); {UPDATE}")
            elif name in limits and row[name] < limits[name] - slack:
                found.append(f"{key}: {name} is {row[name]}, below the budget's {limits[name]}; {UPDATE}")
    return found


def stale(budget: Mapping[str, Any]) -> list[str]:
    """Entries of the budget that no compilation can answer for any more."""
    expected = {(b.path.stem, b.key) for b in builds()}
    return [
        f"{key}: is in the budget, and not among the kernels; {UPDATE}"
        for stem, rows in budget["kernels"].items()
        for key in rows
        if (stem, key.partition(" ")[2]) not in expected
    ]


def complaints(build: Build, budget: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with one compilation."""
    rows = measure(build)
    same = budget["compiler"] == compiler()
    return broken_limits(rows) + (overruns(build, rows, budget) if same else [])


# ---------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------
def _try(build: Build) -> Rows | str:
    try:
        return measure(build)
    except (nvrtc.CompileError, OptionError) as error:
        return str(error).splitlines()[0]


def _chosen(names: Sequence[str]) -> list[Path]:
    files = {path.stem: path for path in builtin_files()}
    for name in names:
        if name not in files:
            raise unknown("kernel", name, files)
    return [path for stem, path in files.items() if not names or stem in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and compare or update; 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m convkit.cuda.budget", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--kernel", action="append", default=[], metavar="NAME", help="only this one; repeatable"
    )
    parser.add_argument(
        "--update", action="store_true", help="write what is measured into kernels/budget.json"
    )
    args = parser.parse_args(argv)
    try:
        return _main(args)
    except ConvkitError as error:
        print(f"convkit.cuda.budget: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    budget = load()
    todo = builds(_chosen(args.kernel))
    compiler()  # a missing compiler is better known before the pool starts
    sass.nvdisasm()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        measured = dict(zip(todo, pool.map(_try, todo)))
    kernels: dict[str, Rows] = {}
    columns = (*AT_MOST, *FORBIDDEN, *AT_LEAST)
    wrong, table = [], []
    for build, rows in measured.items():
        if isinstance(rows, str):
            wrong.append(f"{build}: {rows}")
            continue
        kernels.setdefault(build.path.stem, {}).update(rows)
        table += [[key, *(row.get(c) for c in columns)] for key, row in rows.items()]
        wrong += broken_limits(rows)
        if not args.update and budget["compiler"] == compiler():
            wrong += overruns(build, rows, budget)
    print(tabulate(table, ("entry dtype architecture", *columns), tablefmt="simple"))
    if args.update:
        kept = {stem: budget["kernels"].get(stem, {}) for stem in (p.stem for p in builtin_files())}
        failed = {b.path.stem for b, rows in measured.items() if isinstance(rows, str)}
        new = {stem: rows for stem, rows in kernels.items() if stem not in failed}
        save({stem: rows for stem, rows in {**kept, **new}.items() if rows})
    elif budget["compiler"] != compiler():
        print(f"\nthe budget is of {budget['compiler']}: under {compiler()}, the limits alone are checked")
    elif not args.kernel:
        wrong += stale(budget)
    print(f"\n{compiler()}: {len(measured)} compilations, {len(wrong)} complaints")
    for line in wrong:
        print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
