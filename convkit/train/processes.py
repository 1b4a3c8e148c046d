"""Processes that read images for a `Loader`: the parent's side of `reading.py`.

All of them take tasks, a few rows of a batch each, from one pipe, so whichever is free takes the next one,
and no thread of the parent need hand them out. They write into memory that the parent has mapped too, and
answer through a second pipe. Pipes and memory are without a name, and each process sees at once when its
parent is gone: nothing is left behind.

They are started from scratch, neither forked nor by `multiprocessing`: the parent has threads (a pool of
convkit's, BLAS's), whose locks a fork would copy as they stand, and `multiprocessing` would run the user's
main program again in each of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import warnings
import weakref
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ..check.process.memory import Shared
from ..errors import ConvkitWarning
from . import disk, reading
from .data.dataset import Split
from .errors import DataError

#: Processes lost while one batch is waited for, after which no more are started.
MOST_LOST = 16
#: Seconds without an answer after which the user is told what is waited for.
PATIENCE = 60.0
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']; " \
    "from convkit.train.reading import main; main()"  # fmt: skip


@dataclass
class Batch:
    """Images that are being read.

    Attributes
    ----------
    indices : int64 array, (m,)
        What was asked for.
    images : uint8 array, (m, H, W, C)
    found : int64 array, (m,)
        What is in each row; -1 for nothing.
    """

    indices: np.ndarray
    images: np.ndarray
    found: np.ndarray
    block: np.ndarray
    #: Rows of each task that is not done, and what it has failed at so far: (row, index, reason).
    tasks: dict[int, tuple[int, int]] = field(default_factory=dict)
    failed: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)

    def failures(self) -> list[tuple[int, int, str]]:
        """(row, index, reason), by rows, as they were tried."""
        return sorted((one for part in self.failed.values() for one in part), key=lambda one: one[0])


@dataclass
class _Running:
    """Processes, and the ends of pipes that the parent has."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    tasks: int = -1
    answers: int = -1
    #: For each process a socket, whose other end it has: each side sees there that the other is gone.
    alive: list[socket.socket] = field(default_factory=list)

    def end(self) -> None:
        """End them at once: they have nothing to lose."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a file system that does not answer
                process.wait(5)
        for fd in self.ends:
            os.close(fd)
        for end in self.alive:
            end.close()
        self.processes, self.ends, self.alive = [], [], []


class Processes:
    """A pool of processes that read.

    Parameters
    ----------
    split : Split
    count : int
    substitute : bool
    """

    def __init__(self, split: Split, count: int, substitute: bool) -> None:
        self._split, self._count, self._substitute = split, count, substitute
        self._shared = Shared()
        self._places_block = self._shared.empty(8 * count)
        self._places = self._places_block.view(np.int64)
        self._file = _file(split)
        weakref.finalize(self, os.close, self._file)
        self._free: list[np.ndarray] = []
        self._batches: dict[int, Batch] = {}  # by task
        self._backlog: deque[bytes] = deque()
        self._received = bytearray()
        self._number = 0
        self._lost = 0
        self._suspects: set[int] = set()
        self._refused: dict[int, str] = {}
        self._running = _Running()
        self._finalizer = weakref.finalize(self, self._running.end)
        self._start()

    # -- batches ------------------------------------------------------------------------------------
    def submit(self, indices: np.ndarray) -> Batch:
        """Have images read."""
        if not self._running.processes:
            self._start()
        size = reading.extent(len(indices), self._split.shape)
        fits = [block for block in self._free if block.size >= size]
        block = min(fits, key=len, default=None)
        if block is None:
            block = self._shared.empty(size)
        else:
            self._free = [other for other in self._free if other is not block]
        images, asked, found = reading.views(block, len(indices), self._split.shape)
        asked[:] = indices
        batch = Batch(indices, images, found, block)
        # Small enough that all have some of each batch, large enough that handing them out costs nothing.
        rows = max(1, len(indices) // (4 * self._count))
        for first in range(0, len(indices), rows):
            self._number += 1
            batch.tasks[self._number] = first, min(first + rows, len(indices))
            self._batches[self._number] = batch
            self._send(self._number, batch)
        self._flush()
        return batch

    def wait(self, batch: Batch) -> None:
        """Return when a batch is there."""
        while batch.tasks:
            self._pump()
        self._lost = 0

    def free(self, batch: Batch) -> None:
        """The batch's memory may be used again."""
        self._free.append(batch.block)

    def stop(self) -> None:
        """Give up what is being read. The processes end if they are at it; `submit` starts others."""
        if self._batches:
            self._end()
            for batch in {id(batch): batch for batch in self._batches.values()}.values():
                self._free.append(batch.block)
            self._batches = {}

    def close(self) -> None:
        """End the processes."""
        self._end()
        self._batches = {}

    # -- talking to processes -----------------------------------------------------------------------
    def _send(self, number: int, batch: Batch) -> None:
        place = batch.block.ctypes.data - self._shared.start
        self._backlog.append(reading.TASK.pack(number, place, len(batch.indices), *batch.tasks[number]))

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._backlog:
                os.write(self._running.tasks, self._backlog[0])
                self._backlog.popleft()

    def _pump(self) -> None:
        """Wait for one answer at least, or for the end of a process."""
        running = self._running
        poll = select.poll()
        alive = [end.fileno() for end in running.alive]
        for fd in (running.answers, *alive):
            poll.register(fd, select.POLLIN)
        if self._backlog:
            poll.register(running.tasks, select.POLLOUT)
        came = dict(poll.poll(1000 * PATIENCE))
        if not came:
            names = sorted({self._split.name(int(index)) for index in self._places if index >= 0})
            warnings.warn(
                f"nothing was read for {PATIENCE:g} s; waiting for {', '.join(names[:4]) or 'workers'}",
                ConvkitWarning,
                stacklevel=5,
            )
        if running.tasks in came:
            self._flush()
        if running.answers in came:
            self._receive()
        gone = [number for number, fd in enumerate(alive) if fd in came]
        if gone:
            self._replace(gone)

    def _receive(self) -> bool:
        """Take what answers there are; False at the end of the pipe, or if there are none."""
        try:
            data = os.read(self._running.answers, 1 << 16)
        except BlockingIOError:
            return False
        self._received += data
        place = 0
        while len(self._received) - place >= reading.ANSWER.size:
            size, what, a, b, c = reading.ANSWER.unpack_from(self._received, place)
            place += reading.ANSWER.size
            text = self._received[place : place + size].decode()
            place += size
            self._answer(what, a, b, c, text)
        del self._received[:place]
        return bool(data)

    def _answer(self, what: bytes, a: int, b: int, c: int, text: str) -> None:
        if what == reading.READY:
            self._ready.add(a)
        elif what == reading.FAILED:
            self._batches[a].failed.setdefault(a, []).append((b, c, text))
        elif what == reading.DONE:
            del self._batches.pop(a).tasks[a]
        else:
            last = text.rstrip().rpartition("\n")[2]
            raise DataError(last) from (_Traceback(text) if last != text else None)

    # -- starting and ending ------------------------------------------------------------------------
    def _start(self) -> None:
        """Start all processes, and hand out again what is not done."""
        self._running = running = _Running()
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, running.end)
        self._places[:] = reading.NOWHERE
        self._ready: set[int] = set()
        self._received.clear()
        self._backlog.clear()
        its_tasks, running.tasks = os.pipe()
        running.answers, its_answers = os.pipe()
        running.ends += [running.tasks, running.answers]
        for fd in running.ends:
            os.set_blocking(fd, False)
        settings = {
            "path": [os.path.abspath(place) for place in sys.path],
            "tasks": its_tasks,
            "answers": its_answers,
            "memory": self._shared.fd,
            "split": self._file,
            "places": self._places_block.ctypes.data - self._shared.start,
            "readers": self._count,
            "substitute": self._substitute,
            "refused": self._refused,
            "seconds": reading.MOST_SECONDS,
        }
        # A thread of a library's own in each of them would only be in the way.
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        try:
            for number in range(self._count):
                mine, its = socket.socketpair()
                running.alive.append(mine)
                own = {"number": number, "parent": its.fileno()}
                with its:
                    running.processes.append(
                        subprocess.Popen(
                            [sys.executable, "-c", _PROGRAM, json.dumps(settings | own)],
                            stdin=subprocess.DEVNULL,
                            pass_fds=(its_tasks, its_answers, self._shared.fd, self._file, its.fileno()),
                            start_new_session=True,  # Ctrl-C is the parent's
                            env=environment,
                        )
                    )
        except OSError as error:
            self._end()
            raise DataError(
                f"cannot start {self._count} worker processes: {error}; use fewer workers"
            ) from error
        finally:
            os.close(its_tasks)
            os.close(its_answers)
        for number, batch in self._batches.items():
            batch.failed.pop(number, None)
            self._send(number, batch)
        self._flush()

    def _end(self) -> None:
        self._running.end()
        self._backlog.clear()

    def _replace(self, gone: list[int]) -> None:
        """Some processes have ended by themselves: start all anew.

        All, since a task that one of them took and did not begin would be lost.
        """
        running = self._running
        statuses = {number: running.processes[number].wait() for number in gone}
        for process in running.processes:
            process.kill()
        for process in running.processes:
            process.wait()
        while self._receive():
            pass
        for number, status in statuses.items():
            if number not in self._ready:
                self._end()
                raise DataError(
                    f"a worker process ended ({_ended(status)}) before it was ready; what it printed is above"
                )
            self._lost += 1
            index = int(self._places[number])
            if index < 0:
                continue
            if status == -signal.SIGPROF:
                self._refused[index] = f"reading it took more than {reading.MOST_SECONDS:g} s of CPU time"
            elif index in self._suspects:
                self._refused[index] = f"it ended the process that read it ({_ended(status)})"
            self._suspects.add(index)  # it may have been another's doing, such as a lack of memory: once more
        if self._lost > MOST_LOST:
            self._end()
            index = max(self._places[number] for number in gone)
            name = self._split.name(int(index)) if index >= 0 else "no image"
            raise DataError(
                f"{self._lost} worker processes were lost in a row; the last: {_ended(status)}, at {name}"
            )
        self._end()
        self._start()


class _Traceback(Exception):
    """The traceback of an error in another process, as the cause of one here."""

    def __str__(self) -> str:
        return f"\n{super().__str__()}"


def _file(split: Split) -> int:
    """A file without a name that has a split."""
    try:
        packed = reading.pack(split)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise DataError(f"worker processes cannot receive the images ({error}); use workers=0") from error
    fd = disk.unnamed()
    view = memoryview(packed)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _ended(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"
