"""The public names of training: all are there, and a module alone does not bring the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from convkit import train
from convkit.train import recipe
from convkit.train.training import fit


def test_every_name_is_there():
    assert sorted(train._PLACES) == sorted(train.__all__)
    assert all(callable(getattr(train, name)) for name in train.__all__)
    assert train.fit is fit and train.load_recipe("small").network.preset == "small"
    assert train.load_recipe(recipe.FOLDER / "small.toml") == train.load_recipe("small")
    with pytest.raises(ImportError, match="cannot import name 'fti'"):
        exec("from convkit.train import fti")


def test_a_module_alone_does_not_bring_the_rest():
    """`convkit swap` and `convkit alexnet` use single modules."""
    code = (
        "import sys, convkit.train.patterns\n"
        "assert not {'convkit.train.training', 'convkit.train.data'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
