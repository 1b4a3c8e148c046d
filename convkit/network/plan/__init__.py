"""A network planned once for a batch and run many times: every choice made, every buffer allocated.

In the order in which they are made: `graph` puts the layers' ops in a row, `fusion` says which become one,
`choice` picks implementations and layouts, `program` has the result as data, `memory` gives each value its
array, and a `Plan` binds the two into calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from ... import arrays, devices
from ...call import Call
from ...cpu import extension
from ...errors import OptionError
from ...op import OPS
from ..layers import Dropout, Layer
from .graph import Node, gradient, velocity
from .memory import Memory
from .program import Program

Array = Any

#: Lists of calls for which functions are kept.
MOST_LISTS = 64
#: End of dropout's counters.
COUNTERS = 2**63


class Plan:
    """One network, one batch size, one choice of implementations.

    Parameters
    ----------
    program : Program
    layers : sequence of Layer
    parameters, gradients, velocities : mapping of str to ndarray
        By the names "conv1.w", "conv1.b", ...; the plan reads and writes these very arrays.
    device : {"cpu", "cuda", "cuda:1", ...}

    Attributes
    ----------
    program : Program
    forward, loss, backward, update : list of Call
        In the order in which they run. `backward` ends before the gradient of the input, which training
        does not need; that is `input_gradient`. A training step runs `phases`, where some of them are fused.
    frozen : frozenset of str
        Parameters that a step leaves as they are: neither their update nor their gradient is computed.
    fused : bool
        Whether a step may update weights as it makes their gradient, which is then not stored.
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
    ) -> None:
        self.program, self.device = program, device
        self._layers = {layer.name: layer for layer in layers}
        self.frozen, self.fused = frozenset[str](), True
        self._parameters = tuple(parameters)
        given = dict(parameters)
        for name in parameters:
            given |= {gradient(name): gradients[name], velocity(name): velocities[name]}
        # One piece of memory, so that one copy brings the results of a step to the host.
        self._results = arrays.empty((28,), "uint8", device)
        given |= _parts(self._results)
        self._memory = Memory(program, device, given)
        self._memory.forward()
        self._memory.backward()
        self._calls: dict[int, tuple[Node, Call]] = {}
        self._phases: dict[Any, dict[str, list[Call]]] = {}
        self._makes: dict[int, tuple[str, ...]] = {}
        self._bare: dict[int, tuple[list[Call], Any, list[Callable[[], None]]]] = {}
        self._scratch: Array | None = None
        self._name_ends()

        whole = program.gradients(program.backward, [gradient(name) for name in parameters])
        kept = {id(node) for node in whole}
        self.forward, self.loss = self._bind(program.forward), self._bind(program.loss)
        self.backward = self._bind(whole)
        self.input_gradient = self._bind(n for n in program.backward if id(n) not in kept)
        self.update = self._bind(program.step(parameters, fused=False).update)
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
        given = {name: self._memory.value(value) for name, value in node.tensors.items()}
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
        """The calls of a training step: "forward", "loss", "backward", "update".

        Where the update of a layer's weights is fused with their gradient, it stands in "backward";
        `self.backward` and `self.update` are the same without fusion, for those who want the gradients.
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
        """The flag that updates read: int32, (1,); 0 where the loss of the step is not finite."""
        return self._memory["finite"]

    def results(self) -> tuple[float, int, int, bool]:
        """Of the last loss phase: sum of the losses, top-1 errors, top-5 errors, whether all is finite."""
        return _read(self._results)

    def results_later(self) -> Callable[[], tuple[float, int, int, bool]]:
        """`results` of what is queued by now, to be read at any time; only the reading waits for a GPU."""
        with arrays.on(self.x):
            own = self._results.copy()
        return lambda: _read(own)

    def calls(self) -> list[Call]:
        """Every call that the plan has, each once; in an order in which they may run."""
        first = [*self.forward, *self.loss, *self.backward, *self.input_gradient, *self.update]
        known = {id(call) for call in first}
        calls = [*first, *(call for _, call in self._calls.values() if id(call) not in known)]
        still = {id(call) for name, call in self.rated if name in self.frozen}
        return [call for call in calls if id(call) not in still]

    def run(self, calls: list[Call], behind: Callable[[Call], None] | None = None) -> None:
        """Run some of the plan's calls; allocates nothing of its own.

        Parameters
        ----------
        calls : list of Call
            What is worked out for it is kept, so that it pays to pass the plan's own lists.
        behind : callable, optional
            Called with each call that makes the gradient of a parameter, behind it.
        """
        # NaN and infinity propagate; they are no reason to warn.
        with arrays.on(self.x), np.errstate(all="ignore"):
            for call, function in zip(calls, self._functions(calls), strict=True):
                function()
                if behind is not None and id(call) in self._makes:
                    behind(call)

    def _functions(self, calls: list[Call]) -> list[Callable[[], None]]:
        """What each call does, without what they can share; kept for the executor of CUDA kernels here."""
        executor = devices.current() if self.program.chooser.device == "cuda" else None
        kept = self._bare.get(id(calls))
        if kept is None or kept[0] is not calls or kept[1] is not executor or len(kept[2]) != len(calls):
            if len(self._bare) >= MOST_LISTS:
                self._bare.clear()  # lists that are not the plan's own
            self._bare[id(calls)] = kept = calls, executor, [call.bare() for call in calls]
        return kept[2]

    def made_by(self, call: Call) -> tuple[str, ...]:
        """The parameters whose gradients a call makes."""
        return self._makes.get(id(call), ())

    @property
    def rated(self) -> list[tuple[str, Call]]:
        """The calls that update a parameter, with its name; of several for one parameter a step runs one."""
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
        """Point every dropout at its counters and mode; returns the first counter behind them.

        The images are those from `first` on of a batch of `total`, by default the whole of it.

        Raises
        ------
        OptionError
            Where an image begins between two counters, each of which is for four elements, and where there
            are not enough counters left. Nothing is changed then.
        """
        N = max(1, self.x.shape[0])
        total = N if total is None else total
        chosen = []
        for layer, calls in self._dropouts():
            size = prod(calls[0].problem.shape("x")) // N  # of an image
            if first * size % 4:
                raise OptionError(
                    f"a shard cannot begin with image {first}: dropout counts elements in fours, and "
                    f"{layer.name} has {size} for each image; begin with a multiple of 4"
                )
            here = offset + first * size // 4 if training else 0  # at test time nothing is drawn
            chosen.append((calls, {**layer.options(training), "offset": here, "seed": seed}))
            offset += -(-size * total // 4) if training else 0
        if offset >= COUNTERS:
            raise OptionError(f"no dropout counters are left: this step would end with counter {offset}")
        for calls, options in chosen:
            for call in calls:
                call.options.update(options)
        return offset

    def _dropouts(self) -> list[tuple[Dropout, list[Call]]]:
        """Each dropout in the order of the forward pass, with its call there and that of its gradient."""
        found: dict[str, list[Call]] = {}
        for call in (*self.forward, *self.backward, *self.input_gradient):
            if call.op.name in ("dropout_fprop", "dropout_dgrad"):
                found.setdefault(call.layer, []).append(call)
        layers = {name: layer for name, layer in self._layers.items() if isinstance(layer, Dropout)}
        return [(layers[name], calls) for name, calls in found.items() if name in layers]

    def set_total(self, total: int) -> None:
        """Take the mean loss over so many images, of which the plan's may be a part."""
        if total != self._total:
            self._memory["dloss"].fill(1 / max(1, total))
            self._total = total

    # -- for whoever asks -------------------------------------------------------------------------------
    @property
    def bytes(self) -> int:
        """Memory that the plan owns: activations, gradients, workspace; parameters not counted."""
        return self._memory.bytes

    def fingerprint(self) -> dict[str, Any]:
        """What decides the bits of a step in which nothing is frozen, as plain values."""
        calls = chain(*self._phases_with(frozenset(), self.fused).values())
        return {
            "batch": int(self.x.shape[0]),
            "dtype": self.x.dtype.name,
            "device": self.device.partition(":")[0],
            "instructions": extension.isa() if self.device == "cpu" else "",
            "implementations": {f"{c.layer} {c.op.name}": c.implementation.label for c in calls},
        }

    def rows(self) -> list[tuple[str, str, str, str, str, float, float]]:
        """One row per call: layer, op, implementation, layout, output shape, MB moved, MFLOP."""
        found = []
        for call in (*chain(*self.phases().values()), *self.input_gradient):
            op, problem = call.op, call.problem
            present = [n for n, a in zip(op.inputs, call.inputs, strict=True) if a is not None]
            moved = problem.bytes(*present, *op.outputs) / 1e6
            shape = "x".join(map(str, problem.shape(op.outputs[0])))
            impl = call.implementation
            found.append(
                (call.layer, op.name, impl.name, impl.layout, shape, moved, problem.flops(op.name) / 1e6)
            )
        return found

    def __str__(self) -> str:
        from tabulate import tabulate

        headers = ("layer", "op", "implementation", "layout", "output", "MB", "MFLOP")
        table = tabulate(self.rows(), headers, tablefmt="simple", floatfmt=("", "", "", "", "", ".2f", ".1f"))
        flops = sum(row[-1] for row in self.rows()) / 1e3
        dtype = self.program.graph.values["x"].dtype
        return (
            f"{table}\n\nbatch {self.x.shape[0]}, {dtype}: {flops:.2f} GFLOP a step, "
            f"{self.bytes / 2**20:.0f} MiB besides the parameters"
        )


def _read_only(array: Array) -> Array:
    """The array itself, or a view of it that an implementation cannot write to."""
    if isinstance(array, np.ndarray):
        array = array.view()
        array.flags.writeable = False
    return array


def _read(memory: Array) -> tuple[float, int, int, bool]:
    parts = _parts(memory if isinstance(memory, np.ndarray) else memory.get())
    (total,), (first, five), (finite,) = (parts[name].tolist() for name in ("total", "errors", "finite"))
    return total, first, five, bool(finite)


def _parts(memory: Array) -> dict[str, Array]:
    """What `loss_summary` writes, as parts of 28 bytes."""
    cuts = {"total": (0, 8, np.float64), "errors": (8, 24, np.int64), "finite": (24, 28, np.int32)}
    return {name: memory[start:stop].view(kind) for name, (start, stop, kind) in cuts.items()}
