"""convkit.onnx against ONNX's own test cases, its AlexNet, and models that must be refused.

The cases come with the onnx package. One that uses only covered operators either passes at its own
tolerances or stands in `EXCLUDED`, and is then refused in the words given there.
"""

from __future__ import annotations

import glob
import importlib
import itertools
import os
import pkgutil
import re
import subprocess
import sys
import unittest
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import need

onnx = need("onnx")

import onnx.backend.test.case.node as node_cases  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.backend.test.loader import load_model_tests  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx.reference.op_run import OpRun  # noqa: E402

import convkit as ck  # noqa: E402
import convkit.onnx as backend  # noqa: E402
from convkit.arrays import DTYPES  # noqa: E402
from convkit.onnx.messages import type_of  # noqa: E402

ROOT = Path(ck.__file__).parents[1]
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

#: Cases that use covered operators in a way that is not covered, with the words in which they are refused.
EXCLUDED = {
    **dict.fromkeys(
        [
            *("test_Conv3d", "test_Conv3d_dilated", "test_Conv3d_dilated_strided", "test_Conv3d_groups"),
            *("test_Conv3d_no_bias", "test_Conv3d_stride", "test_Conv3d_stride_padding"),
            *("test_MaxPool3d", "test_MaxPool3d_stride", "test_MaxPool3d_stride_padding"),
            *(
                "test_maxpool_3d_default",
                "test_maxpool_3d_dilations",
                "test_maxpool_3d_dilations_use_ref_impl",
            ),
            "test_maxpool_3d_dilations_use_ref_impl_large",
        ],
        "only inputs of 3 or 4 dimensions are covered, not of 5",
    ),
    **dict.fromkeys(
        ["test_matmul_1d_1d", "test_matmul_1d_3d", "test_matmul_3d", "test_matmul_4d", "test_matmul_4d_1d"]
        + ["test_matmul_bcast"],
        "only inputs of 2 dimensions are covered",
    ),
    **dict.fromkeys(
        ["test_training_dropout", "test_training_dropout_mask"]
        + ["test_training_dropout_default", "test_training_dropout_default_mask"],
        "random, and ONNX does not say by which generator",
    ),
    "test_identity_opt": "only tensors are covered",
    "test_identity_sequence": "only tensors are covered",
}
#: Cases that ran when this was written, with onnx 1.17 (the oldest admitted) and 1.23 alike.
AT_LEAST = 186


# ---------------------------------------------------------------------------------------------------
# ONNX's cases
# ---------------------------------------------------------------------------------------------------
def covered(model):
    """Whether the model has nodes, each of a covered operator."""
    keys = {(node.domain or "ai.onnx", node.op_type) for node in model.graph.node}
    return bool(keys) and keys <= set(backend.OPERATORS)


def node_modules():
    """Modules of ONNX's node cases that are named after a covered operator: to import all takes 10 s."""
    operators = [name.lower() for _, name in backend.OPERATORS]
    for module in pkgutil.iter_modules(node_cases.__path__, f"{node_cases.__name__}."):
        stem = module.name.rpartition(".")[2].replace("_", "")
        if any(name.startswith(stem) for name in operators):
            yield module.name


def stored(folder, stem):
    count = len(glob.glob(os.path.join(folder, f"{stem}_*.pb")))
    return [
        numpy_helper.to_array(onnx.load_tensor(os.path.join(folder, f"{stem}_{i}.pb"))) for i in range(count)
    ]


def collect():
    """The covered cases by name: (model, data sets, rtol, atol)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in node_modules():
            importlib.import_module(module)
    found = {
        c.name: (c.model, c.data_sets, c.rtol, c.atol) for c in node_cases._NodeTestCases if covered(c.model)
    }
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        for case in load_model_tests(kind=kind):
            model = onnx.load(os.path.join(case.model_dir, "model.onnx"))
            if covered(model):
                folders = sorted(glob.glob(os.path.join(case.model_dir, "test_data_set_*")))
                data_sets = [(stored(folder, "input"), stored(folder, "output")) for folder in folders]
                found[case.name] = (model, data_sets, case.rtol, case.atol)
    return found


CASES = collect()
EXCLUDED |= dict.fromkeys(
    [name for name in CASES if name.startswith(("test_AvgPool3d", "test_averagepool_3d"))],
    "only inputs of 3 or 4 dimensions are covered, not of 5",
)
RUN = sorted(set(CASES) - set(EXCLUDED))


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def check_case(model, data_sets, rtol, atol):
    assert data_sets
    bound = backend.load(model)
    for inputs, expected in data_sets:
        results = bound.run([array(value) for value in inputs])
        assert len(results) == len(expected) == len(bound.outputs)
        for result, value in zip(results, map(array, expected)):
            assert (result.dtype, result.shape) == (value.dtype, value.shape)
            np.testing.assert_allclose(result, value, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", RUN)
def test_case(name):
    check_case(*CASES[name])


@pytest.mark.parametrize("name", sorted(EXCLUDED))
def test_an_excluded_case_is_refused_clearly(name):
    if name not in CASES:
        pytest.skip("this version of onnx does not have the case")
    model, data_sets, _, _ = CASES[name]
    with pytest.raises(ck.ConvkitError, match=re.escape(EXCLUDED[name])):
        backend.load(model).run([v if isinstance(v, list) else array(v) for v in data_sets[0][0]])


def test_no_case_got_lost():
    assert len(RUN) >= AT_LEAST
    used = {(n.domain or "ai.onnx", n.op_type) for name in RUN for n in CASES[name][0].graph.node}
    assert used == set(backend.OPERATORS), "an operator without a case"


@pytest.mark.slow
def test_every_other_covered_node_case():
    """What `node_modules` leaves out in order to be quick."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = list(node_cases.collect_testcases(None))
    assert len(cases) > 1000
    for case in cases:
        if case.name not in CASES and covered(case.model):
            check_case(case.model, case.data_sets, case.rtol, case.atol)


@pytest.mark.slow
def test_onnx_runs_its_suite_on_the_backend():
    from onnx.backend.test import BackendTest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite = BackendTest(backend.Backend, __name__)
        for name in RUN:
            suite.include(f"^{name}_cpu$")
        result = unittest.TestResult()
        for case in suite.test_cases.values():
            unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert not result.failures and not result.errors
    ran = result.testsRun - len(result.skipped)
    assert ran >= AT_LEAST


# ---------------------------------------------------------------------------------------------------
# AlexNet
# ---------------------------------------------------------------------------------------------------
class LRN(OpRun):
    """ONNX's definition. The package's own evaluator goes over images where it should go over channels."""

    op_domain = ""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):
        squares = np.zeros(x.shape)
        for c in range(x.shape[1]):
            first, last = c - (size - 1) // 2, c + -(-(size - 1) // 2)
            squares[:, c] = (x[:, max(0, first) : last + 1].astype(np.float64) ** 2).sum(axis=1)
        return ((x / (bias + alpha / size * squares) ** beta).astype(x.dtype),)


def without_constant_weights(path):
    """The model with its constant weights as inputs, and the logits as a second output."""
    model = onnx.load(path)
    graph = model.graph
    shapes = {t.name: tuple(numpy_helper.to_array(t).tolist()) for t in graph.initializer}
    fills = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    weights = {node.output[0]: shapes[node.input[0]] for node in fills}
    dropped = {node.input[0] for node in fills}
    for node in fills:
        graph.node.remove(node)
    for field in (graph.initializer, graph.input):
        for entry in [entry for entry in field if entry.name in dropped]:
            field.remove(entry)
    graph.input.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in weights.items())
    logits = next(node.input[0] for node in graph.node if node.op_type == "Softmax")
    graph.output.append(helper.make_tensor_value_info(logits, TensorProto.FLOAT, (1, 1000)))
    return model, weights


@pytest.mark.parametrize("name", ["bvlc_alexnet", pytest.param("zfnet512", marks=pytest.mark.slow)])
def test_networks_with_lrn_agree_with_the_reference_evaluator(name):
    """Seeded weights keep activations near 70, as of raw pixels, so that LRN makes a difference."""
    model, shapes = without_constant_weights(LIGHT / f"light_{name}.onnx")
    bound = backend.load(model)
    rng = np.random.default_rng(2012)
    feeds = {bound.inputs[0]: 70 * rng.standard_normal((1, 3, 224, 224), np.float32)}
    last = max(n for n in shapes if len(shapes[n]) == 2 and shapes[n][0] == 1000)
    for weight, shape in shapes.items():
        gain = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        feeds[weight] = rng.standard_normal(shape, np.float32) * np.float32(
            gain / 40 if weight == last else gain
        )
    assert set(feeds) == set(bound.inputs)
    results = bound.run(feeds)
    expected = ReferenceEvaluator(model, new_ops=[LRN]).run(None, feeds)
    for result, value in zip(results, expected):
        assert (result.dtype, result.shape) == (value.dtype, value.shape) == (np.float32, (1, 1000))
        assert np.abs(result - value).max() <= 1e-5 * np.abs(value).max()
    assert results[1].std() > 0.3, "the weights make all logits alike, so that they compare nothing"
    naive = ReferenceEvaluator(model, new_ops=[type("LRN", (LRN,), {"_run": lambda self, x, **_: (x,)})])
    assert np.abs(naive.run(None, feeds)[1] - expected[1]).max() > 0.1, "LRN makes no difference here"


def test_alexnet_as_shipped():
    """Constant weights: all classes alike, so this proves shapes, and that loading needs no preparation."""
    model = backend.load(LIGHT / "light_bvlc_alexnet.onnx")
    assert (model.inputs, model.outputs) == (["data_0"], ["prob_1"])
    (probs,) = model.run([np.full((1, 3, 224, 224), 0.5, np.float32)])
    np.testing.assert_allclose(probs, np.full((1, 1000), 1e-3, np.float32), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------
# What ONNX's cases leave out
# ---------------------------------------------------------------------------------------------------
def one_node(op_type, inputs, outputs=1, opset=21, domain="", **attributes):
    """A model of one node; `inputs` are example arrays."""
    names = [f"x{i}" for i in range(len(inputs))]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, names, made, name="the_node", domain=domain, **attributes)
    infos = [helper.make_tensor_value_info(n, type_of(n, x.dtype), x.shape) for n, x in zip(names, inputs)]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["any"]) for n in made]
    graph = helper.make_graph([node], "one", infos, results)
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def same_padding(size, span, stride, auto_pad):
    """ONNX's words: ceil(size / stride) windows, the odd pixel of padding on the named side."""
    total = max(0, (-(-size // stride) - 1) * stride + span - size)
    return (total // 2, total - total // 2) if auto_pad == "SAME_UPPER" else (total - total // 2, total // 2)


def test_conv_of_one_column_with_strides_that_differ():
    x = np.arange(1, 8, dtype=np.float32).reshape(1, 1, 7, 1)
    (y,) = run_node("Conv", [x, np.ones((1, 1, 1, 1), np.float32)], strides=[1, 2])
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("spatial", [(11,), (7, 12)])
def test_auto_pad_of_conv(auto_pad, spatial):
    n = len(spatial)
    for window, stride, dilation in itertools.product((1, 2, 3, 4), (1, 2, 3, 5), (1, 2)):
        x, w, b = normal(2, 4, *spatial), normal(6, 2, *(window,) * n, seed=1), normal(6, seed=2)
        options = {"strides": [stride] * n, "dilations": [dilation] * n, "group": 2, "auto_pad": auto_pad}
        (y,) = backend.load(one_node("Conv", [x, w, b], **options)).run([x, w, b])
        if auto_pad != "VALID":
            span = (window - 1) * dilation + 1
            assert y.shape[2:] == tuple(-(-size // stride) for size in spatial)
            x = np.pad(x, [(0, 0), (0, 0), *(same_padding(size, span, stride, auto_pad) for size in spatial)])
        x, w = (a[:, :, None] if n == 1 else a for a in (x, w))
        pairs = {
            name: (1, value) if n == 1 else value
            for name, value in (("stride", stride), ("dilation", dilation))
        }
        expected = ck.conv2d_fprop(x, w, b, groups=2, **pairs)
        np.testing.assert_allclose(y, expected[:, :, 0] if n == 1 else expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_auto_pad_of_max_pool(auto_pad, ceil_mode):
    """By ONNX's formulas the size is the same in both modes."""
    for size, window, stride in itertools.product((4, 5, 6, 9), (1, 2, 3, 4), (1, 2, 3, 5)):
        x = padded = normal(1, 2, size)
        count = -(-(size - window + 1) // stride)
        if auto_pad != "VALID":
            count = -(-size // stride)
            pads = same_padding(size, window, stride, auto_pad)
            padded = np.pad(x, ((0, 0), (0, 0), pads), constant_values=-np.inf)
        expected = np.stack([padded[..., i * stride :][..., :window].max(-1) for i in range(count)], -1)
        options = {
            "kernel_shape": [window],
            "strides": [stride],
            "ceil_mode": ceil_mode,
            "auto_pad": auto_pad,
        }
        (y,) = backend.load(one_node("MaxPool", [x], **options)).run([x])
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("storage_order", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [2, 0, 1, 1]},
        {"kernel_shape": [2, 3], "strides": [2, 1], "dilations": [2, 3], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [1, 2], "auto_pad": "SAME_UPPER"},
    ],
    ids=lambda options: "-".join(options),
)
def test_indices_of_max_pool(storage_order, options):
    x = normal(2, 3, 8, 11)
    model = one_node("MaxPool", [x], outputs=2, storage_order=storage_order, **options)
    y, indices = backend.load(model).run([x])
    expected = ReferenceEvaluator(model).run(None, {"x0": x})
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(indices, expected[1])
    flat = x.transpose(0, 1, 3, 2).reshape(-1) if storage_order else x.reshape(-1)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(flat[indices], y)


def test_indices_of_a_1d_max_pool():
    x = normal(2, 3, 10)
    y, indices = backend.load(one_node("MaxPool", [x], outputs=2, kernel_shape=[3], strides=[2])).run([x])
    np.testing.assert_array_equal(x.reshape(-1)[indices], y)
    assert y.shape == indices.shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_max_pool_of_bytes(dtype):
    limits = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(limits.min, limits.max, (1, 2, 6, 6), dtype, endpoint=True)
    (y,) = backend.load(one_node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])).run([x])
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, x.reshape(1, 2, 3, 2, 3, 2).max(axis=(3, 5)))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (3, 1), (1, 1), (3, 4)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 3.0), (2.0, 0.0)])
def test_gemm_broadcasts_c(shape, scale):
    a, b, c = normal(3, 5), normal(5, 4, seed=1), np.asarray(normal(*shape, seed=2), np.float32)
    alpha, beta = scale
    (y,) = backend.load(one_node("Gemm", [a, b, c], alpha=alpha, beta=beta)).run([a, b, c])
    assert (y.dtype, y.shape) == (np.float32, (3, 4))
    np.testing.assert_allclose(y, alpha * (a @ b) + beta * c, rtol=1e-5, atol=1e-6)


def test_gemm_refuses_c_that_is_larger_than_the_product():
    inputs = [normal(1, 5), normal(5, 4), normal(3, 4)]
    with pytest.raises(ck.ConvkitError, match="the_node.*Gemm"):
        backend.load(one_node("Gemm", inputs)).run(inputs)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("opset", [6, 13])
def test_a_product_of_nothing(dtype, opset):
    """Of no terms it is zeros, so that Gemm gives beta * C; of no rows or no columns it is empty."""
    options = {"broadcast": 1} if opset == 6 else {}
    for m, k, n in ((2, 0, 3), (0, 4, 3), (2, 4, 0), (0, 0, 0)):
        a, b = np.ones((m, k), dtype), np.ones((k, n), dtype)
        for (alpha, beta), shape in itertools.product([(1, 1), (3, 0.5)], [(), (1,), (n,), (m, 1), (m, n)]):
            c = np.arange(np.prod(shape), dtype=float).reshape(shape).astype(dtype)
            (y,) = run_node("Gemm", [a, b, c], opset, alpha=float(alpha), beta=float(beta), **options)
            expected = np.zeros((m, n)) + (beta * c.astype(float) if k == 0 else 0)
            assert y.dtype == dtype and np.array_equal(y.astype(float), expected)
        (y,) = run_node("MatMul", [a, b])
        assert y.dtype == dtype and np.array_equal(y.astype(float), np.zeros((m, n)))
    for op_type in ("Gemm", "MatMul"):
        with pytest.raises(ck.ShapeError, match="have no product"):
            run_node(op_type, [np.ones((2, 0), dtype), np.ones((3, 2), dtype)])


def test_gemm_refuses_a_mix_of_dtypes():
    a, b, c = normal(2, 2), normal(2, 2), np.zeros((2, 2), np.float16)
    for alpha in (1.0, 2.0):
        with pytest.raises(ck.DtypeError, match="must share a dtype, not float32, float32, float16"):
            run_node("Gemm", [a, b, c], alpha=alpha)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float32])
def test_max_pool_of_padding_alone(dtype):
    """Its windows see no pixel: the least value of the dtype, as padding never wins."""
    x = np.full((1, 1, 1), 7, dtype)
    (y,) = run_node("MaxPool", [x], kernel_shape=[2], dilations=[3], pads=[2, 2])
    least = np.iinfo(dtype).min if np.dtype(dtype).kind in "iu" else -np.inf
    assert y.dtype == dtype and y.tolist() == [[[least, least]]]


#: AdaptiveAvgPool2d((6, 6)) of a 6 x 6 image, as PyTorch 2.13 writes it: by TorchScript, by dynamo.
IDENTITIES = {
    "torchscript": {"kernel_shape": [1, 1], "strides": [1, 1]},
    "dynamo": {
        "count_include_pad": 1,
        "ceil_mode": 0,
        "pads": [0, 0, 0, 0],
        "auto_pad": "NOTSET",
        "strides": [1, 1],
        "kernel_shape": [1, 1],
    },
}


@pytest.mark.parametrize("exporter", IDENTITIES)
def test_the_average_pool_of_alexnet(exporter):
    """The end of torchvision's AlexNet, node by node, with the shape of a batch and without."""
    x, w, b = normal(2, 3, 14, 14), normal(10, 3 * 36), normal(10, seed=1)
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 0}
    flatten = helper.make_node("Flatten", ["mean"], ["flat"], axis=1)
    if exporter == "dynamo":
        pool.update(storage_order=0, auto_pad="NOTSET")
        flatten = helper.make_node("Reshape", ["mean", "shape"], ["flat"], allowzero=1)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["max"], **pool),
        helper.make_node("AveragePool", ["max"], ["mean"], **IDENTITIES[exporter]),
        flatten,
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], alpha=1.0, beta=1.0, transB=1),
    ]
    values = {"w": w, "b": b, "shape": np.array([-1, 108])}
    initializer = [numpy_helper.from_array(value, name) for name, value in values.items()]
    for shape in (x.shape, ("n", 3, 14, 14)):
        (y,) = backend.load(chain(nodes, shape=shape, initializer=initializer)).run([x])
        image = ck.maxpool2d_fprop(ck.relu_fprop(x))[0]
        assert image.shape[2:] == (6, 6)
        np.testing.assert_array_equal(y, ck.linear_fprop(image.reshape(2, -1), w, b))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_alexnet_as_pytorch_exports_it(tmp_path):
    """torchvision's features at an eighth of the channels."""
    torch = need("torch")
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(8, 24, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten(1), nn.Dropout(), nn.Linear(48 * 36, 64)),
        *(nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(64, 10)),
    ).eval()
    x = torch.randn(2, 3, 224, 224)
    torch.onnx.export(net, (x,), str(tmp_path / "alexnet.onnx"), dynamo=False)
    assert "AveragePool" in {n.op_type for n in onnx.load(tmp_path / "alexnet.onnx").graph.node}
    (y,) = backend.load(tmp_path / "alexnet.onnx").run([x.numpy()])
    expected = net(x).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
def test_average_pool_that_is_an_identity(rank):
    x = normal(2, 3, *(4, 5)[:rank])
    for options in (
        {},
        {"strides": [1] * rank, "pads": [0] * 2 * rank, "dilations": [3] * rank},
        {"auto_pad": "SAME_UPPER", "ceil_mode": 1},
        {"auto_pad": "VALID", "count_include_pad": 1},
    ):
        (y,) = run_node("AveragePool", [x], kernel_shape=[1] * rank, **options)
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kernel_shape": [2, 2], "strides": [1]}, "strides"),
        ({"kernel_shape": [2, 2], "pads": [0]}, "pads"),
        ({"kernel_shape": [2, 2], "dilations": [1] * 3}, "dilations"),
        ({"kernel_shape": [2, 2], "ceil_mode": 7}, "ceil_mode"),
        ({"kernel_shape": [2, 2], "count_include_pad": 2}, "count_include_pad"),
        ({"kernel_shape": [0, 1]}, "window"),
        ({"kernel_shape": [-1, 1]}, "window"),
        ({"kernel_shape": [1, 1], "strides": [0, 1]}, "strides"),
        ({"kernel_shape": [1, 1], "pads": [0, 0, 1, 0]}, "see padding alone"),
        ({"kernel_shape": [7, 7]}, "more than the padded image"),
        ({"kernel_shape": [2]}, "1-D and 2-D"),
    ],
    ids=str,
)
def test_attributes_of_an_average_pool_are_checked(options, words):
    with pytest.raises(ck.ConvkitError, match=f"'the_node'.*{words}"):
        run_node("AveragePool", [normal(1, 1, 6, 6)], **options)


LOSSES = ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"]


@pytest.mark.parametrize("op_type", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_outside_the_classes_are_refused(op_type, weighted):
    x = normal(2, 5, 3)
    weights = [np.ones(5, np.float32)] if weighted else []
    for wrong, dtype in ((-1, np.int64), (-5, np.int32), (5, np.int64), (255, np.uint8), (2**40, np.int64)):
        labels = np.zeros((2, 3), dtype)
        labels[1, 2] = wrong
        for options in ({}, {"ignore_index": 0}, {"reduction": "none"}):
            with pytest.raises(ck.OptionError, match=rf"'the_node'.*0 <= label < 5.*found {wrong}"):
                run_node(op_type, [x, labels, *weights], **options)
        (loss,) = run_node(op_type, [x, labels, *weights], ignore_index=wrong, reduction="none")
        assert loss[1, 2] == 0 and (loss != 0).sum() == 5
        (nothing,) = run_node(op_type, [x, np.full_like(labels, wrong), *weights], ignore_index=wrong)
        assert np.isnan(nothing)


@pytest.mark.parametrize("op_type", LOSSES)
def test_malformed_losses_are_refused(op_type):
    x, labels = normal(2, 5, 3), np.zeros((2, 3), int)
    for inputs, words in (
        ([x, labels.T], r"labels must have shape \(2, 3\)"),
        ([x, labels.reshape(6)], r"labels must have shape \(2, 3\)"),
        ([x, labels.astype(np.float32)], "labels must be of an integer dtype"),
        ([x, labels, np.ones(6, np.float32)], r"weights must have shape \(5,\)"),
        ([x, labels, np.ones(4, np.float32)], r"weights must have shape \(5,\)"),
        ([x, labels, np.ones((5, 1), np.float32)], r"weights must have shape \(5,\)"),
        ([x.astype(int), labels], "scores has dtype int64"),
        ([x[0, :, 0], labels], "has no axis 1"),
        ([x[0, 0, 0], labels], "has no axis 1"),
    ):
        with pytest.raises(ck.ConvkitError, match=f"'the_node'.*{words}"):
            run_node(op_type, [np.asarray(a) for a in inputs])
    (loss,) = run_node(op_type, [x[:0], labels[:0]], reduction="sum")
    assert loss == 0


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_flattens_before_opset_13(op_type, axis):
    x = 5 * normal(2, 3, 4).astype(np.float64)
    for opset in (11, 13):
        (y,) = backend.load(one_node(op_type, [x], opset=opset, axis=axis)).run([x])
        axes = tuple(range(axis % 3, 3)) if opset == 11 else axis
        expected = np.exp(x) / np.exp(x).sum(axis=axes, keepdims=True)
        np.testing.assert_allclose(
            y, expected if op_type == "Softmax" else np.log(expected), rtol=1e-12, atol=1e-12
        )


def test_log_softmax_of_what_underflows():
    x = np.array([[0, -200, 300], [1e4, -1e4, 0]], np.float32)
    (y,) = backend.load(one_node("LogSoftmax", [x])).run([x])
    np.testing.assert_allclose(y, [[-300, -500, 0], [0, -2e4, -1e4]])


def test_float16_stays_float16():
    x = normal(2, 3, 5, 5).astype(np.float16)
    for op_type, attributes in {
        "Relu": {}, "LRN": {"size": 3}, "MaxPool": {"kernel_shape": [2, 2]}, "Softmax": {}, "LogSoftmax": {}
    }.items():  # fmt: skip
        model = one_node(op_type, [x], **attributes)
        wide = one_node(op_type, [x.astype(np.float64)], **attributes)
        (y,), (expected,) = backend.load(model).run([x]), backend.load(wide).run([x.astype(np.float64)])
        assert y.dtype == np.float16, op_type
        np.testing.assert_allclose(y, expected, rtol=2e-3, atol=1e-6, err_msg=op_type)


# ---------------------------------------------------------------------------------------------------
# 16 bits: float64, rounded once
# ---------------------------------------------------------------------------------------------------
SIXTEEN = [DTYPES["float16"], DTYPES["bfloat16"]]
EPS = 2.0**-24  # half of float32's last place, in which 16 bits are accumulated


def run_node(op_type, inputs, opset=21, domain="", outputs=1, **attributes):
    """Results of one operator; a warning is an error."""
    model = one_node(op_type, inputs, outputs, opset, domain, **attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return backend.load(model).run(inputs)


def test_a_row_is_all_that_an_operator_needs(monkeypatch):
    monkeypatch.setattr("convkit.onnx.table.OPERATORS", table := dict(backend.OPERATORS))
    monkeypatch.setattr("convkit.onnx.node.OPERATORS", table)
    x = normal(2, 3)
    with pytest.raises(ck.NoImplementation, match="operator ThresholdedRelu.*is not covered"):
        run_node("ThresholdedRelu", [x], alpha=0.5)

    @backend.operator("ThresholdedRelu", since=10, ranks=(2,))
    def thresholded_relu(x, *, alpha=1.0):
        return np.where(x > alpha, x, 0)

    (y,) = run_node("ThresholdedRelu", [x], alpha=0.5)
    np.testing.assert_array_equal(y, x * (x > 0.5))
    assert "ThresholdedRelu" in backend.known_operators()
    with pytest.raises(ck.NoImplementation, match="only inputs of 2 dimensions"):
        run_node("ThresholdedRelu", [x[0]], alpha=0.5)
    with pytest.raises(ck.NoImplementation, match="is not covered"):
        run_node("ThresholdedRelu", [x], opset=9)


def rounded_once(got, exact, dtype, slack=0.0):
    """`got` is float64's `exact` within one step of the dtype, or within its rounding and `slack`.

    The slack is what float32 allows where the terms cancel: EPS times their number and absolute sum.
    """
    exact, slack = np.broadcast_arrays(np.asarray(exact, np.float64), slack)
    assert (got.dtype, got.shape) == (dtype, exact.shape)
    with np.errstate(all="ignore"):
        near, low, high = (v.astype(dtype) for v in (exact, exact - slack, exact + slack))

    def step(a):  # the values of a dtype in order, counted from zero
        bits = a.view(np.int16).astype(int)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    nan = np.isnan(near)
    assert np.array_equal(np.isnan(got), nan)
    within = (step(low) - 1 <= step(got)) & (step(got) <= step(high) + 1)
    good = nan | within | (abs(step(got) - step(near)) <= 1)
    assert good.all(), f"{got[~good][:4]}, right: {exact[~good][:4]}"


def awkward(dtype, shape, kind, seed=0):
    """Values of a dtype whose products and sums overflow its range, cancel, or spread over its exponents."""
    rng = np.random.default_rng([seed, *shape])
    x = rng.standard_normal(shape)
    if kind == "wide":
        x *= 2.0 ** rng.integers(-12, 8, shape)
    elif kind == "large":  # products and sums of float16 overflow
        x = np.clip(300 * x, -6e4, 6e4)
    elif kind == "whole":  # float32 holds each sum exactly
        x = rng.integers(-40, 40, shape)
    return np.asarray(x).astype(dtype)


KINDS = ["normal", "wide", "large", "whole"]


def gemm_64(a, b, c, alpha, beta):
    """The product in float64, and how far float32 may be off."""
    a, b, c = (np.asarray(m, np.float64) for m in (a, b, c))
    exact = alpha * (a @ b) + beta * c
    return exact, EPS * (a.shape[1] + 4) * (abs(alpha) * (abs(a) @ abs(b)) + abs(beta * c))


@pytest.mark.parametrize("opset", [6, 13])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_gemm_in_16_bits(dtype, kind, opset):
    a, b = awkward(dtype, (5, 33), kind), awkward(dtype, (33, 7), kind, 1)
    for (alpha, beta), shape in itertools.product(
        [(1, 1), (1, -0.5), (0.001, 1), (3, 0), (0.25, 0.25)], [(), (7,), (1, 7), (5, 1), (5, 7)]
    ):
        alpha, beta = float(np.float32(alpha)), float(np.float32(beta))
        c = awkward(dtype, shape, kind, 2)
        if kind == "whole" and shape == (5, 7) and beta:  # the sum is all but cancelled
            c = (-alpha / beta * (a.astype(float) @ b.astype(float))).astype(dtype)
        exact, slack = gemm_64(a, b, c, alpha, beta)
        options = {"alpha": alpha, "beta": beta, **({"broadcast": 1} if opset == 6 else {})}
        for transposed in (0, 1):
            inputs = [a.T.copy(), b.T.copy(), c] if transposed else [a, b, c]
            (y,) = run_node("Gemm", inputs, opset, transA=transposed, transB=transposed, **options)
            rounded_once(y, exact, dtype, 0 if kind == "whole" and alpha == 1 else slack)


def test_gemm_of_16_bits_that_overflow_or_cancel_between_the_steps():
    """Seen: inf for 256, and zeros."""
    half = np.full((2, 4), 256, np.float16)
    (y,) = run_node("Gemm", [half, np.full((4, 3), 250, np.float16)], alpha=1e-3)
    assert (y == 256).all()
    bfloat16 = DTYPES["bfloat16"]
    a, b = np.array([[257, 1]]).astype(bfloat16), np.array([[1], [1]]).astype(bfloat16)
    for shape in ((1,), (1, 1)):
        (y,) = run_node("Gemm", [a, b, np.full(shape, -256).astype(bfloat16)])
        assert y.astype(float) == 1  # 256 + 1 has nine bits
    tall = np.repeat(a, 2, 0)
    (y,) = run_node("Gemm", [tall, b, np.full((2, 1), -256).astype(bfloat16)])
    assert (y.astype(float) == 1).all()


def test_gemm_widens_large_weights_in_parts(monkeypatch):
    """As much memory as the parts take, and the same bits."""
    inputs = [awkward(np.float16, shape, "normal", i) for i, shape in enumerate([(3, 8), (8, 50), (3, 50)])]
    (whole,) = run_node("Gemm", inputs, alpha=0.5)
    monkeypatch.setattr("convkit.onnx.operators.linear.WIDENED", 8 * 16)
    taken = []
    linear = ck.linear_fprop
    monkeypatch.setattr(
        "convkit.onnx.operators.linear.linear_fprop",
        lambda x, w, b=None: taken.append(len(w)) or linear(x, w, b),
    )
    (parts,) = run_node("Gemm", inputs, alpha=0.5)
    np.testing.assert_array_equal(parts, whole)
    assert taken == [16, 16, 16, 2]
    run_node("Gemm", [*inputs[:2], inputs[2][0]])
    assert taken[4:] == [50], "the plain product is one call, with the bias in it"


def log_softmax_64(x, axis):
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


#: How far a row's log(sum(exp)) may be off: float32's exponentials and their sum, of which the largest is 1.
NATS = 8 * EPS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_softmax_and_its_losses_in_16_bits(dtype, kind):
    x = awkward(dtype, (4, 9, 5), kind)
    wide = x.astype(np.float64)
    for opset, axis in ((11, 1), (13, 1), (13, -1)):
        rows = wide.reshape(4, 45) if opset == 11 else wide
        exact = log_softmax_64(rows, axis).reshape(x.shape)
        rounded_once(run_node("LogSoftmax", [x], opset, axis=axis)[0], exact, dtype, NATS)
        rounded_once(run_node("Softmax", [x], opset, axis=axis)[0], np.exp(exact), dtype, 2.0**-125)
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 9, (4, 5))
    weights = (900 * rng.random(9) + 1).astype(dtype)
    for op_type, losses, error in (
        ("SoftmaxCrossEntropyLoss", -log_softmax_64(wide, 1), NATS),
        ("NegativeLogLikelihoodLoss", -wide, 0),
    ):
        loss = np.take_along_axis(losses, labels[:, None], 1)[:, 0]
        for ignored, weighted in itertools.product((None, 4), (True, False)):
            scale = np.where(labels == ignored, 0, weights.astype(float)[labels] if weighted else 1.0)
            options = {} if ignored is None else {"ignore_index": ignored}
            inputs = [x, labels, weights][: 3 if weighted else 2]
            size = (abs(loss) * EPS + error) * scale
            for reduction, exact, slack in (
                ("none", loss * scale, size),
                ("sum", (loss * scale).sum(), size.sum()),
                ("mean", (loss * scale).sum() / scale.sum(), size.sum() / scale.sum()),
            ):
                (y,) = run_node(op_type, inputs, reduction=reduction, **options)
                rounded_once(y, exact, dtype, slack)
    _, log_probs = run_node("SoftmaxCrossEntropyLoss", [x, labels], outputs=2)
    rounded_once(log_probs, log_softmax_64(wide, 1), dtype, NATS)


def test_a_weighted_mean_of_16_bits_that_overflows_before_it_is_a_mean():
    log_probs = np.full((3, 2), -6e4, np.float16)
    inputs = [log_probs, np.zeros(3, int), np.full(2, 1000, np.float16)]
    (y,) = run_node("NegativeLogLikelihoodLoss", inputs)
    assert y == np.float16(6e4)
    inputs = [np.array([[6e4, 0]] * 3, np.float16), np.ones(3, int), inputs[2]]
    (y,) = run_node("SoftmaxCrossEntropyLoss", inputs)
    assert y == np.float16(6e4)


@pytest.mark.parametrize("mode", ["standard", "nesterov"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_momentum_in_16_bits(dtype, kind, mode):
    w, dw, v = (awkward(dtype, (3, 11), kind, i) for i in range(3))
    alpha, beta, decay, rate = (float(np.float32(a)) for a in (0.9, 0.25, 0.01, 0.1))
    for step in (0, 7):
        inputs = [np.float32(rate).reshape(()), np.asarray(step), w, dw, v]
        options = {"alpha": alpha, "beta": beta, "norm_coefficient": decay, "mode": mode}
        results = run_node("Momentum", inputs, domain=backend.TRAINING, outputs=2, **options)
        signed = [a.astype(np.float64) for a in (w, dw, v)]
        found = []
        for sign, (w64, g64, v64) in ((-1, signed), (1, map(abs, signed))):  # the sum of its terms' sizes
            gradient = g64 + decay * w64
            velocity = alpha * v64 + (beta if step else 1) * gradient
            moved = rate * (gradient + alpha * velocity if mode == "nesterov" else velocity)
            found.append((w64 + sign * moved, velocity))
        for result, right, size in zip(results, *found):
            rounded_once(result, right, dtype, 8 * EPS * size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_images_in_16_bits(dtype, kind):
    x, w, b = (awkward(dtype, shape, kind, i) for i, shape in enumerate([(2, 6, 9), (4, 6, 3), (4,)]))
    x64, w64, b64 = (a.astype(np.float64) for a in (x, w, b))
    (y,) = run_node("Conv", [x, w, b])
    windows = np.lib.stride_tricks.sliding_window_view(x64, 3, axis=2)
    exact = np.einsum("ncqs,kcs->nkq", windows, w64) + b64[:, None]
    size = np.einsum("ncqs,kcs->nkq", abs(windows), abs(w64)) + abs(b64[:, None])
    rounded_once(y, exact, dtype, 20 * EPS * size)
    (y,) = run_node("LRN", [x], size=3, alpha=0.5)
    squares = np.pad(x64**2, ((0, 0), (1, 1), (0, 0)))
    sums = squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]
    rounded_once(y, x64 / (1 + float(np.float32(0.5)) / 3 * sums) ** 0.75, dtype)
    rounded_once(run_node("MaxPool", [x], kernel_shape=[3])[0], windows.max(-1), dtype)
    rounded_once(run_node("Relu", [x])[0], np.maximum(x64, 0), dtype)
    rounded_once(run_node("Dropout", [x])[0], x64, dtype)
    rounded_once(run_node("AveragePool", [x], kernel_shape=[1])[0], x64, dtype)
    a, b = x[0].T.copy(), w[:, :, 0].T.copy()
    a64, b64 = x64[0].T, w64[:, :, 0].T
    rounded_once(run_node("MatMul", [a, b])[0], a64 @ b64, dtype, 10 * EPS * (abs(a64) @ abs(b64)))


@pytest.mark.parametrize("dtype", [*SIXTEEN, np.dtype(np.float32), np.dtype(np.float64)], ids=str)
def test_nothing_warns(dtype):
    """Of infinities, NaN, and what overflows on the way: `run_node` turns warnings into errors."""
    top = np.finfo(dtype).max if dtype.kind == "f" else ml_dtypes.finfo(dtype).max
    x = np.array([np.inf, -np.inf, np.nan, top, -top, 0, 1, -1] * 3).astype(dtype).reshape(2, 3, 4)
    flat, labels = x.reshape(6, 4), np.arange(6) % 4
    image = {"kernel_shape": [2], "dilations": [3], "pads": [2, 2]}
    assert np.isnan(run_node("MaxPool", [x], **image)[0]).any()
    run_node("Conv", [x, np.full((1, 3, 2), top, dtype), np.full(1, top, dtype)])
    run_node("LRN", [x], size=3)
    run_node("Relu", [x])
    run_node("MatMul", [flat, flat.T.copy()])
    for alpha, beta, shape in itertools.product((1.0, 3e38), (1.0, -3e38), ((), (6,), (6, 6))):
        run_node("Gemm", [flat, flat.T.copy(), np.full(shape, top, dtype)], alpha=alpha, beta=beta)
    for op_type, opset in itertools.product(("Softmax", "LogSoftmax"), (11, 13)):
        run_node(op_type, [flat], opset)
    run_node("LogSoftmax", [np.array([[top, -top]], dtype)])
    for op_type, reduction in itertools.product(
        ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"), ("none", "sum", "mean")
    ):
        for scores in (flat, np.full((6, 4), -top, dtype), np.array([[top, -top, top, top]] * 6, dtype)):
            inputs = [scores, labels, np.array([0, top, np.inf, 1]).astype(dtype)]
            run_node(op_type, inputs, reduction=reduction)
            run_node(op_type, [scores, np.zeros(6, int)], reduction=reduction, ignore_index=0)
    tensors = [np.asarray(0.5, np.float32), np.asarray(1), flat, np.full((6, 4), top, dtype), flat]
    options = {"alpha": 3e38, "beta": 3e38, "norm_coefficient": 3e38, "mode": "nesterov"}
    run_node("Momentum", tensors, domain=backend.TRAINING, outputs=2, **options)


@pytest.mark.parametrize("mode", ["standard", "nesterov"])
@pytest.mark.parametrize("step", [0, 7])
def test_momentum(mode, step):
    """beta weighs the gradient from the second step on."""
    tensors = [normal(3, seed=i) for i in range(6)]
    inputs = [np.float32(0.1).reshape(()), np.asarray(step, np.int64), *tensors]
    options = {"alpha": 0.9, "beta": 0.25, "mode": mode, "norm_coefficient": 0.01}
    results = backend.Backend.run_node(
        helper.make_node(
            "Momentum",
            [f"x{i}" for i in range(8)],
            ["w0", "w1", "v0", "v1"],
            domain=backend.TRAINING,
            **options,
        ),
        inputs,
    )
    for i in range(2):
        w, g, v = tensors[i], tensors[2 + i] + np.float32(0.01) * tensors[i], tensors[4 + i]
        v = 0.9 * v + (0.25 if step else 1) * g
        w = w - 0.1 * (g + 0.9 * v if mode == "nesterov" else v)
        np.testing.assert_allclose(results[i], w, rtol=1e-5)
        np.testing.assert_allclose(results[2 + i], v, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------
# The interface
# ---------------------------------------------------------------------------------------------------
def chain(nodes, inputs=("x",), outputs=("y",), shape=(2, 3), initializer=()):
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in inputs]
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["any"]) for n in outputs]
    graph = helper.make_graph(nodes, "chain", infos, made, list(initializer))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)


RELU = helper.make_node("Relu", ["x"], ["y"], name="rectify")


def test_a_model_from_a_file_by_name_or_in_order(tmp_path):
    path = tmp_path / "relu.onnx"
    onnx.save(chain([RELU]), path)
    x = normal(2, 3)
    for source in (path, str(path), chain([RELU])):
        model = backend.load(source)
        for inputs in ([x], (x,), {"x": x}):
            (y,) = model.run(inputs)
            np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_weights_beside_the_model(tmp_path):
    weights = numpy_helper.from_array(normal(3, 64), "w")
    gemm = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = tmp_path / "matmul.onnx"
    onnx.save(
        chain([gemm], initializer=[weights]),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    (y,) = backend.load(path).run([np.eye(3, dtype=np.float32)[:2]])
    np.testing.assert_array_equal(y, normal(3, 64)[:2])
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ck.ConvkitError, match=r"matmul\.onnx"):
        backend.load(path)


def test_a_value_of_the_model_can_be_replaced_where_it_is_an_input():
    value = numpy_helper.from_array(np.zeros((2, 3), np.float32), "x")
    x = np.abs(normal(2, 3))
    model = backend.load(chain([RELU], initializer=[value]))
    assert model.inputs == []
    np.testing.assert_array_equal(model.run([])[0], np.zeros((2, 3)))
    np.testing.assert_array_equal(model.run({"x": x})[0], x)
    np.testing.assert_array_equal(model.run({})[0], np.zeros((2, 3)))


def test_results_share_no_memory_with_inputs_or_model():
    value = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Flatten", ["w"], ["z"])]
    nodes.append(helper.make_node("Constant", [], ["c"], value=value))
    model = backend.load(chain(nodes, outputs=("y", "z", "x", "c"), initializer=[value]))
    x = normal(2, 3)
    before = x.copy()
    for result in model.run([x]):
        result[...] = 7
    np.testing.assert_array_equal(x, before)
    for again in (model.run([x])[1], model.run([x])[3]):
        np.testing.assert_array_equal(again, np.ones((2, 3)))


def test_a_tensor_may_be_read_many_times_or_never():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b", "unread"]),
        helper.make_node("Transpose", ["a"], ["t"]),
        helper.make_node("MatMul", ["a", "t"], ["c"]),
        helper.make_node("MatMul", ["c", "b"], ["y"]),
    ]
    x = normal(2, 3)
    a = np.maximum(x, 0)
    y, again = backend.load(chain(nodes, outputs=("y", "a"))).run([x])
    np.testing.assert_allclose(y, a @ a.T @ a, rtol=1e-6)
    np.testing.assert_array_equal(again, a)


def test_backend_interface():
    model, x = chain([RELU]), normal(2, 3)
    assert issubclass(backend.Backend, onnx.backend.base.Backend)
    assert backend.Backend.supports_device("CPU") and backend.Backend.supports_device("CPU:0")
    assert not backend.Backend.supports_device("CUDA")
    assert backend.Backend.is_compatible(model)
    assert not backend.Backend.is_compatible(model, "CUDA")
    assert not backend.Backend.is_compatible(chain([helper.make_node("Tanh", ["x"], ["y"])]))
    assert isinstance(backend.Backend.prepare(model), onnx.backend.base.BackendRep)
    for result in (
        backend.Backend.prepare(model, "CPU").run([x]),
        backend.Backend.run_model(model, [x]),
        backend.Backend.run_node(RELU, [x]),
        backend.Backend.run_node(RELU, [x], opset_version=6),
    ):
        np.testing.assert_array_equal(result[0], np.maximum(x, 0))
    with pytest.raises(ck.ConvkitError, match="CUDA"):
        backend.Backend.prepare(model, "CUDA")
    with pytest.raises(ck.ConvkitError, match="takes 1 inputs"):
        backend.Backend.run_node(RELU, [])


# ---------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------
def test_a_file_that_is_not_there_or_no_model(tmp_path):
    with pytest.raises(ck.ConvkitError, match=r"no such file.*missing\.onnx"):
        backend.load(tmp_path / "missing.onnx")
    with pytest.raises(ck.ConvkitError, match="no such file"):
        backend.load(tmp_path)
    for content in (b"", b"not a model", b"\x89PNG\r\n\x1a\n" + bytes(64), b"\x08\x07"):
        path = tmp_path / "other.onnx"
        path.write_bytes(content)
        with pytest.raises(ck.ConvkitError, match=r"other\.onnx.*ONNX model"):
            backend.load(path)
    onnx.save(chain([RELU]), tmp_path / "whole.onnx")
    (tmp_path / "half.onnx").write_bytes((tmp_path / "whole.onnx").read_bytes()[:-20])
    with pytest.raises(ck.ConvkitError, match=r"half\.onnx"):
        backend.load(tmp_path / "half.onnx")
    with pytest.raises(ck.ConvkitError, match="a path or an"):
        backend.load(b"bytes")


def unrunnable(nodes, **kwargs):
    """The error with which a model is refused when it is loaded."""
    with pytest.raises(ck.ConvkitError) as error:
        backend.load(chain(nodes, **kwargs))
    return str(error.value)


def test_an_unknown_operator_is_named_and_the_known_ones_listed():
    message = unrunnable([RELU, helper.make_node("GlobalAveragePool", ["y"], ["z"], name="mean")])
    for part in (
        "'mean'",
        "GlobalAveragePool",
        "ai.onnx,",
        "opset 21",
        "not covered",
        "Conv, ",
        "MaxPool",
        "Momentum",
    ):
        assert part in message
    message = unrunnable([helper.make_node("Relu", ["x"], ["y"], domain="com.example")])
    assert "['y']" in message and "domain com.example" in message and "opset not imported" in message


def test_an_unknown_attribute_is_named():
    message = unrunnable([helper.make_node("LRN", ["x"], ["y"], size=5, region=1)])
    assert "LRN" in message and "'region'" in message and "alpha" in message and "MaxPool" in message
    message = unrunnable([helper.make_node("Constant", [], ["y"], value_string="text")])
    assert "'value_string'" in message


@pytest.mark.parametrize(
    ("node", "part"),
    [
        (
            helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], auto_pad="SAME"),
            "auto_pad must be one of",
        ),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2, 2]), "3 or 4 dimensions"),
        (helper.make_node("MaxPool", ["x"], ["y"]), "lacks the attribute 'kernel_shape'"),
        (helper.make_node("Conv", ["x", "x"], ["y"]), "3 or 4 dimensions are covered, not of 2"),
        (helper.make_node("Relu", [], ["y"]), "not a valid ONNX model"),
        (helper.make_node("LRN", ["x"], ["y"], size=2.5), "not a valid ONNX model"),
    ],
    ids=["auto_pad", "3-D", "kernel_shape", "rank", "no input", "type"],
)
def test_what_is_wrong_with_a_node_is_said_at_load_time(node, part):
    assert part in unrunnable([node])


ROW, IMAGE = np.zeros(3, np.float32), np.zeros((1, 2, 5, 5), np.float32)
#: Attributes and inputs that no operator can make sense of, and what is said.
MALFORMED = {
    "stride 0": ("Conv", [IMAGE, IMAGE[:, :, :2, :2]], {"strides": [0, 1]}, "stride"),
    "stride 0, SAME": (
        "MaxPool",
        [IMAGE],
        {"kernel_shape": [2, 2], "strides": [0, 1], "auto_pad": "SAME_UPPER"},
        "strides must each",
    ),
    "huge stride": ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2**62, 1]}, "stride"),
    "negative dilation": ("Conv", [IMAGE, IMAGE], {"dilations": [-1, 1]}, "dilation"),
    "negative pads": ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "pads": [-1, 0, 0, 0]}, "padding"),
    "huge pads": ("Conv", [IMAGE, IMAGE], {"pads": [2**62] * 4}, ""),
    "pads of one axis": ("Conv", [IMAGE, IMAGE], {"pads": [1, 1]}, "must be those of 2 axes"),
    "empty window": ("MaxPool", [IMAGE], {"kernel_shape": [0, 0]}, "window"),
    "group 0": ("Conv", [IMAGE, IMAGE], {"group": 0}, "groups"),
    "strides, an int": ("Conv", [IMAGE, IMAGE], {"strides": 2}, "not a valid ONNX model"),
    "kernel_shape, an int": ("MaxPool", [IMAGE], {"kernel_shape": 2}, "not a valid ONNX model"),
    "auto_pad, a tensor": (
        "Conv",
        [IMAGE, IMAGE],
        {"auto_pad": numpy_helper.from_array(np.ones(2))},
        "not a valid ONNX model",
    ),
    "axis, a float": ("Flatten", [ROW], {"axis": 1.0}, "not a valid ONNX model"),
    "ceil_mode": ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "ceil_mode": 2}, "ceil_mode must be one of"),
    "LRN's size": ("LRN", [IMAGE], {"size": 0}, "size must be at least 1"),
    "LRN's alpha": ("LRN", [IMAGE], {"size": 3, "alpha": float("nan")}, "alpha must be a finite number"),
    "LRN of a row": ("LRN", [ROW], {"size": 3}, "4 dimensions"),
    "axis": ("Softmax", [ROW], {"axis": 1}, "has no axis 1"),
    "axis of a scalar": ("LogSoftmax", [ROW[0]], {}, "has no axis -1"),
    "Flatten's axis": ("Flatten", [ROW], {"axis": 2}, "axis must lie in"),
    "Gemm of rows": ("Gemm", [ROW, ROW], {}, "2 dimensions"),
    "MatMul of scalars": ("MatMul", [ROW[0], ROW[0]], {}, "2 dimensions"),
    "extent of -2": ("Reshape", [ROW, np.array([-2])], {}, "an extent below -1"),
    "shape of floats": ("Reshape", [ROW, np.array([3.5])], {}, "a row of integers"),
    "shape, a scalar": ("Reshape", [ROW, np.array(3)], {}, "a row of integers"),
    "shape, a matrix": ("ConstantOfShape", [np.array([[2]])], {}, "a row of integers"),
    "negative extent": ("ConstantOfShape", [np.array([-1])], {}, "negative"),
    "no memory": ("ConstantOfShape", [np.array([2**60])], {}, ""),
    "value of two": (
        "ConstantOfShape",
        [np.array([1])],
        {"value": numpy_helper.from_array(np.ones(2))},
        "size 1",
    ),
    "perm": ("Transpose", [IMAGE], {"perm": [0, 0, 1, 2]}, "repeated axis"),
    "dropout's ratio": ("Dropout", [ROW, ROW, np.ones(2, bool)], {}, "size 1"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_attributes_and_inputs(name):
    op_type, inputs, attributes, words = MALFORMED[name]
    with pytest.raises(ck.ConvkitError, match=f"(?s)'the_node'.*{op_type}.*{words}"):
        run_node(op_type, [np.asarray(a) for a in inputs], **attributes)


def test_momentum_of_unequal_numbers_is_refused():
    for count in (1, 2, 4, 5):
        with pytest.raises(ck.ConvkitError, match=f"{count} tensors are not as many"):
            inputs = [np.float32(0.1).reshape(()), np.asarray(1), *[ROW] * count]
            options = {"alpha": 0.9, "beta": 0.5, "norm_coefficient": 0.0, "mode": "standard"}
            run_node("Momentum", inputs, domain=backend.TRAINING, **options)


def test_inputs_and_outputs_without_a_shape_or_a_type():
    x = normal(2, 3)
    for strip in ("shape of y", "type of y", "shape of x", "shapes"):
        model = chain([RELU])
        for info in (model.graph.output[0], model.graph.input[0]):
            if strip == "shapes" or strip == f"shape of {info.name}":
                info.type.tensor_type.ClearField("shape")
            elif strip == f"type of {info.name}":
                info.ClearField("type")
        before = model.SerializeToString()
        (y,) = backend.load(model).run([x])
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        assert model.SerializeToString() == before
    model.graph.node[0].op_type = "LRN"
    with pytest.raises(ck.ConvkitError, match="size"):
        backend.load(model)


def test_bfloat16_in_the_model():
    """An initialiser, and the value of an attribute, in both forms that a file may have them in."""
    dtype = DTYPES["bfloat16"]
    value = np.array([[1.5, -2, 3]]).astype(dtype)
    bits = value.view(np.uint16)
    raw = helper.make_tensor("w", TensorProto.BFLOAT16, (1, 3), value.tobytes(), raw=True)
    data = TensorProto(
        data_type=TensorProto.BFLOAT16, dims=(1, 3), int32_data=bits.reshape(-1).tolist(), name="w"
    )
    for tensor in (raw, data):
        nodes = [
            helper.make_node("Relu", ["w"], ["y"]),
            helper.make_node("Constant", [], ["c"], value=tensor),
        ]
        y, c = backend.load(chain(nodes, inputs=(), outputs=("y", "c"), initializer=[tensor])).run([])
        assert y.dtype == c.dtype == dtype
        assert np.array_equal(c, value) and np.array_equal(y, np.maximum(value, 0))
    (y,) = backend.Backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [value])
    assert y.dtype == dtype
    with pytest.raises(ck.DtypeError, match="for which ONNX has no type"):
        backend.Backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [np.zeros(1, "M8[s]")])


def test_dropout_through_the_opsets():
    x = normal(2, 3)
    with pytest.raises(ck.ConvkitError, match="is_test must be one of"):
        backend.load(one_node("Dropout", [x], opset=6))
    for opset, dtype, options in (
        (6, np.float32, {"is_test": 1}),
        (7, np.float32, {}),
        (10, bool, {}),
        (13, bool, {}),
    ):
        y, mask = backend.load(one_node("Dropout", [x], outputs=2, opset=opset, **options)).run([x])
        assert np.array_equal(y, x) and mask.dtype == dtype and mask.all()


def test_tensors_without_a_value():
    assert "'b', which nothing makes" in unrunnable([helper.make_node("Relu", ["b"], ["y"])])
    assert "returns 'z', which nothing makes" in unrunnable([RELU], outputs=("z",))
    cycle = [helper.make_node("MatMul", ["x", "y"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    assert "'y' before" in unrunnable(cycle) and "cycle" in unrunnable(cycle)
    assert "cycle" in unrunnable([helper.make_node("Relu", ["y"], ["y"])])
    assert "SSA" in unrunnable([RELU, helper.make_node("Relu", ["x"], ["y"])])


def test_inputs_are_checked_before_anything_runs():
    model = backend.load(
        chain([helper.make_node("MatMul", ["x", "w"], ["y"])], inputs=("x", "w"), shape=("n", "n"))
    )
    x = normal(3, 3)
    for inputs, part in [
        ([x], "takes 2 inputs"),
        ({"x": x}, "missing input 'w'"),
        ({"x": x, "w": x, "b": x}, "unknown input 'b'"),
        ([x, x[0]], r"input 'w' must have shape \('n', 'n'\)"),
        ([x, normal(4, 4)], r"where {'n': 3}, not \(4, 4\)"),
        ([x, x.astype(np.float64)], "input 'w' must have dtype float32, not float64"),
        ([x, x.tolist()], "input 'w' must be an array"),
        ([x, None], "input 'w' must be an array"),
        (x, "a dict or a sequence"),
    ]:
        with pytest.raises(ck.ConvkitError, match=part):
            model.run(inputs)
    with pytest.raises(ck.ShapeError, match=r"shape \(2, 3\)"):
        backend.load(chain([RELU])).run([x])


def test_an_error_of_an_op_names_the_node():
    x, w = normal(1, 3, 5, 5), normal(4, 2, 3, 3)
    with pytest.raises(ck.ShapeError, match=r"'the_node' \(operator Conv.*conv2d_fprop: w of shape"):
        backend.load(one_node("Conv", [x, w])).run([x, w])
    x = np.arange(6)
    with pytest.raises(ck.DtypeError, match="'the_node'.*relu_fprop: x has dtype int64"):
        backend.load(one_node("Relu", [x])).run([x])
    shape = np.array([4, -1])
    with pytest.raises(ck.ConvkitError, match=r"'the_node'.*Reshape.*int64 \(6,\)"):
        backend.load(one_node("Reshape", [x, shape])).run([x, shape])


def python(code):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )


def test_convkit_does_not_import_onnx():
    result = python("import convkit, sys; print('onnx' in sys.modules, 'convkit.onnx' in sys.modules)")
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_without_onnx_the_extra_is_named():
    result = python(
        "import sys; sys.modules['onnx'] = None\n"
        "import convkit\n"
        "try: import convkit.onnx\n"
        "except convkit.ConvkitError as error: print(isinstance(error, ImportError), error)"
    )
    assert result.stdout.startswith("True"), result.stderr
    assert "pip install 'convkit[onnx]'" in result.stdout
