"""Whole runs in processes of their own, killed at random moments, alone and under MPI.

Whenever a run is killed, it must end with the bits of one that was not.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mpiexec
import pytest
import runs
import trees
from conftest import need

from convkit.train.run_folder import RunFolder

need("safetensors")
need("sklearn")
need("cv2")
pytestmark = pytest.mark.slow

KILLS = 20
DIGITS = ("digits", "--set", "batch=32", "--set", "epochs=5")
SMALL = ("--set", "network.widths=0.25", "--checkpoint-steps", "3")


def command(folder: Path, *given: str) -> list[str]:
    return [sys.executable, "-m", "convkit", "train", "--output", str(folder), "--resume", *SMALL, *given]


def step(folder: Path) -> int:
    """The last step of which the log tells."""
    try:
        with open(folder / "steps.csv", newline="") as file:
            return max([int(row["step"] or 0) for row in csv.DictReader(file)], default=0)
    except (FileNotFoundError, ValueError, TypeError):  # a row may be half written
        return 0


def start(arguments: list[str], **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen[str]) -> str:
    """What a process has written, after its end with status 0."""
    _, written = process.communicate(timeout=300)
    assert process.returncode == 0, written
    return written


def reach(folder: Path, target: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run is at a step, or over."""
    while step(folder) < target and process.poll() is None:
        time.sleep(0.002)


def clean(folder: Path) -> None:
    assert not list(folder.glob(".*")), "drafts are left"


@pytest.mark.parametrize("source", [pytest.param("memory", marks=pytest.mark.thorough), "files"])
def test_twenty_kills(source, tmp_path):
    given = DIGITS
    if source == "files":
        tree = trees.make(tmp_path / "tree", classes=4, train=60, validation=4, height=40, width=48)
        given = (
            str(tree.root),
            "--workers",
            "2",
            "--set",
            "lr=0.003",
            "--set",
            "batch=8",
            "--set",
            "epochs=6",
        )
    finish(start(command(tmp_path / "whole", *given)))
    rng, kills, run = random.Random(0), 0, tmp_path / "run"
    while kills < KILLS:
        process = start(command(run, *given))
        reach(run, step(run) + rng.randint(1, 8), process)
        time.sleep(rng.random() * 0.03)  # into a checkpoint, a validation, or a step
        assert process.poll() is None, f"over after {kills} kills: {process.communicate()[1]}"
        process.kill()
        process.communicate(timeout=60)
        kills += 1
    finish(start(command(run, *given)))
    clean(run)
    runs.assert_same(run, tmp_path / "whole")


def test_ctrl_c_on_a_terminal_reaches_the_workers_too(tmp_path):
    """A terminal sends it to all processes of the group."""
    tree = trees.make(tmp_path / "tree", classes=2, train=20, validation=2)
    given = (str(tree.root), "--set", "batch=8", "--set", "epochs=5000", "--workers", "2")
    process = start(command(tmp_path / "run", *given), start_new_session=True)
    reach(tmp_path / "run", 12, process)
    os.killpg(process.pid, signal.SIGINT)
    _, written = process.communicate(timeout=60)
    assert process.returncode == 130, written
    assert written.count("\nconvkit train: stopped after step") == 1
    assert "Traceback" not in written and "warning" not in written
    assert RunFolder.open(tmp_path / "run").load().position["step"] == step(tmp_path / "run")


# -- many processes ------------------------------------------------------------------------------------
def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Processes of Python below mpiexec, by number."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields.split()[1]), name
    below = {process.pid}
    while more := {pid for pid, (parent, _) in parents.items() if parent in below} - below:
        below |= more
    return sorted(pid for pid in below if "python" in parents.get(pid, (0, ""))[1])


@pytest.mark.parametrize("count", [2, 4])
def test_a_rank_that_is_killed(count, tmp_path):
    given = (*DIGITS[:-1], "epochs=2")
    whole, run = tmp_path / "whole", tmp_path / "run"
    written = finish(start(mpiexec.command(count, *command(whole, *given))))
    assert written.count("epochs of 43 steps") == written.count("done: ") == 1
    for target in (7, 50):
        process = start(mpiexec.command(count, *command(run, *given)))
        reach(run, target, process)
        victims = ranks(process)
        assert len(victims) == count, process.communicate()
        os.kill(victims[-1], signal.SIGKILL)
        killed = time.monotonic()
        process.communicate(timeout=60)
        assert process.returncode
        print(f"{time.monotonic() - killed:.2f} s from the end of one rank to that of all")
        assert not any(Path(f"/proc/{pid}").exists() for pid in victims)
    finish(start(mpiexec.command(count, *command(run, *given))))
    runs.assert_same(run, whole)


def test_another_number_of_ranks_goes_on(tmp_path):
    run = tmp_path / "run"
    for count, epochs in ((2, 1), (4, 2), (1, 3)):
        written = finish(start(mpiexec.command(count, *command(run, "digits", "--set", f"epochs={epochs}"))))
        assert ("going on after step" in written) == (count != 2)
    assert RunFolder.open(run).load().position["epoch"] == 3


def test_sigterm_to_mpiexec(tmp_path):
    run = tmp_path / "run"
    process = start(mpiexec.command(2, *command(run, "digits", "--set", "epochs=3000")))
    reach(run, 12, process)
    process.send_signal(signal.SIGTERM)
    _, written = process.communicate(timeout=60)
    assert process.returncode == 143, written
    assert written.count("stopped after step") == 1
    assert RunFolder.open(run).load().position["step"] == step(run)


def test_errors_are_printed_once(tmp_path):
    process = start(mpiexec.command(4, *command(tmp_path / "run", "nowhere")))
    _, written = process.communicate(timeout=60)
    assert process.returncode == 2 and written.count("no such folder: nowhere") == 1
    process = start(mpiexec.command(4, *command(tmp_path / "run", "digits", "--set", "lr=1e30")))
    _, written = process.communicate(timeout=60)
    assert process.returncode == 1 and written.count("is not finite") == 1
