"""The judge's end of a candidate's process: start it, ask it, wait no longer than the limit, end it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...cuda.cache import Cache
from ...errors import OptionError
from ..attempt import librarys
from ..faults import Lost, Raised
from .memory import Shared

#: Longest answer of a candidate's process, in bytes, and most that is kept of what it prints, at either end.
LONGEST, PRINTED = 4 << 20, 4000
#: Characters of one text of an answer that are read. (The source of a candidate, for its numbers, is longer.)
_TEXT = 100_000
#: Seconds between two looks at a process's memory, and that a process may take to write where it was.
LOOK, DUMP = 0.05, 0.3
#: Seconds beyond the limit that a process may take to start, and then to load a candidate.
LOADING = 60.0
_ns = time.perf_counter_ns
#: Whether this is the process of a candidate, which checks nothing.
inside = False
_PROGRAM = """import json, sys
told = json.loads(sys.argv[1])
sys.path[:] = told["path"]
from convkit.check.process.candidate import main
main(told)
"""
#: Libraries that keep compiled code on disk: what tells each the folder.
_CACHES = {
    "CONVKIT_CACHE": "convkit",
    "NUMBA_CACHE_DIR": "numba",
    "TRITON_CACHE_DIR": "triton",
    "CUPY_CACHE_DIR": "cupy",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "MPLCONFIGDIR": "matplotlib",
}


@dataclass(frozen=True)
class Limits:
    """What a candidate may take.

    Attributes
    ----------
    timeout : float
        Seconds of one call.
    memory : int
        Bytes beyond what its process has before it is loaded; what is shared with the judge is not counted.
    losses : int
        Processes that may be lost to one candidate; then no more of it is run.
    """

    timeout: float = 60.0
    memory: int = 4 << 30
    losses: int = 3

    @classmethod
    def of(cls, timeout: float, gib: float) -> Limits:
        """Limits from a number of seconds and one of GiB."""
        if not 0 < gib <= 2**20:
            raise OptionError(f"the memory must be a positive number of GiB, not {gib:g}")
        return cls(timeout, int(gib * 2**30))

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise OptionError(f"timeout must be a positive number of seconds, not {self.timeout!r}")
        if self.memory < 64 << 20:
            raise OptionError(f"memory must be at least 64 MiB, not {self.memory} bytes")


def refuse_inside() -> None:
    """Raise an error in a candidate's process: its file would have itself checked while it is loaded."""
    if inside:
        raise OptionError(
            "a candidate's process checks nothing: put the check where it is not run when the file is "
            "loaded, under `if __name__ == '__main__':`"
        )


class Printed:
    """The beginning and the end of what a process writes, taken from a pipe by a thread."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._first, self._last, self.size = b"", b"", 0
        self._thread = threading.Thread(target=self._take, args=(pipe,), daemon=True)
        self._thread.start()

    def _take(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), pipe:
            while data := os.read(pipe.fileno(), 65536):
                self.size += len(data)
                room = PRINTED - len(self._first)
                self._first, data = self._first + data[:room], data[room:]
                self._last = (self._last + data)[-PRINTED:]

    def text(self) -> str:
        """What was written, without its middle where it is long."""
        self._thread.join(DUMP)  # a process that it has started may hold the pipe open
        left_out = self.size - len(self._first) - len(self._last)
        middle = f"\n... {left_out} bytes ...\n".encode() if left_out > 0 else b""
        return str(_readable((self._first + middle + self._last).decode("utf-8", "replace")))


class Process:
    """A process that runs a candidate.

    Parameters
    ----------
    shared : Shared
    limits : Limits
    own_caches : bool
        Keep what it compiles apart from what convkit has compiled: nobody loads what it leaves.
    gpu : bool
        It may use a GPU, whose driver takes more address space than any limit.
    """

    def __init__(self, shared: Shared, limits: Limits, *, own_caches: bool = True, gpu: bool = False) -> None:
        refuse_inside()
        self.limits, self._shared, self._had = limits, shared, 1 << 62
        self._sent: bytes = b""
        self._count = 0
        self._paused = False
        #: Nanoseconds from asking until the last answer began to come.
        self.took = 0
        #: Nanoseconds that this thread, and the process's first, waited for a core meanwhile; Linux tells.
        self.waited = (0, 0)
        self._folder = tempfile.mkdtemp(prefix="convkit-candidate-")
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `end`
        mine, its = socket.socketpair()
        self._socket = mine
        environment = {**os.environ, "TMPDIR": self._folder}
        kept = Cache().folder()
        writable = [self._folder, str(kept / "candidates" if own_caches else kept)]
        # Numba's would lie beside convkit's source, where this process may not write.
        for name in _CACHES if own_caches else ("NUMBA_CACHE_DIR",):
            environment[name] = str(Path(writable[1], _CACHES[name]))
        with contextlib.suppress(OSError):
            Path(writable[1]).mkdir(parents=True, exist_ok=True)
        told = {
            "path": [str(Path(p).resolve()) for p in sys.path],
            "socket": its.fileno(),
            "memory": shared.fd,
            "trace": self._trace.fileno(),
            "most": 0 if gpu else limits.memory,
            "writable": writable,
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(told)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(its.fileno(), shared.fd, self._trace.fileno()),
                start_new_session=True,
                env=environment,
            )
        finally:
            its.close()
        assert self._process.stdout and self._process.stderr
        self._printed = Printed(self._process.stdout), Printed(self._process.stderr)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        # What it has before it loads anything is not the candidate's.
        self.unconfined = str(self.ask({"do": "start"}, grace=LOADING).get("unconfined", ""))
        self._had = self._private()

    # -- asking -------------------------------------------------------------------------------------
    def ask(self, message: Mapping[str, Any], *, grace: float = 0.0) -> dict[str, Any]:
        """Send a message, and wait for the answer.

        Parameters
        ----------
        message : dict
            Plain values, problems, and places in shared memory.
        grace : float
            Seconds beyond the limit: what it runs has a limit of its own.

        Raises
        ------
        Raised
            The candidate raised something.
        Lost
            Its process ended, or had to be ended; it is over.
        """
        self._count += 1
        data = pickle.dumps(dict(message))
        # A call that is the same as the last one is not told twice: an empty message stands for it.
        data, self._sent = (b"" if data == self._sent else data), data
        frame = struct.pack("<QQ", len(data), self._count) + data
        before = self._waits()
        self._patience = self.limits.timeout + grace
        end = time.monotonic() + self._patience
        start, self._came = _ns(), 0
        try:
            self._go_on()
            self._socket.sendall(frame)
            answer = self._answer(end)
        except OSError:
            raise self._lost("") from None
        except BaseException:  # Ctrl-C among them: an answer that comes later is to no question
            self.end()
            raise
        self.took = self._came - start
        mine, its = self._waits()
        self.waited = mine - before[0], its - before[1]
        if isinstance(raised := answer.get("raised"), dict):
            raise Raised(*(str(raised.get(key, "")) for key in ("text", "kind")))
        return answer

    def pause(self) -> None:
        """Have the process, and what it has started, stand still until it is next asked.

        So it cannot work while inputs are written, nor take a core from what is timed meanwhile.
        """
        if self._paused or self._exited():
            return
        self._paused = True
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGSTOP)
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _go_on(self) -> None:
        if self._paused:
            self._paused = False
            os.killpg(self._process.pid, signal.SIGCONT)

    def _answer(self, end: float) -> dict[str, Any]:
        """The answer to the question of this number; what is none is not listened to."""
        length, number = struct.unpack("<QQ", self._bytes(16, end))
        if length > LONGEST:
            raise self._lost("answered what is no answer")
        try:
            answer = _readable(json.loads(self._bytes(length, end)))
        except (ValueError, RecursionError):
            answer = None
        if number != self._count or not isinstance(answer, dict):
            raise self._lost("answered what is no answer")
        return answer

    def _bytes(self, size: int, end: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            left = end - time.monotonic()
            events = self._poll.poll(max(0.0, min(left, LOOK)) * 1000)
            self._came = self._came or (_ns() if events else 0)
            if events:
                data = self._socket.recv(size - len(found))
                if not data:
                    raise self._lost("")
                found += data
                continue
            # What the process has started may hold the socket open.
            if self._exited():
                raise self._lost("")
            if (taken := self._private() - self._had) > self.limits.memory:
                raise self._lost(f"took {taken / 2**30:.1f} GiB of memory; the limit is {self._limit()}")
            if left <= 0:
                raise self._lost(f"had not ended after {self._patience:g} s")
        return bytes(found)

    def _waits(self) -> tuple[int, int]:
        """Nanoseconds that this thread, and the first of the process, have waited for a core so far."""
        try:
            with (
                open("/proc/thread-self/schedstat", "rb") as mine,
                open(f"/proc/{self._process.pid}/schedstat", "rb") as its,
            ):
                return int(mine.read().split()[1]), int(its.read().split()[1])
        except (OSError, ValueError, IndexError):
            return 0, 0

    def _limit(self) -> str:
        return f"{self.limits.memory / 2**30:.3g} GiB"

    def _private(self) -> int:
        """Bytes of memory that the process has, without what it shares with the judge."""
        taken = 0
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(f"/proc/{self._process.pid}/status", encoding="ascii") as file:
                rows = dict(line.split(":", 1) for line in file)
            anonymous, common = (int(rows[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
            taken = anonymous + max(0, common - self._shared.touched())
        return taken

    # -- its end ------------------------------------------------------------------------------------
    def _lost(self, what: str) -> Lost:
        """The error for a process that gave no answer, which is ended if it has not ended."""
        if what and not self._exited():
            before = self._traced()
            with contextlib.suppress(OSError):
                os.kill(self._process.pid, signal.SIGUSR2)  # faulthandler writes where it is
            end = time.monotonic() + DUMP
            while self._traced() == before and time.monotonic() < end:
                time.sleep(0.01)
        exited, status = self.end(patience=0 if what else DUMP)
        if not what:
            what = _ended(status) if exited else "closed its connection to the judge"
        where = _place(self._text)
        return Lost(f"its process {what}{f', {where}' if where else ''}")

    def _traced(self) -> int:
        return os.fstat(self._trace.fileno()).st_size

    def _exited(self) -> bool:
        """Whether the process has ended; it is not reaped, so that its group's number stays its own."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def end(self, patience: float = 0.0) -> tuple[bool, int]:
        """End the process and what it has started.

        Parameters
        ----------
        patience : float
            Seconds that it is left to end by itself.

        Returns
        -------
        exited : bool
            Whether it had ended by itself.
        status : int
            Its exit status, or the negative number of a signal.
        """
        latest = time.monotonic() + patience
        while not (exited := self._exited()) and time.monotonic() < latest:
            time.sleep(0.002)
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._socket.close()
        if not self._trace.closed:
            self._trace.seek(0)
            self._text = self._trace.read(1 << 20).decode("utf-8", "replace")
            self._trace.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return exited, status

    _text, _came, _patience = "", 0, 0.0

    def printed(self) -> str:
        """What the process has printed, standard output first."""
        return "".join(text if text.endswith("\n") or not text else text + "\n" for text in self._both())

    def _both(self) -> Iterator[str]:
        for printed in self._printed:
            yield printed.text()


def _readable(value: Any) -> Any:
    """Plain values whose texts can be printed: nothing in them moves a cursor, and none is endless."""
    if isinstance(value, str):
        shown = value if len(value) <= _TEXT else f"{value[:_TEXT]} ... ({len(value)} characters)"
        return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in shown)
    if isinstance(value, list):
        return [_readable(one) for one in value]
    if isinstance(value, dict):
        return {key: _readable(one) for key, one in value.items()}
    return value


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}, without an answer"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"


def _place(trace: str) -> str:
    """The line of the candidate's where it was, from what faulthandler wrote."""
    for file, line in re.findall(r'^  File "(.*)", line (\d+) in', trace, re.MULTILINE):
        if not librarys(file):
            return f"at {Path(file).name}:{line}"
    return ""
