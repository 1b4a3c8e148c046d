"""Result files: written whole or not at all, read with care, recomputed, compared. No kernel is run here."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from convkit.bench import steps, work
from convkit.bench.measure import ceilings, own, stats
from convkit.bench.measure.ceilings import above_ceiling
from convkit.bench.results import compare, figures, files, shape, sources, verify
from convkit.bench.show import tables
from convkit.cli import main
from convkit.errors import OptionError
from convkit.ops.conv2d import Conv2d
from convkit.registry import implementations

CEILINGS = {
    "fma": {"unit": "GFLOP/s", "value": 200.0, "samples": [190.0, 200.0], "dtype": "float32", "method": "x"},
    "copy": {"unit": "GB/s", "value": 40.0, "samples": [40.0], "method": "x"},
}
SETTINGS = {
    "rounds": 8, "turn_s": 0.1, "pause_s": 0.0, "budget_s": 1.0, "cache": "cold", "seed": 0, "quick": False,
    "confidence": 0.95, "environment": {}, "against": ["torch"],
}  # fmt: skip
MACHINE = {"device": "cpu", "name": "a CPU", "cpu": "a CPU", "threads": 2, "isa": "v4", "gpu": None}


def entry(name, library, ms, *, rounds=8, noise=0.02, seed=0, **more):
    """Samples around `ms`: three calls in each round."""
    rng = np.random.default_rng([seed, len(name)])
    samples = [[float(ms * f) for f in rng.lognormal(0, noise, 3)] for _ in range(rounds)]
    return {
        "name": name, "library": library, "version": "1", "layout": "NCHW", "marks": [], "facts": {},
        "workspace_bytes": None, "deterministic": True, "error": 1e-7, "refused": None, "samples_ms": samples,
        "checks": dict.fromkeys(("before", "during", "after"), "passed"), **more,
    }  # fmt: skip


def document(*rows):
    """A sealed result file of these rows' entries, on conv3 at one batch size each."""
    made = files.new(["convkit", "bench"], machine=MACHINE, settings=SETTINGS, ceilings=CEILINGS)
    for batch, entries in enumerate(rows, 1):
        (item,) = work.items(work.Wanted(layers=("conv3",), directions=("fwd",), batches=(batch,)))
        from convkit.bench.results.run import new_row

        row = {**new_row(item), "contenders": list(entries)}
        made["rows"].append(figures.summarise(row, CEILINGS, SETTINGS))
    picked = [i for i in implementations("conv2d_fprop", device="cpu") if i.name in ("direct", "im2col_gemm")]
    made["kernels"] = sources.describe(picked)
    made["peers"] = {"torch": {"version": "2", "settings": {}}}
    return files.sealed(made)


def usual(own=20.0, peer=30.0, **more):
    return document(
        [
            entry("direct", "convkit", own, marks=["picked"], **more),
            entry("im2col_gemm", "convkit", 1.4 * own),
            entry("torch", "PyTorch", peer),
            entry("slow", "PyTorch", 2 * peer, deterministic=False),
        ]
    )


# ---------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------
def test_figures_follow_from_the_samples():
    (row,) = usual()["rows"]
    own = row["contenders"][0]
    assert own["median_ms"] == pytest.approx(20, rel=0.02)
    assert own["low_ms"] <= own["median_ms"] <= own["high_ms"]
    assert own["gflops"] == pytest.approx(row["flops"] / own["median_ms"] / 1e6)
    assert own["percent"] == pytest.approx(100 * own["gflops"] / 200) and own["ceiling"] == "fma"
    assert row["bound"] == "compute"
    rank = row["ranking"]
    assert (rank["own"], rank["rank"], rank["of"]) == ("direct", 1, 4)
    best = rank["against"]["best"]
    assert best["name"] == "torch" and best["verdict"] == "win" and best["low"] < 1.5 < best["high"] * 1.05
    assert rank["against"]["deterministic"]["name"] == "torch" and rank["against"]["heuristic"] is None
    assert rank["against"]["convkit"]["name"] == "im2col_gemm"


def test_equal_entries_tie_and_a_slower_pick_loses():
    assert usual(20, 20)["rows"][0]["ranking"]["against"]["best"]["verdict"] == "tie"
    (row,) = usual(20, 15)["rows"]
    assert row["ranking"]["against"]["best"]["verdict"] == "loss" and row["ranking"]["rank"] == 2


def test_who_failed_a_check_or_was_refused_has_no_rank():
    wrong = entry("torch", "PyTorch", 10, checks={"before": "passed", "during": "wrong", "after": ""})
    gone = entry("jax", "JAX", 10, refused="it broke")
    own = entry("direct", "convkit", 20, marks=["picked"])
    (row,) = document([own, wrong, gone])["rows"]
    assert row["ranking"]["of"] == 1 and row["ranking"]["against"]["best"] is None
    assert row["contenders"][2]["median_ms"] is None


def test_nothing_stands_above_a_ceiling_but_what_needs_fewer_operations():
    (item,) = work.items(work.Wanted(layers=("conv3",), directions=("fwd",), batches=(1,)))
    least = item.flops / 200 / 1e6  # ms at the ceiling
    fast = entry("direct", "convkit", 0.5 * least, marks=["picked"])
    winograd = entry(
        "winograd", "convkit", 0.5 * least, facts={"algorithm_flops": item.flops // 4}, marks=["picked"]
    )
    (row,) = document([fast, winograd])["rows"]
    assert row["contenders"][0]["refused"].startswith("above the ceiling")
    assert row["contenders"][0]["percent"] is None and row["ranking"]["own"] == "winograd"
    assert row["contenders"][1]["percent"] == pytest.approx(200, rel=0.05)


@pytest.mark.parametrize(
    ("dtype", "math", "compute"),
    [
        ("float32", "fp32", "fma"), ("float32", "tf32", "tensor-fp16"), ("float64", "fp32", None),
        ("float32", "fp32-emulated", "tensor-fp16"), ("bfloat16", "fp32", "tensor-fp16"),
        ("float16", "fp32", "tensor-fp16"),
    ],
)  # fmt: skip
def test_shares_and_refusals_know_the_same_ceiling(dtype, math, compute):
    measured = {"fma": 200.0, "tensor-fp16": 2000.0, "copy": 40.0, "read": 50.0}
    work_ = SimpleNamespace(flops=10**12, bytes=1, dtype=dtype, math=math)
    records = {name: {"value": value} for name, value in measured.items()}
    row = vars(work_)
    holding, memory = figures.ceilings_for(row, records)
    assert (holding and holding[0], memory) == (compute, ("read", 50.0))
    most = measured.get(compute, 1.0)
    for rate, beyond in ((1.05 * most, False), (1.15 * most, compute is not None)):
        ms = 10**12 / rate / 1e6
        assert ("above" in above_ceiling(work_, {}, ms, measured)) == beyond
        assert figures.share(row, ms, holding, None)[1] == compute
    assert ceilings.holding(dtype, math, {"fma": 1.0})[0] == (("fma", 1.0) if compute else None)


def test_bytes_bound_only_what_was_measured_cold():
    (item,) = work.items(work.Wanted(layers=("relu1",), directions=("fwd",), batches=(1,)))
    row = {"flops": item.flops, "bytes": item.bytes, "dtype": "float32", "math": "fp32", "op": item.op}
    quick = entry("vectors", "convkit", 0.5 * item.bytes / 40 / 1e6)
    assert "GB/s" in figures.beyond(quick, row, CEILINGS, {"cache": "cold"})
    assert not figures.beyond(quick, row, CEILINGS, {"cache": "warm"})


# ---------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------
def test_what_is_written_is_read_again_and_holds(tmp_path):
    made = usual()
    files.write(made, tmp_path / "a.json")
    again = files.load(tmp_path / "a.json")
    assert again == made and again["digest"] == files.digest(again)
    assert [f for f in verify.verify(again) if f.state == verify.FAIL] == []
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write(usual(), path)
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(OptionError, match="no space left"):
        files.write(usual(10), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan():
    made = files.sealed({"a": math.nan, "b": np.float32(2), "c": (1, np.int64(3)), "d": math.inf})
    assert made["a"] is None and made["b"] == 2.0 and made["c"] == [1, 3] and made["d"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("hello", "not valid JSON at line 1"),
        ("[1, 2]", "no 'convkit_capsule'"),
        ('{"a": 1}', "no 'convkit_capsule'"),
        ('{"convkit_capsule": 2}', "version 2: a newer convkit reads it"),
        ('{"convkit_capsule": "x"}', "reads version 1"),
        ('{"convkit_capsule": 1}', "convkit is missing"),
        ('{"convkit_capsule": 1, "a": NaN}', "NaN is no JSON value"),
    ],
)
def test_what_is_no_capsule_is_refused_in_a_line(tmp_path, capsys, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main(["verify", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_capsule_that_was_cut_short_is_told_as_such(tmp_path, capsys):
    path = tmp_path / "x.json"
    text = json.dumps(usual(), indent=1)
    path.write_text(text[: len(text) // 2])
    assert main(["verify", str(path)]) == 2
    assert "is cut short at line" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "no.json")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2


def _first(made):
    return made["rows"][0]["contenders"][0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: m["kernels"].update(k=[]), "kernels['k'] is [], not an object"),
        (lambda m: m["kernels"].update(k={"includes": [1]}), "kernels['k'].includes is [1], not an object"),
        (lambda m: m["ceilings"].update(fma=None), "ceilings['fma'] is null, not an object"),
        (
            lambda m: m["ceilings"]["fma"].update(value="fast"),
            "ceilings['fma'].value is 'fast', not",
        ),
        (lambda m: m["settings"].update(confidence=1), "settings.confidence is 1, not a number from"),
        (lambda m: m["rows"][0].update(contenders=None), "rows[0].contenders is null, not a list"),
        (lambda m: _first(m).update(name=3), "contenders[0].name is 3, not text"),
        (
            lambda m: _first(m).update(samples_ms=[1.0]),
            "samples_ms[0] is 1.0, not a list",
        ),
        (
            lambda m: _first(m).update(samples_ms=[[-1.0]]),
            "samples_ms[0][0] is -1.0, not",
        ),
        (lambda m: _first(m).update(samples_ms=[[10**400]]), "samples_ms[0][0] is 1000"),
        (lambda m: _first(m).update(samples_ms=[[True]]), "samples_ms[0][0] is True"),
        (lambda m: _first(m).update(facts={"algorithm_flops": "few"}), "is 'few', not a"),
        (lambda m: m.update(convkit=None), "convkit is null, not an object"),
        (lambda m: m["peers"].update(jax=0), "peers['jax'] is 0, not an object"),
        (lambda m: m["ceilings"]["fma"].update(value=-1), "ceilings['fma'].value is -1, not"),
        (lambda m: m["rows"][0].pop("ranking"), "rows[0].ranking is missing"),
        (lambda m: m["rows"][0]["ranking"].pop("own"), "rows[0].ranking.own is missing"),
        (lambda m: m["rows"][0].pop("layer"), "rows[0].layer is missing"),
        (lambda m: m["rows"][0].update(probes={"fma": ["x"]}), "probes['fma'][0] is 'x', not a number"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "compare", "report"])
def test_a_damaged_value_is_named(damage, words, command, tmp_path, capsys):
    made = usual()
    damage(made)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(made))
    more = {"verify": [], "compare": [str(path)], "report": ["-o", str(tmp_path / "x.html")]}[command]
    assert main([command, str(path), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.json is a damaged result file: " in line and words in line


def test_samples_of_no_time_are_no_figure():
    made = tampered(lambda m: _first(m).update(samples_ms=[[0.0]] * 9))
    assert not figures.timed(_first(made))
    assert any("took 0 ms" in f for f in failures(made))


def test_a_damaged_row_is_named(tmp_path, capsys):
    made = usual()
    del made["rows"][0]["flops"]
    (tmp_path / "x.json").write_text(json.dumps(made))
    assert main(["compare", str(tmp_path / "x.json"), str(tmp_path / "x.json")]) == 2
    assert "rows[0].flops is missing" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------
# Verification
# ---------------------------------------------------------------------------------------------------
def failures(made):
    return [f.what for f in verify.verify(made) if f.state == verify.FAIL]


def tampered(change, *, seal=True):
    """A result file in which something was changed; with a new digest, as a careful liar would."""
    made = copy.deepcopy(usual())
    change(made)
    return files.sealed(made) if seal else made


def _sample(made):
    made["rows"][0]["contenders"][0]["samples_ms"][2] = [1.0, 1.0, 1.0]


def _verdict(made):
    made["rows"][0]["ranking"]["against"]["best"]["verdict"] = "loss"


def _fewer(name, flops):
    """An entry that claims an algorithm with so few operations; by default as few as any may."""

    def change(made):
        (row,) = made["rows"]
        least = steps.item_of(row).fast_flops
        next(c for c in row["contenders"] if c["name"] == name)["facts"]["algorithm_flops"] = flops or least

    return change


def test_a_changed_sample_breaks_the_digest():
    made = tampered(lambda m: m["rows"][0]["contenders"][0]["samples_ms"][0].__setitem__(0, 1.0), seal=False)
    assert any("digest" in words for words in failures(made))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_sample, "ms is"),
        (_verdict, "ranking.against.best.verdict is 'loss'"),
        (lambda m: _first(m).update(median_ms=1.0), "median_ms is 1"),
        (lambda m: _first(m).update(percent=99.0), "percent is 99"),
        (lambda m: m["rows"][0]["ranking"].update(rank=2), "ranking.rank is 2"),
        (lambda m: m["rows"][0].update(flops=1), "flops is 1, the problem's is"),
        (lambda m: m["rows"][0].update(bytes=1), "bytes is 1, the problem's is"),
        (lambda m: m["rows"][0]["problem"].update(K=7), "the problem's is"),
        (lambda m: m["rows"][0].update(layer="conv4"), "its id is alexnet-paper/conv4/conv2d_fprop/N=1"),
        (lambda m: m["rows"][0].update(batch=64), "its id is alexnet-paper/conv3/conv2d_fprop/N=64"),
        (lambda m: m["rows"][0].update(id="alexnet-paper/conv1/conv2d_fprop/N=1/float32/fp32"), "its id is"),
        (lambda m: m["ceilings"]["fma"].update(value=250.0), "the ceiling fma is 250.0, the highest"),
        (lambda m: m["ceilings"]["fma"]["samples"].append(210.0), "the highest of its samples 210"),
        (lambda m: m["ceilings"]["fma"].pop("samples"), "the highest of its samples missing"),
        (_fewer("torch", 1), "FLOPs of its algorithm are 1, fewer than any algorithm needs"),
        (_fewer("direct", None), "and its implementation declares"),
        (lambda m: m["rows"].append(m["rows"][0]), "stands there twice"),
        (lambda m: m["rows"][0]["contenders"][2]["samples_ms"][0].__setitem__(0, -1.0), "no time"),
        (lambda m: m["rows"][0]["contenders"][2]["checks"].update(after="wrong"), "a check failed"),
        (lambda m: m["ceilings"]["fma"].update(value=1.0, samples=[1.0]), "above the ceiling"),
        (
            lambda m: next(iter(m["kernels"].values())).update(source_sha256="0" * 64),
            "is not what was measured",
        ),
        (lambda m: m["kernels"].clear(), "direct: nothing says what its source was"),
        (lambda m: m["kernels"].pop("conv2d_fprop/direct"), "direct: nothing says what its source was"),
        (
            lambda m: m["kernels"]["conv2d_fprop/direct"].update(source_sha256=None),
            "the hash of convkit/cpu/",
        ),
        (
            lambda m: m["kernels"]["conv2d_fprop/direct"].update(includes={}),
            "conv2d_fprop/direct: the hash of",
        ),
        (
            lambda m: m["kernels"]["conv2d_fprop/direct"]["includes"].update(
                {"convkit/cpu/extension.py": ""}
            ),
            "the hash of convkit/cpu/extension.py is missing",
        ),
    ],
)
def test_a_lie_with_a_new_digest_is_found(change, words):
    found = failures(tampered(change))
    assert any(words in f for f in found), found


def test_a_wheel_has_no_cpp_sources():
    made = tampered(lambda m: m["kernels"]["conv2d_fprop/direct"]["includes"].pop("convkit/cpu/native"))
    assert failures(made) == []
    assert any("convkit/cpu/native was not there" in f.what for f in verify.verify(made))


def test_other_libraries_may_claim_the_one_fast_share():
    assert failures(tampered(_fewer("torch", None))) == []
    half = usual()["rows"][0]["flops"] // 2
    assert any("and may only be" in words for words in failures(tampered(_fewer("torch", half))))


@pytest.mark.parametrize(
    ("window", "share"),
    [
        ((3, 3), (8 / 6 / 3) ** 2), ((5, 5), (8 / 4 / 5) ** 2), ((1, 1), 1.0), ((1, 3), 8 / 6 / 3),
        ((11, 11), (3 * 8 / 5 / 11) ** 2),
    ],
)  # fmt: skip
def test_the_fast_share_follows_from_the_window(window, share):
    problem = Conv2d.of((1, 8, 40, 40), (8, 8, *window))
    assert work.fast_share(problem) == pytest.approx(share)


def test_a_stride_leaves_less_to_save():
    shares = [work.fast_share(Conv2d.of((1, 8, 40, 40), (8, 8, 3, 3), stride=s)) for s in (1, 2, 3)]
    assert shares[0] < shares[1] < shares[2] == 1.0


def test_winograd_declares_what_it_does_and_nothing_unbelievable(kernels):
    """Every convolution of AlexNet's, and more: below the definition, and above what any algorithm needs."""
    texts = ("4,37,45,97,53,3,3,pad=1", "2,3,224,224,64,7,7,stride=2,pad=3", "8,32,28,28,96,5,5,pad=2")
    wanted = work.Wanted(convs=texts, layers=tuple(f"conv{i}" for i in range(1, 6)), batches=(16,))
    declared = 0
    for item in work.items(wanted):
        for one in implementations(item.op, device="cpu", layout=None):
            assert (one.flops is not None) == (one.name == "winograd")
            if one.flops and one.refusal(item.problem) is None:
                fast = own.algorithm_flops(one, item)
                assert fast is None or item.fast_flops <= fast < item.flops, item.id
                declared += fast is not None
    assert declared > 20


def step(**more):
    """A result file of one step."""
    from convkit.bench.results.run import new_row

    made = files.new(["convkit", "bench"], machine=MACHINE, settings=SETTINGS, ceilings=CEILINGS)
    item = steps.step("paper", 2)
    facts = {"algorithm_flops": item.fast_flops}
    checks = {"before": "passed", "during": "unchecked", "after": "unchecked"}
    own = entry("convkit", "convkit", 400, marks=["picked"], facts=facts, checks=checks)
    row = {
        **new_row(item),
        "contenders": [own, entry("torch", "PyTorch", 500, facts=facts, checks=checks)],
    }
    row.update(more)
    made["rows"].append(figures.summarise(row, CEILINGS, SETTINGS))
    made["kernels"] = sources.describe(implementations("conv2d_fprop", device="cpu"))
    return files.sealed(made)


def test_a_step_is_recomputed_and_counts_as_warm():
    made = step()
    assert failures(made) == []
    text = tables.summary(made)
    assert "warm caches, a step's as the one before left them" in text and "cold" not in text
    assert made["rows"][0]["ranking"]["against"]["best"]["verdict"] == "win"
    assert not [f for f in verify.verify(made) if "not checked" in f.what]  # compared before the timing
    lies = (
        ({"flops": 1}, "flops is 1"),
        ({"bytes": 1}, "bytes is 1"),
        ({"batch": 9}, "its id is"),
        ({"problem": {"preset": "owt", "N": 2}}, "the problem's is"),
        ({"problem": {"preset": "1998", "N": 2}}, "unknown preset '1998'"),
        ({"problem": {"preset": "paper"}}, "cannot be read"),
    )
    for lie, words in lies:
        assert any(words in f for f in failures(step(**lie))), (lie, failures(step(**lie)))


def test_the_command_says_so(tmp_path, capsys):
    files.write(usual(), tmp_path / "a.json")
    assert main(["verify", str(tmp_path / "a.json")]) == 0
    assert "it holds" in capsys.readouterr().out
    files.write(tampered(_verdict), tmp_path / "a.json")
    assert main(["verify", str(tmp_path / "a.json")]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "1 of them failed" in out


def test_a_users_kernel_is_compared_where_its_file_is_given(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("# a kernel\n")
    made = usual()
    made["kernels"]["conv2d_fprop/mine"] = {
        "file": "mine.py", "source_sha256": sources.sha256(path), "includes": {}, "flags": [],
        "cubin_sha256": None, "status": "run",
    }  # fmt: skip
    files.write(made, tmp_path / "a.json")
    assert main(["verify", str(tmp_path / "a.json")]) == 0
    assert "not compared: mine.py" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "a.json"), "--kernel", str(path)]) == 0
    path.write_text("# another\n")
    assert main(["verify", str(tmp_path / "a.json"), "--kernel", str(path)]) == 1
    assert main(["verify", str(tmp_path / "a.json"), "--kernel", str(tmp_path / "no.py")]) == 2


def test_a_rerun_on_another_machine_is_refused(tmp_path, capsys):
    files.write(usual(), tmp_path / "a.json")
    assert main(["verify", "--rerun", str(tmp_path / "a.json")]) == 2
    assert "cannot be rerun here" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------
# Comparison
# ---------------------------------------------------------------------------------------------------
def test_two_runs_are_compared_row_by_row(tmp_path, capsys):
    a, b = usual(20), usual(10, seed=5)
    files.write(a, tmp_path / "a.json")
    files.write(b, tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    assert "faster in 1, slower in 0" in out
    rows, unmatched = compare.compare(a, b)
    assert rows[0]["ratio"] == pytest.approx(2, rel=0.05) and rows[0]["low"] < 2 < rows[0]["high"]
    assert unmatched == []
    rows, _ = compare.compare(a, b, every=True)
    assert [r["contender"] for r in rows] == ["direct", "im2col_gemm", "torch", "slow"]


def test_the_same_speed_is_as_fast():
    rows, _ = compare.compare(usual(20, seed=1), usual(20, seed=2))
    assert rows[0]["verdict"] == compare.TIE


def test_the_unpaired_interval_covers_the_truth():
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = rng.lognormal(math.log(2), 0.05, 9), rng.lognormal(0, 0.05, 9)
        low, high = compare.unpaired(list(x), list(y), stats.CONFIDENCE)
        inside += low <= 2 <= high
        assert high / low < 1.3
    assert inside >= 53  # 95 % of 60 are 57


def test_what_is_not_comparable_is_refused_unless_forced(tmp_path, capsys):
    a, b = usual(), usual()
    b["machine"]["name"], b["settings"]["cache"] = "another CPU", "warm"
    files.write(a, tmp_path / "a.json")
    files.write(b, tmp_path / "b.json")
    argv = ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "another machine: 'a CPU' and 'another CPU'" in error and "another cache" in error
    assert main([*argv, "--force"]) == 0
    assert "warning" in capsys.readouterr().out


def test_rows_without_a_partner_are_named(tmp_path, capsys):
    a = document([entry("direct", "convkit", 20, marks=["picked"])])
    b = document(
        [entry("direct", "convkit", 20, marks=["picked"])],
        [entry("direct", "convkit", 20, marks=["picked"])],
    )
    _, unmatched = compare.compare(a, b)
    assert len(unmatched) == 1 and "only in the second" in unmatched[0]
    a["rows"] = []
    files.write(a, tmp_path / "a.json")
    files.write(b, tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "no row in common" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------
def test_a_table_shows_who_won_and_every_mark():
    (row,) = document(
        [
            entry("direct", "convkit", 20, marks=["picked", "not yet run on a GPU"]),
            entry("torch", "PyTorch", 30, marks=["tuned"], deterministic=False, rounds=3),
            {**entry("jax", "JAX", 10), "refused": "it broke"},
        ]
    )["rows"]
    text = tables.row_table(row)
    lines = text.splitlines()
    assert next(i for i, s in enumerate(lines) if s.startswith("direct")) < next(
        i for i, s in enumerate(lines) if s.startswith("torch")
    )
    for words in ("not yet run on a GPU", "tuned", "differ", "jax: it broke", "only 3 rounds", "1st of 2"):
        assert words in text, words


def test_what_the_host_needed_stands_beside_the_time_of_the_device():
    """On a GPU; who has the host's time in its own has no verdict against a time of the device alone."""
    quick = {**entry("jax", "JAX", 10, marks=["host included"]), "host_us": 10123.4}
    mine = {**entry("direct", "convkit", 20, marks=["picked"]), "host_us": 26.25}
    made = document([mine, entry("torch", "PyTorch", 30), quick])
    (row,) = made["rows"]
    text = tables.row_table(row)
    heads, _, *lines = text.split("\n\n")[1].splitlines()
    assert heads.split()[:5] == ["entry", "layout", "ms", "interval", "host"]
    assert [line.split()[0] for line in lines[:3]] == ["jax", "direct", "torch"]
    for line, words in zip(lines, (" 10,123 ", " 26.2 ", " - ")):
        assert words in line, line
    assert "host included" in lines[0] and "1st of 2" in text
    assert row["ranking"]["against"]["best"]["name"] == "torch" and "JAX" not in row["ranking"]["against"]
    summary = tables.summary(made)
    assert "host us   that the host needs" in summary and "host included: it waits" in summary
    assert shape_faults(made) == [] and failures(made) == []
    mine["marks"].append("host included")  # then it is of the same kind as the other that waits
    (row,) = document([mine, entry("torch", "PyTorch", 30), quick])["rows"]
    assert row["ranking"]["against"]["best"]["name"] == "jax" and row["ranking"]["of"] == 2


def test_capsules_without_the_hosts_time_read_as_before():
    made = document([entry("direct", "convkit", 20, marks=["picked"]), entry("torch", "PyTorch", 30)])
    for c in made["rows"][0]["contenders"]:
        c.pop("host_us", None)
    assert shape_faults(made) == []
    assert "host" not in tables.row_table(made["rows"][0]) and "host us" not in tables.summary(made)
    made["rows"][0]["contenders"][0]["host_us"] = -1.0
    assert shape_faults(made) == ["rows[0].contenders[0].host_us is -1.0, not a number of at least 0"]


def shape_faults(made):
    return list(shape.faults(made, shape.DOCUMENT))


def test_the_summary_names_what_is_missing_and_what_failed():
    made = usual()
    made["missing"] = {"cudnn": "not installed"}
    made["failures"] = [{"row": "a row", "contender": None, "reason": "no memory; try --batch 8"}]
    made["conditions"] = [{"t": 0, "others": 0.5, "throttle": ["power cap"]}]
    text = tables.summary(made)
    for words in ("cuDNN did not take part: not installed", "try --batch 8", "others took 50%", "power cap"):
        assert words in text, words


@pytest.mark.parametrize(("number", "word"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (23, "23rd")])
def test_ordinals(number, word):
    assert tables.ordinal(number) == word
