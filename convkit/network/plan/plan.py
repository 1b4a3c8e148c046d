"""A plan: a program bound to memory, as calls that run many times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ... import arrays, checked, devices
from ...arrays import Array
from ...call import Call
from ...cuda.graph import Replay
from ...op import OPS
from ..layers import Layer
from . import dropout, table
from .graph import Node, gradient, scaled, velocity
from .memory import Memory
from .program import Program
from .results import Results, Summary

#: Lists of calls for which functions are kept.
MOST_LISTS = 64


class Plan:
    """One network, one batch size, one choice of implementations.

    Parameters
    ----------
    program : Program
    layers : sequence of Layer
    parameters, gradients, velocities : mapping of str to ndarray
        By the names "conv1.w", "conv1.b", ...; the plan reads and writes these very arrays.
    device : {"cpu", "cuda", "cuda:1", ...}
    scale : mapping of str to ndarray
        Where the loss is scaled, the scale and the steps since it changed, by their names in `graph`.

    Attributes
    ----------
    program : Program
    forward, loss, backward, update, adjust : list of Call
        In the order in which they run. `backward` ends before the gradient of the input, which training
        does not need; that is `input_gradient`. `adjust` makes the loss scale of the next step, where there
        is one. A training step runs `phases`, where some of them are fused.
    frozen : frozenset of str
        Parameters that a step does not change: it computes no update and no gradient of theirs.
    fused : bool
        Whether a step may update weights as it makes their gradient, which is then not stored. If not, there
        are hooks.
    graphs : bool
        Whether `replay` may make graphs.
    x, labels, logits, losses, dlogits, dx : ndarray
        The plan's ends: fill x and labels, run, read the others.
    """

    def __init__(
        self,
        program: Program,
        layers: Sequence[Layer],
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        velocities: Mapping[str, Array],
        device: str = "cpu",
        scale: Mapping[str, Array] | None = None,
    ) -> None:
        self.program, self.device = program, device
        self.frozen, self.fused, self.graphs = frozenset[str](), True, True
        self._parameters = tuple(parameters)
        given = dict(parameters)
        for name in parameters:
            given |= {gradient(name): gradients[name], velocity(name): velocities[name]}
            given[scaled(name)] = gradients[name]  # which is divided in place
        self._results = Results(device, program.graph.flag)
        given |= {**self._results.arrays, **(scale or {})}
        self._memory = Memory(program, device, given)
        self._memory.forward()
        self._memory.backward()
        self._calls: dict[int, tuple[Node, Call]] = {}
        self._phases: dict[Any, dict[str, list[Call]]] = {}
        self._makes: dict[int, tuple[str, ...]] = {}
        self._bare: dict[int, tuple[list[Call], Any, list[Callable[[], None]]]] = {}
        self._replays: dict[tuple[int, ...], tuple[tuple[list[Call], ...], Replay]] = {}
        self._scratch: Array | None = None
        self._name_ends()

        whole = program.gradients(program.backward, [gradient(name) for name in parameters])
        kept = {id(node) for node in whole}
        self.forward, self.loss = self._bind(program.forward), self._bind(program.loss)
        self.backward = self._bind(whole)
        self.input_gradient = self._bind(n for n in program.backward if id(n) not in kept)
        self.update = self._bind(program.step(parameters, fused=False).update)
        self.adjust = self._bind([] if program.graph.adjust is None else [program.graph.adjust])
        self._dropouts = dropout.found((*self.forward, *self.backward, *self.input_gradient), layers)
        self.phases()

    def _name_ends(self) -> None:
        memory, logits = self._memory, self.program.graph.logits
        self.x, self.labels, self.losses = memory["x"], memory["labels"], memory["loss"]
        self.logits, self.dlogits, self.dx = memory[logits], memory[gradient(logits)], memory[gradient("x")]
        self.labels.fill(0)
        self._total = -1
        self.set_total(self.x.shape[0])

    # -- binding ----------------------------------------------------------------------------------------
    def _bind(self, nodes: Iterable[Node]) -> list[Call]:
        """The nodes' calls; a node that has one already keeps it."""
        calls = []
        for node in self.program.runs(nodes):
            if id(node) not in self._calls:
                self._calls[id(node)] = node, (call := self._call(node))
                made = tuple(name for name in self._parameters if gradient(name) in node.writes)
                self._makes.update({id(call): made} if made else {})
            calls.append(self._calls[id(node)][1])
        return calls

    def _call(self, node: Node) -> Call:
        op, implementation = OPS[node.op], self.program.pick(node)
        checked.warn(implementation)
        given = {name: self._memory.value(value) for name, value in node.tensors.items()}
        if node.op == "reorder":  # of weights and biases with less than four axes
            shape = node.problem.shape("x")
            given = {name: a.reshape(shape) if a.ndim < len(shape) else a for name, a in given.items()}
        inputs = tuple(_read_only(given.get(name)) for name in op.inputs)
        outputs = tuple(given[name] for name in op.outputs)
        options = {**node.options, **{flag: _read_only(given[flag]) for flag in node.flags}}
        return Call(op, implementation, node.problem, inputs, outputs, options, node.layer)

    def _share_workspace(self) -> None:
        """Give every call that wants scratch memory the same."""
        calls = [call for _, call in self._calls.values() if call.implementation.workspace]
        size = max((call.workspace_bytes for call in calls), default=0)
        if self._scratch is None or self._scratch.nbytes < size:
            self._scratch = self._memory.new((size,), "uint8", instead=self._scratch)
        for call in calls:
            call.options["workspace"] = self._scratch[: call.workspace_bytes]

    # -- running ----------------------------------------------------------------------------------------
    def phases(self) -> dict[str, list[Call]]:
        """The calls of a training step: "forward", "loss", "backward", "update", and "scale" in float16.

        Where the update of a layer's weights is fused with their gradient, it is in "backward".
        `self.backward` and `self.update` are the same without fusion, and store every gradient.
        """
        return self._phases_with(self.frozen, self.fused)

    def _phases_with(self, frozen: frozenset[str], fused: bool) -> dict[str, list[Call]]:
        key = frozen, fused
        if key not in self._phases:
            names = [name for name in self._parameters if name not in frozen]
            step = self.program.step(names, fused=fused)
            own = {call.layer: call for call in self.update}
            self._phases[key] = {
                "forward": self.forward,
                "loss": self.loss,
                "backward": self._bind(step.backward),
                "update": [own[node.layer] for node in step.update],
                **({"scale": self.adjust} if self.adjust else {}),
            }
            self._share_workspace()
        return self._phases[key]

    @property
    def guarded(self) -> bool:
        """Whether every update of a step reads the flag "finite", so that a bad step changes nothing."""
        updates = [call for call in self.phases()["update"] if call.op.flags]
        return all("finite" in call.options for call in updates)

    @property
    def finite(self) -> Array:
        """The flag that updates read: int32, (1,); 0 where the loss, or a scaled gradient, is not finite."""
        return self._memory[self.program.graph.flag]

    def results(self) -> Summary:
        """Of the last loss phase; on a GPU this waits for it."""
        return self._results.read()

    def results_later(self) -> Callable[[], Summary]:
        """`results` of what is queued by now, to be read at any time; only the reading waits for a GPU."""
        return self._results.copy().read

    def calls(self) -> list[Call]:
        """Every call that the plan has, each once; in an order in which they may run."""
        first = [
            *self.forward, *self.loss, *self.backward, *self.input_gradient, *self.update, *self.adjust,
        ]  # fmt: skip
        known = {id(call) for call in first}
        calls = [*first, *(call for _, call in self._calls.values() if id(call) not in known)]
        still = {id(call) for name, call in self.rated if name in self.frozen}
        return [call for call in calls if id(call) not in still]

    def run(self, calls: list[Call], after: Callable[[Call], None] | None = None) -> None:
        """Run some of the plan's calls; allocates nothing of its own.

        Parameters
        ----------
        calls : list of Call
            Best one of the plan's own lists: the functions of a list are kept.
        after : callable, optional
            Called with each call that makes the gradient of a parameter, after that call.
        """
        # NaN and infinity propagate without a warning.
        with arrays.on(self.x), np.errstate(all="ignore"):
            for call, function in zip(calls, self._functions(calls), strict=True):
                function()
                if after is not None and id(call) in self._makes:
                    after(call)

    def _functions(self, calls: list[Call]) -> list[Callable[[], None]]:
        """A function for each call (`Call.bare`); kept as long as the executor is the same."""
        executor = devices.current() if self.program.chooser.device == "cuda" else None
        kept = self._bare.get(id(calls))
        if kept is None or kept[0] is not calls or kept[1] is not executor or len(kept[2]) != len(calls):
            if len(self._bare) >= MOST_LISTS:
                self._bare.clear()  # lists that are not the plan's own
            self._bare[id(calls)] = kept = calls, executor, [call.bare() for call in calls]
        return kept[2]

    def replay(self, *lists: list[Call]) -> str:
        """Run lists of the plan's calls: as one CUDA graph where that is possible, after they have run once.

        Returns
        -------
        str
            Why they run one by one on a GPU that has graphs; else it is empty.
        """
        refusal, done = "", False
        if self.graphs and self.captures:
            replay = self._replay_of(lists)
            with arrays.on(self.x), np.errstate(all="ignore"):
                done = replay.run()
            refusal = replay.refusal
        for calls in () if done else lists:
            self.run(calls)
        return refusal

    @property
    def captures(self) -> bool:
        """Whether the plan runs here on what has graphs: a GPU, not the emulator."""
        if self.program.chooser.device != "cuda":
            return False
        if isinstance(self.x, np.ndarray) and not devices.emulating():
            return False
        with arrays.on(self.x):
            return bool(devices.current().captures)

    def _replay_of(self, lists: tuple[list[Call], ...]) -> Replay:
        key = tuple(map(id, lists))
        kept = self._replays.get(key)
        if kept is None or any(one is not other for one, other in zip(kept[0], lists, strict=True)):
            if len(self._replays) >= MOST_LISTS:
                self._replays.clear()
            kept = self._replays[key] = lists, Replay([*chain(*lists)], self.device)
        return kept[1]

    def step_refusal(self) -> str:
        """Why a step runs call by call on a GPU that has graphs, or an empty string."""
        if not self.fused:
            return "it has hooks"
        if not self.guarded:
            return 'an update does not read the flag "finite", so the host decides'
        return self._replay_of(tuple(self.phases().values())).refusal

    def made_by(self, call: Call) -> tuple[str, ...]:
        """The parameters whose gradients a call makes."""
        return self._makes.get(id(call), ())

    @property
    def rated(self) -> list[tuple[str, Call]]:
        """(parameter, call) for each call that updates a parameter; a step runs one of them per parameter."""
        found = self._calls.values()
        return [(node.tensors["w_new"], call) for node, call in found if "w_new" in node.tensors]

    def set_rates(self, rules: Mapping[str, Mapping[str, Any]]) -> None:
        """Give the updates of these parameters their options for the next step."""
        self.phases()  # which makes those that the step needs
        for name, call in self.rated:
            call.options.update(rules.get(name, {}))

    def set_dropout(
        self, training: bool, seed: int, offset: int, first: int = 0, total: int | None = None
    ) -> int:
        """Point every dropout at its counters and mode; returns the first counter that none of them uses.

        The images are those from `first` on of a batch of `total`, by default the whole of it.

        Raises
        ------
        OptionError
            Where an image begins between two counters, each of which is for four elements, and where there
            are not enough counters left. Nothing is changed then.
        """
        return dropout.point(
            self._dropouts, self.x.shape[0], training=training, seed=seed, offset=offset, first=first,
            total=total,
        )  # fmt: skip

    def set_total(self, total: int) -> None:
        """Take the mean loss over so many images, of which the plan's may be a part."""
        if total != self._total:
            self._memory["dloss"].fill(1 / max(1, total))
            self._total = total

    # -- what it runs -----------------------------------------------------------------------------------
    @property
    def bytes(self) -> int:
        """Memory that the plan owns: activations, gradients, workspace; parameters not counted."""
        return self._memory.bytes

    def fingerprint(self) -> dict[str, Any]:
        """What decides the bits of a step in which nothing is frozen, as plain values."""
        calls = chain(*self._phases_with(frozenset(), self.fused).values())
        return table.fingerprint(calls, int(self.x.shape[0]), self.x.dtype.name, self.device)

    def rows(self) -> list[table.Row]:
        """One row per call: layer, op, implementation, layout, output shape, MB moved, MFLOP."""
        return [table.row(call) for call in (*chain(*self.phases().values()), *self.input_gradient)]

    def __str__(self) -> str:
        dtype = self.program.graph.values["x"].dtype
        return table.text(self.rows(), int(self.x.shape[0]), dtype, self.bytes) + self._how()

    def _how(self) -> str:
        """As a line: whether a step is one graph; nothing where there are no graphs."""
        if not self.captures:
            return ""
        refusal = self.step_refusal() if self.graphs else "graph=False"
        return f"\na step runs call by call: {refusal}" if refusal else "\na step is one CUDA graph"


def _read_only(array: Array | None) -> Array | None:
    """The array itself, or a view of it that an implementation cannot write to."""
    if isinstance(array, np.ndarray):
        array = array.view()
        array.flags.writeable = False
    return array
