"""A network in 16 bits on a GPU lies in NHWC inside: one change of layout at each edge, and none between."""

from __future__ import annotations

from dataclasses import replace

import pytest

import convkit as ck
from convkit import registry
from convkit.cuda.null import nulled

#: Convolutions that compute in NHWC with weights as users have them, in the place of those on tensor cores.
CONVOLUTIONS = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "conv2d_dgrad_relu")
#: What runs of an AlexNet's layers between the convolutions, by op.
INSIDE = {
    "conv2d_bgrad": "columns NHWC",
    "lrn_fprop": "lanes NHWC",
    "lrn_dgrad": "lanes NHWC",
    "maxpool2d_fprop": "channels NHWC",
    "maxpool2d_dgrad": "channels NHWC",
    "lrn_maxpool2d_fprop": "lanes NHWC",
    "lrn_maxpool2d_dgrad": "lanes NHWC",
}


@pytest.fixture
def convolutions(monkeypatch):
    """Adds a convolution of each direction in NHWC, which is planned and never run."""
    registry.builtin()
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    for op in CONVOLUTIONS:
        (naive,) = (
            one
            for one in ck.implementations(op, device="cuda")
            if one.name == ("implicit_gemm" if op.endswith("relu") else "naive")
        )
        registry.add(replace(naive, name="stand_in", layout="NHWC", dtypes=("bfloat16",), rank=30))


@pytest.mark.parametrize("preset", ["paper", "2012", "owt"])
def test_alexnet_in_bfloat16_is_nhwc_inside(preset, convolutions):
    net = ck.AlexNet(preset=preset, seed=0, dtype="bfloat16")
    with nulled():
        calls = [call for calls in net.plan(2).phases().values() for call in calls]
    moved = [(call.layer, call.implementation.layout) for call in calls if call.op.name == "reorder"]
    first = calls[0].layer
    assert moved == [(first, "NCHW>NHWC"), ("flatten", "NHWC>NCHW"), ("flatten", "NCHW>NHWC")]
    assert {call.implementation.name for call in calls if call.op.name == "reorder"} == {
        "interleave",
        "deinterleave",
    }
    picked = {(call.op.name, call.implementation.label) for call in calls}
    for op, label in picked:
        if op in CONVOLUTIONS:
            assert label == "stand_in NHWC"
        if op in INSIDE:
            assert label == INSIDE[op], op
    assert {op for op, _ in picked} & set(INSIDE)
