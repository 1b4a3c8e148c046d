"""Kernel files: what the shipped ones declare, and what a stranger's broken one gets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from hypothesis import given
from hypothesis import strategies as st

import convkit as ck
from convkit import check, registry
from convkit.check.cases import cases as of_the_gate
from convkit.cli import main
from convkit.cuda import expressions, nvrtc
from convkit.cuda.header import KernelFile, builtin_files, read
from convkit.cuda.prepare import Runner
from convkit.cuda.prepare import implementation as prepared
from convkit.cuda.source import translation_unit
from convkit.op import OPS
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.ops.lrn import LRN
from convkit.ops.lrn_maxpool2d import LrnMaxPool2d
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.softmax_xent import SoftmaxXent

KERNELS = builtin_files()

GOOD = """// relu_fprop_mine
// /// kernel
// op = "relu_fprop"
// tile = { THREADS = 64 }
// grid = ["ceil_div(size, THREADS)"]
// block = ["THREADS"]
// rank = -90
// ///
extern "C" __global__ void relu_fprop_mine(GEOMETRY(Elementwise), const float* x, float* y) {
    static_assert(THREADS % 32 == 0, "whole warps");
    const long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    if (i < g.size) y[i] = x[i] < 0 ? 0 : x[i];
}
"""


@pytest.fixture(autouse=True)
def registry_as_before():
    ck.implementations()
    before = dict(registry._IMPLEMENTATIONS)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


@pytest.fixture
def mine(tmp_path):
    """Writes GOOD with changes to a file; returns its path."""

    def write(*changes: tuple[str, str], name: str = "relu_fprop_mine.cu"):
        text = GOOD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# ---------------------------------------------------------------------------------------------------
# What ships
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.stem)
def test_shipped_headers_argue(path):
    kernel = read(path)
    assert kernel.source.startswith(f"// {path.stem}\n")
    assert path.stem.startswith(kernel.header.op + "_")
    for word in ("Tiling", "Traffic", "Bound"):
        assert re.search(rf"^// {word}\s+\S", kernel.source, re.M), f"{path.name} has no {word}"
    flat = re.sub(r"__launch_bounds__\([^)]*\)|\s+", " ", kernel.source)
    for launch in kernel.header.launches:
        assert re.search(rf"__global__ +void +{launch.entry}\(", flat), launch.entry


def test_every_op_has_a_kernel():
    assert {read(path).header.op for path in KERNELS} == set(OPS)


def test_what_has_run_is_said_in_one_place():
    """Whether a GPU has run the kernels, `convkit.bench.status` says; no file of theirs does."""
    folder = KERNELS[0].parent
    for path in [*folder.glob("*.cu"), *folder.glob("*.cuh")]:
        assert "no GPU has run" not in path.read_text(), path.name


def test_inline_ptx_is_in_one_file():
    folder = KERNELS[0].parent
    for path in [*folder.glob("*.cu"), *folder.glob("*.cuh")]:
        if path.name != "ptx.cuh":
            assert not re.search(r"\basm\b\s*(volatile)?\s*\(", path.read_text()), path.name


@pytest.mark.parametrize(
    "problem",
    [
        Conv2d.of((1, 4, 5, 6), (2, 2, 3, 3), groups=2, padding=1),
        Pool2d.of((1, 2, 9, 9), padding=1, ceil_mode=True),
        LRN.of((1, 4, 2, 2), k=2.0),
        Linear.of((2, 3), (4, 3)),
        ChannelSum.of((2, 3, 4, 5), 4),
        Elementwise((3, 4)),
        SoftmaxXent.of((2, 10)),
        LrnMaxPool2d(LRN.of((1, 4, 9, 7), k=2.0, groups=2), Pool2d.of((1, 4, 9, 7), padding=1)),
    ],
    ids=lambda p: type(p).__name__,
)
def test_the_struct_in_c_is_the_struct_in_numpy(problem, compiler, tmp_path):
    """Offsets, size and values, read back by C++."""
    import ctypes
    import subprocess

    struct, kind = problem.struct(), type(problem).__name__
    names = struct.dtype.names
    source = tmp_path / "struct.cpp"
    reads = "\n".join(f"out[{i}] = g->{name};" for i, name in enumerate(names))
    source.write_text(f'{problem.c_struct()}\nextern "C" int look({kind}* g, double* out) {{\n{reads}\n'
                      f"return sizeof({kind}); }}\n")  # fmt: skip
    library = tmp_path / "struct.so"
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    out = np.zeros(len(names))
    size = ctypes.CDLL(str(library)).look(
        ctypes.c_void_p(struct.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    )
    assert size == struct.itemsize
    np.testing.assert_allclose(out, [float(struct[0][name]) for name in names])


# ---------------------------------------------------------------------------------------------------
# A user's kernel
# ---------------------------------------------------------------------------------------------------
def test_one_file_in_a_verdict_out(mine, compiler, capsys):
    assert main(["check", str(mine()), "--quick"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"relu_fprop\s+mine\s+(\d+)/\1\s+.*passes", out)


def test_a_wrong_kernel_fails(mine, compiler, capsys):
    path = mine(("x[i] < 0 ? 0 : x[i]", "x[i] > 0 ? x[i] : 0"))  # which swallows a NaN
    assert main(["check", str(path), "--quick"]) == 1
    assert "FAILS" in capsys.readouterr().out


@pytest.mark.parametrize("sanitize", [False, True], ids=["fast", "check"])
def test_a_kernel_that_does_not_ask_how_its_arrays_are_aligned_fails(sanitize, compiler, capsys):
    path = Path(__file__).parent / "planted" / "relu_fprop_unaligned.cu"
    assert main(["check", str(path), "--quick", *["--sanitize"] * sanitize]) == 1
    out = capsys.readouterr().out
    assert "FAILS" in out and "misaligned access" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("// /// kernel\n", ""), "relu_fprop_mine.cu: no header"),
        (
            ('op = "relu_fprop"', 'op = "relu_fprop'),
            r"relu_fprop_mine.cu: line 3: the header is not valid TOML",
        ),
        (('op = "relu_fprop"', 'op = "relu_forward"'), "unknown op 'relu_forward'; did you mean"),
        (('op = "relu_fprop"', 'opp = "relu_fprop"'), "unknown header key 'opp'; did you mean 'op'"),
        (("ceil_div(size, THREADS)", "__import__('os').system('false')"), "which is not allowed"),
        (("ceil_div(size, THREADS)", "size.real"), "holds Attribute, which is not allowed"),
        (("ceil_div(size, THREADS)", "9**9**9"), "which is not allowed"),
        (('["THREADS"]', '"THREADS"'), "'block' must be a list"),
        (("THREADS = 64", 'THREADS = "64"'), "'tile' must be a table of integers"),
        (("rank = -90", 'options = { relu = "int" }'), "unknown option of relu_fprop 'relu'"),
        (("rank = -90", 'options = { finite = "const int*" }'), "unknown option of relu_fprop 'finite'"),
        (
            ('op = "relu_fprop"', 'op = "sgd_momentum"\n// options = { finite = "int" }'),
            r"unknown type for option 'finite' 'int'. Known: const int\*",
        ),
        (("rank = -90", 'dtypes = ["int8"]'), "unknown dtype 'int8'"),
        (("rank = -90", 'math = "fp8"'), "unknown math 'fp8'"),
        (("rank = -90", "tune = { BLOCK = [1] }"), "'tune' names 'BLOCK', which is not in 'tile'"),
    ],
)
def test_a_broken_header(mine, change, words):
    before = ck.implementations()
    with pytest.raises(ck.OptionError, match=words):
        ck.register(mine(change))
    assert ck.implementations() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("y[i] = x", "y[i] = z"), r"relu_fprop_mine\.cu:12.*'?z'? was not declared|relu_fprop_mine\.cu:12"),
        (("THREADS = 64", "THREADS = 40"), r"whole warps[\s\S]*relu_fprop_mine\.cu:10"),
        (("void relu_fprop_mine(", "void another_name("), "relu_fprop_mine"),
        (("float* y)", "float* y, int z)"), "the kernel takes 4 arguments, not 3: g, x, y"),
        (("const float* x,", "double x,"), "x: the kernel's parameter is 8 bytes by value|does not compile"),
        (("ceil_div(size, THREADS)", "ceil_div(N, THREADS)"), "uses 'N'; it may use THREADS, size"),
        (("ceil_div(size, THREADS)", "size // (THREADS - 64)"), "divides by zero"),
    ],
)
def test_a_kernel_that_does_not_compile_or_launch(mine, change, words, compiler):
    ck.register(mine(change))
    x = np.ones(100, np.float32)
    out = np.full(100, 7, np.float32)
    with ck.emulate(), pytest.raises(ck.ConvkitError, match=words):
        ck.relu_fprop(x, impl="mine", out=out)
    assert (out == 7).all()
    with ck.emulate():
        assert (ck.relu_fprop(x, impl="vectorized") == 1).all()


def test_a_problem_is_worked_out_once(mine, compiler, monkeypatch):
    """A second call reads no header, builds no translation unit and no struct: a GPU waits for none of it."""
    (chosen,) = ck.register(mine(("rank = -90", 'when = "size < 1000"')))
    x = np.linspace(-1, 1, 100, dtype=np.float32)
    with ck.emulate():
        first = ck.relu_fprop(x, impl="mine")
        for place in ("convkit.cuda.expressions.evaluate", "convkit.cuda.prepare.translation_unit"):
            monkeypatch.setattr(place, lambda *arguments: pytest.fail(f"again: {arguments}"))
        monkeypatch.setattr(Elementwise, "struct", lambda problem: pytest.fail("again"))
        np.testing.assert_array_equal(ck.relu_fprop(x, impl="mine"), first)
        with pytest.raises(pytest.fail.Exception):  # another problem is another matter
            ck.relu_fprop(x[:50], impl="mine")
    assert chosen.run.ready.cache_info().currsize == 1


def test_a_kernel_that_never_ends(mine, compiler):
    ck.register(mine(("if (i < g.size)", "while (*(volatile const float*)x > -1) {}\n    if (i < g.size)")))
    with ck.emulate(timeout=1), pytest.raises(ck.ConvkitError, match="relu_fprop_mine"):
        ck.relu_fprop(np.ones(100, np.float32), impl="mine")


def test_two_files_of_one_name(mine, tmp_path):
    ck.register(mine())
    (tmp_path / "other").mkdir()
    with pytest.raises(ck.OptionError, match="already has an implementation 'mine'"):
        ck.register(mine(name="other/relu_fprop_mine.cu"))


def test_source_prints_the_unit(mine, capsys):
    assert main(["source", str(mine())]) == 0
    out = capsys.readouterr().out
    assert "struct Elementwise" in out and "constexpr int THREADS = 64;" in out and "#line 1" in out
    assert main(["source", "conv2d_fprop_nave"]) == 2
    assert "did you mean 'conv2d_fprop_naive'" in capsys.readouterr().err
    assert main(["source", "conv2d_fprop_naive", "--dtype", "float16"]) == 2


def test_geometry_as_constants(mine, compiler):
    path = mine(
        ("rank = -90", 'geometry = "constexpr"'),
        ("if (i < g.size)", "static_assert(g.size == 100);\n    if (i < g.size)"),
    )
    unit = translation_unit(read(path), Elementwise((100,)))
    assert "constexpr Elementwise g = {100};" in unit
    ck.register(path)
    with ck.emulate():
        assert (ck.relu_fprop(-np.ones(100, np.float32), impl="mine") == 0).all()
        with pytest.raises(ck.ConvkitError, match=r"relu_fprop_mine\.cu:12"):
            ck.relu_fprop(np.ones(101, np.float32), impl="mine")


# ---------------------------------------------------------------------------------------------------
# NVRTC
# ---------------------------------------------------------------------------------------------------
def test_nvrtc_compiles_and_caches(mine, tmp_path, monkeypatch):
    need("cuda.core")
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    kernel = read(mine())
    unit = translation_unit(kernel, Elementwise((100,)))
    cubin = nvrtc.compile_cubin(unit, "sm_90a")
    facts = cubin.resources()["relu_fprop_mine"]
    assert cubin.code[:4] == b"\x7fELF" and 4 < facts.registers < 40 and facts.spill_bytes == 0
    first = nvrtc.cached_cubin(unit, "sm_90a", name="mine")
    (entry,) = (tmp_path / "cache").glob("mine-sm_90a-*.cubin")
    entry.write_bytes(b"cut short")
    assert nvrtc.cached_cubin(unit, "sm_90a", name="mine") == first
    with pytest.raises(nvrtc.CompileError, match=r"relu_fprop_mine\.cu\(12\)"):
        nvrtc.compile_cubin(unit.replace("y[i] = x", "y[i] = z"), "sm_90a")


# ---------------------------------------------------------------------------------------------------
# Expressions
# ---------------------------------------------------------------------------------------------------
VALUES = {"a": 7, "b": 3, "c": 0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a + b * 2", 13),
        ("ceil_div(a, b)", 3),
        ("-a // b", -3),
        ("a % b == 1 and not c", True),
        ("a if c else b", 3),
        ("min(a, b) < max(a, b) <= 7", True),
        ("c or b", True),
    ],
)
def test_expressions(text, value):
    assert expressions.evaluate(text, VALUES) == value


@pytest.mark.parametrize(
    "text",
    [
        *("a.b", "a[0]", "'x'", "f(a)", "lambda: 1", "[a for a in (1,)]", "a ** b", "a / b", "a << 99"),
        *("1.5", "True.real", "__import__('os')", "(a := 1)", "min(a, key=b)", "", "a b", "1" * 600),
        "(" * 300 + "1" + ")" * 300,
    ],
)
def test_expressions_that_are_not_allowed(text):
    with pytest.raises(ck.OptionError):
        expressions.evaluate(text, VALUES)


@given(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from(["+", "-", "*", "//", "%", "<", ">=", "!="]))
def test_expressions_agree_with_python(a, b, sign):
    text = f"a {sign} b"
    if sign in ("//", "%") and b == 0:
        with pytest.raises(ck.OptionError, match="divides by zero"):
            expressions.evaluate(text, {"a": a, "b": b})
    else:
        assert expressions.evaluate(text, {"a": a, "b": b}) == eval(text)


def test_when_gives_its_reason(mine):
    runner = Runner(read(mine(("rank = -90", 'when = "size <= 2 * THREADS"'))))
    assert runner.refusal(Elementwise((129,))) == "needs size <= 2 * THREADS; here THREADS = 64, size = 129"
    assert runner.refusal(Elementwise((128,))) is None


# ---------------------------------------------------------------------------------------------------
# The gate, emulated
# ---------------------------------------------------------------------------------------------------
SHIPPED = [read(path) for path in KERNELS]


#: On tensor cores the emulator takes long: of these, the quick tests ask one; and each of them a few cases in
#: test_kernels_mma.py and test_ptx_kernels.py.
def on_tensor_cores(kernel: KernelFile) -> bool:
    return kernel.stem.endswith(("_mma", "_tf32"))


GATED = [
    pytest.param(
        kernel,
        id=kernel.stem,
        marks=[pytest.mark.slow]
        * (on_tensor_cores(kernel) and kernel.stem != "conv2d_fprop_implicit_gemm_mma"),
    )
    for kernel in SHIPPED
]


@pytest.mark.parametrize("kernel", GATED)
def test_the_gate(kernel, compiler):
    """In every dtype; on tensor cores, in the first."""
    found = ck.implementations(kernel.header.op, device="cuda", layout=None)
    (one,) = (i for i in found if i.name == kernel.name and i.layout == kernel.header.layout)
    if on_tensor_cores(kernel):
        one = replace(one, dtypes=kernel.header.dtypes[:1])
    verdicts = check.check_these([one], quick=True, seed=check.fresh_seed())
    assert all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok][:3]


@pytest.mark.parametrize("kernel", GATED)
def test_the_same_bits_for_every_schedule(kernel, compiler):
    implementation, dtype = prepared(kernel.path), kernel.header.dtypes[0]
    op = kernel.header.op
    # Few random geometries suit a kernel of few options: then the gate's own do.
    cases = [
        c
        for c in (*check.random_cases(op, 12, 5), *of_the_gate(op))
        if not c.heavy and implementation.refusal(c.of(dtype).problem, implementation.math) is None
    ][:3]
    assert cases
    for case in cases:
        question = check.Question.of(case, dtype)
        results = []
        for seed in (None, 1, 2, 3, 4):
            with ck.emulate(seed=seed):
                from convkit.check.attempt import FIRST, attempt

                run = attempt(implementation, question, FIRST)
            assert not run.fault, run.fault
            results.append([a.tobytes() for a in run.outputs.values()])
        assert all(r == results[0] for r in results), str(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(k, id=k.stem, marks=[pytest.mark.thorough] * on_tensor_cores(k))  # minutes each
        for k in SHIPPED
    ],
)
def test_the_whole_gate(kernel, compiler):
    verdicts = check.check(kernel.header.op, kernel.name, device="cuda")
    assert all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok][:3]
