"""`convkit train`: what it refuses, in one line and with nothing lost; what it prints."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import need

from convkit.cli import main
from convkit.train import recipe
from convkit.train.data.dataset import Data, Pixels
from convkit.train.preparation import prepare
from convkit.train.run_folder import RunFolder
from convkit.train.trained import open_run
from convkit.train.training import fit

need("safetensors")
need("cv2")
#: A run of a second: half of an epoch of a narrow network.
SHORT = ("--set", "batch=8", "--set", "steps=2", "--set", "network.widths=0.1")


def write_idx(folder: Path, labels: list[int], part: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8))):
        head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())
    return folder


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    return write_idx(tmp_path_factory.mktemp("data") / "idx", [0, 1, 2, 3] * 5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    split = Pixels(rng.integers(0, 256, (16, 32, 32, 3), np.uint8), np.arange(16) % 2)
    data = Data("two", ("a", "b"), ("a", "b"), split, split, "f00d")
    folder = tmp_path_factory.mktemp("stores") / "store"
    prepare(data, folder, workers=0)
    return folder


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("convkit.train.loop.curves.draw", lambda *_: None)


@pytest.fixture
def run(tmp_path, idx):
    """A run that is complete."""
    assert main(["train", str(idx), "--output", str(tmp_path / "run"), "--quiet", *SHORT]) == 0
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: value for name, value in files.items() if not name.endswith("lock")}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line that an unsuccessful command prints."""
    capsys.readouterr()
    try:
        status = main(["train", *map(str, arguments)])
    except SystemExit as error:  # of argparse
        status = error.code
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("warning: no training image")]
    assert status == 2 and not shown.out and len(lines) == 1, shown
    assert lines[0].startswith("convkit train: ")
    return lines[0]


OPTIONS = {
    "KEY=VALUE": ["--set", "nonsense"],
    "unknown key 'lrr'; did you mean 'lr'": ["--set", "lrr=1"],
    "lr must be a number": ["--set", "lr=high"],
    "lr must be a finite number": ["--set", "lr=nan"],
    "a batch of 500 is more than the 20 training images of idx": ["--set", "batch=500"],
    "stored images are 28 x 28": ["--recipe", "2012"],
    "recipe: schedule[1].frozen: no parameter fits 'conv9.w'": [
        "--set",
        'schedule=[{epoch=72, frozen=["conv9.w"]}]',
    ],
    "unknown recipe 'smal'": ["--recipe", "smal"],
    "cannot read the recipe mine.toml": ["--recipe", "mine.toml"],
    "unknown op 'foo'": ["--impl", "foo=bar"],
    "unknown implementation of relu_fprop 'bar'": ["--impl", "relu_fprop=bar"],
    "workers must be at least 0, not -1": ["--workers", "-1"],
    "invalid int value: 'many'": ["--workers", "many"],
    "unknown device 'tpu'": ["--device", "tpu"],
    "a GPU is cuda": ["--device", "cudas"],
    "unknown math 'coarse'": ["--math", "coarse"],
    "recipe: unknown network.dtype 'half'. Known: ": ["--dtype", "half"],
    "no such file": ["--register", "missing.py"],
    "checkpoint_steps must be at least 0, not -1": ["--checkpoint-steps", "-1"],
    "checkpoint_minutes must be above 0, not 0.0": ["--checkpoint-minutes", "0"],
}


@pytest.mark.parametrize("message", OPTIONS)
def test_options(message, idx, tmp_path, capsys):
    assert message in refused(capsys, idx, "--output", tmp_path / "run", *SHORT, *OPTIONS[message])
    assert not (tmp_path / "run").exists()


def test_no_gpu(idx, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convkit.devices.gpu_found", lambda: False)
    line = refused(capsys, idx, "--output", tmp_path / "run", "--device", "cuda")
    assert "no GPU was found" in line and "--device cpu needs none" in line


def test_what_is_missing(idx, tmp_path, capsys):
    assert '"digits" needs no download' in refused(capsys, "--output", tmp_path / "run")
    assert "--output names the folder" in refused(capsys, idx)
    assert "--output names the folder" in refused(capsys, idx, "--output", "")
    assert "'' names no file" in refused(capsys, "", "--output", tmp_path / "run")


def test_data(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "cat.jpg").write_bytes(b"")
    (tmp_path / "file").write_text("x")
    output = ("--output", tmp_path / "run")
    assert "no such folder: nowhere. DATA can be" in refused(capsys, "nowhere", *output)
    assert "has no class folders" in refused(capsys, tmp_path / "empty", *output)
    assert "images, but no class folders" in refused(capsys, tmp_path / "flat", *output)
    assert "is a file, not a folder" in refused(capsys, tmp_path / "file", *output)
    assert not (tmp_path / "run").exists()


def test_a_run_is_no_class(tmp_path, capsys):
    for key in "ab":
        (tmp_path / "tree" / key).mkdir(parents=True)
        (tmp_path / "tree" / key / "1.png").write_bytes(b"")
    line = refused(capsys, tmp_path / "tree", "--output", tmp_path / "tree" / "run", "--set", "batch=1")
    assert "the run would become one of its classes" in line
    assert not (tmp_path / "tree" / "run").exists()


def test_labels_beyond_the_classes(tmp_path, capsys):
    folder = write_idx(tmp_path / "idx", [0, 1, 2, 3] * 5)
    write_idx(folder, [0, 9], "t10k")
    line = refused(capsys, folder, "--output", tmp_path / "run")
    assert "a label is 9, but those of training end at 3" in line


def test_labels_without_an_image_are_named(tmp_path, capsys):
    """An IDX file says no number of classes: one label of 255 makes 256 of them."""
    folder = write_idx(tmp_path / "idx", [0, 1, 2, 255] * 5)
    assert main(["train", str(folder), "--output", str(tmp_path / "run"), *SHORT]) == 0
    shown = capsys.readouterr().err
    assert "warning: no training image has one of 252 labels: 3, 4, 5, ...\n" in shown


def test_output(idx, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    line = refused(capsys, idx, "--output", tmp_path / "file")
    assert "cannot make a run's folder" in line and "Not a directory" in line
    assert "Not a directory" in refused(capsys, idx, "--output", tmp_path / "file" / "run")
    assert "holds other things ('file')" in refused(capsys, idx, "--output", tmp_path)
    if sys.platform == "linux":  # root may write everywhere else
        assert "cannot make a run's folder /proc/run" in refused(capsys, idx, "--output", "/proc/run", *SHORT)


def test_an_output_that_holds_a_run(run, idx, capsys):
    before = content(run)
    assert "holds a run already: --resume goes on with it" in refused(capsys, idx, "--output", run)
    assert content(run) == before


def test_a_run_that_cannot_go_on_is_as_it_was(run, idx, tmp_path, capsys):
    before = content(run)
    resume = ("--output", run, "--resume")
    line = refused(capsys, idx, *resume, "--recipe", "2012")
    assert "a run of another recipe" in line and 'network.preset: "small" against "2012"' in line
    assert "batch: 8 against 16" in refused(capsys, idx, *resume, "--set", "batch=16")
    assert "no such folder" in refused(capsys, tmp_path / "gone", *resume)
    other = write_idx(tmp_path / "other", [0, 1] * 10)
    assert "it has 4 classes, the data 2" in refused(capsys, other, *resume)
    same = write_idx(tmp_path / "same", [3, 2, 1, 0] * 5)
    assert "as many images, but other ones" in refused(capsys, same, *resume)
    with RunFolder.open(run).lock():
        assert "is in use: process" in refused(capsys, idx, *resume)
    assert content(run) == before


def test_another_networks_checkpoint(run, idx, tmp_path, capsys):
    wide = [*SHORT[:-1], "network.widths=0.2"]
    assert main(["train", str(idx), "--output", str(tmp_path / "wide"), "--quiet", *wide]) == 0
    shutil.copy(tmp_path / "wide" / "last.safetensors", run)
    before = content(run)
    line = refused(capsys, idx, "--output", run, "--resume", "--set", "steps=3")
    assert "is of another network" in line and "conv1.w has shape" in line
    assert content(run) == before


def test_a_damaged_store(store, tmp_path, capsys):
    given = (tmp_path / "store", "--output", tmp_path / "run")
    shutil.copytree(store, tmp_path / "store")
    shard = tmp_path / "store" / "train-00000.npy"
    good = shard.read_bytes()
    shard.unlink()
    assert "train-00000.npy is missing: the store is damaged" in refused(capsys, *given)
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "is damaged: its SHA-256 is not that of what was written" in refused(capsys, *given)
    shard.write_bytes(good[:-1])
    assert "it is damaged" in refused(capsys, *given)
    assert not (tmp_path / "run").exists()


def test_a_damaged_run(run, idx, capsys):
    (run / "run.json").write_text("{")
    assert "run.json is damaged" in refused(capsys, idx, "--output", run, "--resume")


def test_resume_begins_where_there_is_no_run(store, tmp_path, capsys):
    arguments = ["train", str(store), "--output", str(tmp_path / "run"), "--resume", *SHORT]
    assert main([*arguments, "--checkpoint-steps", "1"]) == 0
    shown = capsys.readouterr()
    assert not shown.out
    first, second, third, *_, last = shown.err.splitlines()
    assert first.startswith("AlexNet (small): 32 x 32 x 3 pixels, 2 classes, ")
    assert second == "two: 16 images of 32 x 32 pixels, 16 for validation"
    assert third == "16 epochs of 2 steps with 8 images; 2 steps in all"
    assert last.startswith(f"done: {tmp_path / 'run'}; best.safetensors has a validation error of ")
    assert main(arguments) == 0
    assert "the recipe is complete after step 2; --set steps=... goes on" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_status_1(idx, tmp_path, capsys):
    given = [*SHORT, "--set", "steps=9", "--set", "lr=1e30", "--quiet"]
    assert main(["train", str(idx), "--output", str(tmp_path / "run"), *given]) == 1
    assert capsys.readouterr().err.startswith("convkit train: the loss of step 2, in epoch 1, is not finite")


def test_mixed_precision(idx, tmp_path, capsys):
    """The run keeps it; what is evaluated later is the same network."""
    run = tmp_path / "run"
    assert main(["train", str(idx), "--output", str(run), *SHORT, "--quiet", "--dtype", "bfloat16"]) == 0
    trained = open_run(run)
    assert trained.net.dtype == "bfloat16"
    assert {w.dtype.name for w in trained.net.params.values()} == {"float32"}
    assert main(["train", str(idx), "--output", str(run), "--resume", "--set", "steps=3", "--quiet"]) == 0
    assert open_run(run).net.dtype == "bfloat16"
    assert main(["train", "--print-recipe", "--dtype", "float16"]) == 0
    assert '\ndtype = "float16"\n' in capsys.readouterr().out


@pytest.mark.parametrize("name", recipe.names())
def test_recipes_are_printed(name, capsys):
    """As they are written; with another value, with every value. Both can be read."""
    assert main(["train", "--print-recipe", "--recipe", name]) == 0
    assert capsys.readouterr().out == recipe.text(name)
    assert main(["train", "--print-recipe", "--recipe", name, "--set", "lr=0.125"]) == 0
    shown = capsys.readouterr().out
    assert shown == recipe.dump(recipe.load(name, ["lr=0.125"])) and "\nlr = 0.125\n" in shown


def test_the_signals_number_is_the_status(idx, tmp_path):
    """In a process of its own, as a supervisor sees it."""
    code = (
        "import os, signal, sys\n"
        "from convkit.cli import main\n"
        "from convkit.train.loop import Loop\n"
        "note = Loop._note\n"
        "Loop._note = lambda *given: (note(*given), os.kill(os.getpid(), signal.SIGTERM))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["train", str(idx), "--output", str(tmp_path / "run"), "--quiet", *SHORT]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 143
    assert done.stderr == "convkit train: stopped after step 1: saved; --resume goes on\n"
    assert RunFolder.open(tmp_path / "run").load().position["step"] == 1


def test_python_gets_the_run(idx, tmp_path, monkeypatch):
    monkeypatch.chdir(idx.parent)
    made = fit(idx.name, tmp_path / "run", overrides=SHORT[1::2], quiet=True)
    monkeypatch.chdir(tmp_path)  # its data are found from anywhere
    assert json.loads((made.path / "run.json").read_text())["path"] == str(idx)
    assert made.recipe.steps == 2
    assert open_run("run").evaluate(part="train").images == 20


def test_what_is_evaluated_where_there_is_no_best_checkpoint(run, idx, capsys):
    """Without validation no checkpoint is the best: the last one is taken."""
    assert main(["evaluate", str(run), "--split", "train"]) == 0
    shown = capsys.readouterr().out
    assert f"{run}, last, after step 2, in epoch 1\n" in shown and "with 4 classes it says nothing" in shown
    assert "top5_error" not in (run / "epochs.csv").read_text().splitlines()[0]
    for which, line in (("best", "has no checkpoint 'best', only last"), ("bset", "no checkpoint 'bset'")):
        assert main(["evaluate", str(run), "--split", "train", "--checkpoint", which]) == 2
        assert line in capsys.readouterr().err
    assert main(["evaluate", str(run), "--split", "train", "--batch", "0"]) == 2
    assert "batch must be at least 1, not 0" in capsys.readouterr().err
