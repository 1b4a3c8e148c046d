"""From a wrong kernel to the parameter at fault, and to the elements: planted kernels of many kinds."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from convkit import check
from convkit.check import check_these
from convkit.check.causes import cause
from convkit.check.elements import common, look
from convkit.check.verdicts import Verdict
from convkit.op import OPS
from convkit.ops import window
from convkit.registry import Implementation

RIGHT = {op: OPS[op].define for op in OPS}
KINDS: list[tuple[str, str, str, str, object, dict]] = []


def wrong(op: str, condition: str, elements: str = "", **declared):
    """Plant a function with what must be said of its failures: cause, and elements (regular expressions)."""

    def decorate(run):
        KINDS.append((op, run.__name__, condition, elements, run, declared))
        return run

    return decorate


def fitted(whole, y):
    """Copy what fits of one array into another of other extents."""
    common = tuple(slice(min(a, b)) for a, b in zip(whole.shape, y.shape, strict=True))
    y[...] = 0
    y[common] = whole[common]


# ---------------------------------------------------------------------------------------------------
# Kernels with a parameter at fault
# ---------------------------------------------------------------------------------------------------
@wrong("conv2d_fprop", "stride_h != stride_w")
def swaps_the_strides(g, x, w, b, y, relu):
    other = replace(g, stride_h=g.stride_w, stride_w=g.stride_h)
    whole = np.empty(other.shape("y"))
    RIGHT["conv2d_fprop"](other, x, w, b, whole, relu)
    fitted(whole, y)


@wrong("conv2d_fprop", r"dilation != 1")
def ignores_dilation(g, x, w, b, y, relu):
    tight = replace(g, dilation_h=1, dilation_w=1)
    whole = np.empty(tight.shape("y"))
    RIGHT["conv2d_fprop"](tight, x, w, b, whole, relu)
    fitted(whole, y)


@wrong("conv2d_fprop", r"groups != 1")
def reads_the_first_group_for_all(g, x, w, b, y, relu):
    first = x[:, : g.C // g.groups]
    RIGHT["conv2d_fprop"](g, np.concatenate([first] * g.groups, axis=1), w, b, y, relu)


@wrong("conv2d_fprop", r"pad_top != pad_bottom|padding that differs")
def swaps_top_and_bottom(g, x, w, b, y, relu):
    other = replace(g, pad_top=g.pad_bottom, pad_bottom=g.pad_top)
    RIGHT["conv2d_fprop"](other, x, w, b, y, relu)


@wrong("conv2d_fprop", r"N (> 4|>= 5)", r"images from 4 on .*image index % 4")
def wraps_at_four_images(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x[np.arange(g.N) % 4], w, b, y, relu)


@wrong("conv2d_fprop", r"K odd", r"the last channel .*are 0")
def drops_the_last_of_an_odd_number_of_filters(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    if g.K % 2:
        y[:, -1] = 0


@wrong("conv2d_fprop", r"with b given")
def forgets_the_bias(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, None, y, relu)


@wrong("conv2d_fprop", r"with relu", r"elements that should be 0")
def forgets_relu(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, False)


@wrong("conv2d_fprop", r"a window of more than one tap")
def mirrors_the_window(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w[:, :, ::-1, ::-1], b, y, relu)


@wrong("conv2d_wgrad", r"N != 1|N > 1")
def takes_the_last_image_for_the_sum(g, x, dy, dw):
    RIGHT["conv2d_wgrad"](replace(g, N=1), x[-1:], dy[-1:], dw)


@wrong("relu_fprop", r"size a multiple of 256", r"the last block of 256")
def drops_the_last_block_where_it_is_full(g, x, y):
    RIGHT["relu_fprop"](g, x, y)
    if g.size and g.size % 256 == 0:
        y.reshape(-1)[-256:] = -1


@wrong("relu_fprop", r"size (>|>=) 6553[67]", r"elements from 65536 on")
def has_too_small_a_grid(g, x, y):
    RIGHT["relu_fprop"](g, x, y)
    y.reshape(-1)[65536:] = -1


@wrong("relu_fprop", r"NaN in the data", r"elements that should be NaN .*are 0")
def swallows_nan(g, x, y):
    np.fmax(x, 0, out=y)


@wrong("relu_dgrad", r"^only with dx in place of y: ", dtypes=("float32",))
def writes_before_it_reads(g, dy, y, dx):
    dx[...] = dy
    np.copyto(dx, 0, where=y <= 0)


@wrong("relu_fprop", "^only with arrays aligned to one element alone: ", "the first element")
def trusts_alignment(g, x, y):
    RIGHT["relu_fprop"](g, x, y)
    if x.ctypes.data % 64:
        y.reshape(-1)[:1] += 1


@wrong("relu_dgrad", r"zeros in the data")
def passes_the_gradient_at_zero(g, dy, y, dx):
    dx[...] = np.where(y < 0, 0, dy)


@wrong("lrn_fprop", r"beta != 0\.75", "all elements")
def knows_one_beta(g, x, y):
    RIGHT["lrn_fprop"](replace(g, beta=0.75), x, y)


@wrong("lrn_fprop", r"\bk != 1", "all elements")
def knows_one_k(g, x, y):
    RIGHT["lrn_fprop"](replace(g, k=1.0), x, y)


@wrong("lrn_fprop", r"size != 1")
def does_not_divide_alpha(g, x, y):
    RIGHT["lrn_fprop"](replace(g, alpha=g.alpha * g.taps), x, y)


@wrong("lrn_fprop", r"C > 32|C >= 33", r"channels from 32 on")
def has_32_threads_for_channels(g, x, y):
    RIGHT["lrn_fprop"](g, x, y)
    y[:, 32:] = 0


@wrong("maxpool2d_fprop", r"equal values in the data", r"y is right\nargmax is wrong")
def takes_the_last_of_equals(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, x, y, argmax)
    for r, s, windows, pixels in window.seen(g):
        np.copyto(argmax[windows], r * g.S + s, where=x[pixels] == y[windows])


@wrong("maxpool2d_fprop", r"minus_inf|infinities in the data", "elements that should be infinite")
def begins_at_the_smallest_number(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, x, y, argmax)
    y[y == -np.inf] = -3.4e38


@wrong("maxpool2d_fprop", r"ceil_mode", "the last (row|column)")
def leaves_out_the_window_beyond_the_edge(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, x, y, argmax)
    rows, columns = (replace(g, ceil_mode=False).P, replace(g, ceil_mode=False).Q)
    for out in (y, argmax):
        out[:, :, rows:] = 77
        out[..., columns:] = 77


@wrong("avgpool2d_fprop", r"count_include_pad and padding|padding and count_include_pad", "the border")
def never_counts_the_padding(g, x, y):
    RIGHT["avgpool2d_fprop"](replace(g, count_include_pad=False), x, y)


@wrong("linear_fprop", r"dtype float16", dtypes=("float32", "float16"))
def accumulates_in_16_bits(g, x, w, b, y, relu):
    RIGHT["linear_fprop"](g, x, w, b, y, relu)
    if y.dtype == np.float16:
        total = np.zeros(y.shape, np.float16)
        for c in range(g.C):
            total += x[:, c, None] * w[:, c]
        total += 0 if b is None else b
        y[...] = np.maximum(total, 0) if relu else total


@wrong("conv2d_fprop", r"relu and NaN or infinities in the data|NaN or infinities in the data and relu")
def swallows_nan_in_relu(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, False)
    if relu:
        np.fmax(y, 0, out=y)


@wrong("conv2d_fprop", r"b given and K (> 16|>= 24)", "channels from 16 on")
def has_sixteen_biases(g, x, w, b, y, relu):
    few = None if b is None else b[np.arange(g.K) % 16]
    RIGHT["conv2d_fprop"](g, x, w, few, y, relu)


@wrong(
    "conv2d_fprop", r"gives wrong values in every case with H > W.*raises in every case with dilation != 1"
)
def takes_the_width_for_the_height(g, x, w, b, y, relu):
    if (g.R > 1 and g.dilation_h > 1) or (g.S > 1 and g.dilation_w > 1):
        raise IndexError("beyond the window")
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    if g.H > g.W:
        y -= 1


@wrong("sgd_momentum", r"with nesterov", "v_new is right")
def ignores_nesterov(g, w, dw, v, w_new, v_new, **options):
    RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **{**options, "nesterov": False})


@wrong("sgd_momentum", r"finite=\[0\]")
def ignores_the_flag(g, w, dw, v, w_new, v_new, *, finite=None, **options):
    RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **options)


@wrong("dropout_fprop", r"seed >= ")
def forgets_the_high_word_of_the_seed(g, x, y, p, seed, offset, scale):
    RIGHT["dropout_fprop"](g, x, y, p, seed & 0xFFFFFFFF, offset, scale)


@pytest.mark.parametrize("op, name, condition, elements, run, declared", KINDS, ids=[k[1] for k in KINDS])
def test_the_verdict_names_the_parameter(op, name, condition, elements, run, declared):
    implementation = Implementation(op, name, run, **{"dtypes": ("float32",), **declared})
    verdicts = check_these([implementation], quick=True, seed=1)
    found = cause(verdicts)
    assert re.search(condition, found.text), found
    lines = "\n".join(common(v.places for v in verdicts if not v.ok))
    assert re.search(elements, lines, re.DOTALL), lines
    assert found.text in " ".join(check.blocks(verdicts).split())


def test_there_are_twenty_kinds():
    assert len(KINDS) >= 20


def test_a_condition_that_does_not_separate_is_given_with_its_counts():
    """It is enough for a failure, or needed for one, or neither."""

    def said(failing):
        facts = [
            {"groups": 1 + (n % 3 == 0), "relu": bool(n % 2), "case": "a", "data": "normal"}
            for n in range(60)
        ]
        verdicts = [
            Verdict("conv2d_fprop", "mine", "a", "float32", n not in failing, facts=f)
            for n, f in enumerate(facts)
        ]
        return cause(verdicts).text

    grouped = set(range(0, 60, 3))
    few = "fails only with groups != 1: in 17 of 20 such cases, in none of the 40 others"
    assert said(grouped - {3, 12, 30}) == few
    more = "fails in every case with groups != 1 (20 of 20), and in 3 of 40 others"
    assert said(grouped | {1, 4, 20}) == more
    mixed = "fails mostly with groups != 1: in 19 of 20 such cases, in 1 of 40 others"
    assert said((grouped | {1}) - {3}) == mixed


def test_nothing_is_said_of_failures_without_anything_in_common():
    rng = np.random.default_rng(3)
    good = Implementation("relu_fprop", "mine", RIGHT["relu_fprop"])
    verdicts = check_these([good], quick=True, seed=1)
    assert cause(verdicts).text == ""
    chosen = [replace(v, ok=bool(rng.random() < 0.6)) for v in verdicts]
    found = cause(chosen)
    assert not found.exact and re.match(
        r"fails in \d+ of \d+ cases, which no one parameter tells", found.text
    )


def test_one_case_alone_is_named():
    def run(g, x, y):
        RIGHT["relu_fprop"](g, x, y)
        if y.shape == (2, 3, 5, 7):
            y[1, 2, 3, 4] += 1

    verdicts = check_these([Implementation("relu_fprop", "mine", run)], quick=True, seed=1)
    assert re.match(r"fails in 1 of \d+ cases alone: four axes", cause(verdicts).text)
    (place,) = next(v for v in verdicts if not v.ok).places
    assert str(place) == "y is wrong in one element (1 of 210)"


# ---------------------------------------------------------------------------------------------------
# Elements
# ---------------------------------------------------------------------------------------------------
SHAPE = (3, 8, 9, 9)
WANTED = np.random.default_rng(0).standard_normal(SHAPE)


def spoiled(where, value=None):
    got = WANTED.copy()
    got[where] = got[where] + 1.5 if value is None else value
    return look("y", got, WANTED, got != WANTED)


EVERY = slice(None)


@pytest.mark.parametrize(
    "where, words",
    [
        ((EVERY,), "all elements"),
        ((EVERY, EVERY, -1), "the last row"),
        ((EVERY, EVERY, EVERY, 0), "the first column"),
        ((EVERY, 4), "channel 4"),
        ((EVERY, slice(5, None)), "channels from 5 on"),
        ((EVERY, slice(1, None, 3)), "every 3rd channel from 1 on"),
        ((2,), "the last image"),
        ((slice(2),), "the first 2 images"),
        ((EVERY, EVERY, slice(3, 5)), "rows 3 to 4"),
        ((EVERY, EVERY, [0, 8]), "the first and the last row"),
        ((0, EVERY, 8), "the last row of the first image"),
        ((2, 7, 8, 8), "the last element"),
        ((1, 2, 3, 4), "one element"),
    ],
)
def test_places(where, words):
    assert spoiled(where).where[0] == words


def test_places_that_have_two_names():
    """Which of them holds in other cases too is for those to say."""
    place = spoiled((EVERY, slice(6, None)))
    assert place.where == ("channels from 6 on", "the last 2 channels")
    other = np.zeros((2, 4, 2, 2), bool)
    other[:, 2:] = True
    places = [place, look("y", np.zeros(other.shape), None, other)]
    assert "the last 2 channels (2 of 2 failing cases)" in common([[p] for p in places])[0]


def test_the_border():
    wrong = np.ones(SHAPE, bool)
    wrong[:, :, 2:-2, 2:-2] = False
    assert look("y", WANTED, None, wrong).where == ("the border of width 2",)
    wrong[:, :, :-1, :-1] = False
    wrong[:, :, -1] = wrong[..., -1] = True
    assert look("y", WANTED, None, wrong).where == ("the last row and the last column",)


@pytest.mark.parametrize(
    "where, words",
    [
        (slice(512, None), "elements from 512 on, a multiple of 512"),
        (slice(1792, None), "the last block of 256"),
        (slice(100, None), "elements from 100 on"),
        (slice(0, 77), "the first 77 elements"),
        (slice(40, 90), "elements 40 to 89"),
        (slice(3, None, 4), "every 4th element from 3 on"),
    ],
)
def test_places_in_memory(where, words):
    wrong = np.zeros(1944, bool)
    wrong[where] = True
    assert words in look("y", np.zeros(1944), None, wrong).where


@pytest.mark.parametrize(
    "got, words",
    [
        (WANTED * 2, "which are 2 times what they should be"),
        (WANTED / 2, "which are 0.5 times what they should be"),
        (-WANTED, "which have the wrong sign"),
        (WANTED + 0.25, "which are 0.25 too large"),
        (WANTED * 0, "which are 0"),
        (WANTED * np.nan, "which are NaN"),
        (WANTED * 0 + 7, "which all hold 7"),
        (WANTED.swapaxes(2, 3), "which hold the right answer with rows and columns exchanged"),
        (WANTED[:, :, ::-1], "which hold the right answer with its rows in reverse"),
        (np.roll(WANTED, 1, 3), "which hold the right answer, shifted by 1 column"),
        (np.roll(WANTED, -2, 1), "which hold the right answer, shifted by 2 channels"),
        (WANTED[[0, 0, 0]], "which hold the right answer of the first image"),
        (WANTED[:, np.arange(8) % 4], "which hold the right answer of channel index % 4"),
        (np.random.default_rng(1).standard_normal(SHAPE), ""),
    ],
)
def test_values(got, words):
    assert look("y", got.astype(np.float32), WANTED, ~(np.abs(got - WANTED) <= 1e-6)).values == words


def test_small_errors_are_told_from_wrong_ones():
    half = WANTED.astype(np.float16).astype(np.float32)
    place = look("y", half, WANTED, np.abs(half - WANTED) > 1e-6)
    assert "16-bit or TF32 arithmetic" in place.values
    assert "float32 arithmetic" in look("y", WANTED.astype("f4").astype("f8"), WANTED, WANTED != 0).values


def test_every_wrong_output_is_reported():
    """A wrong maximum comes with a wrong argmax, and the maximum is what one looks at."""

    def run(g, x, y, argmax):
        RIGHT["maxpool2d_fprop"](g, -x, y, argmax)

    case = next(c for c in check.cases("maxpool2d_fprop") if c.name == "overlap")
    verdict = check.judge(Implementation("maxpool2d_fprop", "mine", run), check.Question.of(case, "float32"))
    first, second = verdict.reason.splitlines()
    assert first.startswith("y[") and second.startswith("argmax[")
    assert [p.output for p in verdict.places] == ["y", "argmax"] and all(p.wrong for p in verdict.places)


# ---------------------------------------------------------------------------------------------------
# Reasons that must not mislead
# ---------------------------------------------------------------------------------------------------
def reason_of(op, run, name, **declared):
    case = next(c for c in check.cases(op) if c.name == name)
    verdict = check.judge(Implementation(op, "mine", run, **declared), check.Question.of(case, "float32"))
    assert not verdict.ok
    return verdict.reason


def test_what_ignores_its_inputs_keeps_no_result():
    def counts(g, x, w, b, y, relu):
        y[...] = np.arange(y.size).reshape(y.shape) + 1

    assert "(it does not depend on its inputs: others give the same result)" in reason_of(
        "conv2d_fprop", counts, "primes"
    )


def test_a_kept_result_is_told_from_that():
    kept = {}

    def keeps(g, x, w, b, y, relu):
        if g not in kept:
            RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
            kept[g] = y.copy()
        y[...] = kept[g]

    assert "(it is the result of an earlier call, on other inputs)" in reason_of(
        "conv2d_fprop", keeps, "primes"
    )


NOISE = np.random.default_rng(0)


def whole(array):
    """All the memory in which an array lies."""
    while array.base is not None:
        array = array.base
    return array


@pytest.mark.parametrize("write", [True, False])
def test_an_access_far_outside_is_not_chance(write):
    """It hits whatever is there, so that results come and go; wider bands show it."""

    def strays(g, x, y):
        RIGHT["relu_fprop"](g, x, y)
        memory, array = whole(y if write else x), y if write else x
        at = array.ctypes.data - memory.ctypes.data + array.nbytes + 100_000
        if at >= memory.nbytes:
            y.reshape(-1)[:1] += NOISE.random()
        elif write:
            memory[at] = 1
        else:
            y.reshape(-1)[:1] += memory[at]

    expected = "wrote outside its output y: 1 bytes past its end, the nearest 100001 bytes away"
    assert reason_of("relu_fprop", strays, "seven").startswith(
        expected if write else "reads far outside its inputs: y[0] is "
    )
