"""Stores: what is read is what was written, and every damage is one line that names the file."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest

from convkit.train import preparation as preparing
from convkit.train.data import store
from convkit.train.data.dataset import Data, Pixels
from convkit.train.data.store import damaged, fingerprint, is_store, open_store
from convkit.train.errors import DataError
from convkit.train.preparation import prepare

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (50, 8, 8, 3), np.uint8)
LABELS = RNG.integers(0, 4, 50).astype(np.int32)


class Named(Pixels):
    def name(self, index):
        return f"kläss{self.labels[index]}/{index}\udcff\n.png"


def data() -> Data:
    return Data(
        "four", ("a", "b", "c", "d"), ("ant", "bee", "crane", "dove"), Named(PIXELS[:40], LABELS[:40]),
        Named(PIXELS[40:], LABELS[40:]), "0123", left_out=[("a/x\n.txt", "it is\ta text")],
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store whose training images are in shards of 16, 16 and 8."""
    path = tmp_path_factory.mktemp("whole") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "SHARD", 16 * 192)
        prepare(data(), path)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def read(split, indices):
    out = np.full((len(indices), *split.shape), 77, np.uint8)
    assert split.read_many(np.array(indices, np.int64), out) == []
    return out


def test_what_is_read_is_what_was_written(whole):
    found = open_store(whole)
    assert (found.name, found.classes, found.names) == ("four", tuple("abcd"), data().names)
    assert (found.train.labels == LABELS[:40]).all()
    assert (found.validation.labels == LABELS[40:]).all()
    assert found.train.labels.dtype == np.int32
    assert found.train.shape == (8, 8, 3)
    assert found.train.in_memory
    assert found.train.name(0) == data().train.name(0)
    assert found.train.name(39) == data().train.name(39)
    assert found.statistics.images == 40
    np.testing.assert_allclose(found.statistics.mean, PIXELS[:40].mean(axis=0), rtol=1e-6)
    assert list(found.left_out) == [("a/x\\n.txt", "it is\\ta text")]
    assert (read(found.validation, range(10)) == PIXELS[40:]).all()


@pytest.mark.parametrize(
    "indices", (range(40), [39, 0, 17, 17, 3], [20, 18, 30], [], [15, 16]), ids=lambda i: f"{len(i)}"
)
def test_rows_are_gathered_from_any_shard(whole, indices):
    split = open_store(whole).train
    assert (read(split, indices) == PIXELS[list(indices)]).all()


def test_large_shards_are_read_row_by_row(whole, monkeypatch):
    monkeypatch.setattr(store, "_WHOLE", 0)
    split = open_store(whole).train
    asked = []
    monkeypatch.setattr(store._Advice, "__call__", lambda self, row: asked.append(row))
    assert (read(split, [1, 38, 5]) == PIXELS[[1, 38, 5]]).all()
    assert asked == [1, 6, 5]
    monkeypatch.undo()
    advice = split._map(0)[1]
    for row in range(16):
        advice(row)  # the kernel refuses a start within a page


@pytest.mark.parametrize("index", (-1, 40))
def test_an_image_that_is_not_there_is_refused(whole, index):
    with pytest.raises(IndexError, match="images 0 to 39"):
        read(open_store(whole).train, [0, index])


def test_one_image_is_read(whole):
    out = np.empty((8, 8, 3), np.uint8)
    open_store(whole).train.read(33, out)
    assert (out == PIXELS[33]).all()


def test_a_split_is_pickled_without_its_pixels(whole, monkeypatch, tmp_path):
    monkeypatch.chdir(whole.parent)
    split = open_store(whole.name).train
    read(split, [0])
    split.name(3)
    text = pickle.dumps(split)
    assert len(text) < 2000 < PIXELS[:40].nbytes
    monkeypatch.chdir(tmp_path)  # what is relative is relative to where it was opened
    again = pickle.loads(text)
    assert (read(again, range(40)) == PIXELS[:40]).all()
    assert again.name(3) == split.name(3)


def test_a_store_can_be_moved(copy, whole):
    moved = open_store(copy)
    assert moved.fingerprint == open_store(whole).fingerprint
    assert (read(moved.train, range(40)) == PIXELS[:40]).all()


def test_a_fingerprint_is_that_of_the_images(tmp_path, whole):
    other = PIXELS.copy()
    other[3, 2, 1, 0] ^= 1
    changed = prepare(
        Data("four", tuple("abcd"), tuple("abcd"), Pixels(other, LABELS), None, "0123"), tmp_path / "changed"
    )
    assert changed.data.fingerprint != open_store(whole).fingerprint
    index = store.read_index(whole)
    assert fingerprint({**index, "name": "five", "made_by": "another"}) == index["fingerprint"]


# ---------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------
ALL = [
    "train-00000.npy", "train-00002.npy", "train-labels.npy", "train-names.npy", "train-name-ends.npy",
    "validation-00000.npy", "statistics.npz", "left_out.txt",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        open_store(copy)
    assert [name in line for line in damaged(copy)] == [True]


@pytest.mark.parametrize("name", ALL)
def test_a_file_of_another_size_is_named(copy, name):
    with open(copy / name, "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=f"{name} has .* bytes, but .* were written"):
        open_store(copy)
    assert [name in line for line in damaged(copy)] == [True]


def flip(path):
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)


@pytest.mark.parametrize("name", ["store.json", *ALL])
def test_a_changed_bit_is_found(copy, name):
    if name == "store.json":
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace('"bee"', '"wasp"'))
    else:
        flip(copy / name)

    def use():
        open_store(copy).train.name(0)

    with pytest.raises(DataError, match=f"{name} is damaged"):
        use()


def test_large_stores_are_not_verified_when_they_are_opened(copy, monkeypatch):
    flip(copy / "train-00001.npy")
    monkeypatch.setattr(store, "VERIFIED", 1000)
    open_store(copy)
    with pytest.raises(DataError, match="train-00001.npy is damaged"):
        open_store(copy, verify=True)
    monkeypatch.undo()
    with pytest.raises(DataError, match="train-00001.npy is damaged"):
        open_store(copy)
    open_store(copy, verify=False)


def test_every_damage_is_found_at_once(copy):
    flip(copy / "train-00001.npy")
    (copy / "validation-labels.npy").unlink()
    seen = []
    lines = damaged(copy, lambda done, total: seen.append((done, total)))
    assert ["train-00001" in lines[0], "validation-labels" in lines[1], len(lines)] == [True, True, 2]
    assert seen[-1][0] == seen[-1][1] == sum(entry["bytes"] for entry in store.files(store.read_index(copy)))


def test_another_header_is_refused(copy, monkeypatch):
    path = copy / "train-00000.npy"
    path.write_bytes(path.read_bytes().replace(b"(16, 8, 8, 3)", b"(16, 8, 3, 8)"))
    split = open_store(copy, verify=False).train
    with pytest.raises(DataError, match=r"train-00000.npy is damaged: its header does not say uint8 \(16, 8"):
        read(split, [0])
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match="train-00000.npy is damaged"):
        read(split, [0])


def test_another_format_is_refused(copy):
    index = json.loads((copy / "store.json").read_text())
    for change, message in (
        ({"format": store.FORMAT + 1}, "store.json is of format 2, and this convkit reads up to 1"),
        ({"format": None}, "is not that of a store"),
    ):
        (copy / "store.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(DataError, match=message):
            open_store(copy)


@pytest.mark.parametrize("text", ("", "{", "[1]", "null"))
def test_a_store_json_that_is_none_is_refused(copy, text):
    (copy / "store.json").write_text(text)
    with pytest.raises(DataError, match="store.json is (damaged|not that of a store)"):
        open_store(copy)


def test_what_is_no_store(tmp_path, copy):
    assert is_store(copy)
    assert not is_store(tmp_path)
    assert not is_store(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a store: it has no store.json"):
        open_store(tmp_path)
    (copy / "store.json").rename(copy / "unfinished.npz")
    assert is_store(copy)
    with pytest.raises(DataError, match="is not finished"):
        open_store(copy)
