"""`convkit prepare`: the same store however it was made, nothing lost, one line where it cannot be."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple

import numpy as np
import pytest
from conftest import need

from convkit.cli import main
from convkit.train import preparation as preparing
from convkit.train.data.dataset import Data, Pixels, Split
from convkit.train.data.store import damaged, open_store
from convkit.train.errors import BadImage, DataError
from convkit.train.preparation import prepare

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (50, 4, 4, 3), np.uint8)
LABELS = (np.arange(50) % 3).astype(np.int32)


class Some(Split):
    """Images of which some cannot be read; Ctrl-C is pressed where `stop` is read."""

    def __init__(self, first: int, last: int, bad: set[int], stop: int = -1) -> None:
        self.pixels, self.labels, self.bad, self.stop = PIXELS[first:last], LABELS[first:last], bad, stop
        self.shape = 4, 4, 3
        self.read_now: list[int] = []

    def name(self, index: int) -> str:
        return f"{self.labels[index]}/{index}.png"

    def read(self, index: int, out: np.ndarray) -> None:
        if index == self.stop:
            raise KeyboardInterrupt
        self.read_now.append(index)
        if index in self.bad:
            raise BadImage("it is a song")
        out[...] = self.pixels[index]


BAD = {3, *range(16, 24), 35}  # in shards of 8: one of the first, all of the third, one of the last


def some(stop: int = -1, bad: set[int] = BAD, fingerprint: str = "0123") -> Data:
    return Data(
        "some", tuple("abcd"), tuple("abcd"), Some(0, 40, bad, stop), Some(40, 50, {1}), fingerprint,
        left_out=[("a/b.txt", "it is a text")],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(preparing, "SHARD", 8 * 48)
    monkeypatch.setattr(preparing, "_BLOCK", 3 * 48)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a store of `some()`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "SHARD", 8 * 48)
        folder = tmp_path_factory.mktemp("undisturbed") / "store"
        prepare(some(), folder, workers=0)
    return contents(folder)


def test_what_cannot_be_read_is_left_out(tmp_path):
    made = prepare(some(), tmp_path / "deep" / "store", workers=0)
    kept = np.array([i for i in range(40) if i not in BAD])
    train = made.data.train
    out = np.empty((30, 4, 4, 3), np.uint8)
    train.read_many(np.arange(30), out)
    assert (out == PIXELS[kept]).all()
    assert (train.labels == LABELS[kept]).all()
    assert [train.name(i) for i in range(30)] == [some().train.name(i) for i in kept]
    assert made.data.statistics.images == 30
    np.testing.assert_allclose(made.data.statistics.mean, PIXELS[kept].mean(axis=0), rtol=1e-6)
    assert len(made.data.validation) == 9
    assert made.empty == ("d",)
    assert (made.images, made.shards, made.bytes) == (50, 6, 39 * 48 + 6 * 128)
    assert made.data.left_out[:2] == (("a/b.txt", "it is a text"), ("0/3.png", "it is a song"))
    assert len(made.data.left_out) == 1 + len(BAD) + 1
    names = {path.name for path in (tmp_path / "deep" / "store").iterdir()}
    assert "train-00001.npy" in names
    assert "train-00002.npy" not in names  # nothing of it is left
    assert not damaged(tmp_path / "deep" / "store")


def test_shards_are_ordinary_files_of_numpy(tmp_path):
    prepare(some(), tmp_path / "store", workers=0)
    assert (np.load(tmp_path / "store" / "train-00001.npy", mmap_mode="r") == PIXELS[8:16]).all()
    assert (np.load(tmp_path / "store" / "train-00000.npy") == PIXELS[[0, 1, 2, 4, 5, 6, 7]]).all()


# ---------------------------------------------------------------------------------------------------
# Stopped and gone on with
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stop", (0, 8, 31, 39))
def test_after_ctrl_c_the_same_command_goes_on(tmp_path, undisturbed, stop):
    folder = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        prepare(some(stop), folder, workers=0)
    if stop < 8:
        assert not folder.exists()  # nothing was complete
    else:
        with pytest.raises(DataError, match="is not finished"):
            open_store(folder)
        assert not list(folder.glob("*npy.partial"))
    data = some()
    made = prepare(data, folder, workers=0)
    assert contents(folder) == undisturbed
    assert made.images == 50 - min(data.train.read_now)
    assert min(data.train.read_now) <= stop  # what is read ahead does not count
    assert min(data.train.read_now) > stop - 16


KILLED = """
    import os, signal, sys
    folder, tests, what, step = sys.argv[1:]
    sys.path.insert(0, tests)
    import test_prepare
    from convkit.cpu import jit
    from convkit.train import preparation as preparing
    preparing.SHARD, preparing._BLOCK = 8 * 48, 3 * 48
    jit.missing = lambda: "left out: every child would load Numba"
    os.fsync = lambda handle: None  # it is for a computer that stops, not for a process
    def killed(at, folder):
        if not (child := os.fork()):
            original, calls = getattr(os, what), 0
            def counted(*arguments):
                nonlocal calls
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments)
            setattr(os, what, counted)
            preparing.prepare(test_prepare.some(), folder, workers=0)
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    at = 1
    while killed(at, f"{folder}/{at}"):
        at += int(step)
    print(at)
"""


@pytest.mark.parametrize(
    ("what", "step", "least"),
    (
        ("replace", 4, 20),  # before what was written gets its name
        pytest.param("replace", 1, 20, marks=pytest.mark.slow),
        pytest.param("fsync", 1, 40, marks=pytest.mark.slow),
        pytest.param("open", 1, 20, marks=pytest.mark.slow),
        pytest.param("unlink", 1, 3, marks=pytest.mark.slow),
    ),
)
def test_after_a_kill_at_any_moment_the_same_command_goes_on(
    tmp_path, undisturbed, monkeypatch, what, step, least
):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path, os.path.dirname(__file__), what, str(step)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for folder in sorted(tmp_path.iterdir()):
        if not (folder / "store.json").exists():
            with pytest.raises(DataError, match="is not finished|is not a store"):
                open_store(folder)
        prepare(some(), folder, workers=0)
        found = contents(folder)
        found.pop("unfinished.npz", None)  # killed just before it was removed
        assert found == undisturbed, folder


def test_a_full_disk_is_survived(tmp_path, undisturbed, monkeypatch):
    folder, original, left = tmp_path / "store", os.fsync, 0

    def full(handle):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    monkeypatch.setattr(os, "fsync", full)
    refused = 0
    for left_now in (0, 3, 6, 9, 12, 18, 24, 100):
        left = left_now
        try:
            prepare(some(), folder, workers=0)
        except DataError as error:
            refused += 1
            assert re.search(
                "the disk of .*store is full; with more room, the same command goes on", str(error)
            )
            assert not list(folder.glob("*.partial"))
    assert refused >= 4
    assert contents(folder) == undisturbed


def test_a_second_run_has_nothing_to_do(tmp_path, undisturbed):
    folder = tmp_path / "store"
    prepare(some(), folder, workers=0)
    data = some()
    made = prepare(data, folder, workers=0)
    assert (made.images, data.train.read_now) == (0, [])
    assert contents(folder) == undisturbed


def test_other_images_replace_a_store_only_if_they_are_told_to(tmp_path, undisturbed):
    folder = tmp_path / "store"
    prepare(some(), folder, workers=0)
    with pytest.raises(DataError, match="store already, but of other data: other images; --anew"):
        prepare(some(fingerprint="4567"), folder, workers=0)
    with pytest.raises(DataError, match="data: square crop against stretch; --anew"):
        prepare(some(), folder, workers=0, square="stretch")
    assert contents(folder) == undisturbed
    made = prepare(some(fingerprint="4567", bad=set()), folder, workers=0, anew=True)
    assert len(made.data.train) == 40
    assert not damaged(folder)


def test_an_unfinished_store_of_other_images_is_kept(tmp_path, undisturbed):
    folder = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        prepare(some(30), folder, workers=0)
    before = contents(folder)
    with pytest.raises(DataError, match="unfinished store, but of other data: other images; --anew"):
        prepare(some(fingerprint="4567"), folder, workers=0)
    assert contents(folder) == before
    prepare(some(), folder, workers=0, anew=True)
    assert contents(folder) == undisturbed


@pytest.mark.parametrize("harm", ("missing", "short", "note"))
def test_a_complete_shard_that_is_damaged_is_not_gone_on_with(tmp_path, harm):
    folder = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        prepare(some(30), folder, workers=0)
    path = folder / ("unfinished.npz" if harm == "note" else "train-00000.npy")
    path.write_bytes(path.read_bytes()[:100])
    if harm == "missing":
        path.unlink()
    with pytest.raises(DataError, match=f"{path.name}.*--anew starts over"):
        prepare(some(), folder, workers=0)


# ---------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("anew", (False, True))
def test_what_is_no_store_is_not_touched(tmp_path, anew):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="neither empty nor a store|is no part of a store"):
        prepare(some(), tmp_path, workers=0, anew=anew)
    with pytest.raises(DataError, match="is a file; a store is a folder"):
        prepare(some(), tmp_path / "letter.txt", workers=0, anew=anew)
    with pytest.raises(DataError, match="cannot make the folder .*Not a directory"):
        prepare(some(), tmp_path / "letter.txt" / "store", workers=0, anew=anew)
    assert contents(tmp_path) == {"letter.txt": b"dear"}


def test_an_empty_folder_is_taken(tmp_path, undisturbed):
    prepare(some(), tmp_path, workers=0)
    assert contents(tmp_path) == undisturbed


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda path: usage(4_000_000))
    data = some()
    with pytest.raises(
        DataError, match=r"50 images of 4 x 4 x 3 bytes need 0.0 GB, but the disk of .* has 0.0"
    ):
        prepare(data, tmp_path / "store", workers=0)
    assert data.train.read_now == []
    assert not (tmp_path / "store").exists()


def test_two_at_once_are_refused(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another process makes the store"):
        prepare(some(), tmp_path, workers=0)
    os.close(handle)
    prepare(some(), tmp_path, workers=0)


@pytest.mark.parametrize("bad", ("train", "validation"))
def test_nothing_left_is_an_error_and_leaves_nothing(tmp_path, bad):
    every = set(range(40))
    data = Data(
        "some", tuple("abc"), tuple("abc"), Some(0, 40, every if bad == "train" else set()),
        Some(40, 50, every if bad == "validation" else set()), "0123",
    )  # fmt: skip
    what = "40 training" if bad == "train" else "10 validation"
    name = "0/0.png" if bad == "train" else "1/0.png"
    with pytest.raises(
        DataError, match=f"none of the {what} images of some can be read; the first: {name}: it"
    ):
        prepare(data, tmp_path / "store", workers=0)
    assert not (tmp_path / "store").exists()


def test_no_images_at_all(tmp_path):
    empty = Pixels(PIXELS[:0], LABELS[:0])
    with pytest.raises(DataError, match="some has no training images"):
        prepare(Data("some", ("a",), ("a",), empty, None, "0"), tmp_path / "store")
    made = prepare(Data("some", ("a",), ("a",), Pixels(PIXELS, LABELS * 0), empty, "0"), tmp_path / "store")
    assert made.data.validation is None


# ---------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------
def test_digits(tmp_path, capsys, monkeypatch):
    need("sklearn")
    monkeypatch.undo()
    folder = tmp_path / "store"
    assert main(["prepare", "digits", str(folder), "--verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1,400 training and 397 validation images of 10 classes, 28 x 28 x 1" in lines[0]
    assert re.fullmatch(r"1,797 images read in [\d.]+ s, [\d,]+ images/s", lines[1])
    assert "is as it was written" in lines[2]
    assert main(["prepare", "digits", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "it was complete already: nothing was read"
    with open(folder / "train-00000.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert main(["prepare", str(folder), "--verify"]) == 1
    assert "train-00000.npy is damaged" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Thirty images in two classes, two broken, and a third class with none."""
    cv2 = need("cv2")
    root = tmp_path_factory.mktemp("data") / "tree"
    for split, count in (("train", 24), ("val", 6)):
        for index in range(count):
            path = root / split / f"n{index % 2}" / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = RNG.integers(0, 256, (40 + index, 50, 3), np.uint8)
            cv2.imwrite(str(path), noise)
    (root / "train" / "n0" / "04.png").write_bytes(b"no image")
    whole = (root / "train" / "n1" / "07.png").read_bytes()
    (root / "train" / "n1" / "07.png").write_bytes(whole[:1000])
    (root / "train" / "n2").mkdir()
    (root / "train" / "n2" / "a.png").write_bytes(b"no image either")
    return root


def test_any_number_of_workers_makes_the_same_store(tree, tmp_path, capsys):
    made = {}
    for workers in (0, 2):
        folder = tmp_path / f"by-{workers}"
        assert main(["prepare", str(tree), str(folder), "--size", "32", "--workers", str(workers)]) == 0
        made[workers] = contents(folder)
    assert made[0] == made[2]
    text = capsys.readouterr().out
    assert "22 training and 6 validation images of 3 classes, 32 x 32 x 3" in text
    assert "no training image of 1 class: n2" in text
    assert "left out 3 files" in text
    assert re.search(r"n0/04.png: \w+", text)


def test_a_store_is_not_made_within_its_data(tree, tmp_path, capsys):
    assert main(["prepare", str(tree), str(tree / "store")]) == 2
    assert "the store would become part of the data" in capsys.readouterr().err
    assert not (tree / "store").exists()
    assert main(["prepare", str(tree), str(tmp_path / "store"), "--size", "8"]) == 0
    assert main(["prepare", str(tmp_path / "store"), str(tmp_path / "another")]) == 2
    assert "is a store already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["digits"], "takes DATA and STORE"),
        (["digits", ""], "'' names no file"),
        (["digits", "store", "--size", "0"], "size must be at least 1, not 0"),
        (["digits", "store", "--workers", "-1"], "workers must be at least 0, not -1"),
        (["nowhere", "store"], "no such folder: nowhere"),
        (["nowhere", "--verify"], "nowhere is not a store: it has no store.json"),
    ),
)
def test_wrong_commands_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preparing, "open_data", lambda *_: some(30))
    assert main(["prepare", "digits", str(tmp_path / "store"), "--workers", "0"]) == 130
    assert "what is complete is kept: the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
