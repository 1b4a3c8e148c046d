"""Training in many processes: sums, steps, errors, and the share that each process has of the machine.

What needs several processes is in `exchange_job.py`, and runs under mpiexec here. Whole runs, killed and
resumed under mpiexec, are in `test_killed.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import exchange_job
import mpiexec
import numpy as np
import pytest

from convkit.errors import MissingExtra, OptionError, ShapeError
from convkit.train import exchange
from convkit.train.errors import RunError
from convkit.train.exchange import gradients, launcher, nccl
from convkit.train.exchange.alone import Alone
from convkit.train.exchange.gradients import Gradients

JOB = Path(exchange_job.__file__)
#: Seconds after which a job counts as one that never ends.
PATIENCE = 200
#: Relative RMS of float32 gradients whose sums have another order.
SAME = 2e-6


def start(count: int, what: str, folder: Path, *given: str) -> subprocess.CompletedProcess[str]:
    """A job of so many processes, and what has become of it."""
    environment = {name: value for name, value in os.environ.items() if name != "CONVKIT_NUM_THREADS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(JOB.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        mpiexec.command(count, sys.executable, str(JOB), what, str(folder), *given),
        capture_output=True, text=True, timeout=PATIENCE, env=environment,
    )  # fmt: skip


def results(count: int, what: str, folder: Path) -> list[dict[str, np.ndarray]]:
    """What each process of a job has left."""
    folder.mkdir()
    done = start(count, what, folder)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(count)]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within the rounding of sums in another order."""
    error, size = (np.sqrt(np.square(a, dtype=np.float64).sum()) for a in (found - expected, expected))
    assert error < SAME * size


def assert_as_in_one_process(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The first gradients, and what became of the weights; losses, errors, images and flags."""
    for name in expected.keys() - {"losses"}:
        assert_close(found[name], expected[name])
    assert_close(found["losses"][:, 0], expected["losses"][:, 0])
    assert np.array_equal(found["losses"][:, 1:], expected["losses"][:, 1:])


# -- training -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_have_the_gradients_of_one_and_the_same_bits(count, tmp_path):
    found, *others = results(count, "train", tmp_path / "first")
    for other in (*others, *results(count, "train", tmp_path / "second")):
        assert_same(other, found)
    assert found["threads"] == max(1, len(launcher.cpus()) // count)
    assert found["sums"].tolist() == [[sum(0.1 * rank for rank in range(count)), count]]
    # An overflow in one process is one in all of them, and the loss scale is that of the first.
    assert found["half steps"][:, 1:].tolist() == [
        [1, 0, 1024, 1],
        [1, 1, 512, 0],
        [1, 0, 512, 1],
    ]
    prefix = "tiny "
    tiny = {name.removeprefix(prefix): v for name, v in found.items() if name.startswith(prefix)}
    assert_as_in_one_process(tiny, exchange_job.steps(Alone(), exchange_job.tiny()))
    alexnet = exchange_job.steps(Alone(), exchange_job.network(), batches=exchange_job.BATCHES[:1])
    for name in (name for name in alexnet if name.startswith("gradient ")):
        assert_close(found[name], alexnet[name])
    assert_close(found["losses"][0, 0], alexnet["losses"][0, 0])
    assert np.array_equal(found["losses"][0, 1:], alexnet["losses"][0, 1:])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_many_gpus_have_the_gradients_of_one_process(tmp_path):
    found, *others = results(3, "gpus", tmp_path / "gpus")
    for other in others:
        assert_same(other, found)
    assert_as_in_one_process(found, exchange_job.steps(Alone(), exchange_job.tiny()))


@pytest.mark.parametrize(
    "count, device, text",
    [
        (4, "cuda", "4 processes on one machine need a GPU each, and CuPy sees 3"),
        (2, "cuda:1", "processes 0 and 1 have the same GPU of "),
    ],
)
def test_each_process_needs_a_gpu(count, device, text, tmp_path):
    done = start(count, "gpus", tmp_path, device)
    assert done.returncode == 2 and text in done.stderr, done.stderr


# -- errors -------------------------------------------------------------------------------------------
def test_a_process_that_is_killed_in_a_backward_pass_ends_the_job(tmp_path):
    done = start(2, "killed", tmp_path)
    print(f"{time.time() - (tmp_path / 'killed').stat().st_mtime:.2f} s from the end of one to that of all")
    pids = [(tmp_path / f"{rank}.pid").read_text() for rank in range(2)]
    assert done.returncode and not (tmp_path / "goes on").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    "how, status, text",
    [
        ("one", 1, "ValueError: spoiled"),
        ("bare", 1, "ValueError: spoiled"),
        ("all", 2, "OptionError: spoiled"),
        ("exit", 3, ""),
    ],
)
def test_an_error_ends_the_job(how, status, text, tmp_path):
    done = start(2, "raises", tmp_path, how)
    assert done.returncode == status, done.stderr
    assert done.stderr.count("Traceback") == done.stderr.count("Error: spoiled") == bool(text)
    assert text in done.stderr


def test_different_networks_are_refused(tmp_path):
    done = start(2, "differs", tmp_path)
    assert done.returncode == 2, done.stderr
    assert "RunError: processes 0 and 1 have different networks: conv1.w: " in done.stderr


def test_a_launcher_of_another_mpi(tmp_path):
    """Open MPI's launcher has started two, of which MPICH knows nothing."""
    pytest.importorskip("mpi4py")
    environment = os.environ | {"OMPI_COMM_WORLD_SIZE": "2"}
    code = "from convkit.train import exchange; exchange.here()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "the launcher has started 2 processes, but mpi4py's MPI sees 1" in done.stderr


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(MissingExtra, match=r"mpi4py.*convkit\[mpi\]"):
        exchange.here()
    cuda = types.SimpleNamespace(nccl=types.SimpleNamespace(available=False))
    for found in (None, cuda):
        monkeypatch.setitem(sys.modules, "cupy.cuda", found)
        with pytest.raises(RunError, match="needs NCCL, and CuPy finds none: pip install nvidia-nccl-cu13"):
            nccl.load()


# -- one process --------------------------------------------------------------------------------------
def test_without_a_launcher_a_process_is_alone(monkeypatch):
    for name in (*launcher._SIZES, *launcher._RANKS):
        monkeypatch.delenv(name, raising=False)
    with exchange.here() as alone:
        assert isinstance(alone, Alone) and (alone.rank, alone.size, alone.device) == (0, 1, "cpu")
    assert alone.add([1, 2]).tolist() == [1.0, 2.0] and alone.gather("a") == [alone.broadcast("a")]


def test_launchers_say_how_many_they_have_started():
    assert launcher.launched({}) == 1
    assert launcher.launched({"OMPI_COMM_WORLD_SIZE": "4"}) == 4
    assert launcher.launched({"PMI_SIZE": "2", "PMIX_RANK": "0"}) == 2
    assert launcher.launched({"PMIX_RANK": "0"}) is None


@pytest.mark.parametrize(
    "own, others, threads",
    [
        ([0, 1, 2, 3], [], 4),
        ([0, 1, 2, 3], [[0, 1, 2, 3]], 2),
        ([0, 1, 2, 3], [[4, 5, 6, 7]], 4),
        ([0, 1, 2], [[2, 3]], 2),
        ([0], [[0], [0]], 1),
    ],
)
def test_threads_of_processes_that_share_cpus(own, others, threads):
    assert launcher.threads(own, [own, *others]) == threads


@pytest.mark.parametrize("total", [0, 1, 3, 7, 128])
def test_shares_are_the_batch_in_order(total):
    ranks = [Alone() for _ in range(4)]
    for rank, each in enumerate(ranks):
        each.rank, each.size = rank, 4
    shares = [each.share(total) for each in ranks]
    assert [image for share in shares for image in range(*share)] == list(range(total))
    assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1


def test_batches_that_are_no_share_are_refused():
    net = exchange_job.tiny()
    with pytest.raises(OptionError, match="at least 0 images, not -1"):
        Alone().share(-1)
    x, labels = exchange_job.batch(0, 3, net.input_shape)
    with pytest.raises(
        ShapeError, match=r"of a batch of 4 images, process 0 of 1 takes 4 \(from 0 on\), not 3"
    ):
        Alone().step(net, x, labels, 4)
    with pytest.raises(ShapeError, match="at least one image"):
        Alone().step(net, x[:0], labels[:0], 0)


# -- the order of the exchange ------------------------------------------------------------------------
#: Elements of the large gradients of `tiny`, and of all small ones.
FC8, FC6, SMALL = 160, 768, 26


class Steps:
    """Backward passes of `tiny`, gradient by gradient, and what is added up: numbers of elements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gradients, "SMALL", exchange_job.SMALL)
        self.net = exchange_job.tiny()
        self.added: list[int] = []
        self.absent = False
        self.finite = np.ones(1, np.int32)

    def attach(self) -> Gradients:
        hooks = Gradients(self.net, self._add, self._agree, lambda: self.absent)
        self.net.on_gradient, self.net.before_update = hooks.on_gradient, hooks.before_update
        return hooks

    def _add(self, values: np.ndarray) -> None:
        self.added.append(values.size)
        values *= 2  # as if another process had the same

    def _agree(self, finite: np.ndarray, willing: bool) -> None:
        finite &= willing

    def make(self, *names: str) -> list[int]:
        """Gradients of ones; returns what has been added up since the last update."""
        for name in names:
            self.net.grads[name].fill(1)
            self.net.on_gradient(name, self.net.grads[name])
        return self.added

    def update(self) -> list[int]:
        self.net.before_update(self.net.grads, self.finite)
        added, self.added = self.added, []
        return added


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


def test_gradients_are_exchanged_during_the_backward_pass_in_one_order(steps):
    steps.attach()
    assert steps.make("fc8.b") == []
    assert steps.make("fc8.w") == [FC8]
    assert steps.make("fc6.w", "fc6.b") == [FC8, FC6]
    assert steps.update() == [FC8, FC6, SMALL]
    assert all((gradient == 2).all() for gradient in steps.net.grads.values()) and steps.finite[0]
    assert steps.make("fc6.b", "fc6.w", "fc8.b") == []  # another plan's order: it waits
    assert steps.make("fc8.w") == [FC8, FC6]
    assert steps.update() == [FC8, FC6, SMALL]


def test_frozen_parameters_are_not_exchanged(steps):
    steps.attach()
    steps.net.update = replace(steps.net.update, frozen=("fc8.*",))
    steps.make("fc6.w", "fc6.b")
    assert steps.update() == [FC6, 16]
    steps.net.update = replace(steps.net.update, frozen=("fc*",))
    assert steps.update() == []


def test_a_process_without_images_adds_nothing(steps):
    steps.attach()
    steps.absent, steps.finite[0] = True, 0
    steps.make("fc8.b", "fc8.w", "fc6.b", "fc6.w")
    assert steps.update() == [FC8, FC6, SMALL] and steps.finite[0]
    assert not any(gradient.any() for gradient in steps.net.grads.values())


@pytest.mark.parametrize("answer, willing", [(None, 1), (0.0, 1), (False, 0), (np.array([False]), 0)])
def test_the_hooks_of_a_network_stay(steps, answer, willing):
    seen = []
    steps.net.on_gradient = lambda name, gradient: seen.append((name, float(gradient.flat[0])))
    steps.net.before_update = lambda grads, finite: seen.append(float(grads["fc6.b"][0])) or answer
    steps.attach()
    steps.attach()  # once more: they are called once all the same
    steps.make("fc8.b", "fc8.w", "fc6.b", "fc6.w")
    assert steps.update() == [FC8, FC6, SMALL]
    assert seen == [("fc8.b", 1.0), ("fc8.w", 1.0), ("fc6.b", 1.0), ("fc6.w", 1.0), 2.0]
    assert steps.finite[0] == willing


def test_a_step_that_has_failed_is_not_taken_for_the_next_one(steps):
    steps.attach()
    steps.make("fc8.b", "fc8.w")
    with pytest.raises(RunError, match="did not come to its update"):
        steps.make("fc8.b")
    with pytest.raises(RunError, match="gradients of 2 parameters were made, expected 4"):
        steps.update()
    steps.attach()
    steps.make("fc8.b", "fc8.w", "fc6.b", "fc6.w")
    assert steps.update()[-3:] == [FC8, FC6, SMALL]
