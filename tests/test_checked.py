"""What has passed the gate: how it is remembered, what undoes it, and what is said of what has not passed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import convkit as ck
from convkit import check, checked, devices, registry
from convkit.bench.results.run import gate_marks
from convkit.checked import Sources
from convkit.cli import list as listing
from convkit.cli import main

#: Of users, not the one that `conftest` puts in its place.
FOLDERS = checked._folders
X = np.array([-1.0, 2.0], np.float32)
MINE = """
import numpy as np
import convkit as ck


@ck.implements("relu_fprop", name="mine", rank=-1)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
"""


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """A store, a registry and a list of warnings of its own."""
    ck.implementations()
    kept = dict(registry._IMPLEMENTATIONS)
    monkeypatch.setattr(checked, "_folders", lambda: [tmp_path / "store"])
    monkeypatch.setattr(checked, "_here", {})
    monkeypatch.setattr(checked, "_warned", set())
    monkeypatch.chdir(tmp_path)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(kept)
    registry.changed()


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def registered(path):
    (found,) = ck.register(path)
    return found


def verdicts(implementation, ok=True, count=3, **more):
    one = check.Verdict(
        implementation.op, implementation.label, "a case", implementation.dtypes[0], ok, **more
    )
    return [replace(one, dtype=dtype) for dtype in implementation.dtypes for _ in range(count)]


def store(tmp_path):
    return sorted((tmp_path / "store").glob("*.json"))


# ---- what is remembered, and for what -------------------------------------------------------------------
def test_a_pass_of_the_gate_is_remembered_and_a_failure_undoes_it(mine, tmp_path):
    one = registered(mine)
    assert one.checked == "unchecked"
    assert check.summary(check.check("relu_fprop", "mine", quick=True, contained=False)).endswith("passes")
    assert one.checked.endswith(", quick") and registered(mine).checked == one.checked
    (entry,) = store(tmp_path)
    kept = json.loads(entry.read_text())
    assert kept["engine"] == "cpu" and kept["passed"]["cases"] > 10 and kept["files"] == [str(mine)]
    mine.write_text(MINE.replace("maximum", "minimum"))
    wrong = registered(mine)
    assert wrong.checked == "unchecked"  # not judged yet
    checked.record(wrong, verdicts(wrong), quick=False)
    assert wrong.checked != "unchecked"
    assert not all(v.ok for v in check.check("relu_fprop", "mine", quick=True, contained=False))
    assert wrong.checked == "unchecked" and store(tmp_path) == [entry]
    mine.write_text(MINE)
    assert registered(mine).checked.endswith(", quick")  # the text that has passed


def test_a_quick_pass_does_not_take_the_place_of_a_full_one(mine):
    one = registered(mine)
    assert checked.record(one, verdicts(one, seed=1), quick=False)
    assert checked.record(one, verdicts(one, seed=2), quick=True)
    assert checked.found(one).seed == 1 and not checked.found(one).quick


@pytest.mark.parametrize(
    "found",
    [[], [{"declined": True}], [{"dtype": "float64"}]],
    ids=["nothing", "all declined", "another dtype alone"],
)
def test_what_is_no_whole_check_is_not_remembered(mine, found):
    one = registered(mine)
    assert not checked.record(one, [replace(verdicts(one)[0], **changed) for changed in found], quick=False)
    assert one.checked == "unchecked"


def test_a_file_that_changes_while_it_is_checked_has_not_passed(mine):
    one = registered(mine)
    mine.write_text(MINE + "# later\n")
    assert not checked.record(one, verdicts(one), quick=False)
    assert one.checked == registered(mine).checked == "unchecked"


def test_an_engine_is_not_another(tmp_path, monkeypatch):
    path = tmp_path / "relu_fprop_stride.cu"
    path.write_text((Path(__file__).parents[1] / "examples" / path.name).read_text())
    one = registered(path)
    with devices.instead(object()):  # nothing runs on it
        assert checked.record(one, verdicts(one, device="cuda"), quick=False)
        assert one.checked != "unchecked"
    assert one.checked != "unchecked"  # without a GPU the emulator would run it
    monkeypatch.setattr(checked, "engine", lambda device: "cuda:NVIDIA H200")
    assert one.checked == "unchecked"
    assert checked.lacking(one).endswith("on NVIDIA H200: convkit check relu_fprop_stride.cu")


BESIDE = {
    "an import": ("helper.py", "import helper", "x = 1"),
    "a name that is imported": ("pack/helper.py", "from pack import helper", "x = 1"),
    "a relative import": ("helper.py", "from . import helper", "x = 1"),
    "a package": ("pack/__init__.py", "import pack.other", "x = 1"),
    "a compiled module": ("helper.cpython-311-x86_64-linux-gnu.so", "import helper", "code"),
    "a file that is read": ("body.cu", "text = open('body.cu').read()", "code"),
    "what that one includes": ("body.cuh", "text = open('body.cu').read()", "code"),
    "what a module imports": ("second.py", "import first", "x = 1"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_a_file_counts(kind, tmp_path):
    name, line, text = BESIDE[kind]
    (tmp_path / "pack").mkdir()
    (tmp_path / "first.py").write_text("import second")
    (tmp_path / "body.cu").write_text('#include "body.cuh"\n')
    (tmp_path / "mine.py").write_text(line)
    (tmp_path / name).write_text(text)
    before = Sources.of(str(tmp_path / "mine.py"))
    (tmp_path / name).write_text(text + " ")
    assert Sources.of(str(tmp_path / "mine.py")).digest != before.digest
    (tmp_path / name).write_text(text)
    (tmp_path / "other.py").write_text("x = 1")  # nothing names it
    assert Sources.of(str(tmp_path / "mine.py")) == before


def test_a_header_that_a_kernel_includes_counts(tmp_path):
    kernel, header = tmp_path / "k.cu", tmp_path / "h.cuh"
    kernel.write_text('#include "h.cuh"\n#include "ptx.cuh"\n')
    header.write_text("// one")
    before = Sources.of(str(kernel)).digest
    header.write_text("// two")
    assert Sources.of(str(kernel)).digest not in ("", before)


def test_the_file_that_registers_a_function_of_another_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "helper_of_mine.py").write_text(
        "import numpy as np\ndef relu(problem, x, y): np.maximum(x, 0, out=y)"
    )
    path = tmp_path / "mine.py"
    text = "import convkit as ck\nfrom helper_of_mine import relu\n"
    path.write_text(text + "ck.implements('relu_fprop', name='mine')(relu)")
    before = registered(path).sources
    assert before.files == (str(tmp_path / "helper_of_mine.py"), str(path))
    path.write_text(text + "ck.implements('relu_fprop', name='mine', error=1e-5)(relu)")
    assert registered(path).sources.digest != before.digest


def test_what_convkit_ships_counts_as_checked(tmp_path):
    assert {i.checked for i in ck.implementations(layout=None)} == {"shipped"}
    shipped = ck.implementations("relu_fprop")[0]
    assert not checked.record(shipped, verdicts(shipped), quick=False) and not store(tmp_path)
    # Its function is not enough: the file that registers it says what it is for.
    reference = next(i for i in ck.implementations("relu_fprop") if i.name == "reference")
    ck.implements("relu_fprop", name="borrowed")(reference.run)
    (borrowed,) = [i for i in ck.implementations("relu_fprop") if i.name == "borrowed"]
    assert borrowed.checked == "unchecked"


# ---- the store ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[1]", b"{}", b'{"passed": 7}', b"[" * 100_000, "half", "another's", "odd"],
    ids=["empty", "no text", "a list", "no fields", "no record", "deep", "half", "another's", "odd"],
)
def test_an_entry_that_is_not_whole_is_none(content, mine, tmp_path):
    one = registered(mine)
    checked.record(one, verdicts(one), quick=False)
    (entry,) = store(tmp_path)
    whole = entry.read_bytes()
    if isinstance(content, str):
        changed = json.loads(whole)
        if content == "another's":
            changed["digest"] = "0" * 64
        else:
            changed["passed"]["cases"] = "many"
        content = whole[: len(whole) // 2] if content == "half" else json.dumps(changed).encode()
    entry.write_bytes(content)
    assert one.checked == "unchecked"
    assert checked.record(one, verdicts(one), quick=False) and one.checked != "unchecked"  # it is mended


def test_where_nothing_can_be_written_a_pass_holds_in_its_process(mine, tmp_path):
    (tmp_path / "store").write_text("a file stands in the way")
    one = registered(mine)
    assert checked.record(one, verdicts(one), quick=False) and one.checked != "unchecked"
    checked.record(one, verdicts(one, ok=False), quick=False)
    assert one.checked == "unchecked"


def test_the_oldest_entries_go(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(checked, "MOST_ENTRIES", 3)
    written = []
    for number in range(5):
        mine.write_text(f"{MINE}# {number}\n")
        one = registered(mine)
        checked.record(one, verdicts(one), quick=False)
        (new,) = set(store(tmp_path)) - set(written)
        os.utime(new, (number, number))
        written.append(new)
    assert set(store(tmp_path)) == set(written[2:])


def test_writers_at_the_same_time_leave_whole_entries(tmp_path):
    folder, found = tmp_path / "store", []

    def write(number):
        found.extend(checked._write(folder, "entry.json", json.dumps([number] * 2000)) for _ in range(15))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (folder / "entry.json").exists():
            assert len(json.loads((folder / "entry.json").read_text())) == 2000
    assert found == [True] * 60
    assert [path.name for path in folder.iterdir()] == ["entry.json"]  # no draft is left


# ---- a function without a file --------------------------------------------------------------------------
def test_a_function_without_a_file_is_remembered_in_its_process_alone(tmp_path):
    for text in (MINE, MINE.replace("maximum", "minimum")):
        exec(compile(text, "<cell 7>", "exec"), {})
        (one,) = [i for i in ck.implementations("relu_fprop") if i.name == "mine"]
        assert one.checked == "unchecked"  # the second one is another function
        reason = checked.lacking(one)
        assert "convkit.check.check('relu_fprop', 'mine')" in reason and "has no file" in reason
        check.check("relu_fprop", "mine", quick=True, contained=False)
        assert (one.checked != "unchecked") == (text == MINE)
    assert not store(tmp_path)


# ---- the warning ----------------------------------------------------------------------------------------
def test_a_warning_names_the_command_once_where_the_user_called(mine):
    registered(mine)
    with pytest.warns(ck.UncheckedWarning) as caught, ck.use(relu_fprop="mine"):
        ck.relu_fprop(X)
        ck.relu_fprop(X)
        ck.relu_fprop(X, out=np.empty_like(X))
        ck.relu_fprop(np.ones((2, 2), np.float32))
    (one,) = caught
    assert str(one.message) == (
        "relu_fprop 'mine' (mine.py) has not passed the gate as it is now: convkit check mine.py"
    )
    assert one.filename == __file__


def test_a_plan_warns_where_the_user_called(mine):
    registered(mine)
    net = ck.AlexNet("small", seed=0)
    net.use("relu2", relu_fprop="mine")
    with pytest.warns(ck.UncheckedWarning, match="has not passed the gate") as caught:
        net.plan(2)
        net.plan(3)
    assert [one.filename for one in caught] == [__file__]


@pytest.mark.filterwarnings("error")
def test_as_an_error_it_comes_each_time_and_before_anything_is_written(mine):
    registered(mine)
    out = np.full_like(X, 9)
    for _ in range(2):
        with pytest.raises(ck.UncheckedWarning):
            ck.relu_fprop(X, impl="mine", out=out)
    assert (out == 9).all()
    ck.relu_fprop(X)  # what convkit ships
    check.check("relu_fprop", "mine", quick=True, contained=False)  # the gate itself does not warn
    ck.relu_fprop(X, impl="mine", out=out)
    assert (out == [0, 2]).all()


# ---- checked=True ---------------------------------------------------------------------------------------
def test_use_checked_refuses_until_it_has_passed_in_full(mine):
    one = registered(mine)
    for quick, words in ((None, "has not passed the gate as it is now"), (True, "the quick check only")):
        if quick is not None:
            checked.record(one, verdicts(one), quick=quick)
        with pytest.raises(ck.NotChecked, match=rf"{words}: convkit check mine\.py"):
            ck.use(relu_fprop="mine", checked=True).__enter__()
    checked.record(one, verdicts(one), quick=False)
    with ck.use(relu_fprop="mine", checked=True):
        assert (ck.relu_fprop(X) == [0, 2]).all()
        mine.write_text(MINE + "# changed\n")
        registered(mine)
        with pytest.raises(ck.NoImplementation, match="has not passed the gate"):
            ck.relu_fprop(X)
        with ck.use(checked=False), pytest.warns(ck.UncheckedWarning):
            ck.relu_fprop(X)


def test_checked_without_a_name_passes_over_what_has_not_passed(mine):
    mine.write_text(MINE.replace("rank=-1", "rank=10_000").replace("maximum", "minimum"))
    registered(mine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ck.use(checked=True):
            assert (ck.relu_fprop(X) == [0, 2]).all()
            with ck.use(max_error=1e-3):  # it holds in blocks further in
                assert (ck.relu_fprop(X) == [0, 2]).all()
    with pytest.warns(ck.UncheckedWarning):
        assert (ck.relu_fprop(X) == [-1, 0]).all()


def test_a_layer_that_must_be_checked(mine):
    one = registered(mine)
    net = ck.AlexNet("small", seed=0)
    net.use("relu2", relu_fprop="mine")
    with pytest.warns(ck.UncheckedWarning):
        net.plan(2)
    with pytest.raises(ck.NotChecked, match=r"convkit check mine\.py"):
        net.use("relu2", relu_fprop="mine", checked=True)
    checked.record(one, verdicts(one), quick=False)
    net.use("relu2", relu_fprop="mine", checked=True)
    net.plan(2)
    mine.write_text(MINE + "# changed\n")
    registered(mine)
    with pytest.warns(ck.UncheckedWarning), pytest.raises(ck.NotChecked, match=r"convkit check mine\.py"):
        net.plan(2)
    net.use("relu2", relu_fprop=None)
    net.plan(2)


# ---- tables ---------------------------------------------------------------------------------------------
def test_tables_mark_what_has_not_passed(mine, capsys):
    one = registered(mine)
    net = ck.AlexNet("small", seed=0)
    assert "marks" not in str(net.plan(2)) and "unchecked" not in str(net.plan(2))
    net.use("relu2", relu_fprop="mine")
    with pytest.warns(ck.UncheckedWarning):
        plan = net.plan(2)
    (line,) = [line for line in str(plan).splitlines() if "mine" in line]
    assert line.startswith("relu2") and line.endswith("unchecked")
    assert gate_marks([one]) == ["has not passed the gate"]
    main(["list", str(mine)])
    assert " unchecked " in capsys.readouterr().out
    checked.record(one, verdicts(one), quick=True)
    assert "unchecked" not in str(plan) and gate_marks([one]) == ["quick check only"]
    checked.record(one, verdicts(one), quick=False)
    assert gate_marks([one, ck.implementations("relu_fprop")[0]]) == []
    main(["list", str(mine)])
    assert one.checked in capsys.readouterr().out
    main(["list", "relu_fprop", "--device", "cpu"])
    assert " shipped " in capsys.readouterr().out


def test_on_a_gpu_a_shipped_kernel_that_none_has_run_is_marked(monkeypatch, capsys):
    names = {Path(i.source).name for i in ck.implementations("relu_fprop", device="cuda")}
    for ran, word in (({}, " not yet run on a GPU "), (dict.fromkeys(names, "NVIDIA H200"), " shipped ")):
        monkeypatch.setattr(listing, "engine", lambda device: "cuda:NVIDIA H200")
        monkeypatch.setattr(listing.status, "kernels_run", lambda ran=ran: ran)
        main(["list", "relu_fprop", "--device", "cuda"])
        assert capsys.readouterr().out.count(word) == len(names) > 0


def test_another_process_knows_what_the_command_has_found(mine, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "_folders", FOLDERS)
    assert main(["check", "mine.py"]) == 0
    program = "import convkit as ck, numpy as np\nck.register('mine.py')\n"
    program += "with ck.use(relu_fprop='mine', checked=True): print(ck.relu_fprop(np.ones(2, np.float32)))"
    path = os.pathsep.join([str(Path(ck.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1. 1.]\n", "")
