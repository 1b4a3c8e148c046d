"""Memory and first calls: processes of their own, the rows that they make, and what is not said of these."""

from __future__ import annotations

import json
import math

import pytest
from conftest import need

from convkit.bench import steps, work
from convkit.bench.measure.entry import Settings
from convkit.bench.results import apart, child, figures, files, verify
from convkit.bench.show import report, tables
from convkit.check.tolerance import relative_rms
from convkit.cli import main

QUICK = ["--device", "cpu", "--quick", "--rounds", "2", "--pause", "0"]
SMALL = {"op": "lrn_fprop", "problem": {"N": 1, "C": 8, "H": 5, "W": 5, "size": 5}}


@pytest.fixture
def quick_ceilings(monkeypatch):
    from convkit.bench.measure import clocks

    made = {"unit": "GFLOP/s", "value": 1e6, "samples": [1e6], "method": "made up"}
    monkeypatch.setattr(clocks.CpuClock, "ceilings", lambda self: {"fma": made})


def asked(monkeypatch, answers):
    """Processes that answer at once: the next of an entry's answers, a number or an error."""
    order = []

    def ask(entry):
        order.append(entry.name)
        answer = answers[entry.name].pop(0)
        if isinstance(answer, str):
            raise apart.ChildError(answer)
        return answer

    monkeypatch.setattr(apart, "_ask", ask)
    return order


def test_processes_take_turns_and_one_that_fails_is_out(monkeypatch):
    item = apart.first_calls()[0]
    found, lacking = apart.entries(item, "cpu", ["torch", "jax"])
    assert [e.name for e in found] == ["convkit", "torch"] and "compiles" in lacking["jax"]
    order = asked(monkeypatch, {"convkit": [3.0, 4.0, 5.0], "torch": [1.0, "it broke"]})
    result = apart.race(item, found, None, Settings(rounds=3, pause_s=0), lambda text: None)
    assert result.samples == {"convkit": [[3.0], [4.0], [5.0]]}
    assert result.refused == {"torch": "it broke"} and order.count("torch") == 2


def test_memory_is_measured_once(monkeypatch):
    item = steps.step("paper", 2, work.MEMORY)
    found, lacking = apart.entries(item, "cpu", ["torch", "onnxruntime"])
    assert [e.name for e in found] == ["convkit", "torch", "torch channels_last"]
    assert lacking == {"onnxruntime": "trains nothing"}
    asked(monkeypatch, {name: [100.0] for name in ("convkit", "torch", "torch channels_last")})
    result = apart.race(item, found, None, Settings(rounds=9, pause_s=0), lambda text: None)
    assert all(rounds == [[100.0]] for rounds in result.samples.values())


def test_a_process_says_why_it_cannot():
    item = apart.first_calls()[0]
    (own, *_), _ = apart.entries(item, "cpu", [])
    own.task["op"] = "no_op"
    with pytest.raises(apart.ChildError, match="KeyError"):
        apart._ask(own)


def test_on_a_gpu_there_are_none():
    for item in (apart.first_calls()[0], steps.step("paper", 2, work.MEMORY)):
        found, lacking = apart.entries(item, "cuda", ["torch"])
        assert found == [] and set(lacking) == {"convkit", "torch"}


@pytest.mark.parametrize("item", apart.first_calls(), ids=lambda item: item.op)
def test_both_sides_of_a_first_call_do_the_same_work(item):
    need("torch")
    plain = (item.op, item.fields(), 1)
    one, two = child._convkit(*plain)(), child._torch(*plain)()
    one = one[0] if isinstance(one, tuple) else one
    if isinstance(two, tuple):
        two = next(t for t in two if t is not None)
    assert one.shape == tuple(two.shape) and relative_rms(one, two.numpy()) < 2e-5


def test_a_first_call_takes_longer_than_nothing(capsys):
    assert child.main(json.dumps({"kind": "first call", "peer": "convkit", "threads": 1, **SMALL}), 0) == 0
    assert json.loads(capsys.readouterr().out)["value"] > 0


def test_rows_of_processes_are_verified_shown_and_compared(tmp_path, monkeypatch, quick_ceilings, capsys):
    answers = {"convkit": 10.0, "torch": 30.0, "torch channels_last": 40.0}
    monkeypatch.setattr(apart, "_ask", lambda entry: answers[entry.name])
    need("torch")
    path = tmp_path / "a.json"
    argv = ["bench", "--memory", "--first-call", "--batch", "2", "--against", "torch", *QUICK]
    assert main([*argv, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "first call: lrn_fprop" in out and "10.0 MB" in out and "x as small" in out
    made = files.load(path)
    assert [f for f in verify.verify(made) if f.state == verify.FAIL] == []
    memory, *firsts = made["rows"]
    assert memory["unit"] == "MB" and len(firsts) == 6 and {r["unit"] for r in firsts} == {"ms"}
    for row in made["rows"]:
        assert not figures.of_time(row) and row["bound"] == ""
        for entry in row["contenders"]:
            assert entry["gflops"] is None and entry["percent"] is None and "unchecked" in entry["marks"]
        assert math.isclose(row["ranking"]["against"]["best"]["ratio"], 3.0)
        assert "GFLOP" not in tables.heading(row)
    assert "(MB)" in report.page([made])
    assert main(["compare", str(path), str(path)]) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--memory", "--layers", "conv1"], "--memory is measured as a whole: it takes no --layers"),
        (["--first-call", "--math", "tf32"], "--first-call is measured in fp32, not 'tf32'"),
        (["--forward", "--dtype", "float16"], "unknown dtype of --forward 'float16'"),
        (["--step", "--geometries"], "--step is measured as a whole"),
    ],
)
def test_what_cannot_be_asked_together_is_refused(argv, words, capsys):
    assert main(["bench", "--device", "cpu", *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_real_processes_answer(tmp_path, quick_ceilings):
    for name in ("torch", "jax"):
        need(name)
    path = tmp_path / "a.json"
    argv = ["bench", "--memory", "--first-call", "--batch", "1", *QUICK, "--json", str(path)]
    assert main(argv) == 0
    made = files.load(path)
    assert made["failures"] == [] and len(made["rows"]) == 7
    peaks = {c["name"]: c["samples_ms"] for c in made["rows"][0]["contenders"] if c["samples_ms"]}
    assert set(peaks) == {"convkit", "torch", "torch channels_last", "jax"}
    assert all(100 < samples[0][0] < 10_000 for samples in peaks.values())
