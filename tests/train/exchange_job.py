"""What `test_exchange.py` starts in many processes: `python exchange_job.py WHAT FOLDER [ARGUMENT]`."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import convkit as ck
from convkit import arrays, layers
from convkit.errors import OptionError
from convkit.train import exchange
from convkit.train.exchange import gradients, mpi

#: Images of the steps of `train`: no number of processes divides them all, and the last is one image.
BATCHES = (18, 7, 1)
#: Sizes of arrays that are added up, in elements: with pieces of 64 bytes some take many chunks.
SIZES, PIECE = (0, 1, 2, 5, 64, 1000, 1003), 64
#: Bytes below which gradients are exchanged together: of the four of `tiny`, two are larger.
SMALL = 512


def network(seed: int = 0) -> ck.AlexNet:
    return ck.AlexNet("small", num_classes=10, seed=seed)


def tiny(**options: Any) -> ck.Network:
    """What the emulator runs in no time: fully connected layers and dropout.

    With so few activations none is so near to zero that ReLU's gradient there is a matter of rounding. In
    AlexNet one may be, after the first step; then all gradients before it differ by parts in a thousand.
    """
    init = layers.Normal(0.1)
    stack = (
        layers.Flatten("flatten"),
        layers.Linear("fc6", 16, init, init),
        layers.Relu("relu6"),
        layers.Dropout("drop6"),
        layers.Linear("fc8", None, init, init),
    )
    return ck.Network(stack, (3, 4, 4), 10, **{"seed": 0, **options})


def batch(number: int, images: int, shape: tuple[int, int, int] = (3, 32, 32)) -> tuple[Any, Any]:
    rng = np.random.default_rng(number)
    return rng.standard_normal((images, *shape), np.float32), rng.integers(0, 10, images)


def steps(
    ranks: exchange.Exchange, net: ck.Network, batches: tuple[int, ...] = BATCHES
) -> dict[str, np.ndarray]:
    """Steps, the last of `BATCHES` with frozen parameters: the first gradients, last weights, all losses."""
    seen: dict[str, np.ndarray] = {}
    losses = []

    def note(grads: Any, finite: Any) -> None:
        if not losses:
            seen.update({f"gradient {name}": _host(g).copy() for name, g in grads.items()})

    net.before_update = note
    ranks.attach(net)
    for number, images in enumerate(batches):
        if images == 1:
            names = list(net.params)
            net.update = replace(net.update, frozen=(names[0], names[-1]))
        x, labels = batch(number, images, net.input_shape)
        here = slice(*ranks.share(images))
        loss = ranks.step(net, x[here], labels[here], images, lr=0.01)
        losses.append([loss, loss.errors, loss.top5_errors, loss.images, loss.finite])
    weights = {f"weight {name}": _host(w).copy() for name, w in net.params.items()}
    return seen | weights | {"losses": np.array(losses)}


def overflows(ranks: exchange.Exchange) -> dict[str, np.ndarray]:
    """Steps in float16: a good one, one whose gradients overflow on the last rank alone, and a good one."""
    net = tiny(dtype="float16", seed=ranks.rank)
    net.loss_scale = 2.0 ** (10 - ranks.rank)  # that of rank 0 counts
    ranks.attach(net)
    exchanged, found = net.on_gradient, []

    def spoil(name: str, gradient: Any) -> None:
        assert exchanged is not None
        if len(found) == 1 and ranks.rank == ranks.size - 1 and name == "fc6.b":
            net.plan(len(x[here])).finite.fill(0)  # as an infinity in it would
        exchanged(name, gradient)

    net.on_gradient = spoil
    for number in range(3):
        x, labels = batch(number, 8, net.input_shape)
        here = slice(*ranks.share(8))
        before = net.params["fc6.w"].copy()
        loss = ranks.step(net, x[here], labels[here], 8, lr=0.01)
        moved = not np.array_equal(net.params["fc6.w"], before)
        found.append([loss, loss.finite, loss.overflow, net.loss_scale, moved])
    assert ranks.same(net)
    return {"steps": np.array(found)}


def _host(array: Any) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    with arrays.on(array):
        return array.get()


def train(folder: Path) -> None:
    """Steps, and what else must agree; each process leaves what it has in a file."""
    with exchange.here() as ranks:
        gradients.SMALL = SMALL
        found = {f"tiny {name}": values for name, values in steps(ranks, tiny(seed=ranks.rank)).items()}
        net = network(seed=ranks.rank)  # that of rank 0 counts
        found |= steps(ranks, net)
        assert ranks.same(net)
        refused(ranks, net)
        added(ranks)
        found |= {f"half {name}": values for name, values in overflows(ranks).items()}
        net.params["fc7.b"][3] += ranks.rank == 1
        assert not ranks.same(net)
        assert ranks.broadcast(("from", ranks.rank)) == ("from", 0)
        assert ranks.gather(ranks.rank) == list(range(ranks.size))
        found |= {"sums": ranks.add([[0.1 * ranks.rank, 1.0]])}
        found |= {"threads": np.array(int(os.environ["CONVKIT_NUM_THREADS"]))}
        np.savez(folder / f"{ranks.rank}.npz", **found)


def refused(ranks: exchange.Exchange, net: ck.Network) -> None:
    """A step that one process does not let count, counts in none."""
    images, last = 2 * ranks.size, ranks.size - 1
    x, labels = batch(3, images, net.input_shape)
    here = slice(*ranks.share(images))
    before = {name: _host(w).copy() for name, w in net.params.items()}
    net.before_update = lambda grads, finite: ranks.rank != last
    ranks.attach(net)
    loss = ranks.step(net, x[here], labels[here], images)
    assert not loss.finite and np.isfinite(loss)
    net.before_update = None
    ranks.attach(net)
    x[-1] = np.nan
    loss = ranks.step(net, x[here], labels[here], images)
    assert not loss.finite and np.isnan(loss)
    for name, w in net.params.items():
        assert np.array_equal(_host(w), before[name]), name


def in_order(parts: list[np.ndarray]) -> np.ndarray:
    """The sum in the order of the ranks; of 16 bits in float32, rounded once."""
    wide = parts[0].dtype if parts[0].itemsize > 2 else np.dtype(np.float32)
    total = parts[0].astype(wide)
    for part in parts[1:]:
        total = total + part.astype(wide)
    return total.astype(parts[0].dtype)


def parts_of(ranks: exchange.Exchange, dtype: np.dtype, size: int) -> list[np.ndarray]:
    """What each process adds."""
    seeds = [[rank, size] for rank in range(ranks.size)]
    return [np.random.default_rng(seed).standard_normal(size).astype(dtype) for seed in seeds]


def added(ranks: Any) -> None:
    """Sums in each dtype, of sizes that are no multiple of anything."""
    ranks.piece = PIECE
    for dtype in arrays.DTYPES.values():
        for size in SIZES:
            parts = parts_of(ranks, dtype, size)
            values = parts[ranks.rank].copy()
            ranks._add_up(values)
            assert np.array_equal(values, in_order(parts)), (dtype, size)


def killed(folder: Path) -> None:
    """A process ends in the middle of a backward pass, without a word."""
    with exchange.here() as ranks:
        net = network()

        def end(name: str, gradient: Any) -> None:
            if name == "fc6.w":
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        if ranks.rank == 1:
            net.on_gradient = end
        ranks.attach(net)
        (folder / f"{ranks.rank}.pid").write_text(str(os.getpid()))
        ranks.add([0])  # all have written it
        x, labels = batch(0, 8)
        here = slice(*ranks.share(8))
        ranks.step(net, x[here], labels[here], 8)
        (folder / "goes on").touch()


def raises(folder: Path, how: str) -> None:
    """An error in one process, or the same in all: in a block, without one, or as a status."""
    mpi._PATIENCE = 1e9 if how == "all" else 0  # so that no test depends on the clock
    if how == "bare":
        fails(exchange.here(), 1, ValueError("spoiled"))
    with exchange.here() as ranks:
        error = {"one": ValueError("spoiled"), "all": OptionError("spoiled"), "exit": SystemExit(3)}[how]
        fails(ranks, None if how == "all" else 1, error)


def fails(ranks: exchange.Exchange, rank: int | None, error: BaseException) -> None:
    if rank in (None, ranks.rank):
        raise error
    ranks.add([0])


def differs(folder: Path) -> None:
    """Two networks that cannot be trained together."""
    with exchange.here() as ranks:
        widths = (0.25, 0.5)[ranks.rank]
        ranks.attach(ck.AlexNet("small", num_classes=10, widths=widths))


def gpus(folder: Path, device: str = "cuda") -> None:
    """`steps` on stand-ins for CuPy and NCCL: the emulator in the place of each process's GPU."""
    import fake_cupy
    import fake_nccl

    from convkit import devices
    from convkit.cuda.emulate import Emulator
    from convkit.train.exchange import nccl

    fake_cupy.DEVICES = 3
    cupy = fake_cupy.module(watch_races=True)
    cupy.cuda.nccl = fake_nccl.module()
    sys.modules.update({"cupy": cupy, "cupy.cuda": cupy.cuda})
    devices.current = fake_cupy.current_executor(Emulator())
    with exchange.here(device) as ranks:
        assert isinstance(ranks, nccl.Nccl) and ranks.device == f"cuda:{ranks.rank}"
        with cupy.cuda.Device(ranks.rank):
            added_on_gpus(ranks, cupy)
        ranks.piece, gradients.SMALL = 1 << 10, SMALL
        net = tiny(seed=ranks.rank, device=ranks.device)
        found = steps(ranks, net)
        assert ranks.same(net) and fake_nccl.groups[0]
        refused(ranks, net)
        np.savez(folder / f"{ranks.rank}.npz", **found)


def added_on_gpus(ranks: Any, cupy: Any) -> None:
    """As `added`, on the current GPU and a stream that is not the default one."""
    ranks.piece = PIECE
    with cupy.cuda.Stream(non_blocking=True):
        for dtype in arrays.DTYPES.values():
            for size in SIZES:
                parts = parts_of(ranks, dtype, size)
                values = cupy.asarray(parts[ranks.rank])
                ranks._add_up(values)
                assert np.array_equal(values.get(), in_order(parts)), (dtype, size)


def main() -> None:
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])


if __name__ == "__main__":
    main()
