"""mma.sync, ldmatrix and cp.async as kernels write them: the emulator and the PTX runner say the same.

Each engine has the fragments' layouts written down for itself, and this file has them a third time, as the
tables of the PTX ISA. Sums of small integers are exact in any order, so that both engines must have NumPy's
bits; how a tensor core may round is the emulator's alone, and is held to exact arithmetic.
"""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from conftest import need
from ptx_texts import run as run_ptx

from convkit.cuda import emulator, nvrtc
from convkit.cuda.launch import Argument, KernelError
from convkit.paths import kernels_dir

need("cuda.core")
pytestmark = pytest.mark.usefixtures("compiler")

DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
TYPES = [*DTYPES, "tf32"]
ENGINES = ["fast", "check", "ptx"]
LANES = np.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4

# Row and column of element i that each lane holds, of a (16 x 16), b (16 x 8) and c (16 x 8).
IN_A = [(GROUP + 8 * (i in (2, 3, 6, 7)), IN_GROUP * 2 + i % 2 + 8 * (i >= 4)) for i in range(8)]
IN_B = [(IN_GROUP * 2 + i % 2 + 8 * (i >= 2), GROUP) for i in range(4)]
# The same of a (16 x 8) and b (8 x 8) of tf32.
IN_A_TF32 = [(GROUP + 8 * (i % 2), IN_GROUP + 4 * (i // 2)) for i in range(4)]
IN_B_TF32 = [(IN_GROUP + 4 * i, GROUP) for i in range(2)]
IN_C = [(GROUP + 8 * (i >= 2), IN_GROUP * 2 + i % 2) for i in range(4)]


def run(text: str, engine: str, *arrays: np.ndarray, seed: int | None = None, edit=lambda text: text) -> None:
    """One warp runs the kernel `k` of the text; the last array is its output."""
    unit = f'#include "convkit.cuh"\n#line 1 "matrix.cu"\n{edit(text)}'
    if engine == "ptx":
        ptx = nvrtc.cached_ptx(unit, "sm_80", include=(kernels_dir(),), name="k")
        run_ptx(ptx, *arrays, outputs=(len(arrays) - 1,), seed=seed)
        return
    arguments = [Argument(f"x{i}", array) for i, array in enumerate(arrays[:-1])]
    arguments.append(Argument("y", arrays[-1], output=True))
    emulator.compile(unit, "k", check=engine == "check").launch((1,), (32,), arguments, seed=seed)


def fragments(matrix: np.ndarray, places: list) -> np.ndarray:
    """The registers of each lane."""
    return np.ascontiguousarray(np.stack([matrix[at] for at in places], axis=1)).view(np.uint32)


def whole(number: np.random.Generator, *shape: int) -> np.ndarray:
    return number.integers(-8, 9, shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------
# mma.sync
# ---------------------------------------------------------------------------------------------------
MULTIPLY = """
extern "C" __global__ void k(const unsigned* a, const unsigned* b, const float* c, const int* type,
                             float* d) {
  const unsigned l = threadIdx.x;
  const unsigned of_a[4] = {a[4 * l], a[4 * l + 1], a[4 * l + 2], a[4 * l + 3]};
  float sum[4] = {c[4 * l], c[4 * l + 1], c[4 * l + 2], c[4 * l + 3]};
  if (*type == 2)
    mma_m16n8k8_tf32(sum, of_a, b[2 * l], b[2 * l + 1]);
  else if (*type == 1)
    mma_m16n8k16_bf16(sum, of_a, b[2 * l], b[2 * l + 1]);
  else
    mma_m16n8k16_f16(sum, of_a, b[2 * l], b[2 * l + 1]);
  for (int i = 0; i < 4; ++i) d[4 * l + i] = sum[i];
}
"""


def multiply(engine: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, **options) -> np.ndarray:
    """c + a b"""
    tf32 = a.dtype == np.float32
    of_a, of_b = fragments(a, IN_A_TF32 if tf32 else IN_A), fragments(b, IN_B_TF32 if tf32 else IN_B)
    kind = np.array([2 if tf32 else a.dtype != np.float16], np.int32)
    d, found = np.empty((32, 4), np.float32), np.empty((16, 8), np.float32)
    run(MULTIPLY, engine, of_a, of_b, fragments(c, IN_C).view(np.float32), kind, d, **options)
    for i, at in enumerate(IN_C):
        found[at] = d[:, i]
    return found


def factors(number: np.random.Generator, name: str, draw, *spread: np.ndarray) -> tuple:
    """a and b of a type, with as many k as its product has; in tf32, ten bits of mantissa."""
    k = 8 if name == "tf32" else 16
    a, b = draw(number, 16, k), draw(number, k, 8)
    if spread:
        a, b = a * spread[0][:, :k], b * spread[1][:k, :8]
    if name != "tf32":
        return a.astype(DTYPES[name]), b.astype(DTYPES[name])
    return tuple((m.astype(np.float32).view(np.uint32) & 0xFFFFE000).view(np.float32) for m in (a, b))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TYPES)
def test_the_fragments_are_those_of_the_isa(name, engine):
    number = np.random.default_rng(0)
    (a, b), c = factors(number, name, whole), whole(number, 16, 8)
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    for seed in (None, 1):
        found = multiply(engine, a, b, c, seed=seed)
        assert found.tobytes() == exact.astype(np.float32).tobytes()


def cut(value: Fraction) -> Fraction:
    """To single precision, toward zero."""
    if value == 0:
        return value
    unit = Fraction(2) ** max(exponent(value) - 23, -149)
    return int(value / unit) * unit


def exponent(value: Fraction) -> int:
    """Of the largest power of two that is no larger than the value's magnitude."""
    found = abs(value).numerator.bit_length() - value.denominator.bit_length()
    return found if Fraction(2) ** found <= abs(value) else found - 1


def tensor_core(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a b, as a coarse tensor core has it: 4 products at a time, cut where the largest addend ends."""
    found = np.empty(c.shape, np.float32)
    for m, n in np.ndindex(c.shape):
        total = Fraction(float(c[m, n]))
        products = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[m], b[:, n])]
        for k in range(0, len(products), 4):
            addends = [total, *products[k : k + 4]]
            largest = max(map(abs, addends))
            unit = Fraction(2) ** (exponent(largest) - 23) if largest else Fraction(1)
            total = cut(sum(int(x / unit) for x in addends) * unit)
        found[m, n] = float(total)
    return found


ROUND = """
extern "C" __global__ void k(const float* x, unsigned* y) {
  for (int i = threadIdx.x; i < 4096; i += 32) y[i] = to_tf32(x[i]);
}
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_rounding_to_tf32(engine):
    """To the nearest, ties away from zero; against sums in float64 that no bit is taken from."""
    number = np.random.default_rng(0)
    bits = number.integers(0, 1 << 32, 4096, dtype=np.uint32)
    bits[::4] = bits[::4] & 0xFFFFE000 | 0x1000  # halfway
    bits[:6] = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00001000]
    x, y = bits.view(np.float32), np.zeros(4096, np.uint32)
    run(ROUND, engine, x, y)
    finite = np.isfinite(x)
    unit = np.exp2(np.maximum(np.frexp(x[finite].astype(np.float64))[1] - 1, -126) - 10)
    size = np.floor(np.abs(x[finite].astype(np.float64)) / unit + 0.5) * unit
    with np.errstate(over="ignore"):
        wanted = np.copysign(size, x[finite]).astype(np.float32)
    assert wanted.tobytes() == y.view(np.float32)[finite].tobytes()
    assert np.array_equal(np.isnan(x), np.isnan(y.view(np.float32)))
    assert np.array_equal(x[np.isinf(x)], y.view(np.float32)[np.isinf(x)])


@pytest.mark.parametrize("spread", [0, 6, 40])
@pytest.mark.parametrize("name", TYPES)
def test_the_emulator_rounds_as_a_coarse_tensor_core(name, spread):
    number = np.random.default_rng(spread)
    scale = 2.0 ** number.uniform(-spread, 0 if name == "f16" else spread, (2, 16, 16))
    a, b = factors(number, name, lambda number, *shape: number.standard_normal(shape), *scale)
    c = number.standard_normal((16, 8)).astype(np.float32)
    c[:2] = 0
    found = multiply("fast", a, b, c)
    assert found.tobytes() == tensor_core(a, b, c).tobytes()
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    sizes = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)) + np.abs(c)
    assert (np.abs(found - exact) <= 4 * 6 * 2.0**-23 * sizes).all()
    assert (found != exact.astype(np.float32)).any(), "no tensor core is as good as that"


def test_small_products_are_lost_and_tiny_ones_are_not():
    a, b, c = np.zeros((16, 16), np.float16), np.zeros((16, 8), np.float16), np.zeros((16, 8), np.float32)
    b[:], c[0] = 1, 1
    a[:2] = 2.0**-24  # a subnormal number
    found = multiply("fast", a, b, c)
    assert (found[0] == 1).all()  # the sum is 1 + 2^-20
    assert (found[1] == 2.0**-20).all()


def test_a_subnormal_sum_is_cut():
    a, b = np.zeros((16, 16), DTYPES["bf16"]), np.zeros((16, 8), DTYPES["bf16"])
    a[:, 0], b[0] = 2.0**-75, 1.75 * 2.0**-74  # 1.75 units of the last place that there is
    found = multiply("fast", a, b, np.zeros((16, 8), np.float32))
    assert (found == np.float32(2.0**-149)).all()


@pytest.mark.parametrize("engine", ["fast", "check"])
def test_what_is_not_finite(engine):
    a, b = np.ones((16, 16), DTYPES["bf16"]), np.ones((16, 8), DTYPES["bf16"])
    c = np.ones((16, 8), np.float32)
    a[1, 3] = np.inf
    a[2, 3] = np.nan
    a[3, 2:4] = np.inf, -np.inf
    a[4, 5], b[5] = np.inf, 0
    c[5] = -np.inf
    a[6], c[6] = 2.0**127, 2.0**127
    found = multiply(engine, a, b, c)
    assert (found[0] == 16).all() and (found[1] == np.inf).all() and (found[5] == -np.inf).all()
    assert (found[2:5].view(np.uint32) == 0x7FFFFFFF).all()
    assert (found[6] == np.inf).all()


# ---------------------------------------------------------------------------------------------------
# ldmatrix
# ---------------------------------------------------------------------------------------------------
LOADS = """
template <int COUNT, bool TRANS>
__device__ void load(const unsigned short (*rows)[8], unsigned* y) {
  unsigned m[COUNT];
  const void* row = rows[threadIdx.x % (8 * COUNT)];
  if (TRANS) ldmatrix_trans(m, row); else ldmatrix(m, row);
  for (int i = 0; i < COUNT; ++i) y[COUNT * threadIdx.x + i] = m[i];
}
extern "C" __global__ void k(const unsigned* x, unsigned* y) {
  __shared__ __align__(16) unsigned short rows[32][8];
  for (int i = 0; i < 4; ++i) reinterpret_cast<unsigned*>(rows)[4 * threadIdx.x + i] = x[4 * threadIdx.x + i];
  __syncwarp();
  load<1, false>(rows, y); load<1, true>(rows, y + 32);
  load<2, false>(rows, y + 64); load<2, true>(rows, y + 128);
  load<4, false>(rows, y + 192); load<4, true>(rows, y + 320);
}
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_each_way_to_load_matrices(engine):
    x, y = np.arange(256, dtype=np.uint16).reshape(4, 8, 8), np.zeros(448, np.uint32)
    run(LOADS, engine, x, y)
    first = 0
    for count in (1, 2, 4):
        for wanted in (x[:count], x[:count].transpose(0, 2, 1)):
            pairs = np.ascontiguousarray(wanted).view(np.uint32).reshape(count, 32)
            np.testing.assert_array_equal(y[first : first + 32 * count].reshape(32, count), pairs.T)
            first += 32 * count


# ---------------------------------------------------------------------------------------------------
# Together: copies, loads, products
# ---------------------------------------------------------------------------------------------------
#: d = a b for a of 16 x 48, b of 48 x 8, both by rows: in steps of 16, whose copies are a step ahead. Rows of
#: a lie 16 bytes further apart in shared memory than they are long, against bank conflicts.
PRODUCT = """
extern "C" __global__ void k(const unsigned short* a, const unsigned short* b, float* d) {
  constexpr int STEPS = 3, K = 16 * STEPS;
  __shared__ __align__(16) unsigned short as[2][16][24], bs[2][16][8];
  const int l = threadIdx.x, g = l / 4, t = l % 4 * 2;
  const auto fetch = [&](int step) {
    if (step < STEPS) {
      cp_async_16(&as[step % 2][l / 2][l % 2 * 8], a + l / 2 * K + step * 16 + l % 2 * 8);
      if (l < 16) cp_async_16(bs[step % 2][l], b + (step * 16 + l) * 8);
    }
    cp_async_commit();
  };
  float sum[4] = {};
  fetch(0);
  for (int step = 0; step < STEPS; ++step) {
    fetch(step + 1);
    cp_async_wait<1>();
    __syncthreads();
    unsigned of_a[4], of_b[2];
    ldmatrix(of_a, &as[step % 2][l % 16][l / 16 * 8]);
    ldmatrix_trans(of_b, bs[step % 2][l % 16]);
    mma_m16n8k16_f16(sum, of_a, of_b[0], of_b[1]);
    __syncthreads();
  }
  d[g * 8 + t] = sum[0];
  d[g * 8 + t + 1] = sum[1];
  d[(g + 8) * 8 + t] = sum[2];
  d[(g + 8) * 8 + t + 1] = sum[3];
}
"""


def product(engine: str, **options) -> tuple[bytes, bytes]:
    number = np.random.default_rng(2)
    a, b = whole(number, 16, 48).astype(np.float16), whole(number, 48, 8).astype(np.float16)
    d = np.full((16, 8), np.nan, np.float32)
    run(PRODUCT, engine, a.view(np.uint16), b.view(np.uint16), d, **options)
    return d.tobytes(), (a.astype(np.float32) @ b.astype(np.float32)).tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_copied_and_loaded_is_multiplied(engine):
    for seed in (None, 1, 2):
        found, exact = product(engine, seed=seed)
        assert found == exact, f"seed {seed}"


MISREADINGS = {
    "a transposed": ("ldmatrix(of_a", "ldmatrix_trans(of_a"),
    "b not transposed": ("ldmatrix_trans(of_b", "ldmatrix(of_b"),
    "quarters of a by columns": (
        "[l % 16][l / 16 * 8]",
        "[l % 8 + l / 16 * 8][l / 8 % 2 * 8]",
    ),
    "halves of b exchanged": ("of_b[0], of_b[1]", "of_b[1], of_b[0]"),
    "sums by columns": ("d[g * 8 + t + 1] = sum[1]", "d[(g + 8) * 8 + t] = sum[1]"),
    "bfloat16": ("mma_m16n8k16_f16", "mma_m16n8k16_bf16"),
    "lanes by columns": ("g = l / 4, t = l % 4 * 2", "g = l % 8, t = l / 8 * 2"),
    "a group too many in flight": ("cp_async_wait<1>", "cp_async_wait<2>"),
}


@pytest.mark.parametrize("engine", ["fast", "ptx"])
@pytest.mark.parametrize("name", MISREADINGS)
def test_a_misreading_shows(name, engine):
    old, new = MISREADINGS[name]
    assert PRODUCT.count(old) == 1
    found, exact = product(engine, edit=lambda text: text.replace(old, new))
    assert found != exact


@pytest.mark.parametrize(
    ("old", "kind"),
    [
        ("cp_async_wait<1>();", "write in flight"),
        ("cp_async_wait<1>();\n    __syncthreads();", "write in flight"),
        ("__syncthreads();\n    unsigned", "race"),
        ("__syncthreads();\n  }", "race"),
    ],
)
def test_check_mode_watches_them(old, kind):
    new = "unsigned" if old.endswith("unsigned") else "}" if old.endswith("}") else ""
    assert PRODUCT.count(old) == 1
    with pytest.raises(KernelError) as caught:
        product("check", edit=lambda text: text.replace(old, new))
    assert caught.value.kind == kind
    assert caught.value.file == "matrix.cu" and caught.value.line


# ---------------------------------------------------------------------------------------------------
# Counters
# ---------------------------------------------------------------------------------------------------
#: 8 rows of 128 bytes, and the place of chunk `c` of row `r` among the 16-byte chunks.
CHUNKS = """
extern "C" __global__ void k(const float* x, unsigned* y) {
  __shared__ __align__(128) float rows[8 * 8 * 4];
  const int l = threadIdx.x;
  const auto at = [&](int r, int c) { return rows + (PLACE) * 4; };
  cp_async_16(at(l % 8, l / 8), x + l * 4);
  cp_async_16(at(l % 8, l / 8 + 4), x + l * 4);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  unsigned m[4];
  ldmatrix(m, at(l % 8, l / 8));
  y[l] = m[0] + m[1] + m[2] + m[3];
}
"""


@pytest.mark.parametrize(("place", "wavefronts"), [("r * 8 + c", 8), ("r * 8 + (c ^ r)", 1)])
def test_counters_of_bank_conflicts(place, wavefronts):
    unit = f'#include "convkit.cuh"\n#line 1 "matrix.cu"\n{CHUNKS.replace("PLACE", place)}'
    function = emulator.compile(unit, "k", check=True)
    y = np.zeros(32, np.uint32)
    arguments = [Argument("x", np.zeros(128, np.float32)), Argument("y", y, output=True)]
    function.launch((1,), (32,), arguments, counters=True)
    found = {(r.file, r.line, r.kind): (r.accesses, r.actual, r.ideal) for r in function.counters()}
    lines = CHUNKS.splitlines()
    copy = next(i for i, text in enumerate(lines, 1) if "cp_async_16" in text)
    load = next(i for i, text in enumerate(lines, 1) if "ldmatrix" in text)
    assert found["matrix.cu", copy, "global load"] == (1, 16, 16)
    assert found["matrix.cu", copy, "shared store"] == (1, 4 * wavefronts, 4)
    assert found["matrix.cu", load, "shared load"] == (1, 4 * wavefronts, 4)
