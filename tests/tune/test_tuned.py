"""What the tuner has kept, as the registry reads it: what counts, what does not, and the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tuning

import convkit as ck
from convkit import registry, tuned
from convkit.bench import work
from convkit.bench.measure import own
from convkit.checked import Sources
from convkit.cuda import emulate
from convkit.cuda.null import nulled
from convkit.errors import ConvkitWarning, OptionError
from convkit.network.plan.program import Program
from convkit.network.presets import preset
from convkit.ops.elementwise import Elementwise
from convkit.registry import implementations, select
from convkit.tuned import Question, Store

X = np.array([-1.0, 2.0, -3.0], np.float32)
RELU = Elementwise((3,))
LOW = "low"


@pytest.fixture(autouse=True)
def apart():
    with tuning.apart():
        yield


@pytest.fixture
def low():
    """An implementation that nothing chooses, and that writes sevens."""

    @ck.implements("relu_fprop", name=LOW, rank=-1000)
    def run(problem, x, y):
        y[...] = 7

    return of(LOW)


def of(name, op="relu_fprop", device="cpu", layout="NCHW"):
    found = implementations(op, device=device, layout=layout)
    return next(i for i in found if i.name == name)


def kept(question, chosen, default=None, on=None):
    """A store of one choice."""
    with ck.use(tuned=False):
        default = default or select(
            question.op,
            question.problem,
            device=question.device,
            layout=question.layout,
            flags=question.flags,
        )
    entry = {"default": tuned.named(default), "chosen": tuned.named(chosen)}
    return Store(choices={tuned.key_of(question, on or tuned.machine(question.device)): entry})


def changed(store, **parts):
    """The store with something else in its choice: `default={"source": "x"}`."""
    ((key, entry),) = store.choices.items()
    return Store(choices={key: {**entry, **{n: {**entry[n], **part} for n, part in parts.items()}}})


QUESTION = Question("relu_fprop", RELU)


# ---- what counts ----------------------------------------------------------------------------------------
def test_a_choice_runs_in_the_place_of_the_default_and_of_no_name(low):
    rank = select("relu_fprop", RELU).name
    assert rank != LOW
    with tuned.using(kept(QUESTION, low)):
        assert select("relu_fprop", RELU) is low
        assert ck.relu_fprop(X)[0] == 7  # through a bound call too
        assert ck.relu_fprop(X)[0] == 7
        assert select("relu_fprop", RELU, impl=rank).name == rank
        assert ck.relu_fprop(X, impl=rank)[0] == 0
        with ck.use(relu_fprop=rank):
            assert ck.relu_fprop(X)[0] == 0
        with ck.use(tuned=False):
            assert ck.relu_fprop(X)[0] == 0
            with ck.use(tuned=True):
                assert ck.relu_fprop(X)[0] == 7
    assert ck.relu_fprop(X)[0] == 0  # and what was bound by it is forgotten


def test_a_choice_is_for_one_question_alone(low):
    with tuned.using(kept(QUESTION, low)):
        assert select("relu_fprop", Elementwise((4,))).name != LOW
        assert select("relu_fprop", Elementwise((3,), "float64")).name != LOW
        assert select("relu_fprop", RELU, math="tf32").name != LOW
    with tuned.using(kept(replace(QUESTION, math="tf32"), low)):
        assert select("relu_fprop", RELU, math="tf32") is low
        assert select("relu_fprop", RELU).name != LOW


def test_what_a_call_asks_for_still_holds(low):
    def chosen(**declared):
        registry._IMPLEMENTATIONS.pop(("relu_fprop", "cpu", LOW, "NCHW"))
        one = registry.add(replace(low, **declared))
        with tuned.using(kept(QUESTION, one)):
            return select("relu_fprop", RELU).name == LOW

    assert chosen()
    assert not chosen(error=1e-3)
    assert not chosen(math="tf32")
    assert not chosen(when=lambda g: "not today")
    assert not chosen(missing=lambda: "a part")
    assert not chosen(dtypes=("float64",))
    with ck.use(max_error=1e-2):
        assert chosen(error=1e-3)
    with ck.use(checked=True):
        assert not chosen()  # it is a user's, and has passed nothing


@pytest.mark.parametrize(
    "parts",
    [
        {"default": {"source": "another"}},
        {"chosen": {"source": "another"}},
        {"chosen": {"source": ""}},
        {"default": {"implementation": "reference"}},
        {"chosen": {"implementation": "gone"}},
        {"chosen": {"tile": {"THREADS": 8}}},
        {"chosen": {"tile": 3}},
        {"chosen": {"implementation": None}},
    ],
    ids=str,
)
def test_a_choice_that_does_not_hold_any_more_is_ignored(low, parts):
    with tuned.using(changed(kept(QUESTION, low), **parts)):
        assert ck.relu_fprop(X)[0] == 0


def test_what_has_no_file_is_not_kept(low):
    """Its text is not known, so nothing tells whether it is the same."""
    registry._IMPLEMENTATIONS.pop(("relu_fprop", "cpu", LOW, "NCHW"))
    one = registry.add(replace(low, rank=-999, sources=Sources((), "")))
    with tuned.using(kept(QUESTION, one)):
        assert tuned.digest(one) == "" and select("relu_fprop", RELU).name != LOW


@pytest.mark.parametrize("part", ["device", "name", "driver"])
def test_a_choice_of_another_machine_is_ignored(low, part):
    on = {**tuned.machine("cpu"), part: "another"}
    with tuned.using(kept(QUESTION, low, on=on)):
        assert ck.relu_fprop(X)[0] == 0


def test_a_choice_is_for_a_number_of_threads(low, monkeypatch):
    monkeypatch.setenv("CONVKIT_NUM_THREADS", "2")
    with tuned.using(kept(QUESTION, low)):
        assert select("relu_fprop", RELU) is low
        monkeypatch.setenv("CONVKIT_NUM_THREADS", "3")
        assert select("relu_fprop", RELU).name != LOW


def test_an_implementation_of_a_higher_rank_that_comes_later_is_the_default(low):
    with tuned.using(kept(QUESTION, low)):
        assert select("relu_fprop", RELU) is low
        registry.add(replace(of(LOW), name="new", rank=5000))
        assert select("relu_fprop", RELU).name == "new"


def test_the_source_of_what_is_shipped_is_its_text(tmp_path):
    """A kernel's with what it includes; of the CPU's, the whole backend; a user's, its file's."""
    kernel = tmp_path / "relu_fprop_mine.cu"
    (tmp_path / "part.cuh").write_text("// one\n")
    text = '#include "part.cuh"\n'
    head = '// /// kernel\n// op = "relu_fprop"\n// grid = ["1"]\n// block = ["32"]\n// ///\n'
    kernel.write_text(head + text)

    def digest():
        tuned._of_files.cache_clear()
        registry._IMPLEMENTATIONS.pop(("relu_fprop", "cuda", "mine", "NCHW"), None)
        return tuned.digest(ck.register(kernel)[0])

    first = digest()
    assert first and first == digest()
    (tmp_path / "part.cuh").write_text("// two\n")
    assert digest() != first
    shipped = [i for i in implementations("relu_fprop") if i.sources.digest == "shipped"]
    by_device = {d: {tuned.digest(i) for i in shipped if i.device == d} for d in ("cpu", "cuda")}
    assert len(by_device["cpu"]) == 1 and all(map(all, by_device.values()))


# ---- in a network ---------------------------------------------------------------------------------------
def test_a_plan_runs_a_choice_and_its_fingerprint_says_so():
    net = ck.AlexNet("small", seed=0)
    images, labels = np.zeros((2, 3, 32, 32), np.float32), np.array([3, 7])
    net.step(images, labels)
    before = net.state()["plan"]["implementations"]
    name = next(key for key, label in before.items() if label == "winograd nChw16c" and "fprop" in key)
    problem = next(c.problem for c in net.plan(batch=2).forward if f"{c.layer} {c.op.name}" == name)
    question = Question("conv2d_fprop", problem, layout="nChw16c")
    with tuned.using(kept(question, of("direct", "conv2d_fprop", layout="nChw16c"))):
        net.step(images, labels)
        now = net.state()["plan"]["implementations"]
        assert now == {**before, name: "direct nChw16c"}
        net.use(name.split("+")[0], conv2d_fprop="winograd")
        net.step(images, labels)
        assert net.state()["plan"]["implementations"][name] == "winograd nChw16c"


# ---- tiles ----------------------------------------------------------------------------------------------
def lrn_tile():
    """A question of LRN on CUDA, its kernel, and another tile than that has."""
    problem = ck.LRN.of((2, 96, 5, 5))
    question = Question("lrn_fprop", problem, "cuda")
    kernel = of("sliding", "lrn_fprop", "cuda")
    return question, tuned.with_tile(kernel, {"THREADS": 128, "SEGMENT": 16, "UNROLL": 4})


def test_a_tile_is_part_of_a_choice():
    question, chosen = lrn_tile()
    assert chosen.label == "sliding[SEGMENT=16, THREADS=128, UNROLL=4]"
    x = np.ones((2, 96, 5, 5), np.float32)
    blocks = []
    with nulled(lambda grid, block, arguments, shared: blocks.append(block)):
        ck.lrn_fprop(x)
        with tuned.using(kept(question, chosen)):
            assert tuned.machine("cuda")["device"] == "emulator"
            assert select("lrn_fprop", question.problem, device="cuda").label == chosen.label
            ck.lrn_fprop(x)
            ck.lrn_fprop(x, impl="sliding")
            with ck.use(lrn_fprop="sliding"):
                ck.lrn_fprop(x)
    assert [block[0] for block in blocks] == [256, 128, 256, 256]


def test_the_bench_times_the_tile_that_runs():
    """Beside the implementation as it is, and as the one that is picked."""
    question, chosen = lrn_tile()
    item = work.Item("norm", "lrn_fprop", question.problem, layer="norm", batch=2)
    with nulled(), tuned.using(kept(question, chosen)):
        marks = {entry.name: entry.marks for entry in own.entries(item, "cuda")}
    assert "picked" in marks[chosen.label] and "picked" not in marks["sliding"]


def test_the_same_tile_is_the_same_implementation():
    """So that what is prepared for it is found again."""
    _, chosen = lrn_tile()
    assert lrn_tile()[1] is chosen
    assert tuned.with_tile(of("sliding", "lrn_fprop", "cuda"), {"NO_SUCH": 1}) is None
    assert tuned.with_tile(of("reference", "lrn_fprop"), {"THREADS": 1}) is None


def test_a_plan_shows_the_tile():
    chosen = preset("small")
    with nulled():

        def picked():
            program = Program(chosen.layers, (2, 3, 32, 32), 10, "float32", "cuda")
            return next(n for n in program.forward if n.op == "lrn_maxpool2d_fprop"), program

        node, _ = picked()
        question = Question(node.op, node.problem, "cuda")
        one = tuned.with_tile(of("sliding", node.op, "cuda"), {"THREADS": 128})
        with tuned.using(kept(question, one)):
            node, program = picked()
            assert program.pick(node).name_and_tile == "sliding[THREADS=128]"
            net = ck.AlexNet("small", seed=0, device="cpu")
            net.step(np.zeros((2, 3, 32, 32), np.float32), np.array([3, 7]))
            shown = net.state()["plan"]["implementations"]
            assert "sliding[THREADS=128]" in shown.values()
            assert "sliding[THREADS=128]" in str(net.plan(batch=2))


def test_another_tile_gives_right_results(compiler):
    question, chosen = lrn_tile()
    x = np.random.default_rng(0).standard_normal((2, 96, 5, 5)).astype(np.float32)
    with emulate.emulate(), tuned.using(kept(question, chosen)):
        y = ck.lrn_fprop(x)
    np.testing.assert_allclose(y, ck.lrn_fprop(x, impl="reference"), rtol=1e-5, atol=1e-6)


# ---- the file -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("\xff\xfe", "cannot be read"),
        ("[]", "says no format"),
        ('{"format": 99, "choices": {}, "gates": {}}', "has format 99; this convkit reads 1"),
        ('{"format": 1, "choices": {"a": 3}, "gates": {}}', "must be tables"),
        ('{"format": 1, "choices": {}}', "must be tables"),
    ],
)
def test_a_file_that_is_not_understood_is_ignored_with_a_warning(tmp_path, monkeypatch, text, reason):
    path = tmp_path / "tuned.json"
    path.write_text(text, encoding="latin-1")
    monkeypatch.setenv("CONVKIT_TUNED", str(path))
    tuned.reload()
    with pytest.warns(ConvkitWarning, match=f"tuned choices are ignored: .*tuned.json.*{reason}") as caught:
        assert ck.relu_fprop(X)[1] == 2
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        ck.relu_fprop(X[:2])
    with pytest.raises(OptionError, match=reason):
        Store.read(path)
    assert path.read_text(encoding="latin-1") == text


def test_no_file_is_no_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKIT_TUNED", str(tmp_path / "none.json"))
    tuned.reload()
    assert ck.relu_fprop(X)[0] == 0
    monkeypatch.setenv("CONVKIT_TUNED", "off")
    assert tuned.default_path() is None
    monkeypatch.delenv("CONVKIT_TUNED")
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    assert tuned.default_path() == tmp_path / "cache" / "tuned.json"


def test_what_several_have_put_is_all_there(tmp_path):
    path = tmp_path / "deep" / "tuned.json"
    one, other = Store.read(path), Store.read(path)
    one.put({"a": {"x": 1}}, {"g": ""})
    other.put({"b": {"x": 2}})
    assert other.choices == {"a": {"x": 1}, "b": {"x": 2}} == Store.read(path).choices
    one.put({"a": None}, {"g": None})
    assert Store.read(path).choices == {"b": {"x": 2}} and not Store.read(path).gates
    with pytest.raises(OptionError, match="cannot write"):
        Store(path / "below-a-file.json").put({"a": {}})


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    store = Store.read(path)
    store.put({"a": {"x": 1}})
    text = path.read_text()
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.put({"b": {"x": 2}})
    assert path.read_text() == text
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["tuned.json"]


def test_another_process_reads_the_choice(tmp_path):
    """From the file that CONVKIT_TUNED names, of what convkit ships."""
    problem = ck.Conv2d.of((1, 16, 8, 8), (16, 16, 3, 3), padding=1)
    with ck.use(tuned=False):
        default = select("conv2d_fprop", problem)
    other = next(
        i for i in implementations("conv2d_fprop", device="cpu")
        if i.name not in (default.name, "reference") and i.refusal(problem) is None
    )  # fmt: skip
    store = kept(Question("conv2d_fprop", problem), other, default)
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"format": 1, "choices": store.choices, "gates": {}}))
    program = (
        "import convkit as ck; from convkit.registry import select; "
        "g = ck.Conv2d.of((1, 16, 8, 8), (16, 16, 3, 3), padding=1); print(select('conv2d_fprop', g).name)"
    )

    def chosen(**env):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
            env={**os.environ, **env},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert chosen(CONVKIT_TUNED=str(path)) == other.name
    assert chosen(CONVKIT_TUNED="off") == default.name
