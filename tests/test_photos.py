"""Photographs in: files, folders, examples, and what is not an image."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import need

from convkit import OptionError, photos
from convkit.presets import PRESETS


@pytest.fixture
def folder(tmp_path):
    Image = need("PIL.Image")
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (300, 280), (255, 0, 10)).save(tmp_path / "red.png")
    Image.new("L", (64, 500), 128).save(tmp_path / "deep" / "grey.jpg")
    Image.new("RGBA", (5, 7), (1, 2, 3, 4)).save(tmp_path / "tiny.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_folders_are_searched_and_photographs_take_turns(folder):
    x, labels, files = photos.batch([folder], PRESETS["paper"], 5)
    assert [f.name for f in files] == ["grey.jpg", "red.png", "tiny.png"]
    assert x.shape == (5, 3, 224, 224) and x.dtype == np.float32
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert np.array_equal(x[0], x[3])


@pytest.mark.parametrize(
    ("preset", "pixel"),
    [
        ("paper", (255 - 127.3, -119.7, 10 - 104.9)),
        ("caffe", (10 - 104.0, -117.0, 255 - 123.0)),
        ("owt", ((1 - 0.485) / 0.229, -0.456 / 0.224, (10 / 255 - 0.406) / 0.225)),
    ],
)
def test_each_preset_prepares_pixels_its_own_way(folder, preset, pixel):
    image = photos.load(folder / "red.png", PRESETS[preset])
    size = PRESETS[preset].image_size
    assert image.shape == (3, size, size)
    np.testing.assert_allclose(image[:, size // 2, size // 2], pixel, rtol=1e-5)


def test_examples_are_real_photographs():
    need("skimage")
    x, labels, files = photos.batch([], PRESETS["paper"])
    assert len(files) == len(photos.EXAMPLES) == len(set(labels.tolist()))
    assert all(image.std() > 20 for image in x)


def test_what_is_not_an_image(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    torn = folder / "torn.png"
    torn.write_bytes((folder / "red.png").read_bytes()[:60])
    for paths, message in (
        ([folder / "notes.txt"], "notes.txt is not an image"),
        ([torn], "torn.png is not an image"),
        ([empty], "no image in the folder"),
        ([folder / "absent.png"], "no such file or folder"),
    ):
        with pytest.raises(photos.ImageError, match=message):
            photos.batch(paths, PRESETS["paper"])
    with pytest.raises(OptionError, match="batch must be at least 1"):
        photos.batch([folder / "red.png"], PRESETS["paper"], 0)
