"""From stored images to a network's input, against the authors' and others' ways written in plain NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import convkit as ck
from convkit.network.presets import preset
from convkit.train import draws
from convkit.train.data.dataset import Statistics
from convkit.train.errors import DataError
from convkit.train.inputs import Inputs
from convkit.train.recipe import Images, Net, Recipe, Stage

RNG = np.random.default_rng(5)
SHAPE = (40, 44, 3)
IMAGES = RNG.integers(0, 256, (6, *SHAPE), np.uint8)
COLOURS = Statistics(
    RNG.uniform(80, 150, SHAPE).astype(np.float32),
    np.array([120, 40, 20], np.float32),
    np.linalg.qr(RNG.standard_normal((3, 3)))[0].astype(np.float32),
    1000,
)
NORMALS = RNG.standard_normal((6, 3))


def inputs(size=32, name="2012", statistics=COLOURS, shape=SHAPE, dtype="float32", **images) -> Inputs:
    recipe = Recipe(network=Net(name, dtype=dtype), images=Images(**images))
    return Inputs(replace(preset(name), image_size=size), recipe, statistics, shape)


def close(x, wanted):
    np.testing.assert_allclose(x, wanted, rtol=2e-6, atol=2e-4)


def test_2012_as_the_authors_code_has_it():
    """convdata.py: crop, mirror, subtract the centre of the mean image, add noise, divide."""
    crops = np.array([[0, 0, 0], [8, 12, 1], [3, 5, 1], [1, 2, 0], [7, 11, 1], [4, 6, 0]], np.int32)
    made = inputs(mean_at_crop=False, colour_noise=0.1, colour_rescale=True)
    centre_of_mean = COLOURS.mean[4:36, 6:38]
    x = made.train(IMAGES, crops, NORMALS, 0.1)
    without = made.train(IMAGES, crops)
    for n, (top, left, flipped) in enumerate(crops):
        picture = IMAGES[n, top : top + 32, left : left + 32].astype(float)
        picture = (picture[:, ::-1] if flipped else picture) - centre_of_mean
        close(without[n], picture.transpose(2, 0, 1))
        noise = COLOURS.eigenvectors @ (NORMALS[n] * COLOURS.stdevs)
        close(x[n], ((picture + 0.1 * noise) / 1.1).transpose(2, 0, 1))
    # At test: the centre, and the mean as in training; no noise, and nothing divided.
    close(made.centre(IMAGES), (IMAGES[:, 4:36, 6:38] - centre_of_mean).transpose(0, 3, 1, 2))
    starts = [(0, 0), (0, 12), (4, 6), (8, 0), (8, 12)]
    seen = [x.copy() for x in made.views(IMAGES, 10)]
    for i, (y, x) in enumerate(starts):
        picture = IMAGES[:, y : y + 32, x : x + 32].astype(float)
        close(seen[i], (picture - centre_of_mean).transpose(0, 3, 1, 2))
        close(seen[5 + i], (picture[:, :, ::-1] - centre_of_mean).transpose(0, 3, 1, 2))


def test_caffe_subtracts_each_pixels_own_mean_and_has_blue_first():
    made = inputs(name="caffe", colour_noise=0.1)  # no colour_rescale
    crops = np.array([[2, 3, 1]], np.int32)
    shift = 0.1 * COLOURS.eigenvectors @ (NORMALS[0] * COLOURS.stdevs)
    picture = (IMAGES[0] - COLOURS.mean + shift)[2:34, 3:35][:, ::-1, ::-1]
    close(made.train(IMAGES[:1], crops, NORMALS[:1], 0.1)[0], picture.transpose(2, 0, 1))
    whole = (IMAGES - COLOURS.mean)[..., ::-1].transpose(0, 3, 1, 2)
    close(made.centre(IMAGES), whole[:, :, 4:36, 6:38])
    close(list(made.views(IMAGES, 10))[4], whole[:, :, 8:, 12:])
    by_channel = inputs(name="caffe", mean="channel").centre(IMAGES)
    mean = COLOURS.mean.astype(float).mean((0, 1))[::-1]
    close(by_channel, IMAGES[:, 4:36, 6:38, ::-1].transpose(0, 3, 1, 2) - mean[:, None, None])


@pytest.mark.parametrize("name", ["owt", "caffe", "small"])
def test_the_presets_mean_scale_and_deviation(name):
    how = preset(name).preprocess
    order = slice(None, None, -1 if how.order == "BGR" else 1)
    wanted = (IMAGES[:, 4:36, 6:38, order] * how.scale - how.mean) / how.std
    x = inputs(name=name, mean="preset", statistics=None).centre(IMAGES)
    np.testing.assert_allclose(x, wanted.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-4)
    bare = inputs(name=name, mean="none", statistics=None).centre(IMAGES)
    wanted = IMAGES[:, 4:36, 6:38, order] * how.scale / how.std
    np.testing.assert_allclose(bare, wanted.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-4)


def test_grey_images():
    mean, deviation = RNG.uniform(0, 99, (28, 28, 1)).astype(np.float32), np.array([70], np.float32)
    statistics = Statistics(mean, deviation, np.ones((1, 1), np.float32), 10)
    images = IMAGES[:, :28, :28, :1]
    made = inputs(28, "small", statistics, (28, 28, 1), mean="channel", crop_padding=2, colour_noise=0.2)
    crops = np.array([[-2, 1, 0]] * 6, np.int32)
    x = made.train(images, crops, NORMALS, 0.2)
    scale = 1 / 255 / 0.25
    shifted = (images[..., 0] - mean.mean(dtype=float) + 0.2 * 70 * NORMALS[:, :1, None]) * scale
    np.testing.assert_allclose(x[:, 0, 2:, :27], shifted[:, :26, 1:], atol=1e-5)
    assert not x[:, 0, :2].any() and not x[:, 0, :, 27].any()
    np.testing.assert_allclose(
        made.centre(images)[:, 0], (images[..., 0] - mean.mean(dtype=float)) * scale, atol=1e-5
    )


def test_images_that_are_smaller_than_the_input():
    for at_crop in (True, False):
        made = inputs(49, mean_at_crop=at_crop, crop_padding=6)
        assert made.places(1) == [(-5, -3, 0)]
        x = made.centre(IMAGES)
        close(x[:, :, 5:45, 3:47], (IMAGES - COLOURS.mean).transpose(0, 3, 1, 2))
        x[:, :, 5:45, 3:47] = 0
        assert not x.any()


def test_of_images_as_large_as_the_input_the_mean_moves_or_not_as_the_recipe_says():
    shape = (32, 32, 3)
    statistics = replace(COLOURS, mean=COLOURS.mean[:32, :32])
    images, crops = IMAGES[:1, :32, :32], np.array([[2, -1, 0]], np.int32)
    pictures = images[0, 2:, :31] - statistics.mean[2:, :31]
    moved = inputs(statistics=statistics, shape=shape, crop_padding=2).train(images, crops)
    close(moved[0, :, :30, 1:], pictures.transpose(2, 0, 1))
    fixed = inputs(statistics=statistics, shape=shape, crop_padding=2, mean_at_crop=False)
    pictures = images[0, 2:, :31] - statistics.mean[:30, 1:]
    close(fixed.train(images, crops)[0, :, :30, 1:], pictures.transpose(2, 0, 1))


def test_the_recipes_draws_fit():
    how = draws.Crops(32, padding=3, group=2)
    crops = draws.crops(1, 1, np.arange(6), np.arange(6), SHAPE[:2], how)
    normals = draws.normals(1, 1, np.arange(6))
    made = inputs(crop_padding=3, colour_noise=0.1)
    x = made.train(IMAGES, crops, normals, 0.1)
    parts = [made.train(IMAGES[i : i + 1], crops[i : i + 1], normals[i : i + 1], 0.1) for i in range(6)]
    assert x.tobytes() == b"".join(p.tobytes() for p in parts)  # no bit depends on how many there are


def test_into_a_networks_own_arrays():
    net = ck.AlexNet("small", 10, seed=1, image_size=32)
    made = Inputs(net.preset, Recipe(images=Images()), COLOURS, SHAPE)
    x, labels = net.inputs(len(IMAGES))
    labels[...] = np.arange(6)
    assert made.centre(IMAGES, out=x) is x
    assert net.evaluate(x, labels) == net.evaluate(made.centre(IMAGES), np.arange(6))
    assert inputs(dtype="bfloat16").centre(IMAGES).dtype.name == "bfloat16"


def test_what_needs_statistics():
    assert Inputs.needs_statistics(Recipe())  # a mean image
    assert Inputs.needs_statistics(Recipe(images=Images(mean="channel")))
    bare = Recipe(images=Images(mean="none"))
    assert not Inputs.needs_statistics(bare)
    assert not Inputs.needs_statistics(replace(bare, images=Images(mean="preset")))
    assert Inputs.needs_statistics(replace(bare, images=Images(mean="none", colour_noise=0.1)))
    assert Inputs.needs_statistics(replace(bare, schedule=(Stage(epoch=2, colour_noise=0.1),)))


def test_what_is_refused():
    with pytest.raises(DataError, match="needs the statistics of the training set"):
        inputs(statistics=None)
    with pytest.raises(DataError, match=r"of images of shape \(40, 44, 3\), not \(40, 40, 3\)"):
        inputs(shape=(40, 40, 3))
    with pytest.raises(ck.OptionError, match="views must be 1 or 10, not 5"):
        inputs().places(5)
    with pytest.raises(ck.OptionError, match="colour noise needs normal numbers"):
        inputs().train(IMAGES, np.zeros((6, 3), np.int32), noise=0.1)
    with pytest.raises(
        ck.ShapeError, match=r"images must have shape \(n, \*\(40, 44, 3\)\), not \(6, 40, 40, 3\)"
    ):
        inputs().centre(IMAGES[:, :, :40])
