"""One face for both of cuDNN's APIs: `engines` lists every way to do an op on a problem."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ....errors import DtypeError, unknown
from ....op import Problem
from ....ops.conv2d import Conv2d
from ....ops.lrn_maxpool2d import LrnMaxPool2d
from ....registry import MATH
from . import chains, graph, legacy
from .engine import LAYOUTS, Engine
from .library import Handle, Library, Unavailable, load

__all__ = ["LAYOUTS", "Engine", "Engines", "Session", "engines"]


class Engines(list[Engine]):
    """Engines, and why an API that could have had some has none.

    Attributes
    ----------
    missing : dict of str to str
        By API: "legacy", "graph".
    """

    def __init__(self, found: Sequence[Engine] = (), missing: dict[str, str] | None = None) -> None:
        super().__init__(found)
        self.missing = dict(missing or {})

    @property
    def usable(self) -> list[Engine]:
        """Those that were not refused."""
        return [engine for engine in self if not engine.refused]


class Session:
    """libcudnn with a handle, and the frontend with its own, on the current GPU.

    Parameters
    ----------
    path : path, optional
        Of libcudnn: see `library.load`.

    Attributes
    ----------
    library : Library
    handle : Handle
    frontend : graph.Frontend or None
    missing : dict of str to str
        Why there is no frontend, under "graph".

    Raises
    ------
    Unavailable
        If there is no libcudnn, or no GPU. A frontend that is missing is no reason: its engines are.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.library: Library = load(path)
        self.handle = Handle(self.library)
        self.missing: dict[str, str] = {}
        self.frontend: graph.Frontend | None = None
        try:
            self.frontend = graph.Frontend()
        except Unavailable as reason:
            self.missing["graph"] = str(reason)

    def about(self) -> dict[str, Any]:
        """Versions, for a report. The frontend may have found another libcudnn: both are told."""
        found: dict[str, Any] = {"cudnn": str(self.library)}
        found["frontend"] = str(self.frontend) if self.frontend else self.missing["graph"]
        return found

    def close(self) -> None:
        """Destroy both handles: engines cannot be run any more."""
        try:
            if self.frontend is not None:
                self.frontend.close()
        finally:
            self.handle.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def engines(
    problem: Problem,
    op: str,
    dtype: str | None = None,
    math: str | None = None,
    *,
    layouts: Sequence[str] = LAYOUTS,
    bias: bool = False,
    relu: bool = False,
    session: Session,
) -> Engines:
    """Every algorithm and every plan with which cuDNN can do an op, and every one that it refuses.

    Parameters
    ----------
    problem : Problem
    op : str
        One of convkit's names; or "softmax_fprop", "softmax_dgrad" (on a `SoftmaxXent`), which stop before
        the loss.
    dtype : str, optional
        Instead of the problem's own.
    math : {"fp32", "tf32", "fp32-emulated"}, optional
        The coarsest arithmetic for float32; anything coarser is refused. None: "fp32".
    layouts : sequence of {"NCHW", "NHWC"}
    bias, relu : bool
        Of "conv2d_fprop"; relu also of "lrn_maxpool2d_dgrad".
    session : Session

    Returns
    -------
    Engines
        Layout by layout, the legacy API before the graph API, in the order of cuDNN's numbers and of its
        heuristic.

    Raises
    ------
    OptionError
        For a name that is not known, or a problem of another op.
    DtypeError
        For a dtype that cuDNN has none of.
    """
    _check(problem, op, dtype or str(problem.dtype), math, layouts)  # type: ignore[attr-defined]
    if dtype is not None:
        problem = replace(problem, dtype=dtype)  # type: ignore[call-arg]
    found, missing = Engines(), {}
    for layout in layouts:
        if isinstance(problem, LrnMaxPool2d):
            found += chains.lrn_pools(session.handle, problem, op, layout, relu)
            continue
        found += legacy.engines(session.handle, problem, op, math, layout, bias, relu)
        if isinstance(problem, Conv2d):
            if session.frontend is None:
                missing["graph"] = session.missing["graph"]
            else:
                found += _plans(session, session.frontend, problem, op, math, layout, bias, relu)
        if all(len(shape) != 4 for shape in problem.shapes.values()):
            break  # the layouts are the same
    return Engines(found, missing)


def _plans(
    session: Session, frontend: graph.Frontend, g: Conv2d, op: str, math: str | None, layout: str,
    bias: bool, relu: bool,
) -> list[Engine]:  # fmt: skip
    found = graph.engines(frontend, g, op, math, layout, bias, relu)
    if op == "conv2d_dgrad_relu":
        alone = graph.engines(frontend, g, "conv2d_dgrad", math, layout, False, False)
        found += [chains.then_activation(session.handle, engine, g) for engine in alone]
        # What is one graph leads cuDNN's ranking; where there is none, the gradient's own first plan does.
        if any(e.heuristic_rank == 0 and not e.refused for e in found[: len(found) - len(alone)]):
            for engine in found[len(found) - len(alone) :]:
                engine.heuristic_rank = None
    return found


def _check(problem: Problem, op: str, dtype: str, math: str | None, layouts: Sequence[str]) -> None:
    kinds = {op: kind for op, (kind, _) in legacy.OPS.items()} | dict.fromkeys(chains.OPS, LrnMaxPool2d)
    if op not in kinds:
        raise unknown("op of cuDNN", op, kinds)
    if not isinstance(problem, kinds[op]):
        raise unknown(f"problem of {op}", type(problem).__name__, [kinds[op].__name__])
    if dtype not in legacy.DATA_TYPES:
        raise DtypeError(f"cuDNN has no {dtype}; it has {', '.join(legacy.DATA_TYPES)}")
    if math is not None and math not in MATH:
        raise unknown("math", math, MATH)
    for layout in layouts:
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
