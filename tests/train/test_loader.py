"""The loader: the same batches whoever reads, in order, ahead; what is broken, lost or given up."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import splits

from convkit.errors import ConvkitWarning, OptionError
from convkit.train import processes, reading
from convkit.train.data.dataset import Pixels
from convkit.train.errors import DataError
from convkit.train.loader import Loader


def batches(loader, requests):
    return [(r.images.copy(), r.indices, r.labels, r.failures) for r in loader.read(requests)]


def equal(ours, others):
    assert len(ours) == len(others)
    for a, b in zip(ours, others, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
        assert a[3] == b[3]


def requests(*sizes, count=40):
    order = np.random.default_rng(5).permutation(count)
    ends = np.cumsum(sizes)
    return [order[end - size : end] for size, end in zip(sizes, ends, strict=True)]


BAD = (0, 7, 8, 9, 39)


# ---------------------------------------------------------------------------------------------------
# What is read
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [splits.Plain, splits.InMemory])
def test_what_cannot_be_read_is_replaced_by_the_next_that_can_be(kind):
    split = kind(40, BAD)
    with Loader(split, workers=0, substitute=True) as loader:
        (read,) = list(loader.read([np.array([6, 7, 9, 39, 8])]))
    assert read.indices.tolist() == [6, 10, 10, 1, 10]
    assert read.labels.tolist() == [6, 0, 0, 1, 0]
    assert read.indices.dtype == np.int64 and read.labels.dtype == np.int32
    assert np.array_equal(read.images, [split.pixels(i) for i in read.indices])
    assert read.failures == [(i, f"broken {i}") for i in (7, 8, 9, 39, 0)]  # each once, in the order of rows


@pytest.mark.parametrize("kind", [splits.Plain, splits.InMemory])
def test_or_its_row_is_zero_and_has_no_label(kind):
    split = kind(40, BAD)
    with Loader(split, workers=0) as loader:
        for _ in range(2):  # buffers with other images in them
            (read,) = list(loader.read([np.array([6, 7, 1])]))
    assert read.indices.tolist() == [6, 7, 1] and read.labels.tolist() == [6, -1, 1]
    assert np.array_equal(read.images, [split.pixels(6), np.zeros((5, 4, 3)), split.pixels(1)])
    assert read.failures == [(7, "broken 7")]


@pytest.mark.parametrize("substitute", [False, True])
def test_the_number_of_workers_changes_no_bit(substitute):
    split, asked = splits.Plain(40, BAD), requests(1, 12, 0, 12, 12, 3)
    with Loader(split, workers=0, substitute=substitute) as loader:
        alone = batches(loader, asked)
    for workers in (1, 3) if substitute else (2,):
        with Loader(split, workers=workers, substitute=substitute) as loader:
            equal(batches(loader, asked), alone)
            equal(batches(loader, asked[::-1]), alone[::-1])


def test_a_split_in_memory_is_gathered():
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (50, 6, 6, 1), np.uint8), rng.integers(0, 10, 50)
    with Loader(Pixels(pixels, labels), workers=3) as loader:
        assert loader.workers == 0
        for order, read in zip(
            requests(20, 20, 10, count=50), loader.read(requests(20, 20, 10, count=50)), strict=True
        ):
            assert np.array_equal(read.images, pixels[order]) and np.array_equal(read.labels, labels[order])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_split_of_which_nothing_can_be_read_is_an_error(workers):
    split = splits.Plain(12, tuple(range(12)))
    message = "none of the 12 images can be read; the first: 4.jpg: broken 4"
    with Loader(split, workers=workers, substitute=True) as loader, pytest.raises(DataError, match=message):
        list(loader.read([np.array([4, 2])]))


def test_without_substitutes_it_is_one_when_all_were_asked_for():
    split = splits.Plain(12, tuple(range(12)))
    with Loader(split, workers=0) as loader:
        assert len(list(loader.read([np.arange(5)]))) == 1  # there may be others
        with pytest.raises(
            DataError, match=r"none of the 12 images can be read; the first: 0\.jpg: broken 0"
        ):
            list(loader.read([np.arange(5), np.arange(5, 12)]))


def test_a_search_for_a_substitute_has_an_end(monkeypatch):
    monkeypatch.setattr(reading, "MOST_MISSED", 3)
    split = splits.Plain(12, (4, 5, 6, 9, 10))
    with Loader(split, workers=0, substitute=True) as loader:
        assert next(loader.read([np.array([9])])).indices == [11]
        with pytest.raises(
            DataError, match=r"none of 3 images in a row, of 12, can be read; the first: 4\.jpg"
        ):
            next(loader.read([np.array([4])]))


# ---------------------------------------------------------------------------------------------------
# Ahead
# ---------------------------------------------------------------------------------------------------
class Watched(splits.InMemory):
    """Lets out how many batches have been read."""

    def __init__(self, count):
        super().__init__(count)
        self.done, self.more = 0, threading.Condition()

    def read_many(self, indices, out):
        failures = super().read_many(indices, out)
        with self.more:
            self.done += 1
            self.more.notify_all()
        return failures

    def wait(self, count):
        with self.more:
            assert self.more.wait_for(lambda: self.done >= count, 60)


def test_batches_are_read_while_another_one_is_in_use():
    split, asked = Watched(40), requests(8, 8, 8, 8, 8)
    with Loader(split, ahead=2) as loader:
        reads = loader.read(asked)
        split.wait(3)  # before the first is asked for
        for number, order in enumerate(asked):
            read = next(reads)
            split.wait(min(number + 3, 5))  # the two after it, while it is in use; it stays as it is
            assert np.array_equal(read.images, [split.pixels(i) for i in order])


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_used_again(workers):
    with Loader(splits.Plain(40), workers=workers, ahead=1) as loader:
        asked = requests(8, 8, 8, 8, 8) + requests(3, 3)
        places = {read.images.ctypes.data for read in loader.read(asked)}
    assert len(places) == 2


def test_what_was_read_outlives_the_loader():
    split = splits.Plain(40)
    with Loader(split, workers=1) as loader:
        read = next(loader.read([np.arange(40)]))
    del loader
    assert np.array_equal(read.images, [split.pixels(i) for i in range(40)])


def test_requests_are_taken_as_they_are_needed():
    taken = []

    def asked():
        for number in range(10):
            taken.append(number)
            yield np.array([number])

    with Loader(splits.Plain(40), workers=0, ahead=2) as loader:
        reads = loader.read(asked())
        next(reads)
        assert len(taken) == 3
        next(reads)
        assert len(taken) == 4


# ---------------------------------------------------------------------------------------------------
# Processes that are lost
# ---------------------------------------------------------------------------------------------------
def test_a_file_that_ends_its_reader_twice_is_a_bad_one(tmp_path):
    split = splits.Fatal(12, tmp_path)
    with Loader(split, workers=1, substitute=True) as loader:
        (read,) = list(loader.read([np.arange(12)]))
        assert read.failures == [(3, "it ended the process that read it (signal SIGSEGV)")]
        assert read.indices.tolist() == [0, 1, 2, 4, *range(4, 12)]
        assert np.array_equal(read.images, [split.pixels(i) for i in read.indices])
        (again,) = list(loader.read([np.array([3])]))  # it is known by now: no reader is lost
        assert again.indices == [4]


def test_a_file_whose_decoder_does_not_end_is_a_bad_one(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_SECONDS", 0.2)
    with Loader(splits.Fatal(12, tmp_path, endless=True), workers=1) as loader:
        (read,) = list(loader.read([np.arange(12)]))
    assert read.failures == [(8, "reading it took more than 0.2 s of CPU time")]
    assert read.labels.tolist() == [*range(8), -1, 9, 0, 1]


def test_readers_that_are_lost_again_and_again_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "MOST_LOST", 1)
    with (
        Loader(splits.Fatal(12, tmp_path), workers=1) as loader,
        pytest.raises(DataError, match=r"2 worker processes were lost in a row; .*SIGSEGV, at 3\.jpg"),
    ):
        list(loader.read([np.array([3])]))


@pytest.mark.filterwarnings("error")
def test_what_is_waited_for_is_named(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.05)
    with (
        Loader(splits.Stuck(12), workers=1) as loader,
        pytest.raises(ConvkitWarning, match=r"nothing was read for 0.05 s; waiting for (3\.jpg|workers)"),
    ):
        list(loader.read([np.array([3])]))


def test_other_errors_of_a_reader_are_those_of_the_caller():
    with Loader(splits.Wrong(12), workers=1) as loader:
        with pytest.raises(DataError, match=r"^the tar is damaged$") as plain:
            list(loader.read([np.array([0, 1])]))
        assert plain.value.__cause__ is None
        with pytest.raises(DataError, match=r"^ZeroDivisionError: of its own$") as odd:
            list(loader.read([np.array([0, 2])]))
        assert "splits.py" in str(odd.value.__cause__)  # its traceback


def test_a_split_that_processes_cannot_have_is_an_error():
    split = splits.Plain(12)
    split.read = lambda index, out: None
    with pytest.raises(DataError, match=r"cannot receive the images .*lambda.*; use workers=0"):
        Loader(split, workers=1)
    with (
        Loader(splits.Unwelcome(12), workers=1) as loader,
        pytest.raises(DataError, match=r"cannot open the images \(LookupError: no such place\)"),
    ):
        list(loader.read([np.array([0])]))


def test_a_reader_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "_PROGRAM", "raise SystemExit(7)")
    with (
        Loader(splits.Plain(12), workers=1) as loader,
        pytest.raises(DataError, match="a worker process ended .exit status 7. before it was ready"),
    ):
        list(loader.read([np.array([0])]))


# ---------------------------------------------------------------------------------------------------
# Given up
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [0, 1])
def test_a_read_may_be_dropped_for_another(workers):
    split = splits.Plain(40)
    with Loader(split, workers=workers) as loader:
        first = loader.read(requests(8, 8, 8, 8))
        next(first)
        if workers:  # Ctrl-C, which the parent answers
            os.kill(loader._engine._running.processes[0].pid, signal.SIGINT)
        next(first)
        for read in loader.read([np.arange(10)]):
            assert np.array_equal(read.images, [split.pixels(i) for i in range(10)])
        with pytest.raises(DataError, match="reads something else by now"):
            next(first)


def test_a_closed_loader_says_so():
    loader = Loader(splits.Plain(40), workers=0)
    reads = loader.read(requests(8, 8, 8, 8))
    next(reads)
    loader.close()
    loader.close()
    for call in (lambda: next(reads), lambda: loader.read([])):
        with pytest.raises(DataError, match="the loader is closed"):
            call()


PARENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, splits
from convkit.train.loader import Loader
loader = Loader(splits.Stuck(12), workers=1)
reads = loader.read([np.arange(3), np.arange(3, 6)])
print(loader._engine._running.processes[0].pid, next(reads).indices.sum(), flush=True)
sys.stdin.readline()
if sys.argv[2] == "wait":
    next(reads)
"""


@pytest.mark.parametrize("end", ["wait", "leave"])
def test_nothing_is_left_of_a_loader_that_nobody_closed(end):
    """Its process is killed while it waits for an image, or ends with a read under way."""
    before = {name for name in os.listdir("/dev/shm") if "convkit" in name}
    parent = subprocess.Popen(
        [sys.executable, "-W", "always", "-c", PARENT, str(Path(__file__).parent), end],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    reader, total = map(int, parent.stdout.readline().split())
    assert total == 3
    watch = select.poll()
    watch.register(watched := os.pidfd_open(reader), select.POLLIN)
    parent.stdin.write("\n")  # not before: it ends at once
    parent.stdin.flush()
    if end == "wait":
        parent.kill()
    assert watch.poll(60_000)  # the reader is gone, or the wait is over
    os.close(watched)
    assert parent.communicate(timeout=60) == ("", "")
    assert parent.returncode == (-signal.SIGKILL if end == "wait" else 0)
    assert {name for name in os.listdir("/dev/shm") if "convkit" in name} == before


# ---------------------------------------------------------------------------------------------------
# What it is given
# ---------------------------------------------------------------------------------------------------
def test_the_arrays_of_a_split_are_shared_not_copied(tmp_path):
    split = splits.Plain(1000, BAD)
    file = tmp_path / "packed"
    file.write_bytes(reading.pack(split))
    assert file.stat().st_size < split.labels.nbytes + 1000
    fd = os.open(file, os.O_RDONLY)
    found = reading.unpack(fd)
    os.close(fd)
    assert np.array_equal(found.labels, split.labels) and found.bad == split.bad
    assert not found.labels.flags.owndata and not found.labels.flags.writeable


def test_what_cannot_be_asked_for():
    split = splits.Plain(12)
    with pytest.raises(OptionError, match="workers must be at least 0, not -1"):
        Loader(split, workers=-1)
    with pytest.raises(OptionError, match="ahead must be at least 0, not -1"):
        Loader(split, ahead=-1)
    with pytest.raises(DataError, match="there are no images to read"):
        Loader(splits.Plain(0))
    with Loader(split, workers=0) as loader:
        for wrong in (12, -1):
            with pytest.raises(DataError, match=f"image {wrong} was asked for; there are 0 to 11"):
                loader.read([np.array([0, wrong])])
        with pytest.raises(DataError, match=r"not an array of \(1, 2\)"):
            loader.read([np.array([[0, 1]])])
