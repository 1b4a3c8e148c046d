"""Data, runs and files that cannot be used: one line says what is wrong, and nothing is lost."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

import ilsvrc
import numpy as np
import pytest
import trees
from conftest import need

from convkit.cli import main
from convkit.train.data import open_data
from convkit.train.data.dataset import Data, Pixels
from convkit.train.errors import BadImage, DataError
from convkit.train.preparation import prepare

need("safetensors")
need("cv2")
need("scipy")
#: A run of a second: two steps of a narrow network.
SHORT = (
    "--set", "batch=4", "--set", "steps=2", "--set", "network.widths=0.1", "--workers", "0", "--quiet",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("convkit.train.loop.curves.draw", lambda *_: None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line that an unsuccessful command prints."""
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 2
    shown = capsys.readouterr()
    assert not shown.out and shown.err.count("\n") == 1, shown
    return shown.err.removeprefix(f"convkit {arguments[0]}: ")


def content(folder: Path) -> dict[str, str]:
    """A folder's files, but for the lock."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# -- a tree -------------------------------------------------------------------------------------------
def cat(folder: Path) -> None:
    """An image in a folder; it is not opened where only names are looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cat.jpg").write_bytes(b"?")


def nothing(root: Path) -> None:
    pass


def no_image(root: Path) -> None:
    (root / "n1").mkdir()
    (root / "n1" / "readme.txt").write_text("?")


def flat(root: Path) -> None:
    cat(root)


def flat_training(root: Path) -> None:
    cat(root / "train")
    cat(root / "val" / "n1")


def flat_validation(root: Path) -> None:
    cat(root / "train" / "n1")
    cat(root / "val")


def empty_validation(root: Path) -> None:
    cat(root / "train" / "n1")
    (root / "val" / "n1").mkdir(parents=True)


def other_classes(root: Path) -> None:
    cat(root / "train" / "n1")
    for key in ("n1", "n2", "n3", "n4", "n5"):
        cat(root / "val" / key)


TREES = {
    nothing: "tree has no class folders; each class needs a folder of its own in it",
    no_image: "no image in the 1 class folders of .*tree$",
    flat: "tree has images, but no class folders",
    flat_training: "tree/train has images, but no class folders",
    flat_validation: "tree/val has images, but no class folders; validation needs the class folders of train",
    empty_validation: "no image in the 1 class folders of .*tree/val$",
    other_classes: "tree/val has classes that training lacks: n2, n3, n4 and 1 more$",
}


@pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__)
def test_trees(make, tmp_path):
    (tmp_path / "tree").mkdir()
    make(tmp_path / "tree")
    with pytest.raises(DataError, match=TREES[make]):
        open_data(tmp_path / "tree", 8)


def test_what_is_a_tree_all_the_same(tmp_path):
    """A class that is called train; a folder for testing without labels, as ImageNet has it."""
    for key in ("train", "plane", "boat"):
        cat(tmp_path / "toys" / key)
    assert open_data(tmp_path / "toys", 8).classes == ("boat", "plane", "train")
    cat(tmp_path / "tree" / "train" / "n1")
    cat(tmp_path / "tree" / "test")
    data = open_data(tmp_path / "tree", 8)
    assert data.classes == ("n1",) and len(data.train) == 1 and data.validation is None


def test_without_validation_a_tenth_is_held_out(tmp_path):
    """The same images whatever else the tree holds, so that they are never trained with."""
    trees.make(tmp_path / "tree", classes=3, train=40, validation=0, parts=("", ""), height=8, width=8)
    data = open_data(tmp_path / "tree", 8)
    names = {split.name(index) for split in (data.train, data.validation) for index in range(len(split))}
    assert len(names) == len(data.train) + len(data.validation) == 120
    assert 4 <= len(data.validation) <= 24 and f"{len(data.validation)} of 120 images held out" in data.name
    held_out = {data.validation.name(index) for index in range(len(data.validation))}
    shutil.rmtree(tmp_path / "tree" / data.classes[0])
    again = open_data(tmp_path / "tree", 8).validation
    assert {again.name(i) for i in range(len(again))} == {n for n in held_out if data.classes[0] not in n}


@pytest.mark.parametrize("part", ["train", "val"])
def test_no_image_can_be_read(part, tmp_path, capsys):
    tree = trees.make(tmp_path / "tree", classes=2, train=6, validation=2)
    for path in (tree.root / part).rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:100])
    count = {"train": "12", "val": "4"}[part]
    for command in (
        ("prepare", tree.root, tmp_path / "store", "--workers", 0),
        ("train", tree.root, "--output", tmp_path / "run", *SHORT),
    ):
        line = refused(capsys, *command)
        assert f"none of the {count} " in line or f"none of {count} " in line, line
    assert not (tmp_path / "store").exists()
    # Of validation it is known after an epoch, which is kept.
    assert (tmp_path / "run").exists() == (part == "val")


# -- the tars -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Four classes as ILSVRC's tars."""
    root = tmp_path_factory.mktemp("packed")
    tree = trees.make(root / "tree", classes=4, train=3, validation=2, height=24, width=24, awkward=True)
    return tree, ilsvrc.pack(tree.root, root / "tars")


@pytest.fixture
def tars(packed, tmp_path):
    return shutil.copytree(packed[1], tmp_path / "tars")


def test_the_tars_hold_what_the_tree_holds(packed):
    (tree, folder), read = packed, {}
    for name, path in (("tree", tree.root), ("tars", folder)):
        data = open_data(path, 16)
        for part, split in (("train", data.train), ("val", data.validation)):
            images, reasons = [], []
            for index, label in enumerate(split.labels):
                pixels = np.empty(split.shape, np.uint8)
                try:
                    split.read(index, pixels)
                    images.append((data.classes[label], pixels.tobytes()))
                except BadImage as error:
                    reasons.append(str(error))
            read[name, part] = images if part == "train" else sorted(images), reasons
    # The tars have no dangling link; the images for validation have names of another order.
    missing = [reason for reason in read["tree", "train"][1] if "No such file" in reason]
    read["tree", "train"][1].remove(*missing)
    assert read["tree", "train"] == read["tars", "train"] and len(read["tars", "train"][1]) > 5
    assert read["tree", "val"] == read["tars", "val"] and len(read["tars", "val"][0]) == 8
    reasons = dict(open_data(folder, 16).left_out)
    key = tree.classes[-1]
    assert reasons[f"{folder}/{ilsvrc.TRAIN}/{key}.tar"] == "the tar of a class without an image"
    assert reasons[f"{folder}/{ilsvrc.TRAIN}/{key}.tar/readme.txt"] == "its name is not that of an image"


def test_a_tar_that_is_missing_is_named(tars):
    (tars / ilsvrc.DEVKIT).unlink()
    with pytest.raises(DataError, match=f"lacks {ilsvrc.DEVKIT}$"):
        open_data(tars, 16)
    (tars / ilsvrc.VALIDATION).unlink()
    with pytest.raises(DataError, match=f"lacks {ilsvrc.VALIDATION} and {ilsvrc.DEVKIT}$"):
        open_data(tars, 16)


@pytest.mark.parametrize("name", [ilsvrc.TRAIN, ilsvrc.VALIDATION])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda whole: b"", "is damaged, or no tar: "),
        (lambda whole: b"<html>404 Not Found</html>" * 50, "is damaged, or no tar: "),
        (lambda whole: whole[: len(whole) // 2], "is damaged: "),
        (lambda whole: b"\0" * 512 + whole[512:], "holds no tar with images|has 0 images"),
    ],
    ids=["empty", "text", "half", "no header"],
)
def test_a_damaged_tar_is_named(tars, name, harm, words):
    (tars / name).write_bytes(harm((tars / name).read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        open_data(tars, 16)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_that_is_lost_within_a_tar_is_no_end(tars):
    """tarfile takes a damaged header for the end of a tar."""
    path = tars / ilsvrc.VALIDATION
    whole = bytearray(path.read_bytes())
    second = whole.index(b"ILSVRC2012_val_00000002")
    whole[second : second + 512] = b"?" * 512
    path.write_bytes(whole)
    with pytest.raises(DataError, match=f"there is no file's header at byte {second:,}"):
        open_data(tars, 16)


def test_a_tar_that_is_cut_while_it_is_in_use(tars):
    split = open_data(tars, 16).train
    with open(tars / ilsvrc.TRAIN, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(BadImage, match="the tar ends inside it"):
        split.read(len(split) - 1, np.empty(split.shape, np.uint8))


def test_labels_that_do_not_fit_the_images(tars, packed):
    numbers = {key: number for number, key in enumerate(packed[0].classes, 1)}
    for truth, known, words in (
        ([1, 2, 3], numbers, "val.tar has 8 images, .* labels for 3"),
        ([1, 2, 3, 4, 1, 2, 3, 9], numbers, "has the label 9, which .*meta.mat lacks"),
        ([1, 2, 3, 4, 1, 2, 3, 1001], numbers, "has the label 1001, which .*meta.mat lacks"),
        ([1, 2, 3, 4, 1, 2, 3, 5], {**numbers, "n99999999": 5}, "train.tar has no class n99999999, which "),
    ):
        ilsvrc.write_devkit(tars / ilsvrc.DEVKIT, known, truth)
        with pytest.raises(DataError, match=words):
            open_data(tars, 16)


def test_a_damaged_devkit(tars):
    whole = (tars / ilsvrc.DEVKIT).read_bytes()
    files = {ilsvrc.TRUTH: b"1\n2\n", ilsvrc.META: b"MATLAB 5.0"}
    for harmed, words in (
        (whole[: len(whole) // 2], "is damaged, or no tar"),
        (b"?" * 100, "is damaged, or no tar"),
        (gzip.compress(ilsvrc.tar(files)), "is damaged: "),
        (gzip.compress(ilsvrc.tar({ilsvrc.META: b""})), "lacks ILSVRC2012_validation_ground_truth.txt"),
        (gzip.compress(ilsvrc.tar({ilsvrc.TRUTH: b"1\n"})), "lacks meta.mat"),
    ):
        (tars / ilsvrc.DEVKIT).write_bytes(harmed)
        with pytest.raises(DataError, match=words) as caught:
            open_data(tars, 16)
        assert ilsvrc.DEVKIT in str(caught.value) and "\n" not in str(caught.value)


# -- IDX ----------------------------------------------------------------------------------------------
IMAGES = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2)) + bytes(range(8))
LABELS = bytes((0, 0, 8, 1, 0, 0, 0, 2)) + bytes((0, 1))


def idx(folder: Path, images: bytes = IMAGES, labels: bytes = LABELS, part: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return folder


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"images": b""}, r"images-idx3-ubyte is no IDX file of bytes: it begins with , not 00 00 08 03 or"),
        ({"images": LABELS}, "images-idx3-ubyte is no IDX file of bytes: it begins with 00 00 08 01"),
        ({"images": IMAGES[:-1]}, r"is damaged: it has 23 bytes, not the 24 of its extents \(2 x 2 x 2\)"),
        ({"images": IMAGES + b"0"}, "is damaged: it has 25 bytes, not the 24"),
        ({"images": gzip.compress(IMAGES)[:-9]}, "is damaged: "),
        ({"labels": IMAGES}, "labels-idx1-ubyte is no IDX file of bytes"),
        ({"labels": LABELS[:7] + b"\1\0"}, "train has 2 images and 1 labels"),
    ],
)
def test_idx_files(tmp_path, files, words):
    with pytest.raises(DataError, match=words):
        open_data(idx(tmp_path / "idx", **files), 8)


def test_idx_files_that_do_not_fit_each_other(tmp_path):
    folder = idx(tmp_path / "idx", part="t10k")
    with pytest.raises(DataError, match="has no train-images-idx3-ubyte, nor that with .gz"):
        open_data(folder, 8)
    wide = IMAGES[:8] + bytes((0, 0, 0, 1, 0, 0, 0, 4)) + IMAGES[16:]
    idx(folder, wide)
    with pytest.raises(DataError, match="training are 1 x 4 x 1, those for testing 2 x 2 x 1"):
        open_data(folder, 8)
    idx(folder, labels=LABELS[:-1] + b"\0")
    with pytest.raises(
        DataError, match="t10k-labels-idx1-ubyte: a label is 1, but those of training end at 0"
    ):
        open_data(folder, 8)


# -- a run that is evaluated, or asked ----------------------------------------------------------------------
@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tree, a store of it, and two runs: on it, and one of another network."""
    root = tmp_path_factory.mktemp("made")
    tree = trees.make(root / "tree", classes=3, train=4, validation=2, height=40, width=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convkit.train.loop.curves.draw", lambda *_: None)
        assert main(["prepare", str(tree.root), str(root / "store"), "--size", "32", "--workers", "0"]) == 0
        for name, more in (("run", ()), ("wide", ("--set", "network.widths=0.2"))):
            command = ["train", str(root / "store"), "--output", str(root / name), *SHORT, *more]
            assert main(command) == 0
    return root


def test_runs_that_are_none(made, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    image = next((made / "tree" / "val").rglob("*.JPEG"))
    for command, more in (("evaluate", ()), ("predict", (image,))):
        for run, words in (
            (tmp_path / "nowhere", "nowhere holds no run: there is no such folder"),
            (tmp_path / "empty", "empty holds no run: it has no run.json"),
            (image, "holds no run: it is a file"),
            (made / "store", "store holds no run: it has no run.json"),
        ):
            assert words in refused(capsys, command, run, *more)
        line = refused(capsys, command, made / "run", *more, "--checkpoint", "first")
        assert line == "there is no checkpoint 'first': it can be last, previous, best, or a file\n"
    assert not list((tmp_path / "empty").iterdir()) and not (tmp_path / "nowhere").exists()


def test_another_networks_checkpoint(made, capsys):
    image = next((made / "tree" / "val").rglob("*.JPEG"))
    other = made / "wide" / "best.safetensors"
    before = content(made / "run")
    for command in (("evaluate", made / "run"), ("predict", made / "run", image)):
        line = refused(capsys, *command, "--checkpoint", other)
        assert f"{other} is of another network: " in line and "conv1.w has shape" in line
    assert content(made / "run") == before


def test_data_that_a_run_cannot_be_evaluated_on(made, tmp_path, capsys):
    before = content(made / "run")
    run = ("evaluate", made / "run")
    assert "no such folder: nowhere" in refused(capsys, *run, "nowhere")
    trees.make(tmp_path / "more", classes=5, train=1, validation=1)
    line = refused(capsys, *run, tmp_path / "more")
    assert "more has 2 classes that the run does not have: n01491361, n01494475\n" in line
    classes = open_data(made / "store", 32).classes
    alone = Data(
        "alone", classes, classes, Pixels(np.zeros((3, 32, 32, 3), np.uint8), np.arange(3)), None, "0"
    )
    prepare(alone, tmp_path / "alone", workers=0)
    line = refused(capsys, *run, tmp_path / "alone")
    assert "has no images for validation; --split train takes the others" in line
    trees.make(tmp_path / "tree", classes=3, train=1, validation=1)
    main(["prepare", str(tmp_path / "tree"), str(tmp_path / "store"), "--size", "24", "--workers", "0"])
    line = refused(capsys, *run, tmp_path / "store")
    assert "tree has images of 24 x 24 x 3, the run of 32 x 32 x 3" in line
    assert content(made / "run") == before


def test_a_run_whose_data_are_gone_says_so(made, tmp_path, capsys):
    shutil.copytree(made / "store", tmp_path / "store")
    assert main(["train", str(tmp_path / "store"), "--output", str(tmp_path / "run"), *SHORT]) == 0
    shutil.rmtree(tmp_path / "store")
    assert f"no such folder: {tmp_path}/store" in refused(capsys, "evaluate", tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), str(made / "store")]) == 0


def test_a_damaged_store_is_not_evaluated(made, tmp_path, capsys):
    shutil.copytree(made / "store", tmp_path / "store")
    shard = tmp_path / "store" / "validation-00000.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run = ("evaluate", made / "run", tmp_path / "store")
    assert "validation-00000.npy is damaged: its SHA-256 is not that of what was written" in refused(
        capsys, *run
    )
    shard.unlink()
    assert "validation-00000.npy is missing: the store is damaged" in refused(capsys, *run)


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_files_that_cannot_be_written_are_refused_before_the_work(
    made, tmp_path, capsys, monkeypatch, option
):
    monkeypatch.setattr("convkit.train.trained.evaluate", None)
    (tmp_path / "file").write_text("mine")
    before = content(made / "run"), content(tmp_path)
    for path in (tmp_path / "file" / "page", tmp_path, tmp_path / "nowhere" / "page"):
        assert str(path) in refused(capsys, "evaluate", made / "run", option, path)
    assert (content(made / "run"), content(tmp_path)) == before


def test_images_that_cannot_be_predicted_do_not_stop_the_others(made, tmp_path, capsys):
    good = next((made / "tree" / "val").rglob("*.JPEG"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("?")
    (tmp_path / "torn.jpg").write_bytes(good.read_bytes()[:200])
    bad = [tmp_path / name for name in ("empty", "text.jpg", "torn.jpg", "nowhere.jpg")]
    assert main(["predict", *map(str, (made / "run", *bad, good))]) == 1
    shown = capsys.readouterr()
    assert [line.split(": ")[1] for line in shown.err.splitlines()] == [str(path) for path in bad]
    assert str(good) in shown.out and not any(str(path) in shown.out for path in bad)


# -- two runs in a folder -----------------------------------------------------------------------------------
def test_a_second_run_leaves_the_first_as_it_is(made, capsys):
    before = content(made / "run")
    again = ("train", made / "store", "--output", made / "run", *SHORT)
    assert "holds a run already: --resume goes on with it" in refused(capsys, *again)
    line = refused(capsys, *again, "--resume", "--recipe", "2012")
    assert "a run of another recipe" in line
    assert "holds other things" in refused(capsys, "train", made / "store", "--output", made, *SHORT)
    line = refused(capsys, "prepare", made / "tree", made / "run")
    assert "run is neither empty nor a store: nothing is written to it" in line
    assert content(made / "run") == before
