"""Average pooling: the definition against loops and PyTorch, edges, and wrong input."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit.registry import implementations

RNG = np.random.default_rng(7)
NAMES = [i.name for i in implementations("avgpool2d_fprop", device="cpu")]


def by_loops(x, R, S, stride, pads, dilation, shape, count_include_pad):
    """The definition, a window and a tap at a time."""
    (top, bottom), (left, right) = pads
    N, C, H, W = x.shape
    y = np.zeros((N, C, *shape))
    for p in range(shape[0]):
        for q in range(shape[1]):
            taps = 0
            for r in range(R):
                for s in range(S):
                    h, w = p * stride[0] + r * dilation[0] - top, q * stride[1] + s * dilation[1] - left
                    inside = 0 <= h < H and 0 <= w < W
                    padded = -top <= h < H + bottom and -left <= w < W + right
                    taps += inside or (count_include_pad and padded)
                    if inside:
                        y[:, :, p, q] += x[:, :, h, w]
            y[:, :, p, q] /= max(taps, 1)
    return y


@pytest.mark.parametrize("impl", NAMES)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_against_loops(impl, ceil_mode, count_include_pad):
    for _ in range(30):
        (R, S), (H, W) = RNG.integers(1, 5, 2), RNG.integers(5, 12, 2)
        stride, dilation = tuple(RNG.integers(1, 4, 2).tolist()), tuple(RNG.integers(1, 3, 2).tolist())
        limits = (R - 1) * dilation[0], (S - 1) * dilation[1]
        pads = tuple(tuple(RNG.integers(0, limit + 1, 2).tolist()) for limit in limits)
        x = RNG.standard_normal((2, 3, int(H), int(W)))
        options = {
            "window": (int(R), int(S)), "stride": stride, "padding": pads, "dilation": dilation,
            "ceil_mode": ceil_mode, "count_include_pad": count_include_pad,
        }  # fmt: skip
        try:
            y = ck.avgpool2d_fprop(x, **options, impl=impl)
        except ck.ShapeError:
            continue
        wanted = by_loops(x, R, S, stride, pads, dilation, y.shape[2:], count_include_pad)
        np.testing.assert_allclose(y, wanted, rtol=1e-12, atol=1e-12)
        # The gradient is the transposed map: <A x, dy> = <x, A' dy>.
        dy = RNG.standard_normal(y.shape)
        dx = ck.avgpool2d_dgrad(dy, x.shape, **options, impl=impl)
        np.testing.assert_allclose((y * dy).sum(), (x * dx).sum(), rtol=1e-10, atol=1e-10)


def test_as_pytorch_has_it():
    torch = need("torch")
    for k, s, p in ((2, 2, 0), (3, 2, 1), (3, 1, 1), ((2, 3), (3, 2), (1, 1)), (5, 3, 2)):
        for ceil_mode in (False, True):
            for count in (False, True):
                x = RNG.standard_normal((2, 4, 9, 11)).astype(np.float32)
                t = torch.tensor(x, requires_grad=True)
                wanted = torch.nn.functional.avg_pool2d(t, k, s, p, ceil_mode, count)
                options = {"window": k, "stride": s, "padding": p, "ceil_mode": ceil_mode}
                y = ck.avgpool2d_fprop(x, **options, count_include_pad=count)
                np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-5, atol=1e-6)
                dy = RNG.standard_normal(y.shape).astype(np.float32)
                wanted.backward(torch.tensor(dy))
                dx = ck.avgpool2d_dgrad(dy, x.shape, **options, count_include_pad=count)
                np.testing.assert_allclose(dx, t.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", NAMES)
def test_what_counts(impl):
    """A corner window of ones with a pad on two sides: 4 of 9 taps see the image."""
    x = np.ones((1, 1, 4, 4), np.float32)
    counted = ck.avgpool2d_fprop(x, padding=1, impl=impl)
    assert counted[0, 0, 0, 0] == np.float32(4 / 9)
    assert (ck.avgpool2d_fprop(x, padding=1, count_include_pad=False, impl=impl) == 1).all()
    # Two taps wholly in the padding, and none elsewhere.
    empty = ck.avgpool2d_fprop(
        x[..., :1, :1], window=2, dilation=3, stride=3, padding=((2, 2), (2, 2)), count_include_pad=False,
        impl=impl,
    )  # fmt: skip
    assert np.array_equal(empty, np.zeros_like(empty))


@pytest.mark.parametrize("impl", NAMES)
def test_nan_and_infinity_reach_what_sees_them(impl):
    x = np.zeros((1, 1, 6, 6), np.float32)
    x[0, 0, 0, 0], x[0, 0, 5, 5] = np.nan, np.inf
    y = ck.avgpool2d_fprop(x, window=2, stride=2, impl=impl)[0, 0]
    assert np.isnan(y[0, 0]) and np.isinf(y[2, 2]) and np.isfinite(y).sum() == 7


def test_results_have_the_same_bits_on_any_number_of_threads(monkeypatch):
    x = RNG.standard_normal((4, 40, 31, 33)).astype(np.float32)
    found = set()
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("CONVKIT_NUM_THREADS", threads)
        found.add(ck.avgpool2d_fprop(x, padding=1).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"padding": 3}, ck.OptionError, "smaller than the window's span"),
        ({"window": 0}, ck.OptionError, "window must be at least 1"),
        ({"window": 30}, ck.ShapeError, "more than the padded image"),
        ({"count_include_pad": "no"}, ck.OptionError, "count_include_pad must be True or False"),
        ({"count_include_pad": 2}, ck.OptionError, "count_include_pad must be True or False"),
        ({"stride": (1, 2, 3)}, ck.OptionError, "stride must be an int or a pair"),
        ({"impl": "nothing"}, ck.OptionError, "unknown implementation of avgpool2d_fprop"),
    ],
    ids=str,
)
def test_wrong_input_is_refused(options, error, words):
    with pytest.raises(error, match=words) as raised:
        ck.avgpool2d_fprop(np.zeros((1, 2, 8, 8), np.float32), **options)
    assert "avgpool2d_fprop" in str(raised.value)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ck.ShapeError, match="dy must have shape"):
        ck.avgpool2d_dgrad(np.zeros((1, 2, 4, 4), np.float32), (1, 2, 8, 8))
    with pytest.raises(ck.ShapeError, match="4 dimensions"):
        ck.avgpool2d_fprop(np.zeros((2, 8, 8), np.float32))
