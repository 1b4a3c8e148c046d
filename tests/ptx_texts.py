"""Small texts of PTX for the tests of the PTX runner, and exact arithmetic to hold them against."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from convkit.cuda.launch import Argument
from convkit.cuda.ptx.executor import STEPS, Launch, program

#: Registers and arrays of each type.
REGISTER = {"pred": "pred", "f16x2": "b32", "bf16x2": "b32", "f16": "b16", "bf16": "b16"}
WIDTH = {"pred": 8, "f16x2": 32, "bf16x2": 32, "f16": 16, "bf16": 16}


def width(type_: str) -> int:
    """Bits of a type in memory; a predicate takes a byte there."""
    return WIDTH.get(type_) or int(type_.lstrip("busf"))


def header(*parameters: str) -> str:
    """The beginning of a kernel `k` up to its brace."""
    return (
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(\n"
        + ",\n".join(f".param .u64 {name}" for name in parameters)
        + "\n)\n{\n"
    )


def text_of(instruction: str, types: Sequence[str], results: Sequence[str]) -> str:
    """A kernel of one instruction on each thread's element of each operand's array.

    `instruction` has the operands as $0, $1, ... and the results as #0, #1, ...: "add.s32 #0, $0, $1;".
    """
    names = [f"p{k}" for k in range(len(types) + len(results))]
    rows = [header(*names), ".reg .b32 %t, %n;", ".reg .b64 %at<9>;", ".reg .pred %zero;", ".reg .b16 %byte;"]
    prefix = [f"%in{k}_" for k in range(len(types))] + [f"%out{k}_" for k in range(len(results))]
    for name, type_ in zip(prefix, (*types, *results)):
        rows.append(f".reg .{REGISTER.get(type_) or type_} {name};")
    rows.append("mov.u32 %t, %tid.x;")
    for k, (name, type_) in enumerate(zip(prefix, (*types, *results))):
        rows += [
            f"ld.param.u64 %at{k}, [p{k}];",
            f"mul.lo.u32 %n, %t, {width(type_) // 8};",
            "{ .reg .b64 %wide; cvt.u64.u32 %wide, %n; " + f"add.u64 %at{k}, %at{k}, %wide; }}",
        ]
        if k < len(types):
            if type_ == "pred":
                rows += [f"ld.global.u8 %byte, [%at{k}];", f"setp.ne.u16 {name}, %byte, 0;"]
            else:
                rows.append(f"ld.global.b{width(type_)} {name}, [%at{k}];")
    for k in range(len(types)):
        instruction = instruction.replace(f"${k}", prefix[k])
    for k in range(len(results)):
        instruction = instruction.replace(f"#{k}", prefix[len(types) + k])
    rows.append(instruction)
    for k, type_ in enumerate(results):
        name, at = prefix[len(types) + k], f"%at{len(types) + k}"
        if type_ == "pred":
            rows += [f"selp.u16 %byte, 1, 0, {name};", f"st.global.u8 [{at}], %byte;"]
        else:
            rows.append(f"st.global.b{width(type_)} [{at}], {name};")
    return "\n".join([*rows, "ret;", "}"])


def run(
    text: str,
    *arrays: np.ndarray,
    entry: str = "k",
    grid: int | tuple[int, int, int] = 1,
    block: int = 32,
    shared: int = 0,
    seed: int | None = None,
    steps: int = STEPS,
    outputs: Sequence[int] | None = None,
) -> None:
    """Run a kernel of a text; all arrays are outputs, if nothing else is said."""  # fmt: skip
    made = program(text, entry)
    image = np.frombuffer(made.module or b"\0", np.uint8).copy()
    arguments = [
        Argument(f"a{k}", array, output=outputs is None or k in outputs) for k, array in enumerate(arrays)
    ]
    Launch(made, image, arguments).run(
        grid if isinstance(grid, tuple) else (grid, 1, 1),
        (block, 1, 1),
        shared,
        seed=seed,
        timeout=60,
        steps=steps,
    )


def compute(
    instruction: str, types: Sequence[str], results: Sequence[str], operands: Sequence[Sequence[int]]
) -> list[list[int]]:
    """What an instruction gives for each row of operands, all as bits; in blocks of up to 1024 threads."""
    text, found = text_of(instruction, types, results), []
    for first in range(0, len(operands), 1024):
        rows = operands[first : first + 1024]
        arrays = [np.array([row[k] for row in rows], f"u{width(t) // 8}") for k, t in enumerate(types)] + [
            np.zeros(len(rows), f"u{width(t) // 8}") for t in results
        ]
        run(text, *arrays, block=len(rows))
        found += list(zip(*(array.tolist() for array in arrays[len(types) :])))
    return [list(row) for row in found]


# ---------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------
#: Of a floating-point type: bits, bits of precision, exponent of its smallest number.
FORMATS = {"f32": (32, 24, -149), "f64": (64, 53, -1074), "f16": (16, 11, -24), "bf16": (16, 8, -133)}


def signed(value: int, bits: int) -> int:
    """Bits as a signed number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


@functools.cache
def decoded(bits: int, format_: str) -> Fraction | float:
    """A number exactly; infinities and NaN as floats."""
    size, precision, least = FORMATS[format_]
    mantissa = bits & ((1 << (precision - 1)) - 1)
    exponent = bits >> (precision - 1) & ((1 << (size - precision)) - 1)
    sign = -1 if bits >> (size - 1) else 1
    if exponent == (1 << (size - precision)) - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent:
        mantissa += 1 << (precision - 1)
        exponent -= 1
    return sign * mantissa * Fraction(2) ** (least + exponent)


def negative(bits: int, format_: str) -> bool:
    return bool(bits >> (FORMATS[format_][0] - 1))


def rounded(value: Fraction, format_: str, rounding: str, minus: bool = False) -> int:
    """The bits of an exact value in a format; a zero has the sign of `minus`."""
    size, precision, least = FORMATS[format_]
    minus = value < 0 or (value == 0 and minus)
    sign, magnitude = int(minus) << (size - 1), abs(value)
    if magnitude == 0:
        return sign
    length = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent = max(length - precision - 1, least)
    while magnitude >= Fraction(2) ** (exponent + precision):
        exponent += 1
    whole, rest = divmod(magnitude, Fraction(2) ** exponent)
    rest /= Fraction(2) ** exponent
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "rz": False,
        "rm": rest > 0 and minus,
        "rp": rest > 0 and not minus,
    }[rounding]
    whole += up
    if whole == 1 << precision:
        whole, exponent = whole // 2, exponent + 1
    top = (1 << (size - precision)) - 2
    biased = exponent - least + 1 if whole >> (precision - 1) else 0
    if biased > top:
        stays = rounding == "rz" or (rounding == "rm" and not minus) or (rounding == "rp" and minus)
        return sign | ((top + 1) << (precision - 1)) - int(stays)
    return sign | (biased << (precision - 1)) | (int(whole) & ((1 << (precision - 1)) - 1))


def infinite(minus: bool, format_: str) -> int:
    size, precision, _ = FORMATS[format_]
    return int(minus) << (size - 1) | ((1 << (size - precision)) - 1) << (precision - 1)


NAN = {"f32": 0x7FC00000, "f64": 0x7FF8000000000000, "f16": 0x7FFF, "bf16": 0x7FFF}


def is_nan(bits: int, format_: str) -> bool:
    return decoded(bits, format_) != decoded(bits, format_)


#: Numbers at which floating-point instructions go wrong first.
EDGES = {
    "f32": (
        0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x80800000, 0x33800000, 0x3F7FFFFF, 0x3F800000,
        0xBF800000, 0x3F800001, 0x3FC00000, 0x40400000, 0x3EAAAAAB, 0x4B7FFFFF, 0x4B800001, 0x7F7FFFFF,
        0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000,
    ),
    "f64": (
        0, 1 << 63, 1, 0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x3FF0000000000000, 0xBFF0000000000000,
        0x3FF0000000000001, 0x3FD5555555555555, 0x4008000000000000, 0x3CA0000000000000, 0x7FEFFFFFFFFFFFFF,
        0xFFEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000,
    ),
    "f16": (
        0, 0x8000, 1, 0x8001, 0x03FF, 0x0400, 0x1400, 0x3555, 0x3BFF, 0x3C00, 0xBC00, 0x3C01, 0x4200, 0x6BFF,
        0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7FFF,
    ),
    "bf16": (
        0, 0x8000, 1, 0x8001, 0x007F, 0x0080, 0x3380, 0x3EAB, 0x3F7F, 0x3F80, 0xBF80, 0x3F81, 0x4040, 0x4B7F,
        0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FFF,
    ),
}  # fmt: skip


def integers(bits: int) -> list[int]:
    """Bits at which integer instructions go wrong first."""
    top = 1 << (bits - 1)
    return [
        0,
        1,
        2,
        3,
        7,
        bits - 1,
        bits,
        top - 1,
        top,
        top + 1,
        2 * top - 1,
        2 * top - 2,
        0x5A17C3E9 % (2 * top),
    ]
