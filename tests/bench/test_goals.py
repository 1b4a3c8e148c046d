"""bench/goals.py: verdicts of result files whose times are made up, and the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from convkit.bench import steps, work
from convkit.bench.geometries import GEOMETRIES
from convkit.bench.results import apart, figures, files
from convkit.bench.results.run import new_row

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import goals  # noqa: E402

CEILINGS = {"fma": {"unit": "GFLOP/s", "value": 1e9, "samples": [1e9]}}
SETTINGS = {"rounds": 7, "cache": "cold", "against": [], "environment": {}}


def row(item, **ms):
    """A row in which convkit and the others take these times; a list is round by round."""
    made = {**new_row(item), "contenders": []}
    for name, times in ms.items():
        rounds = times if isinstance(times, list) else [times] * 7
        library = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "jax": "JAX"}.get(name, name)
        entry = files.absent(name, library, "")
        marks = ["picked"] if name == "convkit" else []
        made["contenders"].append({**entry, "marks": marks, "samples_ms": [[t] for t in rounds]})
    return figures.summarise(made, CEILINGS, SETTINGS)


def verdicts(*rows):
    return {(v.goal.name, v.goal.over, v.goal.against): v for v in goals.evaluate(rows)}


def test_every_goal_names_rows_that_the_bench_has():
    """What a goal speaks of is what the commands of `RUNS` measure."""
    ids = {item.id for item in work.items(work.Wanted(geometries=tuple(GEOMETRIES)))}
    ids |= {item.id for item in work.items(work.Wanted(directions=work.DIRECTIONS))}
    ids |= {item.id for item in apart.first_calls()}
    for op in work.NETWORK_OPS:
        for preset in ("paper", "owt"):
            ids |= {i.id for i in steps.items(work.Wanted(preset=preset, batches=(1, 16, 128)), op)}
    for goal in goals.GOALS:
        wanted = goal.rows if isinstance(goal.rows, tuple) else (goal.rows,)
        for pattern in wanted:
            assert any(goals.fnmatch(i, pattern) for i in ids), (goal.name, pattern)
    (median, least) = (g for g in goals.GOALS if g.over)
    assert sum(goals.fnmatch(i, median.rows) for i in ids) == 3 * len(GEOMETRIES)
    assert median.rows == least.rows


def test_a_goal_is_reached_missed_or_not_spoken_of():
    assert goals.evaluate([]) == []
    step = steps.step("paper", 16)
    found = goals.evaluate([row(step, convkit=10.0, torch=36.0, jax=11.0)])  # JAX is no part of this goal
    assert [(v.measured, v.reached, v.clear) for v in found] == [(3.6, True, True)]
    found = goals.evaluate([row(step, convkit=10.0, torch=34.0)])
    assert [(v.measured, v.reached) for v in found] == [(3.4, False)] and "torch" in found[0].what
    spread = [30.0, 38.0, 36.0, 31.0, 35.5, 40.0, 33.0]
    (near,) = goals.evaluate([row(step, convkit=10.0, torch=spread)])
    assert not near.clear and "within the interval" in goals.table([near])
    assert goals.evaluate([row(step, convkit=10.0, jax=40.0)]) == []  # PyTorch was not there


def test_several_rows_count_together_once_all_are_there():
    rows = work.items(work.Wanted(layers=("norm1+pool1",)))
    assert [item.direction for item in rows] == ["fwd", "dgrad"]
    first = row(rows[0], convkit=1.0, torch=20.0, jax=12.0)
    assert goals.evaluate([first]) == []
    (both,) = goals.evaluate([first, row(rows[1], convkit=3.0, torch=60.0)])
    assert both.measured == 18.0 and both.reached and both.what == "2 rows"


def test_goals_over_many_rows_and_absolute_ones():
    items = work.items(work.Wanted(geometries=("vgg-1.1",)))
    rows = [row(item, convkit=10.0, torch=ms) for item, ms in zip(items, (5.0, 20.0, 30.0))]
    median, least = goals.evaluate(rows)
    assert (median.measured, median.reached, least.measured, least.reached) == (2.0, True, 0.5, False)
    assert "conv2d_fprop" in least.what
    memory = row(steps.step("paper", 128, work.MEMORY), convkit=[1500.0], torch=[3000.0])
    assert [(v.measured, v.reached) for v in goals.evaluate([memory])] == [(1500.0, True), (2.0, True)]
    (first,) = goals.evaluate([row(apart.first_calls()[0], convkit=80.0)])
    assert not first.reached and "<= 50" in goals.table([first])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "goals.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_judges_result_files(tmp_path):
    machine = {"device": "cpu", "name": "a CPU", "threads": 2, "isa": "v3"}
    made = files.new(["bench"], machine=machine, settings=SETTINGS, ceilings=CEILINGS)
    made["rows"].append(row(steps.step("paper", 1), convkit=10.0, torch=40.0))
    files.write(made, tmp_path / "a.json")
    done = run(str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stderr
    assert "step, paper, N = 1" in done.stdout and "reached" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such.json"], "cannot read no/such.json"),
        (["--folder", "no/such/folder"], "there is no folder no/such/folder"),
    ],
)
def test_bad_input_gets_a_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr
