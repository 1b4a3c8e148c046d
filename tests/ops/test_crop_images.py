"""Crops of stored images: what the gate does not know."""

from __future__ import annotations

import numpy as np
import pytest

import convkit as ck
from convkit.ops.crop_images import MEANS

#: 2 x 3 pixels of 2 channels: pixel (r, s) is 10 (3 r + s) in the first, and one more in the second.
IMAGE = (10 * np.arange(6, dtype=np.uint8)).reshape(1, 2, 3, 1) + np.array([0, 1], np.uint8)
NOTHING = np.zeros((2, 1, 1), np.float32)


def crop(top, left, flipped=0, mean=NOTHING, **options):
    return ck.crop_images(IMAGE, np.array([[top, left, flipped]], np.int32), mean, **{"size": 2, **options})


def test_values():
    np.testing.assert_array_equal(crop(0, 1)[0], [[[10, 20], [40, 50]], [[11, 21], [41, 51]]])
    np.testing.assert_array_equal(crop(0, 1, 1)[0], [[[20, 10], [50, 40]], [[21, 11], [51, 41]]])
    np.testing.assert_array_equal(crop(0, 1, reverse=True)[0], crop(0, 1)[0][::-1])


def test_beyond_the_image_is_exactly_zero():
    mean, shift, factor = (
        np.full((2, 1, 1), np.nan, np.float32),
        np.full((1, 2), np.inf),
        np.array([np.nan, -1]),
    )
    x = crop(1, 2, mean=NOTHING - 7, shift=np.ones((1, 2)), factor=np.array([2, -1]))
    np.testing.assert_array_equal(x[0], [[[116, 0], [0, 0]], [[-59, 0], [0, 0]]])
    assert not np.signbit(x[0, 1, 1]).any()
    ends = np.iinfo(np.int32)
    for place in ((ends.min, 0), (0, ends.max), (ends.max, ends.max), (2, 0), (0, -2)):
        x = crop(*place, 1, mean=mean, shift=shift, factor=factor)
        assert x.tobytes() == bytes(x.nbytes), place


def test_the_mean_of_the_image_moves_with_the_crop_and_that_of_the_crop_does_not():
    whole = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    own = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    for flipped in (0, 1):
        x, bare = crop(0, 1, flipped, whole), crop(0, 1, flipped)
        seen = whole[:, :, 1:]
        np.testing.assert_array_equal(bare - x, [seen[..., ::-1] if flipped else seen])
        np.testing.assert_array_equal(bare - crop(0, 1, flipped, own), [own])


def test_where_both_shapes_are_one_the_mean_is_the_images_unless_it_is_said():
    image, mean = IMAGE[:, :, :2], np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    crops = np.array([[0, 1, 0]], np.int32)
    by_shape, of_image, of_crop = (
        ck.crop_images(image, crops, mean, size=2, mean_of=what) for what in (None, "image", "crop")
    )
    np.testing.assert_array_equal(by_shape, of_image)
    np.testing.assert_array_equal(of_image[0, :, :, 0], image[0, :, 1].T - mean[..., 1])
    np.testing.assert_array_equal(of_crop[0, :, :, 0], image[0, :, 1].T - mean[..., 0])


@pytest.mark.parametrize("mean_of", MEANS)
@pytest.mark.parametrize(("C", "size"), [(3, 13), (3, 48), (1, 28), (4, 5)])
def test_every_implementation_gives_numpys_bits(C, size, mean_of):
    """Three roundings in a fixed order: there is one right answer."""
    rng = np.random.default_rng(size)
    H, W = 31, 45
    images = rng.integers(0, 256, (3, H, W, C), np.uint8)
    extents = {"image": (H, W), "crop": (size, size), "channel": (1, 1)}[mean_of]
    mean, shift, factor = (rng.normal(100, 30, s).astype(np.float32) for s in ((C, *extents), (3, C), (C,)))
    crops = np.array([[2, 1, 1], [-3, -2, 0], [-1, W - size + 2, 1]], np.int32)
    wanted = np.zeros((3, C, size, size), np.float32)
    for n, (top, left, flipped) in enumerate(crops):
        for i in range(size):
            for j in range(size):
                r, s = top + i, left + (size - 1 - j if flipped else j)
                if 0 <= r < H and 0 <= s < W:
                    at = {"image": (r, s), "crop": (i, j), "channel": (0, 0)}[mean_of]
                    difference = images[n, r, s, ::-1].astype(np.float32) - mean[:, at[0], at[1]]
                    wanted[n, :, i, j] = (difference + shift[n]) * factor
    found = [i for i in ck.implementations("crop_images", device="cpu") if i.name != "reference"]
    for name in [i.name for i in found if not (i.missing and i.missing())]:
        x = ck.crop_images(
            images, crops, mean, shift, factor, size=size, mean_of=mean_of, reverse=True, impl=name
        )
        assert x.tobytes() == wanted.tobytes(), name


def test_storage_and_casts():
    crops = np.zeros((1, 3), np.int32)
    for dtype in ("float16", "bfloat16", "float64"):
        x = ck.crop_images(
            IMAGE, crops, NOTHING.astype(np.float64), np.full((1, 2), 0.5), size=2, dtype=dtype
        )
        assert x.dtype.name == dtype
        np.testing.assert_array_equal(x.astype(float), crop(0, 0).astype(float) + 0.5)


def test_no_images():
    x = ck.crop_images(IMAGE[:0], np.zeros((0, 3), np.int32), NOTHING, size=2)
    assert x.shape == (0, 2, 2, 2)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"images": IMAGE.astype(np.float32)}, ck.DtypeError, "images must be of dtype uint8, not float32"),
        ({"images": IMAGE[0]}, ck.ShapeError, r"images must have 4 dimensions \(N, H, W, C\)"),
        ({"crops": np.zeros((1, 3), int)}, ck.DtypeError, "crops must be of dtype int32, not int64"),
        ({"crops": np.zeros((1, 2), np.int32)}, ck.ShapeError, r"crops must have shape \(1, 3\)"),
        (
            {"mean": np.zeros((2, 3, 2), np.float32)}, ck.ShapeError,
            r"mean must have one of the shapes \(2, 2, 3\) \(image\), \(2, 2, 2\) \(crop\), \(2, 1, 1\) "
            r"\(channel\), not \(2, 3, 2\)",
        ),
        ({"mean_of": "image"}, ck.ShapeError, r"mean must have shape \(2, 2, 3\), not \(2, 1, 1\)"),
        ({"mean_of": "pixel"}, ck.OptionError, "unknown mean_of"),
        ({"shift": np.zeros(2)}, ck.ShapeError, r"shift must have shape \(1, 2\), not \(2,\)"),
        ({"factor": np.zeros((2, 1))}, ck.ShapeError, r"factor must have shape \(2,\), not \(2, 1\)"),
        ({"size": 0}, ck.OptionError, "size must be at least 1, not 0"),
        ({"size": 2.0}, ck.OptionError, "size must be an integer, not 2.0"),
        ({"reverse": "BGR"}, ck.OptionError, "reverse must be True or False, not 'BGR'"),
        ({"dtype": "uint8"}, ck.OptionError, "unknown dtype"),
        ({"out": np.zeros((1, 2, 2, 2))}, ck.DtypeError, r"out \(x\) must have dtype float32, not float64"),
    ],
)  # fmt: skip
def test_what_is_refused(changed, kind, message):
    given = {"images": IMAGE, "crops": np.zeros((1, 3), np.int32), "mean": NOTHING, "size": 2}
    with pytest.raises(kind, match=f"^crop_images: {message}"):
        ck.crop_images(**{**given, **changed})


def test_bytes_are_those_of_the_crops():
    """What a kernel must move: no pixel beside the crop, and none that is not there."""
    large = ck.CropImages(2, 256, 250, 3, 224, "crop")
    assert large.bytes("images") == 2 * 224 * 224 * 3
    assert large.bytes("images", "crops", "x") == 2 * 224 * 224 * 3 * (1 + 4) + 2 * 3 * 4
    assert ck.CropImages(2, 28, 20, 1, 24, "crop").bytes("images") == 2 * 24 * 20
