"""Arrays of other libraries, on the CPU: what goes in, what comes out, what is refused."""

from __future__ import annotations

import contextlib
import sys
import types

import numpy as np
import pytest

import convkit as ck
from convkit import arrays
from convkit.arrays import np_dtype
from convkit.op import OPS
from convkit.registry import ALL_DTYPES

LRN, POOL = {"size": 3}, {"window": 2, "stride": 2}
RULE = {"lr": 0.5, "momentum": 0.5}
#: A call of every op.
CALLS = {
    "conv2d_fprop": lambda a: ck.conv2d_fprop(a.x, a.k, a.b, padding=1),
    "conv2d_dgrad": lambda a: ck.conv2d_dgrad(a.y, a.k, (2, 4, 4, 4), padding=1),
    "conv2d_dgrad_relu": lambda a: ck.conv2d_dgrad_relu(a.y, a.k, a.x, padding=1),
    "conv2d_wgrad": lambda a: ck.conv2d_wgrad(a.x, a.y, (4, 4, 3, 3), padding=1),
    "conv2d_bgrad": lambda a: ck.conv2d_bgrad(a.y),
    "conv2d_wgrad_bgrad": lambda a: ck.conv2d_wgrad_bgrad(a.x, a.y, (4, 4, 3, 3), padding=1),
    "relu_fprop": lambda a: ck.relu_fprop(a.x),
    "relu_dgrad": lambda a: ck.relu_dgrad(a.y, a.x),
    "lrn_fprop": lambda a: ck.lrn_fprop(a.x, **LRN),
    "lrn_dgrad": lambda a: ck.lrn_dgrad(a.y, a.x, **LRN),
    "maxpool2d_fprop": lambda a: ck.maxpool2d_fprop(a.x, **POOL),
    "maxpool2d_dgrad": lambda a: ck.maxpool2d_dgrad(a.small, a.argmax, (2, 4, 4, 4), **POOL),
    "avgpool2d_fprop": lambda a: ck.avgpool2d_fprop(a.x, **POOL),
    "avgpool2d_dgrad": lambda a: ck.avgpool2d_dgrad(a.small, (2, 4, 4, 4), **POOL),
    "reorder": lambda a: ck.reorder(a.x),
    "lrn_maxpool2d_fprop": lambda a: ck.lrn_maxpool2d_fprop(a.x, lrn=LRN, pool=POOL),
    "lrn_maxpool2d_dgrad": lambda a: ck.lrn_maxpool2d_dgrad(a.small, a.argmax, a.x, lrn=LRN, pool=POOL),
    "linear_fprop": lambda a: ck.linear_fprop(a.m, a.w, a.b),
    "linear_dgrad": lambda a: ck.linear_dgrad(a.m, a.w),
    "linear_wgrad": lambda a: ck.linear_wgrad(a.m, a.m),
    "linear_bgrad": lambda a: ck.linear_bgrad(a.m),
    "linear_wgrad_sgd": lambda a: ck.linear_wgrad_sgd(a.m, a.m, a.w, a.w, **RULE),
    "linear_dgrad_wgrad_sgd": lambda a: ck.linear_dgrad_wgrad_sgd(a.m, a.w, a.m, a.w, **RULE),
    "dropout_fprop": lambda a: ck.dropout_fprop(a.x, p=0.5, seed=1),
    "dropout_dgrad": lambda a: ck.dropout_dgrad(a.y, p=0.5, seed=1),
    "softmax_xent_fprop": lambda a: ck.softmax_xent_fprop(a.m, a.labels),
    "softmax_xent_dgrad": lambda a: ck.softmax_xent_dgrad(a.m, a.labels),
    "label_rank": lambda a: ck.label_rank(a.m, a.labels),
    "loss_summary": lambda a: ck.loss_summary(a.b, a.rank),
    "rescale": lambda a: ck.rescale(a.x, a.factor, a.flag),
    "adjust_loss_scale": lambda a: ck.adjust_loss_scale(a.factor, a.flag, a.flag),
    "crop_images": lambda a: ck.crop_images(a.images, a.crops, a.mean, a.shift, a.b, size=3),
    "sgd_momentum": lambda a: ck.sgd_momentum(a.w, a.w, a.w, **RULE),
    # Without a dimension, without an element, and with so many taps that argmax is uint16 and uint32.
    "0-d": lambda a: ck.relu_fprop(a.scalar),
    "empty": lambda a: ck.relu_fprop(a.none),
    "empty batch": lambda a: (ck.conv2d_fprop(a.none, a.k, a.b), ck.conv2d_bgrad(a.none)),
    "257 taps": lambda a: ck.maxpool2d_fprop(a.row, window=(1, 257), stride=1, padding=(0, 128)),
    "65537 taps": lambda a: ck.maxpool2d_fprop(a.row, window=(1, 65537), stride=1, padding=(0, 32768)),
}


def test_every_op_is_called_here():
    assert OPS.keys() <= CALLS.keys()


def inputs(dtype, make=lambda array: array):
    """Some arrays of the dtype, as `make` makes them."""
    rng = np.random.default_rng(0)
    drawn = {
        "x": (2, 4, 4, 4), "y": (2, 4, 4, 4), "small": (2, 4, 2, 2), "k": (4, 4, 3, 3), "b": (4,),
        "m": (4, 4), "w": (4, 4), "none": (0, 4, 4, 4), "row": (1, 1, 1, 1), "scalar": (),
        "mean": (4, 1, 1), "shift": (2, 4),
    }  # fmt: skip
    found = {name: np.asarray(rng.standard_normal(s)).astype(np_dtype(dtype)) for name, s in drawn.items()}
    found |= {"argmax": rng.integers(0, 4, (2, 4, 2, 2), np.uint8), "labels": np.array([3, 0, 1, 1])}
    found |= {"rank": np.array([0, 1, 5, 9], np.int32)}
    found |= {"factor": np.array([8], np.float32), "flag": np.array([1], np.int32)}
    found |= {"images": rng.integers(0, 256, (2, 5, 4, 4), np.uint8)}
    found |= {"crops": np.array([[1, 0, 0], [-1, 2, 1]], np.int32)}
    return types.SimpleNamespace(**{name: make(array) for name, array in found.items()})


def many(result):
    return result if isinstance(result, tuple) else (result,)


def host(array):
    """The values of any kind's array, as NumPy's; float64 where NumPy alone does not know the dtype."""
    if type(array).__module__.startswith("torch") and str(array.dtype) == "torch.bfloat16":
        return array.double().numpy().astype(np_dtype("bfloat16"))
    return np.asarray(array)


def compare(make, dtype, kind):
    """Every op on a library's arrays against the same on NumPy's: values, dtypes and kinds."""
    given, plain = inputs(dtype, make), inputs(dtype)
    for name, call in CALLS.items():
        for got, expected in zip(many(call(given)), many(call(plain)), strict=True):
            assert type(got) is kind, name
            values = host(got)
            assert values.dtype == expected.dtype and values.shape == expected.shape, name
            np.testing.assert_array_equal(values.astype("d"), expected.astype("d"), err_msg=name)


# ---------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def torch(need):
    return need("torch")


def to_torch(torch, array):
    if array.dtype == np_dtype("bfloat16"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("kind", ["Tensor", "Parameter", "subclass"])
def test_torch(kind, dtype, torch):
    """A subclass gives plain tensors, also one that changes what methods mean."""

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, kinds, args=(), kwargs=None):
            raise AssertionError("the subclass was asked")

    def make(array):
        tensor = to_torch(torch, array)
        if kind == "Parameter":
            return torch.nn.Parameter(tensor, requires_grad=False)
        return tensor.as_subclass(Own) if kind == "subclass" else tensor

    compare(make, dtype, torch.Tensor)


@pytest.mark.filterwarnings("ignore:.*(jit.script|nested tensors|quantize_per_tensor)")
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_what_torch_has_not_in_its_memory_is_refused(dtype, torch):
    """As an input and as `out=`, and nothing is written."""
    kind = getattr(torch, dtype)
    plain = torch.full((3,), -2.0, dtype=kind)
    leaf = plain.clone().requires_grad_()
    forward_ad = torch.autograd.forward_ad
    with contextlib.ExitStack() as stack:
        stack.enter_context(forward_ad.dual_level())
        dual = forward_ad.make_dual(plain.clone(), plain.clone())
        cases = [
            (leaf, "requires grad.*detach"),
            (leaf * 1, "requires grad.*detach"),
            (torch.nn.Parameter(plain.clone()), "requires grad.*detach"),
            (dual, "tangent"),
            (plain.to_sparse(), "layout torch.sparse_coo.*to_dense"),
            (torch.nested.nested_tensor([plain, plain[:2]]), "nested"),
            (torch.empty(3, dtype=kind, device="meta"), "cannot be read"),
            (wrapped(torch, kind), "is a Wrapped, whose values are not in its own memory"),
            (torch._to_functional_tensor(plain.clone()), "whose values are not in its own memory"),
            (torch.nn.UninitializedParameter(requires_grad=False), "no values yet"),
        ]
        if dtype == "float32":
            cases.append((torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8), "quantized.*dequantize"))
            cases.append((torch.eye(3).to_mkldnn(), "_mkldnn.*to_dense"))
        for tensor, words in cases:
            for act in (lambda x: ck.relu_fprop(x), lambda x: ck.relu_fprop(plain, out=x)):
                with pytest.raises(ck.DtypeError, match=f"(?s)relu_fprop: .*{words}"):
                    act(tensor)
    assert (leaf == -2).all() and (forward_ad.unpack_dual(dual).primal == -2).all()
    negative = torch._neg_view(plain)  # a sign that is put off
    assert torch.equal(ck.relu_fprop(negative), torch.full_like(plain, 2))
    with pytest.raises(ck.DtypeError, match="sign"):
        ck.relu_fprop(plain, out=negative)
    assert (plain == -2).all()


def wrapped(torch, dtype):
    """A tensor that has a shape and a device, and no memory, as PyTorch's FakeTensor and DTensor."""

    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
            raise AssertionError("asked for its values")

    return torch.Tensor._make_wrapper_subclass(Wrapped, (3,), dtype=dtype)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_autograd_notices_what_is_written(dtype, torch):
    """Whatever it has saved: of a tensor, a view, one that is detached; by every op, strided or not."""
    w = torch.ones(4, 4, dtype=getattr(torch, dtype), requires_grad=True)
    x = torch.ones(4, 4, dtype=w.dtype)
    writes = {
        "out": (x, lambda saved: ck.relu_fprop(torch.zeros_like(x), out=saved)),
        "in place": (x, lambda saved: ck.relu_fprop(saved, out=saved)),
        "a view": (x, lambda saved: ck.relu_fprop(torch.zeros_like(x).T, out=saved.T)),
        "a part": (x, lambda saved: ck.relu_fprop(torch.zeros_like(x[0]), out=saved[0])),
        "two": (x, lambda saved: ck.sgd_momentum(saved, x, x * 1, lr=1.0, out=(saved, torch.ones_like(x)))),
    }
    for name, (saved, write) in writes.items():
        product = (w * saved).sum()
        write(saved)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()
        assert saved._version > 0, name
    product = (w * w).sum()
    ck.relu_fprop(x, out=w.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    product, version = (w * x).sum(), x._version
    with pytest.raises(ck.ShapeError):  # a call that is refused has written nothing
        ck.relu_fprop(x, out=x[0])
    assert x._version == version
    product.backward()
    with torch.inference_mode():  # its tensors have no version, and autograd saves none of them
        free = torch.zeros_like(x)
        assert ck.relu_fprop(x, out=free) is free
    assert torch.equal(ck.relu_fprop(x, out=free), x)


# ---------------------------------------------------------------------------------------------------
# JAX
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def jax(need):
    return need("jax")


def x64(jax):
    return (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64(True)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_jax(dtype, jax):
    def make(array):
        with x64(jax):  # float64, and labels of int64
            return jax.numpy.asarray(array)

    compare(make, dtype, type(make(np.ones(1, np.float32))))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_jax_is_not_written(dtype, jax):
    with x64(jax):
        x = jax.numpy.ones(3, dtype)
    with pytest.raises(ck.OptionError, match="out .y. is read-only, as JAX's arrays are"):
        ck.relu_fprop(x, out=x)
    with pytest.raises(ck.DtypeError, match="must be an array"):
        jax.jit(ck.relu_fprop)(x)


# ---------------------------------------------------------------------------------------------------
# Others
# ---------------------------------------------------------------------------------------------------
class Capsule:
    """The least that DLPack asks for: no shape, no dtype."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return 1, 0


class Old(Capsule):
    """From before DLPack 1.0, as pyarrow's are: read-only in NumPy."""

    def __dlpack__(self, *, stream=None):
        return self.array.__dlpack__(stream=stream)


Old.__module__ = "pyarrow.lib"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("kind", [Capsule, Old])
def test_without_a_library_results_are_numpys(kind, dtype, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    compare(kind, dtype, np.ndarray)
    x = np.array([-1, 2], dtype)
    if kind is Capsule:
        out = Capsule(np.zeros(2, dtype))
        assert ck.relu_fprop(x, out=out) is out and out.array.tolist() == [0, 2]
    else:
        with pytest.raises(ck.OptionError, match="read-only"):
            ck.relu_fprop(x, out=kind(np.zeros(2, dtype)))


def test_bfloat16_that_dlpack_cannot_carry():
    x = np.ones(2, np_dtype("bfloat16"))
    with pytest.raises(ck.DtypeError, match="x, a test_arrays array, cannot be read"):
        ck.relu_fprop(Capsule(x))

    class AsNumpy(Capsule):
        def __array__(self, dtype=None, copy=None):
            return self.array

    assert type(ck.relu_fprop(AsNumpy(x))) is np.ndarray
    with pytest.raises(ck.DtypeError, match="cannot be read"):
        ck.relu_fprop(x, out=AsNumpy(x))


@pytest.fixture
def library(monkeypatch):
    """A library that nobody here knows, whose arrays are `Capsule`s; it makes them of float32 alone."""
    module = types.ModuleType("somebodys")

    class Array(Capsule):
        pass

    def from_dlpack(array):
        if array.dtype != np.float32:
            raise ValueError("float32 only")
        return Array(array)

    Array.__module__ = from_dlpack.__module__ = "somebodys.inner"
    module.Array, module.from_dlpack = Array, from_dlpack
    monkeypatch.setitem(sys.modules, "somebodys", module)
    return module


def test_a_library_makes_its_own_results(library, monkeypatch):
    x = np.array([-1, 2], np.float32)
    got = ck.relu_fprop(library.Array(x))
    assert type(got) is library.Array and got.array.tolist() == [0, 2]

    class Derived(library.Array):
        pass

    assert type(ck.relu_fprop(Derived(x))) is library.Array
    # What it cannot take comes back as it is: the work is not lost.
    assert type(ck.relu_fprop(library.Array(x.astype("d")))) is np.ndarray
    y, argmax = ck.maxpool2d_fprop(library.Array(np.ones((1, 1, 3, 3), np.float32)))
    assert type(y) is library.Array and type(argmax) is np.ndarray
    # A module's from_dlpack that is somebody else's says nothing about the module's own arrays.
    monkeypatch.setattr(sys.modules[__name__], "from_dlpack", library.from_dlpack, raising=False)
    assert arrays.kind_of("x", Capsule(x)) == arrays.NUMPY


class Exports:
    """An array of somebody's own, by DLPack; its type may claim any module."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return 1, 0


class Fails(Exports):
    def __dlpack__(self, **options):
        raise BufferError("not now,\nnor ever")

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("on a device")


@pytest.mark.parametrize("module", ["torch.somewhere", "numpy", None, ""])
def test_a_class_may_claim_any_module(module, torch):
    kind = type("Claims", (Exports,), {"__module__": module})
    y = ck.relu_fprop(kind(np.array([-1, 2], np.float32)))
    assert isinstance(y, np.ndarray) and y.tolist() == [0, 2]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("argument", ["x", "labels", "b"])
def test_what_a_library_cannot_export_ends_in_one_line(argument, torch):
    one = torch.ones(1, 2)
    act = {
        "x": lambda value: ck.relu_fprop(value),
        "labels": lambda value: ck.softmax_xent_fprop(one, value),
        "b": lambda value: ck.linear_fprop(one, one, value),
    }[argument]
    values = [
        torch.zeros(1).to(torch.float8_e4m3fn),
        torch.zeros(1).to(torch.complex32),
        torch.zeros(1, dtype=torch.complex64).conj(),
        torch._efficientzerotensor((1,)),
        Fails(np.ones(1, np.float32)),
        torch.Tensor,
    ]
    for value in values:
        with pytest.raises(
            ck.DtypeError, match=f": {argument}[, ].*(cannot be read: .|must be an array)"
        ) as caught:
            act(value)
        assert "\n" not in str(caught.value)
