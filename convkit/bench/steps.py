"""A network's whole passes as something to measure: a training step, the forward pass, the memory of a step.

As `work`, but a row is a network and not an op.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import OptionError, unknown
from ..network.presets import PRESETS
from ..op import Problem, Shape
from . import work
from .work import FORWARD, MEMORY, NETWORK_OPS, STEP, Item, Wanted, of_preset

_WORDS = {
    STEP: "forward, loss, backward, update",
    FORWARD: "forward",
    MEMORY: "the most memory of a process that makes two training steps",
}


@dataclass(frozen=True)
class Step(Problem):
    """A pass of a preset over a batch."""

    preset: str
    N: int
    dtype: str = "float32"

    @property
    def shapes(self) -> dict[str, Shape]:
        size = PRESETS[self.preset].image_size
        return {"x": (self.N, 3, size, size), "labels": (self.N,)}

    def flops(self, op: str) -> int:
        """Of a step all passes of all layers and the update, but not the gradient of the images."""
        return sum(item.flops for item in _parts(self.preset, self.N, op))

    def bytes(self, *tensors: str) -> int:
        """What no step can avoid: weights and velocities read and written, images read."""
        return self.moved(STEP)

    def moved(self, op: str) -> int:
        """Bytes that no pass can avoid: the images and the weights are read, by a step written too."""
        times = 1 if op == FORWARD else 4
        return 4 * (times * sum(_weights(self.preset)) + math.prod(self.shapes["x"]))

    def __str__(self) -> str:
        return f"AlexNet ({self.preset}), x{self.shapes['x']}"


@dataclass(frozen=True)
class StepItem(Item):
    """A pass as an item."""

    @property
    def direction(self) -> str:
        return self.op

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("x",) if self.op == FORWARD else ("x", "labels")

    @property
    def fast_flops(self) -> int:
        assert isinstance(self.problem, Step)
        return sum(item.fast_flops for item in _parts(self.problem.preset, self.batch, self.op))

    @property
    def bytes(self) -> int:
        assert isinstance(self.problem, Step)
        return self.problem.moved(self.op)

    @property
    def text(self) -> str:
        return f"{self.problem}: {_WORDS[self.op]}"


def items(wanted: Wanted, op: str = STEP) -> list[Item]:
    """A pass for each batch size: "step", "forward" or "memory"."""
    if wanted.preset not in PRESETS:
        raise unknown("preset", wanted.preset, PRESETS)
    for dtype in wanted.dtypes:
        if dtype != "float32":
            raise unknown(f"dtype of --{op}", dtype, ("float32",))
    return [step(wanted.preset, batch, op) for batch in wanted.batches]


def step(preset: str, batch: int, op: str = STEP) -> Item:
    """A pass of a preset over a batch."""
    net, problem = f"alexnet-{preset}", Step(preset, batch)
    name = work.identity(net, op, op, batch, problem.dtype, "fp32")
    return StepItem(name, op, problem, layer=op, net=net, batch=batch)


def item_of(row: Mapping[str, Any]) -> Item:
    """As `work.item_of`, for a network's pass too."""
    if row["op"] not in NETWORK_OPS:
        return work.item_of(row)
    name, batch = row["problem"].get("preset"), row["problem"].get("N")
    if name not in PRESETS:
        raise unknown("preset", str(name), PRESETS)
    if not isinstance(batch, int) or batch < 1:
        raise OptionError(f"row {row['id']}: its problem cannot be read: N is {batch!r}")
    return step(name, batch, row["op"])


def _parts(preset: str, batch: int, op: str) -> Iterator[Item]:
    """The plain ops of a pass."""
    for item in of_preset(preset, batch):
        if "+" in item.layer or (item.layer == "conv1" and item.direction == "dgrad"):
            continue
        if op != FORWARD or (item.direction == "fwd" and item.layer != "loss"):
            yield item


@lru_cache(maxsize=8)
def _weights(preset: str) -> tuple[int, ...]:
    wgrads = [i for i in of_preset(preset, 1) if i.op.endswith("_wgrad") and "+" not in i.layer]
    return tuple(math.prod(i.problem.shape("dw")) + i.problem.shape("dy")[1] for i in wgrads)
