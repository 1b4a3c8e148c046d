"""`convkit.torch.swap` and `compare`: which layers, how, and back; what a network computes meanwhile."""

from __future__ import annotations

import copy
import io
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import need

torch = need("torch")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402
from torch_networks import SMALL, alexnet, resnet18, small, vgg11  # noqa: E402

import convkit as ck  # noqa: E402
import convkit.torch as ct  # noqa: E402
from convkit import registry  # noqa: E402
from convkit.errors import OptionError  # noqa: E402
from convkit.torch import modules  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    """The tests run side by side: PyTorch's threads, which spin while they wait, would stand in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model() -> nn.Sequential:
    """A layer of each kind."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.LocalResponseNorm(5), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect", bias=False), nn.ReLU(), nn.AvgPool2d(2),
    )  # fmt: skip
    return nn.Sequential(features, nn.Flatten(), nn.Linear(32, 5))


def images(seed: int = 0) -> Any:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def results(net: nn.Module, x: Any) -> list[Any]:
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in net.parameters())]


def close(found: list[Any], wanted: list[Any], bound: float = 1e-4) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.stride()) == (b.shape, b.stride())
        assert (a - b).norm() <= bound * b.norm()


@pytest.fixture
def mine():
    """A convolution, and a wrong one; the registry is put back."""
    before = dict(registry._IMPLEMENTATIONS)
    seen: list[Any] = []

    @ck.implements("conv2d_fprop", name="mine", rank=-50)
    def right(problem, x, w, b, y, relu=False):
        seen.append(problem)
        ck.conv2d_fprop(x, w, b, padding=1, impl="direct", out=y)

    @ck.implements("conv2d_wgrad", name="wrong", rank=-50)
    def wrong(problem, x, dy, dw):
        ck.conv2d_wgrad(x, dy, dw.shape, padding=1, impl="direct", out=dw)
        dw[0, 0, 0, 0] = 0

    yield seen
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)
    registry.changed()


# ---------------------------------------------------------------------------------------------------
# Which layers, and back
# ---------------------------------------------------------------------------------------------------
def test_every_kind_is_swapped_and_put_back():
    net, x = model(), images()
    wanted, kinds, keys = results(net, x), [type(m) for m in net.modules()], list(net.state_dict())
    parameters = list(net.parameters())
    handle = ct.swap(net)
    assert list(handle.replaced) == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "2"]
    assert {type(m) for m in net.modules()} >= {ours for _, ours in modules.KINDS.values()}
    assert all(isinstance(m, plain) for plain, _ in modules.KINDS.values() for m in net[0] if m is plain)
    close(results(net, x), wanted)
    assert list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert "8 layers swapped, 0 left as they are" in str(handle)
    handle.undo()
    handle.undo()
    assert [type(m) for m in net.modules()] == kinds
    assert not any("convkit_impl" in vars(m) for m in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(results(net, x), wanted, strict=True))


def test_one_layer_runs_one_implementation_in_a_block(mine):
    net, x = model(), images()
    with ct.swap(net, conv2d="mine", only="0.0") as handle:
        net(x)
        assert [p.K for p in mine] == [8]
        assert handle.replaced == {"0.0": "fprop: mine, dgrad: picked, wgrad: picked, bgrad: picked"}
        assert "convkit='mine'" in repr(net[0][0])
    net(x)
    assert len(mine) == 1


@pytest.mark.parametrize(
    ("only", "found"),
    [
        ("0", ["0.0", "0.4"]),
        ("*.4", ["0.4"]),
        (["0.0", "0.4"], ["0.0", "0.4"]),
        (["2"], []),
    ],
)
def test_only(only, found):
    assert list(ct.swap(model(), conv2d=True, only=only).replaced) == found


def test_names_that_are_not_known():
    net = nn.Sequential(model())
    with pytest.raises(OptionError, match="unknown implementation of conv2d 'winogard'; did you mean 'winog"):
        ct.swap(net, conv2d="winogard")
    with pytest.raises(OptionError, match="unknown kind of layer 'conv'; did you mean 'conv2d'"):
        ct.swap(net, conv="winograd")
    with pytest.raises(OptionError, match=r"unknown layer '0.0.9'; did you mean '0.0"):
        ct.swap(net, only="0.0.9")
    with pytest.raises(OptionError, match="unknown op of conv2d 'fprod'; did you mean 'fprop'"):
        ct.swap(net, conv2d={"fprod": "winograd"})
    assert not any(isinstance(m, modules.OnConvkit) for m in net.modules())


class Mine(nn.ReLU):
    """A layer of a user's own, which computes something else."""

    def forward(self, input: Any) -> Any:
        return super().forward(input) + 1


def test_what_is_left_alone_is_said():
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    replaced = nn.ReLU()
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    net = nn.Sequential(
        Mine(), parametrized, replaced, nn.AvgPool2d(2, divisor_override=3), nn.LocalResponseNorm(3, k=0),
        nn.LazyConv2d(4, 3), nn.Linear(2, 2, dtype=torch.complex64), nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip
    handle = ct.swap(net)
    assert not handle.replaced
    assert handle.kept == {
        "0": "of the class Mine, which may compute something else",
        "1": "parametrized: swap it before it is parametrized",
        "2": "its forward has been replaced",
        "3": "divisor_override is not covered",
        "4": "k = 0 is not positive",
        "5": "of the class LazyConv2d, which may compute something else",
        "6": "weight is of torch.complex64",
    }
    assert "left as it is: divisor_override is not covered" in str(handle)


def test_hooks_and_parametrizations_go_on():
    net, x, seen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images(), []
    net[0].register_forward_hook(lambda *_: seen.append("hook"))
    wanted = net(x)
    ct.swap(net)
    nn.utils.parametrizations.weight_norm(net[0])
    torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-5)
    assert seen == ["hook", "hook"]


def test_a_layer_in_two_places_is_swapped_once():
    relu = nn.ReLU()
    net = nn.Sequential(relu, nn.Sequential(relu))
    assert list(ct.swap(net, only="1").replaced) == ["1.0"]
    assert type(net[0]) is modules.ReLU


def test_swaps_are_undone_in_turn(mine):
    net = model()
    first = ct.swap(net, conv2d=True)
    second = ct.swap(net, conv2d="mine", only="0.0")
    with pytest.raises(OptionError, match="swapped again since"):
        first.undo()
    second.undo()
    assert net[0][0].convkit_impl == ""
    first.undo()
    assert type(net[0][0]) is nn.Conv2d


def test_copies(mine):
    """Copied, pickled, compiled by nobody: a swapped model stays swapped, and can be put back."""
    net, x = model(), images()
    ct.swap(net, conv2d="mine", only="0.0")
    wanted = net(x)
    memory = io.BytesIO()
    torch.save(net, memory)
    memory.seek(0)
    for other in (
        copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(memory, weights_only=False)
    ):  # fmt: skip
        mine.clear()
        assert torch.equal(other(x), wanted)
        assert len(mine) == 1
        assert ct.unswap(other) == 1
        assert type(other[0][0]) is nn.Conv2d
    assert type(net[0][0]) is modules.Conv2d


def test_training_goes_on():
    """An optimizer that was made before, its state, evaluation and training mode."""
    plain, swapped, x = model(), model(), images()
    losses = []
    for net in (plain, swapped):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for step in range(4):
            if step == 2 and net is swapped:
                ct.swap(net)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net.train()(x), torch.tensor([1, 3]))
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert not net.eval().training
    np.testing.assert_allclose(losses[:4], losses[4:], rtol=1e-4)
    assert losses[3] < losses[0]


# ---------------------------------------------------------------------------------------------------
# Whole networks
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_right_on_convkit(name):
    """Each layer's output and gradients, the logits, and every parameter's gradient."""
    net, x = small(name)
    found = ct.compare(net, x)
    assert found.ok, str(found)
    assert not found.handle.kept
    assert {row.layer for row in found.rows} == {*found.handle.replaced, "(model)"}
    assert not any(isinstance(m, modules.OnConvkit) for m in net.modules())


def test_compare_finds_what_is_wrong(mine):
    found = ct.compare(model(), images(), conv2d="wrong", only="0.0")
    assert not found.ok
    wrong = [(row.layer, row.tensor) for row in found.rows if row.verdict == "DIFFERS"]
    assert wrong == [("0.0", "grad weight"), ("(model)", "grad 0.0.weight")]
    assert str(found).endswith("NOT OK")
    right = ct.compare(model(), images(), conv2d="mine", only="0.0")
    assert right.ok
    assert str(right).endswith("\nok")


def test_compare_takes_a_loss_a_swapped_model_and_other_dtypes():
    net = model()
    assert ct.compare(net, {"input": images()}, loss=lambda y: y.square().sum()).ok
    ct.swap(net, conv2d="im2col_gemm")
    found = ct.compare(net, images())
    assert found.ok
    assert list(found.handle.replaced) == ["0.0", "0.4"]
    assert str(found.handle).count("fprop: im2col_gemm, dgrad: im2col_gemm") == 2
    assert ct.compare(model().double(), images().double()).ok
    net = nn.Sequential(*(m for m in model()[0] if not isinstance(m, nn.LocalResponseNorm)))
    assert ct.compare(net.bfloat16(), images().bfloat16()).ok  # PyTorch has no LRN in it on a CPU
    empty = ct.compare(nn.Sequential(nn.Flatten()), images())
    assert not empty.ok
    assert "no layer was swapped and called" in str(empty)


class Uncalled(nn.Module):
    """A layer that it calls by keyword, and one that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.used(input=x)


def test_a_layer_that_is_not_called_is_not_judged():
    found = ct.compare(Uncalled(), torch.ones(2, 4))
    assert found.ok
    assert found.uncalled == ("idle",)
    assert "not called, so not judged: idle" in str(found)
    assert not ct.compare(Uncalled(), torch.ones(2, 4), only="idle").ok


def test_the_python_of_the_page_runs(capsys):
    page = Path(ck.__file__).parents[1] / "docs/torch.md"
    (block,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    exec(compile(block, str(page), "exec"), {})
    assert "1 layer swapped, 0 left as they are" in capsys.readouterr().out


def compiled_step(net: nn.Module, x: Any, backend: str) -> None:
    """One training step, compiled and not: the same loss and the same parameters."""
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    plain, labels = copy.deepcopy(net), torch.arange(len(x)) % 5
    ct.swap(net)
    torch._dynamo.reset()
    losses = []
    for one in (plain, torch.compile(net, backend=backend, fullgraph=True)):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        loss = nn.functional.cross_entropy(one(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-2 * b.grad.norm() + 1e-7


def test_a_compiled_model_follows_a_swap(mine):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    compiled, x = torch.compile(net, backend="aot_eager"), images()
    wanted = compiled(x)
    with ct.swap(net, conv2d="mine"):
        torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-5)
        assert len(mine) == 1
    assert torch.equal(compiled(x), wanted)
    assert len(mine) == 1


def test_a_compiled_step():
    compiled_step(model(), images(), "aot_eager")


@pytest.mark.slow  # a compiler for C++ makes each fused loop
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "aot_eager") for name in SMALL]
    + [pytest.param(n, "inductor", marks=[pytest.mark.thorough] if k else []) for k, n in enumerate(SMALL)],
)
def test_a_compiled_step_of_a_network(name, backend, compiler):
    compiled_step(*small(name), backend)


@pytest.mark.slow  # the networks of the papers, on one image each
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("make", "extent"), [(alexnet, 224), (vgg11, 224), (resnet18, 224)], ids=["alexnet", "vgg11", "resnet18"]
)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_a_network_of_full_size(make, extent, last):
    torch.manual_seed(0)
    net, x = make(), torch.randn(2, 3, extent, extent)
    net.eval()(x)
    if last:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    found = ct.compare(net, x)
    assert found.ok, str(found)
