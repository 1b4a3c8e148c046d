"""All that needs a GPU, in one run of some minutes: is every kernel right, and how fast is it beside others.

    make gpu                                 on a GPU machine, as it is: nothing is installed or built
    python3 bench/gpu.py --minutes 9         the same
    python3 bench/gpu.py --after FILE        goes on where an earlier run's file ended
    python bench/gpu.py --rehearse           walks every stage without a GPU, on a stand-in for CuPy

Stages come in the order of their value, each in processes of its own and with a limit of its own: a CUDA
error that leaves a process useless costs the task that made it. Two files are written, anew as each stage
ends: JSON with every raw sample, compressed, and a page of it. Where there is no GPU it says so, writes
nothing, and exits with 0; exit status 1 where a check failed. `gpu_stages` has what the stages do.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for _folder in (HERE, HERE.parent):  # this checkout's convkit, whatever is installed
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

RESULTS = HERE / "results"
SCHEMA = "convkit-gpu-run/1"
TOOLKIT = "/usr/local/cuda"
#: Set where a stand-in takes CuPy's place.
REHEARSAL = "CONVKIT_GPU_REHEARSAL"
#: No run leaves more files.
MOST_FILES = 6
#: Seconds kept for the last writing; and below which no stage is begun.
RESERVE, LEAST = 8.0, 5.0
#: Processes of a stage that may take the place of those that ended early.
RESTARTS = 12
#: Seconds between two writings while a stage runs.
SAVED_EVERY = 10.0
STATUSES = ("done", "not run", "stopped", "unfinished", "not reached")
Document = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A part of the run: its seconds of nine minutes, and how many processes it may be spread over."""

    name: str
    title: str
    seconds: float
    wide: int = 1


STAGES = (
    Stage("compile", "Every kernel and dtype, compiled for this GPU", 45, wide=16),
    Stage("gate", "The quick gate of every kernel and dtype", 90, wide=16),
    Stage("presets", "Each preset's step at batch 2, call by call against float64", 75, wide=4),
    Stage("ceilings", "What the GPU can do at most", 20),
    Stage("layers", "AlexNet's layers at N = 128, against cuDNN and PyTorch", 140),
    Stage("steps", "Whole training steps, against PyTorch", 85),
    Stage("sanitizer", "compute-sanitizer on small cases", 45),
    Stage("profile", "Nsight Compute on five kernels", 40),
)


# ---------------------------------------------------------------------------------------------------
# One stage
# ---------------------------------------------------------------------------------------------------
Start = Callable[[str, Path], "subprocess.Popen[bytes]"]


def start_worker(stage: str, folder: Path) -> subprocess.Popen[bytes]:
    """A process that works on a stage's tasks, in a group of its own, so that all of it can be ended."""
    environment = dict(os.environ)
    if (wide := next(s for s in STAGES if s.name == stage).wide) > 1:
        for name in ("OPENBLAS", "OMP", "MKL", "CONVKIT"):
            environment[f"{name}_NUM_THREADS"] = str(max(1, cores() // wide))
    if Path(TOOLKIT).is_dir():  # where no wheel has CUDA's headers
        environment.setdefault("CUDA_HOME", TOOLKIT)
    with open(folder / "errors.txt", "ab") as errors:
        return subprocess.Popen(
            [sys.executable, str(HERE / "gpu.py"), "--worker", stage, str(folder)],
            stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment, start_new_session=True,
        )  # fmt: skip


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run_stage(
    stage: Stage,
    limit: float,
    done: Mapping[str, Any],
    *,
    workers: int = 1,
    start: Start | None = None,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
    tick: Callable[[Document], None] = lambda found: None,
) -> Document:
    """Run a stage's tasks in processes, as long as its limit lets them.

    Parameters
    ----------
    stage : Stage
    limit : float
        Seconds.
    done : mapping
        Records of an earlier run, by key: their tasks are not done again.
    workers : int
        Processes at a time; they take tasks as they come free.
    start, now, pause : callable
        What starts a process, tells the time, and waits.
    tick : callable
        Called every `SAVED_EVERY` seconds with what there is so far.

    Returns
    -------
    dict
        As a document has it; `gather` says what is in it.
    """
    start, began = start or start_worker, now()
    saved = began
    ended: list[int] = []
    stopped = False
    with tempfile.TemporaryDirectory(prefix="convkit-gpu-") as name:
        folder = Path(name)
        (folder / "done.json").write_text(json.dumps(sorted(done)), encoding="utf-8")
        running: list[subprocess.Popen[bytes]] = []
        try:
            running += [start(stage.name, folder) for _ in range(workers)]
            while True:
                for process in [p for p in running if p.poll() is not None]:
                    running.remove(process)
                    if process.returncode:
                        ended.append(process.returncode)
                        if len(ended) <= RESTARTS and _unclaimed(folder):
                            running.append(start(stage.name, folder))
                if not running:
                    break
                if now() - began >= limit:
                    stopped = True
                    break
                if now() - saved >= SAVED_EVERY:
                    saved = now()
                    tick(gather(stage, folder, limit, now() - began, done, ended, False))
                pause(0.02)
        finally:
            for process in running:
                end(process)
        return gather(stage, folder, limit, now() - began, done, ended, stopped)


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise


def _unclaimed(folder: Path) -> bool:
    """Whether a task is left that no worker has begun."""
    tasks = _read(folder / "tasks.json", [])
    begun = {path.read_text(encoding="utf-8") for path in folder.glob("*.claim")}
    return bool(set(tasks) - begun - set(_read(folder / "done.json", [])))


def gather(
    stage: Stage, folder: Path, limit: float, seconds: float, done: Mapping[str, Any], ended: list[int],
    stopped: bool,
) -> Document:  # fmt: skip
    """What a stage has found: "status", "note", and a record for each task, in the order of the tasks.

    A task that was begun and has no record is one in which the process ended, or which was stopped.
    """
    records = dict(done)
    for path in folder.glob("records-*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # the last line of a process that was ended may be cut off
                record = json.loads(line)
                records[record["key"]] = record
    tail = ""
    if (folder / "errors.txt").exists():
        lines = (folder / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        tail = lines[-1][-300:] if lines else ""
    tasks = _read(folder / "tasks.json", [])
    for path in folder.glob("*.claim"):
        key = path.read_text(encoding="utf-8")
        if key and key not in records:
            what = {"stopped": True} if stopped else {"ok": False, "error": f"its process ended: {tail}"}
            records[key] = {"key": key, **what}
    finished = [r for r in records.values() if not r.get("stopped")]
    not_run = _read(folder / "not_run.json", "")
    if not_run and not records:
        status, note = "not run", not_run
    elif stopped:
        status, note = "stopped", f"at its limit of {limit:.0f} s; {len(finished)} of {len(tasks)} tasks done"
    elif tasks and len(finished) >= len(tasks):
        status, note = "done", ""
    else:
        status = "unfinished"
        note = f"{len(finished)} of {len(tasks)} tasks done; {len(ended)} processes ended early: {tail}"
    order = {key: number for number, key in enumerate(tasks)}
    return {
        "name": stage.name, "title": stage.title, "status": status, "note": note,
        "seconds": round(seconds, 3), "limit": round(limit, 3), "tasks": len(tasks),
        "records": sorted(records.values(), key=lambda r: order.get(r["key"], len(order))),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# The files
# ---------------------------------------------------------------------------------------------------
def write(document: Document, path: Path) -> None:
    """The JSON and the page, each whole or as it was."""
    import gpu_page

    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    page = path.with_name(path.name.removesuffix(".json.gz") + ".html")
    for target, data in (
        (path, gzip.compress(text.encode(), mtime=0)),
        (page, gpu_page.page(document).encode()),
    ):
        beside = target.with_name(f".{target.name}.new")
        beside.write_bytes(data)
        os.replace(beside, target)


def load(path: Path) -> Document:
    """A document that `write` has written."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    if fault := fault_of(document):
        raise ValueError(f"{path}: {fault}")
    return document


def fault_of(document: Any) -> str:
    """What is wrong with a document; an empty string if it is one."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return f"is no result of bench/gpu.py ({SCHEMA})"
    if not isinstance(document.get("machine"), dict) or not isinstance(document.get("kernels"), dict):
        return "has no machine, or no kernels"
    names = [s.name for s in STAGES]
    for stage in document.get("stages", [None]):
        if not isinstance(stage, dict) or stage.get("name") not in names:
            return "has a stage that is none"
        if stage.get("status") not in STATUSES or not isinstance(stage.get("records"), list):
            return f"{stage['name']}: has no status, or no records"
        for record in stage["records"]:
            if not isinstance(record, dict) or not isinstance(record.get("key"), str):
                return f"{stage['name']}: has a record without a key"
            if record.get("ok", None) not in (True, False, None):
                return f"{stage['name']}/{record['key']}: `ok` is neither true nor false"
    return ""


def kept(earlier: Document | None, document: Document) -> dict[str, dict]:
    """Records of an earlier run that need not be made again, by stage; of the same kernels and GPU alone."""
    if earlier is None:
        return {}
    if earlier["kernels"] != document["kernels"]:
        print("--after: the kernels have changed since: everything is done again")
        return {}
    if earlier["machine"].get("device") != document["machine"].get("device"):
        print("--after: that was another GPU: everything is done again")
        return {}
    return {
        stage["name"]: {
            r["key"]: r for r in stage["records"]
            if not (r.get("stopped") or r.get("error") or r.get("not_run"))
        }
        for stage in earlier["stages"]
    }  # fmt: skip


def failed(document: Document) -> list[str]:
    """Tasks whose check failed."""
    return [
        f"{stage['name']}/{record['key']}"
        for stage in document["stages"]
        for record in stage["records"]
        if record.get("ok") is False
    ]


# ---------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------
def machine() -> Document:
    """What ran it: device, driver, versions."""
    from convkit.bench.results import files
    from convkit.bench.results import machine as on

    found = on.machine("cuda")
    plain = {
        **(found["gpu"] or {}),
        **{k: v for k, v in found.items() if k != "gpu"},
        "device": found["name"],
    }
    return {**files.plain(plain), **files.commit()}


def kernel_hashes() -> dict[str, str]:
    """SHA-256 of each kernel file and of what they include: a figure belongs to a source."""
    from convkit.bench.results import sources
    from convkit.paths import kernels_dir

    files = sorted([*kernels_dir().glob("*.cu"), *kernels_dir().glob("*.cuh")])
    return {path.name: sources.sha256(path) for path in files}


def line(stage: Document) -> str:
    """A stage in a line."""
    wrong = sum(r.get("ok") is False for r in stage["records"])
    note = f"  ({stage['note']})" if stage["note"] else ""
    failures = f", {wrong} FAILED" if wrong else ""
    return (
        f"{stage['name']:10} {stage['status']:11} {stage['seconds']:6.1f} s"
        f"  {len(stage['records']):4} tasks{failures}{note}"
    )


def run(args: argparse.Namespace, each: Callable[[Document], None]) -> tuple[Document, Path]:
    """Every stage that the minutes suffice for; what was found, and the file that has it.

    `each` is called with each stage as it ends; its file has been written by then.
    """
    began = time.monotonic()
    earlier = load(args.after) if args.after else None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    document: Document = {
        "schema": SCHEMA, "machine": machine(), "kernels": kernel_hashes(), "minutes": args.minutes,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "after": args.after.name if args.after else None,
        "stages": [],
    }  # fmt: skip
    done = kept(earlier, document)
    args.out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", str(document["machine"]["device"]))
    path = args.out / f"gpu-{name}-{stamp}.json.gz"
    stages: list[Document] = document["stages"]

    def save(found: Document | None = None) -> None:
        seconds = round(time.monotonic() - began, 3)
        write({**document, "seconds": seconds, "stages": [*stages, *([found] if found else [])]}, path)

    for stage in STAGES:
        left = args.minutes * 60 - RESERVE - (time.monotonic() - began)
        limit = min(stage.seconds * args.minutes / 9, left)
        mine = done.get(stage.name, {})
        if (args.stages and stage.name not in args.stages) or limit < min(LEAST, stage.seconds):
            note = "not asked for" if args.stages and stage.name not in args.stages else "no time was left"
            found = {
                "name": stage.name, "title": stage.title, "status": "not reached", "note": note,
                "seconds": 0, "limit": 0, "tasks": len(mine), "records": list(mine.values()),
            }  # fmt: skip
        else:
            workers = max(1, min(stage.wide, cores() - 1))
            found = run_stage(stage, limit, mine, workers=workers, tick=save)
        stages.append(found)
        save()
        each(found)
    return {**document, "seconds": round(time.monotonic() - began, 3)}, path


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (["--worker"], ["--cases"], ["--profiled"]):
        import gpu_common  # noqa: F401  (a rehearsal limits what can be imported, before anything is)
        import gpu_stages

        return gpu_stages.child(argv[0], argv[1:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="all that it may take (default: 9)")
    parser.add_argument("--after", type=Path, metavar="FILE", help="go on where this run's .json.gz ended")
    parser.add_argument("--stages", nargs="+", choices=[s.name for s in STAGES], help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files (bench/results)")
    parser.add_argument("--rehearse", action="store_true", help="walk every stage without a GPU")
    args = parser.parse_args(argv)
    if args.rehearse:
        import gpu_rehearse

        return gpu_rehearse.main()
    from convkit import devices

    if not devices.gpu_found():
        print("no GPU was found (CuPy is not installed, or sees none): nothing was run, nothing was written")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what it has started
    try:
        document, path = run(args, lambda stage: print(line(stage), flush=True))
    except (OSError, ValueError) as error:  # --after names something else
        print(f"bench/gpu.py: {error}", file=sys.stderr)
        return 2
    wrong = failed(document)
    for name in wrong[:30]:
        print(f"FAILED: {name}")
    print(f"{document['seconds']:.0f} s; written: {path} and its page")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
