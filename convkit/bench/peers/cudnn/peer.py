"""cuDNN as entries: each engine that the item's arithmetic allows is one.

An entry in NCHW reads and writes the item's own memory. One in NHWC works on copies, which are made when
it is bound and brought back when it is read: neither is timed, which "layout" tells. Copies and workspace are
shared by an item's entries, since they take turns.

What cuDNN wants and the item does not have is made when it is bound, untimed, and named in the fact "given":

- LRN's backward pass: its forward output, by cuDNN.
- Max pooling's backward pass: an image, with its pooled image, whose maxima lie where argmax says.

Max pooling does less here than convkit's: cuDNN makes no argmax, which the fact "lacks" tells.

Written to the documentation and run with a library that stands in for cuDNN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ....arrays import np_dtype
from ....op import OPS
from ....ops.conv2d import Conv2d
from ....ops.lrn import LRN
from ....ops.lrn_maxpool2d import LrnMaxPool2d
from ....ops.maxpool2d import Pool2d
from ...measure.entry import Arrays, Entry
from ...work import Item
from .. import Missing, need
from .engine import Engine
from .engines import Session, engines
from .library import NotSupported, Unavailable, dotted

#: An engine that wants a larger workspace (bytes) is refused: others need the memory.
WORKSPACE_LIMIT = 4 * 2**30
#: Algorithms that do with fewer operations than the definition's, in their names or notes.
_FAST = ("winograd", "fft")
#: Largest integer up to which each dtype has them all.
_EXACT = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**24}
_LINEAR = "is not asked: a fully-connected layer is cuBLAS's work"
_LACKS = {
    "linear_fprop": _LINEAR,
    "linear_dgrad": _LINEAR,
    "linear_wgrad": _LINEAR,
    "softmax_xent_fprop": "has a softmax, but no loss",
    "softmax_xent_dgrad": "has the gradient of a softmax, but none of the loss",
}


def about(device: str) -> dict[str, Any]:
    """Version and settings."""
    if device != "cuda":
        raise Missing("needs a GPU")
    need("cupy")
    session = _session()
    settings = {"workspace_limit": WORKSPACE_LIMIT, **session.about()}
    return {"version": dotted(session.library.version), "settings": settings}


def entries(item: Item, device: str) -> list[Entry]:
    """Every engine, in NCHW and in NHWC; the refused ones too, so that a report has their reasons."""
    if device != "cuda":
        raise Missing("needs a GPU")
    return entries_in(item, _session(), need("cupy"))


@lru_cache(maxsize=1)
def _session() -> Session:
    """One for the process, on the current GPU."""
    try:
        return Session()
    except Unavailable as reason:
        raise Missing(str(reason)) from None


def entries_in(item: Item, session: Session, xp: Any) -> list[Entry]:
    """The same, with the memory of an array library: CuPy, or NumPy where the library works on the host.

    Raises
    ------
    Missing
        For an op, or a problem, that cuDNN has nothing for.
    """
    kinds = (Conv2d, LRN, Pool2d, LrnMaxPool2d)
    if item.op in _LACKS or not (isinstance(item.problem, kinds) or item.op in _PLAIN):
        raise Missing(_LACKS.get(item.op, f"has no op like {item.op}"))
    bias = item.op == "conv2d_fprop" and "b" in item.inputs
    found = engines(
        item.problem, item.op, item.dtype, item.math, bias=bias, relu=bool(item.options.get("relu")),
        session=session,
    )  # fmt: skip
    shared = Shared(item, session, xp)
    return [_entry(item, engine, shared) for engine in found if engine.asked]


#: Ops whose problems are of no kind that is cuDNN's own.
_PLAIN = ("conv2d_bgrad", "linear_bgrad", "relu_fprop", "relu_dgrad")


def _entry(item: Item, engine: Engine, shared: Shared) -> Entry:
    bound = Bound(item, engine, shared)
    given = [name for name in engine.inputs if bound.source(name) is None]
    facts: dict[str, Any] = {
        "engine": engine.name, "api": engine.api, "workspace_bytes": engine.workspace_bytes,
        "declared_deterministic": engine.declared_deterministic, "heuristic_rank": engine.heuristic_rank,
        **engine.facts,
    }  # fmt: skip
    if given:
        facts["given"] = given
    if lacking := [name for name in bound.outputs_of_op if name not in engine.outputs]:
        facts["lacks"] = lacking
    words = f"{engine.name} {engine.facts.get('numerical_notes') or ''}".lower()
    unknown = engine.api == "graph" and engine.facts.get("numerical_notes") is None
    if isinstance(item.problem, Conv2d) and (unknown or any(word in words for word in _FAST)):
        facts["algorithm_flops"] = item.fast_flops
    name = f"cudnn:{engine.name}{'' if engine.layout == 'NCHW' else f' {engine.layout}'}"
    marks = ("heuristic",) if engine.heuristic_rank == 0 and not engine.refused else ()
    return Entry(name, "cuDNN", bound.bind, bound.read, engine.layout, facts, marks, memory=bound.memory)


class Shared:
    """Memory of an item's entries: tensors by layout and name, and one workspace."""

    def __init__(self, item: Item, session: Session, xp: Any) -> None:
        self.item, self.session, self.xp = item, session, xp
        self._kept: dict[tuple[str, str], Any] = {}
        self._workspace: Any = None
        self._image: tuple[Any, Any, Any] | None = None  # argmax, the image, its pool

    def tensor(self, layout: str, name: str, shape: tuple[int, ...]) -> Any:
        """Memory for a tensor whose NCHW shape is this."""
        key = layout, name
        if key not in self._kept:
            extents = shape if layout == "NCHW" or len(shape) != 4 else tuple(shape[i] for i in (0, 2, 3, 1))
            self._kept[key] = self.xp.empty(extents, np_dtype(self.item.dtype))
        return self._kept[key]

    def workspace(self, size: int) -> Any:
        """Memory of at least this many bytes."""
        if size > WORKSPACE_LIMIT:
            raise NotSupported(
                "workspace", -1, f"needs {size} bytes of workspace, more than the limit of {WORKSPACE_LIMIT}"
            )
        if self._workspace is None or self._workspace.size < size:
            self._workspace = None  # freed before the larger one is asked for
            self._workspace = self.xp.empty(max(size, 1), np.uint8)
        return self._workspace

    def stream(self) -> int:
        """The stream that the clock times."""
        if self.xp is np:
            return 0
        return int(self.xp.cuda.get_current_stream().ptr)

    def image(self, g: Pool2d, argmax: Any) -> tuple[Any, Any]:
        """See `image_of`; kept as long as argmax is the same, since each entry asks."""
        if self._image is None or not bool((self._image[0] == argmax).all()):
            self._image = None
            self._image = (argmax.copy(), *image_of(g, argmax, self.xp))
        return self._image[1], self._image[2]

    def forward_lrn(self, g: LRN, x: Any) -> Any:
        """LRN's output in NCHW, by cuDNN, which its backward pass reads."""
        (engine,) = engines(g, "lrn_fprop", layouts=("NCHW",), session=self.session)
        y = self.tensor("NCHW", "of lrn", g.shape("y"))
        engine.run([address(x)], [address(y)], None, self.stream())
        return y


class Bound:
    """One engine on an item's memory."""

    def __init__(self, item: Item, engine: Engine, shared: Shared) -> None:
        self.item, self.engine, self.shared = item, engine, shared
        self.outputs_of_op = OPS[item.op].outputs
        self._made: Arrays = {}

    def source(self, name: str) -> str | None:
        """The item's input of that name; None if it has to be made."""
        derived = {
            "lrn_dgrad": ("y",), "maxpool2d_dgrad": ("x", "y"),
            "lrn_maxpool2d_dgrad": ("pool_x", "pool_y", "n"),
        }.get(self.item.op, ())  # fmt: skip
        return None if name in derived else name

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        engine = self.engine
        if engine.refused:
            raise NotSupported(engine.name, -1, engine.refused)
        workspace = self.shared.workspace(engine.workspace_bytes) if engine.workspace_bytes else None
        made = self._derived(inputs)
        read = [self._in_layout(name, made.get(name, inputs.get(name))) for name in engine.inputs]
        write = [self._output(name, outputs) for name in engine.outputs]
        self._made = dict(zip(engine.outputs, write))
        # Kept alive by the closure: cuDNN has only their addresses.
        held = (read, write, workspace)
        from_, to = [address(a) for a in read], [address(a) for a in write]
        scratch, stream = address(workspace), self.shared.stream

        def run(held: Any = held) -> None:
            engine.run(from_, to, scratch, stream())

        return run

    def _in_layout(self, name: str, array: Any) -> Any:
        if self.engine.layout == "NCHW" or array.ndim != 4:
            return array
        kept = self.shared.tensor(self.engine.layout, name, array.shape)
        # By their bits: an array library need not know bfloat16 to copy it.
        kind = f"u{array.dtype.itemsize}"
        kept.view(kind)[...] = array.view(kind).transpose(0, 2, 3, 1)
        return kept

    def _output(self, name: str, outputs: Arrays) -> Any:
        given = outputs[name]
        if self.engine.layout == "NCHW" or given.ndim != 4:
            return given
        return self.shared.tensor(self.engine.layout, f"out {name}", given.shape)

    def memory(self) -> Arrays:
        """What a run writes."""
        return dict(self._made)

    def read(self) -> Arrays:
        """The outputs that cuDNN makes, NCHW, on the host."""
        found = {}
        for name, array in self._made.items():
            host = array if isinstance(array, np.ndarray) else array.get()
            if self.engine.layout == "NHWC" and host.ndim == 4:
                host = host.transpose(0, 3, 1, 2)
            found[name] = np.ascontiguousarray(host)
        return found

    def _derived(self, inputs: Arrays) -> Arrays:
        """What cuDNN wants beyond the item's inputs, NCHW."""
        g, op = self.item.problem, self.item.op
        if op == "lrn_dgrad":
            assert isinstance(g, LRN)
            return {"y": self.shared.forward_lrn(g, inputs["x"])}
        if op == "maxpool2d_dgrad":
            assert isinstance(g, Pool2d)
            x, y = self.shared.image(g, inputs["argmax"])
            return {"x": x, "y": y}
        if op == "lrn_maxpool2d_dgrad":
            assert isinstance(g, LrnMaxPool2d)
            x, y = self.shared.image(g.pool, inputs["argmax"])
            return {"pool_x": x, "pool_y": y, "n": self.shared.forward_lrn(g.lrn, inputs["x"])}
        return {}


def address(array: Any) -> int:
    """Of an array's memory, on the host too: a library that stands in for cuDNN works there."""
    if array is None:
        return 0
    if isinstance(array, np.ndarray):
        return int(array.ctypes.data)
    return int(array.data.ptr)


# ---------------------------------------------------------------------------------------------------
# An image from its argmax
# ---------------------------------------------------------------------------------------------------
def image_of(g: Pool2d, argmax: Any, xp: Any) -> tuple[Any, Any]:
    """An image whose pool has its maxima where argmax says, and that pool's output.

    Each pixel gets the least level at which it exceeds whatever it beats in some window: a maximum of a
    window is one level above the rest of it, again and again until nothing rises.

    Raises
    ------
    Missing
        If there is no such image, because argmax contradicts itself; or too many levels for the dtype.
    """
    P, Q = g.P, g.Q
    high = (P - 1) * g.stride_h + (g.R - 1) * g.dilation_h + 1
    wide = (Q - 1) * g.stride_w + (g.S - 1) * g.dilation_w + 1
    # The padded image, as far as windows reach; padding lies below every pixel.
    extents = (g.N, g.C, max(high, g.pad_top + g.H), max(wide, g.pad_left + g.W))
    level = xp.full(extents, -1, np.int32)
    inside = (..., slice(g.pad_top, g.pad_top + g.H), slice(g.pad_left, g.pad_left + g.W))
    level[inside] = 0
    taps = [
        (..., slice(r * g.dilation_h, r * g.dilation_h + (P - 1) * g.stride_h + 1, g.stride_h),
         slice(s * g.dilation_w, s * g.dilation_w + (Q - 1) * g.stride_w + 1, g.stride_w))
        for r in range(g.R) for s in range(g.S)
    ]  # fmt: skip
    for _ in range(_EXACT[g.dtype]):
        others = xp.full(argmax.shape, -1, np.int32)
        for tap, place in enumerate(taps):
            others = xp.where(argmax == tap, others, xp.maximum(others, level[place]))
        rose = False
        for tap, place in enumerate(taps):
            lifted = xp.where(argmax == tap, xp.maximum(level[place], others + 1), level[place])
            rose = rose or bool((lifted > level[place]).any())
            level[place] = lifted
        if not rose:
            break
    else:
        raise Missing("wants an image to pool backward, and none has its maxima where this argmax says")
    y = xp.full(argmax.shape, -1, np.int32)
    for place in taps:
        y = xp.maximum(y, level[place])
    return exact(level[inside], g.dtype, xp), exact(y, g.dtype, xp)


def exact(integers: Any, dtype: str, xp: Any) -> Any:
    """Small integers in a dtype that has them all; bfloat16 by its bits, since CuPy may not convert to it."""
    if dtype != "bfloat16":
        return xp.ascontiguousarray(integers).astype(np_dtype(dtype))
    wide = xp.ascontiguousarray(integers.astype(np.float32)).view(np.uint32)
    return (wide >> 16).astype(np.uint16).view(np_dtype(dtype))
