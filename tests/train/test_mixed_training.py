"""Training in mixed precision: the loss scale in checkpoints and in the log, its end, and what is learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
from conftest import need

from convkit.network import planned
from convkit.network.loss import Loss
from convkit.train.errors import NotFinite
from convkit.train.exchange.base import Exchange
from convkit.train.run_folder import RunFolder
from convkit.train.training import fit

need("safetensors")


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("convkit.train.loop.curves.draw", lambda *_: None)


def test_a_resumed_run_in_float16_has_the_bits_of_an_undisturbed_one(tmp_path, monkeypatch, capsys):
    """It begins with a loss scale that is far too large, and is killed with a smaller one."""
    monkeypatch.setattr(planned.loss_scale, "INITIAL", 2.0**22)
    options = {"recipe": runs.made(network__dtype='"float16"', epochs=2)}
    runs.run(tmp_path / "whole", quiet=False, **options)
    said = capsys.readouterr().err
    assert (
        "step 1: a gradient is beyond float16, so the step changes nothing; the loss scale is now 2.097"
        in said
    )
    whole = RunFolder.open(tmp_path / "whole").load()
    skipped = said.count("a gradient is beyond float16")
    scale = whole.state["loss_scale"]
    assert scale["scale"] == 2.0 ** (22 - skipped) and 0 < scale["steps"] <= 2 * runs.STEPS - skipped
    assert 0 < skipped < runs.STEPS and whole.state["dtype"] == "float32"
    runs.at_steps(monkeypatch, {skipped + 1: runs.killed})
    with pytest.raises(runs.Killed):
        runs.run(tmp_path / "run", checkpoint_steps=skipped, **options)
    runs.run(tmp_path / "run", checkpoint_steps=skipped, resume=True, **options)
    runs.assert_same(tmp_path / "run", tmp_path / "whole")


def test_gradients_that_overflow_whatever_the_scale_end_the_run(tmp_path, monkeypatch):
    step = Exchange.step

    def overflowing(self, net, *given, **options):
        loss = step(self, net, *given, **options)
        if net.dropout_offset > 1000:  # some steps later
            net.loss_scale = 1
            return Loss(loss, loss.errors, loss.top5_errors, loss.images, overflow=True)
        return loss

    monkeypatch.setattr(Exchange, "step", overflowing)
    with pytest.raises(
        NotFinite, match="a gradient of step .* is beyond float16. .* --resume --dtype bfloat16"
    ):
        runs.run(tmp_path / "run", recipe=runs.made(network__dtype='"float16"'))
    assert RunFolder.open(tmp_path / "run").load().position["step"] > 0


def error_on_digits(folder: Path, dtype: str, seed: int) -> float:
    """The validation error after sixteen epochs."""
    changes = ["epochs=16", "schedule=[{epoch=12, lr_factor=0.1}]", f"seed={seed}", f"network.dtype={dtype}"]
    fit("digits", folder, overrides=changes, quiet=True)
    return float(runs.rows(folder, "epochs.csv")[-1]["validation_error"])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Errors in float32, of two seeds."""
    need("sklearn")
    folder = tmp_path_factory.mktemp("float32")
    return [error_on_digits(folder / str(seed), "float32", seed) for seed in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.thorough)])
def test_digits_are_learnt_as_in_float32(dtype, single, tmp_path):
    """To the same error, within what the seed makes of it: 6 images of 397 are 1.5 %."""
    assert error_on_digits(tmp_path / "run", dtype, 0) <= max(single) + 0.015 < 0.07
