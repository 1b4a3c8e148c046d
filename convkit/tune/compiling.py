"""Machine code of many candidates, in parallel: left in the disk cache, where a launch finds it."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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

    Yields
    ------
    (int, Compiled)
        The number of a runner, and what it compiles to; in the order in which they are done.
    """
    units = []
    for runner in runners:
        kernel = runner.fitted(problem)
        source = translation_unit(kernel, problem)
        units.append((source, arch, (kernel.path.parent,), kernel.stem))
    workers = min(workers or os.cpu_count() or 1, len(units))
    if workers <= 1:
        for index, unit in enumerate(units):
            yield index, _one(*unit)
        return
    # Fresh processes: a fork would share this one's CUDA context, and its threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_one, *unit): index for index, unit in enumerate(units)}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


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
