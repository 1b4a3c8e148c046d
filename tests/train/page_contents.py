"""Made-up evaluations for the tests of their page: ten classes, a thousand with hostile names, two."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from convkit.train.data.dataset import Pixels
from convkit.train.errors import BadImage
from convkit.train.evaluation import Evaluation
from convkit.train.page.content import Content

HOSTILE = "</title></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\ud800"


def evaluation(K: int, n: int, wrong: float, seed: int = 0, **more: Any) -> Evaluation:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    labels[: min(K, n)] = np.arange(min(K, n))
    predicted = np.where(rng.random(n) < wrong, (labels + rng.geometric(0.5, n)) % K, labels)
    ranks = np.where(predicted == labels, 0, rng.integers(1, K, n))
    losses = np.where(ranks == 0, rng.exponential(0.1, n), 1 + rng.exponential(2, n))
    return Evaluation(
        K, 1, np.arange(n), labels.astype(np.int32), predicted.astype(np.int32), ranks.astype(np.int32),
        rng.uniform(0.4, 1, n), losses, **more,
    )  # fmt: skip


def images(n: int, size: int, colours: int, labels: np.ndarray, kind: type[Pixels] = Pixels) -> Pixels:
    """Stripes and gradients."""
    y, x = np.mgrid[:size, :size] / size
    rows = []
    for number in range(n):
        waves = np.sin(2 * np.pi * (2 + number % 5) * (x * np.cos(number) + y * np.sin(number)))
        rows.append(np.stack([127 + 120 * waves * (c + 1) / colours for c in range(colours)], axis=-1))
    return kind(np.array(rows).astype(np.uint8), labels)


def epochs(count: int) -> dict[str, np.ndarray]:
    e = np.arange(1, count + 1)
    fall = np.exp(-e / 4)
    return {
        "epoch": e, "step": 20 * e, "loss": 0.02 + 2.3 * fall, "error": 0.01 + 0.8 * fall,
        "top5_error": 0.001 + 0.2 * fall, "validation_loss": 0.06 + 2 * fall,
        "validation_error": 0.02 + 0.7 * fall, "validation_top5_error": 0.003 + 0.15 * fall,
        "lr": 0.01 + 0 * e, "seconds": np.full(count, np.nan),
    }  # fmt: skip


def steps(count: int) -> dict[str, np.ndarray]:
    s = np.arange(1, count + 1)
    noise = np.random.default_rng(1).lognormal(0, 0.3, count)
    return {"step": s, "epoch": s / 20, "loss": (0.02 + 2.3 * np.exp(-s / 80)) * noise}


def filters(K: int, C: int, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    angle, phase = np.arange(K)[:, None, None, None], np.arange(C)[None, :, None, None]
    waves = np.cos((x * np.cos(angle) + y * np.sin(angle)) * 0.9 + phase)
    return 0.1 * waves * np.exp(-(x**2 + y**2) / size)


@cache
def digits() -> Content:
    found = evaluation(10, 397, 0.06)
    names = [str(i) for i in range(10)]
    return Content(
        "run-1, digits, validation", found, images(397, 28, 1, found.labels), names, names,
        facts=[("run", "runs/a-folder-with-a-long-name/" + 6 * "and-another/"), ("views", "1: the centre")],
        notices=["The checkpoint was chosen by its error on these images."],
        epochs=epochs(14), steps=steps(280), filters=filters(32, 1, 5),
        recipe='lr = 0.01\n[network]\npreset = "small"\n',
    )  # fmt: skip


class Gone(Pixels):
    """Images that could be read when they were evaluated."""

    def read(self, index: int, out: np.ndarray) -> None:
        if index % 2:
            raise BadImage(f"no such file {HOSTILE}")
        super().read(index, out)

    def name(self, index: int) -> str:
        return f"train/n0144/{HOSTILE}{index}.JPEG"


@cache
def imagenet() -> Content:
    """A thousand classes, and names that no page should believe."""
    left_out = tuple((f"{HOSTILE} {i}", f"truncated {HOSTILE}") for i in range(300))
    found = evaluation(1000, 3000, 0.6, left_out=left_out)
    keys = [f"n{i:08}" for i in range(1000)]
    names = [f"some animal {i}, Latinus nomen {i}" for i in range(1000)]
    names[:4] = ["crane", "crane", HOSTILE, "x" * 90]
    return Content(
        f"run, {HOSTILE}, validation", found, images(3000, 66, 3, found.labels, Gone), keys, names,
        facts=[("data", HOSTILE)], notices=[HOSTILE], epochs=epochs(90), steps=steps(2000),
        filters=filters(96, 3, 11), recipe=HOSTILE,
    )  # fmt: skip


@cache
def least() -> Content:
    """Two classes, no log, no filters, nothing wrong."""
    found = evaluation(2, 5, 0.0)
    return Content("run, two", found, images(5, 8, 3, found.labels), ["a", "b"], ["a long name", "b"])


@cache
def twenty() -> Content:
    """A matrix of classes with long names."""
    found = evaluation(20, 600, 0.3)
    found.predicted[:3], found.losses[:3], found.ranks[:3] = -1, np.nan, 20
    names = [f"class of animals {i}" for i in range(20)]
    return Content("run, twenty", found, images(600, 32, 3, found.labels), names, names, epochs=epochs(1))
