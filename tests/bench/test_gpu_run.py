"""The GPU run (`bench/gpu.py`): its stages are processes that may hang, crash, or lack what they need.

Its rehearsal, which walks every stage, is a step of `.ci/run`.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from convkit import devices
from convkit.bench import work
from convkit.bench.peers import Missing
from convkit.check import inputs as fill
from convkit.check.cases import Case
from convkit.op import OPS

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import gpu  # noqa: E402
import gpu_page  # noqa: E402
import gpu_samples  # noqa: E402
import gpu_stages  # noqa: E402
import gpu_tools  # noqa: E402

STAGE = gpu.Stage("gate", "The gate", 100)


class Clock:
    """Time passes only where somebody waits: ten seconds at a time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += 10


def script(text: str, *passed: int):
    """What starts a process that runs a script; `folder` and the modules of bench/ are there."""
    started = []

    def start(stage: str, folder: Path) -> subprocess.Popen:
        head = f"import sys; sys.path.insert(0, {str(BENCH)!r})\nfrom pathlib import Path\n"
        code = f"{head}folder = Path({str(folder)!r})\n{text}"
        with open(folder / "errors.txt", "ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdout=errors,
                stderr=errors,
                pass_fds=passed,
                start_new_session=True,
            )
        started.append(process)
        return process

    start.started = started
    return start


WORKER = """
import os, gpu_stages
def run(key):
    if key == "b": BREAK
    return {"ok": True, "process": os.getpid()}
stage = gpu_stages.Work(lambda: ["a", "b", "c"], run, own=OWN)
sys.exit(gpu_stages.worker(stage, folder, USABLE))
"""


def worker(broken: str = "pass", usable: str = "lambda: True", own: str = "lambda key: True"):
    return script(WORKER.replace("BREAK", broken).replace("USABLE", usable).replace("OWN", own))


def by_key(found: dict) -> dict:
    return {r["key"]: r for r in found["records"]}


# ---------------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------------
def test_a_stage_that_hangs_is_ended_with_all_that_it_started():
    """What it had found by then is kept, and so is which task it hung in."""
    ends, begins = os.pipe()
    hang = f"""
import json, os, subprocess, threading
(folder / "tasks.json").write_text('["a", "b", "c"]')
(folder / "records-1.jsonl").write_text('{{"key": "a", "ok": true}}\\n{{"key": "b", "o')
(folder / "0.claim").write_text("a"); (folder / "1.claim").write_text("b")
wait = "import threading; threading.Event().wait()"
child = subprocess.Popen([sys.executable, "-c", wait], pass_fds=[{begins}])
os.write({begins}, b"x")
threading.Event().wait()
"""
    clock, begun = Clock(), []

    def pause(seconds: float) -> None:
        if not begun:  # time stands still until it hangs
            begun.append(os.read(ends, 1))
        clock.pause(seconds)

    start = script(hang, begins)
    found = gpu.run_stage(STAGE, 35, {}, start=start, now=clock.now, pause=pause)
    os.close(begins)
    # Nobody has the other end any more: the process of the process is gone too.
    assert select.select([ends], [], [], 20)[0] and os.read(ends, 1) == b""
    os.close(ends)
    assert start.started[0].poll() is not None
    assert (
        found["status"] == "stopped" and "limit of 35 s; 1 of 3" in found["note"] and found["seconds"] == 40
    )
    assert by_key(found) == {"a": {"key": "a", "ok": True}, "b": {"key": "b", "stopped": True}}


def test_a_crash_costs_the_task_that_made_it():
    start = worker("os.abort()")
    found = gpu.run_stage(STAGE, 100, {}, start=start)
    records = by_key(found)
    assert found["status"] == "done" and len(start.started) == 2
    assert records["a"]["ok"] and records["c"]["ok"] and records["a"]["process"] != records["c"]["process"]
    assert records["b"]["ok"] is False and "process ended" in records["b"]["error"]
    assert list(records) == ["a", "b", "c"]


def test_a_context_that_is_lost_is_left_behind():
    """After an illegal access every later call fails: another process goes on."""
    lost = worker("globals().update(lost=True)", "lambda: 'lost' not in globals()")
    records = by_key(gpu.run_stage(STAGE, 100, {}, start=lost))
    assert all(r["ok"] for r in records.values()) and len(lost.started) == 2
    assert records["a"]["process"] == records["b"]["process"] != records["c"]["process"]


def test_an_exception_is_a_record():
    start = worker("raise ArithmeticError('no')")
    found = gpu.run_stage(STAGE, 100, {}, start=start)
    assert found["status"] == "done" and len(start.started) == 1
    assert "ArithmeticError: no" in by_key(found)["b"]["error"] and gpu.failed({"stages": [found]}) == [
        "gate/b"
    ]
    # A peer's fault is none of convkit's.
    found = gpu.run_stage(
        STAGE, 100, {}, start=worker("raise ArithmeticError('no')", own="lambda key: key != 'b'")
    )
    assert by_key(found)["b"]["ok"] is None and not gpu.failed({"stages": [found]})


def test_who_cannot_start_at_all_does_not_start_for_ever():
    start = script("raise SystemExit('no such thing')")
    found = gpu.run_stage(STAGE, 100, {}, start=start)
    assert found["status"] == "unfinished" and "no such thing" in found["note"] and len(start.started) == 1


def test_processes_share_the_tasks():
    """Each task is done once, by whoever comes first."""
    start = worker()
    found = gpu.run_stage(STAGE, 100, {}, workers=2, start=start)
    assert found["status"] == "done" and list(by_key(found)) == ["a", "b", "c"] and len(start.started) == 2


MISSING = """
import gpu_stages
from convkit.bench.peers import Missing
def refuse(*key): raise Missing("no such tool here")
sys.exit(gpu_stages.worker(gpu_stages.Work(lambda: ["a"], refuse, WHERE), folder))
"""


def test_what_is_missing_is_said_and_costs_nothing_else():
    found = gpu.run_stage(STAGE, 100, {}, start=script(MISSING.replace("WHERE", "refuse")))
    assert (found["status"], found["note"], found["records"]) == ("not run", "no such tool here", [])
    found = gpu.run_stage(STAGE, 100, {}, start=script(MISSING.replace("WHERE", "lambda: None")))
    (record,) = found["records"]
    assert found["status"] == "done" and record["not_run"] == "no such tool here" and "ok" not in record
    assert not gpu.failed({"stages": [found]})


def test_tools_that_are_not_there(monkeypatch, tmp_path):

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_tools, "PLACES", (str(tmp_path), str(tmp_path)))
    with pytest.raises(Missing, match="ncu was not found"):
        gpu_tools.tool("ncu")
    (tmp_path / "2025.3").mkdir()
    (tmp_path / "2025.3" / "ncu").write_text("")
    (tmp_path / "2025.3" / "ncu").chmod(0o755)
    assert gpu_tools.tool("ncu") == str(tmp_path / "2025.3" / "ncu")


# ---------------------------------------------------------------------------------------------------
# The run and its files
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def run(monkeypatch, tmp_path):
    """The run with two stages of the tasks a, b and c; returns (exit status, documents, processes)."""
    about = {"device": "a/b c", "cpu": "a CPU", "python": "3.12"}
    monkeypatch.setattr(devices, "gpu_found", lambda *_: True)
    monkeypatch.setattr(gpu, "machine", lambda: about)
    monkeypatch.setattr(gpu, "kernel_hashes", lambda: {"a.cu": "0"})
    monkeypatch.setattr(gpu, "STAGES", (STAGE, gpu.Stage("layers", "The layers", 100)))
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    stamps = iter(f"2026010{n}" for n in range(1, 9))
    monkeypatch.setattr(gpu.time, "strftime", lambda form: next(stamps) if form == "%Y%m%d-%H%M%S" else "now")

    def call(*options: str, start=None):
        start = start or worker()
        monkeypatch.setattr(gpu, "start_worker", start)
        status = gpu.main(["--out", str(tmp_path), *options])
        files = sorted(tmp_path.glob("*.json.gz"))
        return status, [gpu.load(path) for path in files], start.started

    return call


def test_a_run_leaves_two_files(run, tmp_path, capsys):
    status, (document,), started = run()
    assert status == 0 and len(started) == 2 and "2 tasks" not in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["gpu-a-b-c-20260101.html", "gpu-a-b-c-20260101.json.gz"] and len(names) <= gpu.MOST_FILES
    assert [s["status"] for s in document["stages"]] == ["done", "done"] and not gpu.fault_of(document)
    page = (tmp_path / names[0]).read_text()
    assert "a/b c" in page and "The layers" in page and not re.search(r"https?:|<script|src=", page)


def test_a_run_after_another_does_what_is_left(run, tmp_path):
    status, _, started = run(start=worker("raise ArithmeticError('no')"))
    assert status == 1
    (first,) = tmp_path.glob("*.json.gz")
    status, (_, second), started = run("--after", str(first))
    assert status == 0 and second["after"] == first.name
    own = {p.pid for p in started}
    for stage in second["stages"]:
        records = by_key(stage)
        assert list(records) == ["a", "b", "c"] and stage["status"] == "done"
        assert {k for k, r in records.items() if r["process"] in own} == {"b"}


def test_nothing_is_taken_over_from_other_kernels_or_another_gpu(capsys):
    records = [
        {"key": "a", "ok": True}, {"key": "b", "stopped": True}, {"key": "c", "ok": False},
        {"key": "d", "ok": False, "error": "e"}, {"key": "e", "not_run": "f"},
    ]  # fmt: skip
    stages = [{"name": "gate", "records": records}]
    earlier = {"kernels": {"a": "1"}, "machine": {"device": "x"}, "stages": stages}
    assert set(gpu.kept(earlier, earlier)["gate"]) == {"a", "c"} and gpu.kept(None, earlier) == {}
    assert gpu.kept(earlier, {**earlier, "kernels": {"a": "2"}}) == {}
    assert gpu.kept(earlier, {**earlier, "machine": {"device": "y"}}) == {}
    assert "kernels have changed" in capsys.readouterr().out


def test_stages_that_no_time_is_left_for_are_named(run):
    status, (document,), started = run("--minutes", "0.1")
    assert status == 0 and not started
    assert [(s["status"], s["note"]) for s in document["stages"]] == [("not reached", "no time was left")] * 2


def test_after_something_else(run, tmp_path, capsys):
    (tmp_path / "other.json.gz").write_bytes(gpu.gzip.compress(b'{"schema": "other"}'))
    assert gpu.main(["--out", str(tmp_path), "--after", str(tmp_path / "other.json.gz")]) == 2
    assert "is no result of bench/gpu.py" in capsys.readouterr().err
    assert gpu.main(["--out", str(tmp_path), "--after", str(tmp_path / "none")]) == 2


def test_documents_are_looked_at():
    stage = {"name": "gate", "status": "done", "records": [{"key": "a", "ok": None}]}
    good = {"schema": gpu.SCHEMA, "machine": {}, "kernels": {}, "stages": [stage]}
    assert gpu.fault_of(good) == ""
    for bad in ({"schema": "x"}, {"machine": 1}, {"stages": [{**stage, "name": "x"}]},
                {"stages": [{**stage, "status": "x"}]}, {"stages": [{**stage, "records": [{}]}]},
                {"stages": [{**stage, "records": [{"key": "a", "ok": "yes"}]}]}):  # fmt: skip
        assert gpu.fault_of({**good, **bad})


def test_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(devices, "gpu_found", lambda *_: False)
    assert gpu.main(["--out", str(tmp_path)]) == 0
    assert "nothing was run, nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_make_gpu_builds_nothing():
    """The machine reaches no registry."""
    if shutil.which("make") is None:
        assert not os.environ.get("CI"), "CI must have make"
        pytest.skip("no make")
    done = subprocess.run(
        ["make", "-n", "gpu", "PYTHON=python3", "ARGS=--minutes 4"],
        cwd=BENCH.parent,
        capture_output=True,
        text=True,
    )
    commands = [line for line in done.stdout.splitlines() if not line.startswith(("echo", "make"))]
    assert commands == ["python3 bench/gpu.py --minutes 4"], done.stdout + done.stderr


def test_a_page_escapes_what_it_is_told():
    stage = {"name": "compile", "title": "t", "status": "unfinished", "note": "<b>", "seconds": 1, "limit": 1,
             "tasks": 1, "records": [{"key": "<i>", "ok": False, "error": "<u>"}]}  # fmt: skip
    page = gpu_page.page({"machine": {"device": "<s>"}, "stages": [stage]})
    assert not re.search("<(b|i|u|s)>", page) and "&lt;u&gt;" in page


# ---------------------------------------------------------------------------------------------------
# A Python with few packages
# ---------------------------------------------------------------------------------------------------
def test_what_is_not_listed_is_not_installed():
    code = f"""
import sys; sys.path[:0] = [{str(BENCH)!r}, {str(BENCH.parent)!r}]
import gpu_rehearse
gpu_rehearse.limit_imports()
import importlib.util
for name in ("hypothesis", "pytest", "xdist", "matplotlib", "onnxruntime"):
    assert importlib.util.find_spec(name) is None, name
import numpy, tabulate, convkit, sysconfig
from importlib import metadata
assert metadata.version("numpy") == numpy.__version__
sysconfig.get_config_var("MULTIARCH")
from convkit.cpu import extension as native
assert native.kernels() is None and native.kernels_missing()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = (BENCH / "gpu-packages.txt").read_text()
    lines = [line for line in listed.splitlines() if line and not line.startswith("#")]
    assert not any(line.startswith(("nvidia-cudnn-frontend", "nvidia-cuda-cccl", "pytest")) for line in lines)
    assert all(len(line.split()) >= 2 for line in lines)


# ---------------------------------------------------------------------------------------------------
# Sampled outputs
# ---------------------------------------------------------------------------------------------------
def sampled_items() -> dict[str, work.Item]:
    """A small item for each op that is verified so."""
    text = "3,4,11,8,6,3,2,stride=2x1,pad=1x2,dilation=1x2,groups=2"
    found = {i.op: i for i in work.items(work.Wanted(convs=(text,)))}
    for item in work.items(work.Wanted(batches=(3,), directions=work.DIRECTIONS)):
        if item.op in gpu_samples.SAMPLED and item.op not in found and "+" not in item.layer:
            found[item.op] = smaller(item)
    return found


def smaller(item: work.Item) -> work.Item:
    g = item.problem
    if hasattr(g, "dims"):
        return replace(item, problem=replace(g, dims=(3, *(min(d, 12) for d in g.dims[1:]))))
    names = {"C": 12, "K": 12, "H": 9, "W": 11, "P": 5, "Q": 4}
    given = {f.name: getattr(g, f.name) for f in fields(g) if f.name in names}
    return replace(item, problem=replace(g, **{n: min(v, names[n]) for n, v in given.items()}))


def test_samples_tell_right_from_wrong():
    items = sampled_items()
    assert set(items) == set(gpu_samples.SAMPLED)
    for op, item in items.items():
        case = Case(op, item.problem, "small", absent=item.absent)
        inputs = {n: a for n, a in fill.make(case, 7).items() if a is not None}
        given = {n: inputs.get(n) for n in OPS[op].inputs}
        whole = OPS[op].evaluate(item.problem, given, dict(item.options))
        good = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in whole.items()}
        sample = gpu_samples.Sample(item, inputs)
        found = sample.verdict(good, "fp32", own=True)
        assert found["ok"] and found["checked"] > 40, (op, found)
        for name, array in good.items():
            if array.dtype.kind != "f":
                assert not sample.verdict({**good, name: array + 1}, "fp32", own=True)["ok"], op
                assert sample.verdict({**good, name: array + 1}, "fp32", own=False)["ok"], op
                continue
            for wrong in (array * np.float32(1.001), np.full_like(array, np.nan), array[::-1]):
                assert not sample.verdict({**good, name: wrong}, "fp32", own=True)["ok"], op
            assert sample.verdict({**good, name: array * np.float32(1.0005)}, "tf32", own=True)["ok"], op
        assert not sample.verdict({}, "fp32", own=True)["ok"]


def test_metrics_of_nsight_compute():
    head = '"ID","Section Name","Metric Name","Metric Unit","Metric Value"'
    text = f'==PROF== Connected\n{head}\n"0","S","Duration","us","1,5"\n'
    assert gpu_tools.metrics(text) == [["S", "Duration", "us", "1,5"]] and gpu_tools.metrics("nothing") == []


def test_the_stages_are_all_there():
    """Each has work, and their limits are the nine minutes."""
    assert set(gpu_stages.WORK) == {s.name for s in gpu.STAGES} and sum(s.seconds for s in gpu.STAGES) == 540
    assert len(gpu_stages.gates()) == 3 * len(gpu_stages.gates()[::3]) and json.dumps(
        gpu_stages.compilations()
    )
    items = gpu_stages.gpu_race.layer_items()
    assert all(i.batch == 128 for i in items.values()) and {i.dtype for i in items.values()} == {
        "float32",
        "bfloat16",
    }
    assert next(iter(items)).startswith("alexnet-paper/conv1/conv2d_fprop/N=128/float32/fp32")
    grades = set(gpu_stages.gpu_race.OPTIONS)
    assert {t.split("/")[1] for t in gpu_stages.preset_tasks()} == grades == set(gpu_stages.gpu_race.LOGITS)
    steps = gpu_stages.gpu_race.step_tasks()
    assert {t.split("/")[1] for t in steps if t.startswith("convkit")} == {"fp32", "tf32", "bf16"}
