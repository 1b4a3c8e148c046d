"""A kernel file as an implementation: its launches for a problem, bound once on each executor.

An executor (a GPU, or the emulator) compiles the translation unit and runs it; see `launch`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import devices
from ..op import Problem
from ..registry import Implementation
from . import dividers, expressions, heuristics
from .header import OPTION_TYPES, KernelFile, Launch, read
from .launch import KEPT, Argument, Bound, Executor, Extent, Function
from .source import translation_unit


@dataclass(frozen=True)
class Ready:
    """A kernel file for one problem, wherever it is to run.

    Attributes
    ----------
    struct : np.void
        The problem's numbers and the header's dividers, which the kernels receive by value.
    launches : tuple of (str, tuple, tuple, int)
        Entry point, grid, block, and bytes of dynamic shared memory of each launch that has a block at all.
    """

    struct: np.void
    launches: tuple[tuple[str, Extent, Extent, int], ...]


class Prepared:
    """A kernel file for one problem on one executor: a call packs its arguments and launches.

    A call is given tensors, options and scratch memory. Where `live_lr` is among the options, an array of one
    element, a kernel whose header says that `lr` is live reads it there.
    """

    __slots__ = ("_count", "_functions", "_live", "_options", "_pack", "_struct", "_workspace", "bound")

    def __init__(
        self,
        executor: Executor,
        kernel: KernelFile,
        struct: np.void,
        functions: Sequence[Function],
        bound: Sequence[Bound],
    ) -> None:
        self._pack, self._struct, self.bound = executor.pack, struct, tuple(bound)
        self._functions = functions  # which the executor forgets when they are in use no more
        self._count = len(kernel.op.inputs) + len(kernel.op.outputs)
        self._workspace = bool(kernel.header.workspace)
        self._options = [(name, OPTION_TYPES.get(ctype)) for name, ctype in kernel.header.options.items()]
        self._live = kernel.header.pointers

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
        values += [options.get(pointer) for pointer in self._live]
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
        self.fitted = keep(self._fitted)
        self.ready = keep(self._ready)
        self.refusal = keep(self._refusal)
        self.workspace = keep(self._workspace)

    def tiled(self, tile: Mapping[str, int]) -> Runner:
        """The same with one tile for every problem; what `tile` leaves out is as in the file's."""
        return Runner(self.kernel.tiled(tile))

    def _fitted(self, problem: Problem) -> KernelFile:
        """The kernel file with the tile that suits the problem."""
        return heuristics.fitted(self.kernel, problem)

    def scope(self, problem: Problem) -> dict[str, Any]:
        """The names that the header's expressions see."""
        return self.fitted(problem).header.scope(problem)

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

    def parts(self, problem: Problem) -> list[tuple[Runner, Problem]]:
        """All kernel files that run for the problem, this one first, each with the problem that it gets."""
        return [(self, problem)]

    def parameters(self, launch: int = 0) -> tuple[Argument, ...]:
        """The kernels' parameters, in their order and without values, as a launch of the file uses them."""
        op, header = self.kernel.op, self.kernel.header
        found = [Argument(name, None) for name in ("g", *op.inputs)]
        # What one launch has written, the next one may read.
        outputs = (*op.outputs, "workspace") if header.workspace else op.outputs
        found += [Argument(name, None, output=True, reads=launch > 0) for name in outputs]
        found += [Argument(name, None) for name in header.options]
        found += [Argument(name, None) for name in header.pointers]
        return tuple(found)

    def prepare(self, problem: Problem) -> Prepared:
        """What launches the kernels for a problem on the current executor; kept by that."""
        executor = devices.current()
        return executor.prepared.get((self, problem), lambda: self._prepare(executor, problem))

    def _prepare(self, executor: Executor, problem: Problem) -> Prepared:
        kernel, ready = self.fitted(problem), self.ready(problem)
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
        return Ready(dividers.struct(self.fitted(problem).header, problem), launches_made)

    def extents(self, launch: Launch, problem: Problem) -> tuple[Extent, Extent, int]:
        """Grid, block and shared bytes of a launch for a problem."""
        scope = self.scope(problem)

        def three(texts: Sequence[str]) -> Extent:
            x, y, z = ([int(expressions.evaluate(t, scope)) for t in texts] + [1, 1])[:3]
            return x, y, z

        return three(launch.grid), three(launch.block), int(expressions.evaluate(launch.shared, scope))


def tiled(implementation: Implementation, tile: Mapping[str, int]) -> Implementation:
    """A kernel file's implementation with one tile for every problem.

    Parameters
    ----------
    implementation : Implementation
        Of a kernel file; also a packed one.
    tile : mapping of str to int
        What is fixed; the rest is as in the file's `tile`.
    """
    runner = implementation.run.tiled(tile)  # type: ignore[attr-defined]
    return replace(
        implementation,
        run=runner,
        when=runner.refusal,
        workspace=runner.workspace if implementation.workspace else None,
        prepare=runner.prepare,
        tile=tuple(sorted(tile.items())),
    )


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
        truncates=header.truncates,
        when=runner.refusal,
        workspace=runner.workspace if header.workspace else None,
        prepare=runner.prepare,
        flags=tuple(name for name in kernel.op.flags if name in header.options),
        source=str(path),
    )
