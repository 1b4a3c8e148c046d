"""Division by numbers that the host knows: the arithmetic, and its way into a kernel."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import need
from hypothesis import given
from hypothesis import strategies as st

import convkit as ck
from convkit.cuda import dividers, emulator, nvrtc
from convkit.cuda.header import read
from convkit.cuda.launch import Argument
from convkit.cuda.null import nulled
from convkit.cuda.prepare import Runner
from convkit.cuda.source import translation_unit
from convkit.errors import OptionError
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.paths import kernels_dir

LARGEST = {32: 2**31 - 1, 64: 2**63 - 1}

#: Quotient and remainder of n[i] by divider i, in 32 bits where both fit, and in 64 bits.
KERNEL = """
#include "divider.cuh"
extern "C" __global__ void divide(const Divider* by, const long long* n, long long* out, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= size) return;
  out[4 * i] = n[i] / by[i];
  out[4 * i + 1] = n[i] % by[i];
  out[4 * i + 2] = out[4 * i + 3] = -1;
  if (n[i] < 2147483648 && by[i].divisor < 2147483648) {
    const unsigned u = static_cast<unsigned>(n[i]);
    const int s = static_cast<int>(u);
    out[4 * i + 2] = u / by[i];
    out[4 * i + 3] = u % by[i];
    if (s / by[i] != u / by[i] || s % by[i] != static_cast<int>(u % by[i])) out[4 * i + 2] = -2;
  }
}
"""

#: Rows by a division, so that the result says whether the divider is right.
MINE = """// conv2d_bgrad_mine
// /// kernel
// op = "conv2d_bgrad"
// tile = { THREADS = 64 }
// grid = ["ceil_div(K, THREADS)"]
// block = ["THREADS"]
// rank = -90
// let = { PIXELS = "P*Q" }
// dividers = { by_pixels = "PIXELS", by_Q = "Q" }
// ///
template <class Geometry>
__device__ long long element(const Geometry& g, long long i, int k) {
  const long long n = i / g.by_pixels, p = i % g.by_pixels / g.by_Q, q = i % g.by_Q;
  return ((n * g.K + k) * g.P + p) * g.Q + q;
}
extern "C" __global__ void conv2d_bgrad_mine(GEOMETRY(ChannelSum), const float* dy, float* db) {
  const int k = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (k >= g.K) return;
  float sum = 0;
  for (long long i = 0; i < g.N * g.by_pixels.divisor; ++i) sum += dy[element(g, i, k)];
  db[k] = sum;
}
"""


def edges(divisor: int, largest: int) -> list[int]:
    """Numerators around multiples of the divisor, the first and the last, and around powers of two."""
    last = largest // divisor * divisor
    some = {0, 1, largest, largest - 1, 2**16, 2**30, 2**31 - 1, last - 1, last, last + 1}
    some |= {m * divisor + off for m in (1, 2, 3, largest // divisor // 2) for off in (-1, 0, 1)}
    return sorted(n for n in some if 0 <= n <= largest)


def assert_exact(pairs: list[tuple[int, int]]) -> None:
    """Divides on the emulator, and compares with Python's integers."""
    by = np.array([dividers.divider(d) for _, d in pairs], dividers.DIVIDER)
    numerators = np.array([n for n, _ in pairs], np.int64)
    out = np.zeros((len(pairs), 4), np.int64)
    arguments = [Argument("by", by.view(np.uint8)), Argument("n", numerators)]
    arguments += [Argument("out", out, output=True), Argument("size", np.int32(len(pairs)))]
    emulator.compile(KERNEL, "divide").launch((-(-len(pairs) // 256),), (256,), arguments)
    for (n, d), (quotient, rest, quotient_32, rest_32) in zip(pairs, out.tolist()):
        assert (quotient, rest) == divmod(n, d), f"{n} by {d}"
        if max(n, d) <= LARGEST[32]:
            assert (quotient_32, rest_32) == divmod(n, d), f"{n} by {d} in 32 bits"


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("bits", LARGEST)
def test_every_small_divisor_at_the_edges(bits):
    assert_exact([(n, d) for d in range(1, 4097) for n in edges(d, LARGEST[bits])])


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("bits", LARGEST)
def test_large_divisors_at_the_edges(bits):
    largest = LARGEST[bits]
    divisors = {largest, largest - 1, largest // 2, largest // 2 + 1, largest // 3}
    divisors |= {2**e + off for e in range(12, bits - 1) for off in (-1, 0, 1)}
    assert_exact([(n, d) for d in sorted(divisors) for n in edges(d, largest)])


@pytest.mark.usefixtures("compiler")
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(1, 2**63 - 1)), min_size=1, max_size=50))
def test_random_numbers_of_64_bits(pairs):
    assert_exact(pairs)


@pytest.mark.usefixtures("compiler")
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1)), min_size=1, max_size=50))
def test_random_numbers_of_32_bits(pairs):
    assert_exact(pairs)


def test_the_largest_numerator_proves_the_multiplier():
    """The bound of divider.cuh: multiplier * d exceeds 2^(63 + shift) by less than 2^shift."""
    for d in (*range(1, 3000), 2**31 - 1, 2**31, 2**31 + 1, 2**62 + 1, 2**63 - 1):
        _, multiplier, multiplier_32, shift = dividers.divider(d)
        assert 2**shift >= d > 2**shift // 2
        assert 0 <= multiplier * d - 2 ** (63 + shift) < 2**shift and multiplier < 2**64
        if d < 2**31:
            assert 0 <= multiplier_32 * d - 2 ** (31 + shift) < 2**shift and multiplier_32 < 2**32
        else:
            assert multiplier_32 == 0


@pytest.mark.parametrize("divisor", [0, -1, 2**63])
def test_what_is_no_divisor(divisor):
    with pytest.raises(OptionError, match=f"not {divisor}"):
        dividers.divider(divisor)


# ---------------------------------------------------------------------------------------------------
# A user's kernel
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def mine(tmp_path):
    def write(*changes: tuple[str, str]):
        text = MINE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "conv2d_bgrad_mine.cu"
        path.write_text(text)
        return path

    return write


CONSTANT = ("rank = -90", 'rank = -90\n// geometry = "constexpr"')


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("changes", [(), (CONSTANT,)], ids=["argument", "constexpr"])
@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
def test_a_kernel_with_dividers(mine, changes, check):
    runner = Runner(read(mine(*changes)))
    dy = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
    db = np.full(3, np.nan, np.float32)
    with ck.emulate(check=check):
        runner(ChannelSum.of(dy.shape, 4), dy, db)
    np.testing.assert_array_equal(db, dy.sum((0, 2, 3)))


@pytest.mark.parametrize("changes", [(), (CONSTANT,)], ids=["argument", "constexpr"])
def test_nvrtc_compiles_a_kernel_with_dividers(mine, changes):
    need("cuda.core")
    kernel = read(mine(*changes))
    unit = translation_unit(kernel, ChannelSum.of((2, 3, 5, 7), 4))
    cubin = nvrtc.compile_cubin(unit, "sm_90a", include=(kernel.path.parent,))
    assert cubin.resources()["conv2d_bgrad_mine"].spill_bytes == 0


def test_launches_receive_the_dividers(mine):
    """By value, behind the problem's numbers: on every executor the same struct."""
    seen = []
    problem = ChannelSum.of((2, 3, 5, 7), 4)
    with nulled(lambda grid, block, arguments, shared: seen.append(arguments[0])):
        Runner(read(mine()))(problem, np.zeros((2, 3, 5, 7), np.float32), np.zeros(3, np.float32))
    (struct,) = seen
    assert [struct[name] for name in problem.struct().dtype.names] == list(problem.struct()[0])
    assert tuple(struct["by_pixels"]) == dividers.divider(35)
    assert tuple(struct["by_Q"]) == dividers.divider(7)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "problem", [Conv2d.of((1, 4, 5, 6), (2, 2, 3, 3), groups=2), Elementwise((3, 4))], ids=str
)
def test_the_struct_in_c_is_the_struct_in_numpy(problem, mine, tmp_path):
    """Offsets, size and values, read back by C++."""
    import ctypes
    import subprocess

    header = read(mine(('"PIXELS", by_Q = "Q"', '"12", by_Q = "5"'), ('"P*Q"', '"1"'))).header
    struct, kind = dividers.struct(header, problem), f"Divided<{type(problem).__name__}>"
    parts = [(f"g->{name}", float(struct[name])) for name in problem.struct().dtype.names]
    parts += [
        (f"g->{name}.{part}", float(struct[name][part]))
        for name in header.dividers
        for part in dividers.DIVIDER.names
    ]
    source = tmp_path / "struct.cpp"
    reads = "\n".join(f"out[{i}] = {text};" for i, (text, _) in enumerate(parts))
    shared = (kernels_dir() / "divider.cuh").read_text()
    plain = re.search(r"struct Divider \{.*?\};", shared, re.DOTALL).group()
    declared = dividers.c_struct(header, problem).replace('#include "divider.cuh"', plain)
    source.write_text(
        f'{problem.c_struct()}\n{declared}\nextern "C" int look({kind}* g, double* out) {{\n{reads}\n'
        f"return sizeof({kind}); }}\n"
    )
    library = tmp_path / "struct.so"
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    out = np.zeros(len(parts))
    kept = np.array([struct], struct.dtype)
    size = ctypes.CDLL(str(library)).look(ctypes.c_void_p(kept.ctypes.data), ctypes.c_void_p(out.ctypes.data))
    assert size == struct.dtype.itemsize
    np.testing.assert_array_equal(out, [value for _, value in parts])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('dividers = { by_pixels = "PIXELS", by_Q = "Q" }', "dividers = 3"), "'dividers' must be a table"),
        (('by_Q = "Q"', "by_Q = 7"), "'dividers' must be a table of expressions"),
        (('by_Q = "Q"', 'by_Q = "Q."'), "expression 'Q.' is not valid"),
        (('by_Q = "Q"', 'Q = "Q"'), "'dividers' names 'Q', which is a member of g"),
    ],
)
def test_a_wrong_table_is_refused(mine, change, message):
    with pytest.raises(OptionError, match=message):
        Runner(read(mine(change))).ready(ChannelSum.of((2, 3, 5, 7), 4))


def test_a_divider_of_zero_names_itself(mine):
    with pytest.raises(OptionError, match=r"divider by_Q = 'Q - 7': .*not 0"):
        Runner(read(mine(('by_Q = "Q"', 'by_Q = "Q - 7"')))).ready(ChannelSum.of((2, 3, 5, 7), 4))
