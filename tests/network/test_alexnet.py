"""The four AlexNets: facts of their sources, parity with PyTorch, the training step, the plan."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit import registry
from convkit.call import Call
from convkit.network import layers
from convkit.network.presets import PRESETS, PUBLISHED, diff, entries

#: Output maps of conv1, pool1, conv2, pool2, conv3, pool5, and parameters, as published.
FACTS = {
    "paper": ((96, 55), (96, 27), (256, 27), (256, 13), (384, 13), (256, 6), 60_965_224),
    "2012": ((96, 55), (96, 27), (256, 27), (256, 13), (384, 13), (256, 6), 60_965_224),
    "caffe": ((96, 55), (96, 27), (256, 27), (256, 13), (384, 13), (256, 6), 60_965_224),
    "owt": ((64, 55), (64, 27), (192, 27), (192, 13), (384, 13), (256, 6), 61_100_840),
}


def network(preset: str, **options) -> ck.AlexNet:
    return ck.AlexNet(preset=preset, **options)


def output(plan, layer: str) -> Call:
    return next(call for call in plan.forward if layer in call.layer.split("+"))


@pytest.mark.parametrize("preset", PUBLISHED)
def test_shapes_and_parameters_are_the_published_ones(preset):
    net = network(preset)
    plan = net.plan(1)
    *maps, parameters = FACTS[preset]
    for layer, (channels, extent) in zip(("conv1", "pool1", "conv2", "pool2", "conv3", "pool5"), maps):
        call = output(plan, layer)
        assert call.problem.shape(call.op.outputs[0]) == (1, channels, extent, extent), layer
    assert sum(w.size for w in net.params.values()) == parameters
    assert plan.logits.shape == (1, 1000)


def test_flops_per_image_of_the_227_pixel_network():
    plan = network("caffe").plan(1)
    published = {"conv1": 0.211, "conv2": 0.448, "conv3": 0.299, "conv4": 0.224, "conv5": 0.150}
    published |= {"fc6": 0.075, "fc7": 0.034, "fc8": 0.008}
    for layer, gflop in published.items():
        call = output(plan, layer)
        assert round(call.problem.flops(call.op.name) / 1e9, 3) == gflop, layer


def test_order_of_the_layers():
    order = {name: entries(p)["order"] for name, p in PRESETS.items()}
    assert order["2012"].startswith("conv1 norm1 pool1 relu1 conv2 relu2 norm2 cnorm2 pool2 conv3")
    assert order["paper"].startswith("conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3")
    assert order["caffe"] == order["paper"]
    assert "norm" not in order["owt"]
    assert order["owt"].endswith("pool5 flatten drop6 fc6 relu6 drop7 fc7 relu7 fc8")
    assert order["paper"].endswith("fc6 relu6 drop6 fc7 relu7 drop7 fc8")


def test_initialisation():
    sigmas = {
        "paper": {"conv1": 0.01, "conv3": 0.01, "fc6": 0.01, "fc8": 0.01},
        "2012": {"conv1": 0.01, "conv2": 0.01, "conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "fc6": 0.01},
        "caffe": {"conv1": 0.01, "conv5": 0.01, "fc6": 0.005, "fc7": 0.005, "fc8": 0.01},
    }
    biases = {"paper": 1.0, "2012": 1.0, "caffe": 0.1}
    for preset, expected in sigmas.items():
        net = network(preset)
        for layer, sigma in expected.items():
            assert net.params[f"{layer}.w"].std() == pytest.approx(sigma, rel=0.02), (preset, layer)
            assert abs(net.params[f"{layer}.w"].mean()) < 0.02 * sigma
        for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
            wanted = biases[preset] if layer in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
            assert np.all(net.params[f"{layer}.b"] == np.float32(wanted)), (preset, layer)
    bound = 1 / np.sqrt(9216)
    w = network("owt").params["fc6.w"]
    assert np.abs(w).max() <= bound and w.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)


def test_the_differ_prints_every_deviation_and_only_those():
    rows = {name: (a, b) for name, a, b in diff("paper", "2012")}
    assert {"order", "norm1.groups", "norm1.alpha", "conv3.weights", "cnorm2.size"} <= set(rows)
    assert rows["update.bias_lr_fixed"] == ("None", "0.02")
    assert "image_size" not in rows
    left, right = entries(PRESETS["paper"]), entries(PRESETS["2012"])
    for name in left.keys() & right.keys() - rows.keys():
        assert left[name] == right[name]
    assert diff("caffe", "caffe") == []
    assert {name: (a, b) for name, a, b in diff("paper", "caffe")}["norm1.k"] == ("2.0", "1.0")
    with pytest.raises(ck.OptionError, match="did you mean 'paper'"):
        diff("papr", "2012")


# ---------------------------------------------------------------------------------------------------
# PyTorch as an independent oracle. Its networks are written from the sources, not from convkit's presets.
# ---------------------------------------------------------------------------------------------------
def _torch_forward(torch, preset, p, x, masks):
    F = torch.nn.functional

    def conv(x, name, **kw):
        return F.conv2d(x, p[f"{name}.w"], p[f"{name}.b"], **kw)

    def lrn(x, alpha, k):  # torch divides alpha by the size
        return F.local_response_norm(x, 5, alpha=alpha, beta=0.75, k=k)

    def lrn_towers(x):
        half = x.shape[1] // 2
        return torch.cat([lrn(x[:, :half], 1e-4, 2.0), lrn(x[:, half:], 1e-4, 2.0)], 1)

    def cnorm(x):  # x * (1 + 0.001/25 * sum over 5 x 5)^-0.75
        return x * (1 + 0.001 * F.avg_pool2d(x * x, 5, 1, 2, count_include_pad=True)) ** -0.75

    def pool(x):
        return F.max_pool2d(x, 3, 2)

    def dense(x, name):
        return F.linear(x, p[f"{name}.w"], p[f"{name}.b"])

    relu = F.relu
    if preset == "2012":
        x = relu(pool(lrn_towers(conv(F.pad(x, (0, 3, 0, 3)), "conv1", stride=4))))
        x = pool(cnorm(lrn_towers(relu(conv(x, "conv2", padding=2, groups=2)))))
    elif preset == "owt":
        x = pool(relu(conv(x, "conv1", stride=4, padding=2)))
        x = pool(relu(conv(x, "conv2", padding=2)))
    else:
        alpha, k = (5e-4, 2.0) if preset == "paper" else (1e-4, 1.0)
        x = F.pad(x, (0, 3, 0, 3)) if preset == "paper" else x
        x = pool(lrn(relu(conv(x, "conv1", stride=4)), alpha, k))
        x = pool(lrn(relu(conv(x, "conv2", padding=2, groups=2)), alpha, k))
    groups = 1 if preset == "owt" else 2
    x = relu(conv(x, "conv3", padding=1))
    x = relu(conv(x, "conv4", padding=1, groups=groups))
    x = conv(x, "conv5", padding=1, groups=groups)
    x = relu(pool(x)) if preset == "2012" else pool(relu(x))
    x = x.flatten(1)
    if preset == "owt":
        x = relu(dense(x * masks[0], "fc6"))
        x = relu(dense(x * masks[1], "fc7"))
    else:
        x = relu(dense(x, "fc6")) * masks[0]
        x = relu(dense(x, "fc7")) * masks[1]
    return dense(x, "fc8")


def _dropout_masks(preset, seed, batch, training):
    """What the two dropouts multiply by: their masks frozen, in each preset's own convention."""
    inverted = preset in ("caffe", "owt")
    if not training:
        return [1.0, 1.0] if inverted else [0.5, 0.5]
    scale = 2.0 if inverted else 1.0
    sizes, offset, masks = ((9216, 4096) if preset == "owt" else (4096, 4096)), 0, []
    for size in sizes:
        ones = np.ones((batch, size))
        masks.append(ck.dropout_fprop(ones, p=0.5, seed=seed, offset=offset, scale=scale))
        offset += batch * size // 4
    return masks


#: What is slow: the quick tests see one preset in each mode.
LONG = {
    ("paper", True),
    ("caffe", False),
    *((preset, mode) for preset in ("2012", "owt") for mode in (True, False)),
}


@pytest.mark.parametrize(
    "preset, training",
    [
        pytest.param(
            *(preset, training),
            id=f"{preset}-{'training' if training else 'test'}",
            marks=pytest.mark.slow if (preset, training) in LONG else (),
        )
        for preset in PUBLISHED
        for training in (True, False)
    ],
)
def test_logits_and_every_gradient_equal_pytorch(preset, training):
    torch = need("torch")
    torch.set_num_threads(1)
    batch, seed = (2, 5) if training else (1, 6)
    net = network(preset, seed=seed, dtype="float64")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, *net.input_shape)) * (1 if preset == "owt" else 60)
    dlogits = rng.standard_normal((batch, 1000))

    p = {name: torch.tensor(w, requires_grad=True) for name, w in net.params.items()}
    images = torch.tensor(x, requires_grad=True)
    masks = [torch.as_tensor(m) for m in _dropout_masks(preset, seed, batch, training)]
    expected = _torch_forward(torch, preset, p, images, masks)
    expected.backward(torch.from_numpy(dlogits))

    logits = net.forward(x, training=training)
    dx = net.backward(dlogits)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-9, atol=1e-9 * np.abs(logits).max())
    for name, gradient in {**net.grads, "x": dx}.items():
        wanted = (images if name == "x" else p[name]).grad.numpy()
        np.testing.assert_allclose(
            gradient, wanted, rtol=1e-8, atol=1e-9 * np.abs(wanted).max(), err_msg=f"{preset} {name}"
        )
        assert np.abs(wanted).max() > 0, f"{preset} {name}: a gradient of zeros would prove nothing"


@pytest.mark.parametrize("preset", PUBLISHED)
def test_float32_logits_equal_pytorch(preset):
    torch = need("torch")
    net = network(preset, seed=3)
    x = np.random.default_rng(2).standard_normal((2, *net.input_shape)).astype(np.float32) * 40
    p = {name: torch.from_numpy(w) for name, w in net.params.items()}
    expected = _torch_forward(
        torch, preset, p, torch.from_numpy(x), _dropout_masks(preset, 3, 2, False)
    ).numpy()
    difference = net.forward(x) - expected
    assert np.sqrt(np.mean(difference**2)) < 1e-5 * np.sqrt(np.mean(expected**2))


# ---------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def batch2():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 3, 224, 224)).astype(np.float32) * 50, np.array([3, 4])


def test_step_is_reproducible_and_learns(batch2):
    runs = []
    for seed in (7, 7, 8):
        net = network("paper", seed=seed)
        runs.append([net.step(*batch2, lr=0.001) for _ in range(3)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0][-1] < runs[0][0]


@pytest.mark.parametrize("preset", ["2012", "owt"])
def test_update_follows_the_preset(preset, batch2):
    net = network(preset, seed=1)
    names = ("conv1.w", "conv1.b", "conv2.b", "fc8.w", "fc8.b")
    for _ in range(2):
        before = {n: (net.params[n].astype(np.float64), net.velocities[n].astype(np.float64)) for n in names}
        with ck.use(linear_wgrad="gemm"):  # a gradient that is asked for is kept
            net.step(*batch2, lr=0.004)
        for n in names:
            w, v = before[n]
            g = net.grads[n].astype(np.float64)
            if preset == "2012":  # v = .9 v - wc*eps*w - eps*g; w += v; biases of all but conv1 at .02
                rate = {"conv1.b": 0.008}.get(n, 0.02 if n.endswith("b") else 0.004)
                v = 0.9 * v - rate * (g + (5e-4 * w if n.endswith("w") else 0))
                w = w + v
            else:  # lr outside the velocity, decay on everything
                v = 0.9 * v + g + 1e-4 * w
                w = w - 0.004 * v
            # Relative to the larger of what is added: two roundings of a float32, and one of the rate.
            for got, want in ((net.params[n], w), (net.velocities[n], v)):
                np.testing.assert_allclose(got, want, rtol=4e-7, atol=4e-7 * np.abs(want).max(), err_msg=n)


@pytest.mark.parametrize("preset", [pytest.param("2012", marks=pytest.mark.slow), "owt"])
def test_updates_fused_with_their_gradients_are_the_same_updates(preset, batch2):
    fused, single = network(preset, seed=1), network(preset, seed=1)
    need_native()
    assert any(c.op.name == "linear_dgrad_wgrad_sgd" for c in fused.plan(2).phases()["backward"])
    for _ in range(2):
        loss = fused.step(*batch2, lr=0.004)
        with ck.use(linear_wgrad="panels"):
            assert single.step(*batch2, lr=0.004) == pytest.approx(loss, rel=1e-5)
    for name in fused.params:
        for got, want in ((fused.params, single.params), (fused.velocities, single.velocities)):
            scale = np.abs(want[name]).max()
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-4 * scale, err_msg=name)
    assert not fused.grads["fc6.w"].any()  # never made


def test_a_plan_is_blocked_from_end_to_end():
    need_native()
    for preset in PRESETS:
        plan = network(preset).plan(1)
        by_layer = {c.layer: c for c in plan.forward}
        assert by_layer["conv4+relu4"].implementation.layout == "nChw16c", preset
        reorders = [c.layer for c in plan.forward if c.op.name == "reorder"]
        assert reorders == ["flatten"], preset
        relus = {c.layer for c in plan.phases()["backward"] if c.op.name == "relu_dgrad"}
        assert relus == ({"conv2+relu2"} if preset == "2012" else set()), preset  # before its second LRN


def need_native() -> None:
    from convkit.cpu import extension

    if (missing := extension.kernels_missing()) is not None:
        assert not os.environ.get("CI"), missing
        pytest.skip(missing)


def test_step_allocates_next_to_nothing(batch2):
    net = network("paper")
    for _ in range(2):
        net.step(*batch2)
    tracemalloc.start()
    net.step(*batch2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000, f"{peak} bytes in a planned step"


def test_plans_follow_batch_and_choice(batch2):
    x, _ = batch2
    net = network("owt")
    one = net.forward(x[:1])
    both = net.forward(x)
    np.testing.assert_allclose(one[0], both[0], rtol=1e-4, atol=1e-5)
    with ck.use(linear_fprop="reference"):
        plan = net.plan(1)
        assert {c.implementation.name for c in plan.forward if c.op.name == "linear_fprop"} == {"reference"}
        np.testing.assert_allclose(net.forward(x[:1]), one, rtol=1e-4, atol=1e-5)
    assert net.forward(x[:0]).shape == (0, 1000)
    text = str(net.plan(2))
    assert "conv1+relu1" in text and "MiB besides the parameters" in text


def test_torch_tensors_in_and_out(batch2):
    torch = need("torch")
    x, labels = batch2
    net = network("owt")
    logits = net.forward(torch.from_numpy(x))
    assert isinstance(logits, torch.Tensor)
    dx = net.backward(torch.ones_like(logits))
    assert isinstance(dx, torch.Tensor) and dx.shape == x.shape
    assert np.isfinite(net.step(torch.from_numpy(x), torch.from_numpy(labels)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_storage_stays_close(dtype, batch2):
    x, _ = batch2
    single = network("owt", seed=2).forward(x[:1] / 50)
    net = network("owt", seed=2, dtype=dtype)
    half = net.forward((x[:1] / 50).astype(net.params["fc8.w"].dtype)).astype(np.float32)
    unit = 2**-11 if dtype == "float16" else 2**-8
    assert np.abs(half - single).max() < 8 * unit * np.abs(single).max()


# ---------------------------------------------------------------------------------------------------
# The network as an object: swaps, copies, threads, order of calls
# ---------------------------------------------------------------------------------------------------
def small(**options):
    init = layers.Normal(0.1)
    stack = (
        layers.Conv("conv1", 8, 3, init, init, padding=1),
        layers.Relu("relu1"),
        layers.MaxPool("pool1"),
        layers.Flatten("flatten"),
        layers.Linear("fc", None, init, init),
    )
    return ck.Network(stack, (3, 12, 12), 10, **options)


SMALL_X = np.random.default_rng(5).standard_normal((4, 3, 12, 12)).astype(np.float32)
SMALL_Y = np.arange(4)


def test_a_swapped_relu_is_not_fused_away(monkeypatch):
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    calls = []

    @ck.implements("relu_fprop", name="counted", rank=-1)
    def relu(problem, x, y):
        calls.append(problem)
        np.maximum(x, 0, out=y)

    net, plain = small(seed=1), small(seed=1)
    with ck.use(relu_fprop="counted"):
        loss = net.step(SMALL_X, SMALL_Y)
    assert len(calls) == 1
    assert loss == plain.step(SMALL_X, SMALL_Y)


def test_copies_learn_on_their_own():
    net = small(seed=1)
    net.step(SMALL_X, SMALL_Y)
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    losses = [[n.step(SMALL_X, SMALL_Y) for _ in range(3)] for n in (net, *twins)]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0][2] < losses[0][0]
    before = net.params["fc.w"].copy()
    twins[0].step(SMALL_X, SMALL_Y)
    assert np.array_equal(net.params["fc.w"], before)


def test_threads_take_turns_and_give_the_same_bits():
    net = small(seed=1)
    images = [SMALL_X * (i + 1) for i in range(4)]
    expected = [net.forward(x) for x in images]
    wrong = []

    def work(i):
        results = [net.forward(images[i]) for _ in range(30)]
        wrong.extend(i for result in results if not np.array_equal(result, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_backward_belongs_to_the_forward_before_it():
    net = small()
    dlogits = np.ones((4, 10), np.float32)
    net.forward(SMALL_X)
    net.backward(dlogits)
    net.step(SMALL_X, SMALL_Y)
    with pytest.raises(ck.OptionError, match="forward comes first"):
        net.backward(dlogits)
    net.forward(SMALL_X)
    with ck.use(conv2d_dgrad="reference"), pytest.raises(ck.OptionError, match="another `use`"):
        net.backward(dlogits)


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ([], "the last layer must make"),
        ([layers.Conv("c", 4, 3, layers.Constant(0), layers.Constant(0))], "the last layer must make"),
        (
            [layers.Flatten("f"), layers.Linear("l", 7, layers.Constant(0), layers.Constant(0))],
            r"not \('N', 7\)",
        ),
        ([layers.Relu("r"), layers.Relu("r")], "a name of its own; more than once: r"),
    ],
)
def test_a_network_that_cannot_be(stack, message):
    with pytest.raises(ck.ConvkitError, match=message):
        ck.Network(stack, (3, 12, 12), 10)


# ---------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda n, x, y: n.forward(x[:, :2]), r"forward: x must have shape \(N, 3, 224, 224\)"),
        (lambda n, x, y: n.forward(x[0]), r"x must have shape"),
        (lambda n, x, y: n.forward(x.astype(np.float64)), "x has dtype float64, but the network is float32"),
        (lambda n, x, y: n.step(x, y + 1000), "labels must each be a class, 0 <= value < 1000"),
        (lambda n, x, y: n.step(x, y[:1]), r"labels must have shape \(2,\)"),
        (lambda n, x, y: n.step(x, y.astype(float)), "labels must be of an integer dtype"),
        (lambda n, x, y: n.step(x, y, lr=float("nan")), "lr must be a finite number"),
        (lambda n, x, y: n.step(x[:0], y[:0]), "at least one image"),
        (lambda n, x, y: n.plan(-1), "batch must be at least 0"),
        (lambda n, x, y: ck.AlexNet("papre"), "did you mean 'paper'"),
        (lambda n, x, y: ck.AlexNet(dtype="int8"), "unknown dtype"),
        (lambda n, x, y: ck.AlexNet(math="fp8"), "unknown math"),
        (lambda n, x, y: ck.AlexNet(seed=2**64), "seed must be below"),
        (lambda n, x, y: ck.AlexNet(num_classes=0), "num_classes must be at least 1"),
        (lambda n, x, y: ck.AlexNet().backward(np.zeros((1, 1000), "f")), "forward comes first"),
    ],
)
def test_bad_input_changes_nothing(act, message, batch2, shared_net):
    x, labels = batch2
    before = {name: w.copy() for name, w in shared_net.params.items() if name.endswith("b")}
    with pytest.raises(ck.ConvkitError, match=message):
        act(shared_net, x, labels)
    for name, w in before.items():
        assert np.array_equal(w, shared_net.params[name])


@pytest.fixture(scope="module")
def shared_net():
    return network("paper")
