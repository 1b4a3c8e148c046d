"""bench/host.py: every op is in its tables, samples are in the JSON, and what it times is what a GPU gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit import devices
from convkit.cuda.null import nulled
from convkit.op import OPS

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import host  # noqa: E402
import host_ops  # noqa: E402

ROUNDS = 2


def run(capsys, tmp_path, *arguments):
    path = tmp_path / "host.json"
    assert host.main(["--rounds", str(ROUNDS), "--json", str(path), *arguments]) == 0
    return capsys.readouterr().out, json.loads(path.read_text())


def test_every_op_is_in_the_tables_and_every_sample_in_the_json(capsys, tmp_path):
    text, made = run(capsys, tmp_path, "--sections", "ops,cpu")
    for section, title in (("ops", "CUDA path without launches"), ("cpu", "CPU path")):
        rows = [r for r in made["rows"] if r["section"] == section and r["library"] == "convkit"]
        assert sorted(r["name"] for r in rows) == sorted(OPS)
        part = text[text.index(title) :].split("\n\n\n")[0]
        assert all(any(line.startswith(f"{op} ") for line in part.splitlines()) for op in OPS)
        for row in rows:
            assert row["note"] or len(row["wall_us"]) == len(row["thread_us"]) == ROUNDS
            assert row["note"] or row["launches"] in ((1, 2) if section == "ops" else (None,))
            assert bool(row["note"]) == (row["thread_us_median"] is None)
        assert not any(r["note"] for r in rows if section == "cpu" or r["name"].startswith("conv2d_fprop"))
    assert made["settings"]["rounds"] == ROUNDS and "numpy" in made["machine"]["versions"]


def test_a_step_and_its_parts(capsys, tmp_path):
    text, made = run(capsys, tmp_path, "--sections", "step", "--preset", "paper")
    whole, graph, checks, each, bare = made["rows"]
    assert graph["launches"] == 1
    assert whole["launches"] == each["launches"] == bare["launches"] > 60 and checks["launches"] == 0
    assert "goal: at most 1 ms" in text
    assert all(len(row["thread_us"]) == ROUNDS for row in made["rows"])


def test_pytorch_is_asked_for_the_same():
    """Where nothing is random and the results have one meaning: the same numbers, so the same problem."""
    torch = need("torch")
    mine, theirs = host_ops.convkit_calls(), host_ops.torch_calls(torch)
    assert set(theirs) <= set(mine)
    for op in theirs.keys() - {"dropout_fprop", "dropout_dgrad", "sgd_momentum", "softmax_xent_dgrad"}:
        got, want = mine[op](), theirs[op]()
        got = got[0] if isinstance(got, tuple) else got
        while not torch.is_tensor(want):  # the one that was asked for among a function's several
            want = next(value for value in want if value is not None)
        np.testing.assert_allclose(
            got.ravel(), want.detach().numpy().ravel(), rtol=1e-4, atol=1e-5, err_msg=op
        )


def test_ratios_are_taken_within_a_round():
    mine = host.Row("cpu", "op", wall_us=[10.0, 20.0, 90.0], thread_us=[1.0] * 3)
    theirs = host.Row("cpu", "op", "torch", wall_us=[5.0, 10.0, 30.0], thread_us=[1.0] * 3)
    assert host.ratio(mine, theirs) == 2.0
    assert "2.00" in host.table([mine, theirs]) and "not installed" in host.table([mine])


def test_help_and_bad_input(capsys):
    done = subprocess.run(
        [sys.executable, str(BENCH / "host.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in host.SECTIONS)
    for wrong, words in (
        (["--sections", "opz"], "unknown section 'opz'; known: ops, step, cupy, cpu"),
        (["--rounds", "0"], "must be an integer of at least 1"),
        (["--sections", "step", "--preset", "papr"], "papr"),
    ):
        with pytest.raises(SystemExit) as caught:
            host.main(wrong)
        assert caught.value.code == 2 and words in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------
# CuPy
# ---------------------------------------------------------------------------------------------------
def test_without_cupy_it_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    text, made = run(capsys, tmp_path, "--sections", "cupy")
    assert "CuPy, which is not installed" in text and made["rows"][0]["note"]


@pytest.fixture
def gpu(cuda, monkeypatch):
    """The real executor, on the stand-in for CuPy; no kernel is compiled."""
    monkeypatch.setattr(cuda, "cached_cubin", lambda *_, **__: b"machine code")
    devices.gpu_found.cache_clear()
    yield cuda
    devices.gpu_found.cache_clear()


def test_cupys_own_share_is_apart(gpu, capsys, tmp_path):
    text, made = run(capsys, tmp_path, "--sections", "cupy")
    launches = [row for row in made["rows"] if row["launches"]]
    assert [row["name"] for row in launches] == [
        "relu_fprop, 3 arguments", "conv2d_fprop, 7 arguments", "sgd_momentum, 14 arguments",
    ]  # fmt: skip
    assert all(len(row["thread_us"]) == ROUNDS for row in made["rows"]) and "CuPy's own share" in text


def test_nothing_but_the_launch_is_left_out(gpu, monkeypatch):
    """What the null executor packs, by call and launch, is what CuPy's functions are given."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 8, 9, 7), np.float32), rng.standard_normal((6, 8, 3, 3), np.float32)
    dy, small = rng.standard_normal((4, 6, 7, 5), np.float32), rng.standard_normal(w.shape, np.float32)
    calls = (
        lambda x, w, dy, s: ck.conv2d_fprop(x, w),  # a null pointer: no bias
        lambda x, w, dy, s: ck.conv2d_fprop(x, w, s[:, 0, 0, 0].copy(), relu=True, stride=2),
        lambda x, w, dy, s: ck.conv2d_dgrad(dy, w, x.shape),
        lambda x, w, dy, s: ck.conv2d_wgrad(x, dy, w.shape),
        lambda x, w, dy, s: ck.conv2d_bgrad(dy),  # two launches, scratch memory
        lambda x, w, dy, s: ck.lrn_fprop(x),
        lambda x, w, dy, s: ck.maxpool2d_fprop(x),
        lambda x, w, dy, s: ck.dropout_fprop(x, p=0.3, seed=2**40 + 1, offset=5),
        lambda x, w, dy, s: ck.sgd_momentum(w, s, s, lr=0.1, weight_decay=1e-4),
    )

    def plain(launches):
        found = []
        for grid, block, arguments, shared in launches:
            values = []
            for value in arguments:
                if isinstance(value, (np.ndarray, fake_cupy.ndarray)):
                    values.append((value.dtype, value.shape))
                else:
                    values.append((type(value), value.dtype, value.tobytes()))
            found.append((grid, block, values, shared))
        return found

    on_gpu, launches = [], []
    monkeypatch.setattr(
        fake_cupy.Function, "__call__",
        lambda self, grid, block, args, shared_mem=0, **_: on_gpu.append((grid, block, args, shared_mem)),
    )  # fmt: skip
    there = [gpu.cupy.asarray(a) for a in (x, w, dy, small)]
    for call in calls:
        call(*there)
    with nulled(lambda *launch: launches.append(launch)):
        for call in calls:
            call(x, w, dy, small)
    assert len(on_gpu) > len(calls) and plain(launches) == plain(on_gpu)
    kinds = {type(value) for launch in launches for value in launch[2]}
    assert kinds == {np.void, np.ndarray, np.uint64, np.int32, np.float32, np.float64}
