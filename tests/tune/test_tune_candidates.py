"""What the tuner tries and what it leaves out; compiling."""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import pytest
import tuning
from tuning import header

from convkit.bench import work
from convkit.cuda import nvrtc
from convkit.cuda.heuristics import predict
from convkit.cuda.prepare import Runner
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.tune import candidates, compiling, jobs
from convkit.tune.gpus import H200


@pytest.fixture(autouse=True)
def apart():
    with tuning.apart():
        yield


@pytest.fixture
def kernel(tmp_path):
    return functools.partial(tuning.kernel, tmp_path)


# ---- what is tried --------------------------------------------------------------------------------------
def test_all_tiles_of_a_header_are_candidates_each_once(kernel):
    found = kernel(
        """
        tile = { THREADS = 64, UNROLL = 1 }
        grid = ["ceil_div(size, THREADS)"]
        block = ["THREADS"]
        [tune]
        THREADS = [32, 64, 128]
        UNROLL = [1, 2]
        """,
        problem=Elementwise((10**6,)),
    )
    named = {"mine"} | {f"mine[THREADS={t}, UNROLL={u}]" for t in (32, 64, 128) for u in (1, 2)}
    assert set(found) == named - {"mine[THREADS=64, UNROLL=1]"}  # that is "mine" itself
    assert [c.default for c in found.values()].count(True) == 1 and found["mine"].default
    assert not any(c.reason for c in found.values())


GEMM = {"THREAD_M": 8, "THREAD_N": 8}


@pytest.mark.parametrize(
    ("text", "tile", "reason"),
    [
        (header({"T": 64}, {"T": [2048]}, block="T"), "T=2048", "threads: 2048 in a block of"),
        (header({"T": 64}, {"T": [85]}, block="T"), "T=85", "threads: 85 in a block of"),
        (
            header({"STAGES": 2}, {"STAGES": [3, 4]}, shared="STAGES * 65536"), "STAGES=4",
            "shared memory: 262,144 bytes in a block of relu_fprop_mine, of 232,448",
        ),
        (
            header(GEMM, {"THREAD_N": [16, 32]}), "THREAD_N=32",
            "registers: 344 of a thread at the least, of 255 with 1 block of 64 threads on an SM",
        ),
        (
            header({**GEMM, "PER_SM": 1}, {"PER_SM": [2, 3]}, block="256"), "PER_SM=3",
            "registers: 128 of a thread at the least, of 80 with 3 blocks of 256 threads on an SM",
        ),
        (header({"WARP_M": 64, "WARP_N": 64}, {"WARP_N": [128]}), "WARP_N=128", "registers: 352 of a"),
        (
            header({**GEMM, "TILE_M": 64}, {"THREAD_M": [12]}), "THREAD_M=12",
            "tile: TILE_M = 64 is no multiple of THREAD_M = 12",
        ),
        (header({"WIDE": 1}, {"WIDE": [2]}, grid="132//WIDE"), "WIDE=2", "waves: 50% of the best tile's"),
        (header({"WIDE": 1}, {"WIDE": [4]}, when="WIDE < 3"), "WIDE=4", "needs WIDE < 3; here WIDE = 4"),
        (header({"WIDE": 1}, {"WIDE": [0]}, grid="132//WIDE"), "WIDE=0", "its header has no value"),
    ],
    ids=["threads", "warps", "shared", "a thread's", "an SM's", "a warp's", "parts", "waves", "when", "zero"],
)  # fmt: skip
def test_a_tile_that_need_not_be_tried_has_a_reason(kernel, text, tile, reason):
    found = kernel(text)
    assert found[f"mine[{tile}]"].reason.startswith(reason)
    assert not found["mine"].reason


def test_only_what_the_gpu_at_hand_has_no_room_for_is_left_out(kernel):
    text = header({"STAGES": 2}, {"STAGES": [3, 4]}, shared="STAGES * 65536")
    reasons = {n: bool(c.reason) for n, c in kernel(text).items()}
    assert reasons == {"mine": False, "mine[STAGES=3]": False, "mine[STAGES=4]": True}
    roomy = kernel(text, gpu=replace(H200, shared=1 << 20))
    assert not any(c.reason for c in roomy.values())


def test_of_many_tiles_those_of_the_best_prediction_are_tried(kernel):
    found = kernel(header({"A": 1}, {"A": list(range(90, 132))}, grid="A"))
    tried = {name for name, c in found.items() if not c.reason}
    assert tried == {"mine", *(f"mine[A={n}]" for n in range(132 - candidates.MOST_COMPILED, 132))}
    assert all("32 tiles are compiled" in c.reason for name, c in found.items() if name not in tried)
    timed = candidates.first(list(found.values()), candidates.MOST_TILES, "timed")
    assert [c.name for c in timed if not c.reason] == ["mine", *(f"mine[A={n}]" for n in range(116, 132))]


def test_the_tiles_of_a_gemm_are_ordered_by_the_model_of_waves():
    """The default has the tile that the model chooses, and none is tried that the model puts far below."""
    problem = Conv2d.of((128, 3, 224, 224), (96, 3, 11, 11), stride=4, padding=2)
    item = work.Item("conv1", "conv2d_fprop", problem, layer="conv1", options={"relu": False}, absent=("b",))
    (job,) = jobs.of_items([item], "cuda")
    found = {c.name: c for c in candidates.of_job(job) if c.name.startswith("implicit_gemm")}
    default = found["implicit_gemm"]
    assert default.default and not default.reason
    tile = default.implementation.run.fitted(problem).header.tile
    assert tile["TILE_M"] == 96  # not the file's first one
    shown = ", ".join(f"{name}={tile[name]}" for name in sorted(tile) if name != "DEPTH")
    assert f"implicit_gemm[{shown}]" not in found  # it would be tried twice
    assert (
        default.predicted == predict(default.implementation.run.kernel.tiled(tile).header, problem).efficiency
    )
    reasons = {c.reason.partition(":")[0] for c in found.values() if c.reason}
    assert {"registers", "waves"} < reasons
    offered = [c.order[0] for c in sorted(found.values(), key=lambda c: c.order) if c.implementation.tile]
    assert offered == sorted(offered) and offered.count(False) == 2  # those of `tile` and `tiles` come first
    tried = [c.predicted for c in found.values() if not c.reason]
    assert min(tried) >= candidates.WORTH * max(tried) and len(tried) <= candidates.MOST_COMPILED + 1


def test_of_tiles_that_are_alike_those_nearest_to_the_file_s_own_are_tried(kernel):
    values = list(range(1, 8))
    found = kernel(header({"A": 4, "B": 4}, {"A": values, "B": values}, grid="132"))
    tried = {name for name, c in found.items() if not c.reason}
    near = {f"mine[A={a}, B={b}]" for a in values for b in values if (a == 4) != (b == 4)}
    assert len(near) < candidates.MOST_COMPILED < len(found) and near < tried


def test_large_tiles_of_tensor_cores_are_tried_where_the_grid_is_large(kernel):
    """They copy less for what they multiply; where the grid is small, they leave SMs idle."""
    tile = {"TILE_M": 64, "TILE_N": 64, "WARP_M": 32, "WARP_N": 32}
    text = header(tile, {"TILE_M": [128, 256]}, grid="ceil_div(size, TILE_M*TILE_N)")

    def order(size):
        found = kernel(text, problem=Elementwise((size,)))
        return sorted(found, key=lambda name: -found[name].predicted)

    assert order(10**9) == ["mine[TILE_M=256]", "mine[TILE_M=128]", "mine"]
    assert order(50 * 64 * 64)[0] == "mine"


def test_a_second_launch_is_not_what_a_tile_is_chosen_by():
    """Of the sums over slices: a thousand blocks, whatever the tile."""
    item = work.Item("fc", "linear_fprop", Linear.of((128, 9216), (4096, 9216)), layer="fc")
    (job,) = jobs.of_items([item], "cuda")
    every = {c.name: c for c in candidates.of_job(job) if c.name.startswith("gemm")}
    assert not every["gemm[DEPTH=64, PER_SM=2, THREAD_N=16, TILE_K=8, TILE_M=128]"].reason
    found = {name: c.predicted for name, c in every.items()}
    like = "gemm[DEPTH=128, PER_SM={}, THREAD_N=8, TILE_K=8, TILE_M=128]"
    one, two = (found[like.format(n)] for n in (1, 2))
    assert max(one, two) < 1.2 * min(one, two)


def test_a_launch_ahead_is_not_what_a_tile_is_chosen_by(kernel):
    """The one that counts is called as the file is."""
    launches = """
        [[launch]]
        entry = "relu_fprop_mine_first"
        grid = ["1"]
        block = ["256"]
        [[launch]]
        entry = "relu_fprop_mine"
        grid = ["A"]
        block = ["64"]
    """
    text = (
        f"tile = {{ THREAD_M = 8, THREAD_N = 8, PER_SM = 3, A = 132 }}\ntune = {{ A = [33, 100] }}{launches}"
    )
    found = kernel(text)
    assert found["mine[A=33]"].reason.startswith("waves: 25%") and not found["mine[A=100]"].reason


# ---- compiling ------------------------------------------------------------------------------------------
STATIC = 'static_assert(THREADS != 96, "not ninety-six");'


@pytest.mark.parametrize("workers", [1, 2])
def test_candidates_are_compiled_into_the_cache(kernel, cuda_compiler, tmp_path, monkeypatch, workers):
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    found = kernel(
        header({"THREADS": 64}, {"THREADS": [32, 96]}, grid="ceil_div(size, THREADS)", block="THREADS"),
        body=STATIC,
    )
    problem = Elementwise((1000,))
    runners = [c.implementation.run for c in found.values() if c.implementation.tile]
    done = dict(compiling.compiled(runners, problem, "sm_90a", workers=workers))
    assert done[0]["relu_fprop_mine"].registers > 0 and "not ninety-six" in done[1]
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *given, **more: pytest.fail("compiled again"))
    assert dict(compiling.compiled(runners, Elementwise((7,)), "sm_90a", workers=workers)) == done
    compiling._known.clear()
    unit = compiling.translation_unit(runners[0].kernel, problem)
    assert nvrtc.cached_cubin(unit, "sm_90a", include=(tmp_path,), name="relu_fprop_mine")
    assert dict(compiling.compiled([runners[0]] * 2, problem, "sm_90a", workers=1)) == {
        0: done[0],
        1: done[0],
    }


def test_a_process_that_dies_is_an_error(kernel, cuda_compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    found = kernel(header({"T": 64}, {"T": [32, 128]}, grid="ceil_div(size, T)", block="T"))
    runners = [c.implementation.run for c in found.values() if c.implementation.tile]
    monkeypatch.setattr(compiling, "_one", die)
    with pytest.raises(nvrtc.CompileError, match="one of 2 processes that compile died"):
        list(compiling.compiled(runners, Elementwise((1000,)), "sm_90a", workers=2))


def die(*unit):
    """In a process that compiles."""
    os._exit(1)


def test_machine_code_that_is_not_worth_a_try_has_a_reason(kernel):
    found = kernel(header({"T": 1}, {"T": [2]}, block="512", shared="1024"))
    runner: Runner = found["mine"].implementation.run

    def reason(registers=32, spills=0, stack=0, shared=0):
        used = {"relu_fprop_mine": nvrtc.Resources(registers, spills, stack, shared)}
        return candidates.unfit(runner, Elementwise((1000,)), used, H200)

    assert reason() == ""
    assert reason(spills=8) == "registers: relu_fprop_mine spills 8 bytes of them"
    assert reason(stack=8) == "registers: relu_fprop_mine keeps 8 bytes on a stack"
    assert reason(shared=227 << 10).startswith("shared memory: 233,472 bytes")
    assert reason(registers=129) == "registers: 69,632 in a block of relu_fprop_mine, of 65,536"
