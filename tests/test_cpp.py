"""A C++ file as an implementation: its header, its compilation, its errors."""

from __future__ import annotations

import numpy as np
import pytest

import convkit as ck
from convkit import registry
from convkit.cuda.launch import KernelError

pytestmark = pytest.mark.usefixtures("compiler")

RELU = """// /// kernel
// op = "relu_fprop"
// dtypes = ["float32", "float64"]
// rank = -1
// ///
extern "C" void mine(const Elementwise& g, const storage_t* x, storage_t* y) {
  for (long long i = 0; i < g.size; ++i) y[i] = x[i] < 0 ? 0 : x[i];
}
"""
X = np.array([-2, 0, 3], np.float32)


@pytest.fixture(autouse=True)
def _forgotten():
    registry.builtin()
    with pytest.raises(ZeroDivisionError), registry.whole():
        yield
        raise ZeroDivisionError


@pytest.fixture
def written(tmp_path):
    def write(text, name="mine.cpp"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_runs(written, dtype):
    (mine,) = ck.register(written(RELU))
    assert (mine.op, mine.name, mine.device, mine.rank, mine.compiled) == (
        "relu_fprop",
        "mine",
        "cpu",
        -1,
        True,
    )
    y = ck.relu_fprop(X.astype(dtype), impl="mine")
    assert y.dtype == dtype and y.tolist() == [0, 0, 3]
    with pytest.raises(ck.NoImplementation, match="takes float32, float64, not float16"):
        ck.relu_fprop(X.astype(np.float16), impl="mine")


def test_a_changed_file_is_compiled_anew(written):
    path = written(RELU)
    ck.register(path)
    assert ck.relu_fprop(X, impl="mine").tolist() == [0, 0, 3]
    path.write_text(RELU.replace("? 0 :", "? 7 :"))
    ck.register(path)
    assert ck.relu_fprop(X, impl="mine").tolist() == [7, 0, 3]


def test_a_header_that_it_includes_counts(written, tmp_path):
    (tmp_path / "floor.hpp").write_text("constexpr float FLOOR = 1;\n")
    path = written('#include "floor.hpp"\n' + RELU.replace("? 0 :", "? FLOOR :"))
    ck.register(path)
    assert ck.relu_fprop(X, impl="mine").tolist() == [1, 0, 3]
    (tmp_path / "floor.hpp").write_text("constexpr float FLOOR = 2;\n")
    ck.register(path)
    assert ck.relu_fprop(X, impl="mine").tolist() == [2, 0, 3]


def test_options_none_and_workspace(written):
    """b is null where there is none; options have the types of the header; scratch memory comes between."""
    path = written("""// /// kernel
// op = "linear_fprop"
// options = { relu = "int" }
// workspace = "4 * N * K"
// when = "K < 9"
// rank = -1
// ///
extern "C" void mine(const Linear& g, const float* x, const float* w, const float* b, float* y,
                     float* scratch, int relu) {
  for (int i = 0; i < g.N * g.K; ++i) scratch[i] = b ? b[i % g.K] : -1;
  for (int i = 0; i < g.N * g.K; ++i) y[i] = relu && scratch[i] < 0 ? 5 : scratch[i];
}
""")
    ck.register(path)
    x, w = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    assert np.all(ck.linear_fprop(x, w, impl="mine") == -1)
    assert np.all(ck.linear_fprop(x, w, relu=True, impl="mine") == 5)
    y = ck.linear_fprop(x, w, np.arange(4, dtype=np.float32), impl="mine")
    assert y.tolist() == [[0, 1, 2, 3]] * 2
    with pytest.raises(ck.NoImplementation, match="needs K < 9"):
        ck.linear_fprop(x, np.ones((9, 3), np.float32), impl="mine")


def test_an_error_names_the_line(written):
    ck.register(written(RELU.replace("x[i] < 0", "z[i] < 0")))
    with pytest.raises(KernelError, match=r"mine does not compile: .*z.*\n +at .*mine\.cpp:7"):
        ck.relu_fprop(X, impl="mine")


def test_a_function_of_another_name(written):
    ck.register(written(RELU.replace("void mine", "void yours")))
    with pytest.raises(
        ck.OptionError, match=r'mine\.cpp has no function extern "C" void mine\(const Elementwise& g'
    ):
        ck.relu_fprop(X, impl="mine")


@pytest.mark.parametrize(
    "change, said",
    [
        (("// rank = -1", '// grid = ["1"]'), "mine.cpp: 'grid' is for CUDA kernels"),
        (("// rank = -1", "// ronk = -1"), "unknown header key 'ronk'; did you mean 'rank'"),
        (('"float64"', '"float16"'), "a C\\+\\+ file takes float32 and float64, not float16"),
        (("// /// kernel", "//"), "mine.cpp: no header"),
    ],
)
def test_headers_that_are_refused(written, change, said):
    with pytest.raises(ck.OptionError, match=said):
        ck.register(written(RELU.replace(*change)))


def test_without_a_compiler_it_is_missing(written, monkeypatch):
    (mine,) = ck.register(written(RELU))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in mine.missing()
    with pytest.raises(ck.NoImplementation, match=r"no C\+\+ compiler was found"):
        ck.relu_fprop(X, impl="mine")
