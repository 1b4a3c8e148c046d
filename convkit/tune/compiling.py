"""Machine code of many candidates, in parallel: left in the disk cache, where a launch finds it."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from ..cuda import nvrtc
from ..cuda.cache import Cache, key_of
from ..cuda.nvrtc import Resources
from ..cuda.prepare import Runner
from ..cuda.source import translation_unit
from ..errors import ConvkitError
from ..op import Problem

#: What a candidate compiles to: by entry point; or why it does not compile.
Compiled = Mapping[str, Resources] | str
#: Source, architecture, folders of headers, name.
_Unit = tuple[str, str, tuple[Path, ...], str]
#: What this process knows: layers of other sizes are the same source.
_known: dict[_Unit, Compiled] = {}


def compiled(
    runners: Sequence[Runner], problem: Problem, arch: str, *, workers: int | None = None
) -> Iterator[tuple[int, Compiled]]:
    """Compile kernel files for a problem; what is in the cache is not compiled again.

    Parameters
    ----------
    runners : sequence of Runner
    problem : Problem
    arch : str
        Such as "sm_90a".
    workers : int, optional
        Processes; by default as many as there are CPUs. One: this process compiles.

    Raises
    ------
    CompileError
        If one of the processes died.

    Yields
    ------
    (int, Compiled)
        The number of a runner, and what it compiles to; in the order in which they are done.
    """
    units: dict[_Unit, list[int]] = {}
    for index, runner in enumerate(runners):
        kernel = runner.fitted(problem)
        unit: _Unit = (translation_unit(kernel, problem), arch, (kernel.path.parent,), kernel.stem)
        units.setdefault(unit, []).append(index)
    for unit in [unit for unit in units if unit in _known]:
        yield from ((index, _known[unit]) for index in units.pop(unit))
    for unit, what in _parallel(list(units), min(workers or os.cpu_count() or 1, len(units))):
        _known[unit] = what
        yield from ((index, what) for index in units[unit])


def _parallel(units: Sequence[_Unit], workers: int) -> Iterator[tuple[_Unit, Compiled]]:
    if workers <= 1:
        yield from ((unit, _one(*unit)) for unit in units)
        return
    # Fresh processes: a fork would share this one's CUDA context, and its threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_one, *unit): unit for unit in units}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BrokenProcessPool:  # for want of memory, as a rule
            raise nvrtc.CompileError(
                f"one of {workers} processes that compile died; --jobs makes fewer"
            ) from None


def _one(source: str, arch: str, include: tuple[Path, ...], name: str) -> Compiled:
    """One translation unit: its resources, or the first line of what the compiler says."""
    try:
        key = nvrtc.cache_key(source, arch, include=include)

        def build(path: Path) -> None:
            cubin = nvrtc.compile_cubin(source, arch, include=include, name=name)
            # Where `nvrtc.cached_cubin` looks for it.
            Cache().get(f"{name}-{arch}-{key}", lambda code: _write(code, cubin.code), suffix=".cubin")
            path.write_text(json.dumps({e: asdict(r) for e, r in cubin.resources().items()}))

        found = Cache().get(f"{name}-{arch}-{key_of([key, 'resources'])}", build, suffix=".json")
        return {entry: Resources(**row) for entry, row in json.loads(found.read_text()).items()}
    except ConvkitError as error:
        return str(error).splitlines()[0]


def _write(path: Path, code: bytes) -> None:
    path.write_bytes(code)
