"""What convkit has as one op, and cuDNN as two calls or three: one engine that makes them in turn.

What passes from one call to the next lies in the workspace.

- `conv2d_dgrad_relu`: a plan of the graph API for the gradient, then the legacy activation's backward pass;
  beside it stand the plans that are both, if cuDNN has any, and the legacy pair.
- `lrn_maxpool2d_fprop`: LRN, then the pool.
- `lrn_maxpool2d_dgrad`: the pool's backward pass, LRN's, and with `relu` the activation's. It reads what
  cuDNN wants of the forward pass: "pool_x" and "pool_y" of the pool, "x" and "n" (its output) of LRN.

Written to the documentation and run with a library that stands in for cuDNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ....op import Problem, np_itemsize
from ....ops.conv2d import Conv2d
from ....ops.elementwise import Elementwise
from ....ops.lrn_maxpool2d import LrnMaxPool2d
from . import legacy
from .engine import Engine, Launch
from .library import Handle

#: Ops that are nothing but chains of the legacy API.
OPS = ("lrn_maxpool2d_fprop", "lrn_maxpool2d_dgrad")
_ALIGN = 256


def then_activation(handle: Handle, engine: Engine, g: Conv2d) -> Engine:
    """A convolution's data gradient, and in its place the gradient of the ReLU that had made the image."""
    after = _legacy(handle, Elementwise(g.shape("x"), g.dtype), "relu_dgrad", engine.layout)[0]
    first, second = engine.launch, after.launch

    def launch(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        assert first is not None and second is not None
        dy, w, x = read
        first((dy, w), write, workspace, stream)
        second((write[0], x), write, 0, stream)

    return Engine(
        f"{engine.name}+activation", engine.api, engine.layout, (*engine.inputs, "x"), engine.outputs,
        engine.workspace_bytes, engine.declared_deterministic, engine.heuristic_rank,
        engine.refused or after.refused, engine.asked, engine.facts, launch,
    )  # fmt: skip


def lrn_pools(handle: Handle, problem: LrnMaxPool2d, op: str, layout: str, relu: bool) -> list[Engine]:
    """LRN and max pooling, with each kind of pooling."""
    way = op.rpartition("_")[2]
    (norm,) = _legacy(handle, problem.lrn, f"lrn_{way}", layout)
    pools = _legacy(handle, problem.pool, f"maxpool2d_{way}", layout)
    if way == "fprop":
        return [_forward(problem, norm, pool) for pool in pools]
    return [_backward(handle, problem, norm, pool, relu) for pool in pools]


def _forward(g: LrnMaxPool2d, norm: Engine, pool: Engine) -> Engine:
    def launch(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        assert norm.launch is not None and pool.launch is not None
        norm.launch(read, (workspace,), 0, stream)
        pool.launch((workspace,), write, 0, stream)

    return _chain(g, norm, pool, ("x",), ("y",), launch)


def _backward(handle: Handle, g: LrnMaxPool2d, norm: Engine, pool: Engine, relu: bool) -> Engine:
    mask = _legacy(handle, Elementwise(g.pool.shape("x"), g.dtype), "relu_dgrad", pool.layout)[0]

    def launch(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        assert norm.launch is not None and pool.launch is not None and mask.launch is not None
        dy, pool_x, pool_y, x, n = read
        pool.launch((dy, pool_x, pool_y), (workspace,), 0, stream)
        norm.launch((workspace, x, n), write, 0, stream)
        if relu:
            mask.launch((write[0], x), write, 0, stream)

    return _chain(g, norm, pool, ("dy", "pool_x", "pool_y", "x", "n"), ("dx",), launch)


def _chain(
    g: LrnMaxPool2d,
    norm: Engine,
    pool: Engine,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    launch: Launch,
) -> Engine:
    between = prod(g.pool.shape("x")) * np_itemsize(g.dtype)
    name = f"legacy:lrn+{pool.name.removeprefix('legacy:')}"
    return Engine(
        name, "legacy", pool.layout, inputs, outputs, -(-between // _ALIGN) * _ALIGN, None, None,
        norm.refused or pool.refused, True, dict(pool.facts), launch,
    )  # fmt: skip


def _legacy(handle: Handle, problem: Problem, op: str, layout: str) -> list[Engine]:
    return legacy.engines(handle, problem, op, None, layout, False, False)
