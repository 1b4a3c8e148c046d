"""What is tuned: op calls, each of them a question that a plan or a public op puts to the registry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .. import layouts
from ..bench.work import DIRECTIONS, Item, identity
from ..errors import NoImplementation, OptionError, unknown
from ..network.plan.graph import VIEW, Node
from ..network.plan.program import Program
from ..network.presets import preset
from ..op import OPS
from ..registry import Implementation, current_choice, implementations, select, use
from ..tuned import Question

#: What a user may write for a direction, besides its own name.
_ALSO = {"fprop": "fwd"}
#: Other names of ops that take turns in a step have no rates before the first one: those of an update.
_RATES = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Job:
    """One op call.

    Attributes
    ----------
    item : Item
        What is timed.
    question : Question
        What is chosen for.
    places : tuple of str
        Where it is: "conv3+relu3.fwd", layers and the direction.
    """

    item: Item
    question: Question
    places: tuple[str, ...]

    @property
    def name(self) -> str:
        """The places, and the op."""
        return f"{', '.join(self.places)} {self.item.op}"

    def candidates(self) -> list[Implementation]:
        """What takes it, in the order of its rank; the reference where nothing else does."""
        q, choice = self.question, current_choice()
        found = implementations(q.op, device=q.device, layout=q.layout)
        taken = [i for i in found if i.refusal(q.problem, q.math, choice.limit(i.math), q.flags) is None]
        return [i for i in taken if i.name != "reference"] or taken

    def default(self) -> Implementation | None:
        """What runs where nothing was tuned; None where nothing does."""
        q = self.question
        with use(tuned=False):
            try:
                return select(q.op, q.problem, device=q.device, math=q.math, layout=q.layout, flags=q.flags)
            except NoImplementation:
                return None


def of_network(name: str, batch: int, dtype: str, math: str, device: str) -> list[Job]:
    """The calls of a training step of a preset's network, as its plan makes them, each question once."""
    chosen = preset(name)
    images = (batch, 3, chosen.image_size, chosen.image_size)
    program = Program(chosen.layers, images, chosen.num_classes, dtype, device, math)
    step = program.step(program.graph.parameters)
    nodes = (*program.forward, *program.loss, *step.backward, *step.update)
    found = []
    for node in program.runs(nodes):
        layout = program.chooser.declaration(node)
        assert node.op != VIEW and layout is not None
        found.append(_of_node(node, layout, f"alexnet-{name}", batch, dtype, math, device))
    return _merged(found)


def _of_node(node: Node, layout: str, net: str, batch: int, dtype: str, math: str, device: str) -> Job:
    op = OPS[node.op]
    absent = tuple(name for name in op.optional if name not in node.tensors)
    places = (f"{node.layer}.{op.direction}",)
    options = {name: _RATES.get(name, value) for name, value in node.options.items()}
    own = getattr(node.problem, "dtype", dtype)
    item = Item(
        identity(net, node.layer, node.op, batch, dtype, math), node.op, node.problem, own, math,
        node.layer, net, batch, options, absent,
    )  # fmt: skip
    return Job(item, Question(node.op, node.problem, device, layout, math, node.flags), places)


def of_items(items: Iterable[Item], device: str, layout: str = "NCHW") -> list[Job]:
    """Single calls of public ops, on tensors in a layout: by default, the users' own."""
    layout = str(layouts.declared(layout))
    return _merged(
        Job(item, Question(item.op, item.problem, device, layout, item.math), (_place(item),))
        for item in items
    )


def _place(item: Item) -> str:
    return f"{item.layer}.{item.direction}"


def _merged(jobs: Iterable[Job]) -> list[Job]:
    """Each question once, with all its places: it is measured on the first of them."""
    found: dict[Question, Job] = {}
    for job in jobs:
        before = found.get(job.question)
        places = tuple(dict.fromkeys((*(before.places if before else ()), *job.places)))
        found[job.question] = replace(before or job, places=places)
    return list(found.values())


def only(
    jobs: Iterable[Job],
    layers: Iterable[str] = (),
    directions: Iterable[str] = (),
    ops: Iterable[str] = (),
) -> list[Job]:
    """Those of these layers, directions and ops; of all where none is named.

    Raises
    ------
    OptionError
        For a name that is not known among them.
    """
    jobs = list(jobs)
    layers, ops = tuple(layers), tuple(ops)
    directions = tuple(_ALSO.get(name, name) for name in directions)
    known = dict.fromkeys(layer for job in jobs for layer, _ in _split(job))
    for name in layers:
        if name not in known:
            raise unknown("layer", name, known)
    for name in directions:
        if name not in DIRECTIONS:
            raise unknown("direction", name, DIRECTIONS)
    for name in ops:
        if name not in OPS:
            raise unknown("op", name, OPS)
    found = [
        job for job in jobs
        if any(
            (not layers or layer in layers) and (not directions or direction in directions)
            for layer, direction in _split(job)
        )
        and (not ops or job.item.op in ops)
    ]  # fmt: skip
    if not found:
        raise OptionError("nothing to tune: no call has this layer, direction and op together")
    return found


def _split(job: Job) -> Iterator[tuple[str, str]]:
    for place in job.places:
        layers, _, direction = place.rpartition(".")
        for layer in layers.split("+"):
            yield layer, direction


def at(jobs: Iterable[Job], place: str) -> list[Job]:
    """Those at a place, "conv3.dgrad", or of an op, "conv2d_dgrad".

    Raises
    ------
    OptionError
        If there is none.
    """
    jobs = list(jobs)
    layer, _, direction = place.rpartition(".")
    wanted = layer, _ALSO.get(direction, direction)
    found = [job for job in jobs if wanted in _split(job) or job.item.op == place]
    if not found:
        known = {".".join(parts) for job in jobs for parts in _split(job)}
        raise unknown("call", place, {*known, *(job.item.op for job in jobs)})
    return found
