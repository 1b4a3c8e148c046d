"""The folder of a run: who may use it, which checkpoints it keeps, and its logs."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import need

from convkit.errors import ConvkitWarning
from convkit.train import checkpoint, disk, recipe, table
from convkit.train.data.dataset import Data, Pixels, Statistics
from convkit.train.errors import RunError
from convkit.train.run_folder import Info, RunFolder

need("safetensors")

RECIPE = recipe.load("2012")
INFO = Info("digits", "digits", ("0", "ä"), ("zero", "ä"), "abc", (8, 8, 1), 10, 2, created="2012-12-03")
STATISTICS = Statistics(
    np.ones((8, 8, 1), np.float32), np.ones(1, np.float32), np.eye(1, dtype=np.float32), 10
)


def state(value: float) -> dict:
    part = {"fc8.w": np.full((2, 3), value, np.float32)}
    return {
        "format": 1, "dtype": "float32", "shapes": {"fc8.w": (2, 3)}, "params": part, "velocities": part,
        "seed": 0, "dropout_offset": 0, "plan": None,
    }  # fmt: skip


def at(step: int) -> dict:
    return {"step": step, "epoch": step // 10}


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "run", RECIPE, INFO, STATISTICS) as made:
        yield made


def steps(run: RunFolder) -> dict[str, int]:
    """How far each checkpoint is."""
    return {
        which: run.load(which).position["step"]
        for which in ("last", "previous", "best")
        if run.has_checkpoint(which)
    }


def flip_a_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


# -- making and opening -------------------------------------------------------------------------------
def test_what_was_made_is_opened(run):
    found = RunFolder.open(str(run.path))
    assert found.recipe == RECIPE and found.info == INFO
    assert found.statistics is not None and found.statistics.images == 10
    for name in ("mean", "stdevs", "eigenvectors"):
        np.testing.assert_array_equal(getattr(found.statistics, name), getattr(STATISTICS, name))
    assert not found.has_checkpoint()
    with pytest.raises(RunError, match="has no checkpoint yet"):
        found.load()


def test_there_may_be_no_statistics(tmp_path):
    with RunFolder.create(tmp_path / "a" / "b", RECIPE, INFO) as run:
        assert RunFolder.open(run.path).statistics is None


def test_the_facts_of_data():
    pixels = Pixels(np.zeros((3, 4, 5, 1), np.uint8), np.zeros(3))
    info = Info.of(Data("name", ("a",), ("A",), pixels, None, "f00"), "path")
    assert dataclasses.replace(info, created="") == Info(
        "name", "path", ("a",), ("A",), "f00", (4, 5, 1), 3, 0
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", info.created)


def test_a_folder_that_holds_something_is_refused(tmp_path, run):
    with pytest.raises(RunError, match="holds a run already: --resume"):
        RunFolder.create(run.path, RECIPE, INFO)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="holds other things .*choose a new folder"):
        RunFolder.create(tmp_path, RECIPE, INFO)
    with pytest.raises(RunError, match="cannot make .*Not a directory"):
        RunFolder.create(tmp_path / "thesis.tex", RECIPE, INFO)
    with pytest.raises(RunError, match="cannot make .*Not a directory"):
        RunFolder.create(tmp_path / "thesis.tex" / "run", RECIPE, INFO)
    assert sorted(os.listdir(tmp_path)) == ["run", "thesis.tex"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunError, match="cannot write .*lock: Permission denied"):
        RunFolder.create(tmp_path / "run", RECIPE, INFO)


def test_one_that_was_killed_before_it_was_made_is_no_obstacle(tmp_path, monkeypatch):
    put = checkpoint.put

    def killed(path: Path, content: object) -> None:
        if path.name == "run.json":
            raise KeyboardInterrupt
        put(path, content)

    monkeypatch.setattr(checkpoint, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path / "run", RECIPE, INFO, STATISTICS)
    monkeypatch.undo()
    assert not RunFolder.holds_run(tmp_path / "run")
    with pytest.raises(RunError, match="holds no run: it has no run.json"):
        RunFolder.open(tmp_path / "run")
    RunFolder.create(tmp_path / "run", RECIPE, INFO).close()
    assert RunFolder.holds_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.json", b"{", "is damaged"),
        ("run.json", b"[]", "is damaged"),
        ("run.json", b'{"format": 1}', "is damaged: KeyError"),
        ("run.json", b'{"format": 7}', "has format 7; this convkit reads 1"),
        ("recipe.toml", b"epochs = 'x'", "is damaged: recipe: epochs must be an integer"),
        ("statistics.npz", b"PK\x03\x04", "is damaged"),
    ],
)
def test_a_damaged_file_is_named(run, name, content, words):
    (run.path / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{re.escape(str(run.path / name))} .*{words}") as caught:
        RunFolder.open(run.path)
    assert "\n" not in str(caught.value)


def test_there_is_no_run(tmp_path):
    with pytest.raises(RunError, match="there is no such folder"):
        RunFolder.open(tmp_path / "x")


# -- one process at a time ----------------------------------------------------------------------------
def test_a_second_process_is_refused_and_told_which_has_it(run):
    with pytest.raises(RunError, match=rf"is in use: process {os.getpid()} on .* trains there"):
        RunFolder.open(run.path).lock()
    run.lock()  # its own
    run.close()
    RunFolder.open(run.path).lock().close()


def test_the_lock_of_a_dead_process_is_no_obstacle(run):
    run.close()
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            held = RunFolder.open(run.path).lock()
            os.write(tell, b"x")
            signal.pause()
            held.close()
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"x"
        with pytest.raises(RunError, match=f"process {child} on"):
            RunFolder.open(run.path).lock()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)
    RunFolder.open(run.path).lock().close()


def test_a_worker_that_outlives_the_run_does_not_hold_its_lock(run):
    wait, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(wait, 1)
        os._exit(0)
    try:
        # As the end of the process would: the descriptor goes, without an unlock.
        run.close()
        RunFolder.open(run.path).lock().close()
    finally:
        os.close(end)
        os.close(wait)
        os.waitpid(child, 0)


def test_nothing_is_written_without_the_lock(run):
    other = RunFolder.open(run.path)
    for write in (
        lambda: other.save(state(1), at(1)), lambda: other.log_step({"step": 1}),
        lambda: other.cut_logs(at(1)), lambda: other.log_epoch({"epoch": 1}), lambda: other.left_out([]),
    ):  # fmt: skip
        with pytest.raises(RunError, match="open for reading"):
            write()


# -- going on -----------------------------------------------------------------------------------------
def test_another_recipe_is_refused_but_for_what_may_differ(run):
    changed = recipe.load("2012", ["epochs=100", "plateau.patience=9", "lr=0.5", "images.flip=false"])
    with pytest.raises(RunError, match=r"lr: .* against 0.5; images.flip: true against false$"):
        run.require_recipe(changed, ["epochs", "plateau", "image"])
    allowed = recipe.load("2012", ["epochs=100", "plateau.patience=9"])
    assert len(run.require_recipe(allowed, ["epochs", "plateau"])) == 2
    run.replace_recipe(allowed)
    assert run.recipe == RunFolder.open(run.path).recipe == allowed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "elsewhere", "data": "other", "created": "now", "version": "9"}, None),
        ({"classes": ("0", "1")}, "only it has 'ä'; only the data have '1'"),
        ({"image_shape": (9, 8, 1)}, "its images are 8 x 8 x 1, those of the data 9 x 8 x 1"),
        ({"train": 11}, "it has 10 images to train and 2 to validate, the data 11 images"),
        ({"fingerprint": "abd"}, "its fingerprint is abc, that of the data abd"),
    ],
)
def test_other_data_are_refused(run, change, words):
    other = dataclasses.replace(INFO, **change)
    if words is None:
        run.require_data(other)
    else:
        with pytest.raises(RunError, match=words):
            run.require_data(other)


# -- checkpoints --------------------------------------------------------------------------------------
def test_last_previous_and_best_are_kept(run):
    run.save(state(1), at(1))
    assert steps(run) == {"last": 1}
    run.save(state(2), at(2), best=True)
    run.save(state(3), at(3))
    run.save(state(4), at(4))
    assert steps(run) == {"last": 4, "previous": 3, "best": 2}
    found = run.load("best")
    np.testing.assert_array_equal(found.state["params"]["fc8.w"], state(2)["params"]["fc8.w"])
    assert recipe.parse(recipe.tomllib.loads(found.recipe_toml)) == RECIPE
    assert Info.from_dict(found.info) == INFO
    names = [name for name in os.listdir(run.path) if name.startswith(".")]
    assert not names
    shutil.copy(run.path / "previous.safetensors", run.path.parent / "mine")
    assert run.load(str(run.path.parent / "mine")).position == at(3)


def test_at_each_instant_there_is_a_whole_last(run, monkeypatch):
    """What a process that is killed there would leave is looked at before each change of the folder."""
    seen = []

    def looked(change):
        def wrapped(*args, **options):
            seen.append(checkpoint.load(run.path / "last.safetensors").position["step"])
            if (run.path / "previous.safetensors").exists():
                checkpoint.load(run.path / "previous.safetensors")
            return change(*args, **options)

        return wrapped

    run.save(state(1), at(1))
    for name in ("replace", "link", "unlink", "fsync", "mkdir", "rename", "rmdir"):
        monkeypatch.setattr(os, name, looked(getattr(os, name)))
    run.save(state(2), at(2), best=True)
    run.save(state(3), at(3), best=True)
    assert len(seen) > 10 and sorted(set(seen)) == [1, 2, 3] and seen == sorted(seen)


def test_where_there_are_no_hard_links_they_are_copied(run, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "")

    monkeypatch.setattr(os, "link", refuse)
    for n in (1, 2, 3):
        run.save(state(n), at(n), best=n == 2)
    assert steps(run) == {"last": 3, "previous": 2, "best": 2}


def test_previous_is_used_where_last_is_damaged(run):
    run.save(state(1), at(1))
    run.save(state(2), at(2))
    flip_a_bit(run.path / "last.safetensors")
    with pytest.warns(ConvkitWarning, match="last.safetensors is damaged.*the checkpoint before it is used"):
        assert run.load().position == at(1)
    run.save(state(3), at(3))
    assert steps(run) == {"last": 3, "previous": 1}, "the damaged one is not kept"
    run.save(state(4), at(4))
    assert steps(run) == {"last": 4, "previous": 3}

    (run.path / "last.safetensors").unlink()
    with pytest.warns(ConvkitWarning, match="No such file"):
        assert run.has_checkpoint() and run.load().position == at(3)
    flip_a_bit(run.path / "previous.safetensors")
    with pytest.raises(RunError, match="No such file.*; and .*previous.safetensors is damaged"):
        run.load()


def test_another_one_is_not_used_in_the_place_of_best(run):
    run.save(state(1), at(1))
    with pytest.raises(RunError, match="has no checkpoint 'best', only last"):
        run.load("best")
    run.save(state(2), at(2), best=True)
    flip_a_bit(run.path / "best.safetensors")
    with pytest.raises(RunError, match="is damaged"):
        run.load("best")


def test_a_full_disk_leaves_the_checkpoints(run, monkeypatch):
    run.save(state(1), at(1))
    run.save(state(2), at(2), best=True)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(disk, "sync", full)
    with pytest.raises(RunError, match="No space left on device"):
        run.save(state(3), at(3), best=True)
    monkeypatch.undo()
    assert steps(run) == {"last": 2, "previous": 1, "best": 2}
    run.save(state(4), at(4))
    assert steps(run) == {"last": 4, "previous": 2, "best": 2}


def test_what_a_killed_process_left_goes_with_the_next_lock(run):
    run.close()
    (run.path / ".new.draft").mkdir()
    (run.path / ".new.draft" / "file").write_bytes(b"half")
    (run.path / ".best.safetensors.link").write_bytes(b"half")
    RunFolder.open(run.path)
    assert (run.path / ".new.draft").exists(), "reading changes nothing"
    RunFolder.open(run.path).lock().close()
    assert not [name for name in os.listdir(run.path) if name.startswith(".")]


# -- logs ---------------------------------------------------------------------------------------------
def logged(run: RunFolder, first: int, stop: int) -> None:
    for step in range(first, stop):
        epoch = (step - 1) // 5 + 1
        run.log_step({"epoch": epoch, "step": step, "loss": np.float32(1) / np.float32(step), "note": None})
        if step % 5 == 0:
            run.log_epoch({"epoch": epoch, "step": step, "error": 1 / step})


def files(run: RunFolder) -> tuple[bytes, bytes]:
    return (run.path / "steps.csv").read_bytes(), (run.path / "epochs.csv").read_bytes()


def test_rows_are_there_at_once_and_keep_every_digit(run):
    run.log_step({"step": 1, "loss": 0.1 + 0.2, "errors": np.int64(3), "note": 'a,"b"\nc', "lr": None})
    run.log_step({"step": 2, "loss": float("nan")})
    assert files_of(run) == ["step,loss,errors,note,lr", '1,0.30000000000000004,3,"a,""b"" c",', "2,nan,,,"]
    found = table.read(run.path / "steps.csv")
    assert list(found) == ["step", "loss", "errors", "note", "lr"]
    np.testing.assert_array_equal(found["loss"], [0.1 + 0.2, np.nan])
    np.testing.assert_array_equal(found["errors"], [3, np.nan])


def files_of(run: RunFolder) -> list[str]:
    return (run.path / "steps.csv").read_text().splitlines()


@pytest.mark.parametrize("torn", [b"", b"8,0.12", b"1", b"\xff\xfe", b"nonsense,1,2,3\n13,1,2,3\n"])
def test_a_log_that_was_cut_and_went_on_is_that_of_an_undisturbed_run(tmp_path, run, torn):
    logged(run, 1, 24)
    whole = files(run)
    with RunFolder.create(tmp_path / "other", RECIPE, INFO) as other:
        logged(other, 1, 18)
    for name in ("steps.csv", "epochs.csv"):
        with open(other.path / name, "ab") as file:
            file.write(torn)
    with RunFolder.open(other.path).lock() as again:
        again.cut_logs({"step": 12, "epoch": 2})
        assert files_of(again)[-1].startswith("3,12,")
        logged(again, 13, 24)
        assert files(again) == whole


def test_a_torn_row_goes_before_the_next_one_is_added(run):
    logged(run, 1, 4)
    whole = files_of(run)
    run.close()
    with open(run.path / "steps.csv", "ab") as file:
        file.write(b"1,4,0.2")
    with RunFolder.open(run.path).lock() as again:
        again.log_step({"epoch": 1, "step": 4, "loss": 0.25})
        assert files_of(again) == [*whole, "1,4,0.25,"]


def test_logs_that_are_not_there_are_cut(run):
    run.cut_logs({"step": 0, "epoch": 0})
    logged(run, 1, 8)
    run.cut_logs({"step": 0, "epoch": 0})
    logged(run, 1, 8)
    assert len(files_of(run)) == 8


def test_a_name_that_is_no_column_is_said_once(run):
    run.log_step({"step": 1})
    with pytest.warns(ConvkitWarning, match="steps.csv has no column 'loss'"):
        run.log_step({"step": 2, "loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.log_step({"step": 3, "loss": 1.0})
    assert files_of(run) == ["step", "1", "2", "3"]


def test_rows_wait_where_the_disk_is_full(run):
    run.log_step({"step": 1, "loss": 1.0})
    rows = run._steps
    assert rows._file is not None
    file = rows._file

    class Full:
        """Takes a part of what is written, as a disk does that fills up."""

        truncate = staticmethod(lambda size: file.truncate(size))

        @staticmethod
        def write(content: bytes) -> int:
            return file.write(content[:3])

    rows._file = Full()
    with pytest.warns(ConvkitWarning, match="steps.csv: No space left on device; its rows wait in memory"):
        run.log_step({"step": 2, "loss": 1.0})
    run.log_step({"step": 3, "loss": 1.0})
    assert files_of(run) == ["step,loss", "1,1.0"]
    rows._file = file
    run.log_step({"step": 4, "loss": 1.0})
    assert files_of(run) == ["step,loss", "1,1.0", "2,1.0", "3,1.0", "4,1.0"]


def test_rows_are_on_the_disk_before_the_checkpoint_is(run, monkeypatch):
    logged(run, 1, 6)
    done = []
    fsync, save = os.fsync, checkpoint.save

    def note(handle: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(checkpoint, "save", lambda *a, **o: (done.append("save"), save(*a, **o)))
    run.save(state(1), at(5))
    assert done[:3] == ["steps.csv", "epochs.csv", "save"]


def test_a_long_table_is_read_in_part(tmp_path):
    rows = table.Table(tmp_path / "x.csv")
    for step in range(1, 101):
        rows.append({"step": step})
    rows.close()
    np.testing.assert_array_equal(table.read(tmp_path / "x.csv", 10)["step"], np.arange(1, 101, 10))
    assert len(table.read(tmp_path / "x.csv", 100)["step"]) == 100
    assert table.read(tmp_path / "none.csv") == {}


def test_files_that_were_left_out_are_listed(run):
    run.left_out([("a.jpg", "cut short"), ("b\n\udcff.jpg", "no\timage")])
    assert (run.path / "left_out.txt").read_text() == "a.jpg\tcut short\nb\\n\\udcff.jpg\tno\\timage\n"
