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
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(names, inputs)
    ]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["any"]) for n in made]  # nobody reads it
    graph = helper.make_graph([node], "one", infos, results)
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def same_padding(size, span, stride, auto_pad):
    """ONNX's words: ceil(size / stride) windows, the odd pixel of padding on the named side."""
    total = max(0, (-(-size // stride) - 1) * stride + span - size)
    return (total // 2, total - total // 2) if auto_pad == "SAME_UPPER" else (total - total // 2, total // 2)


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
    message = unrunnable(
        [RELU, helper.make_node("AveragePool", ["y"], ["z"], name="mean", kernel_shape=[2, 2])]
    )
    for part in (
        "'mean'",
        "AveragePool",
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
