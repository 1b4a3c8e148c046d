"""The emulator: correct kernels run as NumPy says, and each planted bug is reported for what and where it is.

`planted/*.cu` are kernels of their own. A `bug_*.cu` says in comments what is wrong with it: `BUG:` and the
kind at the line to be reported, `WITH` at the second one, and `fast:` what the fast mode makes of it (a
kind; "NaN": in the output; "schedules": results that depend on the seed; "missed").
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import convkit as ck
from convkit.cuda import emulator, host_compiler
from convkit.cuda.cache import Cache, key_of
from convkit.cuda.launch import Argument, KernelError
from convkit.ops.conv2d import Conv2d
from convkit.paths import kernels_dir

PLANTED = Path(__file__).parent / "planted"
BUGS = sorted(PLANTED.glob("bug_*.cu"))
SEEDS = [None, 0, 1, 2, 3]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """Without a C++ compiler there is nothing to test: a developer may lack one, CI must not."""
    if not emulator.available():
        assert not os.environ.get("CI"), "CI must have a C++ compiler"
        pytest.skip("no C++ compiler")


def build(name: str, *, check: bool = False, edit=lambda text: text) -> emulator.Function:
    text = edit((PLANTED / f"{name}.cu").read_text())
    return emulator.compile(f'#line 1 "planted/{name}.cu"\n{text}', name, check=check)


def snippet(body: str, *, check: bool = False, signature: str = "float* y") -> emulator.Function:
    text = f'#line 1 "snippet.cu"\nextern "C" __global__ void snippet({signature}) {{\n{body}\n}}\n'
    return emulator.compile(text, "snippet", check=check)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------
# Correct kernels
# ---------------------------------------------------------------------------------------------------
def run_sgemm(function, **options):
    m, n, k = 128, 64, 48
    a, b, c = random(m, k), random(k, n, seed=1), np.full((m, n), np.nan, np.float32)
    sizes = [Argument(name, np.int32(value)) for name, value in (("m", m), ("n", n), ("k", k))]
    arguments = [Argument("a", a), Argument("b", b), Argument("c", c, output=True), *sizes]
    function.launch((n // 64, m // 64), (256,), arguments, **options)
    return c, a.astype(np.float64) @ b


def run_sgemm_async(function, **options):
    m, n, k = 70, 45, 53
    a, b, c = random(m, k), random(k, n, seed=1), np.full((m, n), np.nan, np.float32)
    sizes = [Argument(name, np.int32(value)) for name, value in (("m", m), ("n", n), ("k", k))]
    arguments = [Argument("a", a), Argument("b", b), Argument("c", c, output=True), *sizes]
    function.launch((2, 3), (256,), arguments, shared=4 * 32 * 8 * 4, **options)
    return c, a.astype(np.float64) @ b


def run_reduce(function, **options):
    x, y = random(5, 1000), np.full(5, np.nan, np.float32)
    arguments = [Argument("x", x), Argument("y", y, output=True), Argument("cols", np.int32(1000))]
    function.launch((5,), (256,), arguments, **options)
    return y, x.astype(np.float64).sum(1)


def run_exchange(function, **options):
    x, y = random(128), np.full(128, np.nan, np.float32)
    arguments = [Argument("x", x), Argument("y", y, output=True), Argument("n", np.int32(128))]
    function.launch((2,), (64,), arguments, **options)
    return y, x.astype(np.float64).reshape(-1, 32).sum(1).repeat(32)


CORRECT = {
    "sgemm": run_sgemm,
    "sgemm_async": run_sgemm_async,
    "reduce": run_reduce,
    "exchange": run_exchange,
}


@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
@pytest.mark.parametrize("name", CORRECT)
def test_correct_kernels_are_right_and_clean_in_any_order(name, check):
    function = build(name, check=check)
    first, expected = CORRECT[name](function)
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-4)
    for seed in SEEDS[1:]:
        again, _ = CORRECT[name](function, seed=seed)
        assert first.tobytes() == again.tobytes(), f"seed {seed} gives other bits"


@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
def test_the_naive_convolution_is_the_reference(check):
    x_shape, w_shape = (2, 4, 9, 7), (6, 2, 3, 2)
    options = {"groups": 2, "padding": ((0, 2), (1, 0)), "stride": (2, 1)}
    problem = Conv2d.of(x_shape, w_shape, **options)
    source = (kernels_dir() / "conv2d_fprop_naive.cu").read_text()
    unit = f'{problem.c_struct()}\n#define GEOMETRY(type) const type g\n#line 1 "naive.cu"\n{source}'
    function = emulator.compile(unit, "conv2d_fprop_naive", check=check)
    x, w, b = random(*x_shape), random(*w_shape, seed=1), random(6, seed=2)
    for bias in (None, b):
        y = np.full(problem.shape("y"), np.nan, np.float32)
        arguments = [Argument("g", problem.struct()), Argument("x", x), Argument("w", w), Argument("b", bias)]
        arguments += [Argument("y", y, output=True), Argument("relu", np.int32(0))]
        function.launch((-(-y.size // 256),), (256,), arguments)
        expected = ck.conv2d_fprop(x, w, bias, **options, impl="reference")
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


MUTANTS = [
    (name, number)
    for name in CORRECT
    for number, line in enumerate((PLANTED / f"{name}.cu").read_text().splitlines())
    if re.search(r"__syncthreads\(\);|__syncwarp\(\);|cp_async_wait<\d+>\(\);", line)
]


@pytest.mark.parametrize(("name", "number"), MUTANTS, ids=lambda v: str(v))
def test_each_barrier_that_is_removed_is_missed(name, number):
    def remove(text):
        lines = text.splitlines()
        lines[number] = re.sub(r"__sync\w+\(\);|cp_async_wait<\d+>\(\);", ";", lines[number])
        return "\n".join(lines)

    with pytest.raises(KernelError) as caught:
        CORRECT[name](build(name, check=True, edit=remove))
    kinds = {"race", "write in flight", "uninitialised shared memory"}
    assert caught.value.kind in kinds
    assert caught.value.line and caught.value.file == f"planted/{name}.cu"


def test_there_are_barriers_to_remove():
    assert len(MUTANTS) >= 8


# ---------------------------------------------------------------------------------------------------
# Planted bugs
# ---------------------------------------------------------------------------------------------------
def launch_bug(function, **options):
    n = 128
    x, y = np.arange(1, n + 1, dtype=np.float32), np.full(n, np.nan, np.float32)
    arguments = [Argument("x", x), Argument("y", y, output=True), Argument("n", np.int32(n))]
    if function.name == "bug_null":
        arguments.append(Argument("bias", None))
    # A short time only for what never ends: all others end, however long another process holds them up.
    options.setdefault("timeout", 0.5 if "endless" in function.name else 60)
    try:
        function.launch((2,), (64,), arguments, shared=512, **options)
    except KernelError:
        assert np.isnan(y).all(), "a launch that failed has written to its output"
        assert (x == np.arange(1, n + 1)).all()
        raise
    return y


def marked(path):
    lines = path.read_text().splitlines()
    bug = next((i, line.partition("BUG: ")[2]) for i, line in enumerate(lines, 1) if "// BUG" in line)
    other = next((i for i, line in enumerate(lines, 1) if line.endswith("// WITH")), 0)
    return *bug, other


@pytest.mark.parametrize("path", BUGS, ids=lambda p: p.stem[4:])
def test_check_mode_reports_the_bug_and_its_line(path):
    line, kind, other = marked(path)
    with pytest.raises(KernelError) as caught:
        launch_bug(build(path.stem, check=True))
    error = caught.value
    assert error.kind == kind, error
    assert error.file == f"planted/{path.name}"
    if kind == "race":  # either of the two accesses may come second
        assert {error.line, error.other_line} == {line, other}, error
    else:
        assert error.line == line, error
        assert not other or error.other_line == other, error
    assert error.kernel == path.stem
    assert error.block is not None and error.thread is not None
    assert f"planted/{path.name}:{error.line}" in str(error)


@pytest.mark.parametrize("path", BUGS, ids=lambda p: p.stem[4:])
def test_fast_mode_says_what_it_claims(path):
    line, kind, _ = marked(path)
    claim = re.search(r"^// fast: (.*)$", path.read_text(), re.MULTILINE).group(1)
    function = build(path.stem)
    if claim == "missed":
        launch_bug(function)
    elif claim == "NaN":
        assert np.isnan(launch_bug(function)).any()
    elif claim == "schedules":
        results = {launch_bug(function, seed=seed, threads=1).tobytes() for seed in SEEDS}
        assert len(results) > 1
    else:
        with pytest.raises(KernelError) as caught:
            launch_bug(function)
        assert (caught.value.kind, caught.value.line) == (claim, line), caught.value
        assert claim == kind


def test_a_report_says_who_where_and_what_to_do():
    with pytest.raises(KernelError) as caught:
        launch_bug(build("bug_global_read"))
    error = caught.value
    assert (error.block, error.thread) == ((1, 0, 0), (63, 0, 0))
    assert (error.argument, error.bytes_past_end) == ("x", 0)
    for word in ("bug_global_read", "planted/bug_global_read.cu:5", "x (float32[128])", "guard the index"):
        assert word in str(error)


@pytest.mark.parametrize("offset", [-(2**31), -(2**31) + 7, -1024, 2**20, 2**31 - 1])
def test_any_32_bit_index_outside_is_caught_in_fast_mode(offset):
    function = snippet("y[static_cast<long long>(at)] = 1.0f;", signature="float* y, float* z, int at")
    arrays = [Argument(name, np.zeros(64, np.float32), output=True) for name in "yz"]
    with pytest.raises(KernelError) as caught:
        function.launch((1,), (1,), [*arrays, Argument("at", np.int32(offset))])
    assert caught.value.kind == "out of bounds"
    assert caught.value.argument == "y"
    assert caught.value.bytes_past_end == (offset * 4 if offset < 0 else offset * 4 - 256)


def test_division_by_zero_and_trap_are_reported():
    function = snippet("y[0] = static_cast<float>((threadIdx.x + 5) / d);", signature="float* y, unsigned d")
    y = Argument("y", np.zeros(1, np.float32), output=True)
    with pytest.raises(KernelError) as caught:
        function.launch((1,), (1,), [y, Argument("d", np.uint32(0))])
    assert caught.value.kind == "division by zero"
    with pytest.raises(KernelError) as caught:
        snippet("if (y) __trap();").launch((1,), (1,), [y])
    assert (caught.value.kind, caught.value.line) == ("trap", 2)


def test_the_handlers_of_the_process_are_restored():
    def caught() -> str:  # the signals that have a handler, as the system sees it
        return re.search(r"SigCgt:\s*(\w+)", Path("/proc/self/status").read_text()).group(1)

    before = caught()
    with pytest.raises(KernelError):
        launch_bug(build("bug_global_read"))
    assert caught() == before


@pytest.fixture
def waits(monkeypatch):
    """The seconds of each wait for a kernel's end. It takes no time here: no such kernel ends by itself."""
    found, what = [], {"wait": lambda seconds: 0}

    class Runtime:
        def __init__(self, runtime):
            self._runtime = runtime

        def __getattr__(self, name):
            return getattr(self._runtime, name)

        def ckemu_wait(self, seconds):
            found.append(seconds)
            return what["wait"](seconds)

        def ckemu_cancel(self):
            what["wait"] = self._runtime.ckemu_wait
            found.append("stop")
            self._runtime.ckemu_cancel()

    def watch(function):
        monkeypatch.setattr(function, "_runtime", Runtime(function._runtime))
        return found, what

    return watch


def test_a_timeout_is_prompt(waits):
    function = build("bug_endless")
    found, _ = waits(function)
    with pytest.raises(KernelError, match=r"had not ended after 0\.5 s"):
        launch_bug(function)
    before = found[: found.index("stop")]
    assert sum(before) == pytest.approx(0.5) and max(before) <= 0.2  # a Ctrl-C waits for no longer than that


def test_an_interrupt_stops_the_kernel_and_leaves_its_outputs(waits):
    def interrupt(*_):
        raise KeyboardInterrupt

    y = np.zeros(1, np.float32)
    function = snippet("for (volatile int i = 0; i >= 0; i = i % 100) y[0] += 1;")
    runtime = function._runtime
    found, what = waits(function)
    # The kernel has been started by then, and has some time to get into its loop.
    what["wait"] = lambda seconds: (runtime.ckemu_wait(0.05), signal.raise_signal(signal.SIGALRM))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            function.launch((1,), (1,), [Argument("y", y, output=True)])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found[1] == "stop"
    assert y[0] == 0
    snippet("y[0] = 2;").launch((1,), (1,), [Argument("y", y, output=True)])
    assert y[0] == 2


def test_launches_from_several_threads_take_turns():
    function, failures = build("sgemm"), []

    def work():
        for _ in range(5):
            c, expected = run_sgemm(function)
            if not np.allclose(c, expected, rtol=1e-4, atol=1e-4):
                failures.append("wrong")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_forked_child_has_workers_of_its_own():
    function = build("reduce")
    run_reduce(function)
    child = os.fork()
    if not child:
        signal.alarm(60)  # a child that waits for threads which it has not got is ended by this
        try:
            y, expected = run_reduce(function)
            os._exit(0 if np.allclose(y, expected, rtol=1e-4) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------------------------------------------
# Multiply-adds are fused, as NVRTC fuses them
# ---------------------------------------------------------------------------------------------------
#: Without such instructions a processor can fuse nothing.
fusing = pytest.mark.skipif(
    platform.machine() in ("x86_64", "AMD64") and not re.search(r"\bfma\b", host_compiler.processor()),
    reason="the processor has no fused multiply-add",
)


def factors(*shape: int, seed: int) -> np.ndarray:
    """Of 13 bits: a product takes 26, more than float32 has, and float64 holds a sum of a hundred exactly."""
    drawn = np.random.default_rng(seed).integers(1, 2**12, shape) + 2**12
    return (drawn * np.where(drawn % 3, 1.0, -1.0) / 2**13).astype(np.float32)


def sums(a: np.ndarray, b: np.ndarray, *, fused: bool) -> np.ndarray:
    """a @ b.T, added up in order: each product rounded with its sum, or before."""
    total = np.zeros((len(a), len(b)), np.float32)
    for k in range(a.shape[1]):
        product = a[:, None, k].astype(np.float64) * b[None, :, k]
        total = ((product if fused else product.astype(np.float32)) + total).astype(np.float32)
    return total


#: Sums in the ways that a compiler may make vectors of: a loop, and a tile in registers.
IN_ORDER = {
    "loop": """
        float sum = 0.0f;
        for (int k = 0; k < 96; ++k) sum += a[threadIdx.x * 96 + k] * b[blockIdx.x * 96 + k];
        y[threadIdx.x * 16 + blockIdx.x] = sum;""",
    "unrolled": """
        float sum = 0.0f;
        for (int k = 0; k < 96; k += 4)
          for (int i = 0; i < 4; ++i) sum += a[threadIdx.x * 96 + k + i] * b[blockIdx.x * 96 + k + i];
        y[threadIdx.x * 16 + blockIdx.x] = sum;""",
    "minus": """
        float sum = 0.0f;
        for (int k = 0; k < 96; ++k) sum = sum - a[threadIdx.x * 96 + k] * b[blockIdx.x * 96 + k];
        y[threadIdx.x * 16 + blockIdx.x] = -sum;""",
    "tile": """
        float sum[4][4] = {};
        const int row = threadIdx.x / 4 * 4, column = threadIdx.x % 4 * 4;
        for (int k = 0; k < 96; ++k)
          for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) sum[i][j] += a[(row + i) * 96 + k] * b[(column + j) * 96 + k];
        if (blockIdx.x == 0)
          for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) y[(row + i) * 16 + column + j] = sum[i][j];""",
}


@fusing
@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
@pytest.mark.parametrize("way", IN_ORDER)
def test_products_are_fused_with_their_sums(way, check):
    a, b, y = factors(16, 96, seed=1), factors(16, 96, seed=2), np.zeros((16, 16), np.float32)
    assert (sums(a, b, fused=True) != sums(a, b, fused=False)).mean() > 0.5
    function = snippet(IN_ORDER[way], check=check, signature="const float* a, const float* b, float* y")
    arguments = [Argument("a", a), Argument("b", b), Argument("y", y, output=True)]
    function.launch((16,), (16,), arguments)
    np.testing.assert_array_equal(y, sums(a, b, fused=True))


SHIPPED_SUMS = ["linear_fprop naive", "linear_wgrad naive", "linear_wgrad gemm", "conv2d_fprop implicit_gemm"]


@fusing
@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
@pytest.mark.parametrize("kernel", SHIPPED_SUMS)
def test_shipped_kernels_fuse_products_with_their_sums(kernel, check):
    op, impl = kernel.split()
    a, b = factors(60, 40, seed=1), factors(50, 40, seed=2)  # a whole tile and a part of one
    with ck.emulate(check=check):
        if op == "linear_wgrad":
            y = ck.linear_wgrad(np.ascontiguousarray(b.T), np.ascontiguousarray(a.T), impl=impl)
        elif op == "linear_fprop":
            y = ck.linear_fprop(a, b, impl=impl)
        else:
            y = ck.conv2d_fprop(a[:, :, None, None], b[:, :, None, None], impl=impl)[:, :, 0, 0]
    np.testing.assert_array_equal(y, sums(a, b, fused=True))


# ---------------------------------------------------------------------------------------------------
# Arrays begin in the kernel where they begin in the caller's memory
# ---------------------------------------------------------------------------------------------------
def placed(count: int, offset: int, value: float = 0.0) -> np.ndarray:
    """float32 whose address is `offset` bytes past a multiple of 256."""
    raw = np.empty(count * 4 + 512, np.uint8)
    start = -raw.ctypes.data % 256 + offset
    array = raw[start : start + count * 4].view(np.float32)
    array[:] = value
    return array


@pytest.mark.parametrize("offset", [0, 1, 4, 12, 16, 60, 252])
@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
def test_a_kernel_gets_the_callers_alignment(check, offset):
    modulus = 256 if check else 16
    body = f"out[0] = (unsigned long long)x % {modulus}; out[1] = (unsigned long long)y % {modulus};"
    function = snippet(body, check=check, signature="const float* x, float* y, int* out")
    for count in (1, 3, 1024, 1031):
        out = np.zeros(2, np.int32)
        x, y = placed(count, offset), placed(count, 256 - offset if offset else 0)
        arguments = [Argument("x", x), Argument("y", y, output=True), Argument("out", out, output=True)]
        function.launch((1,), (1,), arguments)
        assert out.tolist() == [offset % modulus, -offset % modulus]


@pytest.mark.parametrize("body", ["y[0] = x[0].x + x[0].y * x[0].z;", "y[0] = x[0].w;", "y[0] = x[1].x;"])
@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
def test_a_vector_access_to_a_view_at_an_odd_element_is_misaligned(check, body):
    """Also where the compiler takes the vector apart, so that the processor would not mind."""
    function = snippet(body, check=check, signature="const float4* x, float* y")
    y = np.zeros(1, np.float32)
    function.launch((1,), (1,), [Argument("x", placed(64, 32)), Argument("y", y, output=True)])
    for offset in (4, 8, 12):
        with pytest.raises(KernelError) as caught:
            function.launch((1,), (1,), [Argument("x", placed(64, offset)), Argument("y", y, output=True)])
        error = caught.value
        assert (error.kind, error.file, error.line) == ("misaligned access", "snippet.cu", 2), error


@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
def test_an_asynchronous_copy_from_a_view_at_an_odd_element_is_misaligned(check):
    text = """#include "convkit.cuh"
extern "C" __global__ void copies(const float* x, float* y) {
  __shared__ __align__(16) float at[4];
  cp_async_16(at, x, 16);
  cp_async_commit();
  cp_async_wait<0>();
  y[0] = at[3];
}"""
    function = emulator.compile(f'#line 1 "copies.cu"\n{text}', "copies", check=check)
    for offset in (16, 4):
        x, y = placed(4, offset, 5.0), np.zeros(1, np.float32)
        arguments = [Argument("x", x), Argument("y", y, output=True)]
        if offset == 16:
            function.launch((1,), (1,), arguments)
            assert y[0] == 5
            continue
        with pytest.raises(KernelError) as caught:
            function.launch((1,), (1,), arguments)
        assert (caught.value.kind, caught.value.line) == ("misaligned access", 4), caught.value


def test_what_is_aligned_to_more_than_16_bytes_passes_in_fast_mode():
    """As on a GPU that moves it by 16 bytes."""
    text = (
        "struct alignas(64) Wide { float v[16]; };\n"
        'extern "C" __global__ void wide(const Wide* x, Wide* y) { y[0] = x[0]; y[0].v[0] += 1.0f; }'
    )
    x, y = placed(16, 16, 3.0), placed(16, 48)
    arguments = [Argument("x", x), Argument("y", y, output=True)]
    emulator.compile(text, "wide").launch((1,), (1,), arguments)
    assert y.tolist() == [4.0] + [3.0] * 15
    with pytest.raises(KernelError, match="misaligned access"):
        emulator.compile(text, "wide", check=True).launch((1,), (1,), arguments)


@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
@pytest.mark.parametrize("offset", [0, 4, 8, 12, 20])
def test_writes_just_outside_are_caught_wherever_an_array_begins(offset, check):
    """In fast mode behind the launch at the latest, then without a line."""
    function = snippet("y[at] = 1.0f;", check=check, signature="float* y, int at")
    for count in (64, 127):
        for at in (-3, -1, count, count + 2):
            y = placed(count, offset, 7.0)
            with pytest.raises(KernelError) as caught:
                function.launch((1,), (1,), [Argument("y", y, output=True), Argument("at", np.int32(at))])
            error, past = caught.value, 4 * (at - count if at > 0 else at)
            assert (error.kind, error.argument, error.bytes_past_end) == ("out of bounds", "y", past), error
            if check or (at >= count and (offset + 4 * count) % 16 == 0):
                assert (error.file, error.line, error.block) == ("snippet.cu", 2, (0, 0, 0)), error
            assert (error.line == 2) == (error.block is not None), error
            assert (y == 7).all()


@pytest.mark.parametrize("at", [-1, 33])
def test_a_copy_of_what_lies_outside_is_seen_outside(at):
    """What stands around an input is not what stands around an output."""
    function = snippet("y[at] = x[at];", signature="const float* x, float* y, int at")
    x, y = placed(33, 4, 1.0), placed(33, 4, 7.0)
    with pytest.raises(KernelError, match="out of bounds"):
        function.launch(
            (1,), (1,), [Argument("x", x), Argument("y", y, output=True), Argument("at", np.int32(at))]
        )


# ---------------------------------------------------------------------------------------------------
# The language
# ---------------------------------------------------------------------------------------------------
def evaluate(expression: str, n: int = 64, dtype=np.float32, check: bool = False) -> np.ndarray:
    """An expression of `t` (the thread) in each of n threads of one block."""
    kind = {"f": "float", "i": "int", "u": "unsigned"}[np.dtype(dtype).kind]
    body = f"const int t = threadIdx.x, lane = t % 32; (void)lane;\ny[t] = {expression};"
    y = np.zeros(n, dtype)
    snippet(body, signature=f"{kind}* y", check=check).launch((1,), (n,), [Argument("y", y, output=True)])
    return y


T = np.arange(64)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("__shfl_sync(0xffffffffu, t, 5)", T // 32 * 32 + 5),
        ("__shfl_sync(0xffffffffu, t, 9, 8)", T // 8 * 8 + 1),
        ("__shfl_up_sync(0xffffffffu, t, 3)", np.where(T % 32 < 3, T, T - 3)),
        ("__shfl_down_sync(0xffffffffu, t, 3, 16)", np.where(T % 16 > 12, T, T + 3)),
        ("__shfl_xor_sync(0xffffffffu, t, 9)", T ^ 9),
        ("static_cast<int>(__shfl_xor_sync(0xffffffffu, 2.5 * t, 1) * 2)", (T ^ 1) * 5),
        ("__popc(__ballot_sync(0xffffffffu, t % 3 == 0))", np.where(T < 32, 11, 11)),
        ("__any_sync(0xffffffffu, t == 40)", T // 32),
        ("__all_sync(0xffffffffu, t < 40)", 1 - T // 32),
        ("__syncthreads_count(t < 10)", T * 0 + 10),
        ("__syncthreads_or(t == 3)", T * 0 + 1),
        ("__syncthreads_and(t != 3)", T * 0),
        ("__reduce_max_sync(0xffffffffu, t)", T // 32 * 32 + 31),
        ("__reduce_add_sync(0xffffffffu, 1)", T * 0 + 32),
        ("__popc(__match_any_sync(0xffffffffu, t % 4))", T * 0 + 8),
        (
            "__clz(t) + __ffs(t) + __popc(t)",
            [32 - t.bit_length() + (t & -t).bit_length() + bin(t).count("1") for t in range(64)],
        ),
        ("static_cast<int>(__brev(t) >> 24)", [int(f"{t:08b}"[::-1], 2) for t in T]),
        ("static_cast<int>(__umulhi(0x80000000u, 2 * t))", T),
        ("min(t, 5) + max(-t, -3)", np.minimum(T, 5) + np.maximum(-T, -3)),
        ("__float2int_rn(t + 0.5f) + __float2int_rz(-1.5f)", np.rint(T + 0.5) - 1),
        ("__float2int_rz(3e9f)", T * 0 + 2**31 - 1),
        ("static_cast<int>(__byte_perm(0x03020100, 0x07060504, 0x7531) >> 24)", T * 0 + 7),
    ],
)
def test_intrinsics(expression, expected):
    np.testing.assert_array_equal(evaluate(expression, dtype=np.int32), np.asarray(expected, np.int32))


def test_masks_of_half_a_warp_meet_independently():
    got = evaluate("__shfl_xor_sync(lane < 16 ? 0x0000ffffu : 0xffff0000u, t, 3)", dtype=np.int32)
    np.testing.assert_array_equal(got, T ^ 3)


@pytest.mark.parametrize(("storage", "suffix"), [("__half", "half"), ("__nv_bfloat16", "bfloat16")])
def test_sixteen_bit_storage_rounds_as_the_standard_says(storage, suffix):
    import ml_dtypes

    dtype = np.float16 if suffix == "half" else ml_dtypes.bfloat16
    body = (
        f"const int i = blockIdx.x * blockDim.x + threadIdx.x;\nif (i < n) y[i] = __float2{suffix}_rn(x[i]);"
    )
    header = "cuda_fp16.h" if suffix == "half" else "cuda_bf16.h"
    signature = f"down(const float* x, {storage}* y, int n)"
    text = f'#include <{header}>\nextern "C" __global__ void {signature} {{ {body} }}'
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    near = (2.0 ** rng.integers(-30, 20, 200_000) * rng.standard_normal(200_000)).astype(np.float32)
    ties = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(dtype).astype(np.float32)
    special = np.float32([0, -0.0, 65504, 65519.99, 65520, 6e-8, 2.98e-8, 2.99e-8, np.inf, -np.inf, np.nan])
    with np.errstate(all="ignore"):
        x = np.concatenate([x, near, ties, np.nextafter(ties, np.float32(np.inf)), special])
    y = np.zeros(x.size, dtype)
    arguments = [Argument("x", x), Argument("y", y, output=True), Argument("n", np.int32(x.size))]
    emulator.compile(text, "down").launch((-(-x.size // 256),), (256,), arguments)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype)
    nan = np.isnan(x)
    assert np.isnan(y[nan].astype(np.float32)).all()
    np.testing.assert_array_equal(y[~nan].view(np.uint16), expected[~nan].view(np.uint16))

    body = f"const int i = blockIdx.x * 256 + threadIdx.x; y[i] = __{suffix}2float(x[i]);"
    text = f'#include <{header}>\nextern "C" __global__ void up(const {storage}* x, float* y) {{ {body} }}'
    x = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(dtype)
    y = np.zeros(x.size, np.float32)
    emulator.compile(text, "up").launch((256,), (256,), [Argument("x", x), Argument("y", y, output=True)])
    nan = np.isnan(x.astype(np.float32))
    assert np.isnan(y[nan]).all()
    np.testing.assert_array_equal(y[~nan], x[~nan].astype(np.float32))


@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
def test_atomics_add_up_over_blocks(check):
    body = "atomicAdd(&y[0], 1); atomicMax(&y[1], static_cast<int>(blockIdx.x)); atomicCAS(&y[2], 0, 7);"
    y = np.zeros(3, np.int32)
    function = snippet(body, signature="int* y", check=check)
    function.launch((50,), (64,), [Argument("y", y, output=True, reads=True)])
    np.testing.assert_array_equal(y, [3200, 49, 7])


def test_built_in_variables_in_three_dimensions():
    body = """const int i = ((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * 24 +
      (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[i] = i;"""
    y = np.zeros(5 * 3 * 2 * 24, np.int32)
    snippet(body, signature="int* y").launch((5, 3, 2), (4, 3, 2), [Argument("y", y, output=True)])
    np.testing.assert_array_equal(y, np.arange(y.size))


def test_check_mode_sees_bytes():
    """Neighbouring bytes written by different threads are no race; the same byte is one."""
    body = "__shared__ unsigned char s[64];"
    body += "const int t = threadIdx.x; s[t] = t; __syncthreads(); y[t] = s[63 - t];"
    y = np.zeros(64, np.uint8)
    snippet(body, signature="unsigned char* y", check=True).launch(
        (1,), (64,), [Argument("y", y, output=True)]
    )
    np.testing.assert_array_equal(y, 63 - T)
    with pytest.raises(KernelError, match="race"):
        snippet(body.replace("s[t] = t", "s[t / 2] = t"), signature="unsigned char* y", check=True).launch(
            (1,), (64,), [Argument("y", y, output=True)]
        )

    body = "reinterpret_cast<unsigned char*>(y)[threadIdx.x] = 0;"
    y = np.ones(16, np.float32)
    snippet(body, check=True).launch((1,), (64,), [Argument("y", y, output=True)])
    assert not y.any()


# ---------------------------------------------------------------------------------------------------
# Counters
# ---------------------------------------------------------------------------------------------------
COUNTED = """__shared__ float tile[32][32]; __shared__ float padded[32][33]; __shared__ float4 quads[32];
const int t = threadIdx.x;
tile[t][0] = x[2 * t];
padded[t][0] = x[t];
quads[t] = make_float4(1, 2, 3, 4);
__syncthreads();
const float4 q = quads[t];
const float a = padded[t][0];
const float b = tile[t % 2][0];
y[t] = a + b + q.x;"""


def test_counters_of_bank_conflicts_and_coalescing():
    function = snippet(COUNTED, signature="const float* x, float* y", check=True)
    arguments = [
        Argument("x", np.zeros(64, np.float32)),
        Argument("y", np.zeros(64, np.float32), output=True),
    ]
    function.launch((1,), (32,), arguments, counters=True)
    rows = {(row.line, row.kind): (row.accesses, row.actual, row.ideal) for row in function.counters()}
    assert rows == {
        (4, "global load"): (1, 8, 4),  # every second float
        (4, "shared store"): (1, 32, 1),  # one bank
        (5, "global load"): (1, 4, 4),
        (5, "shared store"): (1, 1, 1),  # a padding column spreads them over all banks
        (6, "shared store"): (1, 4, 4),  # 128 bits: quarter-warps
        (8, "shared load"): (1, 4, 4),
        (9, "shared load"): (1, 1, 1),
        (10, "shared load"): (1, 2, 1),  # two words of one bank, each for half of the lanes
        (11, "global store"): (1, 4, 4),
    }
    assert all(row.file == "snippet.cu" for row in function.counters())
    assert next(row.ratio for row in function.counters() if row.kind == "shared store") == 32.0
    with pytest.raises(KernelError, match="check mode"):
        snippet(COUNTED, signature="const float* x, float* y").launch((1,), (32,), arguments, counters=True)


# ---------------------------------------------------------------------------------------------------
# Compilation, arguments
# ---------------------------------------------------------------------------------------------------
def test_a_compile_error_names_the_users_line():
    with pytest.raises(KernelError) as caught:
        snippet("int a = 1;\nundeclared = a;")
    assert (caught.value.kind, caught.value.file, caught.value.line) == ("compile error", "snippet.cu", 3)
    assert "undeclared" in str(caught.value)
    with pytest.raises(KernelError) as caught:
        snippet('static_assert(sizeof(int) == 5, "the tile must be even");')
    assert "the tile must be even" in str(caught.value) and caught.value.line == 2
    with pytest.raises(KernelError) as caught:
        snippet("int a = 1;\nstruct Big { float v[9]; } big; __shfl_sync(1u, big, 0);")
    assert (caught.value.file, caught.value.line) == ("snippet.cu", 3), caught.value
    with pytest.raises(KernelError, match="is there an extern"):
        emulator.compile('extern "C" __global__ void f() {}', "g")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes 2 arguments, not 0"),
        ([Argument("y", np.zeros(1, np.float32), output=True), Argument("n", np.int64(1))], "n: .* 4 bytes"),
        ([Argument("y", np.float32(1)), Argument("n", np.int32(1))], "y: .* pointer"),
        ([Argument("y", np.zeros(1, np.float32)), Argument("n", np.zeros(1, np.int32))], "n: .* by value"),
        ([Argument("y", np.zeros((4, 4), np.float32).T[1:]), Argument("n", np.int32(1))], "not contiguous"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(KernelError, match=message):
        snippet("y[0] = n;", signature="float* y, int n").launch((1,), (1,), arguments)


def test_launches_that_no_gpu_takes_are_refused():
    y = [Argument("y", np.zeros(1, np.float32), output=True)]
    function = snippet("y[0] = 1;")
    for grid, block, shared in [
        ((1,), (2048,), 0),
        ((1, 70000), (1,), 0),
        ((1,), (0,), 0),
        ((1,), (1,), 10**6),
    ]:
        with pytest.raises(KernelError):
            function.launch(grid, block, y, shared=shared)
    with pytest.raises(KernelError, match="shared memory"):
        snippet("__shared__ float big[16000]; big[(int)y[0]] = 1; y[0] = big[(int)y[0] + 9];").launch(
            (1,), (1,), y
        )
    function.launch((0,), (32,), y)  # nothing to do
    assert y[0].value[0] == 0


def test_without_a_compiler_one_clear_error(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not emulator.available()
    with pytest.raises(KernelError, match=r"the emulator needs a C\+\+ compiler"):
        snippet("y[0] = 1;")


# ---------------------------------------------------------------------------------------------------
# The cache
# ---------------------------------------------------------------------------------------------------
def test_flags_are_those_of_the_compiler(monkeypatch):
    """Clang knows few of GCC's, and its check mode would report what is not there."""
    clang, gcc = ("/usr/bin/clang++", "Debian clang version 14.0.6"), ("/usr/bin/g++", "g++ (Debian) 12.2.0")
    flags = host_compiler.kernel_flags(clang, check=False)
    assert "-ffp-contract=fast" in flags and not {"-fno-gnu-unique", "-fno-tree-vectorize"} & set(flags)
    for check in (False, True):
        assert "-fno-tree-vectorize" in host_compiler.kernel_flags(gcc, check=check)
    monkeypatch.setattr(emulator, "find_compiler", lambda _: clang)
    monkeypatch.setattr(emulator, "_runtime", lambda *_: (None, Path("runtime.so")))
    with pytest.raises(KernelError, match=r"check mode needs g\+\+") as caught:
        snippet("y[0] = 1;", check=True)
    assert caught.value.kind == "no compiler"


def test_an_entry_is_built_once_and_again_when_it_was_cut_short(tmp_path):
    built = []

    def build_entry(path):
        built.append(path)
        path.write_bytes(b"content")

    cache = Cache(tmp_path)
    path = cache.get("key", build_entry)
    assert cache.get("key", build_entry) == path and len(built) == 1
    path.write_bytes(b"conte")
    path = cache.get("key", build_entry)
    assert path.read_bytes() == b"content" and len(built) == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(path):
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Cache(tmp_path).get("key", fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("check", [False, True])
def test_an_output_in_an_inputs_place_is_one_array(check):
    """As on a GPU: what is overwritten cannot be read again."""
    source = """extern "C" __global__ void f(const float* x, float* y) {
        y[threadIdx.x] = 1; y[threadIdx.x] += x[threadIdx.x]; }"""
    function = emulator.compile(source, "f", check=check)
    x, y = np.full(8, 5, np.float32), np.empty(8, np.float32)
    function.launch((1,), (8,), [Argument("x", x), Argument("y", y, output=True)])
    assert (y == 6).all() and (x == 5).all()
    function.launch((1,), (8,), [Argument("x", x), Argument("y", x, output=True)])
    assert (x == 2).all()


def test_keys_tell_parts_apart():
    assert key_of(["ab", "c"]) != key_of(["a", "bc"])
    assert key_of(["ab", b"c"]) == key_of([b"ab", "c"])


def test_a_home_that_cannot_be_written_falls_back(tmp_path, monkeypatch):
    monkeypatch.delenv("CONVKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = Cache().get("key", lambda p: p.write_bytes(b"x"))
    assert path.parent.parent == tmp_path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.chmod(0o777)  # anybody could put code there: not used any more
    with pytest.raises(OSError, match="CONVKIT_CACHE"):
        Cache().get("key", lambda p: p.write_bytes(b"x"))


def test_a_relative_cache_serves_a_builder_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVKIT_CACHE", "here")
    path = Cache().get("key", lambda p: p.write_bytes(b"x"))
    assert path.is_absolute() and path.is_relative_to(tmp_path / "here")


def test_an_included_file_that_changes_means_another_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    header, y = tmp_path / "value.cuh", np.zeros(1, np.int32)
    text = '#include "value.cuh"\nextern "C" __global__ void f(int* y) { y[0] = VALUE; }'
    for value in (3, 4):
        header.write_text(f"#define VALUE {value}\n")
        emulator.compile(text, "f", include=[tmp_path]).launch((1,), (1,), [Argument("y", y, output=True)])
        assert y[0] == value


WORKER = """
import numpy as np
from convkit.cuda import emulator
from convkit.cuda.launch import Argument
y = np.zeros(1, np.int32)
source = 'extern "C" __global__ void f(int* y) { y[0] = 5; }'
emulator.compile(source, "f").launch((1,), (1,), [Argument("y", y, output=True)])
assert y[0] == 5
"""


def worker(folder):
    environment = {**os.environ, "CONVKIT_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", WORKER], env=environment)


def test_two_processes_at_once_and_a_truncated_library(tmp_path):
    _, runtime = emulator._runtime(kernels_dir() / "emulator", emulator.find_compiler(os.environ.get("CXX")))
    shutil.copy(runtime, tmp_path)  # building that takes longest, and tells no more
    assert [process.wait(120) for process in (worker(tmp_path), worker(tmp_path))] == [0, 0]
    for path in tmp_path.glob("f-*.so"):
        path.write_bytes(path.read_bytes()[:1000])
    assert worker(tmp_path).wait(120) == 0
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_two_processes_build_the_runtime_at_once(tmp_path):
    assert [process.wait(300) for process in (worker(tmp_path), worker(tmp_path))] == [0, 0]
    for path in tmp_path.glob("*.so"):
        path.write_bytes(path.read_bytes()[:1000])
    assert worker(tmp_path).wait(300) == 0


# ---------------------------------------------------------------------------------------------------
# The other way to switch fibers
# ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_portable_switch_gives_the_same_bits(monkeypatch):
    expected = [run(build(name))[0] for name, run in CORRECT.items()]
    monkeypatch.setattr(emulator, "RUNTIME_FLAGS", (*emulator.RUNTIME_FLAGS, "-DCONVKIT_UCONTEXT"))
    emulator._runtime.cache_clear()
    for (name, run), bits in zip(CORRECT.items(), expected):
        assert run(build(name), seed=3)[0].tobytes() == bits.tobytes()
    emulator._runtime.cache_clear()
