"""bench/loader.py: ratios are those of the same round, and a run of it writes what it printed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from conftest import need

FILE = Path(__file__).parents[2] / "bench" / "loader.py"


@pytest.fixture(scope="module")
def bench():
    import sys

    spec = importlib.util.spec_from_file_location("bench_loader", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_a_goal_is_met_or_missed_by_the_rounds_ratios(bench):
    rows = [
        bench.Row("core", "jpeg", "convkit", rates=[20.0, 60.0, 24.0]),
        bench.Row("core", "jpeg", bench.YARDSTICK, rates=[20.0, 30.0, 20.0]),
        bench.Row("core", "store", "convkit", rates=[200.0, 300.0, 200.0]),
    ]
    assert bench.ratios(rows) == {"jpeg": [1.0, 2.0, 1.2], "store": [10.0, 10.0, 10.0]}
    text = bench.shown(rows)
    assert "jpeg: 1.20 (1.00 to 2.00)" in text and text.count("missed") == 1 and text.count("met") == 1


def test_entries_that_make_another_input_are_refused(bench):
    fills = {bench.YARDSTICK: lambda _, x: x.fill(0), "mine": lambda _, x: x.fill(1)}
    with pytest.raises(SystemExit, match="mine makes another input"):
        bench.require_alike(fills, 2)


@pytest.mark.slow
def test_a_run(bench, tmp_path, capsys):
    for module in ("cv2", "PIL", "skimage"):
        need(module)
    file = tmp_path / "loader.json"
    options = ["--images", "8", "--rounds", "1", "--whole-rounds", "1", "--workers", "1", "--json", str(file)]
    assert bench.main(options) == 0
    document = json.loads(file.read_text())
    assert "goal 1.3" in capsys.readouterr().out
    assert all(len(row["rates"]) == 1 for row in document["rows"])
    assert {row["name"] for row in document["rows"]} >= {"convkit", bench.YARDSTICK, "1 process", "a thread"}
