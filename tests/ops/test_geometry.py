"""Problem descriptions: output sizes against a count by hand, derived numbers, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convkit.errors import ConvkitError, OptionError, ShapeError
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.ops.loss_summary import LossSummary
from convkit.ops.lrn import LRN
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.softmax_xent import SoftmaxXent
from convkit.ops.window import output_extent, padding4, window_span


def count_by_hand(size, window, stride, before, after, dilation, ceil):
    """Slide the window and count, as the definition has it."""
    last_tap = (window - 1) * dilation
    count, start = 0, -before
    while start + last_tap < size + after:
        count, start = count + 1, start + stride
    # One more, overhanging, if something was left over and it begins inside the image or the padding before.
    left_over = count and (start - stride + last_tap) != size + after - 1
    if ceil and left_over and start < size:
        count += 1
    return count


@given(
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(1, 4),
    st.booleans(),
)
def test_output_extent(size, window, stride, before, after, dilation, ceil):
    if ceil:  # a pool's padding is smaller than its window, and only a pool has ceil_mode
        before, after = (min(pad, window_span(window, dilation) - 1) for pad in (before, after))
    expected = count_by_hand(size, window, stride, before, after, dilation, ceil)
    if expected == 0:
        with pytest.raises(ShapeError, match="more than the padded image"):
            output_extent(size, window, stride, before, after, dilation, ceil)
    else:
        assert output_extent(size, window, stride, before, after, dilation, ceil) == expected


def test_window_span():
    assert [window_span(3, d) for d in (1, 2, 3)] == [3, 5, 7]
    assert window_span(1, 9) == 1


@pytest.mark.parametrize(
    "given, expected",
    [(0, (0, 0, 0, 0)), (2, (2, 2, 2, 2)), ((1, 2), (1, 1, 2, 2)), (((1, 2), (3, 4)), (1, 2, 3, 4)),
     ([[1, 2], [3, 4]], (1, 2, 3, 4)), (np.int64(3), (3, 3, 3, 3))],
)  # fmt: skip
def test_padding(given, expected):
    assert padding4(given) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        -1,
        1.0,
        "1",
        None,
        True,
        (1,),
        (1, 2, 3),
        ((1, 2), 3),
        ((1, 2), (3,)),
        ((1, -2), (3, 4)),
        ((1, 2, 3), (1, 2)),
        "same",
    ],
)
def test_padding_refused(wrong):
    with pytest.raises(OptionError, match="padding"):
        padding4(wrong)


ALEXNET = {  # the sizes that the 2012 network is known by
    "conv1": (Conv2d.of((1, 3, 224, 224), (96, 3, 11, 11), stride=4, padding=((0, 3), (0, 3))), 55),
    "caffe conv1": (Conv2d.of((1, 3, 227, 227), (96, 3, 11, 11), stride=4), 55),
    "owt conv1": (Conv2d.of((1, 3, 224, 224), (64, 3, 11, 11), stride=4, padding=2), 55),
    "pool1": (Pool2d.of((1, 96, 55, 55)), 27),
    "conv2": (Conv2d.of((1, 96, 27, 27), (256, 48, 5, 5), padding=2, groups=2), 27),
    "pool2": (Pool2d.of((1, 256, 27, 27)), 13),
    "conv3": (Conv2d.of((1, 256, 13, 13), (384, 256, 3, 3), padding=1), 13),
    "pool5": (Pool2d.of((1, 256, 13, 13)), 6),
}


@pytest.mark.parametrize("name", ALEXNET)
def test_alexnet_sizes(name):
    problem, extent = ALEXNET[name]
    assert problem.P == problem.Q == extent
    assert problem.shape("y")[2:] == (extent, extent)


def test_conv_numbers():
    g = Conv2d.of((2, 6, 9, 8), (4, 3, 3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), groups=2)
    assert (g.P, g.Q) == (4, 9)
    assert g.shapes == {
        "x": (2, 6, 9, 8), "dx": (2, 6, 9, 8), "w": (4, 3, 3, 2), "dw": (4, 3, 3, 2), "b": (4,), "db": (4,),
        "y": (2, 4, 4, 9), "dy": (2, 4, 4, 9),
    }  # fmt: skip
    assert g.flops("conv2d_fprop") == 2 * (2 * 4 * 4 * 9) * (3 * 3 * 2)
    assert g.reduction("conv2d_fprop") == 3 * 3 * 2 + 1
    assert g.reduction("conv2d_dgrad") == 2 * 3 * 2
    assert g.reduction("conv2d_wgrad") == 2 * 4 * 9
    assert g.bytes("x", "w") == 4 * (2 * 6 * 9 * 8 + 4 * 3 * 3 * 2)
    assert dataclasses.replace(g, dtype="bfloat16").bytes("b") == 8
    assert "groups 2" in str(g) and "pad (1, 0, 0, 2)" in str(g)
    assert not g.empty and Conv2d.of((0, 1, 3, 3), (1, 1, 3, 3)).empty


def test_argmax_is_as_small_as_it_can_be():
    for window, dtype in ((16, "uint8"), (17, "uint16"), (256, "uint16"), (257, "uint32")):
        assert Pool2d.of((1, 1, 300, 300), window=window).dtype_of("argmax") == dtype


def test_struct_has_every_number_in_order():
    g = Conv2d.of((2, 6, 9, 8), (4, 3, 3, 2), groups=2)
    struct = g.struct()
    assert struct.dtype.names == tuple(g.scalars())
    assert struct["P"][0] == g.P and struct["groups"][0] == 2
    assert all(struct.dtype[n] == np.int32 for n in struct.dtype.names)
    lrn = LRN.of((1, 2, 3, 4), alpha=0.5).struct()
    assert lrn["alpha"].dtype == np.float32 and lrn["alpha"][0] == 0.5
    assert Elementwise((2**33,)).struct()["size"][0] == 2**33
    with pytest.raises(ShapeError, match="32-bit"):
        LRN.of((1, 2**31, 1, 1)).struct()


def test_lrn_window():
    for size, reach in ((1, (0, 0)), (2, (0, 1)), (5, (2, 2)), (4, (1, 2))):
        g = LRN.of((1, 9, 2, 2), size=size)
        assert (g.behind, g.ahead) == reach and g.behind + g.ahead + 1 == size
    assert LRN.of((1, 1, 5, 5), size=3, region="within_channel").taps == 9


REFUSED = {
    "rank": lambda: Conv2d.of((1, 3, 8), (4, 3, 3, 3)),
    "no shape": lambda: Conv2d.of(7, (4, 3, 3, 3)),
    "channels": lambda: Conv2d.of((1, 4, 8, 8), (4, 3, 3, 3)),
    "groups of C": lambda: Conv2d.of((1, 3, 8, 8), (4, 1, 3, 3), groups=2),
    "groups of K": lambda: Conv2d.of((1, 4, 8, 8), (3, 2, 3, 3), groups=2),
    "zero groups": lambda: Conv2d.of((1, 4, 8, 8), (3, 2, 3, 3), groups=0),
    "no filters": lambda: Conv2d.of((1, 4, 8, 8), (0, 4, 3, 3)),
    "window too large": lambda: Conv2d.of((1, 3, 4, 9), (4, 3, 5, 5)),
    "dilated window too large": lambda: Conv2d.of((1, 3, 6, 6), (4, 3, 3, 3), dilation=3),
    "no stride": lambda: Conv2d.of((1, 3, 8, 8), (4, 3, 3, 3), stride=0),
    "negative stride": lambda: Conv2d.of((1, 3, 8, 8), (4, 3, 3, 3), stride=(1, -1)),
    "bool stride": lambda: Conv2d.of((1, 3, 8, 8), (4, 3, 3, 3), stride=True),
    "float stride": lambda: Conv2d.of((1, 3, 8, 8), (4, 3, 3, 3), stride=2.0),
    "no dilation": lambda: Conv2d.of((1, 3, 8, 8), (4, 3, 3, 3), dilation=0),
    "empty channel": lambda: Conv2d.of((1, 0, 8, 8), (4, 0, 3, 3)),
    "too many bytes": lambda: Conv2d.of((2**31, 2**20, 2**20, 8), (1, 2**20, 1, 1)),
    "pool of padding": lambda: Pool2d.of((1, 1, 8, 8), window=3, padding=3),
    "pool window": lambda: Pool2d.of((1, 1, 8, 8), window=0),
    "pool window beyond argmax": lambda: Pool2d.of((1, 1, 8, 8), window=2**16 + 1, padding=2**16),
    "lrn size": lambda: LRN.of((1, 1, 8, 8), size=0),
    "lrn k": lambda: LRN.of((1, 1, 8, 8), k=0),
    "lrn nan": lambda: LRN.of((1, 1, 8, 8), alpha=float("nan")),
    "lrn region": lambda: LRN.of((1, 1, 8, 8), region="channels"),
    "lrn groups": lambda: LRN.of((1, 3, 8, 8), groups=2),
    "linear": lambda: Linear.of((2, 3), (4, 5)),
    "linear rank": lambda: Linear.of((2, 3, 1), (4, 3)),
    "sum rank": lambda: ChannelSum.of((2, 3), 4),
    "softmax classes": lambda: SoftmaxXent.of((3, 0)),
    "losses of two dimensions": lambda: LossSummary.of((3, 1)),
    "pointwise bytes": lambda: Elementwise((2**62, 4)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises((ShapeError, OptionError)) as caught:
        REFUSED[name]()
    assert isinstance(caught.value, ConvkitError) and isinstance(caught.value, ValueError)
    assert len(str(caught.value)) > 20


def test_problems_are_values():
    a, b = (Conv2d.of((1, 3, 8, 8), (4, 3, 3, 3), stride=s) for s in (2, (2, 2)))
    assert a == b and hash(a) == hash(b) and a in {b}
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.N = 2
