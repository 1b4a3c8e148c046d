"""Kernel files: their headers, and the readable one run serially on a CPU."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import convkit as ck
from convkit.geometry import Conv2d
from convkit.paths import kernels_dir
from convkit.registry import OPS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KERNELS = sorted(kernels_dir().glob("*.cu"))

#: Enough of CUDA to run a kernel without barriers or shared memory, one thread after the other.
SERIAL = """
#define __global__
struct Index { int x; };
static Index blockIdx, threadIdx, blockDim;
"""


def test_there_are_kernels():
    assert KERNELS


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.stem)
def test_header_argues_and_declares(path):
    text = path.read_text()
    assert text.startswith(f"// {path.stem}\n")
    for word in ("Status", "Tiling", "Traffic", "Bound"):
        assert re.search(rf"^// {word}\s+\S", text, re.M), f"{path.name} has no {word}"
    block = re.search(r"^// /// kernel\n(.*?)^// ///\n", text, re.M | re.S)
    declared = tomllib.loads(re.sub(r"^// ?", "", block.group(1), flags=re.M))
    assert declared["op"] in OPS
    assert path.stem.startswith(declared["op"] + "_")
    assert {"dtypes", "tile", "grid", "block"} <= declared.keys()
    assert f"__global__ void {path.stem}(" in text


@pytest.fixture(scope="module")
def naive(tmp_path_factory):
    """The kernel's own source, built by the C++ compiler, with the struct that geometry.py declares."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if not compiler:
        assert not os.environ.get("CI"), "CI must have a C++ compiler"
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernel")
    source = folder / "kernel.cpp"
    geometry = Conv2d.of((1, 1, 1, 1), (1, 1, 1, 1)).c_struct()
    source.write_text(f"""{SERIAL}{geometry}
#define GEOMETRY(type) const type g
#include "{kernels_dir() / "conv2d_fprop_naive.cu"}"
extern "C" void launch(const Conv2d* g, const float* x, const float* w, const float* b, float* y, int relu,
                       int grid, int block) {{
    blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) conv2d_fprop_naive(*g, x, w, b, y, relu);
}}
""")
    library = folder / "kernel.so"
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", library], check=True)
    return ctypes.CDLL(str(library)).launch


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((2, 4, 9, 7), (6, 2, 3, 2), {"groups": 2, "padding": ((0, 2), (1, 0)), "stride": (2, 1)}),
        ((1, 3, 23, 23), (5, 3, 11, 11), {"stride": 4, "padding": ((0, 3), (0, 3))}),
        ((1, 2, 8, 8), (3, 2, 3, 3), {"dilation": (2, 3), "padding": 2}),
        ((3, 1, 1, 1), (1, 1, 1, 1), {"stride": 5}),
    ],
)
def test_the_naive_convolution_is_the_definition(naive, x_shape, w_shape, options, bias, relu):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape))
    b = rng.standard_normal(w_shape[0]).astype(np.float32) if bias else None
    problem = Conv2d.of(x_shape, w_shape, **options)
    y = np.full(problem.shape("y"), np.nan, np.float32)
    struct = problem.struct()
    threads, total = 32, y.size
    pointers = [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in (struct, x, w, b, y)]
    naive(*pointers, int(relu), -(-total // threads), threads)
    expected = ck.conv2d_fprop(x, w, b, **options, relu=relu, impl="reference")
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
