"""Recipes: read, checked, changed, written; what each shipped one says of an epoch."""

from __future__ import annotations

import pytest

from convkit import OptionError
from convkit.network.presets import PRESETS
from convkit.network.update import Update
from convkit.train import recipe
from convkit.train.build import build, stored_size
from convkit.train.recipe import Recipe, setting


@pytest.mark.parametrize("name", recipe.names())
def test_what_is_written_is_read_again(name):
    found = recipe.load(name)
    assert found.about
    assert recipe.parse(recipe.tomllib.loads(recipe.dump(found))) == found
    assert recipe.differences(found, found) == []


def test_every_shipped_recipe_has_its_update_rule_in_the_preset_too():
    """A recipe says its rule in full; the preset of the same name has the same one, for `net.step`."""
    for name in recipe.names():
        rule = setting(recipe.load(name), 1, 1).update
        assert rule == PRESETS[name].update or name == "small", name


def test_2012_epoch_by_epoch():
    found = recipe.load("2012")
    rates = {epoch: setting(found, epoch, 1).lr for epoch in (1, 24, 25, 50, 51, 78, 79, 90)}
    assert rates == pytest.approx(
        {1: 0.01, 24: 0.01, 25: 1e-3, 50: 1e-3, 51: 1e-4, 78: 1e-4, 79: 1e-5, 90: 1e-5}
    )
    noise = [setting(found, epoch, 1).colour_noise for epoch in (1, 66, 67, 90)]
    assert noise == [0.1, 0.1, 0, 0]

    def options(epoch, name):
        now = setting(found, epoch, 1)
        return now.update.options(name, now.lr, "conv1")

    assert options(60, "conv1.w")["lr"] == pytest.approx(1e-4)
    assert options(67, "conv1.w")["lr"] == options(71, "conv1.w")["lr"] == 1e-5
    assert options(67, "conv2.w")["lr"] == pytest.approx(1e-4)
    assert options(72, "conv1.w")["lr"] is None and options(72, "conv1.b")["lr"] is None
    assert {options(epoch, "conv2.b")["lr"] for epoch in (1, 30, 90)} == {0.02}
    assert options(1, "conv1.b")["lr"] == 0.02 and options(30, "conv1.b")["lr"] == pytest.approx(2e-3)
    assert options(1, "fc8.b")["weight_decay"] == 0 and options(1, "fc8.w")["weight_decay"] == 5e-4


def test_caffe_step_by_step():
    found = recipe.load("caffe")
    rates = [setting(found, 1, step).lr for step in (1, 100_000, 100_001, 200_001, 450_000)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-6])
    assert (found.steps, found.batch, found.images.square) == (450_000, 256, "stretch")


def test_a_plateau_lowers_the_rate():
    found = recipe.load("paper")
    assert [setting(found, 1, 1, n).lr for n in range(4)] == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5])
    assert setting(found, 1, 1).update.weight_decay == 5e-4


def test_overrides():
    found = recipe.load("2012", ["lr=0.005", "images.flip=false", "network.preset=small", "batch = 64"])
    assert (found.lr, found.images.flip, found.network.preset, found.batch) == (0.005, False, "small", 64)
    assert setting(found, 30, 1).lr == pytest.approx(5e-4)
    assert recipe.differences(recipe.load("2012"), found) == [
        "batch: 128 against 64",
        "lr: 0.01 against 0.005",
        'network.preset: "2012" against "small"',
        "images.flip: true against false",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "--set takes KEY=VALUE"),
        ("lr=fast", "lr must be a number, not 'fast'"),
        ("lr=-1", "lr must be a finite number of at least 0"),
        ("lr=nan", "lr must be a finite number"),
        ("rate=1", "unknown key 'rate'"),
        ("images.flop=true", "did you mean 'images.flip'"),
        ("images=3", "images must be a table"),
        ("images.flip=1", "images.flip must be true or false"),
        ("lr.x=3", "lr is a value"),
        ("batch=0", "batch must be at least 1"),
        ("batch=1.5", "batch must be an integer"),
        ("network.preset=alexnet", "unknown network.preset"),
        ("images.mean=median", "unknown images.mean"),
        ("images.square=round", "unknown images.square"),
        ("update.momentum=-0.1", "update.momentum must be"),
        ("schedule=[{lr_factor=0.1}]", r"schedule\[1\] needs either an epoch or a step"),
        ("schedule=[{epoch=3, rates={conv1=true}}]", r"schedule\[1\].rates.conv1 must be a number"),
        ("plateau.factor=1.5", "plateau.factor must be below 1"),
        ("seed=18446744073709551616", "seed must be below"),
    ],
)
def test_a_bad_value_is_named(override, message):
    with pytest.raises(OptionError, match=message):
        recipe.load("2012", [override])


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(OptionError, match="unknown recipe 'papr'; did you mean 'paper'"):
        recipe.load("papr")
    with pytest.raises(OptionError, match="cannot read the recipe .*No such file"):
        recipe.load(str(tmp_path / "none.toml"))
    (tmp_path / "torn.toml").write_text("lr = ")
    with pytest.raises(OptionError, match="is not TOML"):
        recipe.load(str(tmp_path / "torn.toml"))


def test_the_network_of_a_recipe():
    net = build(recipe.load("small"), (28, 28, 1), 10)
    assert net.input_shape == (1, 28, 28)
    assert stored_size(recipe.load("paper")) == 256
    assert stored_size(recipe.load("small", ["network.image_size=64"])) == 64
    with pytest.raises(OptionError, match="but the stored images are 28 x 28"):
        build(recipe.load("small", ["network.image_size=40"]), (28, 28, 1), 10)


def test_a_default_recipe_is_whole():
    assert isinstance(setting(Recipe(), 1, 1).update, Update)
