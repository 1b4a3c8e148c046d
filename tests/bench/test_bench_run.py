"""`convkit bench`: what is measured, who takes part, and what happens when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from blocks import BLOCKED
from conftest import need

from convkit.bench import peers, steps, work
from convkit.bench.geometries import GEOMETRIES
from convkit.bench.measure import clocks, own, timing, whole
from convkit.bench.measure.entry import Checks, Result, Settings
from convkit.bench.peers import whole as networks
from convkit.bench.results import files, fits, run, sources, verify
from convkit.check import inputs as fill
from convkit.check.cases import Case
from convkit.check.tolerance import expected
from convkit.cli import main
from convkit.cpu import extension
from convkit.errors import ConvkitError, OptionError
from convkit.op import OPS
from convkit.ops.conv2d import Conv2d

SMALL = "2,8,9,9,16,3,3,pad=1"


class FakeClock:
    """Fixed ceilings; never asked for a time, since `race` is replaced."""

    name, device, slack_ms = "fake", "cpu", 0.0

    def ceilings(self):
        return {
            "fma": {"unit": "GFLOP/s", "value": 1e6, "samples": [1e6], "method": "made up"},
            "copy": {"unit": "GB/s", "value": 1e6, "samples": [1e6], "method": "made up"},
        }


def fake_race(item, entries, clock, settings, progress, ceilings):
    """Every entry takes as many ms as its name has letters."""
    result = Result(item)
    for c in entries:
        result.samples[c.name] = [[float(len(c.name))] * 2 for _ in range(settings.rounds)]
        result.checks[c.name] = Checks("passed", "passed", "passed", 1e-7, True, 3)
    result.conditions = [{"t": 0.5, "row": item.id, "others": 0.0}]
    return result


def a_run(tmp_path, monkeypatch, race=fake_race, before=None, **more):
    monkeypatch.setattr(run, "race", race)
    options = run.Options(settings=Settings(rounds=6), path=tmp_path / "run.json", **more)
    return run.Run(options, peers.Field(), FakeClock(), before)


def test_what_the_host_needed_is_kept_and_who_waits_is_marked(tmp_path, monkeypatch):
    """As a race on a GPU tells it; on a CPU there is nothing to tell."""

    def on_a_gpu(*given):
        result = fake_race(*given)
        first, second, *_ = result.samples
        result.note_host(first, [30.0, 20.0, 90.0], False)
        result.note_host(second, [4e3, 5e3], True)
        return result

    items = some_items(1)
    made = a_run(tmp_path, monkeypatch, race=on_a_gpu).measure(items)
    first, second, *others = files.load(tmp_path / "run.json")["rows"][0]["contenders"]
    assert first["host_us"] == 30.0 and "host included" not in first["marks"]
    assert second["host_us"] == 4500.0 and "host included" in second["marks"]
    assert all(c["host_us"] is None for c in others) and made["rows"]
    made = a_run(tmp_path, monkeypatch).measure(items)
    assert all(
        c["host_us"] is None and "host included" not in c["marks"] for c in made["rows"][0]["contenders"]
    )


def some_items(count=3):
    return work.items(
        work.Wanted(convs=tuple(f"{n},4,6,6,8,3,3" for n in range(1, count + 1)), directions=("fwd",))
    )


# ---------------------------------------------------------------------------------------------------
# Items
# ---------------------------------------------------------------------------------------------------
def test_a_network_gives_its_layers():
    found = work.items(work.Wanted())
    by_layer = {(i.layer, i.direction): i for i in found}
    conv2 = by_layer["conv2", "wgrad"]
    assert conv2.id == "alexnet-paper/conv2/conv2d_wgrad/N=16/float32/fp32"
    assert conv2.problem == Conv2d.of((16, 96, 27, 27), (256, 48, 5, 5), padding=2, groups=2)
    assert conv2.flops == conv2.problem.flops("conv2d_wgrad") and conv2.bytes == conv2.problem.bytes(
        "x", "dy", "dw"
    )
    assert by_layer["conv1", "fwd"].absent == ("b",)
    assert by_layer["conv1+relu1", "fwd"].options == {"relu": True}
    assert by_layer["norm1+pool1", "dgrad"].op == "lrn_maxpool2d_dgrad"
    assert {"conv1", "norm2", "pool5", "fc6", "drop7", "loss", "relu3"} <= {i.layer for i in found}
    assert {i.direction for i in found} == set(work.USUAL)


@pytest.mark.parametrize("preset", ["paper", "2012", "caffe", "owt", "small"])
def test_every_item_of_every_preset_has_a_entry_and_is_read_back(preset):
    for item in work.items(work.Wanted(preset=preset, batches=(2,), directions=work.DIRECTIONS)):
        entries = own.entries(item)
        assert entries, item.id
        assert len({c.name for c in entries}) == len(entries)
        picked = [c for c in entries if own.PICKED in c.marks]
        assert len(picked) == 1, item.id
        row = json.loads(json.dumps(run.new_row(item)))
        again = work.item_of(row)
        assert (again.problem, again.flops, again.bytes) == (item.problem, item.flops, item.bytes)


def test_choices_narrow_it_down():
    wanted = work.Wanted(layers=("conv2", "norm1"), directions=("fwd", "dgrad"), batches=(1, 4))
    found = work.items(wanted)
    assert [(i.layer, i.direction, i.batch) for i in found][:2] == [
        ("norm1", "fwd", 1),
        ("norm1", "dgrad", 1),
    ]
    assert len(found) == 8
    found = work.items(work.Wanted(ops=("lrn_fprop",), dtypes=("float32", "bfloat16")))
    assert [i.layer for i in found] == ["norm1", "norm2"] * 2
    assert found[2].problem.dtype == found[2].dtype == "bfloat16"
    (update,) = work.items(work.Wanted(layers=("fc8.w",), directions=("update",)))
    assert update.op == "sgd_momentum" and update.options["momentum"] == 0.9


def test_a_geometry_of_ones_own():
    found = work.items(work.Wanted(convs=("8,64,56,57,128,3,1,stride=2x1,pad=1,dilation=2,groups=4",)))
    assert [i.op for i in found] == ["conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"]
    g = found[0].problem
    assert (g.N, g.C, g.H, g.W, g.K, g.R, g.S) == (8, 64, 56, 57, 128, 3, 1)
    assert (g.stride_h, g.stride_w, g.pad_top, g.pad_right, g.dilation_w, g.groups) == (2, 1, 1, 1, 2, 4)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"layers": ("conv9",)}, "unknown layer .* 'conv9'; did you mean 'conv\\d'"),
        ({"ops": ("lrn",)}, "unknown op 'lrn'"),
        ({"net": "vgg"}, "unknown network 'vgg'. Known: alexnet"),
        ({"preset": "1998"}, "unknown preset"),
        ({"directions": ("up",)}, "unknown direction 'up'. Known: bgrad, dgrad, fwd"),
        ({"dtypes": ("int8",)}, "unknown dtype 'int8'"),
        ({"math": "fp8"}, "unknown math"),
        ({"layers": ("norm1",), "directions": ("wgrad",)}, "norm1 has no op in wgrad"),
        ({"ops": ("loss_summary",), "directions": ("wgrad",)}, "loss_summary has no op in wgrad"),
        ({"ops": ("loss_summary",), "layers": ("fc8",)}, "nothing to measure: loss_summary, fc8 has no row"),
        ({"geometries": ("lenet",)}, "unknown geometry 'lenet'"),
        ({"convs": ("1,2,3",)}, "takes 7 sizes"),
        ({"convs": ("1,2,3,4,5,6,x",)}, "must be a whole number, not 'x'"),
        ({"convs": ("1,2,-3,4,5,6,7",)}, "must be a whole number"),
        ({"convs": ("8,64,5,5,128,7,7",)}, "the window spans 7 pixels"),
        ({"convs": ("8,64,9,9,128,3,3,groups=3",)}, "not divisible by groups = 3"),
        ({"convs": ("8,64,9,9,128,3,3,groups=0",)}, "not divisible by groups = 0"),
        ({"convs": ("8,64,9,9,128,3,3,strid=2",)}, "unknown option 'strid'; did you mean 'stride'"),
        ({"convs": ("8,64,9,9,128,3,3,stride=0",)}, "stride must be at least 1"),
        ({"convs": ("8,64,9,9,128,3,3,stride=1x2x3",)}, "stride is one number, or two"),
        ({"convs": ("stride=2,8,64,9,9,128,3,3",)}, "sizes come before the options"),
        ({"convs": ("0,64,9,9,128,3,3",)}, "an empty batch takes no time"),
        ({"convs": ("8,64,9,9,0,3,3",)}, "at least one filter|must be positive"),
    ],
)
def test_bad_requests_are_refused_in_one_line(wanted, message):
    with pytest.raises(ConvkitError, match=message) as caught:
        work.items(work.Wanted(**wanted))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------
# Entries
# ---------------------------------------------------------------------------------------------------
def outputs_of(entry, item, seed=0):
    """Run an entry as the race does, on the gate's inputs; what it gave, and what is right."""
    case = Case(item.op, item.problem, "test", dict(item.options), absent=item.absent)
    given = fill.make(case, seed)
    wanted = expected(item.op, item.problem, given, dict(item.options))
    room = {
        name: np.full(item.problem.shape(name), 7, item.problem.dtype_of(name))
        for name in OPS[item.op].outputs
    }
    entry.bind(given, room)()
    return (entry.read() if entry.read else room), wanted


@pytest.mark.parametrize("op", ["loss_summary", "label_rank", "avgpool2d_fprop", "avgpool2d_dgrad"])
def test_an_op_that_no_layer_has_is_measured_on_its_own_cases(op):
    items = work.items(work.Wanted(ops=(op,), batches=(4,)))
    assert [item.problem.N for item in items] == [4] * len(list(OPS[op].cases.layers()))
    clock = clocks.CpuClock(1, flush_bytes=4)
    clock.probe = clock.ceilings = dict
    for item in items:
        assert steps.item_of(run.new_row(item)) == item
        found = own.entries(item)
        result = timing.race(item, found, clock, Settings(rounds=1, turn_s=0, pause_s=0, gate=False))
        assert result.refused == {} and set(result.samples) == {c.name for c in found} != set()


def test_the_geometries_are_convolutions_with_names_of_their_own():
    items = work.items(work.Wanted(geometries=tuple(GEOMETRIES)))
    assert len(items) == 3 * len(GEOMETRIES) == len({item.id for item in items})
    assert items[0].id == "conv/vgg-1.1/conv2d_fprop/N=4/float32/fp32"
    few = work.quick(work.Wanted(geometries=tuple(GEOMETRIES)))
    assert few.geometries == ("resnet-256", "mobilenet-dw-down", "mobilenet-pw-in", "inception-5x5")
    one = next(item for item in items if "/inception-1x7/" in item.id)
    assert (one.problem.P, one.problem.Q) == (one.problem.H, one.problem.W)  # its padding keeps the size


def tiny(op):
    """Small items of an op; for a network's layers, their gate cases."""
    from convkit.check import cases

    found = [c for c in cases(op) if not c.heavy and not c.problem.empty and c.fill == "normal"]
    for number, case in enumerate(found[:: max(1, len(found) // 6)]):
        yield work.Item(
            f"{op}/{number}", op, case.problem, options=case.options, absent=case.absent, net="gate"
        )


@pytest.mark.parametrize("op", [name for name in OPS if not name.startswith("dropout")])
def test_convkits_entries_are_right_in_every_layout(op):
    seen = set()
    for item in tiny(op):
        for c in own.entries(item, reference=True, every_layout=True):
            got, wanted = outputs_of(c, item)
            seen.add(c.layout)
            for name, want in wanted.items():
                reason = np.abs(got[name].astype(np.float64) - want.value).max(initial=0)
                assert reason <= 10 * max(want.bound(c.implementation.error).max(initial=0), 1e-6), (
                    c.name,
                    name,
                )
    assert seen


#: Ops that some other library has.
RACED = [name for name in OPS if not name.startswith("dropout") and "sgd" not in name and name != "reorder"]


@pytest.mark.parametrize("peer", ["torch", "onnxruntime", "jax"])
def test_peers_do_the_same_work(peer):
    need(peer)
    field = peers.gather([peer], "cpu")
    assert peer in field.about, field.missing
    done = 0
    for op in RACED:
        for item in list(tiny(op))[: 2 if peer != "torch" else 6]:
            found, lacking = field.entries(item, "cpu")
            assert found or lacking[peer]
            assert "Error" not in lacking.get(peer, ""), lacking
            for c in found:
                got, wanted = outputs_of(c, item)
                for name, value in got.items():
                    assert value.shape == wanted[name].value.shape, (c.name, item.problem)
                    np.testing.assert_allclose(value, wanted[name].value, rtol=2e-3, atol=2e-4)
                done += 1
    assert done >= (8 if peer == "onnxruntime" else 20)


def test_a_peer_that_lacks_an_op_says_so():
    need("torch")
    field = peers.gather(["torch"], "cpu")
    (item,) = work.items(work.Wanted(layers=("drop6",), directions=("fwd",)))
    found, lacking = field.entries(item, "cpu")
    assert not found and "other random numbers" in lacking["torch"]


def test_who_is_not_installed_is_missing_and_who_is_unknown_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    field = peers.gather(["jax"], "cpu")
    assert not field.modules and "pip install jax" in field.missing["jax"]
    with pytest.raises(OptionError, match="unknown library 'tensorflow'"):
        peers.gather(["tensorflow"], "cpu")
    assert peers.gather(["none"], "cpu") == peers.Field()
    assert "CPU provider" in peers.gather(["onnxruntime"], "cuda").missing["onnxruntime"]


def test_the_plans_layout_is_picked_in_a_network_and_nchw_elsewhere():
    if missing := extension.kernels_missing():
        assert not os.environ.get("CI"), missing
        pytest.skip(missing)
    (layer,) = work.items(work.Wanted(layers=("conv3",), directions=("fwd",)))
    marks = {c.layout: c.marks for c in own.entries(layer) if c.name.startswith("winograd")}
    assert marks == {"NCHW": (own.PICKED_NCHW,), BLOCKED: (own.PICKED,)}
    item = work.items(work.Wanted(convs=("16,256,13,13,384,3,3,pad=1",), directions=("fwd",)))[0]
    (pick,) = (c for c in own.entries(item) if own.PICKED in c.marks)
    assert pick.layout == "NCHW"
    assert {c.layout for c in own.entries(item)} == {"NCHW", BLOCKED}
    assert len({c.layout for c in own.entries(item, every_layout=True)}) == 4


def test_cuda_kernels_are_marked_until_a_gpu_has_run_them():
    item = some_items(1)[0]
    assert all(own.UNRUN in c.marks for c in own.entries(item, "cuda"))
    described = sources.describe([c.implementation for c in own.entries(item, "cuda")])
    record = described["conv2d_fprop/implicit_gemm"]
    assert record["file"] == "kernels/conv2d_fprop_implicit_gemm.cu" and record["status"] == sources.UNRUN
    assert "kernels/convkit.cuh" in record["includes"] and len(record["source_sha256"]) == 64


# ---------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------
def test_a_run_is_a_capsule_that_verifies(tmp_path, monkeypatch):
    made = a_run(tmp_path, monkeypatch).measure(some_items())
    assert files.load(tmp_path / "run.json") == made
    assert [f for f in verify.verify(made) if f.state == verify.FAIL] == []
    assert len(made["rows"]) == 3 and not made["interrupted"] and made["conditions"][0]["others"] == 0.0
    row = made["rows"][0]
    assert row["ranking"]["own"] and row["contenders"][0]["error"] == 1e-7
    keys = {f"{c['name'].partition(' ')[0]}" for c in row["contenders"]}
    assert {f"conv2d_fprop/{k}" for k in keys} <= set(made["kernels"])


def test_the_file_is_written_after_every_row(tmp_path, monkeypatch):
    seen = []

    def race(item, *rest):
        seen.append(len(files.load(tmp_path / "run.json")["rows"]))
        return fake_race(item, *rest)

    a_run(tmp_path, monkeypatch, race).measure(some_items())
    assert seen == [0, 1, 2]


def test_a_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch):
    def race(item, *rest):
        if item.batch == 2:
            raise KeyboardInterrupt
        return fake_race(item, *rest)

    made = a_run(tmp_path, monkeypatch, race).measure(some_items())
    assert made["interrupted"] and len(made["rows"]) == 1
    assert files.load(tmp_path / "run.json")["interrupted"]


def test_a_row_that_was_cut_short_is_kept_and_measured_again_later(tmp_path, monkeypatch):
    def race(item, *rest):
        result = fake_race(item, *rest)
        if item.batch == 2:
            result.samples = {name: rounds[:1] for name, rounds in result.samples.items()}
            result.interrupted = True
        return result

    made = a_run(tmp_path, monkeypatch, race).measure(some_items())
    assert [len(r["contenders"][0]["samples_ms"]) for r in made["rows"]] == [6, 1] and made["interrupted"]
    again = a_run(tmp_path, monkeypatch, before=made).measure(some_items())
    assert [len(r["contenders"][0]["samples_ms"]) for r in again["rows"]] == [6, 6, 6]
    assert not again["interrupted"] and again["resumed"] == 1


def test_a_run_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    measured = []

    def race(item, *rest):
        measured.append(item.batch)
        if measured == [1, 2]:
            raise Killed
        return fake_race(item, *rest)

    with pytest.raises(Killed):
        a_run(tmp_path, monkeypatch, race).measure(some_items())
    before = files.load(tmp_path / "run.json")
    made = a_run(tmp_path, monkeypatch, race, before=before).measure(some_items())
    assert measured == [1, 2, 2, 3]
    assert [row["batch"] for row in made["rows"]] == [1, 2, 3] and made["resumed"] == 1
    assert made["rows"][0] == before["rows"][0] and made["created"] == before["created"]


def test_what_has_changed_is_not_gone_on_with(tmp_path, monkeypatch):
    before = a_run(tmp_path, monkeypatch).measure(some_items(1))
    monkeypatch.setattr(run, "race", fake_race)

    def resume(settings=None, document=before):
        options = run.Options(settings=settings or Settings(rounds=6), path=tmp_path / "run.json")
        return run.Run(options, peers.Field(), FakeClock(), document)

    assert resume()
    with pytest.raises(OptionError, match="rounds was 6, and is 7; --overwrite"):
        resume(Settings(rounds=7))
    with pytest.raises(OptionError, match="cache was 'cold', and is 'warm'"):
        resume(Settings(rounds=6, cache="warm"))
    other = {**before, "machine": {**before["machine"], "name": "another"}}
    with pytest.raises(OptionError, match="machine's name was 'another'"):
        resume(document=other)
    kernels = {k: {**e, "source_sha256": "0" * 64} for k, e in before["kernels"].items()}
    with pytest.raises(OptionError, match="convkit/cpu/.*py has changed since"):
        resume(document={**before, "kernels": kernels})


@pytest.fixture
def mine(tmp_path):
    """A user's file, and how it is registered; what it registers is forgotten."""
    from convkit import discovery, registry

    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np, convkit as ck\n"
        "@ck.implements('relu_fprop', name='bench_mine', rank=-1)\n"
        "def relu(problem, x, y):\n    np.maximum(x, 0, out=y)\n"
    )

    def forget():
        for key in [k for k in registry._IMPLEMENTATIONS if k[2].startswith("bench_")]:
            del registry._IMPLEMENTATIONS[key]

    def register(file=path):
        forget()
        return discovery.register(file)

    register.path = path
    yield register
    forget()


def test_a_users_kernel_that_has_changed_is_not_gone_on_with(tmp_path, monkeypatch, mine):
    items = work.items(work.Wanted(layers=("relu7",), directions=("fwd",), batches=(1, 2)))
    before = a_run(tmp_path, monkeypatch, users=mine()).measure(items[:1])
    made = a_run(tmp_path, monkeypatch, users=mine(), before=before).measure(items)
    assert len(made["rows"]) == 2 and "relu_fprop/bench_mine" in made["kernels"]
    other = mine.path.with_name("other.py")
    other.write_text(mine.path.read_text() + "# changed\n")
    with pytest.raises(OptionError, match="other.py has changed since"):
        a_run(tmp_path, monkeypatch, users=mine(other), before=before)
    mine.path.write_text(other.read_text())
    with pytest.raises(OptionError, match="mine.py has changed since"):
        a_run(tmp_path, monkeypatch, users=mine(), before=before)


def test_a_run_that_goes_on_keeps_what_is_known_of_its_kernels(tmp_path, monkeypatch):
    before = a_run(tmp_path, monkeypatch).measure(some_items(1))
    key = "conv2d_fprop/im2col_gemm"
    for record in before["kernels"].values():
        record["status"] = sources.UNRUN
    code = {"cubins": ["a" * 64], "cubin_sha256": "a" * 64, "status": sources.RUN}
    before["kernels"][key] = {**before["kernels"][key], **code}
    told = {}

    def describe(implementations, problems, arch, ran):
        told.update(problems=dict(problems), ran=set(ran))
        found = sources_describe(implementations, problems, arch, ran)
        return {k: {**e, "cubins": ["b" * 64]} for k, e in found.items()}

    def race(item, entries, *rest):
        result = fake_race(item, entries, *rest)
        result.samples.clear()  # nobody is timed in the row that is added
        return result

    sources_describe = sources.describe
    monkeypatch.setattr(sources, "describe", describe)
    made = a_run(tmp_path, monkeypatch, race, before=before).measure(some_items(2))
    assert told["ran"] == {key}
    assert made["kernels"][key]["cubins"] == ["a" * 64, "b" * 64]
    assert made["kernels"][key]["cubin_sha256"] not in ("a" * 64, "b" * 64)


def test_no_memory_proposes_a_smaller_batch_and_the_others_go_on(tmp_path, monkeypatch):
    def race(item, *rest):
        if item.batch == 3:
            raise MemoryError("Unable to allocate 9 GiB")
        return fake_race(item, *rest)

    made = a_run(tmp_path, monkeypatch, race).measure(some_items(4))
    assert [row["batch"] for row in made["rows"]] == [1, 2, 4]
    (failure,) = made["failures"]
    assert failure["row"].startswith("conv/3,") and failure["reason"] == "Unable to allocate 9 GiB; try N = 1"
    (layer,) = work.items(work.Wanted(layers=("conv2",), directions=("fwd",), batches=(128,)))
    assert fits.smaller_batch(layer, 0.3) == "; try --batch 32"
    assert fits.smaller_batch(replace(layer, batch=1)) == ""


def test_an_item_that_cannot_fit_is_refused_before_it_is_tried(monkeypatch):
    (item,) = work.items(work.Wanted(layers=("conv2",), directions=("fwd",), batches=(128,)))
    fits.require_memory(item, "cpu")
    monkeypatch.setattr(fits, "available_bytes", lambda device: 100 << 20)
    with pytest.raises(MemoryError, match=r"it takes some .* GiB .* 0\.1 are free") as caught:
        fits.require_memory(item, "cpu")
    assert fits.out_of_memory(caught.value)
    assert 1 <= int(fits.smaller_batch(item, caught.value.share).split()[-1]) < 32


def test_a_entry_that_fails_is_recorded_and_the_others_count(tmp_path, monkeypatch):
    def race(item, entries, *rest):
        result = fake_race(item, entries, *rest)
        last = entries[-1].name
        result.refused[last] = "RuntimeError: CUDNN_STATUS_INTERNAL_ERROR"
        del result.samples[last]
        return result

    made = a_run(tmp_path, monkeypatch, race).measure(some_items(1))
    (failure,) = made["failures"]
    assert failure["reason"].startswith("RuntimeError: CUDNN") and failure["contender"] == "im2col_gemm"
    refused = [c for c in made["rows"][0]["contenders"] if c["refused"]]
    assert len(refused) == 1 and made["rows"][0]["ranking"]["own"]
    assert [f for f in verify.verify(made) if f.state == verify.FAIL] == []


def test_a_peer_that_breaks_is_no_reason_to_lose_the_row():
    class Broken:
        @staticmethod
        def entries(item, device):
            raise RuntimeError("libcudnn.so is of another version\nand more")

    field = peers.Field(modules={"cudnn": Broken})
    assert field.entries(some_items(1)[0], "cpu")[1] == {
        "cudnn": "RuntimeError: libcudnn.so is of another version"
    }


def test_a_higher_probe_raises_the_ceiling_of_every_row(tmp_path, monkeypatch):
    def race(item, *rest):
        result = fake_race(item, *rest)
        result.probes = {"fma": [2e6 if item.batch == 2 else 1.0], "copy": [1.0]}
        return result

    made = a_run(tmp_path, monkeypatch, race).measure(some_items(2))
    assert made["ceilings"]["fma"]["value"] == 2e6
    assert [f for f in verify.verify(made) if f.state == verify.FAIL] == []


# ---------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------
def test_a_step_counts_its_ops():
    (item,) = steps.items(work.Wanted(batches=(128,)))
    assert item.id == "alexnet-paper/step/step/N=128/float32/fp32" and item.direction == "step"
    forward = {i.layer: i.flops for i in work.items(work.Wanted(batches=(128,), directions=("fwd",)))}
    heavy = sum(
        f for name, f in forward.items() if name in {f"conv{i}" for i in range(1, 6)} | {"fc6", "fc7", "fc8"}
    )
    assert item.flops == pytest.approx(3 * heavy - forward["conv1"], rel=0.02)  # no gradient of the images
    assert item.bytes == 4 * (4 * 60_965_224 + 128 * 3 * 224 * 224)
    with pytest.raises(OptionError, match="unknown dtype of --step 'float16'"):
        steps.items(work.Wanted(dtypes=("float16",)))


class Network:
    """Stands in for a whole network: right, or wrong in a way that is asked for."""

    def __init__(self, item, fault=""):
        self.item, self.fault, self.steps = item, fault, 0
        self.params = {"fc8.w": np.zeros(3)}

    def logits(self, x):
        return whole._reference("paper", 2)[0] * (1.1 if self.fault == "logits" else 1)

    def gradients(self, x, dlogits):
        return {
            n: g * (1.1 if self.fault == "gradients" else 1)
            for n, g in whole._reference("paper", 2)[2].items()
        }

    def load(self, x, labels):
        pass

    def step(self):
        self.steps += 1
        if self.fault == "explodes" and self.steps > 3:
            return float("nan")
        self.params["fc8.w"] = self.params["fc8.w"] + (self.fault != "lazy")
        return 1.0


def test_steps_are_checked_and_take_turns(monkeypatch):
    reference = np.ones((2, 5)), np.ones((2, 5)), {"conv1.w": np.ones(4)}
    monkeypatch.setattr(whole, "_reference", lambda preset, batch: reference)
    monkeypatch.setattr(whole, "images", lambda preset, batch: (np.zeros((2, 3)), np.zeros(2)))
    (item,) = steps.items(work.Wanted(batches=(2,)))

    class Clock(FakeClock):
        def time(self, call):
            call()
            return 5.0

        def probe(self):
            return {"fma": 1e6}

    entries = [
        networks._entry(name, "a library", (), item, lambda name=name: Network(item, name))
        for name in ("", "logits", "gradients", "lazy", "explodes")
    ]
    result = whole.race(item, entries, Clock(), Settings(rounds=6, pause_s=0), lambda text: None)
    assert list(result.samples) == [""] and len(result.samples[""]) == 6
    assert "its logits is 1.0e-01" in result.refused["logits"]
    assert "the gradient of conv1.w" in result.refused["gradients"]
    assert "does not change the weights" in result.refused["lazy"]
    assert "its loss is nan" in result.refused["explodes"]
    checks = result.checks[""].as_dict()
    assert checks == {"before": "passed", "during": "unchecked", "after": "unchecked"}


def test_a_step_names_the_kernels_of_its_plan(tmp_path, monkeypatch):
    ran = own.entries(some_items(1)[0])[0].implementation

    def race(item, entries, *rest):
        entries[0].kernels = [(ran, some_items(1)[0].problem)]  # as its trial does
        return fake_race(item, entries, *rest)

    monkeypatch.setattr(whole, "race", race)
    made = a_run(tmp_path, monkeypatch).measure(steps.items(work.Wanted(batches=(2,))))
    assert list(made["kernels"]) == [sources.key_of(ran)]
    assert [f for f in verify.verify(made) if f.state == verify.FAIL] == []


@pytest.mark.slow
def test_steps_of_every_library_are_right(tmp_path, quick_ceilings):
    for library in ("torch", "jax", "onnxruntime"):
        need(library)
    path = tmp_path / "run.json"
    argv = ["--step", "--batch", "1", "--quick", "--rounds", "2", "--budget", "0.5", "--device", "cpu"]
    assert main(["bench", *argv, "--json", str(path)]) == 0
    made = files.load(path)
    assert made["failures"] == []
    found = {c["name"]: c for c in made["rows"][0]["contenders"]}
    assert found.pop("onnxruntime")["refused"] == "trains nothing"
    assert list(found) == ["convkit", "torch", "torch channels_last", "jax"]
    for c in found.values():
        assert c["refused"] is None and c["samples_ms"] and c["error"] < whole.GRADIENTS
    names = {key.partition("/")[0] for key in made["kernels"]}
    assert {"conv2d_fprop", "conv2d_wgrad", "softmax_xent_dgrad"} <= names
    assert [f for f in verify.verify(made) if f.state == verify.FAIL] == []


# ---------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def quick_ceilings(monkeypatch):
    """Nothing that takes seconds; high enough for anything."""
    monkeypatch.setattr(clocks.CpuClock, "ceilings", lambda self: FakeClock.ceilings(self))


QUICK = ["--quick", "--rounds", "6", "--turn", "0.001", "--pause", "0", "--no-gate", "--cache", "warm"]


def test_bench_verify_compare_end_to_end(tmp_path, capsys, quick_ceilings):
    path = tmp_path / "run.json"
    argv = ["bench", "--conv", SMALL, "--directions", "fwd", "--against", "none", "--device", "cpu", *QUICK]
    assert main([*argv, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "(picked) is" in out and "GFLOP/s" in out and "protocol  6 rounds" in out and str(path) in out
    made = json.loads(path.read_text())
    assert made["rows"][0]["contenders"][0]["checks"] == dict.fromkeys(
        ("before", "during", "after"), "passed"
    )
    assert made["rows"][0]["contenders"][0]["error"] < 1e-5
    assert main(["verify", str(path)]) == 0
    assert main([*argv, "--json", str(path)]) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert main([*argv, "--json", str(path), "--resume"]) == 0
    assert "1 of 1 rows are there already" in capsys.readouterr().err
    assert main([*argv, "--rounds", "7", "--json", str(path), "--resume"]) == 2
    assert "rounds was 6, and is 7" in capsys.readouterr().err
    assert main(["compare", str(path), str(path)]) == 0
    assert main(["verify", "--rerun", str(path)]) == 0
    assert "times agree" in capsys.readouterr().out


def test_json_on_stdout_is_all_that_is_there(capsys, quick_ceilings):
    argv = ["bench", "--conv", SMALL, "--directions", "fwd", "--against", "none", "--device", "cpu", *QUICK]
    assert main([*argv, "--json", "-"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["digest"] == files.digest(made)


def test_a_kernel_of_ones_own_takes_part_and_a_wrong_one_is_refused(tmp_path, capsys, quick_ceilings):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np, convkit as ck\n"
        "@ck.implements('relu_fprop', name='bench_mine', rank=-1)\n"
        "def relu(problem, x, y):\n    np.maximum(x, 0, out=y)\n"
        "@ck.implements('relu_dgrad', name='bench_wrong', rank=-1)\n"
        "def back(problem, dy, y, dx):\n    dx[...] = dy\n"
    )
    argv = ["bench", "--layers", "relu7", "--batch", "2", "--against", "none", "--device", "cpu", *QUICK]
    try:
        assert main([*argv, "--kernel", str(path), "--json", str(tmp_path / "run.json")]) == 1
        out = capsys.readouterr().out
        assert "bench_mine" in out and "bench_wrong: " in out
        made = json.loads((tmp_path / "run.json").read_text())
        names = {c["name"]: c["refused"] for row in made["rows"] for c in row["contenders"]}
        assert names["bench_mine"] is None and names["bench_wrong"]
        assert made["kernels"]["relu_fprop/bench_mine"]["file"] == "mine.py"
        assert main(["bench", "--layers", "conv3", "--kernel", str(path), "--device", "cpu"]) == 2
        assert "no row has its op; add --op" in capsys.readouterr().err
    finally:
        from convkit import registry

        for key in [k for k in registry._IMPLEMENTATIONS if k[2].startswith("bench_")]:
            del registry._IMPLEMENTATIONS[key]


def test_json_to_a_closed_standard_output_is_refused_before_anything_is_measured():
    command = f"{sys.executable} -m convkit bench --json - --device cpu --quick >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "convkit bench: --json - needs a standard output, which is closed\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--layers", "conv9"], "unknown layer"),
        (["--conv", "8,64,5,5,128,7,7"], "the window spans 7 pixels"),
        (["--device", "emulator"], "the emulator gives no times"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--against", "tensorflow"], "unknown library 'tensorflow'"),
        (["--batch", "0"], "--batch takes whole numbers"),
        (["--batch", ""], "--batch takes whole numbers with commas between them, not ''"),
        (["--batch", "1,,2"], "--batch takes whole numbers with commas"),
        (["--layers", ","], "--layers takes names with commas"),
        (["--against", "none,torch"], "'none' stands alone"),
        (["--picture", "x.pdf"], "a picture is a PNG"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--budget", "nan"], "--budget must be at least 0"),
        (["--cache", "hot"], "unknown cache 'hot'. Known: cold, warm"),
        (["--json", "/no/such/folder/x.json"], "there is no folder"),
        (["--html", "/no/such/folder/x.html"], "there is no folder"),
        (["--resume"], "--resume needs --json"),
        (["--kernel", "/no/such/file.cu"], "no such file"),
        (["--step", "--layers", "conv1"], "it takes no --layers"),
        (["--threads", "0"], "--threads must be from 1 to 4096"),
        (["--threads", "10000"], "--threads must be from 1 to 4096"),
        (["--op", "lrn"], "unknown op 'lrn'"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys):
    assert main(["bench", *argv, *([] if "--device" in argv else ["--device", "cpu"])]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("convkit bench: ") and "\n" not in error


def test_no_gpu_is_told_as_such(monkeypatch, capsys):
    from convkit import devices

    monkeypatch.setattr(devices, "gpu_found", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "no GPU was found" in capsys.readouterr().err


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, convkit.cli as c; c._parser(); "
        "heavy = ('torch', 'jax', 'onnxruntime', 'matplotlib', 'cupy', 'numba'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_polite_kill_keeps_what_was_measured(tmp_path):
    path = tmp_path / "run.json"
    convs = [w for n in range(1, 9) for w in ("--conv", f"{n},8,9,9,16,3,3")]
    argv = [sys.executable, "-m", "convkit", "bench", *convs, "--directions", "fwd", "--against", "none",
            "--device", "cpu", "--no-gate", "--turn", "0.1", "--json", str(path)]  # fmt: skip
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (path.exists() and json.loads(path.read_text())["rows"]):
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and b"--resume goes on with it" in out
    made = files.load(path)
    assert made["interrupted"] and 1 <= len(made["rows"]) < 8


def test_threads_are_those_of_numpys_blas_too():
    code = (
        "import numpy, threadpoolctl\n"
        "from convkit.bench.command import use_threads\n"
        "use_threads(1)\n"
        "print({i['user_api']: i['num_threads'] for i in threadpoolctl.threadpool_info()})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == {"convkit": 1, "blas": 1}


def test_a_machine_is_known_by_the_kernels_that_run():
    code = "from convkit.bench.results import machine; print(machine.machine()['isa'])"
    for isa in extension.isas():
        environment = {**os.environ, "CONVKIT_ISA": isa}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == isa, done.stderr
