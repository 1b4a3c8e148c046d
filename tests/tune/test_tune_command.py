"""What is tuned: the calls of a plan; and the command."""

from __future__ import annotations

import numpy as np
import pytest
import tuning
from tuning import Best, racing

import convkit as ck
from convkit import registry, tuned
from convkit.bench import work
from convkit.cli import main
from convkit.errors import OptionError
from convkit.registry import select
from convkit.tune import jobs, measure
from convkit.tuned import Store

CONV = "2,8,9,9,16,3,3,pad=1"


@pytest.fixture(autouse=True)
def apart():
    with tuning.apart():
        yield


# ---- what is tuned --------------------------------------------------------------------------------------
def test_the_calls_of_a_plan_are_asked_as_the_plan_asks():
    """Each of them finds what the plan runs; a call that is there twice is measured once."""
    found = jobs.of_network("small", 2, "float32", "fp32", "cpu")
    assert len({job.question for job in found}) == len(found)
    by_place = {place: job for job in found for place in job.places if job.item.op != "reorder"}
    conv = by_place["conv2+relu2.fwd"]
    assert conv.question.layout == "nChw16c" and conv.item.options == {"relu": True} and not conv.item.absent
    assert by_place["conv2+relu2.dgrad"].item.op == "conv2d_dgrad"
    assert by_place["conv1.w.update"].question.flags == ("finite",)
    assert any(len(job.places) > 1 for job in found)
    net = ck.AlexNet("small", seed=0)
    net.step(np.zeros((2, 3, 32, 32), np.float32), np.array([3, 7]))
    ran = {(c.op.name, c.problem, c.implementation.label) for calls in net.plan(batch=2).phases().values()
           for c in calls}  # fmt: skip
    assert ran == {(j.item.op, j.item.problem, j.default().label) for j in found}


def test_calls_are_found_by_layer_direction_and_op():
    found = jobs.of_network("small", 2, "float32", "fp32", "cpu")
    assert {j.item.op for j in jobs.at(found, "conv2.dgrad")} == {"conv2d_dgrad"}
    assert {j.item.op for j in jobs.at(found, "relu2.fprop")} == {"conv2d_fprop"}
    assert all(j.item.op == "sgd_momentum" for j in jobs.at(found, "sgd_momentum"))
    chosen = jobs.only(found, ["conv2"], ["fwd", "dgrad"])
    assert {j.item.op for j in chosen} == {"conv2d_fprop", "conv2d_dgrad"}
    with pytest.raises(OptionError, match="unknown call 'conv2.grad'; did you mean 'conv2"):
        jobs.at(found, "conv2.grad")
    for bad in ({"layers": ["conv9"]}, {"directions": ["up"]}, {"ops": ["conv"]}):
        with pytest.raises(OptionError, match="unknown"):
            jobs.only(found, **bad)
    with pytest.raises(OptionError, match="nothing to tune"):
        jobs.only(found, ["loss"], ["wgrad"])


# ---- the command ----------------------------------------------------------------------------------------
@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`convkit tune`, with a file of its own; times are one for all."""
    monkeypatch.setattr(measure, "race", racing(Best("direct")))
    monkeypatch.setattr(measure, "gate", lambda implementation, dtype: "")

    def call(*argv, status=0):
        assert main(["tune", "--device", "cpu", "--file", str(tmp_path / "t.json"), *argv]) == status
        return capsys.readouterr().out

    return call


def test_the_command_tunes_explains_and_forgets(command, tmp_path):
    out = command("--conv", CONV)
    assert "conv2d_fprop" in out and "3 calls: " in out and f"kept in {tmp_path / 't.json'}" in out
    out = command("--conv", CONV)
    assert "3 of them were kept from before" in out
    place = f"{CONV}.fwd"
    out = command("--conv", CONV, "--why", place)
    (entry,) = [e for e in Store.read(tmp_path / "t.json").choices.values() if e["op"] == "conv2d_fprop"]
    assert entry["default"]["implementation"] in out and "the default" in out and "2 " in out
    with tuned.using(Store.read(tmp_path / "t.json")):
        assert select("conv2d_fprop", work.convolution(CONV)).name == entry["chosen"]["implementation"]
    assert "1 choices forgotten" in command("--conv", CONV, "--directions", "fwd", "--forget")
    assert "nothing was tuned for this call" in command("--conv", CONV, "--why", place)
    assert "2 choices forgotten" in command("--forget")
    assert not Store.read(tmp_path / "t.json").choices


def test_what_was_chosen_runs_in_the_same_process(command, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKIT_TUNED", str(tmp_path / "t.json"))
    tuned.reload()
    before = select("conv2d_fprop", work.convolution(CONV)).name
    command("--conv", CONV)
    assert before != "direct" and select("conv2d_fprop", work.convolution(CONV)).name == "direct"


def test_an_op_that_no_network_has_is_tuned_on_its_own_cases(command):
    out = command("--op", "avgpool2d_fprop", "--batch", "2", "--dry-run")
    assert "avgpool2d_fprop" in out and "the default" in out


def test_a_network_is_tuned_call_by_call(command):
    out = command("--preset", "small", "--batch", "2", "--layers", "conv2", "--directions", "fwd,wgrad")
    assert out.count("faster") == 3 and "2 calls: 2 faster" in out  # and why: direct takes half the time
    out = command("--preset", "small", "--batch", "2", "--why", "conv2.fprop")
    assert "direct is chosen: winograd takes 2.00 x its time [2.00, 2.00]" in out


def test_a_dry_run_lists_and_measures_nothing(command, tmp_path):
    out = command("--preset", "small", "--batch", "2", "--layers", "conv2", "--dry-run")
    assert "winograd" in out and "the default" in out and not (tmp_path / "t.json").exists()


def test_without_a_gpu_it_says_so_in_a_line(command, capsys, tmp_path, monkeypatch):
    path = str(tmp_path / "t.json")
    for more in ([], ["--why", "conv3.dgrad"]):
        assert main(["tune", "--device", "cuda", "--file", path, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("convkit tune: no GPU was found")
    assert main(["tune", "--device", "cuda", "--dry-run", "--layers", "conv3", "--directions", "dgrad"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("no GPU was found: what follows is for an H200\n")
    assert "implicit_gemm[" in out and "registers: " in out and "is no multiple of" in out
    argv = ["--conv", "128,96,27,27,256,5,5,pad=2,groups=2", "--directions", "fwd", "--dtype", "bfloat16"]
    assert main(["tune", "--device", "cuda", "--dry-run", *argv, "--layout", "NHWC, KRSC"]) == 0
    out = capsys.readouterr().out
    assert "NHWC, KRSC, bfloat16" in out and "STAGES=4" in out


def test_a_call_that_nothing_runs_is_left_out(capsys):
    """As a network in 16 bits may have them, for want of a kernel."""
    before = ["tune", "--device", "cuda", "--dry-run", "--preset", "small", "--batch", "2"]
    assert main(before) == 0
    count = int(capsys.readouterr().out.split()[-2])
    registry._IMPLEMENTATIONS.pop(("label_rank", "cuda", "row", "NCHW"))
    assert main(before) == 0
    assert int(capsys.readouterr().out.split()[-2]) == count - 1
    assert main([*before, "--op", "label_rank"]) == 2
    assert "nothing to tune: no implementation takes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dry-run", "--forget"], "--dry-run, --why and --forget are for one run each"),
        (["--rounds", "0", "--conv", CONV], "--rounds must be at least 1"),
        (["--jobs", "0", "--conv", CONV], "--jobs must be at least 1"),
        (["--preset", "smal"], "unknown preset 'smal'"),
        (["--batch", "0"], "--batch takes whole numbers"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--math", "fp8"], "unknown math 'fp8'"),
        (["--op", "conv"], "unknown op 'conv'"),
        (["--layout", "NHWC"], "--layout is for --conv"),
        (["--conv", CONV, "--layout", "NHCW"], "unknown layout 'NHCW'"),
        (["--kernel", "mine.py"], "--kernel takes CUDA kernel files"),
        (["--conv", CONV, "--layers", "conv1"], "--conv stands in the place of the network"),
        (["--device", "emulator"], "the emulator gives no times"),
    ],
)
def test_a_mistake_is_a_line(argv, message, capsys, tmp_path):
    assert main(["tune", "--device", "cpu", "--file", str(tmp_path / "t.json"), *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convkit tune: ") and message in line


def test_a_file_that_is_not_understood_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "t.json"
    path.write_text("{}")
    assert main(["tune", "--device", "cpu", "--file", str(path), "--conv", CONV]) == 2
    said = capsys.readouterr().err
    assert "says no format" in said and "remove it, or name another file: --file FILE" in said
    assert path.read_text() == "{}"
