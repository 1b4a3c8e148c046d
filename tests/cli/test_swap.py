"""`convkit swap`: opposite verdicts on right and wrong candidates, and on what happens in training alone."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from conftest import need

from convkit import registry, swap
from convkit.check import Limits, Verdict, check_step
from convkit.check.process.candidate import Candidate
from convkit.check.process.memory import Shared
from convkit.cli import main
from convkit.network.alexnet import AlexNet
from convkit.network.presets import preset
from convkit.paths import kernels_dir
from convkit.swap import places
from convkit.swap.report import Curve, Gradients, Report
from convkit.train.patterns import Patterns

#: Convolution from convkit's own definition; what stands in for BUG makes it a wrong one.
CONVOLUTION = """
from dataclasses import replace
import numpy as np
import convkit as ck
from convkit.op import OPS

calls = 0

@ck.implements("conv2d_fprop", name="mine", rank=-1)
def fprop(g, x, w, b, y, *, relu=False):
    global calls
    calls += 1
    OPS["conv2d_fprop"].define(g, x, w, b, y, relu=relu)
    BUG_FPROP

@ck.implements("conv2d_dgrad", name="mine", rank=-1)
def dgrad(g, dy, w, dx):
    OPS["conv2d_dgrad"].define(g, dy, w, dx)
    BUG_DGRAD

@ck.implements("conv2d_wgrad", name="mine", rank=-1)
def wgrad(g, x, dy, dw):
    OPS["conv2d_wgrad"].define(g, x, dy, dw)
    BUG_WGRAD
"""
#: A wrong convolution each: what it does after the right one, and the op that is to be named.
WRONG = {
    "a relative error of 1e-3 in dgrad": ("BUG_DGRAD", "dx *= np.float32(1.001)", "conv2d_dgrad"),
    "the last row is a little too small": ("BUG_FPROP", "y[..., -1, :] *= np.float32(0.999)", "conv2d_fprop"),
    "the last filter's gradient is not written": ("BUG_WGRAD", "dw[-1] = np.nan", "conv2d_wgrad"),
    "the last image does not count": (
        "BUG_WGRAD",
        "OPS['conv2d_wgrad'].define(replace(g, N=g.N - 1), x[:-1], dy[:-1], dw)",
        "conv2d_wgrad",
    ),
}
#: What a candidate does in training alone: the calls before are right.
LATE = {
    "hang": ("while calls > 6: pass", "had not ended after 3 s, at mine.py:"),
    "drift": ("if calls > 6: y *= np.float32(1.001)", "after the run: y["),
    "NaN": ("if calls > 6: y[0, 0, 0, 0] = np.nan", "NaN"),
    "exit": ("if calls > 6: import os; os._exit(0)", "ended with exit status 0"),
    "raise": ("if calls > 6: raise ValueError('enough')", "raised ValueError: enough (mine.py:"),
}
#: Batches of two, three steps, in a layer for which no implementation has to be compiled first.
SHORT = ["--batch", "2", "--steps", "3", "--layer", "conv4"]


@pytest.fixture
def candidate(tmp_path):
    """Write a candidate; `place` and `bug` say where it is wrong."""

    def write(place: str = "", bug: str = "pass") -> str:
        text = CONVOLUTION.replace(place, bug) if place else CONVOLUTION
        for left in ("BUG_FPROP", "BUG_DGRAD", "BUG_WGRAD"):
            text = text.replace(left, "pass")
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return write


def quick(kinds: dict[str, Any], count: int) -> list[Any]:
    """The first kinds; the others start as many processes again and are slow for what they add."""
    return [pytest.param(k, marks=[pytest.mark.slow] if n >= count else []) for n, k in enumerate(kinds)]


class Here:
    """In the place of a process of convkit's own implementations: they need not be contained."""

    what, name, limits = "shipped", "convkit", Limits()

    def __init__(self) -> None:
        self.shared = Shared()
        self._end = Candidate(self.shared, {})

    def ask(self, message: dict[str, Any], grace: float = 0.0) -> dict[str, Any]:
        answer = json.loads(json.dumps(self._end.answer(pickle.dumps(message), again=False)))
        assert "raised" not in answer, answer
        return answer


@pytest.fixture
def few_processes(monkeypatch):
    """Only the candidate has a process of its own: each takes a second to start."""
    monkeypatch.setattr(swap._Swap, "_shipped", lambda self, stack: Here())


def test_a_right_candidate_is_safe(candidate, capsys, tmp_path):
    """With its figures, its picture, and nothing of it left in the registry."""
    before = registry.implementations(layout=None)
    need("matplotlib")
    target, picture = tmp_path / "swap.json", tmp_path / "swap.png"
    assert main(["swap", candidate(), *SHORT, "--json", str(target), "--picture", str(picture)]) == 0
    text, errors = capsys.readouterr()
    # What the network's own cases do not ask, the gate does; that is said once, and not as a warning.
    assert text.count("has not passed the gate as it is now: convkit check") == 3 and not errors
    assert "swap is safe: all of its 6 calls in two steps are right" in text
    assert "runs in conv4: conv2d_fprop, conv2d_dgrad, conv2d_wgrad" in text
    found = json.loads(target.read_text())
    assert found["ok"] and found["faults"] == []
    assert [v["op"] for v in found["calls"]] == ["conv2d_fprop", "conv2d_wgrad", "conv2d_dgrad"]
    for curve in ("without", "candidate", "other"):
        assert len(found[curve]["losses"]) == len(found[curve]["seconds"]) == 3
    # The gradients are those of two processes, and differ by rounding alone.
    assert 0 < found["gradients"]["conv4.w"]["candidate"][0] < 1e-4
    assert found["gradients"].keys() == dict(AlexNet("small").params).keys()
    assert found["other_names"]["conv4"].keys() == {"conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"}
    image = need("PIL.Image").open(picture)
    assert image.width > 1000 and np.asarray(image).std() > 10
    assert registry.implementations(layout=None) == before


@pytest.mark.parametrize("kind", quick(WRONG, 2))
def test_a_wrong_call_is_named_and_nothing_is_trained(candidate, capsys, kind):
    place, bug, op = WRONG[kind]
    assert main(["swap", candidate(place, bug), *SHORT]) == 1
    text = capsys.readouterr().out
    assert "swap FAILS: conv4" in text and f"{op} 'mine'" in text
    assert "WRONG" in text and "steps, in turns" not in text


@pytest.mark.parametrize("kind", quick(LATE, 2))
def test_what_goes_wrong_in_training_alone_is_a_verdict(candidate, capsys, few_processes, kind):
    bug, reason = LATE[kind]
    assert main(["swap", candidate("BUG_FPROP", bug), *SHORT, "--timeout", "3"]) == 1
    text = capsys.readouterr().out
    assert "swap FAILS: " in text and reason in " ".join(text.split())
    assert "WRONG" not in text.partition("rms    after")[0]


def test_going_on_after_a_wrong_call_shows_what_it_does_to_gradients(candidate, tmp_path, few_processes):
    """An error of 1e-3 in conv4's dx reaches the gradients below it, and none above."""
    target = tmp_path / "swap.json"
    bug = candidate("BUG_DGRAD", "dx *= np.float32(1.001)")
    assert main(["swap", bug, *SHORT, "--go-on", "--json", str(target)]) == 1
    found = json.loads(target.read_text())["gradients"]
    for name, one in found.items():
        below = name.startswith(("conv1", "conv2", "conv3"))
        assert (np.median(one["candidate"]) > 5e-4) == below, name
        assert np.median(one["spread"]) < 1e-4, name


def test_a_kernel_file_is_emulated_in_a_network_on_the_cpu(tmp_path, capsys, compiler, few_processes):
    text = (kernels_dir() / "conv2d_fprop_naive.cu").read_text()
    text = text.replace("conv2d_fprop_naive", "conv2d_fprop_mine")
    loop = "for (int c = 0; c < channels; ++c) {"
    assert text.count(loop) == 1
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder, source in (
        (right, text),
        (wrong, text.replace(loop, loop + " if (c == channels - 1 && top < 0) break;")),
    ):
        folder.mkdir()
        (folder / "conv2d_fprop_mine.cu").write_text(source)
    argv = ["--emulate", "--batch", "1", "--steps", "2", "--layer", "conv5"]
    assert main(["swap", str(right / "conv2d_fprop_mine.cu"), *argv]) == 0
    assert "its time is the emulator's and says nothing" in " ".join(capsys.readouterr().out.split())
    assert main(["swap", str(wrong / "conv2d_fprop_mine.cu"), *argv]) == 1
    assert "conv5+relu5: conv2d_fprop 'mine (emulated)'" in capsys.readouterr().out


OTHER = """
import convkit as ck
from convkit.op import OPS

@ck.implements("{op}", name="{name}", rank=-1{more})
def run(problem, *tensors, **options):
    OPS["{op}"].define(problem, *tensors, **options)
"""


@pytest.mark.parametrize(
    "op, more, argv, words",
    [
        ("relu_fprop", "", ["--layer", "relu7x"], "unknown layer of small 'relu7x'"),
        ("relu_fprop", "", ["--layer", "conv1"], "the layers that have one: relu1, relu2"),
        ("avgpool2d_fprop", "", [], "small has no call of avgpool2d_fprop; its layers run conv2d_bgrad"),
        ("relu_fprop", ", when=lambda g: 'not on Sundays'", [], "relu3: relu_fprop: mine: not on Sundays"),
        ("relu_fprop", "", ["--impl", "yours"], "unknown implementation in the file 'yours'"),
        ("relu_fprop", "", ["--preset", "large"], "unknown preset 'large'"),
        ("relu_fprop", "", ["--steps", "0"], "steps must be at least 1"),
        ("relu_fprop", "", ["--picture", "swap.jpg"], "its name ends in .png"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_out(tmp_path, capsys, op, more, argv, words):
    path = tmp_path / "mine.py"
    path.write_text(OTHER.format(op=op, name="mine", more=more))
    assert main(["swap", str(path), *argv]) == 2
    assert words in capsys.readouterr().err


def test_two_of_one_op_are_for_the_user_to_choose_from(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(OTHER.format(op="relu_fprop", name="a", more="") + OTHER.format(
        op="relu_fprop", name="b", more=""))  # fmt: skip
    assert main(["swap", str(path)]) == 2
    assert "more than one relu_fprop: a, b; choose one with --impl" in capsys.readouterr().err


def test_a_file_that_ends_its_process_is_not_safe(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("print('bye'); import os; os._exit(0)")
    assert main(["swap", str(path)]) == 1
    captured = capsys.readouterr()
    assert "swap FAILS: it could not be loaded: its process ended with exit status 0" in captured.out


def test_no_verdict_without_the_device(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convkit.devices.gpu_found", lambda device="cuda": False)
    path = tmp_path / "mine.py"
    path.write_text(OTHER.format(op="relu_fprop", name="mine", more=", device='cuda'"))
    assert main(["swap", str(path)]) == 1
    assert "no verdict: it was not run: it is for a GPU" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------
def test_another_right_implementation_is_not_the_one_that_runs_by_itself():
    """Nor one of its name, which would round in the same way and show no spread."""
    net = AlexNet("small")
    asked = {
        "norm1": {"lrn_fprop": "mine"},
        "conv2": {"conv2d_fprop": "mine"},
        "relu3": {"relu_fprop": "mine"},
    }
    found = places.another_right_one(net, 2, asked)
    used = {(layer, row.implementation) for row in net.plan(2).rows() for layer in row.layer.split("+")}
    assert found.keys() == asked.keys()
    for layer, ops in found.items():
        assert ops.keys() == asked[layer].keys()
        assert not {(layer, name) for name in ops.values()} & used


def test_the_patterns_can_be_learned():
    """The same seed gives the same batches; the loss of twenty steps falls, for more than one seed."""
    data = Patterns(preset("small"), 1)
    assert np.array_equal(data.batch(3, 4)[0], Patterns(preset("small"), 1).batch(3, 4)[0])
    assert not np.array_equal(data.batch(3, 4)[0], data.batch(4, 4)[0])
    assert set(data.batch(0, 6)[1]) == {0, 1, 2, 3}
    for seed in (0, 1):
        net, data = AlexNet("small", seed=seed), Patterns(preset("small"), seed)
        losses = [float(net.step(*data.batch(n, 16), lr=0.005)) for n in range(20)]
        assert np.mean(losses[-5:]) < 0.7 * losses[0]


def report(candidate: list[float], spread: list[float], losses: list[float] | None = None) -> Report:
    made = Report("mine.py", "small", 2, 3, 0, 0.01, "cpu")
    made.gradients = {"conv1.w": Gradients(candidate, spread)}
    made.gradient_steps = [1, 2, 3]
    right = [2.0, 1.5, 1.0]
    made.without, made.other = Curve(right, [0.1] * 3), Curve(right, [0.1] * 3)
    made.candidate = Curve(right if losses is None else losses, [0.2] * 3)
    made.calls = made.calls_after = [Verdict("conv2d_fprop", "mine", "conv1, x", "float32", True)]
    return made


@pytest.mark.parametrize(
    "made, words",
    [
        (report([1e-6, 2e-6, 1e-6], [1e-6, 1e-6, 1e-6]), ""),
        # One step in which rounding turned a ReLU the other way.
        (report([1e-6, 3e-2, 1e-6], [1e-6, 1e-6, 1e-6]), ""),
        (report([1e-3, 1e-3, 1e-6], [1e-6, 1e-6, 1e-6]), "the gradient of conv1.w differs by 1.0e-03"),
        (report([1e-6, 0.9, 1e-6], [1e-6, 1e-6, 1e-6]), "before step 2 the gradient of conv1.w differs"),
        (report([1e-6, 0.9, 1e-6], [1e-6, 0.3, 1e-6]), ""),
        # Where no spread could be measured, ten times as much is allowed.
        (report([9e-5, 9e-5, 9e-5], []), ""),
        (report([9e-5, 9e-5, 9e-5], [0, 0, 0]), ""),
        (report([1e-3, 1e-3, 1e-3], [0, 0, 0]), "the gradient of conv1.w differs by 1.0e-03"),
        (report([1e-6, np.inf, 1e-6], [1e-6, 1e-6, 1e-6]), "the gradient of conv1.w is not finite"),
        (report([0, 0, 0], [0, 0, 0], [2.0, 1.5, np.nan]), "the loss of step 3 is nan"),
        (report([0, 0, 0], [0, 0, 0], [2.0, 2.0, 2.0]), "the mean loss of the second half is 2 instead"),
        (report([0, 0, 0], [0, 0, 0], [2.0, 1.6, 1.1]), ""),
    ],
)  # fmt: skip
def test_the_verdict(made, words):
    assert made.ok == (not words)
    assert made.verdict.startswith(f"swap FAILS: {words}" if words else "swap is safe")
    assert made.ratio.middle == pytest.approx(2)


def test_a_run_that_was_cut_short_is_no_verdict():
    made = report([0, 0, 0], [0, 0, 0], [2.0, 1.5])
    assert not made.ok and made.verdict.startswith("no verdict")


def test_from_python(candidate, few_processes):
    found = swap.swap(candidate(), layer="conv5", steps=1, batch=1)
    assert found.ok and found.places == {"conv5": dict.fromkeys(found.candidates, "mine")}
    assert len(found.gradients["conv5.w"].candidate) == 3


def test_elementwise_calls_are_compared_in_the_layout_of_their_neighbours():
    """A ReLU that stands alone among blocked feature maps."""
    net = AlexNet("small")
    net.use("relu1", relu_fprop="vectors")
    x, labels = Patterns(preset("small")).batch(0, 2)
    (call,) = [c for c in net.plan(2).calls() if c.op.name == "relu_fprop" and c.layer == "relu1"]
    assert call.outputs[0].ndim == 5
    assert all(v.ok for v in check_step(net, x, labels))
    (y,) = call.nchw(call.op.outputs, call.outputs)
    (given,) = call.nchw(call.op.inputs, call.inputs)
    assert y.shape == (2, 32, 32, 32) and np.array_equal(y, np.maximum(given, 0))
