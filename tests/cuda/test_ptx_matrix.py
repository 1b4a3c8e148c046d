"""mma.sync and ldmatrix: the lanes' elements as the ISA has them, and the two of them together."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from conftest import need
from ptx_texts import header, run

from convkit.cuda.launch import KernelError

need("cuda.core")
pytestmark = pytest.mark.usefixtures("compiler")
LANES = np.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4
DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32}


def places(k: int, each: int) -> tuple[list, list, list]:
    """(row, column) of each element of a, b and c that a lane holds, in the order of the ISA's tables."""
    if (k, each) == (16, 2):
        a = [(GROUP + 8 * (i in (2, 3, 6, 7)), IN_GROUP * 2 + i % 2 + 8 * (i >= 4)) for i in range(8)]
        b = [(IN_GROUP * 2 + i % 2 + 8 * (i >= 2), GROUP) for i in range(4)]
    elif (k, each) == (8, 2):
        a = [(GROUP + 8 * (i >= 2), IN_GROUP * 2 + i % 2) for i in range(4)]
        b = [(IN_GROUP * 2 + i, GROUP) for i in range(2)]
    elif (k, each) == (8, 1):
        a = [(GROUP, IN_GROUP), (GROUP + 8, IN_GROUP), (GROUP, IN_GROUP + 4), (GROUP + 8, IN_GROUP + 4)]
        b = [(IN_GROUP, GROUP), (IN_GROUP + 4, GROUP)]
    else:
        a, b = [(GROUP, IN_GROUP), (GROUP + 8, IN_GROUP)], [(IN_GROUP, GROUP)]
    return a, b, [(GROUP + 8 * (i >= 2), IN_GROUP * 2 + i % 2) for i in range(4)]


def vector(name: str, first: int, count: int) -> str:
    return "{" + ", ".join(f"%{name}{k}" for k in range(first, first + count)) + "}"


@pytest.mark.parametrize(
    ("k", "type_"), [(16, "f16"), (8, "f16"), (16, "bf16"), (8, "bf16"), (8, "tf32"), (4, "tf32")]
)
def test_products(k, type_):
    each = 1 if type_ == "tf32" else 2
    rng = np.random.default_rng(k)
    a = rng.standard_normal((16, k)).astype(DTYPES[type_])
    b = rng.standard_normal((k, 8)).astype(DTYPES[type_])
    c = rng.standard_normal((16, 8)).astype(np.float32)
    in_a, in_b, in_c = places(k, each)
    held = [np.stack([m[rc] for rc in at], axis=1) for m, at in ((a, in_a), (b, in_b), (c, in_c))]
    registers = [np.ascontiguousarray(h).view(np.uint32) for h in held]
    na, nb = registers[0].shape[1], registers[1].shape[1]
    loads = [
        f"mul.lo.u32 %n, %t, {4 * count}; cvt.u64.u32 %a, %n; add.u64 %a, %a, %p{p};"
        + " ".join(f"ld.global.b32 %{name}{j}, [%a+{4 * j}];" for j in range(count))
        for p, (name, count) in enumerate((("ra", na), ("rb", nb), ("c", 4)))
    ]
    text = f"""{header("p0", "p1", "p2")}
    .reg .b64 %a, %p<3>; .reg .b32 %n, %t, %ra<4>, %rb<2>; .reg .f32 %c<4>;
    ld.param.u64 %p0, [p0]; ld.param.u64 %p1, [p1]; ld.param.u64 %p2, [p2]; mov.u32 %t, %tid.x;
    {" ".join(loads)}
    mma.sync.aligned.m16n8k{k}.row.col.f32.{type_}.{type_}.f32 {vector("c", 0, 4)}, {vector("ra", 0, na)},
      {vector("rb", 0, nb) if nb > 1 else "{%rb0}"}, {vector("c", 0, 4)};
    {" ".join(f"st.global.b32 [%a+{4 * j}], %c{j};" for j in range(4))} ret; }}"""
    run(text, *registers)
    found = np.zeros((16, 8), np.float32)
    for j, rc in enumerate(in_c):
        found[rc] = registers[2].view(np.float32)[:, j]
    if type_ == "tf32":  # ten bits of mantissa count
        a, b = ((m.view(np.uint32) & 0xFFFFE000).view(np.float32) for m in (a, b))
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    bound = 2.0**-23 * k * (np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)) + np.abs(c))
    assert (np.abs(found - exact) <= bound).all()
    assert (found != exact.astype(np.float32)).any(), "no more is promised than single precision"


#: A product of matrices that lie in shared memory by rows: what ldmatrix brings, mma takes.
TOGETHER = """ .reg .b64 %p<3>, %a<4>; .reg .b32 %t, %r<12>, %ra<4>, %rb<2>; .reg .f32 %c<4>;
.shared .align 16 .b8 as[512]; .shared .align 16 .b8 bs[256];
ld.param.u64 %p0, [p0]; ld.param.u64 %p1, [p1]; ld.param.u64 %p2, [p2]; mov.u32 %t, %tid.x;
// Lane l copies 16 bytes of a, and 8 of b.
mul.wide.u32 %a0, %t, 16; add.u64 %a1, %p0, %a0; ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%a1];
mov.u32 %r8, as; mad.lo.u32 %r8, %t, 16, %r8; st.shared.v4.b32 [%r8], {%r0, %r1, %r2, %r3};
mul.wide.u32 %a0, %t, 8; add.u64 %a1, %p1, %a0; ld.global.v2.b32 {%r0, %r1}, [%a1];
mov.u32 %r8, bs; mad.lo.u32 %r8, %t, 8, %r8; st.shared.v2.b32 [%r8], {%r0, %r1};
bar.sync 0;
// Of a, rows 0 to 15 by lanes 0 to 15 and again, eight columns on; of b, its 16 rows.
and.b32 %r4, %t, 15; shr.u32 %r5, %t, 4; mul.lo.u32 %r6, %r4, 32; mad.lo.u32 %r6, %r5, 16, %r6;
mov.u32 %r7, as; add.u32 %r7, %r7, %r6;
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%ra0, %ra1, %ra2, %ra3}, [%r7];
mul.lo.u32 %r6, %r4, 16; mov.u32 %r7, bs; add.u32 %r7, %r7, %r6;
ldmatrix.sync.aligned.m8n8.x2TRANS.shared.b16 {%rb0, %rb1}, [%r7];
mov.f32 %c0, 0f00000000; mov.f32 %c1, %c0; mov.f32 %c2, %c0; mov.f32 %c3, %c0;
mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%c0, %c1, %c2, %c3}, {%ra0, %ra1, %ra2, %ra3},
  {%rb0, %rb1}, {%c0, %c1, %c2, %c3};
shr.u32 %r4, %t, 2; and.b32 %r5, %t, 3; mul.lo.u32 %r6, %r4, 32; mad.lo.u32 %r6, %r5, 8, %r6;
cvt.u64.u32 %a2, %r6; add.u64 %a2, %a2, %p2;
st.global.v2.f32 [%a2], {%c0, %c1}; st.global.v2.f32 [%a2+256], {%c2, %c3}; ret; }"""


def product(trans: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((16, 8)).astype(np.float16)
    c = np.zeros((16, 8), np.float32)
    run(header("p0", "p1", "p2") + TOGETHER.replace("TRANS", trans), a, b, c, outputs=(2,))
    return c, a.astype(np.float64) @ b.astype(np.float64)


def test_what_is_loaded_is_multiplied():
    found, exact = product(".trans")
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_a_missing_trans_shows():
    found, exact = product("")
    assert np.abs(found - exact).max() > 0.1


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_loads_of_matrices(count, trans):
    data = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    out = np.zeros((32, count), np.uint32)
    fill = " ".join(
        f"ld.global.b32 %r0, [%p0+{4 * k}]; st.shared.b32 [there+{4 * k}], %r0;" for k in range(32 * count)
    )
    text = f"""{header("p0", "p1")} .reg .b64 %p<2>, %a; .reg .b32 %t, %r<9>, %m<4>;
    .shared .align 16 .b8 there[{128 * count}];
    ld.param.u64 %p0, [p0]; ld.param.u64 %p1, [p1]; mov.u32 %t, %tid.x; {fill}
    rem.u32 %r1, %t, {8 * count}; mov.u32 %r2, there; mad.lo.u32 %r2, %r1, 16, %r2;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {vector("m", 0, count)}, [%r2];
    mul.wide.u32 %a, %t, {4 * count}; add.u64 %a, %a, %p1;
    {" ".join(f"st.global.b32 [%a+{4 * k}], %m{k};" for k in range(count))} ret; }}"""
    run(text, data, out)
    wanted = data.transpose(0, 2, 1) if trans else data
    pairs = np.ascontiguousarray(wanted).view(np.uint32).reshape(count, 32)
    np.testing.assert_array_equal(out, pairs.T)


def test_each_lane_takes_part():
    text = header("p0", "p1", "p2") + TOGETHER.replace("TRANS", "").replace(
        "bar.sync 0;", "bar.sync 0; .reg .pred %low; setp.lt.u32 %low, %t, 16; @%low exit;"
    )
    arrays = np.zeros((16, 16), np.float16), np.zeros((16, 8), np.float16), np.zeros((16, 8), np.float32)
    with pytest.raises(KernelError, match="divergent matrix load"):
        run(text, *arrays)


def test_other_shapes_are_refused():
    text = (
        header()
        + ".reg .b32 %r<9>; mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r0}, {%r1}, {%r2}, {%r3}; }"
    )
    with pytest.raises(KernelError, match="the instruction mma.sync.aligned.m8n8k4"):
        run(text)
