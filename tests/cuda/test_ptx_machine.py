"""The PTX runner's machine: memory, lanes that meet and part, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import need
from ptx_texts import compute, header, run, text_of

from convkit.cuda.launch import KernelError
from convkit.cuda.ptx import library
from convkit.cuda.ptx.executor import program
from convkit.cuda.ptx.parse import number, parse

need("cuda.core")
pytestmark = pytest.mark.usefixtures("compiler")
LANE = np.arange(32)
POISON = 0xFFC1FFC1


def kernel(body: str, parameters: int = 1, declared: str = "") -> str:
    """A kernel with %x0, %x1, ... as its pointers, %t as its thread, and registers to work with."""
    names = [f"p{k}" for k in range(parameters)]
    loads = "\n".join(f"ld.param.u64 %x{k}, [{name}];" for k, name in enumerate(names))
    return f"""{header(*names)}
    .reg .b64 %x<9>, %a<9>; .reg .b32 %r<20>, %t; .reg .f32 %f<9>; .reg .b16 %h<9>; .reg .pred %p<9>;
    {declared}
    {loads}
    mov.u32 %t, %tid.x;
    {body}
    ret;
}}"""


#: Stores %r0 at this thread's place of the last array.
STORE = "mul.wide.u32 %a8, %t, 4; add.s64 %a8, %a8, %x{0}; st.global.u32 [%a8], %r0;"


def lanes(body: str, *, declared: str = "", block: int = 32, **how) -> np.ndarray:
    """What each thread leaves in %r0."""
    out = np.zeros(block, np.uint32)
    run(kernel(body + STORE.format(0), declared=declared), out, block=block, **how)
    return out


def fails(body: str, *arrays: np.ndarray, declared: str = "", block: int = 32, **how) -> KernelError:
    """The error of a kernel, which must have written nothing."""
    arrays = arrays or (np.zeros(block, np.uint32),)
    before = [a.copy() for a in arrays]
    with pytest.raises(KernelError) as caught:
        run(kernel(body, len(arrays), declared), *arrays, block=block, **how)
    for array, old in zip(arrays, before):
        np.testing.assert_array_equal(array, old)
    return caught.value


# ---------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("space", ["global", "generic", "shared", "shared64", "local"])
@pytest.mark.parametrize(
    ("bits", "count"), [(n, k) for n in (8, 16, 32, 64) for k in (1, 2, 4) if n * k <= 128]
)
def test_what_is_stored_is_loaded(space, bits, count):
    """Vectors keep their order, and one element lies behind the other, the lowest byte first."""
    declared = (
        ".shared .align 16 .b8 there[512];"
        if space.startswith("shared")
        else ".local .align 16 .b8 there[16];"
    )
    size, register = bits // 8, f"b{max(bits, 16)}"
    source, target = ([f"%{name}{k}" for k in range(count)] for name in ("from", "to"))
    # Of the input each element, as one; into the space, and from there to the output, as a vector.
    single = [f"ld.global.b{bits} {name}, [%a0+{k * size}];" for k, name in enumerate(source)]
    vector = f".v{count}" if count > 1 else ""
    here, back = (f"{{{', '.join(names)}}}" if count > 1 else names[0] for names in (source, target))
    address = {
        "global": "mov.u64 %a2, %a1;",
        "generic": "mov.u64 %a2, there; cvta.local.u64 %a2, %a2;",
        "shared": f"mov.u32 %r1, there; mad.lo.u32 %r1, %t, {size * count}, %r1;",
        "shared64": f"mov.u64 %a2, there; mul.wide.u32 %a3, %t, {size * count}; add.u64 %a2, %a2, %a3;",
        "local": "mov.u64 %a2, there;",
    }[space]
    where = "%r1" if space == "shared" else "%a2"
    dotted = "" if space == "generic" else f".{space.removesuffix('64')}"
    body = f"""
    mul.wide.u32 %a7, %t, {size * count}; add.u64 %a0, %x0, %a7; add.u64 %a1, %x1, %a7;
    {" ".join(single)} {address}
    st{dotted}{vector}.b{bits} [{where}], {here};
    ld{dotted}{vector}.b{bits} {back}, [{where}];
    st.global{vector}.b{bits} [%a1], {back};"""
    registers = f".reg .{register} {', '.join(source + target)};"
    data = np.random.default_rng(bits).integers(0, 256, 32 * size * count).astype(np.uint8)
    out = np.zeros_like(data)
    run(kernel(body, 2, declared + registers), data, out)
    np.testing.assert_array_equal(out, data)


def test_loads_widen_as_their_type_says():
    data = np.full(32, 0x80C1, np.uint16)
    for type_, expected in {
        "u8": 0xC1,
        "s8": 0xFFFFFFC1,
        "b8": 0xC1,
        "u16": 0x80C1,
        "s16": 0xFFFF80C1,
    }.items():
        out = np.zeros(32, np.uint32)
        body = f"mul.wide.u32 %a0, %t, 2; add.u64 %a0, %a0, %x0; ld.global.{type_} %r0, [%a0];"
        run(kernel(body + STORE.format(1), 2), data, out)
        assert (out == expected).all(), type_


def test_shared_memory_and_registers_begin_as_poison():
    shared = ".shared .align 4 .b8 there[4];"
    assert (lanes("ld.shared.u32 %r0, [there];", declared=shared) == POISON).all()
    assert (lanes("add.u32 %r0, %r7, 0;") == POISON).all()
    assert np.isnan(np.uint32(POISON).view(np.float32)) and np.isnan(np.uint16(0xFFC1).view(np.float16))


def test_blocks_begin_anew():
    """What one block leaves in shared memory or in a register, the next does not find."""
    body = "ld.shared.u32 %r0, [there]; add.u32 %r0, %r0, %r7; st.shared.u32 [there], 5; mov.u32 %r7, 5;"
    out = lanes(body, declared=".shared .align 4 .b8 there[4];", grid=3)
    assert (out == POISON * 2 % 2**32).all()


def test_variables_of_the_module():
    text = kernel("mov.u64 %a0, table; mul.wide.u32 %a1, %t, 2; add.u64 %a0, %a0, %a1;"
                  "ld.const.u16 %r0, [%a0];" + STORE.format(0))  # fmt: skip
    values = ", ".join(str(7 * k) for k in range(32))
    text = text.replace(".visible", f".const .align 2 .u16 table[32] = {{{values}}};\n.visible")
    out = np.zeros(32, np.uint32)
    run(text, out)
    np.testing.assert_array_equal(out, 7 * LANE)


def test_parameters_may_be_addressed():
    text = kernel(
        "mov.b64 %a0, p0; ld.param.u64 %a1, [%a0]; setp.eq.u64 %p0, %a1, %x0; selp.u32 %r0, 1, 0, %p0;"
    )
    out = np.zeros(32, np.uint32)
    run(text.replace("ret;", STORE.format(0) + "ret;"), out)
    assert out.all()


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("st.global.u32 [%x0+128], %t;", "out of bounds", "writes 4 bytes of a0 (uint32[32]), just past"),
        ("ld.global.u32 %r0, [%x0+-4];", "out of bounds", "reads 4 bytes of a0 (uint32[32]), 4 bytes before"),
        ("ld.global.v2.u32 {%r0, %r1}, [%x0+124];", "misaligned access", "reads 8 bytes of a0"),
        ("ld.global.v2.u32 {%r0, %r1}, [%x0+128];", "out of bounds", "just past its end"),
        ("mov.u64 %a0, 64; ld.global.u32 %r0, [%a0];", "null pointer", "no argument was None"),
        ("ld.shared.u32 %r0, [there+64];", "out of bounds", "reads 4 bytes of shared memory, at byte 64"),
        ("ld.shared.u16 %h0, [there+3];", "misaligned access", "at byte 3"),
        ("mov.u64 %a0, own; ld.local.u32 %r0, [%a0+8];", "out of bounds", "of local memory"),
        ("mov.u64 %a0, p0; ld.param.u64 %a1, [%a0+8];", "out of bounds", "of the parameters, at byte 8"),
        ("mov.u64 %a0, 1; shl.b64 %a0, %a0, 60; ld.u32 %r0, [%a0];", "wild access", "at address 0x1000"),
        ("trap;", "trap", "gives up"),
    ],
)  # fmt: skip
def test_stray_accesses(body, kind, words):
    declared = ".shared .align 4 .b8 there[64]; .shared .align 4 .b8 behind[64]; .local .align 4 .b8 own[8];"
    error = fails(body, declared=declared)
    assert error.kind == kind and words in str(error) and "of the PTX)" in str(error), str(error)
    assert error.thread == (0, 0, 0) and error.block == (0, 0, 0)


def test_an_input_is_not_written():
    error = fails("st.global.u32 [%x0], %t;", np.zeros(4, np.uint32), outputs=())
    assert error.kind == "write to an input" and error.argument == "a0"


def test_arrays_that_are_one_stay_one():
    """An output in an input's place, and one that overlaps it."""
    base = np.arange(40, dtype=np.uint32)
    body = "mul.wide.u32 %a0, %t, 4; add.u64 %a1, %a0, %x0; add.u64 %a2, %a0, %x1;" \
           "st.global.u32 [%a2], 9; ld.global.u32 %r0, [%a1]; st.global.u32 [%a1], %r0;"  # fmt: skip
    run(kernel(body, 2), base[:32], base[8:])
    np.testing.assert_array_equal(base, [*range(8), *[9] * 32])


@pytest.mark.parametrize("shift", [0, 4, 8, 12])
def test_alignment_is_that_of_the_array(shift):
    """Of an array that begins at a multiple of 16, of 256 as on a GPU."""
    room = np.zeros(1024, np.uint8)
    first = -room.ctypes.data % 16 + shift
    out = room[first : first + 128].view(np.uint32)
    run(kernel("cvt.u32.u64 %r0, %x0; and.b32 %r0, %r0, 255;" + STORE.format(0)), out)
    assert (out == shift).all()


@pytest.mark.parametrize(
    ("operation", "type_", "first", "given", "last"),
    [
        ("add", "u32", 5, [3] * 32, 101), ("min", "s32", 5, LANE - 16, -16), ("max", "u32", 5, LANE, 31),
        ("exch", "b32", 5, LANE, 31), ("and", "b32", 255, LANE | 64, 64), ("or", "b32", 32, LANE, 63),
        ("xor", "b32", 0, LANE, 0), ("inc", "u32", 0, [9] * 32, 2), ("dec", "u32", 1, [9] * 32, 9),
        ("add", "s64", 2**40, [1] * 32, 2**40 + 32), ("add", "u64", 1, LANE, 497),
    ],
)  # fmt: skip
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(operation, type_, first, given, last, space):
    size = int(type_[1:]) // 8
    dtype = f"{'i' if type_[0] == 's' else 'u'}{size}"
    register = f".reg .b{8 * size} %v, %w; .shared .align 8 .b8 there[8];"
    at = "%x0" if space == "global" else "there"
    begin = (
        "" if space == "global" else f"ld.global.b{8 * size} %w, [%x0]; st.shared.b{8 * size} [there], %w;"
    )
    end = "" if space == "global" else f"ld.shared.b{8 * size} %w, [there]; st.global.b{8 * size} [%x0], %w;"
    body = f"""{begin} mul.wide.u32 %a0, %t, {size}; add.u64 %a0, %a0, %x1; ld.global.b{8 * size} %v, [%a0];
    atom.{space}.{operation}.{type_} %w, [{at}], %v; st.global.b{8 * size} [%a0], %w; bar.sync 0; {end}"""
    cell, values = np.array([first], dtype), np.array(given, dtype)
    run(kernel(body, 2, register), cell, values)
    assert cell[0] == last and values[0] == first  # the lanes come in their order, and get what was there


def test_atomic_floats_and_compare_and_swap():
    cell = np.float32([1])
    run(kernel("cvt.rn.f32.u32 %f0, %t; red.global.add.f32 [%x0], %f0;"), cell)
    assert cell[0] == 497
    cell = np.uint32([0])
    run(kernel("add.u32 %r1, %t, 1; atom.global.cas.b32 %r0, [%x0], %t, %r1;"), cell)
    assert cell[0] == 32


# ---------------------------------------------------------------------------------------------------
# Copies that go on beside the thread
# ---------------------------------------------------------------------------------------------------
COPY = """mul.wide.u32 %a0, %t, 4; add.u64 %a0, %a0, %x0; shl.b32 %r1, %t, 2; mov.u32 %r2, there;
add.u32 %r1, %r1, %r2; cp.async.ca.shared.global [%r1], [%a0], 4; cp.async.commit_group;
cp.async.ca.shared.global [%r1+128], [%a0], 4, 2; cp.async.commit_group; {wait} bar.sync 0;
ld.shared.u32 %r3, [%r1]; ld.shared.u32 %r4, [%r1+128]; sub.u32 %r0, %r3, %r4;"""


@pytest.mark.parametrize(
    ("wait", "first", "second"),
    [
        ("cp.async.wait_group 0;", True, True), ("cp.async.wait_all;", True, True),
        ("cp.async.wait_group 1;", True, False), ("cp.async.wait_group 2;", False, False), ("", False, False),
    ],
)  # fmt: skip
def test_copies_are_as_late_as_they_may_be(wait, first, second):
    """The second one takes two bytes of four."""
    data = (LANE * 65537 + 7).astype(np.uint32)
    out = np.zeros(32, np.uint32)
    body = COPY.format(wait=wait) + STORE.format(1)
    run(kernel(body, 2, ".shared .align 16 .b8 there[256];"), data, out)
    one = data if first else np.uint32(POISON)
    other = data & 0xFFFF if second else np.uint32(POISON)
    np.testing.assert_array_equal(out, one - other)


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("cp.async.cg.shared.global [there], [%x0+4], 16;", "misaligned access"),
        ("cp.async.cg.shared.global [there+8], [%x0], 16;", "misaligned access"),
        ("cp.async.cg.shared.global [there], [%x0+128], 16;", "out of bounds"),
        ("cp.async.ca.shared.global [there+256], [%x0], 4;", "out of bounds"),
        ("cp.async.ca.shared.global [there], [%x0], 4, 8;", "bad copy"),
    ],
)
def test_copies_are_checked(instruction, kind):
    assert fails(instruction, declared=".shared .align 16 .b8 there[256];").kind == kind


def test_a_copy_of_nothing_reads_nothing():
    body = "mov.u64 %a0, 0; cp.async.ca.shared.global [there], [%a0], 8, 0; cp.async.wait_all;"
    out = lanes(body + "ld.shared.u32 %r0, [there];", declared=".shared .align 16 .b8 there[8];")
    assert not out.any()


# ---------------------------------------------------------------------------------------------------
# Lanes that meet
# ---------------------------------------------------------------------------------------------------
def shuffled(mode: str, b: int, c: int, values: np.ndarray) -> list[tuple[int, bool]]:
    """shfl.sync, as the ISA spells it out."""
    found = []
    for lane in range(32):
        clamp, segment = c & 31, c >> 8 & 31
        most = (lane & segment) | (clamp & ~segment & 31)
        j = {"up": lane - (b & 31), "down": lane + (b & 31), "bfly": lane ^ (b & 31),
             "idx": (lane & segment) | (b & 31 & ~segment)}[mode]  # fmt: skip
        inside = j >= most if mode == "up" else j <= most
        found.append((int(values[j if inside else lane]), inside))
    return found


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [0x00, 0x10, 0x18, 0x1E])
def test_shuffles(mode, segment):
    for b in (0, 1, 2, 5, 16, 31):
        c = segment << 8 | (0 if mode == "up" else 31)
        values = (LANE * 2654435761 % 2**32).astype(np.uint32)
        in_range = np.zeros(32, np.uint32)
        body = f"""mul.wide.u32 %a0, %t, 4; add.u64 %a1, %a0, %x0; add.u64 %a2, %a0, %x1;
        ld.global.u32 %r1, [%a1];
        shfl.sync.{mode}.b32 %r0|%p0, %r1, {b}, {c}, -1;
        selp.u32 %r2, 1, 0, %p0; st.global.u32 [%a1], %r0; st.global.u32 [%a2], %r2;"""
        expected = shuffled(mode, b, c, values)
        run(kernel(body, 2), values, in_range)
        assert list(zip(values.tolist(), in_range.astype(bool).tolist())) == expected, (mode, b, hex(c))


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 5])
def test_lanes_meet_from_different_places(seed):
    """The same shuffle stands in both branches; lanes of a half name one another alone."""
    body = """setp.lt.u32 %p0, %t, 16;
    @%p0 bra LOW;
    shfl.sync.bfly.b32 %r0, %t, 1, 31, 0xffff0000; bra DONE;
    LOW: shfl.sync.bfly.b32 %r0, %t, 2, 31, 0x0000ffff;
    DONE: and.b32 %r1, %t, 1; setp.eq.u32 %p1, %r1, 0;
    @%p1 bra EVEN;
    shfl.sync.idx.b32 %r0, %r0, 3, 31, -1; bra END;
    EVEN: shfl.sync.idx.b32 %r0, %r0, 17, 31, -1;
    END:"""
    np.testing.assert_array_equal(lanes(body, seed=seed), np.where(LANE % 2, 1, 16))


def test_a_lane_that_has_not_come_gives_poison():
    body = (
        "mov.u32 %r0, 0; setp.ge.u32 %p0, %t, 8; @%p0 bra END; shfl.sync.idx.b32 %r0, %t, 9, 31, 0xff; END:"
    )
    np.testing.assert_array_equal(lanes(body), np.where(LANE < 8, POISON, 0))


def test_lanes_that_have_left_are_not_waited_for():
    body = (
        "mov.u32 %r0, 7; setp.ge.u32 %p0, %t, 8; @%p0 exit; bar.warp.sync -1; activemask.b32 %r0; bar.sync 0;"
    )
    np.testing.assert_array_equal(lanes(body), np.where(LANE < 8, 255, 0))


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("vote.sync.ballot.b32 %r0, %p0, -1;", 0xFF8), ("vote.sync.any.pred %p1, %p0, -1;", 1),
        ("vote.sync.all.pred %p1, %p0, -1;", 0), ("vote.sync.all.pred %p1, !%p2, -1;", 1),
        ("vote.sync.uni.pred %p1, %p0, -1;", 0), ("vote.sync.uni.pred %p1, %p2, -1;", 1),
        ("redux.sync.add.u32 %r0, %t, -1;", 496), ("redux.sync.add.s32 %r0, %t, -1;", 496),
        ("redux.sync.min.s32 %r0, %r1, -1;", 2**32 - 16), ("redux.sync.max.s32 %r0, %r1, -1;", 15),
        ("redux.sync.min.u32 %r0, %r1, -1;", 0), ("redux.sync.max.u32 %r0, %r1, -1;", 2**32 - 1),
        ("redux.sync.and.b32 %r0, %r2, -1;", 64), ("redux.sync.or.b32 %r0, %r2, -1;", 79),
        ("redux.sync.xor.b32 %r0, %t, -1;", 0),
        ("shr.u32 %r3, %t, 4; match.any.sync.b32 %r0, %r3, -1; shr.u32 %r4, %t, 4; shl.b32 %r4, %r4, 4;"
         "shr.u32 %r0, %r0, %r4;", 0xFFFF),  # each half of the warp its own half
    ],
)  # fmt: skip
def test_votes_and_reductions(instruction, expected):
    """%p0 holds in lanes 3 to 11, %p2 in none; %r1 is the lane less 16, %r2 its lowest four bits and 64."""
    body = """sub.u32 %r1, %t, 16; and.b32 %r2, %t, 15; or.b32 %r2, %r2, 64;
    setp.ge.u32 %p0, %t, 3; setp.le.and.u32 %p0, %t, 11, %p0; setp.gt.u32 %p2, %t, 99;
    setp.ne.u32 %p1, %t, %t;"""
    tail = " selp.u32 %r0, 1, 0, %p1;" if "%p1, " in instruction else ""
    np.testing.assert_array_equal(lanes(body + instruction + tail), np.full(32, expected, np.uint32))


@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_barriers(seed):
    """What threads of other warps have written before a barrier, each one reads behind it."""
    body = """shl.b32 %r1, %t, 2; mov.u32 %r2, there; add.u32 %r1, %r1, %r2; mul.lo.u32 %r3, %t, %t;
    st.shared.u32 [%r1], %r3; bar.sync 0; sub.u32 %r4, 127, %t; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r2;
    ld.shared.u32 %r0, [%r4];"""
    out = lanes(body, declared=".shared .align 4 .b8 there[512];", block=128, seed=seed)
    np.testing.assert_array_equal(out, np.arange(127, -1, -1) ** 2)


@pytest.mark.parametrize("seed", [1, 2])
def test_without_the_barrier_it_goes_wrong(seed):
    body = """shl.b32 %r1, %t, 2; mov.u32 %r2, there; add.u32 %r1, %r1, %r2; st.shared.u32 [%r1], %t;
    sub.u32 %r4, 127, %t; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r2; ld.shared.u32 %r0, [%r4];"""
    out = lanes(body, declared=".shared .align 4 .b8 there[512];", block=128, seed=seed)
    assert (out == POISON).any()


def test_without_the_warps_barrier_an_odd_seed_tells():
    """In order, the lanes of a warp go side by side, and nothing shows."""
    body = """shl.b32 %r1, %t, 2; mov.u32 %r2, there; add.u32 %r1, %r1, %r2; st.shared.u32 [%r1], %t;
    {} sub.u32 %r4, 31, %t; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r2; ld.shared.u32 %r0, [%r4];"""
    declared = ".shared .align 4 .b8 there[128];"
    assert not (lanes(body.format(""), declared=declared) == POISON).any()
    assert (lanes(body.format(""), declared=declared, seed=1) == POISON).any()
    good = lanes(body.format("bar.warp.sync -1;"), declared=declared, seed=1)
    np.testing.assert_array_equal(good, 31 - LANE)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("bar.red.popc.u32 %r0, 0, %p0;", 10),
        ("bar.red.and.pred %p1, 0, %p0;", 0), ("bar.red.or.pred %p1, 0, %p0;", 1),
        ("bar.red.and.pred %p1, 0, !%p2;", 1), ("bar.red.or.pred %p1, 0, %p2;", 0),
    ],
)  # fmt: skip
def test_barriers_that_count(instruction, expected):
    body = "setp.lt.u32 %p0, %t, 10; setp.gt.u32 %p2, %t, 999; mov.pred %p1, %p0;" + instruction
    tail = " selp.u32 %r0, 1, 0, %p1;" if "popc" not in instruction else ""
    assert (lanes(body + tail, block=64) == expected).all()


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_producers_arrive_and_consumers_wait(seed):
    """Warp 0 waits at barrier 1 for warp 1, which does not wait."""
    body = """mov.u32 %r0, 0; setp.ge.u32 %p0, %t, 32; @%p0 bra PRODUCE;
    barrier.sync 1, 64; ld.shared.u32 %r0, [there]; bra END;
    PRODUCE: st.shared.u32 [there], 77; barrier.arrive 1, 64;
    END:"""
    out = lanes(body, declared=".shared .align 4 .b8 there[4];", block=64, seed=seed)
    np.testing.assert_array_equal(out, [77] * 32 + [0] * 32)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("setp.lt.u32 %p0, %t, 8; @%p0 bra A; bar.sync 0; bra END; A: bar.sync 0; END:", "divergent barrier"),
        ("setp.lt.u32 %p0, %t, 32; @%p0 bra END; bar.sync 1; END: bar.sync 0;", "deadlock"),
        ("shfl.sync.idx.b32 %r0, %t, 0, 31, 0xff;", "bad mask"),
        ("setp.lt.u32 %p0, %t, 8; @%p0 bra A; bar.warp.sync -1; A: bar.sync 0;", "deadlock"),
        ("bar.sync 0, 48;", "bad barrier"),
        ("AGAIN: bra AGAIN;", "timeout"),
        ("bar.sync 0; AGAIN: bar.sync 0; setp.ne.u32 %p0, %t, 9999; @%p0 bra AGAIN;", "timeout"),
    ],
)
@pytest.mark.parametrize("seed", [None, 1])
def test_who_waits_in_vain_is_stopped(body, kind, seed):
    error = fails(body, np.zeros(64, np.uint32), block=64, seed=seed, steps=100_000)
    assert error.kind == kind, str(error)


# ---------------------------------------------------------------------------------------------------
# Lanes that part
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_loops_of_different_lengths(seed):
    """Steps of the Collatz sequence from each lane's number."""
    body = """add.u32 %r1, %t, 1; mov.u32 %r0, 0;
    AGAIN: setp.eq.u32 %p0, %r1, 1; @%p0 bra DONE;
    and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra EVEN;
    mad.lo.u32 %r1, %r1, 3, 1; bra NEXT;
    EVEN: shr.u32 %r1, %r1, 1;
    NEXT: add.u32 %r0, %r0, 1; bra AGAIN;
    DONE:"""

    def length(n: int) -> int:
        return 0 if n == 1 else 1 + length(n // 2 if n % 2 == 0 else 3 * n + 1)

    np.testing.assert_array_equal(lanes(body, seed=seed), [length(n + 1) for n in range(32)])


def test_a_table_of_branches():
    body = """and.b32 %r1, %t, 3; mov.u32 %r0, 9;
    targets: .branchtargets A, B, C, END;
    brx.idx %r1, targets;
    A: mov.u32 %r0, 10; bra END;
    B: mov.u32 %r0, 11; bra END;
    C: mov.u32 %r0, 12;
    END:"""
    np.testing.assert_array_equal(lanes(body), np.tile([10, 11, 12, 9], 8))


@pytest.mark.parametrize("seed", [None, 1])
def test_a_lane_may_wait_for_another_in_a_loop(seed):
    """Of one warp, and of the other: each lane gets on."""
    body = """setp.eq.u32 %p0, %t, {last}; @%p0 bra SET;
    AGAIN: ld.volatile.shared.u32 %r0, [there]; setp.ne.u32 %p1, %r0, 5; @%p1 bra AGAIN; bra END;
    SET: st.volatile.shared.u32 [there], 5; mov.u32 %r0, 5;
    END:"""
    for last in (31, 63):
        out = lanes(body.format(last=last), declared=".shared .align 4 .b8 there[4];", block=64, seed=seed)
        assert (out == 5).all()


def test_special_registers():
    out = np.zeros((7, 64), np.uint32)
    names = ("%tid.x", "%ntid.x", "%nctaid.x", "%laneid", "%warpid", "%lanemask_lt", "%lanemask_ge")
    stores = " ".join(
        f"mov.u32 %r0, {name}; st.global.u32 [%a0+{256 * k}], %r0;" for k, name in enumerate(names)
    )
    run(kernel(f"mul.wide.u32 %a0, %t, 4; add.u64 %a0, %a0, %x0; {stores}"), out, block=64)
    lane = np.arange(64) % 32
    np.testing.assert_array_equal(
        out, [np.arange(64), [64] * 64, [1] * 64, lane, np.arange(64) // 32, 2**lane - 1, 2**32 - 2**lane]
    )


# ---------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("\n\nwgmma.fence.sync.aligned;", r"the instruction wgmma.fence.sync.aligned \(line 15 of the PTX\)"),
        ("add.cc.u32 %r0, %r1, %r2;", "the instruction add.cc.u32"),
        ("fma.rn.relu.f16 %h0, %h1, %h2, %h3;", "the instruction fma.rn.relu.f16"),
        ("setp.lo.f32 %p0, %f0, %f1;", "the instruction setp.lo.f32"),
        ("add.u32 %r0, %a1, %r2;", r"%a1 \(b64\) in add.u32"),
        ("add.u32 %r0, %nowhere, %r2;", "the operand %nowhere"),
        ("mov.u32 %r0, %clock;", "the operand %clock"),
        ("bra NOWHERE;", "the label NOWHERE"),
        ("call.uni (%r0), helper, (%r1);", "a call of the function helper"),
        ("ld.global.u32 %h0, [%x0];", r"%h0 \(b16\) in ld.global.u32"),
        (".surfref x;", "the directive '.surfref x'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(body, words):
    with pytest.raises(KernelError, match=words) as caught:
        program(kernel(body), "k")
    assert caught.value.kind == "unsupported"


def test_a_kernel_that_is_not_there():
    with pytest.raises(KernelError, match="the PTX has no kernel other; it has k"):
        program(kernel(""), "other")


def test_numbers_as_ptx_writes_them():
    texts = {
        ("0f3F800000", "f32"): 0x3F800000, ("-0f3F800000", "f32"): 0xBF800000,
        ("0d3FF0000000000000", "f64"): 0x3FF << 52,
        ("1.5", "f32"): 0x3FC00000, ("-1", "u32"): 2**32 - 1, ("0x10U", "u32"): 16, ("017", "u32"): 15,
        ("0b101", "u16"): 5, ("-2147483648", "s32"): 1 << 31, ("0", "u64"): 0,
    }  # fmt: skip
    assert {key: number(*key) for key in texts} == texts
    with pytest.raises(ValueError):
        number("%r1", "u32")


def test_lines_of_the_source_and_of_callers():
    text = kernel("").replace(
        "ret;",
        '.loc 1 7 3, function_name $x, inlined_at 2 9 1\nadd.u32 %r0, %r1, 1;\n.loc 2 12 1\nret;',
    ).replace(".address_size 64", '.address_size 64\n.file 1 "/x//a.cuh"\n.file 2 "b.cu"')  # fmt: skip
    add, leave = parse(text).entries["k"].instructions[-2:]
    assert add.place is not None and add.place.inlined_at is not None and leave.place is not None
    assert (add.place.file, add.place.line) == ("/x//a.cuh", 7)
    assert (add.place.inlined_at.file, add.place.inlined_at.line) == ("b.cu", 9)
    assert (leave.place.line, leave.place.inlined_at) == (12, None)


def test_names_belong_to_their_block():
    body = "{ .reg .b32 %own; mov.u32 %own, 3; mov.u32 %r0, %own; } { .reg .b16 %own; mov.u16 %own, 4; }"
    assert (lanes(body) == 3).all()


# ---------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------
def test_pieces_of_registers():
    packed = compute("mov.b64 #0, {$0, $1};", ["b32", "b32"], ["b64"], [(1, 2)])
    assert packed == [[2 << 32 | 1]]
    assert compute("mov.b32 {#0, #1}, $0;", ["b32"], ["b16", "b16"], [(0x20001,)]) == [[1, 2]]
    four = ["b16"] * 4
    assert compute("mov.b64 #0, {$0, $1, $2, $3};", four, ["b64"], [(1, 2, 3, 4)]) == [[0x4000300020001]]
    assert compute("mov.b64 {#0, #1, #2, #3}, $0;", ["b64"], four, [(0x4000300020001,)]) == [[1, 2, 3, 4]]
    assert compute("mov.b32 {_, #0}, $0;", ["b32"], ["b16"], [(0x20001,)]) == [[2]]


def test_a_comparison_and_its_opposite():
    rows = [(a, b, c) for a in (1, 2) for b in (1, 2) for c in (0, 1)]
    found = compute("setp.lt.and.u32 #0|#1, $0, $1, $2;", ["u32", "u32", "pred"], ["pred", "pred"], rows)
    assert found == [[int(a < b and c), int(a >= b and c)] for a, b, c in rows]


def test_guards():
    rows = [(1, 0), (2, 1)]
    assert compute("mov.u32 #0, 5; @$1 mov.u32 #0, $0;", ["u32", "pred"], ["u32"], rows) == [[5], [2]]
    assert compute("mov.u32 #0, 5; @!$1 mov.u32 #0, $0;", ["u32", "pred"], ["u32"], rows) == [[1], [5]]


def test_the_table_has_each_operation_once():
    names = library.operations()
    assert len(names) == len(set(names)) > 500
    assert library.find("add.u32") is not None and library.find("add.u33") is None
    assert text_of("add.u32 #0, $0, $1;", ["u32", "u32"], ["u32"]).count("add.u32") == 1
