"""The shipped kernels as PTX: all are understood, and pass the gate; and what only this engine sees."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from ptx_texts import run

import convkit as ck
from convkit import check, checked, registry
from convkit.check.attempt import FIRST, Question, attempt
from convkit.check.cases import Case, cases
from convkit.check.verdicts import judge
from convkit.cli import main
from convkit.cuda import nvrtc
from convkit.cuda.budget import _sample
from convkit.cuda.header import builtin_files, read
from convkit.cuda.launch import KernelError
from convkit.cuda.ptx import executor, library
from convkit.cuda.ptx.parse import parse
from convkit.cuda.ptx.translate import translate
from convkit.cuda.source import translation_unit
from convkit.errors import MissingExtra, OptionError

need("cuda.core")
pytestmark = pytest.mark.usefixtures("compiler")

ROWS = [
    pytest.param(path, dtype, id=f"{path.stem}-{dtype}")
    for path in builtin_files()
    for dtype in read(path).header.dtypes
]
#: For the quick tests: the first dtype of each kernel. The slow ones have all of them.
QUICK = [row for row in ROWS if row.values[1] == read(row.values[0]).header.dtypes[0]]
OTHER = "sm_90a"


@pytest.fixture(autouse=True)
def registry_as_before():
    ck.implementations()
    before = dict(registry._IMPLEMENTATIONS)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


def implementation(path: Path) -> registry.Implementation:
    kernel = read(path)
    (found,) = (
        i
        for i in registry.implementations(kernel.op.name, device="cuda", layout=None)
        if i.name == kernel.name and i.layout == kernel.header.layout
    )
    return found


def small(op: str) -> list[Case]:
    return [case for case in cases(op) if not case.heavy]


def bits(outputs: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in outputs.items()}


# ---------------------------------------------------------------------------------------------------
# What ships
# ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("path", "dtype"), ROWS)
def test_the_gate(path, dtype):
    gate(path, dtype, 1)


@pytest.mark.parametrize(("path", "dtype"), QUICK)
def test_a_few_cases_of_the_gate(path, dtype):
    gate(path, dtype, 12)


def gate(path: Path, dtype: str, every: int) -> None:
    """Cases that are not heavy; and in a few, the same bits in any order of blocks, warps and lanes.

    Of 16 bits, half as many.
    """
    one = implementation(path)
    with ck.emulate(engine="ptx"):
        taken_by = [case for case in small(one.op) if one.refusal(case.of(dtype).problem, one.math) is None]
        asked_for = taken_by[:: every if dtype == "float32" else 2 * every]
        verdicts = [judge(one, Question.of(case, dtype)) for case in asked_for]
    wrong = [f"{v.case}: {v.reason}" for v in verdicts if not v.ok or v.missing]
    assert not wrong and any(not v.declined for v in verdicts), wrong[:3]
    taken = {v.case for v in verdicts if not v.declined}
    for case in [case for case in small(one.op) if str(case) in taken][-3:]:
        asked = Question.of(case, dtype)
        found = []
        for seed in (None, 1, 2):
            with ck.emulate(engine="ptx", seed=seed):
                run = attempt(one, asked, FIRST)
            assert not run.fault, f"{case}, seed {seed}: {run.fault}"
            found.append(bits(run.outputs))
        assert found[0] == found[1] == found[2], case


@pytest.mark.parametrize(("path", "dtype"), QUICK)
def test_another_architecture(path, dtype):
    """What NVRTC makes for sm_90a is understood too."""
    another_text(path, dtype)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("path", "dtype"), ROWS)
def test_another_architecture_runs(path, dtype):
    """Where it is another text. `test_random_geometries` runs it in every dtype."""
    one = implementation(path)
    if not another_text(path, dtype) or dtype != "float32":
        return
    with ck.emulate(engine="ptx", arch=OTHER):
        for case in small(one.op)[::4]:
            verdict = judge(one, Question.of(case, dtype))
            assert verdict.ok, f"{case}: {verdict.reason}"


def another_text(path: Path, dtype: str) -> bool:
    """Whether the text for the other architecture differs; it has to be translated."""
    kernel = read(path)
    source = translation_unit(kernel, _sample(kernel, dtype))
    texts = [
        nvrtc.cached_ptx(source, arch, include=(path.parent,), name=path.stem) for arch in ("sm_80", OTHER)
    ]
    modules = [parse(text) for text in texts]
    assert [m.target for m in modules] == ["sm_80", OTHER]
    for name in modules[1].entries:
        assert len(translate(modules[1], name, library.find).code) > 10
    plain = [[(str(i), i.operands) for e in m.entries.values() for i in e.instructions] for m in modules]
    return plain[0] != plain[1]


def test_lines_change_no_instruction():
    """With the lines of the source, NVRTC makes the same code as without: the code that a GPU gets."""
    path = next(p for p in builtin_files() if p.stem == "softmax_xent_fprop_row")
    source = translation_unit(read(path), _sample(read(path), "float16"))
    made = [
        parse(nvrtc.compile_ptx(source, "sm_80", include=(path.parent,), lines=lines)).entries[path.stem]
        for lines in (False, True)
    ]
    plain = [[(str(i), i.operands, i.guard) for i in entry.instructions] for entry in made]
    assert plain[0] == plain[1] and made[1].instructions[-1].place is not None
    assert made[0].instructions[-1].place is None


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("path", "dtype"), ROWS)
def test_random_geometries(path, dtype):
    one = implementation(path)
    for number, case in enumerate(check.random_cases(one.op, 12, seed=5)):
        with ck.emulate(engine="ptx", seed=number, arch=("sm_80", OTHER)[number % 2]):
            verdict = judge(one, Question.of(case, dtype))
        assert verdict.ok, f"{case}: {verdict.reason}"


# ---------------------------------------------------------------------------------------------------
# Barriers that are not there
# ---------------------------------------------------------------------------------------------------
#: The kernels with `bar.sync`, and how many they have in the first dtype that they take.
BARRIERS = {
    "conv2d_bgrad_columns": 2,
    "conv2d_bgrad_reduce": 1,
    "conv2d_dgrad_implicit_gemm": 3,
    "conv2d_dgrad_implicit_gemm_mma": 4,
    "conv2d_dgrad_implicit_gemm_tf32": 4,
    "conv2d_dgrad_relu_implicit_gemm": 3,
    "conv2d_dgrad_relu_implicit_gemm_mma": 4,
    "conv2d_dgrad_relu_implicit_gemm_tf32": 4,
    "conv2d_fprop_implicit_gemm": 3,
    "conv2d_fprop_implicit_gemm_mma": 3,
    "conv2d_fprop_implicit_gemm_tf32": 3,
    "conv2d_fprop_tap_rows_mma": 3,
    "conv2d_fprop_tap_rows_tf32": 3,
    "conv2d_wgrad_bgrad_implicit_gemm": 4,
    "conv2d_wgrad_bgrad_implicit_gemm_mma": 1,
    "conv2d_wgrad_bgrad_implicit_gemm_tf32": 1,
    "conv2d_wgrad_bgrad_tap_rows_mma": 1,
    "conv2d_wgrad_bgrad_tap_rows_tf32": 1,
    "conv2d_wgrad_implicit_gemm": 3,
    "conv2d_wgrad_implicit_gemm_mma": 1,
    "conv2d_wgrad_implicit_gemm_tf32": 1,
    "conv2d_wgrad_tap_rows_mma": 1,
    "conv2d_wgrad_tap_rows_tf32": 1,
    "label_rank_row": 1,
    "linear_bgrad_reduce": 3,
    "linear_dgrad_gemm": 3,
    "linear_dgrad_gemm_mma": 3,
    "linear_dgrad_gemm_tf32": 1,
    "linear_dgrad_wgrad_sgd_gemm": 6,
    "linear_dgrad_wgrad_sgd_gemm_tf32": 2,
    "linear_fprop_gemm": 3,
    "linear_fprop_gemm_mma": 3,
    "linear_fprop_gemm_tf32": 1,
    "linear_wgrad_gemm": 3,
    "linear_wgrad_gemm_mma": 3,
    "linear_wgrad_gemm_tf32": 1,
    "linear_wgrad_sgd_gemm": 3,
    "linear_wgrad_sgd_gemm_mma": 1,
    "linear_wgrad_sgd_gemm_tf32": 1,
    "loss_summary_block": 3,
    "lrn_dgrad_map_sliding": 16,
    "lrn_fprop_map_sliding": 8,
    "lrn_maxpool2d_fprop_band": 1,
    "reorder_deinterleave": 3,
    "reorder_interleave": 3,
    "softmax_xent_fprop_row": 2,
}


def without(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Has the runner get texts without their how-manieth barrier; returns what was struck out."""
    struck: list[str] = []
    real = nvrtc.cached_ptx

    def fewer(*arguments, **named):
        text = real(*arguments, **named)
        found = list(re.finditer(r"\bbar\.sync[^;]*;", text))
        if number < len(found):
            struck.append(found[number][0])
            text = text[: found[number].start()] + text[found[number].end() :]
        return text

    monkeypatch.setattr(executor.nvrtc, "cached_ptx", fewer)
    return struck


def goes_wrong(path: Path) -> str:
    """Why the kernel does not pass, in some order of warps and lanes; or nothing."""
    one = implementation(path)
    for case in reversed(small(one.op)):
        asked = Question.of(case, one.dtypes[0])
        for seed in (None, 1, 2, 3):
            with ck.emulate(engine="ptx", seed=seed) as runner:
                runner.steps = 1 << 20
                verdict = judge(one, asked)
            if not verdict.ok:
                return verdict.reason
    return ""


#: The engine of these kernels, and so its barriers, is that of `conv2d_fprop_implicit_gemm` or nearly so; or
#: the same barriers stand in each turn of an unrolled loop.
SHARED = tuple(
    stem
    for stem in BARRIERS
    if ("gemm" in stem or stem.endswith(("_mma", "_tf32", "_map_sliding")))
    and stem != "conv2d_fprop_implicit_gemm"
)


@pytest.mark.parametrize(
    ("stem", "number"),
    [
        pytest.param(stem, number, marks=[pytest.mark.slow] * (stem in SHARED))
        for stem, count in BARRIERS.items()
        for number in range(count)
    ],
)
def test_a_barrier_that_is_not_there_shows(stem, number, monkeypatch):
    struck = without(monkeypatch, number)
    found = goes_wrong(next(path for path in builtin_files() if path.stem == stem))
    assert struck and found


def test_the_barriers_are_counted():
    for path in builtin_files():
        kernel = read(path)
        source = translation_unit(kernel, _sample(kernel, kernel.header.dtypes[0]))
        text = nvrtc.cached_ptx(source, "sm_80", include=(path.parent,), name=path.stem)
        assert len(re.findall(r"\bbar\.sync", text)) == BARRIERS.get(path.stem, 0), path.stem


def test_asynchronous_copies():
    """A product in two stages; with a wait for one group less, what has not come yet is NaN."""
    text = (Path(__file__).parent / "planted" / "sgemm_async.cu").read_text()
    made = nvrtc.compile_ptx(text, "sm_80", name="sgemm_async")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((45, 37), np.float32), rng.standard_normal((37, 50), np.float32)

    def product(text: str) -> np.ndarray:
        c = np.zeros((45, 50), np.float32)
        numbers = [np.int32(n) for n in (45, 50, 37)]
        run(
            text, a, b, c, *numbers, entry="sgemm_async", grid=(2, 2, 1), block=256, shared=4096, outputs=(2,)
        )
        return c

    np.testing.assert_allclose(product(made), a @ b, atol=1e-5)
    late = re.sub(r"(cp\.async\.wait_group\s+)1;", r"\g<1>2;", made)
    assert late != made and np.isnan(product(late)).any()


# ---------------------------------------------------------------------------------------------------
# What the emulator cannot see
# ---------------------------------------------------------------------------------------------------
HIDDEN = """// /// kernel
// op = "relu_fprop"
// tile = { THREADS = 64 }
// grid = ["ceil_div(size, THREADS)"]
// block = ["THREADS"]
// rank = -90
// ///
#include "convkit.cuh"
#if defined(CONVKIT_EMULATOR)
using Numbers = Elementwise;
#else
using Numbers = Elementwise;
#endif
extern "C" __global__ void relu_fprop_hidden(const Numbers g, const float* x, float* y) {
  const long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  float v = i < g.size ? x[i] : 0.0f;
#if defined(CONVKIT_EMULATOR)
  v = __shfl_up_sync(0xffffffffu, __shfl_down_sync(0xffffffffu, v, 1), 1);
  if (threadIdx.x % 32 == 0) v = i < g.size ? x[i] : 0.0f;
#else
  asm volatile("shfl.sync.down.b32 %0, %0, 1, 31, 0xffffffff;" : "+f"(v));
  asm volatile("shfl.sync.up.b32 %0, %0, 1, 0, 0xffffffff;" : "+f"(v));
  if (threadIdx.x % 32 == 0) v = i < g.size ? x[i] : 0.0f;
#endif
  if (i < g.size) y[i] = v < 0 ? 0 : v;
}
"""
#: How a kernel that is right is misread where the emulator does not look: the text, and what it becomes.
MISREAD = {
    "b and c of a shuffle": ('"shfl.sync.up.b32 %0, %0, 1, 0', '"shfl.sync.up.b32 %0, %0, 0, 1'),
    "up for down": ('"shfl.sync.up.b32', '"shfl.sync.down.b32'),
    "a field too many": (
        "#else\nusing Numbers = Elementwise;", "#else\nstruct Numbers { long long version, size; };",
    ),
    "a branch under #if": ("#else\n  asm", "#else\n  if (i == 40) v = 0.0f;\n  asm"),
}  # fmt: skip
#: Stores to 16 bits toward zero, where the twin rounds to nearest.
TOWARD_ZERO = """#include "avgpool2d.cuh"
__device__ __forceinline__ storage_t stored(float value) {
#if defined(CONVKIT_EMULATOR)
  return from_float(value);
#else
  unsigned short bits;
  asm("cvt.rz.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return __ushort_as_half(bits);
#endif
}
"""


def planted(folder: Path, name: str) -> Path:
    if name == "toward zero":
        text = next(p for p in builtin_files() if p.stem == "avgpool2d_fprop_window").read_text()
        path = folder / "avgpool2d_fprop_hidden.cu"
        text = text.replace("avgpool2d_fprop_window", path.stem).replace("from_float(", "stored(")
        text = re.sub(r"(// dtypes *= ).*", r'\1["float16"]', text)
        text = text.replace('#include "avgpool2d.cuh"\n', TOWARD_ZERO)
    else:
        path = folder / "relu_fprop_hidden.cu"
        old, new = MISREAD.get(name, ("", ""))
        assert not name or old in HIDDEN
        text = HIDDEN.replace(old, new) if old else HIDDEN
    path.write_text(text)
    return path


def reasons(path: Path, **how) -> list[str]:
    """Why a kernel file fails in its quick cases; nothing where it passes."""
    (one,) = ck.register(path)
    with ck.emulate(**how):
        found = [judge(one, Question.of(case, one.dtypes[0])) for case in small(one.op)[::3]]
    assert any(not v.declined for v in found)
    return [v.reason for v in found if not v.ok]


@pytest.mark.parametrize("name", ["", *MISREAD, "toward zero"])
def test_what_the_emulator_cannot_see(name, tmp_path):
    path = planted(tmp_path, name)
    assert not reasons(path), "it is right under the emulator"
    found = reasons(path, engine="ptx")
    assert bool(found) == bool(name), found
    if name == "a field too many":
        assert "g: the kernel's parameter has 16 bytes, the value has 8" in found[0]


# ---------------------------------------------------------------------------------------------------
# The ways in
# ---------------------------------------------------------------------------------------------------
def test_an_op_runs_as_ptx():
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8), np.float32)
    w = np.random.default_rng(1).standard_normal((4, 3, 3, 3), np.float32)
    wanted = ck.conv2d_fprop(x, w, padding=1, impl="reference")
    for how in ({}, {"seed": 1}, {"arch": OTHER}):
        with ck.emulate(engine="ptx", **how) as runner:
            y = ck.conv2d_fprop(x, w, padding=1)
        np.testing.assert_allclose(y, wanted, atol=1e-5)
        assert runner.prepared


@pytest.mark.slow
def test_a_network_trains_as_ptx():
    """Three steps: nearly the emulator's weights, and the same bits in another order of lanes."""
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    labels = np.arange(4)
    found = []
    for how in ({}, {"engine": "ptx"}, {"engine": "ptx", "seed": 3}):
        net = ck.AlexNet(preset="small", num_classes=10, seed=0)
        with ck.emulate(**how):
            losses = [float(net.step(x, labels, lr=0.01)) for _ in range(3)]
        assert losses[2] < losses[0]
        found.append({name: weights.copy() for name, weights in net.params.items()})
    emulated, as_ptx, seeded = found
    for name, weights in as_ptx.items():
        np.testing.assert_allclose(weights, emulated[name], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(weights.view(np.uint32), seeded[name].view(np.uint32))


@pytest.mark.parametrize("stem", ["conv2d_fprop_naive", "linear_wgrad_naive", "avgpool2d_fprop_window"])
def test_the_emulator_gives_the_same_bits(stem):
    """Where a kernel calls nothing of CUDA's library: it fuses what NVRTC fuses."""
    one = implementation(next(path for path in builtin_files() if path.stem == stem))
    for case in small(one.op)[5:9]:
        asked = Question.of(case, one.dtypes[0])
        found = []
        for engine in ("emulator", "ptx"):
            with ck.emulate(engine=engine):
                run = attempt(one, asked, FIRST)
            assert not run.fault, run.fault
            found.append(bits(run.outputs))
        assert found[0] == found[1], case


def test_a_pass_is_one_of_this_engine():
    with ck.emulate(engine="ptx"):
        assert checked.engine("cuda") == "ptx" and checked.engine("cpu") == "cpu"
    with ck.emulate():
        assert checked.engine("cuda") == "emulator"


def test_a_fault_names_the_line_of_the_source(tmp_path):
    """Of the user's file, where a function of another one is inlined as well."""
    (tmp_path / "taken.cuh").write_text(
        "#pragma once\n__device__ float taken(const float* x, long long i) {\n  return x[i + 7];\n}\n"
    )
    path = tmp_path / "relu_fprop_hidden.cu"
    path.write_text(
        HIDDEN.replace('#include "convkit.cuh"', '#include "convkit.cuh"\n#include "taken.cuh"').replace(
            "float v = i < g.size ? x[i] : 0.0f;", "float v = i < g.size ? taken(x, i) : 0.0f;", 1
        )
    )
    ck.register(path)
    with ck.emulate(engine="ptx"), pytest.raises(KernelError) as caught:
        ck.relu_fprop(np.ones(100, np.float32), impl="hidden")
    error = caught.value
    assert error.kind == "out of bounds" and error.argument == "x" and error.bytes_past_end == 0
    assert (error.file, error.line) == (str(tmp_path / "taken.cuh"), 3)
    assert re.search(r"relu_fprop_hidden.cu:17\b", str(error)), str(error)
    assert error.block == (1, 0, 0) and error.thread == (29, 0, 0)


def test_the_command(tmp_path, capsys):
    assert main(["check", "relu_fprop_vectorized", "--engine", "ptx", "--quick", "--in-process"]) == 0
    assert re.search(r"vectorized\s+(\d+)/\1\s+.*passes", capsys.readouterr().out)
    path = planted(tmp_path, "up for down")
    assert main(["check", str(path), "--engine", "ptx", "--arch", OTHER, "--quick", "--in-process"]) == 1
    out = capsys.readouterr().out
    assert "FAILS" in out and f"--engine ptx --arch {OTHER} --seed" in out
    assert not re.search("--engine ptx.*--sanitize", out)


def test_a_file_in_a_process_of_its_own(tmp_path, capsys):
    assert main(["check", str(planted(tmp_path, "")), "--engine", "ptx", "--quick"]) == 0
    assert "passes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"engine": "fast"}, "unknown engine 'fast'. Known: emulator, ptx"),
        ({"engine": "ptx", "check": True}, "check and counters are the emulator's"),
        ({"engine": "ptx", "arch": "80"}, "unknown architecture '80': such as sm_80"),
        ({"engine": "ptx", "arch": "sm_20"}, "NVRTC does not compile for sm_20; it knows sm_75, sm_80"),
        ({"engine": "ptx", "arch": 90}, "unknown architecture 90: such as sm_80"),
        ({"engine": "ptx", "seed": -1}, "seed"),
        ({"check": "yes"}, "check must be True or False, not 'yes'"),
        ({"timeout": "long"}, "timeout must be positive, not 'long'"),
    ],
)
def test_options_are_checked(how, words):
    with pytest.raises(OptionError, match=words), ck.emulate(**how):
        pass


@pytest.mark.parametrize("more", [["--sanitize"], ["--counters"], ["--emulate"]])
def test_options_of_the_command_are_checked(more, capsys):
    assert main(["check", "relu_fprop_vectorized", "--engine", "ptx", *more]) == 2
    assert "are the emulator's" in capsys.readouterr().err
    assert main(["check", "relu_fprop_vectorized", "--arch", OTHER]) == 2


def test_without_the_wheels(monkeypatch):
    def missing():
        raise MissingExtra("compiling CUDA kernels", "cuda-core", "cuda13")

    monkeypatch.setattr(nvrtc, "_toolchain", missing)
    with (
        pytest.raises(MissingExtra, match="compiling CUDA kernels needs cuda-core"),
        ck.emulate(engine="ptx"),
    ):
        pass


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelError, match=r"the PTX runner needs a C\+\+ compiler") as caught:
        library.path()
    assert caught.value.kind == "no compiler"


def test_what_the_runner_lacks_is_not_the_kernels_fault(tmp_path):
    path = tmp_path / "relu_fprop_hidden.cu"
    path.write_text(
        HIDDEN.replace(
            'asm volatile("shfl.sync.up',
            'asm volatile("nanosleep.u32 5; cp.async.bulk.wait_group 0; shfl.sync.up',
        )
    )
    (one,) = ck.register(path)
    case = small("relu_fprop")[0]
    with ck.emulate(engine="ptx", arch=OTHER):
        verdict = judge(one, Question.of(case, "float32"))
    assert verdict.missing and "does not know the instruction cp.async.bulk.wait_group" in verdict.reason
