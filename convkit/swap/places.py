"""Where in a network a candidate can stand, and what else could stand there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..check.faults import Lost, Misdeclared, Raised
from ..errors import ConvkitError, OptionError, unknown
from ..network.alexnet import AlexNet
from ..network.plan.fusion import ops_of
from ..network.plan.graph import Graph, lower
from ..network.plan.program import Program
from ..network.presets import Preset
from ..op import OPS
from ..registry import Implementation, implementations

#: For each layer, names of implementations by op: what `Network.use` is given.
Names = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Places:
    """Where the candidates run.

    Attributes
    ----------
    names : dict
        For each layer in which a candidate runs, the candidates' names by op.
    refused : dict
        For each layer that has an op of a candidate's and does not run it, why.
    """

    names: Names
    refused: dict[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{layer} ({', '.join(ops)})" for layer, ops in self.names.items())


def require_layer(preset: Preset, layer: str | None) -> None:
    """Refuse the name of a layer that the preset does not have."""
    known = [own.name for own in preset.layers]
    if layer is not None and layer not in known:
        raise unknown(f"layer of {preset.name}", layer, known)


def find(net: AlexNet, batch: int, chosen: Mapping[str, Implementation], layer: str | None = None) -> Places:
    """The layers in which the candidates run, one by one; in one layer alone if it is named.

    Parameters
    ----------
    net : AlexNet
    batch : int
    chosen : dict
        A candidate for each op.
    layer : str, optional

    Raises
    ------
    OptionError
        Where no candidate can stand anywhere.
    Lost, Raised, Misdeclared
        What a candidate does when it is asked.
    """
    graph = lower(net.layers, (batch, *net.input_shape), net.num_classes, net.dtype)
    names: Names = {}
    refused: dict[str, str] = {}
    for name in [own.name for own in net.layers] if layer is None else [layer]:
        ops = ops_of(graph, name)
        for op, candidate in chosen.items():
            if op not in ops:
                continue
            reason = _refusal(net, batch, name, candidate)
            if reason is None:
                names.setdefault(name, {})[op] = candidate.name
            else:
                refused[name] = f"{op}: {reason}"
    if not names:
        raise OptionError(_nowhere(net, graph, chosen, layer, refused))
    return Places(names, refused)


def _refusal(net: AlexNet, batch: int, layer: str, candidate: Implementation) -> str | None:
    """Why a candidate does not run in a layer, or None."""
    try:
        op, name = candidate.op, candidate.name
        if (layer, op, name) in _runs(net, batch, {layer: {op: name}}):
            return None
    except (Lost, Raised, Misdeclared):
        raise
    except ConvkitError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        return lines[1] if len(lines) == 2 else " ".join(lines)
    parts = OPS[candidate.op].parts
    return (
        f"the plan runs its parts there: {', '.join(parts)}" if parts else "no call of the plan runs it there"
    )


def _runs(net: AlexNet, batch: int, names: Names) -> Iterator[tuple[str, str, str]]:
    """(layer, op, name of the implementation) of each call of a step with these names."""
    program = Program(
        net.layers, (batch, *net.input_shape), net.num_classes, net.dtype, net.device, net.math, names
    )
    step = program.step(net.params)
    nodes = [*program.forward, *program.loss, *program.backward, *step.backward, *step.update]
    for node in program.runs(nodes):
        picked = program.pick(node)
        for layer in node.layers:
            # The update of "conv1.w" belongs to conv1.
            yield layer.partition(".")[0], picked.op, picked.name


def _fits(net: AlexNet, batch: int, layer: str, op: str, name: str) -> bool:
    """Whether an implementation runs in a layer where it is named."""
    try:
        return (layer, op, name) in _runs(net, batch, {layer: {op: name}})
    except ConvkitError:
        return False


def _nowhere(
    net: AlexNet,
    graph: Graph,
    chosen: Mapping[str, Implementation],
    layer: str | None,
    refused: Mapping[str, str],
) -> str:
    whom = ", ".join(f"{op} {i.name!r}" for op, i in chosen.items())
    where = f"{net.preset.name}, layer {layer}" if layer else net.preset.name
    if refused:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in refused.items())
        return f"{whom} fits no call of {where}{reasons}"
    having = [own.name for own in net.layers if ops_of(graph, own.name).intersection(chosen)]
    if having:
        return f"{where} has no call of {', '.join(chosen)}; the layers that have one: {', '.join(having)}"
    ops = sorted({op for own in net.layers for op in ops_of(graph, own.name)})
    return f"{where} has no call of {', '.join(chosen)}; its layers run {', '.join(ops)}"


def another_right_one(net: AlexNet, batch: int, places: Names) -> Names:
    """Shipped implementations in the candidates' places, and not those that run there by themselves.

    The reference where there is nothing else.
    """
    usual = {(layer, name) for layer, _, name in _runs(net, batch, {})}
    device = net.device.partition(":")[0]
    found: Names = {}
    for layer, ops in places.items():
        for op, candidate in ops.items():
            # Last of all a name that runs there by itself, in this op or in one that is fused of it: it would
            # round as that does, and show no spread. Before that the reference; of the others the compiled
            # ones first, then by rank.
            ways = implementations(op, device=device, layout=None)
            ways.sort(key=lambda i: ((layer, i.name) in usual, i.name == "reference", not i.compiled))
            for name in dict.fromkeys(i.name for i in ways):
                if name != candidate and _fits(net, batch, layer, op, name):
                    found.setdefault(layer, {})[op] = name
                    break
    return found


def one_for_each_op(found: Sequence[Implementation], impl: str | None = None) -> dict[str, Implementation]:
    """The candidates of a file by op.

    Raises
    ------
    OptionError
        Where the file has two names for one op, and none of them is chosen by `impl`.
    """
    if impl is not None:
        known = {i.name for i in found}
        if impl not in known:
            raise unknown("implementation in the file", impl, known)
        found = [i for i in found if i.name == impl]
    chosen: dict[str, Implementation] = {}
    for one in sorted(found, key=lambda i: list(OPS).index(i.op)):
        before = chosen.setdefault(one.op, one)
        if before.name != one.name:
            raise OptionError(
                f"the file has more than one {one.op}: {before.name}, {one.name}; choose one with --impl"
            )
    return chosen
