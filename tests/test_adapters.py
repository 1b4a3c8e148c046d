"""Functions on another library's arrays, and functions that return their results, as implementations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import convkit as ck
from convkit import adapters, registry
from convkit.arrays import np_dtype

X = np.array([[-2, 0, 3], [1, -1, 5]], np.float32)
RELU = np.maximum(X, 0)


@pytest.fixture(autouse=True)
def _forgotten():
    registry.builtin()
    with pytest.raises(ZeroDivisionError), registry.whole():
        yield
        raise ZeroDivisionError


def test_a_function_that_returns():
    @ck.implements("relu_fprop", name="mine", returns=True, rank=-1)
    def relu(problem, x):
        return np.maximum(x, 0)

    out = np.empty_like(X)
    assert ck.relu_fprop(X, impl="mine", out=out) is out
    np.testing.assert_array_equal(out, RELU)


def test_several_results_and_options():
    @ck.implements("maxpool2d_fprop", name="mine", returns=True, rank=-1)
    def pool(problem, x):
        return np.full(problem.shape("y"), 2), np.full(problem.shape("argmax"), 3)

    @ck.implements("linear_fprop", name="mine", returns=True, rank=-1)
    def linear(problem, x, w, b, *, relu):
        assert b is None and relu is True
        return x @ w.T

    y, argmax = ck.maxpool2d_fprop(np.ones((1, 1, 5, 5), np.float32), impl="mine")
    assert np.all(y == 2) and np.all(argmax == 3) and argmax.dtype == np.uint8
    assert np.all(ck.linear_fprop(X, X, relu=True, impl="mine") == X @ X.T)


@pytest.mark.parametrize(
    "returned, error, said",
    [
        (None, TypeError, "with returns=True returns y, not nothing"),
        ((X, X), TypeError, "with returns=True returns y, not 2 results"),
        (X[0], ValueError, r"y has the shape \(2, 3\), and \(3,\) was returned"),
    ],
)
def test_what_must_not_be_returned(returned, error, said):
    ck.implements("relu_fprop", name="mine", returns=True, rank=-1)(lambda problem, x: returned)
    with pytest.raises(error, match=said):
        ck.relu_fprop(X, impl="mine")


def test_declarations_that_are_refused():
    def relu(problem, x):
        return x

    with pytest.raises(ck.OptionError, match="unknown library of arrays 'torhc'; did you mean 'torch'"):
        ck.implements("relu_fprop", name="mine", arrays="torhc", returns=True)(relu)
    with pytest.raises(ck.OptionError, match="arrays='jax' needs returns=True"):
        ck.implements("relu_fprop", name="mine", arrays="jax")(lambda problem, x, y: None)
    with pytest.raises(ck.OptionError, match=r"called as run\(problem, x\), which .* does not take"):
        ck.implements("relu_fprop", name="mine", returns=True)(lambda problem, x, y: None)
    with pytest.raises(ck.OptionError, match=r"called as run\(problem, x, y\)"):
        ck.implements("relu_fprop", name="mine")(relu)


def test_a_library_that_is_not_installed_is_missing(monkeypatch):
    monkeypatch.setitem(adapters.LIBRARIES, "torch", "no_such_package")
    mine = ck.implements("relu_fprop", name="mine", arrays="torch", rank=-1)
    mine(lambda problem, x, y: None)
    with pytest.raises(ck.NoImplementation, match="no_such_package is not installed"):
        ck.relu_fprop(X, impl="mine")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_torch_over_the_same_memory(dtype, need):
    torch = need("torch")
    seen = []

    @ck.implements("relu_fprop", name="mine", arrays="torch", dtypes=registry.ALL_DTYPES, rank=-1)
    def relu(problem, x, y):
        seen.append((x.dtype, x.data_ptr(), y.data_ptr()))
        torch.clamp(x, min=0, out=y)

    x = X.astype(np_dtype(dtype))
    out = np.empty_like(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of read-only arrays
        ck.relu_fprop(x, impl="mine", out=out)
    np.testing.assert_array_equal(out, np.maximum(x, 0))
    assert seen[0][0] is getattr(torch, dtype) and seen[0][2] == out.ctypes.data


def test_torch_gets_inputs_that_are_aligned(need):
    """At an odd address its BLAS may give other bits."""
    need("torch")
    seen = []

    @ck.implements("relu_fprop", name="mine", arrays="torch", returns=True, rank=-1)
    def relu(problem, x):
        seen.append(x.data_ptr() % 64)
        return x.clamp(min=0)

    memory = np.zeros(100, np.float32)
    for shift in range(4):
        x = memory[shift : shift + 50]
        x[...] = np.arange(-25, 25)
        assert np.all(ck.relu_fprop(x, impl="mine") == np.maximum(x, 0))
    assert seen == [0] * 4


def test_torch_results_in_bfloat16_and_with_grad(need):
    torch = need("torch")

    @ck.implements("relu_fprop", name="mine", arrays="torch", returns=True, dtypes=("bfloat16",), rank=-1)
    def relu(problem, x):
        return x.clone().requires_grad_().clamp(min=torch.zeros((), dtype=x.dtype))

    x = X.astype(np_dtype("bfloat16"))
    np.testing.assert_array_equal(ck.relu_fprop(x, impl="mine"), np.maximum(x, 0))


def test_jax_returns(need):
    jnp = need("jax.numpy")

    @ck.implements("relu_fprop", name="mine", arrays="jax", returns=True, rank=-1)
    def relu(problem, x):
        assert not isinstance(x, np.ndarray)
        return jnp.maximum(x, 0)

    np.testing.assert_array_equal(ck.relu_fprop(X, impl="mine"), RELU)


def test_the_source_is_the_users_file():
    @ck.implements("relu_fprop", name="mine", returns=True, rank=-1)
    def relu(problem, x):
        return x

    (mine,) = [i for i in ck.implementations("relu_fprop") if i.name == "mine"]
    assert mine.source == __file__
