"""Machine code -> facts: on hand-written listings, and on a small kernel that is compiled here."""

from __future__ import annotations

import pytest

from convkit.cuda import nvrtc, sass


def listing(*lines: str, name: str = "f") -> str:
    """A function as nvdisasm prints it; a line that ends in ":" is a label, the others get an address."""
    text, address = [f"\t.section\t.text.{name}", f"{name}:", f".text.{name}:"], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
        else:
            text.append(f"        /*{address:04x}*/ {line:>20} ;")
            address += 16
    return "\n".join(text)


#: A K loop (.L_k) with two loops in it: a rolled copy (.L_copy), and one of fewer multiply-adds (.L_few).
NESTED = listing(
    "LDC R1, c[0x0][0x28]",
    ".L_k:",
    "LDG.E.128 R4, desc[UR4][R2.64]",
    ".L_copy:",
    "LDS R6, [R7]",
    "STL [R1+0x4], R6",
    "FFMA R0, R1, R2, R3",
    "@P0 BRA `(.L_copy)",
    "LDS.128 R8, [R7]",
    "LDS.64 R12, [R7+0x10]",
    "FFMA R0, R1.reuse, R2, R3",
    "FFMA.FTZ R0, R1, R2, R3",
    "FFMA R0, R1, R2, R3",
    "@!PT LDS RZ, [RZ]",
    "NOP",
    ".L_few:",
    "FFMA R0, R1, R2, R3",
    "BRA.U UP0, `(.L_few)",
    "IADD3 R0, P0, R1, R2, RZ",
    "@!P1 BRA P0, `(.L_k)",
    "MUFU.RCP R0, R1",
    "EXIT",
    ".L_end:",
    "BRA `(.L_end)",
    "NOP",
)


def test_main_loop_is_not_the_innermost():
    facts = sass.facts(NESTED)["f"]
    assert facts == sass.Facts(
        instructions=17,
        mufu=1,
        ffma=3,
        loop_instructions=8,
        shared_loads=2,
        shared_loads_128=1,
        global_loads=1,
        local_accesses=0,
        inner_loops=2,
        load_to_use=1,
    )
    assert facts.ffma_density == 3 / 8
    assert facts.lds128_share == 1 / 2
    assert facts.ffma_per_lds128 == 3


def test_inner_loop_is_the_main_loop_where_it_holds_the_multiply_adds():
    text = listing(
        ".L_outer:", "FFMA R0, R1, R2, R3", "STL [R1], R0",
        ".L_inner:", "FFMA R0, R1, R2, R3", "FFMA R0, R1, R2, R3", "@P0 BRA `(.L_inner)",
        "@P1 BRA `(.L_outer)", "EXIT",
    )  # fmt: skip
    facts = sass.facts(text)["f"]
    assert (facts.ffma, facts.loop_instructions, facts.local_accesses, facts.inner_loops) == (2, 3, 0, 0)


def test_local_memory_in_the_main_loop_is_counted():
    text = listing(".L_0:", "LDL R0, [R1]", "FFMA R0, R1, R2, R3", "STL [R1], R0", "@P0 BRA `(.L_0)", "EXIT")
    assert sass.facts(text)["f"].local_accesses == 2


def test_tensor_core_loop_outweighs_a_loop_of_ffma():
    text = listing(
        ".L_0:", *["FFMA R0, R1, R2, R3"] * 8, "@P0 BRA `(.L_0)",
        ".L_1:", "HMMA.16816.F32 R0, R4, R8, R0", "LDG.E R4, [R2.64]", "@P0 BRA `(.L_1)", "EXIT",
    )  # fmt: skip
    facts = sass.facts(text)["f"]
    assert (facts.ffma, facts.global_loads) == (0, 1)


@pytest.mark.parametrize(
    ("lines", "away"),
    [
        (("LDG.E R4, [R2.64]", "FFMA R0, R1, R2, R3", "STS [R9], R4"), 2),
        (("LDG.E R4, [R2.64]", "FFMA R0, R1, R2, R3", "FFMA R0, R1, R4.reuse, R3"), 2),
        # Around the end of the loop: the store comes in the next turn.
        (("STS [R9], R4", "LDG.E R4, [R2.64]", "FFMA R0, R1, R2, R3"), 4),
        # Four registers, the last of which is used; a store that reads four of them.
        (("LDG.E.128 R4, [R2.64]", "FFMA R0, R1, R7, R3"), 1),
        (("LDG.E R6, [R2.64]", "IADD3 R0, R1, R2, R3", "STS.128 [R9], R4", "FFMA R0, R1, R2, R3"), 2),
        # The upper half of an address.
        (("LDG.E R5, [R2.64]", "FFMA R0, R1, R2, R3", "LDG.E R8, [R4.64]", "STS [R9], R8"), 1),
        # Filled anew before any use; under a guard, only perhaps.
        (("LDG.E R4, [R2.64]", "IADD3 R4, R1, R2, R3", "FFMA R0, R1, R4, R3"), 0),
        (("LDG.E R4, [R2.64]", "@P1 IADD3 R4, R1, R2, R3", "FFMA R0, R1, R4, R3"), 2),
        # Writing is no use; nor is what only looks like the register.
        (("FFMA R0, R1, R2, R3", "LDG.E R4, [R2.64]", "IADD3 R0, UR4, R44, c[0x0][R1]"), 0),
    ],
)
def test_distance_from_a_load_to_its_use(lines, away):
    text = listing(".L_0:", *lines, "FFMA R10, R11, R12, R13", "@P0 BRA `(.L_0)", "EXIT")
    assert sass.facts(text)["f"].load_to_use == away


def test_loop_on_tensor_cores():
    text = listing(
        ".L_0:", "LDGSTS.E.BYPASS.128.ZFILL [R20], [R2.64], P1", "LDSM.16.M88.4 R4, [R21]",
        *["HMMA.16816.F32.BF16 R0, R4, R8, R0"] * 6, "@P0 BRA `(.L_0)", "EXIT",
    )  # fmt: skip
    facts = sass.facts(text)["f"]
    assert (facts.hmma, facts.matrix_loads, facts.async_copies, facts.load_to_use) == (6, 1, 1, 0)
    assert (facts.hmma_per_ldsm, facts.hmma_density) == (6, 6 / 9)


def test_no_loop():
    facts = sass.facts(listing("FFMA R0, R1, R2, R3", "EXIT"))["f"]
    assert (facts.instructions, facts.loop_instructions, facts.ffma_density) == (2, 0, 0)


def test_functions_are_kept_apart():
    both = "\n".join([listing("MUFU.SIN R0, R1", "EXIT", name="f"), listing("EXIT", name="g")])
    found = sass.facts(both)
    assert (found["f"].mufu, found["f"].instructions) == (1, 2)
    assert (found["g"].mufu, found["g"].instructions) == (0, 1)


@pytest.mark.parametrize(
    ("last", "successors"),
    [
        ("BRA `(.L_far)", [2]),
        ("@P0 BRA `(.L_far)", [2, 1]),
        ("@!UP0 BRA `(.L_far)", [2, 1]),
        ("BRA P0, `(.L_far)", [2, 1]),
        ("BRA !P0, `(.L_far)", [2, 1]),
        ("BRA.U !UP0, `(.L_far)", [2, 1]),
        ("BRA.DIV UR4, `(.L_far)", [2, 1]),
        ("@P0 CALL.REL.NOINC `(.L_far)", [2, 1]),
        ("BRX R2 -0x9c0 (*\"BRANCH_TARGETS .L_near,.L_far\"*)", [1, 2]),
        ("CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64)", [1]),
        ("BSSY.RECONVERGENT B0, `(.L_far)", [1]),
        ("EXIT", []),
        ("@P0 EXIT", [1]),
        ("RET.REL.NODEC R6 `(f)", []),
        ("IADD3 R0, R1, R2, RZ", [1]),
    ],
)  # fmt: skip
def test_where_an_instruction_leads(last, successors):
    text = listing(last, ".L_near:", "NOP", ".L_far:", "EXIT", "$__internal_0_$__cuda_sm20_div_s64:", "EXIT")
    assert sass.parse(text)["f"][0].successors == successors


def test_dominators_of_a_diamond():
    text = listing("@P0 BRA `(.L_1)", "BRA `(.L_2)", ".L_1:", "NOP", ".L_2:", "EXIT", ".L_3:", "EXIT")
    assert sass.dominators(sass.parse(text)["f"]) == {0: 0b0001, 1: 0b0011, 2: 0b0101, 3: 0b1001}


def test_compiler_annotations_are_read_over():
    line = '        /*4520*/              @!P0 STL.64 [R1+0x20], R0                  (*"SpillRefill"*);'
    (block,) = sass.parse(f".text.f:\n{line}")["f"]
    (found,) = block.instructions
    assert (found.guard, found.name, found.opcode, found.address) == ("!P0", "STL", "STL.64", 0x4520)


KERNEL = """
extern "C" __global__ void multiply(const float4* x, float* y, int n) {
    __shared__ float4 tile[256];
    float sums[16] = {};
    for (int k = 0; k < n; ++k) {
        __syncthreads();
        #pragma unroll 1
        for (int i = threadIdx.x; i < 256; i += blockDim.x) tile[i] = x[k * 256 + i];
        __syncthreads();
        #pragma unroll
        for (int step = 0; step < 8; ++step) {
            const float4 a = tile[step], b = tile[step + 16 + threadIdx.x];
            const float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
            for (int i = 0; i < 16; ++i) sums[i] += left[i / 4] * right[i % 4];
        }
    }
    for (int i = 0; i < 16; ++i) y[threadIdx.x * 16 + i] = sums[i];
}
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120"])
def test_compiled_kernel(cuda_compiler, arch):
    cubin = nvrtc.compile_cubin(KERNEL, arch)
    facts = sass.facts(sass.disassemble(cubin.code))["multiply"]
    assert facts.ffma == 128  # 8 steps of 4 x 4
    assert (facts.shared_loads_128, facts.lds128_share, facts.ffma_per_lds128) == (16, 1, 8)
    assert (facts.global_loads, facts.inner_loops) == (0, 1)  # the copy loop is not the main loop
    assert facts.local_accesses == 0
    assert 0.7 < facts.ffma_density < 1


def test_what_is_no_cubin_is_refused(cuda_compiler):
    with pytest.raises(sass.ConvkitError, match="nvdisasm failed"):
        sass.disassemble(b"not a cubin")
