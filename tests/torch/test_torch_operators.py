"""convkit.torch's operators: PyTorch's own samples, gradients, fake kernels, memory formats, errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import need

torch = need("torch")

import torch.nn.functional as F  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

import convkit as ck  # noqa: E402
import convkit.torch as ct  # noqa: E402
from convkit.errors import ConvkitError, DtypeError, NoImplementation, OptionError, ShapeError  # noqa: E402
from convkit.torch.operators import conv2d, linear, lrn, pooling, relu  # noqa: E402

NAMES = ("conv2d", "relu", "local_response_norm", "max_pool2d", "avg_pool2d", "linear")
#: Relative RMS error of a result: what dispatch lets an implementation declare in float32, one rounding in 16
#: bits and what PyTorch's own gradients take in between.
BOUNDS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def _one_thread():
    """The tests run side by side: PyTorch's threads, which spin while they wait, would stand in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(*shape: int, dtype: Any = torch.float32, last: bool = False, grad: bool = False) -> Any:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if last:
        x = x.to(memory_format=torch.channels_last)
    return x.requires_grad_(grad)


# ---------------------------------------------------------------------------------------------------
# PyTorch's samples
# ---------------------------------------------------------------------------------------------------
def tensors(values: Any) -> list[Any]:
    return [v for v in values if isinstance(v, torch.Tensor)]


def exact(value: Any) -> Any:
    return value.detach().double().requires_grad_(value.requires_grad) if torch.is_tensor(value) else value


def close(found: Any, wanted: Any, bound: float, where: str) -> None:
    assert found.shape == wanted.shape, where
    if wanted.is_floating_point():
        difference = (found.detach().double() - wanted.detach()).norm()
        assert difference <= bound * wanted.norm() + 1e-30, f"{where}: {difference / wanted.norm()}"
    else:
        assert torch.equal(found, wanted), where


def samples(name: str, dtype: Any) -> Iterator[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (op for op in op_db if op.name == f"nn.functional.{name}")
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        if name == "avg_pool2d" and sample.args[5:6] not in ((), (None,)):
            continue  # divisor_override
        yield sample


def as_pytorch(name: str, dtype: Any, every: int = 1) -> None:
    """Each sample's results and gradients, against PyTorch's in float64."""
    count = 0
    for number, sample in enumerate(samples(name, dtype)):
        if number % every:
            continue
        count += 1
        found = getattr(ct, name)(sample.input, *sample.args, **sample.kwargs)
        args, kwargs = [exact(a) for a in sample.args], {k: exact(v) for k, v in sample.kwargs.items()}
        x = exact(sample.input)
        wanted = getattr(F, name)(x, *args, **kwargs)
        found, wanted = (r if isinstance(r, tuple) else (r,) for r in (found, wanted))
        assert len(found) == len(wanted)
        where = f"{name} {tuple(sample.input.shape)} {sample.kwargs}"
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == (dtype if b.is_floating_point() else b.dtype)
            close(a, b, BOUNDS[dtype], where)
        dy = torch.randn_like(found[0])
        mine = [t for t in tensors([sample.input, *sample.args, *sample.kwargs.values()]) if t.requires_grad]
        theirs = [t for t in tensors([x, *args, *kwargs.values()]) if t.requires_grad]
        for a, b in zip(
            torch.autograd.grad(found[0], mine, dy),
            torch.autograd.grad(wanted[0], theirs, dy.double()),
            strict=True,
        ):
            close(a, b, 2 * BOUNDS[dtype], f"gradient of {where}")
    assert count


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_pytorch(name):
    as_pytorch(name, torch.float32, 24 if name == "max_pool2d" else 1)


@pytest.mark.slow  # max_pool2d has 1440 samples
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(d, marks=[] if d == torch.float32 else [pytest.mark.thorough]) for d in BOUNDS],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_all_samples_of_pytorch(name, dtype):
    as_pytorch(name, dtype)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d"])
def test_what_pytorch_refuses_is_refused(name):
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (op for op in op_db if op.name == f"nn.functional.{name}")
    errors = list(info.error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type) as caught:
            getattr(ct, name)(sample.input, *sample.args, **sample.kwargs)
        assert isinstance(caught.value, ConvkitError)
        assert str(caught.value).startswith(
            (f"{name}: ", f"{name.replace('_', '')}_fprop: ", f"{name}_fprop: ")
        )


# ---------------------------------------------------------------------------------------------------
# Gradients, and what PyTorch asks of an operator
# ---------------------------------------------------------------------------------------------------
def cases() -> dict[str, tuple[Any, tuple]]:
    def x() -> Any:
        return seeded(2, 4, 6, 5, dtype=torch.float64, grad=True)

    def of(*shape: int) -> Any:
        return seeded(*shape, dtype=torch.float64, grad=True)

    def conv(x: Any, w: Any, b: Any) -> Any:
        return ct.conv2d(x, w, b, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)

    return {
        "conv2d": (conv, (x(), of(6, 2, 3, 2), of(6))),
        "relu": (ct.relu, (x(),)),
        "lrn, even": (lambda x: ct.local_response_norm(x, 4, 0.5, k=1.3), (x(),)),
        "lrn, odd": (lambda x: ct.local_response_norm(x, 3, 0.5, 0.6), (x(),)),
        "max_pool2d": (lambda x: ct.max_pool2d(x, 3, 2, 1, ceil_mode=True), (x(),)),
        "avg_pool2d": (lambda x: ct.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (x(),)),
        "linear": (ct.linear, (of(2, 3, 5), of(4, 5), of(4))),
    }


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("through", ["past the dispatcher", "through it"])
def test_gradients_and_their_gradients(name, through, monkeypatch):
    function, inputs = cases()[name]
    if through == "through it":
        monkeypatch.setattr(torch.autograd, "_profiler_enabled", lambda: True)
    assert gradcheck(function, inputs, check_undefined_grad=False, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def calls(last: bool) -> dict[str, tuple[Any, tuple]]:
    """Each operator with arguments; some need a gradient."""
    x, w, b = (seeded(2, 4, 6, 5, last=last, grad=True), seeded(6, 2, 3, 2, last=last, grad=True), seeded(6))
    dy = seeded(2, 6, 4, 7, last=last, grad=True)
    options = ([2, 1], [1, 2, 2, 2], [1, 2], 2, "")
    window = ([3, 2], [2, 2], [1, 1])
    small = seeded(2, 4, 4, 3, last=last, grad=True)
    rows, weights = seeded(3, 5, grad=True), seeded(4, 5, grad=True)
    pool = (*window, [1, 1], True, "")
    _, argmax = pooling._MAX_FPROP(x.detach(), *pool)
    return {
        "conv2d": (conv2d._FPROP, (x, w, b, *options)),
        "conv2d_dgrad": (conv2d._DGRAD, (dy, w, [2, 4, 6, 5], last, *options)),
        "conv2d_wgrad": (conv2d._WGRAD, (x, dy, [6, 2, 3, 2], last, *options)),
        "conv2d_bgrad": (conv2d._BGRAD, (dy, "")),
        "relu": (relu._FPROP, (x, "")),
        "relu_dgrad": (relu._DGRAD, (x, seeded(2, 4, 6, 5), "")),
        "local_response_norm": (lrn._FPROP, (x, 4, 0.5, 0.75, 1.0, "")),
        "lrn_dgrad": (lrn._DGRAD, (x, seeded(2, 4, 6, 5, last=last), 5, 0.5, 0.75, 1.0, "")),
        "max_pool2d": (pooling._MAX_FPROP, (x, *pool)),
        "max_pool2d_dgrad": (pooling._MAX_DGRAD, (small, argmax, [2, 4, 6, 5], last, *pool)),
        "avg_pool2d": (pooling._AVG_FPROP, (x, *window, True, False, "")),
        "avg_pool2d_dgrad": (pooling._AVG_DGRAD, (small, [2, 4, 6, 5], last, *window, True, False, "")),
        "linear": (linear._FPROP, (rows, weights, seeded(4), "")),
        "linear_dgrad": (linear._DGRAD, (seeded(3, 4, grad=True), weights, "")),
        "linear_wgrad": (linear._WGRAD, (rows, seeded(3, 4, grad=True), "")),
        "linear_bgrad": (linear._BGRAD, (seeded(3, 4, grad=True), "")),
    }


def test_each_operator_is_called_below():
    registered = {name.removeprefix("convkit::") for name in torch._C._dispatch_get_all_op_names()
                  if name.startswith("convkit::")}  # fmt: skip
    assert registered == calls(False).keys()


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", calls(False))
def test_fake_and_real_have_the_same_strides(name, last):
    """On each way: at once, through the dispatcher, and without data."""
    operator, args = calls(last)[name]
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
    found = [
        r if isinstance(r, tuple) else (r,) for r in (operator(*args), operator.op(*args), operator.op(*meta))
    ]
    for at_once, dispatched, fake in zip(*found, strict=True):
        assert torch.equal(at_once, dispatched)
        assert at_once.stride() == dispatched.stride() == fake.stride()
        assert (fake.shape, fake.dtype) == (at_once.shape, at_once.dtype)


@pytest.mark.parametrize("name", calls(False))
def test_opcheck(name):
    operator, args = calls(False)[name]
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator.op, args, test_utils=utils)


@pytest.mark.slow  # PyTorch's symbolic shapes take their time
@pytest.mark.parametrize(
    "last", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["contiguous", "channels_last"]
)
@pytest.mark.parametrize("name", calls(False))
def test_opcheck_whole(name, last):
    operator, args = calls(last)[name]
    torch.library.opcheck(operator.op, args)


# ---------------------------------------------------------------------------------------------------
# Memory formats
# ---------------------------------------------------------------------------------------------------
FORMATS = {
    "contiguous": (lambda x: x, False),
    "channels_last": (lambda x: x.to(memory_format=torch.channels_last), True),
    "a part of channels_last": (lambda x: x.to(memory_format=torch.channels_last)[:, :, 1:], True),
    "a part of contiguous": (lambda x: x[:, :, :, 1:], False),
    "turned": (lambda x: x.transpose(2, 3), False),
    "a step apart": (lambda x: x[:, :, ::2], False),
    "expanded": (lambda x: x[:, :1].expand(2, 4, 8, 7), False),
}


@pytest.mark.parametrize("name", FORMATS)
def test_memory_formats(name):
    """Results and gradients have the input's format, or are contiguous; the values are PyTorch's."""
    make, last = FORMATS[name]
    x = make(seeded(2, 4, 8, 7, dtype=torch.float64)).requires_grad_()
    w = seeded(6, 4, 3, 3, dtype=torch.float64, last=last, grad=True)
    format = torch.channels_last if last else torch.contiguous_format
    for function in (
        lambda library, x: library.conv2d(x, w, padding=1),
        lambda library, x: library.relu(x),
        lambda library, x: library.local_response_norm(x, 3),
        lambda library, x: library.max_pool2d(x, 2),
        lambda library, x: library.avg_pool2d(x, 2),
    ):
        y, wanted = function(ct, x), function(F, x)
        assert y.is_contiguous(memory_format=format)
        torch.testing.assert_close(y, wanted)
        dy = torch.randn_like(wanted)
        (dx,), (wanted_dx,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(wanted, x, dy)
        assert dx.is_contiguous(memory_format=format)
        torch.testing.assert_close(dx, wanted_dx)
    ct.conv2d(x, w, padding=1).sum().backward()
    assert w.grad.stride() == w.stride()


# ---------------------------------------------------------------------------------------------------
# Implementations by name
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def spies(monkeypatch):
    """Implementations that say that they ran."""
    from convkit import registry

    seen: list[str] = []
    with pytest.raises(ZeroDivisionError), registry.whole():

        @ck.implements("conv2d_fprop", name="spy", rank=-50)
        def fprop(problem, x, w, b, y, relu=False):
            seen.append("fprop")
            y[...] = 1

        @ck.implements("conv2d_dgrad", name="spy", rank=-50)
        def dgrad(problem, dy, w, dx):
            seen.append("dgrad")
            dx[...] = 1

        @ck.implements("relu_dgrad", name="spy_too", rank=-50)
        def relu_dgrad(problem, dy, y, dx):
            seen.append("relu_dgrad")
            dx[...] = 1

        yield seen
        1 / 0  # noqa: B018  # the registry is put back when the block fails


def chain(x: Any, w: Any, **impl: Any) -> Any:
    return ct.relu(ct.conv2d(x, w, impl=impl.get("conv")), impl=impl.get("relu"))


def test_a_name_counts_for_each_pass_that_has_it(spies):
    x, w = seeded(2, 4, 6, 5, grad=True), seeded(6, 4, 3, 3, grad=True)
    chain(x, w, conv="spy").sum().backward()
    assert spies == ["fprop", "dgrad"]
    spies.clear()
    chain(x, w, conv={"dgrad": "spy"}, relu={"relu_dgrad": "spy_too"}).sum().backward()
    assert spies == ["relu_dgrad", "dgrad"]


def test_what_use_has_set_around_the_forward_pass_counts_for_the_backward_pass(spies):
    x, w = seeded(2, 4, 6, 5, grad=True), seeded(6, 4, 3, 3, grad=True)
    with ck.use(conv2d_fprop="spy", relu_dgrad="spy_too"):
        y = chain(x, w, conv={"dgrad": "spy"})
    y.sum().backward()
    assert spies == ["fprop", "relu_dgrad", "dgrad"]
    spies.clear()
    with ck.use(conv2d_fprop="spy"):
        chain(x, w, conv={"fprop": "direct"})
    assert not spies


def test_compiled(spies):
    """impl= is part of what is compiled; `use` counts when it runs."""
    x, w = seeded(2, 4, 6, 5, grad=True), seeded(6, 4, 3, 3, grad=True)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def f(x: Any, w: Any) -> Any:
        return chain(x, w, relu={"dgrad": "spy_too"}).sum()

    f(x, w).backward()
    assert spies == ["relu_dgrad"]
    with ck.use(conv2d_fprop="spy"):
        f(x, w)
    assert spies == ["relu_dgrad", "fprop"]


@pytest.mark.slow  # PyTorch's symbolic shapes take their time
def test_compiled_for_every_size():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, w = CompileCounterWithBackend("aot_eager"), seeded(6, 4, 3, 3, dtype=torch.float64)

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def f(x: Any) -> Any:
        y, indices = ct.max_pool2d(ct.relu(ct.conv2d(x, w, padding="same")), 2, 2, return_indices=True)
        return ct.avg_pool2d(ct.local_response_norm(y, 5), 2, ceil_mode=True), indices

    counts = []
    for size in (10, 12, 17):
        x = seeded(3, 4, size, size + 3, dtype=torch.float64)
        y, indices = F.max_pool2d(F.conv2d(x, w, padding="same").relu(), 2, 2, return_indices=True)
        found = f(x)
        wanted = F.avg_pool2d(F.local_response_norm(y, 5), 2, ceil_mode=True)
        torch.testing.assert_close(found[0], wanted)
        assert torch.equal(found[1], indices)
        counts.append(counter.frame_count)
    assert counts[0] == counts[2]


# ---------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------
X, W = torch.ones(2, 4, 6, 6), torch.ones(4, 4, 3, 3)
#: (call, error of convkit, part of the message)
REFUSED = {
    "channels": (lambda: ct.conv2d(X, W[:, :3]), ShapeError, "has 3 channels per filter"),
    "dtypes": (lambda: ct.conv2d(X, W.double()), DtypeError, "must share a dtype"),
    "an integer": (lambda: ct.relu(torch.ones(3, dtype=torch.int32)), DtypeError, "int32"),
    "a window too large": (lambda: ct.conv2d(X, torch.ones(4, 4, 9, 9)), ShapeError, "spans 9 pixels"),
    "five dimensions": (lambda: ct.max_pool2d(torch.ones(1, 1, 1, 2, 2), 2), ShapeError, r"\(C, H, W\)"),
    "'same', strided": (
        lambda: ct.conv2d(X, W, padding="same", stride=2), OptionError, "not supported for strided"
    ),
    "a word": (lambda: ct.conv2d(X, W, padding="full"), OptionError, "'valid' or 'same', not 'full'"),
    "padding": (lambda: ct.max_pool2d(X, 2, padding=2), OptionError, "at most half of the effective"),
    "divisor": (lambda: ct.avg_pool2d(X, 2, divisor_override=3), OptionError, "is not covered"),
    "k": (lambda: ct.local_response_norm(X, 5, k=0.0), OptionError, "k must be positive"),
    "a name": (lambda: ct.conv2d(X, W, impl="winogard"), OptionError, "did you mean 'winograd'"),
    "a name of a pass": (
        lambda: ct.conv2d(X, W, impl={"dgrad": "few_channels"}), OptionError, "implementation of conv2d_dgrad"
    ),
    "no name": (lambda: ct.conv2d(X, W, impl=3), OptionError, "must be a name, or a dict of names by pass"),
    "a pass": (lambda: ct.conv2d(X, W, impl={"dgrod": "direct"}), OptionError, "'dgrod'; did you"),
    "what does not fit": (lambda: ct.conv2d(X, W, impl="pointwise"), NoImplementation, "needs 1 x 1 filters"),
    "sparse": (lambda: ct.relu(X.to_sparse()), DtypeError, "takes dense tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """Who catches RuntimeError, as PyTorch raises, catches these; and who catches convkit's."""
    call, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text) as caught:
        call()
    assert isinstance(caught.value, ConvkitError)
    assert isinstance(caught.value, RuntimeError)


def test_forward_mode_is_refused():
    with torch.autograd.forward_ad.dual_level(), pytest.raises(DtypeError, match="no forward-mode"):
        ct.relu(torch.autograd.forward_ad.make_dual(X, X))


# ---------------------------------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------------------------------
def test_autocast():
    x = seeded(2, 4, 6, 5, grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ct.conv2d(x, seeded(6, 4, 3, 3))
        assert y.dtype is ct.linear(y.flatten(1), seeded(2, 72)).dtype is torch.bfloat16
        assert ct.max_pool2d(x, 2).dtype is torch.float32
    y.float().sum().backward()
    assert x.grad.dtype is torch.float32


def test_inplace():
    x = seeded(2, 3, grad=True) * 1
    wanted = x.detach().clone().relu()
    y = ct.relu(x, inplace=True)
    assert y is x
    assert torch.equal(x, wanted)
    with pytest.raises(RuntimeError, match="in-place"):
        ct.relu(seeded(2, 3, grad=True), inplace=True)


def test_unbatched_and_padding_by_word():
    x, w = seeded(4, 6, 5), seeded(6, 4, 2, 3)
    torch.testing.assert_close(
        ct.conv2d(x, w, padding="same", dilation=2), F.conv2d(x, w, padding="same", dilation=2)
    )
    assert ct.conv2d(x, w, padding="valid").shape == (6, 5, 3)


def test_modules_of_tracing():
    """What is traced holds the operator, not the numbers of one run."""
    x = seeded(2, 3)
    traced = torch.jit.trace(lambda v: ct.relu(v), x)
    assert torch.equal(traced(-x), (-x).relu())
    assert torch.equal(torch.vmap(ct.relu)(x), x.relu())
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda v: ct.relu(v).sum())(x)


def test_convkit_does_not_import_pytorch():
    program = "import sys, convkit; assert 'torch' not in sys.modules; print('apart')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "apart", done.stderr


@pytest.mark.slow  # the host's compiler makes each kernel
def test_the_cuda_kernels_under_the_emulator(compiler):
    """On a GPU no test has run; here the CUDA kernels run, forward and backward, on tensors of the CPU."""
    x, w, b = seeded(2, 4, 6, 6, grad=True), seeded(8, 4, 3, 3, grad=True), seeded(8, grad=True)

    def net(library: Any, **impl: str) -> Any:
        return library.max_pool2d(library.relu(library.conv2d(x, w, b, padding=1, **impl)), 2)

    def gradients(y: Any) -> Any:
        return torch.autograd.grad(y.square().sum(), (x, w, b))

    wanted = net(F)
    with pytest.raises(OptionError, match="is a CUDA kernel"):
        net(ct, impl="implicit_gemm")
    with ck.emulate():
        y = net(ct, impl="implicit_gemm")
        found = gradients(y)
    for a, right in zip((y, *found), (wanted, *gradients(wanted)), strict=True):
        assert (a - right).norm() <= 1e-5 * right.norm()
