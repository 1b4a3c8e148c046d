"""Candidates of `convkit bench --kernel`: in processes of their own, whatever they do."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import convkit as ck
from convkit import registry
from convkit.bench import work
from convkit.bench.measure import clocks, contained, fresh, own, timing, trial
from convkit.check import Limits
from convkit.check.process import Lost
from convkit.cli import main
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.lrn import LRN
from convkit.ops.maxpool2d import Pool2d

HEAD = "import ctypes, os, signal, sys, time\nimport numpy as np\nimport convkit as ck\n"
RELU = "@ck.implements('relu_fprop', name={name!r})\ndef {name}(problem, x, y):\n"
WORK = "    np.maximum(x, 0, out=y)\n"
ITEM = work.Item("there/relu_fprop", "relu_fprop", Elementwise((64, 256)))
SETTINGS = timing.Settings(rounds=2, turn_s=0, pause_s=0, gate=False)


class Quick(clocks.CpuClock):
    """No flush to speak of, no probes."""

    def __init__(self) -> None:
        super().__init__(threads=1, flush_bytes=4096)

    def probe(self):
        return {}

    def ceilings(self, repeats=1):
        return {}


def relu(name: str, *body: str, work: str = WORK) -> str:
    return RELU.format(name=name) + "".join(f"    {line}\n" for line in body) + work


@pytest.fixture
def load(tmp_path):
    """Files of candidates, each loaded in a process of its own."""
    with ExitStack() as stack:

        def load(*texts: str, limits: Limits | None = None):
            paths = []
            for text in texts:
                paths.append(tmp_path / f"file{len(list(tmp_path.iterdir()))}.py")
                paths[-1].write_text(HEAD + text)
            return contained.load([str(p) for p in paths], limits or Limits(), stack)[0]

        yield load


def race(users, item=ITEM, **changes):
    entries = [own.entry(user, item, {}) for user in users]
    settings = timing.Settings(**{**vars(SETTINGS), **changes})
    return timing.race(item, entries, Quick(), settings), entries


#: What takes a process: three for each file, which is as many as one file may lose.
FATAL = (
    (
        relu("exits", "os._exit(0)")
        + relu("faults", "ctypes.memset(8, 0, 8)")
        + relu("ends", "os.kill(os.getpid(), signal.SIGTERM)")
    ),
    relu("hangs", "while True: pass") + relu("grows", "kept = np.ones((64, 2**20))"),
)
REASONS = {
    "exits": "its process ended with exit status 0, without an answer",
    "faults": "its process was ended by SIGSEGV",
    "ends": "its process was ended by SIGTERM",
    "hangs": "its process had not ended after 1 s, at file",
    "grows": "MemoryError",
    "raises": "raised ValueError: no",
    "leaves": "raised SystemExit",
    "fills": "every element of y that was looked at is 0",
}


def test_what_a_candidate_does_refuses_it_and_nobody_else(load, capfd):
    harmless = (
        relu("raises", "raise ValueError('no')")
        + relu("leaves", "sys.exit(0)")
        + relu("fills", work="    y.fill(0)\n")
        + relu("quiet", "sys.stdout.close()", "os.closerange(0, 3)")
        # Timers, the bench's own clock, and the functions that judge: in its process alone.
        + relu(
            "patches",
            "import convkit.bench.measure.clocks as clocks, convkit.bench.measure.trial as trial",
            "time.perf_counter_ns = time.monotonic = lambda: 0",
            "clocks.CpuClock.time = lambda self, run: 0.0",
            "trial.Trial.wrong = lambda *given: ''",
            "np.array_equal = lambda *given: True",
        )
    )
    limits = Limits(timeout=1.0, memory=256 << 20)
    users = [*load(*FATAL, limits=limits), *load(harmless)]
    result, entries = race(users)
    assert set(result.samples) == {"quiet", "patches"}
    assert set(result.refused) == set(REASONS)
    for name, reason in REASONS.items():
        assert reason in result.refused[name], (name, result.refused[name])
    assert min(ms for calls in result.samples["patches"] for ms in calls) > 0
    assert all(entry.marks == ("contained",) for entry in entries)
    print("still here")
    assert "still here" in capfd.readouterr().out


def test_an_entry_there_is_as_right_as_one_here_in_every_layout(load):
    """Blocked memory, an optional input that is absent, a workspace, integer outputs, options."""
    same = (
        "for i in ck.implementations({op!r}, device='cpu', layout=None):\n"
        "    if i.name != 'reference':\n"
        "        ck.implements(i.op, name='x_' + i.name, dtypes=i.dtypes, layout=i.layout, when=i.when,\n"
        "                      flags=i.flags,\n"
        "                      **({{'workspace': i.workspace}} if i.workspace else {{}}))(i.run)\n"
    )
    problems = {
        "conv2d_fprop": Conv2d.of((2, 32, 9, 9), (32, 32, 3, 3), padding=1),
        "lrn_fprop": LRN.of((2, 32, 9, 9)),
        "maxpool2d_fprop": Pool2d.of((2, 32, 9, 9)),
    }
    items = [work.Item(op, op, problem) for op, problem in problems.items()]
    items[0] = replace(items[0], absent=("b",), options={"relu": True})
    ops = list(problems)
    users = load("".join(same.format(op=op) for op in ops))
    layouts = set()
    for item in items:
        memory = fresh.Memory(item)
        memory.draw()
        memory.refresh()
        shipped = {(i.name, i.layout): i for i in ck.implementations(item.op, device="cpu", layout=None)}
        for user in users:
            if user.op != item.op or user.refusal(item.problem, item.math) is not None:
                continue
            outputs = []
            for one in (user, shipped[user.name.removeprefix("x_"), user.layout]):
                entry = own.entry(one, item, {})
                entry.bind(dict(memory.inputs), dict(memory.outputs))()
                found = entry.read() if entry.read else memory.outputs
                outputs.append({name: np.array(array) for name, array in found.items()})
                assert entry.trespass is None or entry.trespass() == ("", "")
            assert all(np.array_equal(outputs[0][n], outputs[1][n]) for n in outputs[1]), user.label
            layouts.add(user.layout)
    assert "NCHW" in layouts


def test_a_candidate_stands_still_while_it_is_not_asked(load):
    """Its threads do not work on the inputs as these are written, nor beside what is timed."""
    count = relu("counts", "import threading", "threading.Thread(target=count, daemon=True).start()")
    (user,) = load(
        "memory = []\ndef count():\n    while True:\n        memory[0][0] += 1\n"
        + count.replace("import threading", "import threading; memory[:] = [y[0]]")
    )
    entry = own.entry(user, ITEM, {})
    memory = fresh.Memory(ITEM)
    memory.draw()
    memory.refresh()
    entry.bind(dict(memory.inputs), dict(memory.outputs))()
    entry.process.pause()
    before = entry.read()["y"].copy()
    for _ in range(20):
        memory.refresh()
        assert np.array_equal(entry.read()["y"], before)


class Process:
    """What a trial asks of a candidate's process after a call."""

    def __init__(self, took_ms, mine=0, its=0):
        self.took, self.waited, self.pauses = int(took_ms * 1e6), (mine, its), 0

    def pause(self):
        self.pauses += 1


@pytest.fixture
def one(monkeypatch):
    """A trial whose candidate is 10 ms away."""
    monkeypatch.setattr(trial, "round_trip", lambda: SimpleNamespace(ms=10.0))
    found = trial.Trial(ITEM, timing.Entry("a", "a", lambda *given: None), None, Quick(), SETTINGS)
    calls = []
    found._run, found._poison = lambda: calls.append("run"), lambda: calls.append("poison")
    found.renew, found.calls = lambda: calls.append("renew"), calls
    return found


def test_the_way_there_is_taken_off(one):
    """And what is much shorter than the way counts as a tenth of it."""
    assert one._time_there(Process(30)) == pytest.approx(20)
    assert one._time_there(Process(10.5)) == one._time_there(Process(9)) == pytest.approx(1)
    assert one.calls == ["run"] * 3


def test_a_time_that_was_held_up_is_taken_again_on_new_inputs(one):
    process = Process(30, mine=10**6)
    one._time_there(process)
    assert one.calls == ["run"] and process.pauses == 1  # inputs that are compared stay as they are
    one.calls.clear()
    one._in_turn = True
    one._time_there(process)
    assert one.calls == ["run"] + ["renew", "poison", "run"] * 3 and process.pauses == 5


def test_a_time_that_was_held_up_is_void():
    assert not contained.held_up(Process(0.1))
    assert contained.held_up(Process(0.1, mine=50_000)) and contained.held_up(Process(0.1, its=50_000))
    # A long call is interrupted in any process; the judge's waking up is never its work.
    assert not contained.held_up(Process(9, its=500_000))
    assert contained.held_up(Process(9, mine=500_000)) and contained.held_up(Process(4.1, its=4 * 10**6))


def test_bench_goes_on_and_says_what_became_of_a_candidate(tmp_path, capsys, monkeypatch):
    """The command: a right candidate, one that exits, one whose `when` does; the exit status."""
    monkeypatch.setattr(clocks, "clock_for", lambda device, threads=None: Quick())
    texts = {
        "right": relu("right", "print('a word of its own')"),
        "exits": relu("exits", "os._exit(0)"),
        "asked": relu("asked").replace(")\ndef", ", when=lambda problem: os._exit(4))\ndef", 1),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(HEAD + text)
    files = [str(tmp_path / f"{name}.py") for name in texts]
    argv = ["bench", "--layers", "relu7", "--directions", "fwd", "--batch", "1", "--against", "none",
            "--device", "cpu", "--no-gate", "--rounds", "2", "--turn", "0", "--pause", "0"]  # fmt: skip
    assert main([*argv, *files, "--json", str(tmp_path / "run.json")]) == 1
    printed = capsys.readouterr()
    assert "exits: its process ended with exit status 0" in printed.out
    assert "right.py printed:\n  | a word of its own" in printed.err
    made = json.loads((tmp_path / "run.json").read_text())
    (row,) = made["rows"]
    found = {c["name"]: c for c in row["contenders"]}
    assert found["right"]["samples_ms"] and "contained" in found["right"]["marks"]
    assert found["right"]["facts"]["round_trip_us"] > 0 and found["exits"]["refused"]
    assert found["asked"]["refused"].startswith("its process ended with exit status 4")
    assert any(c["samples_ms"] for c in row["contenders"] if c["name"] == "vectors" or c["name"] == "maximum")
    assert main(["verify", str(tmp_path / "run.json"), "--kernel", files[0]]) == 0
    assert "right" not in {i.name for i in registry.implementations("relu_fprop", device="cpu")}


def test_a_file_that_takes_its_process_along_is_told_at_once(load, tmp_path, capsys):
    path = tmp_path / "dies.py"
    path.write_text("import os\nos._exit(0)\n")
    assert main(["bench", "--device", "cpu", str(path)]) == 1
    said = capsys.readouterr().err
    assert "could not be loaded: its process ended with exit status 0, without an answer" in said
    with pytest.raises(Lost):
        load("os._exit(3)\n")


def test_a_file_that_changes_while_it_is_loaded_is_refused(load):
    with pytest.raises(ck.ConvkitError, match="changed while it was loaded|could not|PermissionError"):
        load(relu("swaps") + "open(__file__, 'w').write('# another text')\n")
