"""What `test_exchange.py` starts in many processes: `python exchange_job.py WHAT FOLDER`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import convkit as ck
from convkit.train import exchange

IMAGES, STEPS = 10, 3


def network(seed: int = 0, dtype: str = "float32") -> ck.AlexNet:
    return ck.AlexNet("small", num_classes=10, seed=seed, dtype=dtype)


def batch(number: int, images: int = IMAGES, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    x = rng.standard_normal((images, 3, 32, 32), np.float32)
    return x.astype(ck.arrays.DTYPES[dtype]), rng.integers(0, 10, images)


def train(folder: Path, dtype: str = "float32") -> None:
    """Steps with batches that no number of processes divides; the last one has a single image.

    Gradients, weights and losses of each process go to a file.
    """
    seen: dict[str, np.ndarray] = {}
    with exchange.here() as ranks:
        net = network(seed=ranks.rank, dtype=dtype)  # that of rank 0 counts
        net.before_update = lambda grads, finite: seen.update({n: g.copy() for n, g in grads.items()})
        ranks.attach(net)
        losses, first = [], {}
        for number, images in enumerate((IMAGES, 7, 1)):
            if number == 2:
                net.update = replace(net.update, frozen=("conv1.*", "fc8.b"))
            x, labels = batch(number, images, dtype)
            here = slice(*ranks.share(images))
            loss = ranks.step(net, x[here], labels[here], images, lr=0.01)
            losses.append([loss, loss.errors, loss.top5_errors, loss.images, loss.finite])
            first = first or {f"first {name}": g.copy() for name, g in seen.items()}
        assert ranks.same(net)
        found = {f"weight {name}": w for name, w in net.params.items()}
        found |= first | {"losses": np.array(losses), "sums": ranks.add([0.1 * ranks.rank, 1.0])}
        found |= {"threads": np.array(int(os.environ.get("CONVKIT_NUM_THREADS", 0)))}
        np.savez(folder / f"{ranks.size} {ranks.rank}.npz", **found)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    globals()[what](folder)


if __name__ == "__main__":
    main()
