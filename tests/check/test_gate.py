"""The gate: what is shipped passes, and no bad kernel does, each for the right reason."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from blocks import BLOCKED, block, unblock

from convkit import check
from convkit.check import check_these, tolerance
from convkit.cli import check as command
from convkit.errors import OptionError
from convkit.op import OPS
from convkit.ops import avgpool2d, window
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.conv2d import Conv2d
from convkit.ops.crop_images import places as crop_places
from convkit.ops.linear import Linear
from convkit.ops.lrn import window_sum
from convkit.ops.philox import words
from convkit.registry import ALL_DTYPES, Implementation, implementations

#: In users' layout; test_conv_native and test_memory_native put the others through the gate.
SHIPPED = [
    i for i in implementations(device="cpu") if i.source.startswith(check.__file__.rpartition("check")[0])
]


@pytest.mark.parametrize("implementation", SHIPPED, ids=lambda i: f"{i.op}-{i.name}")
def test_shipped_pass(implementation):
    verdicts = check_these([implementation], quick=True)
    failed = [str(v) for v in verdicts if not v.ok]
    assert not failed, "\n".join(failed[:5])


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_shipped_pass_in_full(op):
    seed = int(os.environ.get("CONVKIT_GATE_SEED", "0"))  # a run that fails must fail again
    failed = [str(v) for v in check.check(op, seed=seed) if not v.ok]
    assert not failed, "\n".join(failed[:5])


def test_every_op_has_cases():
    for op in OPS:
        found = list(check.cases(op))
        assert len(found) >= 12, op
        assert any(c.problem.empty or getattr(c.problem, "N", 1) == 0 for c in found), op
        assert {"nan", "ties", "constant"} <= {c.fill for c in found}, op
        for option in OPS[op].options:
            assert len({c.options.get(option) for c in found}) > 1, f"{op} {option} never changes"
        for name in OPS[op].optional:
            assert {name in c.absent for c in found} == {True, False}


def test_random_cases_repeat():
    for op in OPS:
        one, two = (list(check.random_cases(op, 20, seed=3)) for _ in range(2))
        assert one == two
        assert len({c.problem for c in one}) > 8
        assert one != list(check.random_cases(op, 20, seed=4))


# ---------------------------------------------------------------------------------------------------
# Planted bad kernels
# ---------------------------------------------------------------------------------------------------
BAD: list[tuple[str, str, str, object, dict]] = []
RIGHT = {op: OPS[op].define for op in OPS}


def bad(op: str, reason: str, **declared):
    """Plant a function as an implementation that must fail, with a reason that matches."""

    def decorate(run):
        BAD.append((op, run.__name__, reason, run, declared))
        return run

    return decorate


VALUE = r"^\w+\[[\d, ]*\] is .*, expected .*off by .*elements are wrong"
LOST = r"expected NaN: a NaN \(or infinity\) of the inputs is lost"


@bad("conv2d_fprop", VALUE)
def returns_zeros(g, x, w, b, y, relu):
    y[...] = 0


@bad("conv2d_fprop", r"y\[[\d, ]*\] is NaN, expected")
def returns_nan(g, x, w, b, y, relu):
    y[...] = np.nan


@bad("conv2d_fprop", "did not write y.*; 1 of")
def leaves_one_element(g, x, w, b, y, relu):
    whole = np.empty_like(y)
    RIGHT["conv2d_fprop"](g, x, w, b, whole, relu)
    y.reshape(-1)[:-1] = whole.reshape(-1)[:-1]


@bad("conv2d_fprop", r"did not write y\[0, 0, 0, 0\]")
def returns_instead_of_writing(g, x, w, b, y, relu):
    return np.zeros_like(y)


@bad("conv2d_fprop", r"wrote outside its output y: \d+ bytes past its end, the nearest \d bytes away")
def writes_past_the_end(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    ctypes.memset(y.ctypes.data + y.nbytes, 0, 4)


@bad("relu_fprop", "wrote outside its output y: 8 bytes before its start, the nearest 4089 bytes away")
def writes_before_the_start(g, x, y):
    RIGHT["relu_fprop"](g, x, y)
    ctypes.memset(y.ctypes.data - 4096, 0, 8)


@bad("relu_fprop", "wrote outside its input x")
def writes_behind_its_input(g, x, y):
    RIGHT["relu_fprop"](g, x, y)
    ctypes.memset(x.ctypes.data + x.nbytes, 0, 1)


@bad("relu_fprop", "changed its input x")
def changes_its_input(g, x, y):
    RIGHT["relu_fprop"](g, x, y)
    if x.ctypes.data != y.ctypes.data:
        ctypes.memset(x.ctypes.data, 1, x.itemsize)


@bad("relu_fprop", r"raised ValueError: .*read-only .*test_gate.py:\d+")
def writes_to_its_read_only_input(g, x, y):
    x *= 1
    RIGHT["relu_fprop"](g, x, y)


def keeper(key):
    kept = {}

    def run(g, x, w, b, y, relu):
        k = key(g, x, relu, b is None)
        if k not in kept:
            RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
            kept[k] = y.copy()
        y[...] = kept[k]

    return run


KEEPS_BY_SHAPE = keeper(lambda *k: (k[0], *k[2:]))
KEEPS_BY_ADDRESS = keeper(lambda *k: (k[0], k[1].ctypes.data, *k[2:]))


@bad("conv2d_fprop", VALUE + r" \(it is the result of an earlier call, on other inputs\)")
def keeps_its_result_by_shape(g, x, w, b, y, relu):
    KEEPS_BY_SHAPE(g, x, w, b, y, relu)


@bad("conv2d_fprop", "depends on an earlier call|earlier call, on other inputs|not deterministic")
def keeps_its_result_by_address(g, x, w, b, y, relu):
    KEEPS_BY_ADDRESS(g, x, w, b, y, relu)


NOISE = np.random.default_rng(0)


@bad("conv2d_fprop", "is not deterministic: the same inputs gave different results")
def adds_noise(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    y *= 1 + 1e-7 * NOISE.standard_normal(y.shape)


@bad("conv2d_wgrad", r"is NaN|depends on what its outputs hold before")
def adds_to_its_output(g, x, dy, dw):
    fresh = np.empty_like(dw)
    RIGHT["conv2d_wgrad"](g, x, dy, fresh)
    dw += fresh


@bad("conv2d_fprop", VALUE)
def drops_one_tap(g, x, w, b, y, relu):
    w = w.copy()
    w[:, :, -1, -1] = 0
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)


@bad("conv2d_fprop", VALUE)
def drops_one_term_of_one_output(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    lesser = w.copy()
    lesser[-1, -1, -1, -1] = 0
    less = np.empty_like(y)
    RIGHT["conv2d_fprop"](g, x, lesser, b, less, relu)
    y[-1, -1, -1, -1] = less[-1, -1, -1, -1]


@bad("conv2d_fprop", VALUE)
def counts_one_channel_twice(g, x, w, b, y, relu):
    w = w.copy()
    w[:, -1] *= 2
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)


@bad("conv2d_fprop", VALUE)
def pads_one_row_too_far(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, np.roll(x, 1, axis=2) if g.pad_top else x, w, b, y, relu)


@bad("conv2d_fprop", VALUE)
def takes_all_padding_for_that_of_the_top(g, x, w, b, y, relu):
    shift = g.pad_top - g.pad_left
    RIGHT["conv2d_fprop"](g, np.roll(x, shift, axis=3), w, b, y, relu)


@bad("conv2d_fprop", VALUE)
def ignores_the_bias(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, None, y, relu)


@bad("conv2d_fprop", "raised TypeError: 'NoneType'")
def needs_the_bias(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, None, y)
    y += b[None, :, None, None]
    np.maximum(y, 0 if relu else -np.inf, out=y)


@bad("conv2d_fprop", VALUE)
def ignores_relu(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, False)


@bad("conv2d_fprop", VALUE)
def adds_the_bias_after_relu(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, None, y, relu)
    if b is not None:
        y += b[:, None, None]


@bad("conv2d_fprop", VALUE)
def ignores_dilation(g, x, w, b, y, relu):
    tight = replace(g, dilation_h=1, dilation_w=1)
    whole = np.empty(tight.shape("y"), y.dtype)
    RIGHT["conv2d_fprop"](tight, x, w, b, whole, relu)
    y[...] = whole[:, :, : g.P, : g.Q]


@bad("conv2d_fprop", VALUE)
def takes_the_first_group_for_all(g, x, w, b, y, relu):
    c = g.C // g.groups
    RIGHT["conv2d_fprop"](g, np.concatenate([x[:, :c]] * g.groups, axis=1), w, b, y, relu)


@bad("conv2d_fprop", VALUE)
def convolves_instead_of_correlating(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w[:, :, ::-1, ::-1], b, y, relu)


@bad("conv2d_fprop", VALUE + "|is inf")
def accumulates_in_float16(g, x, w, b, y, relu):
    total = np.zeros(y.shape, np.float16)
    if b is not None:
        total += b.astype(np.float16)[:, None, None]
    one = g.C // g.groups
    for c in range(one):
        part = np.empty(y.shape)
        channels = np.arange(g.C).reshape(g.groups, one)[:, c]
        RIGHT["conv2d_fprop"](replace(g, C=g.groups), x[:, channels], w[:, c : c + 1], None, part)
        total += part.astype(np.float16)
    y[...] = np.maximum(total, 0) if relu else total


@bad("conv2d_fprop", VALUE + "|relative RMS")
def rounds_its_inputs_to_tf32(g, x, w, b, y, relu):
    def tf32(a):
        return ((a.astype(np.float32).view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)

    RIGHT["conv2d_fprop"](g, tf32(x), tf32(w), b, y, relu)


@bad("conv2d_fprop", VALUE, dtypes=("float16", "bfloat16"))
def accumulates_in_the_storage_type(g, x, w, b, y, relu):
    total = np.zeros(y.shape, y.dtype)
    one = g.C // g.groups
    for c in range(one):
        part = np.empty(y.shape)
        channels = np.arange(g.C).reshape(g.groups, one)[:, c]
        RIGHT["conv2d_fprop"](replace(g, C=g.groups), x[:, channels], w[:, c : c + 1], None, part)
        total += part.astype(y.dtype)
    if b is not None:
        total += b[:, None, None]
    y[...] = np.maximum(total, 0) if relu else total


@bad("linear_fprop", VALUE, dtypes=("float64",))
def computes_float64_in_float32(g, x, w, b, y, relu):
    y[...] = x.astype(np.float32) @ w.astype(np.float32).T
    y += 0 if b is None else b
    if relu:
        np.maximum(y, 0, out=y)


@bad("conv2d_fprop", "declines|the relative RMS error of y is|" + VALUE, error=1e-5)
def is_less_exact_than_it_declares(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    y *= 1 + 5e-5 * np.cos(np.arange(y.size)).reshape(y.shape)


@bad("conv2d_fprop", "reads outside its inputs", dtypes=("float32",))
def reads_behind_its_input(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    behind = np.lib.stride_tricks.as_strided(x, (x.size + 1,), (x.itemsize,))
    y.reshape(-1)[-1] += np.float32(0) * behind[-1] if np.isnan(behind[-1]) else behind[-1]


@bad("maxpool2d_fprop", "reads outside its inputs", dtypes=("float32",))
def reads_a_neighbour_as_a_candidate(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, x, y, argmax)
    behind = np.lib.stride_tricks.as_strided(x, (x.size + 1,), (x.itemsize,))
    y.reshape(-1)[-1] = np.fmax(y.reshape(-1)[-1], behind[-1])


@bad("conv2d_fprop", "raised ZeroDivisionError: .*test_gate.py")
def raises(g, x, w, b, y, relu):
    _ = 1 // 0


@bad("conv2d_fprop", "raised SystemExit")
def exits(g, x, w, b, y, relu):
    raise SystemExit(3)


@bad("conv2d_fprop", "its `when` or `missing` raised KeyError", when=lambda g: {}["nothing"])
def asks_wrongly(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)


@bad("conv2d_fprop", "wrote outside its workspace of 8 bytes", workspace=lambda g: 8)
def overruns_its_workspace(g, x, w, b, y, relu, workspace):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    ctypes.memset(workspace.ctypes.data, 0, 12)


@bad("linear_bgrad", "depends on what its workspace holds before|is NaN", workspace=lambda g: 8)
def trusts_its_workspace_to_be_zero(g, dy, db, workspace):
    RIGHT["linear_bgrad"](g, dy, db)
    db += workspace.view(np.float64)[0] * 1e-100


@bad("relu_fprop", "depends on the alignment")
def depends_on_alignment(g, x, y):
    RIGHT["relu_fprop"](g, x, y)
    if x.ctypes.data % 64:
        y.reshape(-1)[:1] += 1


@bad("conv2d_dgrad", VALUE)
def runs_the_first_image_alone(g, dy, w, dx):
    RIGHT["conv2d_dgrad"](g, dy, w, dx)
    dx[1:] = dx[:1]


@bad("conv2d_dgrad", VALUE)
def forgets_rows_that_no_window_ends_in(g, dy, w, dx):
    RIGHT["conv2d_dgrad"](g, dy, w, dx)
    dx[:, :, (g.P - 1) * g.stride_h + 1 :] = 0


@bad("conv2d_wgrad", VALUE)
def takes_the_last_image_for_the_sum(g, x, dy, dw):
    RIGHT["conv2d_wgrad"](replace(g, N=1), x[-1:], dy[-1:], dw)


@bad("conv2d_bgrad", VALUE)
def averages_instead_of_summing(g, dy, db):
    RIGHT["conv2d_bgrad"](g, dy, db)
    db /= g.N


@bad("relu_fprop", LOST)
def swallows_nan(g, x, y):
    np.fmax(x, 0, out=y)


@bad("relu_fprop", r"expected", dtypes=("float32",))
def is_a_leaky_relu(g, x, y):
    y[...] = np.where(x < 0, np.float32(1e-6) * x, x)


@bad("relu_dgrad", r"expected 0")
def passes_the_gradient_at_zero(g, dy, y, dx):
    dx[...] = np.where(y < 0, 0, dy)


@bad("relu_dgrad", LOST + "|is 0, expected")
def multiplies_by_a_mask(g, dy, y, dx):
    dx[...] = np.where(y > 0, dy, 0)


@bad("relu_dgrad", "with dx in place of y", dtypes=("float32",))
def writes_before_it_reads(g, dy, y, dx):
    dx[...] = dy
    np.copyto(dx, 0, where=y <= 0)


@bad("lrn_fprop", VALUE)
def does_not_divide_alpha(g, x, y):
    RIGHT["lrn_fprop"](replace(g, alpha=g.alpha * g.taps), x, y)


@bad("lrn_fprop", VALUE)
def divides_alpha_by_what_lies_inside(g, x, y):
    ones = window_sum(g, np.ones(x.shape), g.behind, g.ahead)
    x64 = x.astype(np.float64)
    y[...] = x64 * (g.k + g.alpha / ones * window_sum(g, x64**2, g.behind, g.ahead)) ** -g.beta


@bad("lrn_fprop", VALUE)
def reaches_behind_where_size_is_even(g, x, y):
    x64 = x.astype(np.float64)
    y[...] = x64 * (g.k + g.alpha / g.taps * window_sum(g, x64**2, g.ahead, g.behind)) ** -g.beta


@bad("lrn_fprop", VALUE)
def normalises_across_groups(g, x, y):
    RIGHT["lrn_fprop"](replace(g, groups=1), x, y)


@bad("lrn_fprop", VALUE)
def knows_beta_075_alone(g, x, y):
    RIGHT["lrn_fprop"](replace(g, beta=0.75), x, y)


@bad("lrn_fprop", VALUE)
def knows_k_1_alone(g, x, y):
    RIGHT["lrn_fprop"](replace(g, k=1.0), x, y)


@bad("lrn_dgrad", VALUE)
def forgets_the_second_term(g, dy, x, dx):
    ones = np.empty(x.shape)
    RIGHT["lrn_fprop"](g, x, ones)
    dx[...] = dy * np.where(x != 0, ones / np.where(x != 0, x, 1), g.k**-g.beta)


@bad("maxpool2d_fprop", r"argmax\[[\d, ]+\] is \d+, expected \d+;")
def takes_the_last_of_equals(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, x, y, argmax)
    for r, s, windows, pixels in window.seen(g):
        np.copyto(argmax[windows], r * g.S + s, where=x[pixels] == y[windows])


@bad("maxpool2d_fprop", "NaN of the inputs|NaN \\(or infinity\\) of the inputs is lost")
def swallows_nan_in_a_window(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, np.where(np.isnan(x), -np.inf, x), y, argmax)


@bad("maxpool2d_fprop", r"y\[[\d, ]+\] is 0, expected -")
def lets_padding_win(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, x, y, argmax)
    if g.pad_top:
        np.maximum(y[:, :, :1], 0, out=y[:, :, :1])


@bad("maxpool2d_fprop", r"argmax\[[\d, ]+\] is \d+, expected \d+")
def counts_argmax_in_columns(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, x, y, argmax)
    argmax[...] = argmax % g.S * g.R + argmax // g.S


@bad("maxpool2d_fprop", r"argmax\[[\d, ]+\] is \d+, expected \d+")
def keeps_eight_bits_of_argmax(g, x, y, argmax):
    RIGHT["maxpool2d_fprop"](g, x, y, argmax)
    argmax &= 0xFF


@bad("maxpool2d_dgrad", VALUE)
def keeps_the_last_of_overlapping_windows(g, dy, argmax, dx):
    dx[...] = 0
    for r, s, windows, pixels in window.seen(g):
        np.copyto(dx[pixels], dy[windows], where=argmax[windows] == r * g.S + s)


@bad("avgpool2d_fprop", VALUE)
def always_counts_the_padding(g, x, y):
    RIGHT["avgpool2d_fprop"](replace(g, count_include_pad=True), x, y)


@bad("avgpool2d_fprop", VALUE)
def never_counts_the_padding(g, x, y):
    RIGHT["avgpool2d_fprop"](replace(g, count_include_pad=False), x, y)


@bad("avgpool2d_fprop", VALUE)
def divides_by_every_tap(g, x, y):
    RIGHT["avgpool2d_fprop"](g, x, y)
    y *= avgpool2d.divisors(g) / (g.R * g.S)


@bad("avgpool2d_fprop", "NaN of the inputs|NaN \\(or infinity\\) of the inputs is lost")
def skips_nan_in_a_mean(g, x, y):
    RIGHT["avgpool2d_fprop"](g, np.nan_to_num(x), y)


@bad("avgpool2d_dgrad", VALUE)
def divides_the_gradient_by_every_tap(g, dy, dx):
    RIGHT["avgpool2d_dgrad"](g, dy * avgpool2d.divisors(g) / (g.R * g.S), dx)


@bad("avgpool2d_dgrad", VALUE)
def keeps_one_window_of_a_pixel(g, dy, dx):
    share = dy / avgpool2d.divisors(g)
    dx[...] = 0
    for _, _, windows, pixels in window.seen(g):
        dx[pixels] = share[windows]


@bad("linear_dgrad", VALUE)
def drops_the_last_input(g, dy, w, dx):
    dy = dy.copy()
    dy[:, -1] = 0
    RIGHT["linear_dgrad"](g, dy, w, dx)


@bad("dropout_fprop", "expected")
def drops_by_another_generator(g, x, y, p, seed, offset, scale):
    mask = np.random.default_rng(seed % 1000).random(x.shape) < p
    y[...] = np.where(mask, 0, x * scale)


@bad("dropout_fprop", "expected")
def forgets_the_high_word_of_the_seed(g, x, y, p, seed, offset, scale):
    RIGHT["dropout_fprop"](g, x, y, p, seed & 0xFFFFFFFF, offset, scale)


@bad("dropout_fprop", "expected")
def counts_in_32_bits(g, x, y, p, seed, offset, scale):
    RIGHT["dropout_fprop"](g, x, y, p, seed, offset & 0xFFFFFFFF, scale)


@bad("dropout_fprop", "is NaN, expected 0")
def multiplies_nan_by_zero(g, x, y, p, seed, offset, scale):
    from convkit.ops.philox import dropped

    y[...] = x * (scale * ~dropped(g.size, p, seed, offset).reshape(x.shape)).astype(x.dtype)


@bad("dropout_dgrad", "expected")
def always_scales_by_the_inverse(g, dy, dx, p, seed, offset, scale):
    RIGHT["dropout_dgrad"](g, dy, dx, p, seed, offset, 1 / (1 - p) if p < 1 else 0)


@bad("softmax_xent_fprop", "is NaN|expected")
def does_not_subtract_the_largest(g, logits, labels, loss, probs):
    e = np.exp(logits.astype(np.float32))
    total = e.sum(axis=1, keepdims=True)
    probs[...] = e / total
    loss[...] = -np.log(probs[np.arange(g.N), labels])


@bad("softmax_xent_fprop", r"loss\[\d+\] is inf, expected")
def takes_the_logarithm_of_a_probability(g, logits, labels, loss, probs):
    RIGHT["softmax_xent_fprop"](g, logits, labels, loss, probs)
    loss[...] = -np.log(probs[np.arange(g.N), labels].astype(loss.dtype))


@bad("softmax_xent_dgrad", VALUE)
def ignores_dloss(g, probs, labels, dloss, dlogits):
    RIGHT["softmax_xent_dgrad"](g, probs, labels, np.ones_like(dloss), dlogits)


@bad("label_rank", r"rank\[\d+\] is \d+, expected \d+; ")
def counts_equal_logits_behind_the_label(g, logits, labels, rank):
    own = logits[np.arange(g.N), labels][:, None]
    rank[...] = np.where(np.isnan(logits).any(axis=1), g.K, (logits >= own).sum(axis=1) - 1)


@bad("label_rank", r"rank\[\d+\] is \d+, expected \d+; ")
def forgets_equal_logits_before_the_label(g, logits, labels, rank):
    own = logits[np.arange(g.N), labels][:, None]
    rank[...] = np.where(np.isnan(logits).any(axis=1), g.K, (logits > own).sum(axis=1))


@bad("label_rank", r"rank\[\d+\] is \d+, expected 11; ")
def ranks_beside_a_nan(g, logits, labels, rank):
    RIGHT["label_rank"](g, np.nan_to_num(logits, nan=-100, posinf=1e9, neginf=-1e9), labels, rank)


@bad("label_rank", r"rank\[\d+\] is \d+, expected 11; ")
def looks_at_the_labels_logit_alone(g, logits, labels, rank):
    own = logits[np.arange(g.N), labels]
    RIGHT["label_rank"](g, np.where(np.isnan(logits), -np.inf, logits), labels, rank)
    rank[np.isnan(own)] = g.K


def _outside(g, crops):
    """Where x is outside the image."""
    found = np.empty(g.shape("x"), bool)
    for n, crop in enumerate(crops):
        rows, columns = crop_places(g, crop)
        inside = ((rows >= 0) & (rows < g.H))[:, None] & (columns >= 0) & (columns < g.W)
        found[n] = ~inside
    return found


@bad("crop_images", VALUE)
def never_mirrors(g, images, crops, mean, shift, factor, x):
    RIGHT["crop_images"](g, images, crops * np.int32([1, 1, 0]), mean, shift, factor, x)


@bad("crop_images", VALUE)
def mirrors_where_flipped_is_one(g, images, crops, mean, shift, factor, x):
    as_told = np.where(np.arange(3) == 2, crops == 1, crops)
    RIGHT["crop_images"](g, images, as_told, mean, shift, factor, x)


@bad("crop_images", VALUE)
def subtracts_the_mean_outside(g, images, crops, mean, shift, factor, x):
    RIGHT["crop_images"](g, images, crops, mean, shift, factor, x)
    x[_outside(g, crops)] = -110


@bad("crop_images", r"x\[[\d, ]*\] is \S+, expected 0: ")
def repeats_the_edge(g, images, crops, mean, shift, factor, x):
    RIGHT["crop_images"](g, images, crops, mean, shift, factor, x)
    for n, crop in enumerate(crops):
        rows, columns = crop_places(g, crop)
        near = images[n][np.clip(rows, 0, g.H - 1)[:, None], np.clip(columns, 0, g.W - 1)]
        x[n] = np.where(_outside(g, crops)[n], np.moveaxis(near, -1, 0), x[n])


@bad("crop_images", VALUE)
def mirrors_the_mean_of_the_crop(g, images, crops, mean, shift, factor, x):
    RIGHT["crop_images"](g, images, crops, mean, shift, factor, x)
    if g.mean_of == "crop":
        for n in np.flatnonzero(crops[:, 2]):
            own = None if shift is None else shift[n : n + 1]
            RIGHT["crop_images"](
                replace(g, N=1),
                images[n : n + 1],
                crops[n : n + 1],
                mean[..., ::-1],
                own,
                factor,
                x[n : n + 1],
            )


@bad("crop_images", VALUE)
def leaves_the_mean_image_where_it_is(g, images, crops, mean, shift, factor, x):
    if g.mean_of == "image" and g.size <= min(g.H, g.W):
        RIGHT["crop_images"](
            replace(g, mean_of="crop"), images, crops, mean[:, : g.size, : g.size], shift, factor, x
        )
    else:
        RIGHT["crop_images"](g, images, crops, mean, shift, factor, x)


@bad("crop_images", VALUE)
def takes_the_mean_in_the_order_of_the_images(g, images, crops, mean, shift, factor, x):
    RIGHT["crop_images"](g, images, crops, mean[::-1] if g.reverse else mean, shift, factor, x)


@bad("crop_images", VALUE)
def shifts_after_the_product(g, images, crops, mean, shift, factor, x):
    RIGHT["crop_images"](g, images, crops, mean, None, factor, x)
    if shift is not None:
        x += np.where(_outside(g, crops), 0, shift[..., None, None])


@bad("crop_images", VALUE)
def forgets_the_factor(g, images, crops, mean, shift, factor, x):
    RIGHT["crop_images"](g, images, crops, mean, shift, None, x)


@bad("loss_summary", VALUE)
def adds_up_in_float32(g, loss, rank, total, errors, finite):
    RIGHT["loss_summary"](g, loss, rank, total, errors, finite)
    total[...] = loss.sum(dtype=np.float32)


@bad("loss_summary", r"errors\[0\] is \d+, expected \d+; ")
def counts_errors_from_the_second_place(g, loss, rank, total, errors, finite):
    RIGHT["loss_summary"](g, loss, rank, total, errors, finite)
    errors[0] = (rank > 1).sum()


@bad("loss_summary", r"errors\[1\] is \d+, expected \d+; ")
def counts_errors_from_the_sixth_place(g, loss, rank, total, errors, finite):
    RIGHT["loss_summary"](g, loss, rank, total, errors, finite)
    errors[1] = (rank > 5).sum()


@bad("loss_summary", r"finite\[0\] is 1, expected 0; ")
def takes_infinity_for_finite(g, loss, rank, total, errors, finite):
    RIGHT["loss_summary"](g, loss, rank, total, errors, finite)
    finite[...] = not np.isnan(loss).any()


@bad("loss_summary", r"finite\[0\] is 0, expected 1; ")
def takes_an_empty_batch_for_a_bad_one(g, loss, rank, total, errors, finite):
    RIGHT["loss_summary"](g, loss, rank, total, errors, finite)
    finite[...] = finite[0] and g.N > 0


@bad("rescale", VALUE)
def always_multiplies(g, x, scale, sound, x_new, sound_new, inverse):
    RIGHT["rescale"](g, x, scale, sound, x_new, sound_new, False)


@bad("rescale", r"sound_new\[0\] is 1, expected 0; ")
def takes_infinity_for_sound(g, x, scale, sound, x_new, sound_new, inverse):
    sound_new[...] = bool(sound[0]) and not np.isnan(x).any()
    RIGHT["rescale"](g, x, scale, sound, x_new, np.empty(1), inverse)


@bad("rescale", r"sound_new\[0\] is 1, expected 0; ")
def forgets_the_flag_before(g, x, scale, sound, x_new, sound_new, inverse):
    RIGHT["rescale"](g, x, scale, np.ones(1, np.int32), x_new, sound_new, inverse)


@bad("adjust_loss_scale", VALUE)
def falls_below_one(g, scale, steps, sound, scale_new, steps_new, growth, backoff, interval):
    RIGHT["adjust_loss_scale"](g, scale, steps, sound, scale_new, steps_new, growth, backoff, interval)
    scale_new[sound == 0] = scale[sound == 0] * backoff


@bad("adjust_loss_scale", r"scale_new\[\d+\] is inf, expected ")
def grows_beyond_float32(g, scale, steps, sound, scale_new, steps_new, growth, backoff, interval):
    RIGHT["adjust_loss_scale"](g, scale, steps, sound, scale_new, steps_new, growth, backoff, interval)
    grows = (sound != 0) & (steps_new == 0)
    scale_new[grows] = scale[grows] * np.float32(growth)


@bad("adjust_loss_scale", r"steps_new\[\d+\] is \d+, expected 0; ")
def waits_for_one_step_more(g, scale, steps, sound, scale_new, steps_new, growth, backoff, interval):
    RIGHT["adjust_loss_scale"](g, scale, steps, sound, scale_new, steps_new, growth, backoff, interval + 1)


@bad("sgd_momentum", VALUE)
def ignores_nesterov(g, w, dw, v, w_new, v_new, **options):
    RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **{**options, "nesterov": False})


@bad("sgd_momentum", VALUE)
def knows_one_convention(g, w, dw, v, w_new, v_new, **options):
    RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **{**options, "lr_in_velocity": False})


@bad("sgd_momentum", VALUE)
def decays_without_momentum(g, w, dw, v, w_new, v_new, **options):
    RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **{**options, "weight_decay": 0.0})
    w_new[...] = w_new - options["lr"] * options["weight_decay"] * w.astype(np.float64)


@bad("sgd_momentum", "with .* in place of", dtypes=("float64",))
def overwrites_what_it_still_needs(
    g, w, dw, v, w_new, v_new, *, lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity
):
    gradient = dw + weight_decay * w
    if lr_in_velocity:
        v_new[...] = momentum * v - lr * gradient
        w_new[...] = w + v_new
    else:
        v_new[...] = momentum * v + (1 - dampening) * gradient
        w_new[...] = w - lr * (gradient + momentum * v_new if nesterov else v_new)


@bad("sgd_momentum", VALUE)
def ignores_the_flag(g, w, dw, v, w_new, v_new, *, finite=None, **options):
    RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **options)


@bad("sgd_momentum", VALUE)
def takes_one_value_of_the_flag_for_true(g, w, dw, v, w_new, v_new, *, finite=None, **options):
    flag = None if finite is None else (finite == 1).astype(finite.dtype)
    RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, finite=flag, **options)


@bad("sgd_momentum", r"w_new\[[\d, ]+\] is NaN, expected", dtypes=("float64",))
def multiplies_by_the_flag(g, w, dw, v, w_new, v_new, *, finite=None, **options):
    step, velocity = np.empty_like(w), np.empty_like(v)
    RIGHT["sgd_momentum"](g, w, dw, v, step, velocity, **options)
    share = 1.0 if finite is None else float(finite[0] != 0)
    w_new[...], v_new[...] = w + share * (step - w), v + share * (velocity - v)


@bad("sgd_momentum", "w_new must have the bits of w where the flag is 0")
def loses_the_sign_of_a_zero_that_it_keeps(g, w, dw, v, w_new, v_new, **options):
    RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **options)
    if "finite" in options and not options["finite"][0]:
        w_new[...] += w_new.dtype.type(0)


@bad("linear_wgrad_sgd", VALUE)
def ignores_the_flag_of_a_fused_update(g, x, dy, w, v, w_new, v_new, *, finite=None, **options):
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, w_new, v_new, **options)


@bad("linear_dgrad_wgrad_sgd", "did not write dx")
def leaves_dx_where_the_flag_is_0(g, dy, w, x, v, dx, w_new, v_new, *, finite=None, **options):
    if finite is None or finite[0]:
        RIGHT["linear_dgrad_wgrad_sgd"](g, dy, w, x, v, dx, w_new, v_new, **options)
    else:
        w_new[...], v_new[...] = w, v


@bad("linear_wgrad_sgd", VALUE)
def updates_by_one_image_less(g, x, dy, w, v, w_new, v_new, **options):
    less = type(g)(max(0, g.N - 1), g.C, g.K, g.dtype)
    RIGHT["linear_wgrad_sgd"](less, x[: less.N], dy[: less.N], w, v, w_new, v_new, **options)


@bad("linear_wgrad_sgd", "with .* in place of")
def writes_weights_before_it_reads_them(g, x, dy, w, v, w_new, v_new, **options):
    w_new[...] = 0
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, w_new, v_new, **options)


@bad("linear_dgrad_wgrad_sgd", VALUE)
def makes_dx_from_the_new_weights(g, dy, w, x, v, dx, w_new, v_new, relu=False, **options):
    RIGHT["linear_dgrad_wgrad_sgd"](g, dy, w, x, v, dx, w_new, v_new, relu=relu, **options)
    RIGHT["linear_dgrad"](g, dy, w_new, dx)


@bad("linear_dgrad_wgrad_sgd", VALUE)
def forgets_the_mask(g, dy, w, x, v, dx, w_new, v_new, relu=False, **options):
    RIGHT["linear_dgrad_wgrad_sgd"](g, dy, w, x, v, dx, w_new, v_new, relu=False, **options)


@bad("linear_dgrad_wgrad_sgd", "with .* in place of")
def makes_dx_after_the_update(g, dy, w, x, v, dx, w_new, v_new, relu=False, **options):
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, w_new, v_new, **options)
    RIGHT["linear_dgrad"](g, dy, w, dx)
    if relu:
        dx[x <= 0] = 0


# -- fused ops ----------------------------------------------------------------------------------------
@bad("conv2d_dgrad_relu", "expected 0")
def forgets_the_relu_below(g, dy, w, x, dx):
    RIGHT["conv2d_dgrad"](g, dy, w, dx)


@bad("conv2d_dgrad_relu", "expected 0|" + VALUE)
def masks_by_the_gradient(g, dy, w, x, dx):
    RIGHT["conv2d_dgrad"](g, dy, w, dx)
    np.maximum(dx, 0, out=dx)


@bad("conv2d_dgrad_relu", "expected 0")
def passes_the_gradient_of_a_fused_relu_at_zero(g, dy, w, x, dx):
    RIGHT["conv2d_dgrad"](g, dy, w, dx)
    dx[x < 0] = 0


@bad("conv2d_dgrad_relu", VALUE)
def masks_with_the_first_image(g, dy, w, x, dx):
    RIGHT["conv2d_dgrad"](g, dy, w, dx)
    dx[np.broadcast_to(x[:1] <= 0, dx.shape)] = 0


@bad("conv2d_wgrad_bgrad", r"^db\[[\d, ]*\] is .*, expected")
def leaves_the_last_image_out_of_the_bias(g, x, dy, dw, db):
    RIGHT["conv2d_wgrad"](g, x, dy, dw)
    RIGHT["conv2d_bgrad"](g, dy[:-1], db)


@bad("conv2d_wgrad_bgrad", r"^dw\[[\d, ]*\] is .*, expected")
def leaves_the_last_image_out_of_the_weights(g, x, dy, dw, db):
    RIGHT["conv2d_wgrad"](replace(g, N=g.N - 1), x[:-1], dy[:-1], dw)
    RIGHT["conv2d_bgrad"](g, dy, db)


@bad("conv2d_wgrad_bgrad", "did not write db")
def makes_the_bias_of_the_first_group_alone(g, x, dy, dw, db):
    RIGHT["conv2d_wgrad"](g, x, dy, dw)
    first = g.K // g.groups
    RIGHT["conv2d_bgrad"](g, dy[:, :first], db[:first])


@bad("lrn_maxpool2d_fprop", r"argmax\[[\d, ]+\] is \d+, expected \d+;")
def picks_the_last_tap(g, x, y, argmax):
    RIGHT["lrn_maxpool2d_fprop"](g, x, y, argmax)
    argmax[...] = g.pool.R * g.pool.S - 1


@bad("lrn_maxpool2d_fprop", r"argmax\[[\d, ]+\] is \d+, expected \d+;")
def picks_the_tap_beside_the_largest(g, x, y, argmax):
    RIGHT["lrn_maxpool2d_fprop"](g, x, y, argmax)
    argmax.reshape(-1)[-1:] = (argmax.reshape(-1)[-1:] + 1) % (g.pool.R * g.pool.S)


@bad("lrn_maxpool2d_fprop", r"argmax\[[\d, ]+\] is \d+, expected \d+;")
def picks_the_largest_before_it_is_normalised(g, x, y, argmax):
    RIGHT["lrn_maxpool2d_fprop"](g, x, y, argmax)
    RIGHT["maxpool2d_fprop"](g.pool, x, np.empty_like(y), argmax)


@bad("lrn_maxpool2d_fprop", VALUE)
def pools_what_is_not_normalised(g, x, y, argmax):
    RIGHT["lrn_maxpool2d_fprop"](g, x, y, argmax)
    RIGHT["maxpool2d_fprop"](g.pool, x, y, np.empty_like(argmax))


@bad("lrn_maxpool2d_fprop", VALUE)
def normalises_the_pooled(g, x, y, argmax):
    pooled = np.empty(y.shape)
    RIGHT["lrn_maxpool2d_fprop"](g, x, y, argmax)
    RIGHT["maxpool2d_fprop"](g.pool, x, pooled, np.empty_like(argmax))
    RIGHT["lrn_fprop"](replace(g.lrn, H=g.pool.P, W=g.pool.Q), pooled, y)


@bad("lrn_maxpool2d_fprop", LOST)
def swallows_nan_that_lrn_has_spread(g, x, y, argmax):
    RIGHT["lrn_maxpool2d_fprop"](g, x, y, argmax)
    clean = np.empty_like(y)
    RIGHT["lrn_maxpool2d_fprop"](g, np.nan_to_num(x, nan=-9), clean, np.empty_like(argmax))
    np.copyto(y, clean, where=np.isnan(y))


@bad("lrn_maxpool2d_dgrad", "expected 0")
def forgets_the_relu_of_a_fused_gradient(g, dy, argmax, x, dx, relu):
    RIGHT["lrn_maxpool2d_dgrad"](g, dy, argmax, x, dx, False)


@bad("lrn_maxpool2d_dgrad", VALUE)
def takes_a_relu_that_is_not_there(g, dy, argmax, x, dx, relu):
    RIGHT["lrn_maxpool2d_dgrad"](g, dy, argmax, x, dx, True)


@bad("lrn_maxpool2d_dgrad", VALUE)
def routes_to_the_first_tap(g, dy, argmax, x, dx, relu):
    RIGHT["lrn_maxpool2d_dgrad"](g, dy, np.zeros_like(argmax), x, dx, relu)


@bad("lrn_maxpool2d_dgrad", VALUE)
def leaves_lrn_out_of_the_gradient(g, dy, argmax, x, dx, relu):
    RIGHT["maxpool2d_dgrad"](g.pool, dy, argmax, dx)
    if relu:
        dx[x <= 0] = 0


@bad("linear_wgrad_sgd", r"v_new\[[\d, ]*\] is|did not write v_new")
def updates_w_but_not_v(g, x, dy, w, v, w_new, v_new, **sgd):
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, w_new, np.empty_like(v_new), **sgd)
    v_new[...] = v


@bad("linear_wgrad_sgd", r"did not write v_new")
def leaves_v_unwritten(g, x, dy, w, v, w_new, v_new, **sgd):
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, w_new, np.empty_like(v_new), **sgd)


@bad("linear_wgrad_sgd", r"w_new\[[\d, ]*\] is")
def updates_v_but_not_w(g, x, dy, w, v, w_new, v_new, **sgd):
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, np.empty_like(w_new), v_new, **sgd)
    w_new[...] = w


@bad("linear_wgrad_sgd", VALUE)
def decays_what_it_has_updated(g, x, dy, w, v, w_new, v_new, **sgd):
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, w_new, v_new, **{**sgd, "weight_decay": 0.0})
    w_new *= 1 - sgd["lr"] * sgd["weight_decay"]


@bad("linear_wgrad_sgd", "expected")
def skips_the_update_of_an_empty_batch(g, x, dy, w, v, w_new, v_new, **sgd):
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, w_new, v_new, **sgd)
    if not g.N:
        w_new[...], v_new[...] = w, v


@bad("linear_wgrad_sgd", "with .* in place of")
def updates_twice_where_it_is_in_place(g, x, dy, w, v, w_new, v_new, **sgd):
    RIGHT["linear_wgrad_sgd"](g, x, dy, w.copy(), v, w_new, np.empty_like(v_new), **sgd)
    RIGHT["linear_wgrad_sgd"](g, x, dy, w, v, np.empty_like(w_new), v_new, **sgd)


@bad("linear_dgrad_wgrad_sgd", r"v_new\[[\d, ]*\] is")
def updates_w_but_not_v_beside_dx(g, dy, w, x, v, dx, w_new, v_new, relu, **sgd):
    RIGHT["linear_dgrad_wgrad_sgd"](g, dy, w, x, v, dx, w_new, np.empty_like(v_new), relu, **sgd)
    v_new[...] = v


@bad("linear_dgrad_wgrad_sgd", VALUE)
def updates_with_the_masked_input(g, dy, w, x, v, dx, w_new, v_new, relu, **sgd):
    RIGHT["linear_dgrad_wgrad_sgd"](g, dy, w, x, v, dx, w_new, v_new, relu, **sgd)
    if relu:
        RIGHT["linear_wgrad_sgd"](g, np.maximum(x, 0), dy, w, v, w_new, v_new, **sgd)


@bad("reorder", r"y\[[\d, ]+\] is .*, expected")
def swaps_rows_and_columns(g, x, y):
    y[...] = np.ascontiguousarray(x.swapaxes(2, 3)).reshape(y.shape)


# -- blocked tensors ----------------------------------------------------------------------------------
def blocked(run):
    """A function on NCHW arrays as an implementation on blocked memory, with zeros in the spare channels."""

    def on_blocks(g, x, y, *rest):
        whole = np.empty(g.shape("y"), y.dtype)
        run(g, unblock(x, g.shape("x")[1]), whole, *rest)
        y[...] = block(whole)

    return on_blocks


ON_BLOCKS = blocked(RIGHT["lrn_fprop"])


@bad("lrn_fprop", "left its spare channels other than zero: output y", layout=BLOCKED)
def leaves_garbage_in_the_spare_channels(g, x, y):
    before = y.copy()
    ON_BLOCKS(g, x, y)
    y[:, -1, ..., (g.C - 1) % 16 + 1 :] = before[:, -1, ..., (g.C - 1) % 16 + 1 :]


@bad("lrn_fprop", "left its spare channels other than zero: output y", layout=BLOCKED)
def normalises_into_the_spare_channels(g, x, y):
    ON_BLOCKS(g, x, y)
    y[:, -1, ..., (g.C - 1) % 16 + 1 :] = 1e-30


@bad("lrn_fprop", "changed its input x", layout=BLOCKED)
def writes_to_the_spare_channels_of_its_input(g, x, y):
    ON_BLOCKS(g, x, y)
    if g.C % 16:
        ctypes.memset(x.ctypes.data + x.nbytes - x.itemsize, 1, x.itemsize)


@bad("lrn_fprop", VALUE, layout=BLOCKED)
def ends_each_window_with_its_block(g, x, y):
    parts = [unblock(x[:, [i]], min(16, g.C - 16 * i)) for i in range(x.shape[1])]
    for i, part in enumerate(parts):
        one = np.empty(part.shape)
        RIGHT["lrn_fprop"](replace(g, C=part.shape[1], groups=1), part, one)
        y[:, [i]] = block(one)


@bad("reorder", r"y\[[\d, ]+\] is .*, expected", layout=BLOCKED)
def takes_blocks_of_eight(g, x, y):
    y[...] = x[..., [*range(8, 16), *range(8)]]


@bad("reorder", "left its spare channels other than zero: output y", layout="NCHW>nChw16c")
def repeats_channels_in_the_last_block(g, x, y):
    y[...] = block(x)
    used = g.C - 16 * (y.shape[1] - 1)
    y[:, -1] = y[:, -1][..., np.arange(16) % used]


@bad("reorder", r"y\[[\d, ]+\] is .*, expected", layout="nChw16c>NCHW")
def forgets_the_last_block(g, x, y):
    y[...] = unblock(x, g.C)
    y[:, (x.shape[1] - 1) * 16 :] = 0


def test_the_same_on_blocks_without_the_fault_passes():
    """What the planted faults are made of is right; it is the faults that are found."""
    for op, layout, run in (
        ("lrn_fprop", BLOCKED, ON_BLOCKS),
        ("reorder", BLOCKED, lambda g, x, y: np.copyto(y, x)),
        ("reorder", "NCHW>nChw16c", lambda g, x, y: np.copyto(y, block(x))),
        ("reorder", "nChw16c>NCHW", lambda g, x, y: np.copyto(y, unblock(x, g.C))),
    ):
        verdicts = check_these([Implementation(op, "right", run, layout=layout)], quick=True)
        assert verdicts and all(v.ok and not v.declined for v in verdicts), (op, layout)


@pytest.mark.parametrize("op, name, reason, run, declared", BAD, ids=[b[1] for b in BAD])
def test_bad_kernels_fail(op, name, reason, run, declared):
    implementation = Implementation(op, name, run, **{"dtypes": ("float32",), **declared})
    failed = []
    for verdict in check.in_turn([implementation], quick=True):
        if not verdict.ok:
            failed.append(verdict)
            if re.search(reason, verdict.reason):
                return
    assert failed, f"{name} passed the gate"
    raise AssertionError("\n".join(str(v) for v in failed[:5]))


def test_an_implementation_that_declines_everything_fails():
    never = Implementation("conv2d_fprop", "never", RIGHT["conv2d_fprop"], when=lambda g: "never")
    *declined, last = check_these([never], quick=True)
    assert declined and all(v.ok and v.declined for v in declined)
    assert not last.ok and re.search("not one case could be run.*never", last.reason)


def test_an_implementation_that_takes_no_flag_declines_the_cases_with_one():
    def old(g, w, dw, v, w_new, v_new, *, lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity):
        options = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
            "dampening": dampening, "nesterov": nesterov, "lr_in_velocity": lr_in_velocity,
        }  # fmt: skip
        RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **options)

    verdicts = check_these([Implementation("sgd_momentum", "old", old)], quick=True)
    assert all(v.ok for v in verdicts)
    flagged = [v for v in verdicts if "finite=[" in v.case]
    assert {v.reason for v in flagged} == {"does not take finite="}
    assert {v.case.partition("finite=[")[2].partition("]")[0] for v in flagged} == {"0", "1", "-65536"}
    assert all(v.declined == (v in flagged) for v in verdicts)


def test_there_are_bad_kernels_for_every_op():
    assert {b[0] for b in BAD} >= set(OPS) - {"linear_wgrad", "conv2d_bgrad", "linear_bgrad"}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_generic_faults_fail_for_every_op_and_dtype(op, dtype):
    """Zeros, NaN, one missing element, one element off by a part in a thousand, for every op."""

    def outputs_of(arguments):
        return arguments[-len(OPS[op].outputs) :]

    def zeros(g, *arguments, **options):
        for out in outputs_of(arguments):
            out[...] = 0

    def nan(g, *arguments, **options):
        RIGHT[op](g, *arguments, **options)
        outputs_of(arguments)[0][...] = np.nan

    def unwritten(g, *arguments, **options):
        whole = [np.empty_like(o) for o in outputs_of(arguments)]
        RIGHT[op](g, *arguments[: -len(whole)], *whole, **options)
        for out, filled in zip(outputs_of(arguments), whole, strict=True):
            out.reshape(-1)[:-1] = filled.reshape(-1)[:-1]

    def off(g, *arguments, **options):
        RIGHT[op](g, *arguments, **options)
        out = outputs_of(arguments)[0].reshape(-1)
        out[out.size // 2] = out[out.size // 2] * np.float64(1.02)

    for fault in (zeros, nan, unwritten, off):
        implementation = Implementation(op, fault.__name__, fault, dtypes=(dtype,))
        cases = [c for c in check.cases(op) if not c.heavy and c.fill == "normal" and not c.problem.empty]
        verdicts = [check.judge(implementation, check.Question.of(c, dtype)) for c in cases[:8]]
        assert not all(v.ok for v in verdicts), f"{fault.__name__} passed"


def test_a_reason_names_the_place():
    """The one wrong element is found, with what it should have been."""

    def run(g, x, y):
        RIGHT["relu_fprop"](g, x, y)
        if y.shape == (2, 3, 5, 7):
            y[1, 2, 3, 4] += 1

    implementation = Implementation("relu_fprop", "mine", run)
    (bad_one,) = [v for v in check_these([implementation], quick=True, random=0) if not v.ok]
    assert bad_one.index == (1, 2, 3, 4)
    assert bad_one.got == pytest.approx(bad_one.expected + 1)
    assert "y[1, 2, 3, 4]" in bad_one.reason and "1 of 210 elements" in bad_one.reason
    assert "relu_fprop 'mine' FAILS float32, four axes" in str(bad_one)


# ---------------------------------------------------------------------------------------------------
# Good kernels that are not the reference
# ---------------------------------------------------------------------------------------------------
def sequential(terms):
    """A float32 sum, one term after the other: the worst order there is."""
    return np.cumsum(terms, axis=-1, dtype=np.float32)[..., -1]


ORDERS = {
    "forwards": sequential,
    "backwards": lambda terms: sequential(terms[..., ::-1]),
    "largest first": lambda terms: sequential(np.take_along_axis(terms, np.argsort(-np.abs(terms), -1), -1)),
    "pairwise": lambda terms: terms.sum(axis=-1, dtype=np.float32),
    "in 8 lanes": lambda terms: sequential(np.stack([sequential(terms[..., i::8]) for i in range(8)], -1)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fill", ["normal", "offset", "rectified", "large"])
def test_every_order_of_summation_passes(order, fill):
    """Also at fc6's length, and also where all terms have one sign."""
    for L in (9, 363, 2304, 9216):
        problem = Linear(8, L, 24)
        question = check.Question.of(
            check.Case("linear_fprop", problem, order, {"relu": False}, fill=fill), "float32"
        )
        x, w, b = question.inputs.values()
        terms = np.concatenate([x[:, None] * w, np.broadcast_to(b[:, None], (8, 24, 1))], axis=-1)
        got = ORDERS[order](terms)
        implementation = Implementation("linear_fprop", order, lambda *a: None)
        result = tolerance.compare("y", got, question.wanted["y"], implementation, "linear_fprop")
        assert not result.reason, (L, result)
        assert result.ratio < 0.6, (L, result)


@pytest.mark.parametrize("L, caught", [(9, 0.999), (363, 0.995), (2304, 0.98), (9216, 0.95)])
def test_a_lost_term_does_not_pass(L, caught):
    """In each output alone, with these odds; a tensor of outputs leaves no doubt."""
    problem = Linear(32, L, 32)
    question = check.Question.of(check.Case("linear_fprop", problem, "lost", {"relu": False}), "float32")
    x, w, _ = question.inputs.values()
    want = question.wanted["y"]
    lost = np.abs(x[:, None, L // 2].astype(np.float64) * w[:, L // 2])
    assert (lost > want.bound()).mean() >= caught


def test_two_gradients_of_one_op_are_held_to_the_bounds_of_each_alone():
    g = Conv2d.of((3, 4, 9, 8), (6, 2, 3, 3), padding=1, groups=2)
    both = check.Question.of(check.Case("conv2d_wgrad_bgrad", g, "both"), "float32")
    for op, problem in (("conv2d_wgrad", g), ("conv2d_bgrad", ChannelSum.of(g.shape("dy"), 4))):
        inputs = {name: both.inputs[name] for name in OPS[op].inputs}
        for name, alone in tolerance.expected(op, problem, inputs, {}).items():
            found = both.wanted[name]
            np.testing.assert_array_equal(found.value, alone.value)
            np.testing.assert_array_equal(found.bound(), alone.bound())
            np.testing.assert_array_equal(found.scale, alone.scale)


def cut(terms):
    """A float32 sum, one term after the other, whose last bits are not rounded but lost."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for term in np.moveaxis(terms.astype(np.float64), -1, 0):
        exact = total + term
        total = exact.astype(np.float32)
        total = np.where(np.abs(total) > np.abs(exact), np.nextafter(total, np.float32(0)), total)
    return total


@pytest.mark.parametrize("fill", ["normal", "rectified"])
@pytest.mark.parametrize("L", [363, 2304])
def test_sums_that_are_cut_pass_where_that_is_declared(L, fill):
    problem = Linear(8, L, 24)
    case = check.Case("linear_fprop", problem, "cut", {"relu": False}, fill=fill)
    question = check.Question.of(case, "float32")
    x, w, b = question.inputs.values()
    terms = np.concatenate([x[:, None] * w, np.broadcast_to(b[:, None], (8, 24, 1))], axis=-1)
    results = [
        tolerance.compare("y", cut(terms), question.wanted["y"], one, "linear_fprop")
        for one in (
            Implementation("linear_fprop", "cut", lambda *a: None, truncates=truncates)
            for truncates in (True, False)
        )
    ]
    assert not results[0].reason and results[0].ratio < 0.5, results[0]
    assert results[1].reason


@pytest.mark.parametrize("L, caught", [(363, 0.98), (2304, 0.85), (9216, 0.55)])
def test_a_lost_term_does_not_pass_where_sums_are_cut(L, caught):
    problem = Linear(32, L, 32)
    question = check.Question.of(check.Case("linear_fprop", problem, "lost", {"relu": False}), "float32")
    x, w, _ = question.inputs.values()
    lost = np.abs(x[:, None, L // 2].astype(np.float64) * w[:, L // 2])
    assert (lost > question.wanted["y"].bound(truncates=True)).mean() >= caught


def test_float16_accumulation_is_far_outside():
    problem = Linear(16, 363, 16)
    question = check.Question.of(check.Case("linear_fprop", problem, "half", {"relu": False}), "float32")
    x, w, b = question.inputs.values()
    half = (x[:, None] * w).astype(np.float16).cumsum(axis=-1, dtype=np.float16)[..., -1] + b.astype(
        np.float16
    )
    error = np.abs(half - question.wanted["y"].value)
    assert np.median(error / question.wanted["y"].bound()) > 20


def spreads(g, x, w, b, y, relu):
    """Right, but a NaN or an infinity takes its neighbours with it, as in Winograd's tiles."""
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    hit = ~np.isfinite(y)
    near = hit.copy()
    near[:, :, 1:] |= hit[:, :, :-1]
    near[..., :-1] |= hit[..., 1:]
    y[near] = np.nan


def swallows(g, x, w, b, y, relu):
    RIGHT["conv2d_fprop"](g, x, w, b, y, relu)
    np.nan_to_num(y, copy=False)


def test_a_fast_algorithm_may_spread_a_nan_but_not_lose_it():
    def verdicts(run, error):
        chosen = Implementation("conv2d_fprop", "tiles", run, error=error)
        case = check.Case(
            "conv2d_fprop", Conv2d.of((2, 3, 20, 20), (4, 3, 3, 3), padding=1), "n", {"relu": False}
        )
        return [
            check.judge(chosen, check.Question.of(replace(case, fill=f), "float32")).ok
            for f in ("nan", "inf")
        ]

    assert verdicts(spreads, 1e-5) == [True, True]
    assert verdicts(spreads, 1e-6) == [False, False]
    assert verdicts(swallows, 1e-5) == [False, False]


def test_declared_error_is_accepted_and_held():
    def noisy(size):
        def run(g, x, w, b, y, relu):
            RIGHT["conv2d_fprop"](g, x, w, b, y, False)
            y *= 1 + size * np.sin(np.arange(y.size)).reshape(y.shape)
            if relu:
                np.maximum(y, 0, out=y)

        return run

    for size, error, passes in (
        (1e-5, 1e-5, True),
        (1e-5, 1e-6, False),
        (1e-4, 1e-5, False),
        (1e-4, 1e-4, True),
    ):
        chosen = Implementation("conv2d_fprop", "noisy", noisy(size), error=error)
        failed = [v for v in check_these([chosen], quick=True) if not v.ok]
        assert (not failed) == passes, (size, error, failed[:1])


def test_float16_overflow_is_infinity():
    def run(g, x, w, b, y, relu):
        y[...] = x.astype(np.float32) @ w.astype(np.float32).T

    problem = Linear(4, 600, 4, "float16")
    x = np.full((4, 600), 100, np.float16)
    w = np.full((4, 600), 50, np.float16)
    w[1] *= -1
    inputs = {"x": x, "w": w, "b": None}
    want = tolerance.expected("linear_fprop", problem, inputs, {"relu": False})["y"]
    chosen = Implementation("linear_fprop", "mine", run)
    infinite = np.full((4, 4), np.inf, np.float16)
    infinite[:, 1] *= -1
    assert not tolerance.compare("y", infinite, want, chosen, "linear_fprop").reason
    assert tolerance.compare("y", -infinite, want, chosen, "linear_fprop").reason
    assert tolerance.compare("y", np.full((4, 4), 65504, np.float16), want, chosen, "linear_fprop").reason


def test_bfloat16_rounds_to_nearest():
    """Truncation, the usual mistake, loses up to a whole unit in the last place."""

    def truncated(g, dy, db):
        total = dy.astype(np.float32).sum(axis=0)
        db[...] = (total.view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)

    chosen = Implementation("linear_bgrad", "truncated", truncated, dtypes=("bfloat16",))
    verdicts = check_these([chosen], quick=True)
    assert any(not v.ok for v in verdicts)


def test_philox_words_are_those_that_are_published():
    """Random123's known answers for Philox4x32-10 with all-zero counter and key."""
    assert [hex(int(v)) for v in words(4, 0, 0)] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


# ---------------------------------------------------------------------------------------------------
# check(), the table and the command
# ---------------------------------------------------------------------------------------------------
def run_command(*arguments):
    commands = argparse.ArgumentParser().add_subparsers()
    command.add(commands)
    return command.run(commands.choices["check"].parse_args([str(a) for a in arguments]))


def test_unknown_names():
    with pytest.raises(OptionError, match="did you mean 'relu_fprop'"):
        check.check("relu_prop")
    with pytest.raises(
        OptionError, match="unknown implementation of relu_fprop 'referense'; did you mean 'reference'"
    ):
        check.check("relu_fprop", "referense")
    with pytest.raises(OptionError, match="did you mean"):
        run_command("conv2d_frop")
    with pytest.raises(OptionError, match="did you mean"):
        list(check.cases("relu_frop"))


def test_progress_and_seed():
    seen = []
    verdicts = check.check("relu_fprop", "reference", quick=True, progress=lambda *a: seen.append(a))
    assert seen[-1][0] == seen[-1][1] == len(verdicts)
    (seed,) = {v.seed for v in verdicts}
    again = check.check("relu_fprop", "reference", quick=True, seed=seed)
    assert [v.case for v in verdicts] == [v.case for v in again]
    others = check.check("relu_fprop", "reference", quick=True)
    assert {v.seed for v in others} != {seed} and [v.case for v in others] != [v.case for v in verdicts]


def test_missing_is_not_a_failure():
    lacking = Implementation("relu_fprop", "gpu", RIGHT["relu_fprop"], missing=lambda: "no compiler")
    verdicts = check_these([lacking], quick=True)
    assert all(v.ok and v.declined for v in verdicts)
    assert "not run" in check.summary(verdicts) and "no compiler" in verdicts[-1].reason


def test_special_purpose_kernels_get_cases_of_their_own():
    def when(g):
        return None if g.R == g.S == 5 and g.groups == 1 else "5 x 5 windows only"

    special = Implementation("conv2d_fprop", "five", RIGHT["conv2d_fprop"], when=when)
    run = [v for v in check_these([special], quick=True) if not v.declined]
    assert len(run) >= 5 and all(v.ok for v in run)


GOOD = """
import numpy as np
import convkit as ck

@ck.implements("relu_fprop", name="from_a_file", rank=-1000)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
"""


@pytest.fixture
def registry_kept():
    from convkit import registry

    implementations()  # all of them: what is looked up first inside would be lost behind
    before = dict(registry._IMPLEMENTATIONS)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


def test_command_on_a_file(tmp_path, capsys, registry_kept):
    good = tmp_path / "good.py"
    good.write_text(GOOD)
    report = tmp_path / "report.json"
    assert run_command(good, "--quick", "--json", report) == 0
    out = capsys.readouterr().out
    assert "from_a_file" in out and "reference" not in out and re.search(r"seed \d+, quick", out)
    written = json.loads(report.read_text())
    assert written["verdicts"] and all(v["ok"] for v in written["verdicts"])


def test_command_fails_with_a_line_to_act_on(tmp_path, capsys, registry_kept):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(GOOD.replace("np.maximum", "np.fmax").replace("from_a_file", "from_a_bad_file"))
    assert run_command(wrong, "--quick") == 1
    out = capsys.readouterr().out
    assert "relu_fprop 'from_a_bad_file' FAILS 4 of " in out
    assert "cause     fails in every case with NaN in the data (4 of 4)" in out
    assert "float32, nan data: x(5, 67)" in out and "is lost" in out


def test_command_on_an_op_and_a_name(capsys):
    assert run_command("relu_fprop", "reference", "--quick", "--seed", 5) == 0
    out = capsys.readouterr().out
    assert "seed 5" in out and "relu_dgrad" not in out and out.count("reference") == 1
