"""Memory of a plan: what each value is kept in.

Activations live from the forward to the backward pass, in memory of their own. The gradients of activations
live until the last node that reads them: they share a few arenas. An op that may work in place does, where
nothing else needs what it overwrites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ... import arrays
from ...op import OPS, Shape, np_itemsize
from .graph import VIEW, Node
from .program import Program

Array = Any


class Memory:
    """The arrays of a plan on one device.

    Parameters
    ----------
    program : Program
    device : str
    given : mapping
        Values that have an array already: parameters, their gradients and velocities.

    Attributes
    ----------
    bytes : int
        What is owned here, without the given arrays.
    """

    def __init__(self, program: Program, device: str, given: Mapping[str, Array]) -> None:
        self._program, self._device = program, device
        self._arrays: dict[str, Array] = dict(given)
        self.bytes = 0

    def __getitem__(self, value: str) -> Array:
        return self._arrays[value]

    def new(self, shape: Shape, dtype: str, instead: Array | None = None) -> Array:
        """An array, not filled; perhaps instead of one that is given up."""
        array = arrays.empty(shape, dtype, self._device)
        self.bytes += int(array.nbytes) - (0 if instead is None else int(instead.nbytes))
        return array

    def value(self, name: str) -> Array:
        """The array of a value, in its layout; new where it has none."""
        if name not in self._arrays:
            self._arrays[name] = self.new(self._shape(name), self._program.graph.values[name].dtype)
        return self._arrays[name]

    def _shape(self, name: str) -> Shape:
        return self._program.layout(name).physical(self._program.graph.values[name].shape)

    # -- forward ------------------------------------------------------------------------------------------
    def forward(self) -> None:
        """Memory of the input, of every activation, and of the loss's values."""
        self.value("x")
        readers = _readers(self._program)
        for node in self._program.forward:
            if node.op == VIEW:
                y = self._program.graph.values[node.tensors["y"]]
                self._arrays[node.tensors["y"]] = self[node.tensors["x"]].reshape(y.shape)
            elif OPS[node.op].inplace and _alone(node, readers):
                self._arrays[node.tensors["y"]] = self[node.tensors["x"]]
            else:
                for value in node.writes:
                    self.value(value)
        for node in self._program.loss:
            for value in (*node.reads, *node.writes):
                self.value(value)

    # -- backward -----------------------------------------------------------------------------------------
    def backward(self) -> None:
        """Memory of the gradients of activations: arenas in turn, each as large as its largest gradient."""
        nodes = self._program.backward
        root = {value: value for value in self._arrays}  # whose memory a value lies in
        for i, node in enumerate(nodes):
            for value in node.writes:
                if value in root:
                    continue
                root[value] = value
                source = node.tensors["x"] if node.op == VIEW else node.tensors.get("dy", "")
                later = (root.get(v) for n in nodes[i + 1 :] for v in n.reads)
                if node.op == VIEW or (OPS[node.op].inplace and root[source] not in later):
                    root[value] = root[source]
        last = {root[v]: i for i, node in enumerate(nodes) for v in node.reads if v in root}
        arenas: list[tuple[int, int]] = []  # bytes, and the last node that reads what lies there
        places: dict[str, int] = {}
        for i, node in enumerate(nodes):
            for value in node.writes:
                if value in self._arrays or root[value] != value:
                    continue
                size = prod(self._shape(value)) * np_itemsize(self._program.graph.values[value].dtype)
                place = next((k for k, (_, until) in enumerate(arenas) if until < i), len(arenas))
                before = arenas[place][0] if place < len(arenas) else 0
                arenas[place : place + 1] = [(max(before, size), last.get(value, len(nodes)))]
                places[value] = place
        memory = [self.new((size,), "uint8") for size, _ in arenas]
        for value, place in places.items():
            self._put(value, memory[place])
        for node in nodes:
            for value in node.writes:
                if value not in self._arrays:
                    self._arrays[value] = self[root[value]].reshape(self._shape(value))

    def _put(self, value: str, arena: Array) -> None:
        """The beginning of an arena as the memory of a value."""
        shape, dtype = self._shape(value), self._program.graph.values[value].dtype
        size = prod(shape) * np_itemsize(dtype)
        self._arrays[value] = arena[:size].view(arrays.np_dtype(dtype)).reshape(shape)


def _readers(program: Program) -> dict[str, list[tuple[Node, str]]]:
    """For each activation's memory, the nodes that read it, and as what; views are looked through."""
    root: dict[str, str] = {}
    for node in program.forward:
        if node.op == VIEW:
            root[node.tensors["y"]] = root.get(node.tensors["x"], node.tensors["x"])
    found: dict[str, list[tuple[Node, str]]] = {}
    for node in (*program.forward, *program.loss, *program.backward):
        for name, value in node.tensors.items():
            if node.op != VIEW and name not in node.outputs:
                found.setdefault(root.get(value, value), []).append((node, name))
    for value, whole in root.items():
        found[value] = found.get(whole, [])
    return found


def _alone(node: Node, readers: Mapping[str, Sequence[tuple[Node, str]]]) -> bool:
    """Whether a node may overwrite its input: nothing else reads it, but as the sign of a ReLU's output.

    That a dropout leaves as it is, or makes zero where it lets no gradient through either.
    """
    others = (other for other in readers[node.tensors["x"]] if other[0] is not node)
    return all(other.op == "relu_dgrad" and name == "y" for other, name in others)
