"""convkit.cudnn with a real libcudnn, as far as that goes without a GPU: versions, texts, descriptors.

It is several hundred MB, so that nothing installs it for a test: these run where one is found, as convkit
itself finds it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convkit.bench.peers import cudnn
from convkit.bench.peers.cudnn import legacy, library
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.lrn import LRN
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.softmax_xent import SoftmaxXent

NOT_SUPPORTED, BAD_PARAM, ALLOC_FAILED = 3000, 2000, 4003
CONV = Conv2d.of((2, 4, 6, 5), (6, 2, 3, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
POOL = Pool2d.of((2, 3, 9, 7))


@pytest.fixture(scope="module")
def real() -> library.Library:
    """Several hundred MB, so that nothing installs it for a test."""
    try:
        return library.load()
    except cudnn.Unavailable as reason:
        pytest.skip(str(reason))


def test_real_functions_and_texts(real):
    assert not [name for name in (*library.SIGNATURES, *library.OTHERS) if not real.has(name)]
    assert real.version >= (9, 0, 0)
    assert isinstance(real.error("f", NOT_SUPPORTED), cudnn.NotSupported)
    assert isinstance(real.error("f", ALLOC_FAILED), library.NoMemory)
    assert real.error("f", BAD_PARAM).name == "CUDNN_STATUS_BAD_PARAM"
    with pytest.raises(cudnn.CudnnError, match=r"BAD_PARAM \(.*n <= 0"):
        library.Descriptor(real, "Tensor", "Tensor4d", 0, 0, 0, 1, 1, 1)


def test_real_limits_of_lrn(real):
    for size, beta, k in ((1, 0.01, 1e-5), (16, 0.75, 1.0)):
        library.Descriptor(real, "LRN", "LRN", size, 1e-4, beta, k).close()
    for size, beta, k in ((0, 0.75, 1.0), (17, 0.75, 1.0), (5, 0.009, 1.0), (5, 0.75, 9e-6)):
        with pytest.raises(cudnn.CudnnError, match="BAD_PARAM"):
            library.Descriptor(real, "LRN", "LRN", size, 1e-4, beta, k)


@pytest.mark.parametrize("dtype", legacy.DATA_TYPES)
def test_real_descriptors(real, monkeypatch, dtype):
    """Made and set for every op; what would need a handle is left out."""
    monkeypatch.setattr(legacy.Maker, "call", lambda self, function, *arguments: None)
    handle: Any = SimpleNamespace(library=real, address=None, use=lambda stream: None)
    problems = {
        **dict.fromkeys((*legacy.DIRECTIONS, "conv2d_dgrad_relu"), CONV),
        **dict.fromkeys(("conv2d_bgrad", "linear_bgrad"), ChannelSum.of((2, 4, 5, 6), 4)),
        **dict.fromkeys(("relu_fprop", "relu_dgrad"), Elementwise((2, 3, 4, 5))),
        **dict.fromkeys(("lrn_fprop", "lrn_dgrad"), LRN.of((2, 8, 3, 4))),
        **dict.fromkeys(("maxpool2d_fprop", "maxpool2d_dgrad"), POOL),
        **dict.fromkeys(("softmax_fprop", "softmax_dgrad"), SoftmaxXent.of((2, 4))),
    }
    assert set(problems) == set(legacy.OPS)
    for op, problem in problems.items():
        for layout in legacy.FORMATS:
            found = legacy.engines(handle, replace(problem, dtype=dtype), op, "tf32", layout, True, True)
            assert found and not [e.refused for e in found if e.refused and e.asked]


def test_real_handle(real):
    """Where there is no GPU, that is what is said."""
    try:
        library.Handle(real).close()
    except cudnn.Unavailable as reason:
        assert "needs a GPU" in str(reason)


C_TYPES = {"int": "i", "unsigned": "u", "double": "d", "size_t": "z", "int*": "I", "size_t*": "Z"}
OURS = {
    ctypes.c_int: "i", ctypes.c_uint: "u", ctypes.c_double: "d", ctypes.c_size_t: "z", ctypes.c_void_p: "a",
    ctypes.POINTER(ctypes.c_int): "I", ctypes.POINTER(ctypes.c_size_t): "Z",
    ctypes.POINTER(ctypes.c_void_p): "O", ctypes.POINTER(library.AlgorithmPerf): "P",
}  # fmt: skip


def kind_of(argument: str) -> str:
    """An argument as a header declares it, as a letter of `OURS`."""
    text = re.sub(r"\bconst\b", "", argument).strip()
    type_, stars = re.match(r"(\w+)\s*(\**)", text).groups()
    if "AlgoPerf_t" in type_:
        return "P"
    if type_ + stars in C_TYPES:
        return C_TYPES[type_ + stars]
    if stars or type_ == "cudaStream_t" or "Descriptor_t" in type_ or type_ == "cudnnHandle_t":
        return "O" if stars and type_ != "void" else "a"
    return "i"  # an enumeration


@pytest.fixture(scope="module")
def headers() -> str:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    if named := os.environ.get("CONVKIT_CUDNN"):
        roots.append(Path(named).parent.parent if Path(named).is_dir() else Path(named).parents[2])
    found = [p for root in roots for p in (root / "cudnn" / "include", root / "include") if p.is_dir()]
    texts = [f.read_text() for p in found for f in sorted(p.glob("cudnn_*.h")) if "_v9" not in f.name]
    if not texts:
        pytest.skip("no headers of cuDNN")
    return re.sub(r"/\*.*?\*/", "", "\n".join(texts), flags=re.S)


def test_the_headers_declare_these_functions(headers):
    for name, arguments in library.SIGNATURES.items():
        declared = re.search(rf"\b{name}\s*\(([^;]*)\)\s*;", headers)
        assert declared, name
        kinds = [kind_of(argument) for argument in declared[1].split(",")]
        assert kinds == [OURS[a] for a in arguments], name


def test_the_headers_number_these_values(headers):
    values = {
        k: int(v) for k, v in re.findall(r"\b(CUDNN_\w+)\s*(?:CUDNN_DEPRECATED_ENUM)?\s*=\s*(\d+)", headers)
    }
    data = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "HALF", "bfloat16": "BFLOAT16"}
    assert {ours: values[f"CUDNN_DATA_{theirs}"] for ours, theirs in data.items()} == legacy.DATA_TYPES
    assert {name: values[f"CUDNN_TENSOR_{name}"] for name in legacy.FORMATS} == legacy.FORMATS
    math = ("DEFAULT_MATH", "TENSOR_OP_MATH", "TENSOR_OP_MATH_ALLOW_CONVERSION", "FMA_MATH")
    assert [values[f"CUDNN_{name}"] for name in math] == list(range(4))
    for direction, prefix in zip(legacy.DIRECTIONS.values(), ("FWD", "BWD_DATA", "BWD_FILTER")):
        names = [name.upper().removeprefix("ALGO_") for name in direction.algorithms]
        assert [values[f"CUDNN_CONVOLUTION_{prefix}_ALGO_{name}"] for name in names] == list(
            range(len(names))
        )
        assert values[f"CUDNN_CONVOLUTION_{prefix}_ALGO_COUNT"] == len(names)
    assert {name: values[f"CUDNN_POOLING_{name.upper()}"] for name in legacy.POOLINGS} == legacy.POOLINGS
    assert (values["CUDNN_ACTIVATION_RELU"], values["CUDNN_PROPAGATE_NAN"]) == (
        legacy.RELU,
        legacy.PROPAGATE_NAN,
    )
    assert {n: values[f"CUDNN_SOFTMAX_{n.upper()}"] for n in legacy.SOFTMAXES} == legacy.SOFTMAXES
    assert {
        n: values[f"CUDNN_SOFTMAX_MODE_{n.upper()}"] for n in legacy.SOFTMAX_MODES
    } == legacy.SOFTMAX_MODES
    assert values["CUDNN_CROSS_CORRELATION"] == legacy.CROSS_CORRELATION
    assert values["CUDNN_LRN_CROSS_CHANNEL_DIM1"] == legacy.LRN_CROSS_CHANNEL
