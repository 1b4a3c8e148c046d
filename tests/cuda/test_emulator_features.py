"""What valid CUDA uses beyond the plain language, under the emulator, and NVRTC takes it as well."""

from __future__ import annotations

import os
import re
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from convkit.cuda import dynamic_shared, emulator, nvrtc, unsupported
from convkit.cuda.launch import Argument, KernelError
from convkit.errors import MissingExtra

CHECK = pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """Without a C++ compiler there is nothing to test: a developer may lack one, CI must not."""
    if not emulator.available():
        assert not os.environ.get("CI"), "CI must have a C++ compiler"
        pytest.skip("no C++ compiler")


def unit(text: str) -> str:
    return f'#line 1 "feature.cu"\n{text}'


def accepted_by_nvrtc(text: str) -> None:
    """Whatever the emulator takes here, NVRTC takes, where it is installed."""
    try:
        nvrtc.cached_cubin(unit(text), "sm_90a", name="feature")
    except MissingExtra:
        assert not os.environ.get("CI"), "CI must have NVRTC"


def run(text: str, *arrays: np.ndarray, check=False, block=64, grid=1, shared=0, entry="f", **options):
    """Launch with the arrays, of which the last one is the output."""
    function = emulator.compile(unit(text), entry, check=check)
    *inputs, output = arrays
    arguments = [Argument(f"x{i}", array) for i, array in enumerate(inputs)]
    arguments.append(Argument("y", output, output=True))
    function.launch((grid,), (block,), arguments, shared=shared, **options)
    return output


# ---------------------------------------------------------------------------------------------------
# float16 and bfloat16
# ---------------------------------------------------------------------------------------------------
SIXTEEN = {
    "half": ("__half", "cuda_fp16.h", np.float16, 11, -24, 65504.0),
    "bfloat16": ("__nv_bfloat16", "cuda_bf16.h", ml_dtypes.bfloat16, 8, -133, 3.3895313892515355e38),
}
ARITHMETIC = """
#include <{header}>
extern "C" __global__ void f(const {T}* a, const {T}* b, const {T}* c, {T}* y) {{
  const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
  const {T} p = a[i], q = b[i], r = __ldg(c + i);
  y[i] = p + q;
  y[n + i] = __hsub(p, q);
  {T} product = p;
  product *= q;
  y[2 * n + i] = product;
  y[3 * n + i] = p / q;
  y[4 * n + i] = __hfma(p, q, r);
  y[5 * n + i] = __hmax(p, q);
  y[6 * n + i] = __hmin(p, q);
  const {T}2 pair = __halves2{N}2(p, q) * __halves2{N}2(q, r) + {T}2(r, p);
  y[7 * n + i] = threadIdx.x % 2 ? __low2{N}(pair) : pair.y;
}}
"""


def rounded(value: Fraction, precision: int, least: int, most: float) -> float:
    """To nearest, ties to even, in a format of so many bits whose least number is 2^least."""
    if value == 0:
        return 0.0
    exponent = max(
        abs(value).numerator.bit_length() - abs(value).denominator.bit_length() - precision - 1, least
    )
    while abs(value) / Fraction(2) ** exponent >= 2**precision:
        exponent += 1
    result = round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent  # Python rounds ties to even
    limit = Fraction(most) + Fraction(2) ** (int(np.log2(most)) - precision)
    return float(np.copysign(np.inf, float(value > 0) - 0.5)) if abs(result) >= limit else float(result)


@CHECK
@pytest.mark.parametrize("name", SIXTEEN)
def test_each_operation_on_16_bits_rounds_once(name, check):
    kind, header, dtype, precision, least, most = SIXTEEN[name]
    text = ARITHMETIC.format(header=header, T=kind, N=name)
    accepted_by_nvrtc(text)
    rng = np.random.default_rng(3)
    n = 256 if check else 512
    # All exponents; near 1; and products halfway between two numbers, decided by a far smaller third one.
    bits = rng.integers(0, 2**16, (3, n), np.uint16).view(dtype)
    near = rng.standard_normal((3, n)).astype(dtype)
    ulp = 2.0 ** (1 - precision)
    tie = np.stack([np.full(n, 1 + ulp), np.full(n, 1 + ulp / 2 * rng.integers(0, 4, n)), np.empty(n)])
    tie[2] = rng.choice([-1.0, 1.0], n) * 2.0 ** rng.integers(max(least, -60), -10, n)
    a, b, c = np.concatenate([bits, near, tie.astype(dtype)], axis=1)
    y = run(text, a, b, c, np.zeros(8 * a.size, dtype), check=check, grid=a.size // 64).reshape(8, -1)
    with np.errstate(all="ignore"):
        p, q, r = (v.astype(np.float64) for v in (a, b, c))
        finite = np.isfinite(p) & np.isfinite(q) & np.isfinite(r)
        expected = {0: p + q, 1: p - q, 2: p * q, 3: p / q, 5: np.fmax(p, q), 6: np.fmin(p, q)}
        for row, value in expected.items():
            want = value.astype(dtype)
            if row != 3 and row < 5:
                exact = [Fraction(s) + Fraction(t) if row == 0 else Fraction(s) - Fraction(t) if row == 1
                         else Fraction(s) * Fraction(t) for s, t in zip(p[finite], q[finite])]  # fmt: skip
                want = want.copy()
                want[finite] = [rounded(v, precision, least, most) for v in exact]
            got, want = y[row].astype(np.float64), want.astype(np.float64)
            np.testing.assert_array_equal(got, want, err_msg=f"row {row}")
        fma = [rounded(Fraction(s) * Fraction(t) + Fraction(u), precision, least, most)
               for s, t, u in zip(p[finite], q[finite], r[finite])]  # fmt: skip
        np.testing.assert_array_equal(y[4].astype(np.float64)[finite], fma)
        twice = ((p * q).astype(dtype).astype(np.float64) + r).astype(dtype).astype(np.float64)
        assert (y[4].astype(np.float64)[finite] != twice[finite]).any()
        odd = np.arange(a.size) % 2 == 1
        chain = np.where(odd, twice, ((q * r).astype(dtype).astype(np.float64) + p).astype(dtype))
        np.testing.assert_array_equal(y[7].astype(np.float64)[finite], chain[finite])
    nans = np.isnan(y[:5].astype(np.float64))
    assert nans.any() and (y[:5].view(np.uint16)[nans] == 0x7FFF).all()


SIXTEEN_MORE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
union Four { uint2 words; __half values[4]; };
extern "C" __global__ void f(float* y) {
  __shared__ __half tile[4][8];
  __shared__ __nv_bfloat162 pairs[32];
  const int t = threadIdx.x;
  tile[t / 8][t % 8] = t;
  pairs[t] = __floats2bfloat162_rn(t, -1.0f);
  __syncthreads();
  __half h = tile[3 - t / 8][t % 8];
  ++h;
  h += __int2half_rn(2);
  if (h > __float2half(20.0f) && !__hisnan(h)) h = -h;
  Four four;
  four.values[2] = h;
  const int whole = four.values[2];
  const float2 both = __bfloat1622float2(pairs[31 - t] + pairs[t]);
  y[t] = __half2float(h) * 1000 + both.x + both.y + whole;
  y[32 + t] = float(__shfl_xor_sync(~0u, h, 1)) + float(hsqrt(__half(16.0f))) + float(nv_bfloat16(0.5));
  y[64 + t] = __half2float(__float2half_rz(1.9999f)) + __half2float(__float2half_ru(1.0001f)) +
              __half2float(__float2half_rd(-1.0001f)) + __hlt(h, __half(0)) +
              __hbgt2(half2(2, 2), half2(1, 1));
}
"""


@CHECK
def test_what_kernels_do_with_16_bits(check):
    accepted_by_nvrtc(SIXTEEN_MORE)
    y = run(SIXTEEN_MORE, np.zeros(96, np.float32), check=check, block=32)
    t = np.arange(32)
    h = (3 - t // 8) * 8 + t % 8 + 3.0
    h = np.where(h > 20, -h, h)
    np.testing.assert_array_equal(y[:32], h * 1000 + 31 - 2 + h)
    np.testing.assert_array_equal(y[32:64], h[t ^ 1] + 4.5)
    ulp = 2.0**-10
    np.testing.assert_array_equal(y[64:], 2 - ulp + 1 + ulp - 1 - ulp + (h < 0) + 1)


# ---------------------------------------------------------------------------------------------------
# Headers, approximations, dynamic shared memory, clocks
# ---------------------------------------------------------------------------------------------------
HEADERS = [
    "cmath",
    "math.h",
    "cstdint",
    "stdint.h",
    "cfloat",
    "float.h",
    "climits",
    "limits.h",
    "limits",
    "type_traits",
    "cstddef",
    "stddef.h",
    "cassert",
    "assert.h",
    "cstdio",
    "stdio.h",
    "cstring",
    "string.h",
    "utility",
    "algorithm",
    "array",
]
LIBRARY = (
    "".join(f"#include <{name}>\n" for name in HEADERS)
    + """
template <class T, std::enable_if_t<std::is_floating_point_v<T>, int> = 0>
__device__ T twice(T x) { return std::fma(x, T(1), x); }
extern "C" __global__ void f(float* y) {
  std::uint32_t big = UINT32_MAX;
  int64_t wide = INT64_MAX;
  static_assert(std::is_same_v<int64_t, long long> && std::is_same<std::remove_cv_t<const int>, int>::value);
  static_assert(std::is_same_v<std::conditional_t<(sizeof(size_t) > 4), std::decay_t<int(&)[3]>, int>, int*>);
  static_assert(std::numeric_limits<int>::lowest() == INT_MIN);
  static_assert(std::is_unsigned_v<std::make_unsigned_t<int>>);
  static_assert(std::numeric_limits<float>::epsilon() == FLT_EPSILON && offsetof(float4, z) == 8);
  std::array<float, 3> numbers{3.0f, 1.0f, 2.0f};
  std::swap(numbers[0], numbers[1]);
  y[0] = std::sqrt(4.0f) + std::max(1.0f, numbers[1]) + std::min(7, 8) + std::clamp(9, 1, 2) + twice(0.5f);
  y[1] = std::numeric_limits<float>::infinity();
  y[2] = std::isnan(NAN) + std::isinf(INFINITY) + std::abs(-5) + (big > 4000000000u) + (wide > 1ll << 62);
  y[3] = static_cast<float>(M_PI) + FLT_MAX * 0 + static_cast<float>(DBL_MIN) + std::fabs(-1.0f) + NULL;
  std::memcpy(y + 4, numbers.data(), sizeof(numbers));
  memset(y + 7, 0, 4);
  assert(y[7] == 0.0f);
  const long long before = clock64();
  const clock_t start = clock();
  while (clock64() - before < 1000) __nanosleep(10);
  y[8] = clock() > start && clock64() - before >= 1000;
}
"""
)


@CHECK
def test_the_headers_that_kernels_include(check):
    accepted_by_nvrtc(LIBRARY)
    y = run(LIBRARY, np.zeros(9, np.float32), check=check, block=1)
    pi = np.float32(np.pi)
    np.testing.assert_array_equal(y, [2 + 3 + 7 + 2 + 1, np.inf, 9, pi + 1, 1, 3, 2, 0, 1])


FAST = """
extern "C" __global__ void f(const float* x, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
  const float v = x[i], positive = fabsf(v);
  y[i] = __expf(v);
  y[n + i] = __logf(positive);
  y[2 * n + i] = __log2f(positive);
  y[3 * n + i] = __sinf(v);
  y[4 * n + i] = __cosf(v);
  y[5 * n + i] = __fdividef(1.7f, v);
  y[6 * n + i] = __powf(positive, -0.75f);
  y[7 * n + i] = __log10f(positive);
}
"""


def test_approximations_are_off_within_what_cuda_documents():
    accepted_by_nvrtc(FAST)
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.uniform(-3.1, 3.1, 3000), rng.uniform(-80, 80, 1032)]).astype(np.float32)
    x = np.concatenate([x, rng.uniform(0.5, 2, 512).astype(np.float32)])
    y = run(FAST, x, np.zeros(8 * x.size, np.float32), grid=x.size // 64).reshape(8, -1)
    v, p = x.astype(np.float64), np.abs(x.astype(np.float64))
    exact = [
        np.exp(v),
        np.log(p),
        np.log2(p),
        np.sin(v),
        np.cos(v),
        np.float32(1.7) / v,
        p**-0.75,
        np.log10(p),
    ]
    near = (p > 0.5) & (p < 2)
    small = p < np.pi
    for row, (got, want) in enumerate(zip(y, exact)):
        error = np.abs(got - want)
        ulps = error / np.spacing(np.abs(want).astype(np.float32))
        bound = {
            0: ulps <= 2 + np.floor(1.173 * p),
            1: np.where(near, error <= 2**-21.41, ulps <= 3),
            2: np.where(near, error <= 2**-22, ulps <= 2),
            3: ~small | (error <= 2**-21.41),
            4: ~small | (error <= 2**-21.19),
            5: ulps <= 2,
            6: error <= 8e-6 * want,
            7: np.where(near, error <= 2**-24, ulps <= 3),
        }[row]
        assert bound.all(), row
        assert (ulps > 0.6).mean() > 0.1, row  # not the accurate function
    again = run(FAST, x, np.zeros(8 * x.size, np.float32), grid=x.size // 64, seed=1).reshape(8, -1)
    np.testing.assert_array_equal(y, again)
    exact = run(FAST, np.repeat(np.float32([0, 1, 2, 4]), 16), np.zeros(512, np.float32)).reshape(8, -1)[
        :, ::16
    ]
    assert exact[0, 0] == 1 and exact[4, 0] == 1 and exact[3, 0] == 0
    np.testing.assert_array_equal(exact[2], [-np.inf, 0, 1, 2])
    np.testing.assert_array_equal(exact[5, 1:], np.float32(1.7) / np.float32([1, 2, 4]))


DYNAMIC = """
#include "dynamic.cuh"
#define SHARED extern __shared__
extern __shared__ float everything[];
namespace inner { SHARED int numbers[]; }
template <class T> __device__ T read(int i) {
  SHARED __align__(16) T typed[];
  return typed[i];
}
extern "C" __global__ void f(float* y) {
  extern __shared__ __align__(16) unsigned char bytes[];
  extern
      __shared__ float2 pairs[];
  extern __shared__ float rows[][8];
  const int t = threadIdx.x;
  everything[t] = t;
  __syncthreads();  // MARK
  y[t] = everything[31 - t] + read<float>(t) + pairs[t / 2].y + rows[t / 8][0] + from_header(t);
  y[t] += reinterpret_cast<const float4*>(bytes)[t / 4].w + __int_as_float(inner::numbers[t]);
}
"""


@CHECK
def test_dynamic_shared_memory_as_cuda_spells_it(check, tmp_path):
    header = "__device__ float from_header(int i) { extern __shared__ volatile float v[]; return v[i]; }"
    text = DYNAMIC.replace('#include "dynamic.cuh"', header)
    accepted_by_nvrtc(text)
    t = np.arange(32)
    expected = 31 - t + t + t // 2 * 2 + 1 + t // 8 * 8 + t + t // 4 * 4 + 3 + t
    (tmp_path / "dynamic.cuh").write_text(header)
    function = emulator.compile(unit(DYNAMIC), "f", include=[tmp_path], check=check)
    for source in (function, emulator.compile(unit(text), "f", check=check)):
        y = np.zeros(32, np.float32)
        source.launch((1,), (32,), [Argument("y", y, output=True)], shared=128)
        np.testing.assert_array_equal(y, expected)
    with pytest.raises(KernelError, match="dynamic shared memory") as caught:
        function.launch((1,), (64,), [Argument("y", np.zeros(64, np.float32), output=True)], shared=128)
    line = 1 + text[: text.index("everything[t] = t;")].count("\n")
    assert (caught.value.kind, caught.value.line) == ("array overrun", line)


def test_dynamic_shared_memory_is_watched():
    header = "__device__ float from_header(int i) { return 0; }"
    text = DYNAMIC.replace('#include "dynamic.cuh"', header).replace("__syncthreads();  // MARK", ";")
    with pytest.raises(KernelError) as caught:
        run(text, np.zeros(32, np.float32), check=True, block=32, shared=128)
    assert caught.value.kind in ("race", "uninitialised shared memory")
    assert "feature.cu" in caught.value.file and caught.value.line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extern __shared__ float s[];", True),
        ("__shared__ extern float s[];", True),
        ('extern "C" __global__ void f() { __shared__ float s[3]; }', False),
        ("extern __device__ int a; __shared__ float s[3];", False),
    ],
)
def test_a_declaration_is_found(text, expected):
    assert dynamic_shared.found(text) is expected


def test_a_rewritten_source_keeps_its_lines():
    text = """extern static __thread
  float
  s[];
void f() {
  const char* a = "}";
  extern static __thread int b[][2];
}
"""
    after = dynamic_shared.rewritten(text).split("\n")
    assert len(after) == len(text.split("\n")) and "asm" in after[0]
    assert "int (*const b)[2] = reinterpret_cast<int (*)[2]>" in after[5]


# ---------------------------------------------------------------------------------------------------
# printf
# ---------------------------------------------------------------------------------------------------
PRINTS = """
extern "C" __global__ void f(float* y) {
  if (threadIdx.x % 32 == 1)
    printf("block %d thread %u: %.2f %s\\n", blockIdx.x, threadIdx.x, y[0] + 0.5f, "text");
  __syncthreads();
  if (threadIdx.x == 0 && blockIdx.x == 2 && y[0] > 0) y[1 << 20] = 1.0f;
}
"""


def printed(first: float, **options) -> list[str]:
    function = emulator.compile(unit(PRINTS), "f", check=options.pop("check", False))
    y = Argument("y", np.full(4, first, np.float32), output=True, reads=True)
    try:
        function.launch((3,), (64,), [y], **options)
    finally:
        lines = function.printed.splitlines()
    return lines


@CHECK
def test_printf_comes_in_the_order_of_blocks(check, capsys):
    accepted_by_nvrtc(PRINTS)
    lines = [f"block {b} thread {t}: 0.50 text" for b in range(3) for t in (1, 33)]
    assert printed(0.0, check=check) == lines
    assert capsys.readouterr().out.splitlines() == lines
    assert sorted(printed(0.0, check=check, seed=3)) == lines
    capsys.readouterr()
    with pytest.raises(KernelError, match="out of bounds"):
        printed(1.0, check=check, threads=1)
    assert capsys.readouterr().out.splitlines() == [line.replace("0.50", "1.50") for line in lines]


# ---------------------------------------------------------------------------------------------------
# Cooperative groups
# ---------------------------------------------------------------------------------------------------
GROUPS = """
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;
template <class Tile> __device__ float total(const Tile& tile, float v) {
  for (int i = tile.size() / 2; i > 0; i /= 2) v += tile.shfl_down(v, i);
  return tile.shfl(v, 0);
}
extern "C" __global__ void f(int* y) {
  __shared__ int s[128];
  cg::thread_block block = cg::this_thread_block();
  cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
  auto tile = cg::tiled_partition<8>(block);
  auto part = cg::tiled_partition<4>(tile);
  const int t = block.thread_rank(), n = block.size();
  s[t] = t * t % 37;
  block.sync();  // MARK block
  int* out = y + t;
  *out = s[t ^ 65]; out += n;
  *out = cg::reduce(warp, s[t], cg::plus<int>()); out += n;
  *out = cg::reduce(tile, s[t], cg::less<int>()); out += n;
  *out = cg::reduce(tile, s[t], cg::greater<int>()); out += n;
  *out = tile.ballot(s[t] % 2) + 1000 * tile.meta_group_rank() + tile.any(s[t] == 1) + tile.all(s[t] < 36);
  out += n;
  *out = tile.shfl_xor(s[t], 5) * 10000 + tile.shfl_up(s[t], 3) * 100 + part.shfl_down(s[t], 1); out += n;
  *out = part.meta_group_rank() * 100 + part.thread_rank() * 10 + part.meta_group_size(); out += n;
  *out = static_cast<int>(total(tile, s[t])); out += n;
  *out = block.group_index().x + block.thread_index().y * 10 + block.dim_threads().x * 100; out += n;
  cg::sync(block);
  s[t] = 2 * t;
  tile.sync();  // MARK tile
  *out = s[t ^ 7]; out += n;
  if (t % 3) {
    cg::coalesced_group some = cg::coalesced_threads();
    *out = some.shfl(t, 0) >= 0 && some.thread_rank() < some.size();
    some.sync();
  }
}
"""


def grouped(text: str, check: bool, **options) -> np.ndarray:
    function = emulator.compile(unit(text), "f", check=check)
    y = np.zeros((11, 128), np.int32)
    function.launch((1,), (16, 8), [Argument("y", y, output=True)], **options)
    return y


@pytest.mark.slow  # CUDA's own header takes NVRTC four seconds
def test_nvrtc_takes_cooperative_groups():
    accepted_by_nvrtc(GROUPS)


@CHECK
@pytest.mark.parametrize("seed", [None, 1])
def test_cooperative_groups(check, seed):
    y = grouped(GROUPS, check, seed=seed)
    t = np.arange(128)
    s = t * t % 37
    tiles, warps = s.reshape(-1, 8), s.reshape(-1, 32)
    ballot = (tiles % 2) @ (1 << np.arange(8)) + (tiles == 1).any(1) + (tiles < 36).all(1)
    up = np.where(t % 8 < 3, s, s[np.maximum(t - 3, 0)])
    down = np.where(t % 4 == 3, s, s[np.minimum(t + 1, 127)])
    expected = [
        s[t ^ 65],
        warps.sum(1).repeat(32),
        tiles.min(1).repeat(8),
        tiles.max(1).repeat(8),
        ballot.repeat(8) + 1000 * (t // 8),
        s[t ^ 5] * 10000 + up * 100 + down,
        t // 4 % 2 * 100 + t % 4 * 10 + 2,
        tiles.sum(1).repeat(8),
        t // 16 * 10 + 1600,
        2 * (t ^ 7),
        t % 3 != 0,
    ]
    for row, (got, want) in enumerate(zip(y, expected)):
        np.testing.assert_array_equal(got, want, err_msg=f"row {row}")


@pytest.mark.parametrize("barrier", ["block", "tile"])
def test_a_missing_barrier_of_a_group_is_a_race(barrier):
    with pytest.raises(KernelError) as caught:
        grouped(GROUPS.replace(f"{barrier}.sync();  // MARK", ";  // MARK"), check=True)
    assert caught.value.kind in ("race", "uninitialised shared memory")


DIVERGENT = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void f(int* y, int which) {
  auto block = cg::this_thread_block();
  auto tile = cg::tiled_partition<16>(block);
  if (which == 0 && threadIdx.x != 5) block.sync();
  if (which == 1 && threadIdx.x == 5) block.sync();
  if (which == 1 && threadIdx.x != 5) cg::sync(block);
  if (which == 2) { if (tile.thread_rank() == 3) cg::tiled_partition<32>(block).sync(); else tile.sync(); }
  if (which == 3 && threadIdx.x == 3) y[0] = tile.shfl(1, 2); else if (which == 3) block.sync();
}
"""


@CHECK
def test_divergence_at_the_barriers_of_groups_is_reported(check):
    function = emulator.compile(unit(DIVERGENT), "f", check=check)
    y = Argument("y", np.zeros(1, np.int32), output=True)
    cases = [("exit before a barrier", 7), ("divergent barrier", 8), ("bad mask", 10), ("bad mask", 11)]
    for which, (kind, line) in enumerate(cases):
        with pytest.raises(KernelError) as caught:
            function.launch((1,), (32,), [y, Argument("which", np.int32(which))])
        assert (caught.value.kind, caught.value.line) == (kind, line), caught.value


# ---------------------------------------------------------------------------------------------------
# What the emulator does not have
# ---------------------------------------------------------------------------------------------------
def refused(body: str, head: str = "") -> KernelError:
    text = f'{head}\nextern "C" __global__ void f(float* y) {{\n{body}\n}}\n'
    with pytest.raises(KernelError) as caught:
        emulator.compile(unit(text), "f")
    return caught.value


UNSUPPORTED = [
    ('asm volatile("nanosleep.u32 5;");', "", "inline PTX (asm)", 3),
    ('float x; asm("rcp.approx.f32 %0, %1;" : "=f"(x) : "f"(y[1])); y[0] = x;', "", "inline PTX (asm)", 3),
    ("y[0] = tex1D<float>(0, 1.0f);", "", "textures and surfaces", 3),
    ("y[0] = __fadd_rz(y[1], y[2]);", "", "__fadd_rz", 3),
    ("", 'extern "C" __global__ void __cluster_dims__(2, 1, 1) g() {}', "thread block clusters", 1),
]


@pytest.mark.parametrize(("body", "head", "what", "line"), UNSUPPORTED, ids=lambda v: str(v)[:12])
def test_valid_cuda_that_is_not_there_is_said_to_be_so(body, head, what, line):
    pytest.importorskip("cuda.core")
    error = refused(body, head)
    assert error.kind == "unsupported", error
    assert what in str(error) and "the emulator does not have" in str(error)
    assert "NVRTC compiles it: a GPU can run it" in str(error)
    assert (error.file, error.line) == ("feature.cu", line)


def test_what_nvrtc_refuses_as_well_is_the_users_error():
    pytest.importorskip("cuda.core")
    error = refused('asm volatile("nanosleep.u32 5;");\ny[0] = undeclared;')
    assert (error.kind, error.file, error.line) == ("compile error", "feature.cu", 4)
    assert 'identifier "undeclared" is undefined' in str(error)
    error = refused("__half h = 1.0f; y[0] = h + 1.0f;", "#include <cuda_fp16.h>")
    assert error.kind == "compile error" and 'more than one operator "+"' in str(error)
    assert refused("", "#include <vector>").kind == "compile error"


def test_without_nvrtc_what_is_known_to_be_lacking_is_named(monkeypatch):
    def missing(*_):
        raise MissingExtra("compiling CUDA kernels", "cuda-core", "cuda13")

    monkeypatch.setattr(unsupported, "_refused", missing)
    error = refused('asm volatile("nanosleep.u32 5;");')
    assert error.kind == "unsupported" and "NVRTC" in str(error) and "not installed" in str(error)
    error = refused("y[0] = undeclared;")
    assert (error.kind, error.line) == ("compile error", 3)


# ---------------------------------------------------------------------------------------------------
# Loops that do not end
# ---------------------------------------------------------------------------------------------------
ENDLESS = {
    "arithmetic": "volatile float v = 1; while (v > 0) v = v * 1.5f < 100 ? v * 1.5f : 1;",
    "shared flag": "flag = 0; while (static_cast<volatile int&>(flag) == 0) {}",
    "atomic": "while (atomicAdd(counts, 1) != -2) {}",
    "barriers": "while (true) __syncthreads();",
    "warp": "while (__shfl_xor_sync(0xffffffffu, 1, 1)) {}",
    "clock": "while (clock64() >= 0) {}",
    "printf": 'while (true) printf("again\\n");',
    "output": "for (int i = 0; i >= 0; i = (i + 1) % 64) counts[i] = i;",
}


@CHECK
def test_each_endless_loop_is_stopped_and_the_next_launch_is_well(check, capsys):
    cases = "\n".join(f"case {i}: {{ {body} break; }}" for i, body in enumerate(ENDLESS.values()))
    text = f"""extern "C" __global__ void f(int* counts, int which) {{
__shared__ int flag;
switch (which) {{
{cases}
}}
if (counts) counts[threadIdx.x] = which;
}}"""
    function = emulator.compile(unit(text), "f", check=check)
    for i, name in enumerate(ENDLESS):
        counts = np.zeros(64, np.int32)
        arguments = [Argument("counts", counts, output=True, reads=True), Argument("which", np.int32(i))]
        with pytest.raises(KernelError) as caught:
            function.launch((2,), (32 if name == "warp" else 64,), arguments, timeout=0.05)
        assert caught.value.kind == "timeout", f"{name}: {caught.value}"
        assert not counts.any()
        function.launch((1,), (64,), [arguments[0], Argument("which", np.int32(99))], timeout=60)
        assert (counts == 99).all(), name
    assert re.fullmatch(
        r"(again\n)+(\.\.\. \d+ more bytes of printf's output were dropped\n)?", capsys.readouterr().out
    )
