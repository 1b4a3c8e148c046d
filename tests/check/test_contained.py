"""Candidates in processes of their own: whatever they do ends in a verdict, and only in a verdict."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import convkit as ck
from convkit import check
from convkit.check import process
from convkit.check.process import limits as confinement
from convkit.check.process.memory import Shared
from convkit.ops.elementwise import Elementwise
from convkit.registry import Implementation

#: Short for what never ends. What ends has as long as it needs: only what hangs is asked under this.
SHORT = check.Limits(timeout=0.5, memory=256 << 20)
PATIENT = check.Limits(timeout=120)
TOP = """
import ctypes, os, signal, subprocess, sys, threading, time
import numpy as np
import convkit as ck


@ck.implements("relu_fprop", name="mine", rank=-1)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
"""


def case(size: int = 1000) -> check.Case:
    return check.Case("relu_fprop", Elementwise((size,)), f"{size} numbers")


def verdict(tmp_path: Path, body: str, limits: check.Limits = PATIENT, size: int = 1000) -> check.Verdict:
    """The verdict in one case on a candidate with this body, in a process of its own."""
    path = tmp_path / "mine.py"
    path.write_text(f"{TOP}    {body.strip()}\n")
    group = process.of_file(path, limits)
    try:
        (candidate,) = group.load()
        return check.judge(candidate, check.Question.of(case(size), "float32"))
    finally:
        group.close()


def command(*arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convkit", "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        **kwargs,  # type: ignore[call-overload]
    )


def test_what_is_right_passes(tmp_path):
    assert verdict(tmp_path, "pass").ok


ENDS = {
    "exit": ("os._exit(0)", r"ended with exit status 0, without an answer"),
    "segmentation fault": ("ctypes.string_at(8)", r"was ended by SIGSEGV, at mine.py:10"),
    "abort": ("os.abort()", r"was ended by SIGABRT, at mine.py:10"),
    "signal": ("os.kill(os.getpid(), signal.SIGTERM)", r"was ended by SIGTERM"),
    "exit by an exception": ("raise SystemExit(0)", r"raised SystemExit: 0 \(mine.py:10\)"),
    "interrupt": ("raise KeyboardInterrupt", r"raised KeyboardInterrupt \(mine.py:10\)"),
    "memory": ("np.ones(1 << 28)", r"raised .*MemoryError: .*\(mine.py:10\); a candidate may take 0.25 GiB"),
    "an answer of its own": (
        "[os.write(n, b'x' * 64) for n in range(3, 999) if os.path.lexists(f'/proc/self/fd/{n}') "
        "and os.readlink(f'/proc/self/fd/{n}').startswith('socket')]",
        r"answered what is no answer",
    ),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_takes_its_process_along_ends_in_a_verdict(kind, tmp_path):
    body, reason = ENDS[kind]
    found = verdict(tmp_path, body, check.Limits(timeout=120, memory=256 << 20))
    assert not found.ok and re.search(reason, found.reason), found.reason


@pytest.mark.parametrize("body", ["time.sleep(1e6)", "ctypes.CDLL(None).pause()", "while True: pass"])
def test_what_does_not_end_is_ended(body, tmp_path):
    found = verdict(tmp_path, body, SHORT)
    assert not found.ok and re.search(r"had not ended after 0.5 s, at mine.py:10", found.reason), found.reason


def test_memory_that_no_limit_of_the_system_counts_is_seen(tmp_path):
    fill = "[m.write(bytes(1 << 20)) for _ in range(512)]"
    body = f"import mmap; m = mmap.mmap(-1, 1 << 30); {fill}; time.sleep(1e6)"
    found = verdict(tmp_path, body, check.Limits(timeout=120, memory=256 << 20))
    assert not found.ok and "GiB of memory; the limit is 0.25 GiB" in found.reason


HARMLESS = {
    "closes standard output": "os.closerange(1, 3); sys.stdout = None",
    "patches NumPy": "np.testing = np.array_equal = np.flatnonzero = np.isnan = None",
    "patches the judge": "import convkit.check.tolerance as t; t.compare = t.expected = None",
    "prints a lot": "print('x' * 10_000_000)",
    "redirects the judge's verdict": "import convkit.check.verdicts as v; v.Verdict = v.judge = None",
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_it_does_to_its_own_process_harms_nobody(kind, tmp_path):
    wrong = verdict(tmp_path, HARMLESS[kind] + "; y[0] += 1")
    assert not wrong.ok and wrong.reason.startswith("y[0] is"), wrong.reason


def test_the_answer_is_nowhere_in_its_process(tmp_path):
    """In the judge's own process a candidate finds the answers among the frames of its callers."""
    steal = """frame = sys._getframe()
    while frame is not None:
        question = frame.f_locals.get("question")
        if question is not None:
            y[...] = question.wanted["y"].value.reshape(y.shape)
            return
        frame = frame.f_back
    y[...] = 7"""
    found = verdict(tmp_path, f"{steal}")
    assert not found.ok and "is 7" in found.reason
    path = tmp_path / "mine.py"
    (alone,) = ck.register(path)
    try:
        assert check.judge(alone, check.Question.of(case(), "float32")).ok  # so the theft is a real one
    finally:
        _forget(alone.name)


def _forget(name: str) -> None:
    from convkit import registry

    registry._IMPLEMENTATIONS.pop(("relu_fprop", "cpu", name, "NCHW"))
    registry.changed()


def test_it_is_confined(tmp_path):
    """It writes nowhere but among its own files, signals nobody, and opens no connection."""
    if why := _unconfined():
        pytest.skip(why)
    target = str(tmp_path / "there")
    attempts = f"""import socket, tempfile
    done = []
    for attempt in (
        lambda: open({target!r}, "w"),
        lambda: os.mkdir({target!r}),
        lambda: os.remove({str(tmp_path / "mine.py")!r}),
        lambda: os.kill(os.getppid(), 0),
        lambda: open(f"/proc/{{os.getppid()}}/mem", "rb"),
        lambda: socket.create_connection(("127.0.0.1", 9)),
    ):
        try:
            attempt()
            done.append(attempt)
        except PermissionError:
            pass
    tempfile.TemporaryFile().write(b"x")
    assert not done"""
    found = verdict(tmp_path, attempts)
    assert found.ok, found.reason
    assert not Path(target).exists()


def _unconfined() -> str:
    """Why a process cannot be confined here, if it cannot; asked in one that is over then."""
    program = f"from {confinement.__name__} import keep_off; print(keep_off([]))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()


def _lives(pid: int) -> bool:
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("offset", [200_000, -100_000, 1 << 30])
def test_a_write_far_outside_its_tensors_is_seen(offset, tmp_path):
    """Beyond the guard bands as well: of the shared memory nothing but the tensors may be touched."""
    start = (
        "next(int(r.split('-')[0], 16) for r in open('/proc/self/maps') if 'convkit' in r and 'memfd' in r)"
    )
    body = f"""start = {start}
    place = y.ctypes.data + {offset}
    ctypes.memset(place if place >= start else start + (1 << 33), 7, 4)"""
    found = verdict(tmp_path, body)
    assert not found.ok and "far outside its tensors" in found.reason, found.reason


def test_what_it_starts_ends_with_it(tmp_path):
    body = "p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True)"
    path = tmp_path / "mine.py"
    path.write_text(f"{TOP}    {body}\n")
    group = process.of_file(path, PATIENT)
    (candidate,) = group.load()
    check.judge(candidate, check.Question.of(case(), "float32"))
    group.close()
    started = list(map(int, group.printed().split()))
    end = time.monotonic() + 120  # what has been killed takes a moment to be gone
    while any(_lives(pid) for pid in started) and time.monotonic() < end:
        time.sleep(0.01)
    assert started and not any(_lives(pid) for pid in started)


def _open_files() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # of the listing itself
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in found if "/fd" not in name}


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = _open_files()
    verdict(tmp_path, "os._exit(1)")
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon and "_take" in thread.name:
            thread.join()
    gc.collect()
    assert _open_files() <= before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_after_some_lost_processes_no_more_of_it_is_run(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{TOP}    os._exit(0)\n")
    found = command(path, "--quick", "--seed", 1)
    assert found.returncode == 1
    assert "the remaining cases" in found.stdout and "3 processes were lost to it" in found.stdout


def test_a_file_that_ends_the_process_that_loads_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import os\nprint('here', flush=True)\nos._exit(0)\n")
    found = command(path)
    assert found.returncode == 1
    assert "mine.py could not be loaded: its process ended with exit status 0" in found.stdout
    assert "mine.py printed:\n  | here" in found.stderr


def test_a_file_that_raises_an_error_is_named_in_one_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import os\nraise ValueError('not today')\n")
    found = command(path)
    assert found.returncode == 2
    assert found.stderr == ("convkit check: mine.py could not be loaded: ValueError: not today (mine.py:2)\n")


def test_a_second_look_finds_what_depends_on_the_calls_before(tmp_path):
    path = tmp_path / "mine.py"
    body = "WARM.add(problem.size)\n    y *= 1 if 1 in WARM else 0"
    path.write_text(f"WARM = set()\n{TOP}    {body}\n")
    ck.register(path)
    try:
        verdicts = check.check("relu_fprop", "mine", quick=True, seed=3)
    finally:
        _forget("mine")
    wrong = [v for v in verdicts if not v.ok]
    assert wrong and all("passed at first, and then, in a new process:" in v.reason for v in wrong)
    assert all(v.contained for v in verdicts)


def test_functions_without_a_file():
    """A function of a notebook goes to another process by value; what cannot be sent stays, and is marked."""
    factor = 1.0

    def plain(problem, x, y):
        np.multiply(np.maximum(x, 0), factor, out=y)
        if os.getpid() == mine:
            y[...] = -1

    lock = threading.Lock()

    def stays(problem, x, y):
        with lock:
            np.maximum(x, 0, out=y)

    mine = os.getpid()
    for run, contained in ((plain, True), (stays, False)):
        chosen = Implementation("relu_fprop", "mine", run, rank=-1)
        verdicts = check.check_these([chosen], quick=True, limits=PATIENT)
        assert not [v for v in verdicts if not v.ok or v.contained != contained]


def test_a_candidates_process_checks_nothing(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{TOP}    pass\ncheck = ck.check.check('relu_fprop', 'mine', quick=True)\n")
    found = command(path, "--quick")
    assert found.returncode == 2 and "a candidate's process checks nothing" in found.stderr


def test_an_endless_kernel_is_stopped_and_then_left_alone(tmp_path):
    path = tmp_path / "relu_fprop_endless.cu"
    path.write_text(
        (Path(__file__).parents[2] / "examples" / "relu_fprop_stride.cu")
        .read_text()
        .replace("relu_fprop_stride", "relu_fprop_endless")
        .replace(" i += step", " i += 0 * step")
    )
    found = command(path, "--quick", "--timeout", 1)
    assert found.returncode == 1 and "timeout" in found.stdout and "3 processes were lost" in found.stdout


def test_ctrl_c_ends_both_processes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{TOP}    pass\n")
    group = process.of_file(path, PATIENT)
    chosen = group.load()

    def interrupt(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    pid = group._process._process.pid
    with pytest.raises(KeyboardInterrupt):
        check.check_these(chosen, quick=True, limits=PATIENT, progress=interrupt)
    group.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


def test_blocks_of_shared_memory_are_given_once_and_again():
    shared = Shared()
    a, b = shared.empty(5000), shared.empty(10)
    (a0, a1), (b0, _) = shared.block_of(a), shared.block_of(b[3:4])
    assert a1 - a0 == 5000 and b0 >= a1 and not a0 % 4096 and not b0 % 4096
    view = a[100:200].view(np.int32).reshape(5, 5)
    del a
    assert shared.block_of(view) == (a0, a1)  # a view keeps its block
    assert shared.block_of(shared.empty(10))[0] > b0
    del view
    c = shared.empty(4000)
    assert shared.block_of(c)[0] == a0 and shared.block_of(np.zeros(3)) is None
    with pytest.raises(MemoryError):
        shared.empty(1 << 50)


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"timeout": float("nan")}, {"memory": 5}])
def test_limits_that_are_none(wrong):
    with pytest.raises(ck.errors.OptionError):
        check.Limits(**wrong)
