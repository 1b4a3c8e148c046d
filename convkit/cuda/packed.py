"""Kernels that want another layout, on users' NCHW arrays: their tensors are reordered on the way in and out.

Tensor cores have kernels in NHWC alone. Where an op has no kernel in NCHW for a dtype and an arithmetic, what
it has in another layout is registered for NCHW too, under the same name: its inputs are copied into that
layout, it runs, and its output is copied back, all in scratch memory that the implementation asks for. So a
call is several launches, each of a kernel file that ships; `Implementation.packs` tells it from a kernel.

Each copied tensor is read once more and written once more. A tensor that lies the same in both layouts, as
one of a single channel or of a single pixel does, is not copied. Who keeps tensors in NHWC
(`layouts.Tensor`), as a network does, pays nothing of this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import layouts
from ..checked import Sources
from ..layouts import NCHW, Layout
from ..op import Problem
from ..ops.reorder import Reorder
from ..registry import MATH, Implementation
from .header import KernelFile
from .launch import KEPT, Executor
from .prepare import Prepared, Runner

#: Each part of the scratch memory begins at a multiple of so many bytes, as an allocation of CUDA's does: the
#: kernels' vector accesses need 16.
ALIGNMENT = 256
#: The `reorder` from one layout to another, by the order of the axes in both: of (), as users have it.
Reorders = Mapping[tuple[tuple[int, ...], tuple[int, ...]], Implementation]


@dataclass(frozen=True)
class Copy:
    """A tensor that is reordered.

    Attributes
    ----------
    tensor : str
    number : int
        Its place among the op's inputs and outputs.
    reorder : Implementation
    problem : Reorder
    place : slice
        Bytes of the scratch memory in which it lies as the kernel wants it.
    """

    tensor: str
    number: int
    reorder: Implementation
    problem: Reorder
    place: slice


class Packed(Runner):
    """A kernel file of another layout that takes NCHW arrays.

    What it says of the file (header, tile, launches) is as in `Runner`; `parts` has the reorders as well.

    Parameters
    ----------
    kernel : KernelFile
    reorders : mapping
        What copies tensors; see `Reorders`.
    """

    def __init__(self, kernel: KernelFile, reorders: Reorders) -> None:
        super().__init__(kernel)
        self.reorders = reorders
        self.copies = functools.lru_cache(maxsize=KEPT)(self._copies)

    def tiled(self, tile: Mapping[str, int]) -> Packed:
        return Packed(self.kernel.tiled(tile), self.reorders)

    def _copies(self, problem: Problem) -> tuple[Copy, ...]:
        """The tensors that do not lie in memory as the kernel wants them, in the op's order."""
        op, declared = self.kernel.op, layouts.declared(self.kernel.header.layout)
        found: list[Copy] = []
        end = 0
        for number, name in enumerate((*op.inputs, *op.outputs)):
            row, shape = declared.of(name), problem.shape(name)
            if not row.moves(shape):
                continue
            begin = aligned(end)
            end = begin + problem.bytes(name)
            reorder = self.reorders[_way(row, name in op.outputs)]
            copied = Reorder(*shape, problem.dtype_of(name))  # type: ignore[call-arg, arg-type]
            found.append(Copy(name, number, reorder, copied, slice(begin, end)))
        return tuple(found)

    def _refusal(self, problem: Problem) -> str | None:
        """Why the kernel does not take the problem, or a reorder one of its tensors; or None."""
        if reason := super()._refusal(problem):
            return reason
        for copy in self.copies(problem):
            if reason := copy.reorder.refusal(copy.problem):
                return f"{copy.reorder.name}, which copies {copy.tensor}, {reason}"
        return None

    def _workspace(self, problem: Problem) -> int:
        """Bytes of the copies, and of the kernel's own scratch memory behind them."""
        copies = self.copies(problem)
        end = copies[-1].place.stop if copies else 0
        if self.kernel.header.workspace:
            end = aligned(end) + super()._workspace(problem)
        return max(1, end)

    def parts(self, problem: Problem) -> list[tuple[Runner, Problem]]:
        own = super().parts(problem)
        return [*own, *((copy.reorder.run, copy.problem) for copy in self.copies(problem))]  # type: ignore[list-item]

    def _prepare(self, executor: Executor, problem: Problem) -> Any:
        copies, inputs = self.copies(problem), len(self.kernel.op.inputs)
        ready = [(one.number, one.place, one.reorder.run.prepare(one.problem)) for one in copies]  # type: ignore[attr-defined]
        end = aligned(copies[-1].place.stop) if copies else 0
        own = slice(end, None) if self.kernel.header.workspace else None
        return Around(
            super()._prepare(executor, problem),
            [one for one in ready if one[0] < inputs],
            [one for one in ready if one[0] >= inputs],
            own,
        )


class Around:
    """A prepared kernel with the reorders before and behind it; called as `Prepared` is.

    It allocates nothing: a copy is a part of the scratch memory, so a CUDA graph may have it. A kernel takes
    pointers, so that the parts may stay arrays of bytes.
    """

    __slots__ = ("_after", "_before", "_kernel", "_own")

    def __init__(
        self,
        kernel: Prepared,
        before: Sequence[tuple[int, slice, Prepared]],
        after: Sequence[tuple[int, slice, Prepared]],
        own: slice | None,
    ) -> None:
        self._kernel, self._before, self._after, self._own = kernel, tuple(before), tuple(after), own

    def __call__(self, *tensors: Any, workspace: Any = None, **options: Any) -> None:
        given = list(tensors)
        for number, place, reorder in self._before:
            if tensors[number] is not None:
                given[number] = workspace[place]
                reorder(tensors[number], given[number])
        for number, place, _ in self._after:
            given[number] = workspace[place]
        self._kernel(*given, workspace=None if self._own is None else workspace[self._own], **options)
        for number, _, reorder in self._after:
            reorder(given[number], tensors[number])


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _way(row: Layout, output: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The key of the reorder for a tensor in that layout: into it, or where it is an output, back."""
    return (row.axes, ()) if output else ((), row.axes)


def implementations(kernels: Sequence[Implementation]) -> list[Implementation]:
    """What these kernels leave out in NCHW: an implementation for each in another layout that can do it.

    Each has the name of its kernel, and takes those dtypes for which no kernel computes its op in NCHW in the
    same arithmetic.

    Parameters
    ----------
    kernels : sequence of Implementation
        Of kernel files, those of `reorder` among them.
    """
    of_reorder = sorted((i for i in kernels if i.op == "reorder"), key=lambda i: i.rank)
    sides = [(layouts.declared(i.layout), i) for i in of_reorder]
    reorders = {(of.x.axes, of.y.axes): i for of, i in sides if not (of.x.block or of.y.block)}
    plain = [i for i in kernels if i.layout == NCHW.name]
    lacking = []
    for kernel in kernels:
        same = {d for i in plain if (i.op, i.math) == (kernel.op, kernel.math) for d in i.dtypes}
        dtypes = tuple(dtype for dtype in kernel.dtypes if dtype not in same)
        if kernel.layout != NCHW.name and kernel.op != "reorder" and dtypes and _possible(kernel, reorders):
            lacking.append((kernel, dtypes))
    ranks = _ranks([kernel for kernel, _ in lacking], plain)
    return [_packed(kernel, dtypes, ranks(kernel), reorders) for kernel, dtypes in lacking]


def _possible(kernel: Implementation, reorders: Reorders) -> bool:
    """Whether there is a reorder for each tensor that the kernel wants in another order."""
    op, declared = kernel.run.kernel.op, layouts.declared(kernel.layout)  # type: ignore[attr-defined]
    rows = [(declared.of(name), name in op.outputs) for name in (*op.inputs, *op.outputs)]
    return all(not row.block and _way(row, output) in reorders for row, output in rows if row.axes)


def _ranks(
    lacking: Sequence[Implementation], plain: Sequence[Implementation]
) -> Callable[[Implementation], int]:
    """The rank of each: its kernel's, or more where else a kernel of finer arithmetic would come first.

    A caller who accepts tf32 is to get tensor cores. Among themselves they stay in their order.
    """

    def rank(kernel: Implementation) -> int:
        finer = [
            i.rank
            for i in plain
            if i.op == kernel.op and MATH.index(i.math) > MATH.index(kernel.math)
            if set(i.dtypes).intersection(kernel.dtypes)
        ]
        beside = [i.rank for i in lacking if (i.op, i.math) == (kernel.op, kernel.math)]
        return kernel.rank + max(0, max(finer) + 1 - min(beside)) if finer else kernel.rank

    return rank


def _packed(kernel: Implementation, dtypes: tuple[str, ...], rank: int, reorders: Reorders) -> Implementation:
    runner = Packed(kernel.run.kernel, reorders)  # type: ignore[attr-defined]
    files = dict.fromkeys(one.source for one in reorders.values())
    return replace(
        kernel,
        run=runner,
        dtypes=dtypes,
        layout=NCHW.name,
        packs=kernel.layout,
        rank=rank,
        when=runner.refusal,
        workspace=runner.workspace,
        prepare=runner.prepare,
        sources=Sources.of(kernel.source, *files),
    )
