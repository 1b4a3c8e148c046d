"""What a look at a kernel's source warns of: each marked line below, and nothing that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from convkit.cuda.warnings import FAST_MATH, warnings_of, warnings_text
from convkit.paths import kernels_dir

ROOT = Path(__file__).parents[2]
SHIPPED = [*sorted(kernels_dir().glob("*.cu*")), *sorted((ROOT / "examples").glob("*.cu"))]

#: A comment at the end of a line says what is warned of there.
MARKED = r"""
// __powf(x) in a comment, "__expf" in quotes
/* y[n * g.C * g.H] */
constexpr int TILE = 8;
#define AT(n, c) y[(n) * g.C * g.H + (c)]
template <int VEC> __device__ int pick(int a) { return a * VEC; }
__device__ float declared(const float* p, int rows);
extern "C" __global__ void f(GEOMETRY(Conv2d), const float* __restrict__ x, float* y, int* counts,
                             int total) {
  __shared__ float tile[64][65];
  extern __shared__ float dynamic[];
  float local[4] = {};
  const char* text = "y[n * g.C * g.H]";
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int n = i / (g.C * g.H * g.W), c = i / g.W % g.C, h = i % g.H, w = i % g.W;
  y[i] = x[i];
  y[((n * g.C + c) * g.H + h) * g.W + w] = 0;  // offset
  y[((static_cast<long long>(n) * g.C + c) * g.H + h) * g.W + w] = 0;
  y[static_cast<long long>(n * g.C * g.H) * g.W] = 0;  // offset
  y[(size_t)n * g.C * g.H + h] = 1;
  y[1LL * n * g.C * g.H] = 3;
  const float* row = x + (long long)n * g.C * g.H * g.W;
  y[h * TILE + w] = row[h * g.W + w];
  const float* far = x + n * g.C * g.H * g.W;  // offset
  const int offset = (n * g.C + c) * g.H * g.W;  // offset
  y[offset + h] += tile[threadIdx.x % 64][h * n] + dynamic[h * n];
  const int unused = n * g.C * g.H * g.W;
  const long long apart = (long long)g.H * g.W;
  y[n * apart] = row[threadIdx.x * 4];
  float* p = y;
  p += n * g.C * g.H * g.W;  // offset
  for (int k = 0; k < g.K; ++k) y[k * g.C + c] = 1;  // offset
  for (int k = 0; k < 64; ++k) y[k * g.C] = 1;
  if (total > 3) y[total * g.C] = 1;  // offset
  y[g.R * g.S + h] = pick<4>(3) + y[min(n, 3) * g.C] + y[(n & 7) * g.C + n % TILE * g.H];
  y[0] = n * g.C * g.H + text[0] + g.beta * n * g.C + unused;
  y[1] = x[h] * x[w] * n * g.C;
  const auto strip = of_thread(g);
  y[(strip.plane * g.H + h) * g.W] = *(x + strip.plane * g.P * g.Q) + declared(x, n * g.C);
  local[h * n] = __powf(x[0], 2.0f) + __expf(1.0f) + expf(2.0f);  // __powf __expf
  y[2] = __fdividef(x[0], x[1]);  // __fdividef
  atomicAdd(&y[h], 1.0f);  // atomicAdd
  atomicAdd(y + h, 1.0f);  // atomicAdd
  atomicAdd(&tile[0][1], 1.0f);  // atomicAdd
  atomicAdd(&counts[h], 1);
  atomicMax(&counts[h], static_cast<int>(x[h]));
  float4 a = *reinterpret_cast<const float4*>(x + 4 * (long long)i);  // float4
  float4 b = ((const float4*)x)[i];  // float4
  __half2 d = *reinterpret_cast<const __half2*>(p);  // __half2
  float4 e = *reinterpret_cast<float4*>(&tile[0][4]);
  float4 v = *reinterpret_cast<float4*>(local);
  int bits = *reinterpret_cast<const int*>(x);
}
"""


def test_each_marked_line_is_warned_of_and_no_other(tmp_path):
    path = tmp_path / "marked.cu"
    path.write_text(MARKED)
    expected = {}
    for number, line in enumerate(MARKED.splitlines(), 1):
        _, _, marks = line.partition(";  // ")
        if marks:
            expected[number] = sorted(marks.split())
    found: dict[int, list[str]] = {}
    for warning in warnings_of(path):
        assert warning.why and warning.instead
        mark = next(m for m in (*FAST_MATH, "atomicAdd", "offset", "float4", "__half2") if m in warning.what)
        found.setdefault(warning.line, []).append(mark)
    assert {line: sorted(marks) for line, marks in found.items()} == expected
    assert len(expected) >= 15


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_nothing_that_is_shipped_is_warned_of(path):
    assert not warnings_of(path)


def test_a_file_that_tests_its_addresses_may_read_vectors(tmp_path):
    path = tmp_path / "mine.cu"
    kernel = (
        "__global__ void f(const float* x, float4* y) {{ {} y[0] = *reinterpret_cast<const float4*>(x); }}"
    )
    path.write_text(kernel.format(""))
    assert warnings_text([path, path, "relu_fprop"]).startswith(
        "mine.cu:1: warning: a pointer is read as float4"
    )
    path.write_text(kernel.format("if (reinterpret_cast<unsigned long long>(x) % 16) return;"))
    assert warnings_text([path]) == ""


@pytest.mark.parametrize(
    "text", ["", "(" * 5000, "int a = (", "float x[", "for (int i = 0; i <", "}}}", "a ? b"]
)
def test_what_is_no_program_is_read_as_well(text, tmp_path):
    path = tmp_path / "broken.cu"
    path.write_text(text)
    assert warnings_of(path) == []


def test_check_prints_the_warnings(tmp_path, capsys, monkeypatch):
    from convkit import check
    from convkit.cli import check as command
    from convkit.cli import main

    path = tmp_path / "relu_fprop_fast.cu"
    path.write_text(
        (ROOT / "examples" / "relu_fprop_stride.cu").read_text().replace("? 0 :", "? __expf(-99.f) :")
    )
    monkeypatch.setattr(command, "_chosen", lambda *_: [])
    monkeypatch.setattr(check, "check_these", lambda *_, **__: [])
    main(["check", str(path), "--quick"])
    assert "relu_fprop_fast.cu:18: warning: __expf is an approximation" in capsys.readouterr().out
