"""What `convkit check` prints and returns: a block for each implementation, replays, own sizes, --watch."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest

from convkit import check, registry
from convkit.check import check_these, explain
from convkit.check.explain import Commands
from convkit.check.rerun import Sanitizer
from convkit.cli import _watch
from convkit.cli import check as command
from convkit.cuda.emulate import emulate
from convkit.cuda.launch import KernelError
from convkit.cuda.prepare import implementation as kernel_implementation
from convkit.errors import MissingExtra, OptionError
from convkit.op import OPS
from convkit.ops.conv2d import Conv2d
from convkit.ops.lrn import LRN
from convkit.ops.maxpool2d import Pool2d
from convkit.registry import Implementation, implementations

RIGHT = {op: OPS[op].define for op in OPS}

FILE = """
import numpy as np
import convkit as ck

@ck.implements("relu_fprop", name="of_a_file", rank=-1000)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
"""


@pytest.fixture
def registry_kept():
    implementations()
    before = dict(registry._IMPLEMENTATIONS)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


@pytest.fixture
def mine(tmp_path, registry_kept):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def run_command(*arguments):
    """In this process, which starts faster."""
    commands = argparse.ArgumentParser().add_subparsers()
    command.add(commands)
    words = [str(a) for a in (*arguments, "--in-process")]
    return command.run(commands.choices["check"].parse_args(words))


# ---------------------------------------------------------------------------------------------------
# Outcomes and exit status
# ---------------------------------------------------------------------------------------------------
def verdicts_of(run, **declared):
    return check_these([Implementation("relu_fprop", "mine", run, **declared)], quick=True, seed=1)


def right(g, x, y):
    np.maximum(x, 0, out=y)


def lacks_a_package(g, x, y):
    raise MissingExtra("this candidate", "cupy", "cuda13")


def lacks_a_feature(g, x, y):
    raise KernelError("the emulator has no inline PTX", kind="unsupported")


def lacks_a_feature_for_large_tensors(g, x, y):
    if g.size > 1000:
        lacks_a_feature(g, x, y)
    right(g, x, y)


@pytest.mark.parametrize("run", [lacks_a_package, lacks_a_feature])
def test_what_is_not_there_is_not_a_failure(run):
    verdicts = verdicts_of(run)
    assert {v.outcome for v in verdicts if v.facts.get("size", 1)} == {"not run"}
    assert "were not tried" in verdicts[0].reason
    assert explain.outcome(verdicts) == "not run" and not explain.complete(verdicts)
    text = check.blocks(verdicts)
    assert text.startswith("relu_fprop 'mine' was not run: no verdict\n  because   raised ")


def test_an_outcome_for_each_kind():
    assert {v.outcome for v in verdicts_of(right)} == {"passes"}
    assert "declines" in {v.outcome for v in verdicts_of(right, when=lambda g: "odd" if g.size % 2 else None)}
    assert "FAILS" in {v.outcome for v in verdicts_of(lambda g, x, y: None)}
    assert {v.outcome for v in verdicts_of(right, missing=lambda: "no GPU")} == {"not run"}


def test_what_is_named_must_be_judged_for_status_0():
    some, all_of_them = verdicts_of(right), verdicts_of(right, missing=lambda: "no GPU")
    others = [replace(v, implementation="other") for v in all_of_them]
    status = command._status
    assert status(some, named=True) == 0
    assert status(all_of_them, named=True) == status(all_of_them, named=False) == 1
    assert status([*some, *others], named=True) == 1 and status([*some, *others], named=False) == 0
    partly = verdicts_of(lacks_a_feature_for_large_tensors)
    assert explain.outcome(partly) == "passes" and status(partly, named=True) == 1
    assert "not run" in check.blocks(partly)
    assert status(verdicts_of(right, when=lambda g: "never"), named=True) == 1


def test_a_check_of_some_cases_is_no_pass_on_record(monkeypatch):
    kept = []
    monkeypatch.setattr(check.checked, "record", lambda i, verdicts, quick: kept.append(i.name))
    verdicts_of(lacks_a_feature_for_large_tensors)
    check_these([Implementation("relu_fprop", "mine", right)], quick=True, only="four axes")
    assert not kept
    verdicts_of(right)
    verdicts_of(lambda g, x, y: None)
    assert kept == ["mine", "mine"]


def test_the_command_says_that_there_is_no_verdict(mine, capsys):
    mine.write_text(FILE.replace("rank=-1000", "rank=-1000, missing=lambda: 'no GPU here'"))
    assert run_command(mine, "--quick") == 1
    out = capsys.readouterr().out
    assert "was not run: no verdict\n  because   no GPU here" in out and "\nno verdict, " in out


# ---------------------------------------------------------------------------------------------------
# The block
# ---------------------------------------------------------------------------------------------------
def test_the_next_step_after_a_pass(mine, capsys):
    assert run_command(mine, "--quick") == 0
    out = capsys.readouterr().out
    assert re.search(rf"relu_fprop 'of_a_file' passes \d+ cases\n  next      convkit bench {mine}", out)


def test_the_replay_fails_again(mine, capsys):
    mine.write_text(FILE.replace("np.maximum", "np.fmax"))
    assert run_command(mine, "--quick", "--like", "4,5") == 1
    replay = re.search(r"  replay    convkit check (.*)", capsys.readouterr().out)
    assert replay is not None
    again = shlex.split(replay[1])
    assert "--case" in again and "--seed" in again
    assert run_command(*again) == 1
    out = capsys.readouterr().out
    assert "FAILS 1 of 1 cases" in out and "is lost" in out


def test_the_line_of_a_python_file_is_told(mine, capsys):
    mine.write_text(FILE + "    if x.ndim == 2:\n        x[7, 0, 0]\n")
    assert run_command(mine, "--quick") == 1
    assert re.search(r"  line      mine\.py:9: IndexError \(\d+ cases\)\n", capsys.readouterr().out)


def test_what_lacks_the_same_shares_a_block():
    lacking = verdicts_of(right, missing=lambda: "no compiler")
    several = [*lacking, *(replace(v, implementation="other") for v in lacking), *verdicts_of(right)]
    text = check.blocks(
        [replace(v, implementation=f"{v.implementation}{v.missing}") for v in several], passing=False
    )
    assert (
        text == "not run, no verdict: no compiler\n  of        relu_fprop 'mineTrue', relu_fprop 'otherTrue'"
    )


def test_a_case_that_is_not_there(mine):
    with pytest.raises(OptionError, match="no case has 'nothing like it'"):
        run_command(mine, "--quick", "--case", "nothing like it")


def test_all_blocks_fit_a_terminal():
    def run(g, x, w, b, y, relu):
        RIGHT["conv2d_fprop"](g, x, w, b, y, False)

    verdicts = check_these([Implementation("conv2d_fprop", "mine", run)], quick=True, seed=1)
    text = check.blocks(verdicts, lambda v: Commands("mine.py", file=True))
    assert "cause     fails only with relu" in text
    assert all(len(line) <= 110 for line in text.splitlines() if "convkit check" not in line)
    assert text.count("FAILS") == 1


# ---------------------------------------------------------------------------------------------------
# Under the sanitizer
# ---------------------------------------------------------------------------------------------------
KERNEL = """// relu_fprop_mine
// /// kernel
// op = "relu_fprop"
// tile = { THREADS = 64 }
// grid = ["ceil_div(size, THREADS)"]
// block = ["THREADS"]
// rank = -90
// ///
extern "C" __global__ void relu_fprop_mine(GEOMETRY(Elementwise), const float* x, float* y) {
    const long long i = blockIdx.x * 64LL + threadIdx.x;
    if (i >= g.size) return;
    BODY
}
"""
OUT_OF_BOUNDS = "const float more = x[i + 1]; y[i] = more != more || x[i] < 0 ? 0 : x[i];"


def kernel(tmp_path, body):
    path = tmp_path / "relu_fprop_mine.cu"
    path.write_text(KERNEL.replace("BODY", body))
    return kernel_implementation(path)


def test_a_failing_kernel_is_rerun_under_the_sanitizer(compiler, tmp_path):
    """It reads what lies behind its input: the line is told, though only the bits are wrong."""
    chosen = kernel(tmp_path, OUT_OF_BOUNDS)
    (case,) = [c for c in check.cases("relu_fprop") if c.name == "one number"]
    question = check.Question.of(case, "float32")
    with emulate():
        plain = check.judge(chosen, question)
        verdict = Sanitizer().look(chosen, question, plain)
    assert not plain.ok and not plain.line and not plain.sanitized
    assert re.match(
        r".*relu_fprop_mine\.cu:12: out of bounds, block \(0, 0, 0\), thread \(0, 0, 0\)\n", verdict.line
    )
    assert verdict.sanitized and "just past its end" in verdict.line
    text = check.blocks([verdict], lambda v: Commands("mine.cu", file=True))
    assert "  line      " in text and "relu_fprop_mine.cu:12: out of bounds" in text


def test_a_kernel_that_does_not_compile_is_compiled_once(compiler, tmp_path):
    chosen = kernel(tmp_path, "y[i] = nothing;")
    chosen = replace(chosen, dtypes=("float32", "float64"))
    with emulate():
        verdicts = check_these([chosen], quick=True, seed=1, random=0)
    failed = [v for v in verdicts if not v.ok]
    assert [v.dtype for v in failed] == ["float32", "float64"] and {v.kind for v in failed} == {
        "compile error"
    }
    text = check.blocks(verdicts, lambda v: Commands("mine.cu", file=True))
    assert "  cause     does not compile\n" in text and "the other cases in float64 were not tried" in text
    assert (
        "relu_fprop_mine.cu:12: does not compile: " in text
        and "sanitize" not in text
        and "replay" not in text
    )


def test_a_feature_that_is_missing_in_some_cases_is_asked_for_in_all():
    verdicts = verdicts_of(lacks_a_feature_for_large_tensors)
    assert sum(v.missing for v in verdicts) > 3 < sum(v.outcome == "passes" for v in verdicts)
    first, rest = (v for v in verdicts_of(lacks_a_feature) if v.missing)
    assert first.facts and rest.case == "all cases" and "not one case could be run" in rest.reason


def test_a_kernel_that_is_only_wrong_has_no_line(compiler, tmp_path):
    chosen = kernel(tmp_path, "y[i] = x[i];")
    with emulate():
        verdicts = check_these([chosen], quick=True, seed=1, random=0)
    assert sum(v.sanitized for v in verdicts) == 2 and not any(v.line for v in verdicts)
    text = check.blocks(verdicts, lambda v: Commands("mine.cu", file=True))
    assert "sanitizer ran 2 of the failing cases" in text


def test_it_is_said_that_nothing_was_sanitized():
    verdicts = [replace(v, device="cuda") for v in verdicts_of(right)]
    text = check.blocks(verdicts, lambda v: Commands("mine.cu", file=True))
    assert "sanitizer not run: races" in text and "next      convkit check mine.cu --sanitize" in text
    watched = [replace(v, sanitized=True) for v in verdicts]
    text = check.blocks(watched, lambda v: Commands("mine.cu", "--sanitize", file=True))
    assert "not run" not in text and "convkit bench mine.cu ; convkit swap mine.cu" in text


# ---------------------------------------------------------------------------------------------------
# Own sizes
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "op, text, problem",
    [
        ("conv2d_fprop", "2,4,9,8,6,3,2", Conv2d(2, 4, 9, 8, 6, 3, 2)),
        (
            "conv2d_dgrad",
            "2, 4,9,8,6,3,2,stride=2x1,pad=1,groups=2",
            Conv2d(2, 4, 9, 8, 6, 3, 2, 2, 1, 1, 1, 1, 1, groups=2),
        ),
        ("maxpool2d_fprop", "2,4,9,8", Pool2d.of((2, 4, 9, 8))),
        (
            "maxpool2d_dgrad",
            "2,4,9,8,window=2,stride=1,ceil_mode=true",
            Pool2d.of((2, 4, 9, 8), window=2, stride=1, ceil_mode=True),
        ),
        (
            "lrn_fprop",
            "2,4,9,8,size=3,alpha=0.1,region=within_channel",
            LRN.of((2, 4, 9, 8), size=3, alpha=0.1, region="within_channel"),
        ),
    ],
)
def test_like(op, text, problem):
    cases = check.like(text, [op])
    assert {c.problem for c in cases} == {problem} and {c.op for c in cases} == {op}
    assert all(c.name == "like " + text.replace(" ", "") for c in cases)


def test_like_fits_every_op():
    for op in OPS:
        letters = len({k for k in vars(OPS[op].cases.bases()[0]) if len(k) == 1})
        sizes = {"conv2d_bgrad": 4, "linear_bgrad": 2}.get(op, letters)
        found = []
        for count in (1, 2, 3, 4, 7):
            text = ",".join(["2", "4", "9", "8", "6", "3", "2"][:count])
            try:
                found += [count for c in check.like(text, [op]) if check.Question.of(c, "float32")]
            except OptionError:
                continue
        assert found, (op, sizes)


def test_options_of_an_op_go_round_the_own_sizes():
    cases = check.like("2,4,9,8,6,3,2", ["conv2d_fprop"])
    assert {c.options["relu"] for c in cases} == {True, False}
    assert {c.absent for c in cases} == {(), ("b",)}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "'' is neither a size nor option=value"),
        ("2,4,9", "conv2d_fprop: takes 7 sizes, N,C,H,W,K,R,S, not 3"),
        ("2,4,9,8,6,3,2,pads=1", "did you mean 'pad'"),
        ("2,4,9,8,6,3,2,pad=1x1x1", "pad is one number, or two"),
        ("2,4,9,8,6,3,2,pad=?", "pad is a number"),
        ("2,4,9,8,6,3,0", "sizes of at least 1"),
        ("2,5,9,8,6,3,2,groups=2", "C = 5 channels are not divisible by groups = 2"),
        ("2,4,9,8,6,3,22", "the window spans 22 pixels"),
        ("stride=1,2", "'2' is neither"),
    ],
)
def test_sizes_that_cannot_be(text, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        check.like(text, ["conv2d_fprop"])


def test_own_sizes_are_told(mine, capsys):
    assert run_command(mine, "--quick", "--like", "3,50", "--like", "2,3,4,5") == 0
    out = capsys.readouterr().out
    assert "  sizes     3,50 passes in float32 (error/bound 0)" in out and "2,3,4,5 passes" in out
    mine.write_text(FILE + "    y += y.shape == (3, 50)\n")
    assert run_command(mine, "--quick", "--like", "3,50") == 1
    out = capsys.readouterr().out
    assert "  sizes     3,50 FAILS in float32" in out and "fails in 1 of" in out
    assert "--like 3,50 --seed" in out


# ---------------------------------------------------------------------------------------------------
# --watch
# ---------------------------------------------------------------------------------------------------
def test_watch_runs_again_after_each_change(tmp_path):
    file = tmp_path / "mine.cu"
    file.write_text("1")
    told, waits = [], []

    def once(names):
        told.append(names)
        return len(told)

    def wait(seconds):
        """In turn: a change, a file that is away and comes back changed, a header, Ctrl-C."""
        waits.append(seconds)
        if len(waits) == 1:
            file.write_text("more")
        elif len(waits) == 2:
            file.unlink()
        elif len(waits) == 3:
            file.write_text("still more")
        elif len(waits) == 4:
            (tmp_path / "engine.cuh").write_text("x")
        else:
            raise KeyboardInterrupt

    assert _watch.watch([file], once, wait=wait) == 4
    assert told == [[], ["mine.cu"], ["mine.cu"], ["engine.cuh"]]


def test_watch_ends_with_the_last_status(mine, capsys, monkeypatch):
    states = [FILE.replace("maximum", "fmax"), "no Python", FILE]

    def wait(seconds):
        if not states:
            raise KeyboardInterrupt
        mine.write_text(states.pop(0))

    monkeypatch.setattr(_watch.watch, "__kwdefaults__", {"wait": wait})
    assert run_command(mine, "--quick", "--watch") == 0
    out = capsys.readouterr().out
    passed = [line for line in out.splitlines() if "of_a_file'" in line]
    assert [("passes" in line, "FAILS" in line) for line in passed] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    assert "4 fail that did not, such as float32, nan data" in out
    assert out.count("mine.py changed, ") == 3 and "convkit check: " in out
    assert "since the last time: 4 more pass" in out
    assert len(set(re.findall(r"seed (\d+)", out))) == 1


def test_watch_takes_a_file():
    with pytest.raises(OptionError, match="--watch takes a file"):
        run_command("relu_fprop", "--watch")
