"""An implementation bound to a problem and to memory: what dispatch ends in, and a plan is made of."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import arrays, devices, layouts
from .arrays import Array
from .op import Op, Problem
from .registry import Implementation

#: Bytes of scratch memory that a thread keeps from one call to the next at the most. New memory costs a page
#: fault for each 4 KB: for a convolution of few channels more than the arithmetic.
KEPT_WORKSPACE = 64 << 20


class _Local(threading.local):
    memory: np.ndarray | None = None


_local = _Local()


def take(size: int) -> np.ndarray:
    """Scratch memory on the CPU, in whatever state; the thread's own, unless a call further out has it."""
    memory, _local.memory = _local.memory, None
    if memory is None or memory.size < size:
        del memory  # before more is taken
        memory = arrays.empty((size,), "uint8")
    return memory


def keep(memory: np.ndarray) -> None:
    """Give back what `take` returned."""
    if memory.size <= KEPT_WORKSPACE:
        _local.memory = memory


@contextlib.contextmanager
def workspace(size: int) -> Iterator[np.ndarray]:
    """Scratch memory on the CPU, in whatever state."""
    memory = take(size)
    try:
        yield memory[:size]
    finally:
        keep(memory)


@dataclass
class Call:
    """An implementation bound to a problem, to memory and to options; `run` may be called many times.

    Attributes
    ----------
    op : Op
    implementation : Implementation
    problem : Problem
    inputs, outputs : tuple of Array
        Contiguous, in the order that the op declares; an optional input may be None.
    options : dict
        Keyword arguments of the implementation, flags that are given among them; a plan changes them
        between steps (the learning rate).
    layer : str
        Which layer of a network it belongs to, for tables; empty outside one.
    """

    op: Op
    implementation: Implementation
    problem: Problem
    inputs: tuple[Array | None, ...]
    outputs: tuple[Array, ...]
    options: dict[str, Any] = field(default_factory=dict)
    layer: str = ""
    #: An executor, the implementation's `prepare`, and what that has made for the executor.
    _prepared: tuple[Any, Any, Callable[..., None]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory that the implementation wants."""
        workspace = self.implementation.workspace
        return workspace(self.problem) if workspace and not self.problem.empty else 0

    def nchw(self, names: tuple[str, ...], memory: tuple[Array | None, ...]) -> list[Array | None]:
        """Tensors of this call, each as its problem says: itself, or a copy of one in another layout."""
        declared = layouts.declared(self.implementation.layout)
        found: list[Array | None] = []
        for name, a in zip(names, memory, strict=True):
            if a is None:
                found.append(None)
                continue
            shape, row = self.problem.shape(name), declared.of(name)
            if self.op.inplace and tuple(a.shape) != row.physical(shape):
                # What is done element by element takes any layout that all its tensors share.
                row = next(r for r in layouts.ACTIVATIONS.values() if r.physical(shape) == tuple(a.shape))
            found.append(row.unpack(a, shape))
        return found

    def run(self) -> None:
        """Fill the outputs."""
        # NaN and infinity propagate; they are no reason to warn.
        with arrays.on(self.outputs[0]), np.errstate(all="ignore"):
            self.bare()()

    def bare(self) -> Callable[[], None]:
        """`run` without what many calls can share: where the outputs' GPU is current and NumPy does not warn.

        It may be called many times, each time with the options as they are then, as long as the executor
        (`convkit.devices.current`) is the same. A plan that runs often keeps these.
        """
        if self.problem.empty and not (self.op.updates and any(a.size for a in self.outputs)):
            return self._zero
        launch, tensors, options = self.launch(), (*self.inputs, *self.outputs), self.options
        if not self.implementation.workspace or "workspace" in options:
            return lambda: launch(*tensors, **options)
        return functools.partial(self._with_workspace, launch)

    def launch(self) -> Callable[..., None]:
        """The implementation without its first argument; what it prepares is kept for the executor."""
        prepare = self.implementation.prepare
        if prepare is None:
            return functools.partial(self.implementation.run, self.problem)
        executor = devices.current() if self.implementation.device == "cuda" else None
        kept = self._prepared
        if kept is None or kept[0] is not executor or kept[1] is not prepare:
            # In one assignment: threads that share a call each find a whole one.
            self._prepared = kept = executor, prepare, prepare(self.problem)
        return kept[2]

    def _zero(self) -> None:
        """Sums over an empty batch are zero; everything else is empty itself. (Weights still decay.)"""
        for output in self.outputs:
            output.fill(0)

    def _with_workspace(self, launch: Callable[..., None]) -> None:
        tensors, size = (*self.inputs, *self.outputs), self.workspace_bytes
        if isinstance(self.outputs[0], np.ndarray):
            with workspace(size) as scratch:
                launch(*tensors, **self.options, workspace=scratch)
        else:
            launch(*tensors, **self.options, workspace=arrays.empty((size,), "uint8", "cuda"))
