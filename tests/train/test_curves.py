"""Curves: what the picture shows, and that drawing it never ends a run."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings

import numpy as np
import pytest
from conftest import need

from convkit.bench.show.charts import LIGHT
from convkit.errors import ConvkitWarning
from convkit.train import checkpoint, curves
from convkit.train.errors import RunError
from convkit.train.table import Table

need("matplotlib")


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch):
    monkeypatch.setattr(curves, "_warned", set())


def write(folder, epochs: int = 4, per_epoch: int = 10, begun: int = 3, validation: bool = True) -> None:
    steps, epoch_rows = Table(folder / "steps.csv"), Table(folder / "epochs.csv")
    for step in range(1, epochs * per_epoch + begun + 1):
        epoch = (step - 1) // per_epoch + 1
        facts = {
            "epoch": epoch,
            "step": step,
            "loss": 9 / step,
            "error": 0.5,
            "lr": 0.1 if epoch < 3 else 0.01,
        }
        steps.append({**facts, "images_per_second": 100 + step, "wait": 0.25})
        if step % per_epoch == 0:
            checked = (
                {"validation_loss": 1.0, "validation_error": 0.4 - 0.1 * (epoch == 2)} if validation else {}
            )
            epoch_rows.append({**facts, **checked})
    steps.close()
    epoch_rows.close()


@pytest.fixture
def panels(tmp_path, monkeypatch):
    """Draws, and returns each panel's lines by their labels; those without are "_child0", ..."""
    drawn = {}

    def noting(name):
        drawer = getattr(curves._Picture, name)

        def wrapped(self, axes):
            drawer(self, axes)
            drawn[name] = {line.get_label(): line for line in axes.lines}
            drawn[name]["axes"] = axes

        return wrapped

    for name in ("loss", "error", "rate", "speed", "wait"):
        monkeypatch.setattr(curves._Picture, name, noting(name))

    def draw():
        assert curves.draw(tmp_path, "digits") == tmp_path / "curves.png"
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        return drawn

    return draw


def test_the_picture_shows_steps_and_epochs_on_one_axis(tmp_path, panels):
    write(tmp_path)
    found = panels()
    x, y = found["loss"]["training"].get_data()
    np.testing.assert_allclose(x, np.arange(1, 44) / 10)
    np.testing.assert_allclose(y, 9 / np.arange(1, 44))
    np.testing.assert_array_equal(found["loss"]["validation"].get_xdata(), [1, 2, 3, 4])
    assert found["loss"]["axes"].get_yscale() == "log", "it falls by more than 20 times"
    np.testing.assert_allclose(found["error"]["validation"].get_ydata(), [40, 30, 40, 40])
    assert "lowest: 30.00 % after epoch 2" in found["error"]
    assert "validation, top-5" not in found["error"]
    assert found["error"]["learning rate changes"].get_xdata()[0] == pytest.approx(2.1)
    np.testing.assert_allclose(found["rate"]["_child0"].get_ydata(), [0.1] * 20 + [0.01] * 23)
    assert found["speed"]["_child0"].get_ydata()[-1] == 143
    assert found["wait"]["_child0"].get_ydata()[-1] == 25
    for panel in found.values():
        assert panel["axes"].get_xlabel() == "epoch" and panel["axes"].get_xlim()[1] == pytest.approx(4.343)


def test_the_first_epoch_may_not_be_over(tmp_path, panels):
    write(tmp_path, epochs=0, begun=7)
    found = panels()
    assert found["loss"]["axes"].get_xlabel() == "step"
    np.testing.assert_array_equal(found["loss"]["training"].get_xdata(), np.arange(1, 8))


def test_there_may_be_no_validation_and_no_steps(tmp_path, panels):
    write(tmp_path, validation=False)
    assert "validation" not in panels()["error"]
    (tmp_path / "steps.csv").unlink()
    np.testing.assert_array_equal(panels()["loss"]["training"].get_xdata(), [1, 2, 3, 4])


def test_a_loss_that_is_not_finite_is_a_gap(tmp_path, panels):
    steps = Table(tmp_path / "steps.csv")
    for step, loss in enumerate([1.0, float("inf"), float("nan"), 0.5], 1):
        steps.append({"epoch": 1, "step": step, "loss": loss})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert panels()["loss"]["axes"].get_ylim()[0] == 0


def test_many_steps_are_drawn_as_means(tmp_path, panels, monkeypatch):
    monkeypatch.setattr(curves, "_POINTS", 5)
    write(tmp_path, epochs=4, begun=0)
    x, y = panels()["loss"]["training"].get_data()
    np.testing.assert_allclose(x, np.arange(1, 41).reshape(5, 8).mean(1) / 10)
    np.testing.assert_allclose(y, (9 / np.arange(1, 41)).reshape(5, 8).mean(1))


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert curves.draw(tmp_path) is None
    (tmp_path / "steps.csv").write_text("epoch,step,loss\n")
    assert curves.draw(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


def test_without_matplotlib_there_is_no_picture_and_one_warning(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.warns(ConvkitWarning, match=r"no curves.png: .*pip install 'convkit\[train\]'"):
        assert curves.draw(tmp_path) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert curves.draw(tmp_path) is None


def test_a_full_disk_leaves_the_old_picture(tmp_path, monkeypatch):
    write(tmp_path)
    (tmp_path / "curves.png").write_text("old")

    def full(*_: object) -> None:
        raise RunError("cannot write curves.png: No space left on device")

    monkeypatch.setattr(curves, "put", full)
    with pytest.warns(ConvkitWarning, match="No space left on device"):
        assert curves.draw(tmp_path) is None
    assert (tmp_path / "curves.png").read_text() == "old"
    monkeypatch.setattr(curves, "put", checkpoint.put)
    curves.draw(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_users_settings_of_matplotlib_stay(tmp_path, monkeypatch):
    library = importlib.import_module("matplotlib")
    monkeypatch.setattr(logging.getLogger("matplotlib"), "level", logging.INFO)
    write(tmp_path)
    with library.rc_context({"lines.linewidth": 17.0, "axes.facecolor": "red"}):
        before = dict(library.rcParams)
        curves.draw(tmp_path)
        assert dict(library.rcParams) == before
        colours = importlib.import_module("matplotlib.image").imread(tmp_path / "curves.png")[:, :, :3]
        assert not np.all(colours == [1, 0, 0], axis=2).any()
        blue = [int(LIGHT["s1"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert np.all(np.abs(colours - blue) < 0.01, axis=2).sum() > 100
    assert logging.getLogger("matplotlib").level == logging.INFO
