"""Small runs for tests: images that a network learns in a few steps, and what two runs must share."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.train import recipe
from convkit.train.data.dataset import Data, Pixels, Split
from convkit.train.errors import BadImage
from convkit.train.loop import Loop
from convkit.train.recipe import Recipe
from convkit.train.run_folder import RunFolder
from convkit.train.training import fit

#: Images, images of a batch, steps of an epoch.
IMAGES, BATCH, STEPS = 52, 8, 6
CLASSES = 4
#: What no two runs have in common.
TIMES = ("images_per_second", "wait", "seconds")


def made(**changes: Any) -> Recipe:
    """A recipe in which everything takes part: crops, flips, colours, dropout, a schedule."""
    overrides = {
        "batch": BATCH, "epochs": 3, "network.widths": 0.1, "images.colour_noise": 0.1, "images.flip": "true",
    }  # fmt: skip
    overrides |= {name.replace("__", "."): value for name, value in changes.items()}
    return recipe.load("small", [f"{key}={value}" for key, value in overrides.items()])


def pixels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright quarter that tells the class."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 128, (count, 28, 28, 1), np.uint8)
    labels = np.arange(count) % CLASSES
    for image, label in zip(images, labels):
        top, left = 14 * (label // 2), 14 * (label % 2)
        image[top : top + 14, left : left + 14] += 100
    return images, labels


def data(train: Split | None = None, validation: int = 20) -> Data:
    """The set."""
    names = tuple(f"quarter {number}" for number in range(CLASSES))
    held = Pixels(*pixels(validation, 1)) if validation else None
    return Data("quarters", names, names, train or Pixels(*pixels(IMAGES, 0)), held, "f00d")


class Unreadable(Pixels):
    """The same images as if from files; some cannot be read."""

    in_memory = False

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__(*pixels(IMAGES, 0))
        self.bad = bad

    def name(self, index: int) -> str:
        return f"n01/{index}.JPEG"

    def read(self, index: int, out: np.ndarray) -> None:
        if index in self.bad:
            raise BadImage("truncated")
        super().read(index, out)

    read_many = Split.read_many


def run(folder: Path, *, of: Data | None = None, **options: Any) -> RunFolder:
    """`fit`, quietly."""
    options = {"recipe": made(), "quiet": True, "workers": 0, **options}
    return fit(of or data(), folder, **options)


def digest(folder: Path, which: str = "last") -> str:
    """SHA-256 of a checkpoint's weights, velocities and counters."""
    state = RunFolder.open(folder).load(which).state
    found = hashlib.sha256(f"{state['seed']} {state['dropout_offset']}".encode())
    for part in ("params", "velocities"):
        for name, array in state[part].items():
            found.update(name.encode())
            found.update(array.tobytes())
    return found.hexdigest()


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    """A table of a run without its times."""
    with open(folder / name, newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same(folder: Path, other: Path) -> None:
    """Two runs have ended with the same bits, and say the same of how."""
    ends = [RunFolder.open(one).load() for one in (folder, other)]
    assert ends[0].position == ends[1].position
    for which in ("last", "best"):
        assert digest(folder, which) == digest(other, which)
    for name in ("steps.csv", "epochs.csv"):
        assert rows(folder, name) == rows(other, name)


class Killed(BaseException):
    """Stands in for the end of a process."""


def at_steps(patch: pytest.MonkeyPatch, actions: dict[int, Callable[[], Any]]) -> None:
    """Have something happen once, right after a step."""
    note = Loop._note

    def noted(self: Loop, *given: Any) -> None:
        note(self, *given)
        actions.pop(self.position.step, lambda: None)()

    patch.setattr(Loop, "_note", noted)


def killed() -> None:
    raise Killed


def signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)
