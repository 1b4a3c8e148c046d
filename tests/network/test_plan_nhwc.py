"""A network in 16 bits on a GPU lies in NHWC inside: one change of layout at each edge, and none between."""

from __future__ import annotations

from dataclasses import replace

import pytest

import convkit as ck
from convkit import registry
from convkit.cuda.null import nulled

#: What has no implementation for these plans yet, with the layout that the one on tensor cores will have; and
#: the one whose `prepare` stands in: nothing is run.
STAND_INS = {
    "conv2d_fprop": ("NHWC", "naive"),
    "conv2d_dgrad": ("NHWC", "naive"),
    "conv2d_dgrad_relu": ("NHWC", "implicit_gemm"),
    "conv2d_wgrad": ("NHWC", "naive"),
    "linear_fprop": ("NCHW", "naive"),
    "linear_dgrad": ("NCHW", "naive"),
    "linear_wgrad": ("NCHW", "naive"),
}
#: What runs between the convolutions.
INSIDE = {
    "conv2d_bgrad": {"columns NHWC"},
    "lrn_fprop": {"lanes NHWC", "channels NHWC"},
    "lrn_dgrad": {"lanes NHWC", "channels NHWC"},
    "maxpool2d_fprop": {"channels NHWC"},
    "maxpool2d_dgrad": {"channels NHWC"},
    "lrn_maxpool2d_fprop": {"lanes NHWC"},
    "lrn_maxpool2d_dgrad": {"lanes NHWC"},
}


@pytest.fixture
def stand_ins(monkeypatch):
    registry.builtin()
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    for op, (layout, name) in STAND_INS.items():
        (one,) = (i for i in ck.implementations(op, device="cuda") if i.name == name)
        registry.add(replace(one, name="stand_in", layout=layout, dtypes=("bfloat16",), rank=99))


@pytest.mark.parametrize("preset", ["paper", "2012", "owt"])
def test_alexnet_in_bfloat16_is_nhwc_inside(preset, stand_ins):
    """Also with LRN within channels (2012), and without LRN (owt)."""
    net = ck.AlexNet(preset=preset, seed=0, dtype="bfloat16")
    with nulled():
        calls = [call for calls in net.plan(2).phases().values() for call in calls]
    moved = [(c.layer, c.implementation.label) for c in calls if c.op.name == "reorder"]
    assert moved == [
        (calls[0].layer, "interleave NCHW>NHWC"),
        ("flatten", "deinterleave NHWC>NCHW"),
        ("flatten", "interleave NCHW>NHWC"),
    ]
    for call in calls:
        if call.op.name in INSIDE:
            assert call.implementation.label in INSIDE[call.op.name], call.layer
    found = {call.op.name for call in calls}
    assert {"paper": "lrn_maxpool2d_dgrad", "2012": "lrn_dgrad", "owt": "maxpool2d_dgrad"}[preset] in found
    assert "conv2d_bgrad" in found
