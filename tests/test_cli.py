"""The command line, as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import simulated
from conftest import need

from convkit import probe, profile
from convkit.cli import main


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.png"
    need("PIL.Image").effect_noise((256, 256), 60).convert("RGB").save(path)
    return str(path)


def test_alexnet_prints_the_table(image, capsys, tmp_path, monkeypatch):
    """With times of a clock on which every call takes a millisecond."""
    monkeypatch.setattr(profile, "time", simulated.Clock(look=1e-3).module())
    monkeypatch.setattr(probe, "peak_gflops", lambda **_: probe.Peak(500.0, "by decree", "none", 1))
    report = tmp_path / "report.json"
    status = main(
        ["alexnet", image, "--preset", "owt", "--batch", "1", "--repeats", "1", "--json", str(report)]
    )
    captured = capsys.readouterr()
    assert status == 0
    for text in ("conv1+relu1", "% peak", "error", "images/s", "61,100,840 parameters", "loss"):
        assert text in captured.out
    document = json.loads(report.read_text())
    rows = {row["layer"]: row for row in document["rows"]}
    assert rows["conv2+relu2"]["output"] == "1x192x27x27"
    assert document["peak_gflops"] == 500
    for row in rows.values():
        assert 0 <= row["error"] < 1e-5, row
        assert row["forward_ms"] == pytest.approx(round(row["forward_ms"])) and row["forward_ms"] > 0.9, row
        assert row["peak_percent"] == pytest.approx(100 * row["gflops"] / 500), row
        assert row["gflops"] > 0 or row["layer"] == "flatten", row  # which moves data, and computes nothing
    # Forward, and the gradients of x and of w: three times the products of the definition.
    conv2 = rows["conv2+relu2"]
    done = conv2["gflops"] * 1e6 * (conv2["forward_ms"] + conv2["backward_ms"])
    assert done == pytest.approx(3 * 2 * 192 * 64 * 25 * 27 * 27, rel=0.01)
    assert document["images"] == ["photo.png"] and len(document["losses"]) == 2


def test_implementations_can_be_chosen_and_json_goes_to_stdout(image, capsys):
    argv = [
        "alexnet",
        image,
        "--preset",
        "owt",
        "--batch",
        "1",
        "--repeats",
        "1",
        "--no-errors",
        "--json",
        "-",
    ]
    assert main([*argv, "--impl", "linear_fprop=reference", "--impl", "maxpool2d_fprop=reference"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["layer"]: row for row in document["rows"]}
    assert rows["fc8"]["implementation"].split("/")[0] == "reference"
    assert rows["fc8"]["error"] is None


def test_diff(capsys):
    assert main(["alexnet", "--diff", "paper", "2012"]) == 0
    out = capsys.readouterr().out
    assert "norm1.groups" in out and "cnorm2.size" in out
    assert main(["alexnet", "--diff", "owt", "owt"]) == 0
    assert "do not differ" in capsys.readouterr().out


def test_list(capsys):
    assert main(["list", "conv2d_fprop"]) == 0
    out = capsys.readouterr().out
    assert "reference" in out and "native extension" in out
    for layout in ("NCHW>nChw16c", "nChw16c>NCHW", "nChw16c"):
        assert re.search(rf"conv2d_fprop +direct +cpu +{layout} +float32", out), layout
    assert "lrn_fprop" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "papr"], "did you mean 'paper'"),
        (["--impl", "conv2d_fprop=referense"], "did you mean 'reference'"),
        (["--impl", "conv2d_frop=reference"], "unknown op 'conv2d_frop'; did you mean 'conv2d_fprop'"),
        (["--impl", "reference"], "takes OP=NAME"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--math", "fp8"], "unknown math 'fp8'"),
        (["--batch", "0"], "batch must be at least 1"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--diff", "paper", "201"], "did you mean '2012'"),
        (["/absent.png"], "no such file or folder"),
        (["--json", "/absent/folder/x.json", "--repeats", "1"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, message, image, capsys):
    images = [] if argv[0].startswith("/") or argv[0] == "--diff" else [image]
    assert main(["alexnet", *images, *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert "% peak" not in captured.out


def test_help_and_version_from_the_shell():
    for argv in (["--help"], ["alexnet", "--help"], ["check", "--help"], ["list", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "convkit", *argv], capture_output=True, text=True, check=True
        )
        assert "convkit" in done.stdout and not done.stderr


def test_piped_output_survives_a_reader_that_leaves():
    command = f"{sys.executable} -m convkit list | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert "implementation" in done.stdout and "Traceback" not in done.stderr
