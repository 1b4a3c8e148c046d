"""Some hundred elements of a layer's outputs against float64: a whole reference would take the cores minutes.

Of convolutions and fully connected layers, elements at random places, each its sum of products in float64. Of
the others, whose images do not touch each other, the first and the last image whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from convkit.bench.measure.trial import PEER_ERROR
from convkit.bench.work import Item
from convkit.op import OPS

Array = np.ndarray
#: Elements that are looked at; of weights' gradients, whose sums are long, fewer.
COUNT, FEW = 400, 96
#: Largest relative RMS error of convkit's, by arithmetic; one element may be `WORST` times as wrong.
LIMITS = {"fp32": 2e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1e-2}
WORST = 12.0


def _f64(a: Array) -> Array:
    return np.asarray(a).astype(np.float64)


def _conv_fprop(g: Any, t: Mapping[str, Array], at: tuple[Array, ...], options: Mapping[str, Any]) -> Array:
    n, k, p, q = at
    channels = (k // (g.K // g.groups) * (g.C // g.groups))[:, None] + np.arange(g.C // g.groups)
    total = _f64(t["b"])[k] if "b" in t else np.zeros(len(n))
    for r in range(g.R):
        for s in range(g.S):
            h = p * g.stride_h - g.pad_top + r * g.dilation_h
            w = q * g.stride_w - g.pad_left + s * g.dilation_w
            seen = (h >= 0) & (h < g.H) & (w >= 0) & (w < g.W)
            x = _f64(t["x"][n[:, None], channels, (h * seen)[:, None], (w * seen)[:, None]])
            total += (x * _f64(t["w"][k, :, r, s])).sum(1) * seen
    return np.maximum(total, 0) if options.get("relu") else total


def _conv_dgrad(g: Any, t: Mapping[str, Array], at: tuple[Array, ...], options: Mapping[str, Any]) -> Array:
    n, c, h, w = at
    group, within = c // (g.C // g.groups), c % (g.C // g.groups)
    filters = (group * (g.K // g.groups))[:, None] + np.arange(g.K // g.groups)
    total = np.zeros(len(n))
    for r in range(g.R):
        for s in range(g.S):
            p, p_off = np.divmod(h + g.pad_top - r * g.dilation_h, g.stride_h)
            q, q_off = np.divmod(w + g.pad_left - s * g.dilation_w, g.stride_w)
            seen = (p_off == 0) & (q_off == 0) & (p >= 0) & (p < g.P) & (q >= 0) & (q < g.Q)
            dy = _f64(t["dy"][n[:, None], filters, (p * seen)[:, None], (q * seen)[:, None]])
            total += (dy * _f64(t["w"][filters, within[:, None], r, s])).sum(1) * seen
    return total


def _conv_wgrad(g: Any, t: Mapping[str, Array], at: tuple[Array, ...], options: Mapping[str, Any]) -> Array:
    found = np.zeros(len(at[0]))
    for i, (k, c, r, s) in enumerate(zip(*at)):
        p, q = np.arange(g.P), np.arange(g.Q)
        h = p * g.stride_h - g.pad_top + r * g.dilation_h
        w = q * g.stride_w - g.pad_left + s * g.dilation_w
        p, h = p[(h >= 0) & (h < g.H)], h[(h >= 0) & (h < g.H)]
        q, w = q[(w >= 0) & (w < g.W)], w[(w >= 0) & (w < g.W)]
        channel = k // (g.K // g.groups) * (g.C // g.groups) + c
        x = t["x"][:, channel][:, h[:, None], w]
        found[i] = np.vdot(_f64(x), _f64(t["dy"][:, k][:, p[:, None], q]))
    return found


def _linear_fprop(g: Any, t: Mapping[str, Array], at: tuple[Array, ...], options: Mapping[str, Any]) -> Array:
    n, k = at
    total = (_f64(t["x"][n]) * _f64(t["w"][k])).sum(1) + (_f64(t["b"])[k] if "b" in t else 0)
    return np.maximum(total, 0) if options.get("relu") else total


def _products(a: Array, b: Array) -> Array:
    return (_f64(a) * _f64(b)).sum(0)  # type: ignore[no-any-return]


#: By op: the output, how many elements, and their float64 values.
Samples = Callable[[Any, Mapping[str, Array], "tuple[Array, ...]", Mapping[str, Any]], Array]
_SUMS: dict[str, tuple[str, int, Samples]] = {
    "conv2d_fprop": ("y", COUNT, _conv_fprop),
    "conv2d_dgrad": ("dx", COUNT, _conv_dgrad),
    "conv2d_wgrad": ("dw", FEW, _conv_wgrad),
    "linear_fprop": ("y", COUNT, _linear_fprop),
    "linear_dgrad": ("dx", COUNT, lambda g, t, at, _: _products(t["dy"][at[0]].T, t["w"][:, at[1]])),
    "linear_wgrad": ("dw", COUNT, lambda g, t, at, _: _products(t["dy"][:, at[0]], t["x"][:, at[1]])),
    "conv2d_bgrad": ("db", FEW, lambda g, t, at, _: _f64(t["dy"][:, at[0]]).sum((0, 2, 3))),
    "linear_bgrad": ("db", COUNT, lambda g, t, at, _: _f64(t["dy"][:, at[0]]).sum(0)),
}  # fmt: skip
_IMAGES = ("relu_fprop", "relu_dgrad", "lrn_fprop", "lrn_dgrad", "maxpool2d_fprop", "maxpool2d_dgrad")
#: Ops that can be verified so.
SAMPLED = (*_SUMS, *_IMAGES)


class Sample:
    """Places in an item's outputs, and what belongs there.

    Parameters
    ----------
    item : Item
    inputs : mapping
        Arrays on the host, in NCHW; without those that are absent.
    """

    def __init__(self, item: Item, inputs: Mapping[str, Array]) -> None:
        self.at: dict[str, Any] = {}
        self.wanted: dict[str, Array] = {}
        self.dtype = item.dtype
        g: Any = item.problem
        if item.op in _SUMS:
            output, count, make = _SUMS[item.op]
            rng = np.random.default_rng()
            # The first and the last element are always among them.
            ends = [(rng.integers(n, size=count), [0, n - 1]) for n in g.shape(output)]
            self.at[output] = tuple(np.concatenate(places) for places in ends)
            self.wanted[output] = make(g, inputs, self.at[output], item.options)
            return
        few = [0, -1]
        two = replace(g, dims=(2, *g.dims[1:])) if hasattr(g, "dims") else replace(g, N=2)
        found = OPS[item.op].evaluate(two, {n: a[few] for n, a in inputs.items()}, dict(item.options))
        for name in OPS[item.op].outputs:
            self.at[name], self.wanted[name] = few, _f64(found[name])

    def verdict(self, got: Mapping[str, Array], math: str, *, own: bool) -> dict[str, Any]:
        """Whether outputs are right, as far as they are looked at.

        Parameters
        ----------
        got : mapping
            Whole outputs on the host, in NCHW.
        math : str
            Arithmetic, where the storage is float32.
        own : bool
            Whether they are convkit's. Another library has the limits of `convkit bench`, with room for
            fast algorithms; and of equal values it may take another, so that its argmax is not looked at.

        Returns
        -------
        dict
            "ok", "rms_error" (relative), "worst" (the largest error over the RMS of what is expected),
            "checked" (elements).
        """
        limit = (LIMITS if own else PEER_ERROR)[math if self.dtype == "float32" else self.dtype]
        found: dict[str, Any] = {"ok": True, "rms_error": 0.0, "worst": 0.0, "checked": 0}
        for name, wanted in self.wanted.items():
            if name not in got or (not own and got[name].dtype.kind in "iu"):
                continue
            error = np.abs(_f64(got[name][self.at[name]]) - wanted)
            size = float(np.sqrt(np.mean(np.square(wanted)))) or 1.0
            rms, worst = float(np.sqrt(np.mean(np.square(error)))) / size, float(error.max()) / size
            right = rms <= limit and worst <= WORST * limit  # which no NaN is
            found["ok"] = bool(found["ok"] and right)
            if not rms <= found["rms_error"]:
                found |= {"rms_error": rms, "worst": worst}
            found["checked"] += wanted.size
        found["ok"] = bool(found["ok"] and found["checked"])
        return found
