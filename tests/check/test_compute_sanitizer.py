"""`convkit check --sanitize` on a GPU: a stand-in for compute-sanitizer, kernels under the emulator."""

from __future__ import annotations

import json
import shutil
import sys
import types

import pytest

from convkit.check import compute_sanitizer, exact
from convkit.cli import check as command
from convkit.cli import main
from convkit.errors import MissingExtra
from convkit.registry import implementations

SAID = """\
========= COMPUTE-SANITIZER
{"begins": "a"}
{"case": "a", "fault": ""}
{"begins": "b"}
========= Invalid __global__ read of size 4 bytes
=========     at mine+0x160 in mine.cu:6
=========     by thread (3,0,0) in block (0,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: main [0x7]
=========
========= Error: Race reported between Write access at mine+0x90 in mine.cu:41
=========     and Read access at mine+0x100 in mine.cu:51 [508 hazards]
=========
{"case": "b", "fault": "y[0] is nan"}
{"begins": "c"}
{"case": "c", "fault": "y[0] is 3, not 4"}
========= ERROR SUMMARY: 2 errors
"""

#: Runs the command that it is given; says something of the second case where it runs as memcheck.
PROGRAM = """#!{python}
import subprocess, sys
at = sys.argv.index({python!r})
print("========= COMPUTE-SANITIZER")
process = subprocess.Popen(sys.argv[at:], stdout=subprocess.PIPE, text=True)
begun = 0
for line in process.stdout:
    print(line, end="")
    begun += line.startswith('{{"begins"')
    if begun == 2 and {says} and "memcheck" in sys.argv[:at]:
        begun += 1
        print("========= Invalid __global__ write of size 4 bytes")
        print("=========     at mine+0x10 in mine.cu:12")
print("========= ERROR SUMMARY: 0 errors")
"""


def test_what_is_said_belongs_to_the_case_that_runs():
    seen = []
    report = compute_sanitizer.read("memcheck", SAID.splitlines(), lambda tool, case: seen.append(case))
    assert seen == ["a", "b", "c"] and report.cases == 3 and not report.ok and not report.problem
    assert [(f.case, f.lines) for f in report.findings] == [
        (
            "b",
            (
                "Invalid __global__ read of size 4 bytes",
                "at mine+0x160 in mine.cu:6",
                "by thread (3,0,0) in block (0,0,0)",
            ),
        ),
        (
            "b",
            (
                "Error: Race reported between Write access at mine+0x90 in mine.cu:41",
                "and Read access at mine+0x100 in mine.cu:51 [508 hazards]",
            ),
        ),
        ("c", ("wrong result: y[0] is 3, not 4",)),
    ]


@pytest.mark.parametrize(
    "lines, problem",
    [
        ((), "no case ran: nothing was printed"),
        (("========= Error: the device is not supported",), "no case ran: Error: the device is not"),
        (('{"begins": "a"}', "Aborted"), "no case ran: Aborted"),
        (('{"begins": "a"}', '{"case": "a", "fault": ""}', '{"begins": "b"}'), "it ended in b"),
    ],
)
def test_no_verdict_where_cases_did_not_run(lines, problem):
    report = compute_sanitizer.read("racecheck", lines)
    assert report.problem.startswith(problem) and not report.ok


def test_where_the_program_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(compute_sanitizer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    with pytest.raises(MissingExtra, match=r"needs compute-sanitizer, .* pip install 'convkit\[sanitize\]'"):
        compute_sanitizer.program()
    for folder in ("toolkit/bin", "bin", "nvidia/cu13/bin"):  # each goes before those before it
        path = tmp_path / folder / "compute-sanitizer"
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        if folder.startswith("nvidia"):
            spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
            monkeypatch.setattr(compute_sanitizer.importlib.util, "find_spec", lambda name, found=spec: found)
        assert compute_sanitizer.program() == str(path)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a stand-in for compute-sanitizer in its place, and says that there is a GPU."""
    if shutil.which("g++") is None:
        pytest.skip("the emulator needs a compiler")
    program = tmp_path / "compute-sanitizer"

    def put(says: bool, tools: tuple[str, ...]) -> None:
        monkeypatch.setattr(compute_sanitizer, "TOOLS", dict.fromkeys(tools, "something"))
        program.write_text(PROGRAM.format(python=sys.executable, says=says))
        program.chmod(0o755)
        monkeypatch.setattr(compute_sanitizer, "program", lambda: str(program))
        monkeypatch.setattr(command, "gpu_found", lambda: True)

    return put


def test_a_command_on_a_gpu(stand_in, capsys):
    asked = ["check", "relu_fprop_vectorized", "--sanitize", "--seed", "1"]
    stand_in(says=True, tools=("memcheck", "racecheck"))
    assert main([*asked, "--case", "seven"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("  3 cases") == 2 and "FAILS; seed 1" in printed
    assert printed.count("1 finding ") == 1 and "at mine+0x10 in mine.cu:12" in printed
    assert printed.count("nothing found") == 1
    stand_in(says=False, tools=("racecheck",))
    assert main([*asked, "--case", "three"]) == 0
    assert "passes; seed 1" in capsys.readouterr().out
    assert main([*asked, "--case", "no such"]) == 1
    assert "no case has 'no such' in its name" in capsys.readouterr().out


def test_small_cases_and_their_faults(capsys):
    """Every dtype occurs; a result that is wrong is told."""
    (relu,) = (i for i in implementations("relu_fprop", device="cuda", layout=None) if i.name == "vectorized")
    cases = list(exact.small_cases([relu]))
    assert {case.problem.dtype for _, case in cases} == set(relu.dtypes)
    asked = {"files": [], "chosen": [["relu_fprop", "vectorized"]], "seed": 0, "only": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "run", lambda *_: "y[0] is 3")
        patch.setattr(exact.nvrtc, "line_info", False)
        assert exact.main(json.dumps(asked)) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["begins"] == lines[1]["case"] and lines[1]["fault"] == "y[0] is 3"
    assert len(lines) == 2 * len(cases)
