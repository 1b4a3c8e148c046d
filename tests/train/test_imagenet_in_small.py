"""ImageNet in small, end to end: synset folders and ILSVRC's tars through the four commands."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ilsvrc
import numpy as np
import pytest
import runs
import trees
from conftest import need

from convkit.cli import main
from convkit.train.data.dataset import Split
from convkit.train.data.names import synsets
from convkit.train.data.store import open_store

need("safetensors")
need("cv2")
need("scipy")
Image = need("PIL.Image")

#: The recipe of 2012, of a network that learns a few classes within a second or two. Its own network begins
#: with weights that are too small for that, and the rate of its biases is for batches of 128.
SMALL = (
    "--recipe", "2012", "--set", "network.preset=small", "--set", "network.image_size=32",
    "--set", "network.widths=0.5", "--set", "images.size=40", "--set", "batch=16", "--set", "epochs=8",
    "--set", "update.bias_lr_fixed=0", "--set", "schedule=[{epoch=7, lr_factor=0.1}]",
)  # fmt: skip
CLASSES, TRAIN, VALIDATION, STORED = 6, 40, 8, 40


def command(*arguments: object, status: int = 0) -> tuple[str, str]:
    """What a command prints: on stdout, on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main([str(one) for one in arguments])
    assert found == status, err.getvalue()
    return out.getvalue(), err.getvalue()


def pixels(split: Split) -> dict[str, np.ndarray]:
    """Every image by its file's name."""
    found = np.empty((len(split), *split.shape), np.uint8)
    assert not split.read_many(np.arange(len(split)), found)
    return {Path(split.name(index)).name: image for index, image in enumerate(found)}


def figures(document: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation says that does not depend on where the images lay."""
    found = {key: document[key] for key in ("images", "views", "loss", "top1", "top5", "classes")}
    return found | {"confusion": sorted(map(tuple, document["confusion"]))}


@dataclass
class Small:
    """What the commands have made of a tree, and what they said."""

    tree: trees.Tree
    store: Path
    run: Path
    prepared: str
    trained: str
    evaluated: str
    document: dict[str, Any]

    @property
    def left_out(self) -> dict[str, str]:
        """Reasons of the store by file."""
        lines = (self.store / "left_out.txt").read_text(encoding="utf-8").splitlines()
        return dict(line.split("\t") for line in lines)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    root = tmp_path_factory.mktemp("small")
    tree = trees.make(root / "tree", CLASSES, TRAIN, VALIDATION, height=72, width=96, awkward=True)
    torn = root / "tree" / "val" / tree.classes[1] / "torn.JPEG"
    torn.write_bytes(trees.written(trees.picture(1, 0))[:300])
    tree.broken[torn] = "truncated"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convkit.train.loop.curves.draw", lambda *_: None)
        prepared, _ = command("prepare", tree.root, root / "store", "--size", STORED, "--workers", 0)
        _, trained = command("train", root / "store", "--output", root / "run", *SMALL)
    evaluated, _ = command(
        "evaluate", root / "run", root / "store", "--views", 10, "--html", root / "page.html",
        "--json", root / "found.json",
    )  # fmt: skip
    document = json.loads((root / "found.json").read_text(encoding="utf-8"))
    yield Small(tree, root / "store", root / "run", prepared, trained, evaluated, document)


# -- prepare -------------------------------------------------------------------------------------------
def test_images_and_classes_are_counted(small):
    whole = (CLASSES - 1) * TRAIN + len(trees.odd(trees.picture(0, 0))) + 1
    count = f"{whole} training and {CLASSES * VALIDATION} validation images of {CLASSES} classes, 40 x 40 x 3"
    assert count in small.prepared
    assert f"no training image of 1 class: {small.tree.classes[-1]}" in small.prepared
    assert f"left out {len(small.tree.broken) + len(small.tree.left_out)} files, see " in small.prepared
    data = open_store(small.store)
    assert list(data.classes) == small.tree.classes and data.names[0] == "tench, Tinca tinca"
    assert len(data.train) == whole and np.bincount(data.train.labels).tolist() == [56, 40, 40, 40, 40]


def test_what_is_left_out_is_named_with_the_reason(small):
    expected = {*map(str, small.tree.broken), *map(str, small.tree.left_out)}
    assert set(small.left_out) == expected
    for path, word in small.tree.broken.items():
        assert word in small.left_out[str(path)]


def test_odd_files_are_stored_as_what_they_show(small):
    """CMYK, grey, 16 bits, palettes, EXIF's turns, a PNG by the name of a JPEG ..."""
    found = pixels(open_store(small.store).train)
    pixel = trees.picture(0, 1)
    colour = areas(pixel)
    grey = np.repeat(areas(np.asarray(Image.fromarray(pixel).convert("L"))[..., None]), 3, axis=2)
    for name in trees.odd(pixel):
        like = grey if name in ("grey.JPEG", "grey16.png") else colour
        # What a JPEG or a palette loses: about one level of 255 on average.
        assert np.abs(found[name] - like).mean() < 2, name
    assert (found["tiny.png"] == 77).all()


def areas(image: np.ndarray, size: int = STORED) -> np.ndarray:
    """The square in the centre, each pixel the mean of the area that it covers: float64 (size, size, C)."""
    shorter = min(image.shape[:2])
    top, left = (image.shape[0] - shorter) // 2, (image.shape[1] - shorter) // 2
    square = image[top : top + shorter, left : left + shorter].astype(np.float64)
    edges = np.arange(size + 1) * shorter / size
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(shorter)
    weights = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) * size / shorter
    return np.einsum("pi,qj,ijc->pqc", weights, weights, square, optimize=True)


def test_the_mean_image_is_that_of_the_images(small):
    data = open_store(small.store)
    found = pixels(data.train)
    np.testing.assert_allclose(data.statistics.mean, np.mean(list(found.values()), axis=0), rtol=1e-5)
    for key in small.tree.classes[:-1]:
        files = [small.tree.root / "train" / key / f"{key}_{number}.JPEG" for number in range(TRAIN)]
        decoded = [areas(np.asarray(Image.open(file))) for file in files]
        # Half a level is what rounding leaves; another JPEG decoder's may differ by one.
        np.testing.assert_allclose([found[file.name] for file in files], decoded, rtol=0, atol=1.5)


# -- train, evaluate, predict ---------------------------------------------------------------------------
def test_it_learns(small):
    data, *_ = small.trained.splitlines()[1:]
    assert data == "tree: 216 images of 40 x 40 pixels, 48 for validation"
    assert f"no training image has one of 1 labels: {small.tree.classes[-1]}" in small.trained
    known = small.document["classes"][:-1]
    errors = sum(one["errors"] for one in known) / sum(one["images"] for one in known)
    assert errors < 0.5, f"of five classes {errors:.0%} are wrong; chance is 80 %"
    with open(small.run / "epochs.csv", newline="") as file:
        epochs = [float(row["validation_error"]) for row in csv.DictReader(file)]
    best = small.trained.splitlines()[-1]
    assert best.endswith(f"a validation error of {100 * min(epochs):.2f} %") and min(epochs) < epochs[0]


def test_error_rates_have_intervals(small):
    for name, rate in (("top-1", small.document["top1"]), ("top-5", small.document["top5"])):
        line = re.search(rf"{name} error +([\d.]+) % +([\d.]+) to ([\d.]+) %", small.evaluated)
        assert [float(group) for group in line.groups()] == pytest.approx(
            [100 * value for value in (rate["error"], *rate["interval_95"])], abs=0.006
        )
        assert rate["error"] == rate["errors"] / (CLASSES * VALIDATION)
    assert "validation, 48 images, views 10: four corners and the centre, and mirrored" in small.evaluated
    page = (small.run.parent / "page.html").read_text(encoding="utf-8")
    assert f"{100 * small.document['top1']['error']:.2f} %" in page
    assert "tench, Tinca tinca" in page and "hammerhead" in page


def test_the_checkpoints_epoch_is_said(small):
    steps = 216 // 16
    for which in ("last", "previous"):
        said, _ = command("evaluate", small.run, "--checkpoint", which)
        epoch = {"last": 8, "previous": 7}[which]
        assert f"{which}, after step {epoch * steps}, in epoch {epoch}\n" in said


@pytest.mark.parametrize("views", [1, 10])
def test_predict_agrees_with_evaluate_and_knows_names(small, tmp_path, views):
    command("evaluate", small.run, "--views", views, "--json", tmp_path / "found.json")
    document = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    given = (small.run, small.tree.root / "val", "--views", views, "--top", 1)
    said, errors = command("predict", *given, status=1)
    rows = [line.split() for line in said.splitlines()[2:]]
    wrong = sum(Path(path).parent.name != key for path, *_, key in rows)
    assert (len(rows), wrong) == (document["images"], document["top1"]["errors"])
    (torn,) = errors.splitlines()
    assert torn.startswith(f"convkit predict: {small.tree.root}/val/{small.tree.classes[1]}/torn.JPEG: ")
    for row in rows:
        assert " ".join(row[3:-1]) == synsets()[row[-1]]


def test_predict_says_the_five_most_probable_classes(small):
    image = small.tree.root / "train" / small.tree.classes[0] / "cmyk.JPEG"
    for views in (1, 10):
        said, _ = command("predict", small.run, image, "--views", views)
        assert len(said.splitlines()) == 2 + 5 and "great white shark" in said
        shares = [float(share) for share in re.findall(r"([\d.]+) %", said)]
        # The sixth class has no image in training, and so next to no probability.
        assert shares == sorted(shares, reverse=True) and 90 < sum(shares) <= 100.03


# -- the tree, the store and the tars ---------------------------------------------------------------------
def test_a_run_is_evaluated_from_any_source_alike(small, tmp_path):
    file = tmp_path / "found.json"
    command("evaluate", small.run, small.tree.root, "--views", 10, "--json", file, "--workers", 0)
    document = json.loads(file.read_text(encoding="utf-8"))
    assert figures(document) == figures(small.document)
    ((torn, _),) = document["left_out"]
    assert Path(torn).name == "torn.JPEG"


def test_data_may_lack_classes_of_the_run(small, tmp_path):
    """Their classes are numbered from 0 on, and are still those of the run by their keys."""
    some = [small.tree.classes[number] for number in (2, 4)]
    for part in ("train", "val"):
        for key in some:
            shutil.copytree(small.tree.root / part / key, tmp_path / "some" / part / key)
    given = (small.run, tmp_path / "some", "--views", 10, "--json", tmp_path / "found.json", "--workers", 0)
    said, _ = command("evaluate", *given)
    assert "note: There are images of 2 of the 6 classes." in said
    document = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    found = [one for one in document["classes"] if one["images"]]
    assert found == [one for one in small.document["classes"] if one["key"] in some]


def test_training_has_the_same_bits_from_any_source(tmp_path, monkeypatch):
    monkeypatch.setattr("convkit.train.loop.curves.draw", lambda *_: None)
    tree = trees.make(tmp_path / "tree", classes=3, train=12, validation=3).root
    command("prepare", tree, tmp_path / "store", "--size", STORED, "--workers", 0)
    ilsvrc.pack(tree, tmp_path / "tars")
    short = (*SMALL, "--set", "steps=3", "--workers", 0)
    for source in ("tree", "store", "tars"):
        _, said = command("train", tmp_path / source, "--output", tmp_path / f"by-{source}", *short)
        assert "36 images of 40 x 40 pixels, 9 for validation" in said
    # The tars' images for validation are in another order, so that a sum of losses may differ in a bit.
    same = ("epoch", "step", "loss", "error", "validation_error")
    ends = []
    for source in ("tree", "store", "tars"):
        run = tmp_path / f"by-{source}"
        ends.append((runs.digest(run), [[row[k] for k in same] for row in runs.rows(run, "epochs.csv")]))
    assert ends[0] == ends[1] == ends[2]


def test_training_from_files_names_those_for_which_others_stood_in(small, tmp_path, monkeypatch):
    monkeypatch.setattr("convkit.train.loop.curves.draw", lambda *_: None)
    short = (*SMALL, "--set", "epochs=1", "--set", "images.mean=channel", "--workers", 0)
    _, said = command("train", small.tree.root, "--output", tmp_path / "run", *short)
    assert "another image stands in for " in said and f"see {tmp_path}/run/left_out.txt" in said
    assert "1 validation images cannot be read: they do not count" in said
    lines = (tmp_path / "run" / "left_out.txt").read_text(encoding="utf-8").splitlines()
    named = {Path(line.split("\t")[0]) for line in lines}
    assert set(small.tree.left_out) < named <= {*small.tree.left_out, *small.tree.broken}


# -- a thousand classes -----------------------------------------------------------------------------------
#: The network of 2012, narrow, on images of 64 pixels.
NARROW = (
    "--recipe", "2012", "--set", "network.image_size=64", "--set", "network.widths=0.1",
    "--set", "images.size=72", "--set", "batch=64", "--set", "epochs=2",
)  # fmt: skip
#: (height, width) of images; a few are as large as most of ImageNet's.
SIZES = (((375, 500), 1), ((500, 333), 1), ((180, 240), 6), ((160, 120), 8))


def shell(*arguments: object) -> tuple[str, str]:
    """A command as users give it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "convkit", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def photo(rng: np.random.Generator, label: int) -> np.ndarray:
    """A crop of a photograph in the shade of a class, of any of the sizes."""
    shapes = [shape for shape, often in SIZES for _ in range(often)]
    height, width = shapes[rng.integers(len(shapes))]
    whole = trees.photographs()[rng.integers(len(trees.photographs()))]
    height, width = min(height, whole.shape[0]), min(width, whole.shape[1])
    top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
    shade = np.array([label % 10, label // 10 % 10, label // 100], np.uint8) * 14
    return whole[top : top + height, left : left + width] // 2 + shade


@pytest.mark.slow
def test_a_thousand_classes(tmp_path):
    rng = np.random.default_rng(0)
    tree = tmp_path / "ImageNet"
    for label, key in enumerate(synsets()):
        for part, count in (("train", 2), ("val", 1)):
            (tree / part / key).mkdir(parents=True)
            for number in range(count):
                content = trees.written(photo(rng, label), quality=85)
                (tree / part / key / f"{key}_{part}{number}.JPEG").write_bytes(content)
    awkward = trees.Tree(tree, list(synsets()))
    trees.add_awkward(awkward, tree / "train" / "n02123045")
    ilsvrc.pack(tree, tmp_path / "tars")

    said, _ = shell("prepare", tree, tmp_path / "store", "--size", 72)
    odd = len(trees.odd(trees.picture(0, 0))) + 1
    assert f"{2000 + odd:,} training and 1,000 validation images of 1,000 classes, 72 x 72 x 3" in said
    left_out = (tmp_path / "store" / "left_out.txt").read_text(encoding="utf-8")
    for path, word in awkward.broken.items():
        assert re.search(rf"^{re.escape(str(path))}\t.*{word}", left_out, re.MULTILINE)

    # The same images from the tars: those to train in the same order, those for validation in another.
    shell("prepare", tmp_path / "tars", tmp_path / "packed", "--size", 72)
    for name in ("train-00000.npy", "train-labels.npy", "statistics.npz"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes(), name

    _, said = shell("train", tmp_path / "store", "--output", tmp_path / "run", *NARROW)
    assert "AlexNet (2012): 64 x 64 x 3 pixels, 1000 classes, " in said
    assert (tmp_path / "run" / "curves.png").exists()
    losses = [float(row["validation_loss"]) for row in runs.rows(tmp_path / "run", "epochs.csv")]
    assert len(losses) == 2 and losses[-1] < np.log(1000) + 0.1  # that of equal chances

    found = []
    for source in ("store", "tars", "ImageNet"):
        page, file = tmp_path / f"{source}.html", tmp_path / f"{source}.json"
        said, _ = shell(
            "evaluate", tmp_path / "run", tmp_path / source, "--views", 10, "--html", page, "--json", file
        )
        assert re.search(r"top-1 error +[\d.]+ % +[\d.]+ to [\d.]+ %\n", said)
        assert "tench" in page.read_text(encoding="utf-8")
        found.append(figures(json.loads(file.read_text(encoding="utf-8"))))
    assert found[0] == found[1] == found[2] and found[0]["images"] == 1000

    said, _ = shell("predict", tmp_path / "run", tree / "val" / "n01440764" / "n01440764_val0.JPEG")
    rows = said.splitlines()[2:]
    assert len(rows) == 5 and all(synsets()[row.split()[-1]] in row for row in rows)

    _, said = shell("train", tree, "--output", tmp_path / "direct", *NARROW, "--set", "epochs=1")
    assert "another image stands in for " in said
    named = (tmp_path / "direct" / "left_out.txt").read_text(encoding="utf-8")
    assert sum(f"{path}\t" in named for path in awkward.broken) >= len(awkward.broken) // 2
