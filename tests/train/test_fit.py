"""Training runs: stopped and resumed, their schedules and ends, full disks and losses that are not finite."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
from conftest import need

import convkit as ck
from convkit.cuda.null import nulled
from convkit.train import checkpoint, evaluation
from convkit.train.build import build
from convkit.train.data.dataset import Pixels
from convkit.train.errors import DataError, NotFinite, RunError
from convkit.train.exchange.alone import Alone
from convkit.train.inputs import Inputs
from convkit.train.loader import Loader
from convkit.train.position import Sums
from convkit.train.run_folder import RunFolder
from convkit.train.stops import Stopped
from convkit.train.training import arithmetic

need("safetensors")
STEPS = runs.STEPS


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Pictures have tests of their own."""
    monkeypatch.setattr("convkit.train.loop.curves.draw", lambda *_: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convkit.train.loop.curves.draw", lambda *_: None)
        return runs.run(tmp_path_factory.mktemp("undisturbed") / "run").path


def errors_of_epochs(monkeypatch: pytest.MonkeyPatch, *errors: int) -> None:
    """Let the validations find so many errors, of twenty images."""
    left = list(errors)
    monkeypatch.setattr(
        evaluation, "validate", lambda *_, **__: Sums(1.0, left.pop(0) if left else 19, 0, 20)
    )


# -- stopped and resumed ------------------------------------------------------------------------------
STOPS = {
    "killed before the first checkpoint that is due": {2: runs.killed},
    "killed within an epoch": {9: runs.killed},
    "killed in the last step of an epoch": {STEPS: runs.killed},
    "SIGTERM": {8: runs.signalled(signal.SIGTERM)},
    "Ctrl-C": {1: runs.signalled(signal.SIGINT)},
    "SIGTERM at the end of an epoch": {2 * STEPS: runs.signalled(signal.SIGTERM)},
    "SIGTERM in the last step": {3 * STEPS: runs.signalled(signal.SIGTERM)},
    "three times": {3: runs.killed, 8: runs.signalled(signal.SIGTERM), 13: runs.killed},
}


@pytest.mark.parametrize("name", STOPS)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(name, tmp_path, monkeypatch, undisturbed):
    actions = dict(STOPS[name])
    runs.at_steps(monkeypatch, actions)
    while actions:
        before = len(actions)
        with pytest.raises((runs.Killed, Stopped)):
            runs.run(tmp_path / "run", resume=True, checkpoint_steps=4)
        assert len(actions) == before - 1
    runs.run(tmp_path / "run", resume=True, checkpoint_steps=4)
    runs.assert_same(tmp_path / "run", undisturbed)


def test_what_a_stop_says(tmp_path, monkeypatch):
    runs.at_steps(monkeypatch, {8: runs.signalled(signal.SIGTERM)})
    with pytest.raises(Stopped, match="stopped after step 8: saved; --resume goes on") as stopped:
        runs.run(tmp_path / "run")
    assert stopped.value.signal == signal.SIGTERM
    position = RunFolder.open(tmp_path / "run").load().position
    assert (position["epoch"], position["batch"], position["step"]) == (1, 2, 8)


def test_a_signal_within_a_validation(tmp_path, monkeypatch, undisturbed):
    """A validation of several pieces is given up, and made anew when the run goes on."""
    monkeypatch.setattr("convkit.train.loop.PIECE", 1)
    validate, calls = evaluation.validate, []

    def once(net, inputs, loader, indices, **options):
        if not calls:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(indices)
        return validate(net, inputs, loader, indices, **options)

    monkeypatch.setattr(evaluation, "validate", once)
    with pytest.raises(Stopped, match=f"after step {STEPS}"):
        runs.run(tmp_path / "run")
    assert calls == [range(8)]
    runs.run(tmp_path / "run", resume=True)
    assert calls[1:4] == [range(8), range(8, 16), range(16, 20)]
    assert runs.digest(tmp_path / "run") == runs.digest(undisturbed)


def test_a_complete_run_goes_on_with_more_epochs(tmp_path, capsys, undisturbed):
    runs.run(tmp_path / "run", recipe=runs.made(epochs=2))
    content = (tmp_path / "run" / "last.safetensors").read_bytes()
    runs.run(tmp_path / "run", recipe=None, resume=True, quiet=False)
    assert "the recipe is complete after step 12" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == content
    runs.run(tmp_path / "run", resume=True, quiet=False)
    shown = capsys.readouterr().err
    assert "the recipe has changed, from that of the run: epochs: 2 against 3" in shown
    assert "going on after step 12, in epoch 3" in shown
    runs.assert_same(tmp_path / "run", undisturbed)


def test_an_end_within_an_epoch(tmp_path, undisturbed):
    run = runs.run(tmp_path / "run", recipe=runs.made(steps=8))
    position = run.load().position
    assert (position["epoch"], position["batch"], position["step"]) == (1, 2, 8)
    assert [row["step"] for row in runs.rows(run.path, "epochs.csv")] == ["6", "8"]
    assert runs.rows(run.path, "epochs.csv")[1]["validation_error"] != ""
    runs.run(tmp_path / "run", resume=True)
    assert runs.digest(run.path) == runs.digest(undisturbed)
    assert runs.rows(run.path, "epochs.csv") == runs.rows(undisturbed, "epochs.csv")


def test_other_implementations_are_named_once_in_a_line(tmp_path, monkeypatch, capsys):
    runs.at_steps(monkeypatch, {2: runs.killed})
    with pytest.raises(runs.Killed):
        runs.run(tmp_path / "run", checkpoint_steps=1)
    capsys.readouterr()
    with ck.use(relu_fprop="reference"):
        runs.run(tmp_path / "run", resume=True, quiet=False)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "bits may differ" in line]
    assert len(warnings) == 1 and "may differ: implementations" in warnings[0]


# -- what a step is trained with -----------------------------------------------------------------------
def test_a_schedule_reaches_the_network(tmp_path, monkeypatch):
    stages = (
        "[{epoch = 2, lr_factor = 0.1, rates = {'conv1.w' = 1e-5}, colour_noise = 0.0},"
        " {step = 9, frozen = ['conv1.*'], rates = {}}]"
    )
    seen, noises = [], []
    step, train = Alone.step, Inputs.train

    def watched(self, net, *given, lr):
        before = net.params["conv1.w"].copy()
        loss = step(self, net, *given, lr=lr)
        seen.append((lr, dict(net.update.rates), bool((net.params["conv1.w"] != before).any())))
        return loss

    def noisy(self, images, crops, normals, noise, *, out):
        noises.append((noise, normals is None))
        return train(self, images, crops, normals, noise, out=out)

    monkeypatch.setattr(Alone, "step", watched)
    monkeypatch.setattr(Inputs, "train", noisy)
    runs.run(tmp_path / "run", recipe=runs.made(epochs=2, schedule=stages))
    assert seen[5] == (0.03, {}, True)
    assert seen[6][0] == pytest.approx(0.003) and seen[6][1:] == ({"conv1.w": 1e-5}, True)
    assert seen[8][1:] == ({}, False)
    assert noises == [(0.1, False)] * STEPS + [(0.0, True)] * STEPS


def test_a_plateau_lowers_the_rate_and_ends_the_run(tmp_path, monkeypatch, capsys):
    errors_of_epochs(monkeypatch, 10, 10, 12, 9, 9, 9, 9, 9)
    recipe = runs.made(epochs=20, plateau__factor=0.1, plateau__patience=2, plateau__times=1, schedule="[]")
    run = runs.run(tmp_path / "run", recipe=recipe, quiet=False)
    rates = [float(row["lr"]) for row in runs.rows(run.path, "epochs.csv")]
    assert rates == pytest.approx([0.03] * 3 + [0.003] * 3)
    shown = capsys.readouterr().err
    assert "has not fallen for 2 epochs: lower rate" in shown
    assert "has not fallen for 2 epochs: training ends" in shown
    assert run.load("best").position["epoch"] == 4


def test_best_has_the_lowest_validation_error(tmp_path, monkeypatch):
    errors_of_epochs(monkeypatch, 10, 4, 7)
    run = runs.run(tmp_path / "run")
    assert [run.load(which).position["epoch"] for which in ("last", "previous", "best")] == [3, 2, 2]
    assert run.load().position["best"] == 0.2


def test_there_need_be_no_validation(tmp_path, capsys):
    run = runs.run(tmp_path / "run", of=runs.data(validation=0), quiet=False)
    assert not run.has_checkpoint("best")
    assert "validation_error" not in runs.rows(run.path, "epochs.csv")[0]
    shown = capsys.readouterr().err
    assert "no validation set" in shown and shown.endswith(f"done: {run.path}\n")


def test_it_learns(undisturbed):
    epochs = runs.rows(undisturbed, "epochs.csv")
    assert float(epochs[-1]["loss"]) < float(epochs[0]["loss"])


@pytest.mark.parametrize("seconds, drawn", [(0.0, [1, 2, 3]), (10.0, [1, 3])])
def test_curves_take_little_of_the_time(tmp_path, monkeypatch, seconds, drawn):
    now, epochs = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    def draw(folder, title):
        now[0] += seconds
        epochs.append(len(runs.rows(folder, "epochs.csv")))

    monkeypatch.setattr("convkit.train.loop.time", Clock)
    monkeypatch.setattr("convkit.train.loop.curves.draw", draw)
    runs.run(tmp_path / "run")
    assert epochs == drawn


@pytest.mark.slow
def test_the_overhead_is_measured():
    bench = Path(__file__).parents[2] / "bench" / "loop.py"
    done = subprocess.run(
        [sys.executable, bench, "--steps", "2", "--rounds", "1"], capture_output=True, text=True, check=True
    )
    assert "bare step" in done.stdout and done.stdout.count("the goal is 3.0 %") == 2 and not done.stderr


# -- what goes wrong -----------------------------------------------------------------------------------
def test_a_loss_that_is_not_finite(tmp_path, undisturbed):
    with pytest.raises(NotFinite, match="the loss of step 2, in epoch 1, is not finite"):
        runs.run(tmp_path / "run", recipe=runs.made(lr=1e30))
    run = RunFolder.open(tmp_path / "run")
    state = run.load()
    assert state.position["step"] == 1
    assert all(np.isfinite(w).all() for w in state.state["params"].values())
    # As often as it is tried: the checkpoint before it stays.
    with pytest.raises(NotFinite):
        runs.run(tmp_path / "run", recipe=None, resume=True, overrides=["lr=1e-3"])
    assert run.load("last").position["step"] == 1 and run.load("previous").position["step"] == 0
    os.replace(run.path / "previous.safetensors", run.path / "last.safetensors")
    runs.run(run.path, resume=True)
    assert runs.digest(run.path) == runs.digest(undisturbed)


def full(monkeypatch: pytest.MonkeyPatch, when: range) -> list[int]:
    """Let the disk be full for some of the checkpoints; returns the steps of those that were tried."""
    save, tried = checkpoint.save, []

    def full_save(path, state, position, **more):
        tried.append(position["step"])
        if len(tried) - 1 in when:
            raise RunError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")
        save(path, state, position, **more)

    monkeypatch.setattr(checkpoint, "save", full_save)
    return tried


def test_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch, capsys, undisturbed):
    tried = full(monkeypatch, range(2, 4))
    run = runs.run(tmp_path / "run", checkpoint_steps=4, quiet=False)
    assert tried == [0, 4, 6, 8, 12, 12, 16, 18]
    shown = capsys.readouterr().err
    assert shown.count("No space left on device; training goes on without this checkpoint") == 2
    assert runs.digest(run.path) == runs.digest(undisturbed)
    assert run.load().position["lowest"] == RunFolder.open(undisturbed).load().position["lowest"]


def test_best_is_written_later_where_the_disk_was_full(tmp_path, monkeypatch):
    errors_of_epochs(monkeypatch, 4, 6, 7)
    full(monkeypatch, range(1, 2))
    run = runs.run(tmp_path / "run")
    assert run.load("best").position["epoch"] == 2
    position = run.load().position
    assert (position["lowest"], position["best"]) == (0.2, 0.3)


@pytest.mark.parametrize("when", [range(1), range(3, 4)], ids=["first", "last"])
def test_the_first_and_the_last_checkpoint_must_be_written(tmp_path, monkeypatch, when):
    tried = full(monkeypatch, when)
    with pytest.raises(RunError, match="No space left on device") as refused:
        runs.run(tmp_path / "run")
    assert ("the checkpoint of step 12 is there: --resume" in str(refused.value)) == (when.start == 3)
    assert tried == [0, 6, 12, 18][: when.stop]
    runs.run(tmp_path / "run", resume=True)


def test_logs_that_cannot_be_written_do_not_end_a_run(tmp_path, monkeypatch, capsys, undisturbed):
    def refused(self, row):
        raise RunError("cannot write it: No space left on device")

    for name in ("log_step", "log_epoch"):
        monkeypatch.setattr(RunFolder, name, refused)
    run = runs.run(tmp_path / "run", quiet=False)
    assert capsys.readouterr().err.count("warning: cannot write it: No space left on device") == 1
    assert runs.digest(run.path) == runs.digest(undisturbed)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read(tmp_path, capsys, workers):
    files = dataclasses.replace(runs.data(runs.Unreadable((3, 4))), left_out=(("readme.txt", "no image"),))
    # Mean and crops depend on which images there are, so they are left out here.
    plain = {"images__mean": "none", "images__colour_noise": 0, "images__crop_padding": 0}
    recipe = runs.made(**plain, images__flip="false")
    run = runs.run(tmp_path / "run", of=files, recipe=recipe, quiet=False, workers=workers)
    shown = capsys.readouterr().err
    assert shown.count("stands in for n01/3.JPEG (truncated), and for 1 more") == 1
    assert (run.path / "left_out.txt").read_text() == (
        "readme.txt\tno image\nn01/3.JPEG\ttruncated\nn01/4.JPEG\ttruncated\n"
    )
    # The next image stands in, with its own label.
    found = runs.pixels(runs.IMAGES, 0)
    for array in found:
        array[3:5] = array[5]
    split = Pixels(*found)
    runs.run(tmp_path / "by hand", of=runs.data(split), recipe=recipe)
    losses = [
        [row["loss"] for row in runs.rows(path, "steps.csv")] for path in (run.path, tmp_path / "by hand")
    ]
    assert losses[0] == losses[1]


def test_no_image_can_be_read(tmp_path):
    everything = runs.Unreadable(tuple(range(runs.IMAGES)))
    recipe = runs.made(images__mean="none", images__colour_noise=0)
    with pytest.raises(DataError, match="truncated"):
        runs.run(tmp_path / "run", of=runs.data(everything), recipe=recipe)


def test_the_memory_of_images_is_used_again(tmp_path, monkeypatch):
    engines = []
    close = Loader.close

    def closed(self):
        if len(self.split) == runs.IMAGES and self._engine is not None:
            engines.append(len(self._engine._free))
        close(self)

    monkeypatch.setattr(Loader, "close", closed)
    runs.run(tmp_path / "run", recipe=runs.made(images__mean="none", images__colour_noise=0))
    assert engines == [3]  # one that is used, and two that are read ahead


@pytest.mark.slow
def test_a_run_says_where_tf32_runs(tmp_path, capsys):
    recipe = runs.made(epochs=1, steps=1)
    runs.run(tmp_path / "run", recipe=recipe, math="tf32", quiet=False)
    assert "math: tf32 was accepted, but nothing that was picked computes in it" in capsys.readouterr().err
    net = build(recipe, (28, 28, 1), runs.CLASSES, math="tf32")
    with nulled():
        assert arithmetic(net, 8).startswith("math: tf32 runs in conv1+relu1, conv2+relu2, ")
        assert arithmetic(build(recipe, (28, 28, 1), runs.CLASSES), 8) == ""


# -- what is refused leaves nothing --------------------------------------------------------------------
def refused(folder, match: str, **options) -> None:
    with pytest.raises(ck.ConvkitError, match=match):
        runs.run(folder, **options)


def test_what_is_refused_leaves_no_folder(tmp_path):
    refused(tmp_path / "run", "a batch of 60 is more than the 52 training images", recipe=runs.made(batch=60))
    refused(
        tmp_path / "run",
        "takes 32 x 32 pixels",
        recipe=runs.made(network__image_size=32, images__crop_padding=0),
    )
    refused(tmp_path / "run", "unknown math 'coarse'", math="coarse")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_refused_before_the_data_are_read(tmp_path, monkeypatch):
    (tmp_path / "file.txt").write_text("mine")
    monkeypatch.setattr("convkit.train.training.open_data", None)
    refused(tmp_path, "holds other things", of="digits")
    refused(tmp_path / "file.txt", "cannot make a run's folder .*: Not a directory", of="digits")


def test_another_network_is_refused(tmp_path, undisturbed):
    refused(
        undisturbed, "network.widths: 0.1 against 0.2", recipe=runs.made(network__widths=0.2), resume=True
    )
    # A checkpoint that someone has put there.
    other = runs.run(tmp_path / "other", recipe=runs.made(network__widths=0.2, epochs=1, steps=1))
    run = runs.run(tmp_path / "run", recipe=runs.made(epochs=1, steps=1))
    content = (other.path / "last.safetensors").read_bytes()
    (run.path / "last.safetensors").write_bytes(content)
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    refused(run.path, "is of another network: .*conv1.w has shape", resume=True)
    after = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert {name for name in after if after[name] != before[name]} <= {"lock"}


def test_other_data_are_refused(undisturbed):
    other = dataclasses.replace(runs.data(), fingerprint="other")
    refused(undisturbed, "run on other data: as many images, but other ones", of=other, resume=True)


def test_two_runs_in_a_folder_at_once(tmp_path, monkeypatch):
    runs.at_steps(monkeypatch, {1: lambda: refused(tmp_path / "run", "is in use: process", resume=True)})
    runs.run(tmp_path / "run", recipe=runs.made(epochs=1))
