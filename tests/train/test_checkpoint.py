"""Checkpoints: what is written is read, what cannot be read says why, and a failed write changes nothing."""

from __future__ import annotations

import errno
import json
import os
import resource

import ml_dtypes
import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit.train import checkpoint
from convkit.train.errors import RunError

safetensors = need("safetensors")
need("safetensors.numpy")

PARTS = ("params", "velocities")


def state_of(dtype: object = np.float32, n: int = 3) -> dict:
    rng = np.random.default_rng(0)
    shapes = {"conv1.w": (n, 2, 3, 3), "conv1.b": (n,)}
    parts = {part: {k: rng.standard_normal(s).astype(dtype) for k, s in shapes.items()} for part in PARTS}
    return {
        "format": 1, "dtype": np.dtype(dtype).name, "shapes": shapes, **parts,
        "seed": 2**64 - 1, "dropout_offset": 2**63 - 1, "plan": {"batch": 4, "calls": {"conv1": ["a", "b"]}},
    }  # fmt: skip


def assert_same(found: dict, expected: dict) -> None:
    assert {k: v for k, v in found.items() if k not in PARTS} == {
        k: v for k, v in expected.items() if k not in PARTS
    }
    for part in PARTS:
        assert list(found[part]) == list(expected[part])
        for name, array in expected[part].items():
            assert found[part][name].dtype == array.dtype
            assert found[part][name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_what_is_saved_is_loaded(tmp_path, dtype):
    path, state = tmp_path / "x.safetensors", state_of(dtype)
    position = {"step": 7, "epoch": 1, "best": float("inf")}
    checkpoint.save(path, state, position, recipe_toml="lr = 1\n", info={"a": ["ä"]})
    found = checkpoint.load(path)
    assert_same(found.state, state)
    assert (found.position, found.recipe_toml, found.info) == (position, "lr = 1\n", {"a": ["ä"]})
    assert found.path == path and found.version == ck.__version__
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_training_goes_on_with_the_same_bits(tmp_path):
    def network() -> ck.AlexNet:
        return ck.AlexNet("small", 5, image_size=28, channels=1, widths=0.25, seed=3)

    x = np.random.default_rng(0).standard_normal((4, 1, 28, 28), np.float32)
    labels = np.arange(4)
    net, other = network(), network()
    net.step(x, labels)
    checkpoint.save(tmp_path / "x", net.state(), {"step": 1})
    checkpoint.load(tmp_path / "x").load_into(other)
    assert net.step(x, labels) == other.step(x, labels)
    assert_same(other.state(), net.state())

    wide = ck.AlexNet("small", 6, image_size=28, channels=1, widths=0.25)
    with pytest.raises(RunError, match="of another network: .*: fc8.w has shape") as caught:
        checkpoint.load(tmp_path / "x").load_into(wide)
    assert str(tmp_path / "x") in str(caught.value)


def test_other_classes_are_refused(tmp_path):
    checkpoint.save(tmp_path / "x", state_of(), {}, info={"classes": ["a", "b"]})
    with pytest.raises(RunError, match="only it has 'b'; only the data have 'c'"):
        checkpoint.load(tmp_path / "x").load_into(None, ["a", "c"])


@pytest.mark.parametrize(
    ("own", "other", "words"),
    [
        ("ab", "ab", ""),
        ("ab", "ba", "the same classes in another order: class 0 is 'a' in it, 'b' in the data"),
        ("abc", "ab", "it has 3 classes, the data 2; only it has 'c'"),
        ("abcdef", "a", "it has 6 classes, the data 1; only it has 'b', 'c', 'd' and 2 more"),
    ],
)
def test_the_difference_of_classes(own, other, words):
    assert checkpoint.class_difference(tuple(own), list(other)) == words


def test_other_programs_read_the_weights(tmp_path):
    state = state_of()
    checkpoint.save(tmp_path / "x", state, {})
    found = safetensors.numpy.load_file(tmp_path / "x")
    assert set(found) == {f"{part}/{name}" for part in PARTS for name in state["params"]}
    np.testing.assert_array_equal(found["velocities/conv1.b"], state["velocities"]["conv1.b"])


def test_the_mode_is_what_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "x", state_of(), {})
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "x").st_mode & 0o777 == 0o640


def _rewritten(path, change) -> None:
    """The same file with other metadata or tensors, as safetensors writes it."""
    with safetensors.safe_open(str(path), "np") as file:
        names = file.keys()
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in names}
    change(metadata, tensors)
    safetensors.numpy.save_file(tensors, path, metadata)


def _other_format(metadata, tensors) -> None:
    document = json.loads(metadata["convkit_checkpoint"])
    metadata["convkit_checkpoint"] = json.dumps({**document, "format": 99})


DAMAGES = {
    "cut short": (lambda p: os.truncate(p, os.path.getsize(p) - 5), "is damaged, or no checkpoint"),
    "cut in the header": (lambda p: os.truncate(p, 100), "is damaged, or no checkpoint"),
    "empty": (lambda p: os.truncate(p, 0), "is damaged, or no checkpoint"),
    "text": (lambda p: p.write_text("hello " * 99), "is damaged, or no checkpoint"),
    "one bit": (
        lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])),
        "is damaged: the checksum of",
    ),
    "one digit of the metadata": (
        lambda p: p.write_bytes(p.read_bytes().replace(b'\\"step\\": 1', b'\\"step\\": 9')),
        "is damaged: the checksum of its metadata",
    ),
    "a tensor less": (
        lambda p: _rewritten(p, lambda m, t: t.pop("params/conv1.b")),
        "is damaged: it has no tensor 'params/conv1.b'",
    ),
    "of another program": (lambda p: _rewritten(p, lambda m, t: m.clear()), "is no checkpoint of convkit"),
    "no JSON": (
        lambda p: _rewritten(p, lambda m, t: m.update(convkit_checkpoint="{")),
        "is damaged, or no checkpoint",
    ),
    "another format": (lambda p: _rewritten(p, _other_format), "has format 99; this convkit reads 1"),
    "not there": (os.unlink, "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_says_why_in_one_line(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, state_of(), {"step": 1})
    change, words = DAMAGES[damage]
    change(path)
    with pytest.raises(RunError) as caught:
        checkpoint.load(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# -- a write that fails -------------------------------------------------------------------------------
def test_a_disk_that_is_full_leaves_the_old_file(tmp_path, monkeypatch):
    """Files of this process cannot grow beyond a limit: for the writer the same as a disk without room."""
    path, state = tmp_path / "x.safetensors", state_of()
    checkpoint.save(path, state, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(RunError, match="cannot write .*x.safetensors: File too large"):
            checkpoint.save(path, state_of(n=40_000), {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert checkpoint.load(path).position == {"step": 1}

    def full(*_: object) -> None:
        raise safetensors.SafetensorError("I/O error: some text (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(RunError, match="No space left on device"):
        checkpoint.save(path, state, {"step": 2})


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(RunError, match="cannot write .*: No such file"):
        checkpoint.save(tmp_path / "no" / "x", state_of(), {})


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    checkpoint.save(tmp_path / "x", state_of(), {})
    assert done == ["file", "rename", tmp_path.name]
    done.clear()
    checkpoint.put(tmp_path / "y", "text")
    assert done == [".y.draft", "rename", tmp_path.name]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".x.draft").mkdir()
    (tmp_path / ".x.draft" / ".tmp123").write_bytes(b"half")
    checkpoint.save(tmp_path / "x", state_of(), {})
    assert os.listdir(tmp_path) == ["x"]


def test_a_small_file_is_put_whole_or_not_at_all(tmp_path, monkeypatch):
    checkpoint.put(tmp_path / "x", "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        checkpoint.put(tmp_path / "x", b"new")
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"
