"""convkit's own entries for an item: every implementation that takes it, in every layout that it has."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ... import arrays, devices, layouts
from ...call import Call
from ...check.guarded import NAN, Guarded
from ...check.process import group_of
from ...errors import NoImplementation, OptionError
from ...network.plan.program import Program
from ...network.presets import PRESETS, preset
from ...op import OPS, Problem
from ...ops.conv2d import Conv2d
from ...ops.linear import Linear
from ...ops.reorder import Reorder
from ...registry import ALL_DTYPES, Implementation, current_choice, generation, implementations, select
from .. import status
from ..status import UNRUN
from ..work import Item
from . import fresh
from .entry import CONTAINED, NOT_CONTAINED, OWN, PICKED, Entry

#: Marks of convkit's entries.
PICKED_NCHW = "picked for NCHW"

#: What gives bytes of memory; None: NumPy.
Source = Callable[[int], np.ndarray] | None


class OnGpu:
    """Memory of one tensor on the current GPU, in a layout: `Guarded` without guard bands."""

    def __init__(self, shape: tuple[int, ...], dtype: str, layout: layouts.Layout) -> None:
        self.layout, self.shape = layout, shape
        self.array = arrays.empty(layout.physical(shape), dtype, "cuda")

    def get(self) -> np.ndarray:
        """The memory in NCHW, on the host."""
        return np.asarray(arrays_on_host(self.layout.unpack(self.array, self.shape)))

    def trespass(self) -> str:
        """Nothing is known of that here."""
        return ""


class Bound:
    """One implementation on an item's memory, in its own layout.

    `bind` copies the NCHW inputs into blocked memory where the implementation wants that, and `read` brings
    the outputs back; NCHW tensors are used as they are. Blocked memory and the workspace are kept from one
    `bind` to the next.
    """

    def __init__(self, implementation: Implementation, item: Item, empty: Source = None) -> None:
        # Copies: a candidate that changes its problem, or the registry, changes them for itself alone.
        self.implementation, self.item = replace(implementation), item
        self.problem = copy.deepcopy(item.problem)
        self.op = OPS[item.op]
        # Memory of its own process, for all tensors, where it has one.
        self.process = group_of(implementation)
        self.empty = empty if self.process is None else self.process.shared.empty
        every = (*self.op.inputs, *self.op.outputs)
        self.names = tuple(n for n in every if self.process or self._blocked(n))
        self.on_gpu = implementation.device == "cuda" and not devices.emulating()
        self.guarded: dict[str, Any] = {}
        self.sources: dict[str, Any] = {}
        self.workspace: Any = None
        self.outputs: dict[str, Any] = {}

    def _blocked(self, name: str) -> bool:
        four = len(self.item.problem.shapes.get(name, ())) == 4
        return four and bool(layouts.of(self.implementation.layout, name).axes)

    def _memory(self, name: str) -> Any:
        if name not in self.guarded:
            problem = self.item.problem
            shape, dtype = problem.shape(name), problem.dtype_of(name)
            layout = layouts.of(self.implementation.layout, name)
            if self.on_gpu:
                self.guarded[name] = OnGpu(shape, dtype, layout)
            else:
                self.guarded[name] = Guarded(shape, dtype, NAN, layout=layout, empty=self.empty)
        return self.guarded[name].array

    def _given(self, name: str, array: Any) -> Any:
        if array is None or name not in self.names:
            return array
        memory = self._memory(name)
        if self._blocked(name):
            packed(array, layouts.of(self.implementation.layout, name), memory)
        else:
            memory[...] = array
        self.sources[name] = array
        if self.on_gpu:
            return memory
        given = memory.view()
        given.flags.writeable = False
        return given

    def bind(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> Callable[[], None]:
        """See `Entry.bind`."""
        given = tuple(self._given(name, inputs.get(name)) for name in self.op.inputs)
        self.outputs = {
            name: self._memory(name) if name in self.names else outputs[name] for name in self.op.outputs
        }
        options = dict(self.item.options)
        call = Call(self.op, self.implementation, self.problem, given, tuple(self.outputs.values()), options)
        if self.implementation.workspace:
            device = "cuda" if self.implementation.device == "cuda" else "cpu"
            if self.workspace is None:
                size = call.workspace_bytes
                self.workspace = self.empty(size) if self.empty else arrays.empty((size,), "uint8", device)
            options["workspace"] = self.workspace
        return call.run

    def memory(self) -> dict[str, Any]:
        """What the run that was bound last writes to."""
        return self.outputs

    def trespass(self) -> tuple[str, str]:
        """See `Entry.trespass`: of the blocked memory, which is then as it was."""
        changed = [
            name
            for name, source in self.sources.items()
            if not np.array_equal(fresh.bits(self.guarded[name].get()), fresh.bits(fresh.host(source)))
        ]
        places = [f"{name}: {where}" for name, g in self.guarded.items() if (where := g.trespass())]
        for memory in self.guarded.values() if places else ():  # of which none is on a GPU
            memory.before.fill(memory.band)
            memory.behind.fill(memory.band)
        return (changed or [""])[0], (places or [""])[0]

    def read(self) -> dict[str, Any]:
        """The outputs of the last run, NCHW."""
        return {
            name: arrays_on_host(self._logical(name, memory) if self._blocked(name) else memory)
            for name, memory in self.outputs.items()
        }

    def look(self, part: fresh.Part) -> dict[str, Any]:
        """See `Entry.look`."""
        found = {}
        for name, place in part.outputs.items():
            here = self.outputs[name][place]  # blocked or not, images lie along the first axis
            found[name] = arrays_on_host(self._logical(name, here) if self._blocked(name) else here.copy())
        return found

    def _logical(self, name: str, memory: Any) -> Any:
        shape = (memory.shape[0], *self.item.problem.shape(name)[1:])
        return layouts.of(self.implementation.layout, name).unpack(memory, shape)


def packed(array: Any, layout: layouts.Layout, memory: Any) -> None:
    """Copy an NCHW array into memory of a layout: on a CPU by convkit's own kernel, if it takes the dtype."""
    N, C, H, W = array.shape
    if isinstance(array, np.ndarray) and array.dtype.name in ALL_DTYPES:
        problem = Reorder(N, C, H, W, array.dtype.name)
        try:
            to = layouts.joined(layouts.NCHW, layout)
            select("reorder", problem, layout=to).run(problem, array, memory)
            return
        except (NoImplementation, OptionError):
            pass
    layout.pack(array, memory)


def arrays_on_host(array: Any) -> Any:
    """A NumPy array of the same values."""
    return array.get() if hasattr(array, "get") else array


def entries(
    item: Item,
    device: str = "cpu",
    *,
    reference: bool = False,
    every_layout: bool = False,
    empty: Source = None,
) -> list[Entry]:
    """An entry for each implementation that accepts the item.

    Parameters
    ----------
    item : Item
    device : {"cpu", "cuda"}
    reference : bool
        The float64 reference too, which is slow.
    every_layout : bool
        Every layout that an implementation has, by default NCHW and the one of a planned network.
    empty : callable, optional
        Where memory in other layouts than NCHW comes from.

    Returns
    -------
    list of Entry
        In the order of their rank. What a planned network would run is marked "picked"; what the public op
        would run on NCHW arrays, where that is another, "picked for NCHW".
    """
    picks = picked(item, device)
    found = [
        implementation
        for implementation in implementations(item.op, device=device, layout=None)
        if (implementation.name != "reference" or reference)
        and implementation.refusal(item.problem, item.math) is None
    ]
    found += [pick for pick in picks.values() if pick is not None and pick.tile]  # as it was tuned
    usual = {"NCHW", *(pick.layout for pick in picks.values() if pick)} | _innermost(found, item.problem)
    return [entry(one, item, picks, empty) for one in found if every_layout or one.layout in usual]


def _innermost(found: list[Implementation], problem: Problem) -> set[str]:
    """The layouts that a plan prefers: the users' own on no side if possible, no padding channels."""
    inner: dict[str, int] = {}
    for text in {implementation.layout for implementation in found}:
        declared = layouts.declared(text)
        rows = {name: declared.of(name) for name, shape in problem.shapes.items() if len(shape) == 4}
        if not any(row.block and problem.shape(name)[1] % row.block for name, row in rows.items()):
            inner[text] = bool(declared.x.axes) + bool(declared.y.axes)
    return {text for text, sides in inner.items() if sides == max(inner.values())}


def entry(
    implementation: Implementation,
    item: Item,
    picks: dict[str, Implementation | None],
    empty: Source = None,
) -> Entry:
    """One implementation as an entry."""
    bound = Bound(implementation, item, empty)
    marks = [mark for mark, pick in picks.items() if pick is implementation]
    if implementation.device == "cuda" and not status.has_run(implementation):
        marks.append(UNRUN)
    if item.dtype == "float32" and isinstance(item.problem, (Conv2d, Linear)):
        # `math` is the coarsest that is accepted: where something finer runs, the table says so.
        marks += [f"in {implementation.math}"] if implementation.math != item.math else []
    facts: dict[str, Any] = {"rank": implementation.rank, "declared_error": implementation.error}
    if bound.process is not None:
        marks.append(CONTAINED)
        facts |= {"unconfined": bound.process.unconfined} if bound.process.unconfined else {}
    elif implementation.origin:
        marks.append(NOT_CONTAINED)
    if implementation.workspace:
        facts["workspace_bytes"] = implementation.workspace(item.problem)
    if fast := algorithm_flops(implementation, item):
        facts["algorithm_flops"] = fast
    plain = not any(name in bound.names for name in OPS[item.op].outputs)
    return Entry(
        name=implementation.label,
        library=OWN,
        bind=bound.bind,
        read=None if plain else bound.read,
        memory=None if plain else bound.memory,
        trespass=None if plain else bound.trespass,
        look=None if plain else bound.look,
        layout=implementation.layout,
        facts=facts,
        marks=tuple(marks),
        implementation=implementation,
        process=bound.process,
    )


def algorithm_flops(implementation: Implementation, item: Item) -> int | None:
    """What an implementation declares where it needs fewer operations than the definition; else None."""
    declared = implementation.flops(item.problem) if implementation.flops else None
    return declared if declared is not None and declared < item.flops else None


def of_label(label: str, op: str, device: str | None) -> Implementation | None:
    """The implementation that a result file calls by this label, if it is here."""
    found = implementations(op, device=device, layout=None)
    return next((implementation for implementation in found if implementation.label == label), None)


def picked(item: Item, device: str) -> dict[str, Implementation | None]:
    """What convkit would choose: by mark.

    For a layer of a network, what its plan runs is "picked". An item that is no layer of a network, or that a
    plan never runs, is a call of the public op, on NCHW arrays.
    """
    plain = _select(item, device)
    planned = _planned(item, device) if item.net.partition("-")[2] in PRESETS else None
    if planned is None or planned is plain:
        return {PICKED: plain}
    return {PICKED: planned, PICKED_NCHW: plain}


def _select(item: Item, device: str) -> Implementation | None:
    try:
        return select(item.op, item.problem, device=device, math=item.math)
    except (NoImplementation, OptionError):
        return None


def _planned(item: Item, device: str) -> Implementation | None:
    """What the plan of the item's network runs: a single op where none is fused, else one that is several."""
    name = item.net.partition("-")[2]
    for fuse in (False, True):
        program = _program(
            name, item.batch, item.dtype, device, item.math, fuse, generation(), current_choice()
        )
        step = program.step(program.graph.parameters, fused=fuse)
        for node in (*program.forward, *program.loss, *program.backward, *step.backward, *step.update):
            if node.op == item.op and set(node.layers).intersection(item.layer.split("+")):
                try:
                    return program.pick(node)
                except (NoImplementation, OptionError):
                    return None
    return None


@functools.lru_cache(maxsize=16)
def _program(
    name: str, batch: int, dtype: str, device: str, math: str, fuse: bool, *_setting: Any
) -> Program:
    """A preset's network, decided; `_setting` is what the decision depends on besides."""
    chosen = preset(name)
    images = (batch, 3, chosen.image_size, chosen.image_size)
    return Program(chosen.layers, images, chosen.num_classes, dtype, device, math, fuse=fuse)
