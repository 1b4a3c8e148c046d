"""Each of the PTX runner's instructions against its definition in the ISA, at the edges of its operands.

The expected values come from Python's integers and fractions, which know neither width nor rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from conftest import need
from ptx_texts import (
    EDGES,
    FORMATS,
    NAN,
    compute,
    decoded,
    infinite,
    integers,
    is_nan,
    negative,
    rounded,
    signed,
    text_of,
    width,
)

from convkit.cuda.ptx.executor import program
from convkit.cuda.ptx.library import operations

need("cuda.core")
pytestmark = pytest.mark.usefixtures("compiler")


@dataclass(frozen=True)
class Row:
    """An instruction: its operands' types and its result's, and the result's bits by the operands' bits.

    `expected` returns None where the result is not defined.
    """

    instruction: str
    types: tuple[str, ...]
    result: str
    expected: Callable[..., int | None]
    operands: Sequence[Sequence[int]] | None = None

    def __str__(self) -> str:
        return self.instruction.split()[0]

    def asked(self) -> list[Sequence[int]]:
        if self.operands is not None:
            return list(self.operands)
        return list(itertools.product(*(values(t, len(self.types)) for t in self.types)))


def values(type_: str, count: int) -> Sequence[int]:
    if type_ == "pred":
        return (0, 1)
    if type_ in EDGES:
        return EDGES[type_] if count < 3 else EDGES[type_][:: 2 if type_ == "f32" else 1][:11]
    found = integers(width(type_))
    return found if count < 3 else found[::2]


def call(words: str, count: int) -> str:
    return f"{words} #0, {', '.join(f'${k}' for k in range(count))};"


ROWS: list[Row] = []


def row(words: str, types: str, result: str, expected: Callable[..., int | None], operands=None) -> None:
    """Another instruction whose operands come in their order; `types` are separated by blanks."""
    each = tuple(types.split())
    ROWS.append(Row(call(words, len(each)), each, result, expected, operands))


# ---------------------------------------------------------------------------------------------------
# Integers
# ---------------------------------------------------------------------------------------------------
def whole(type_: str, function: Callable[..., int | None]) -> Callable[..., int | None]:
    """A function of integers as one of their bits; the result is cut to its own width by `compare`."""
    if type_[0] != "s":
        return function
    return lambda *bits: function(*(signed(b, width(type_)) for b in bits))


def quotient(a: int, b: int) -> int | None:
    return None if b == 0 else (abs(a) // abs(b)) * (-1 if (a < 0) != (b < 0) else 1)


def remainder(a: int, b: int) -> int | None:
    return None if b == 0 else (abs(a) % abs(b)) * (-1 if a < 0 else 1)


def field(a: int, position: int, length: int) -> int:
    return (a >> position) & ((1 << length) - 1)


def signed_field(bits: int) -> Callable[[int, int, int], int]:
    def extract(a: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        if length == 0:
            return 0
        sign = a >> min(position + length - 1, bits - 1) & 1
        inside = field(a, position, min(length, max(bits - position, 0)))
        return inside | (-sign << min(length, max(bits - position, 0)))

    return extract


def inserted(bits: int) -> Callable[[int, int, int, int], int]:
    def insert(a: int, b: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        mask = ((1 << length) - 1) << position & ((1 << bits) - 1)
        return (b & ~mask) | (a << position & mask)

    return insert


for t in ("u16", "s16", "u32", "s32", "u64", "s64"):
    n = width(t)
    two, three = f"{t} {t}", f"{t} {t} {t}"
    row(f"add.{t}", two, t, lambda a, b: a + b)
    row(f"sub.{t}", two, t, lambda a, b: a - b)
    row(f"mul.lo.{t}", two, t, lambda a, b: a * b)
    row(f"mul.hi.{t}", two, t, whole(t, lambda a, b, n=n: (a * b) >> n))
    row(f"mad.lo.{t}", three, t, lambda a, b, c: a * b + c)
    row(f"mad.hi.{t}", three, t, whole(t, lambda a, b, c, n=n: ((a * b) >> n) + c))
    row(f"min.{t}", two, t, whole(t, min))
    row(f"max.{t}", two, t, whole(t, max))
    row(f"div.{t}", two, t, whole(t, quotient))
    row(f"rem.{t}", two, t, whole(t, remainder))
    shift = [(a, k) for a in integers(n) for k in (0, 1, 5, n - 1, n, n + 1, 255, 2**32 - 1)]
    row(
        f"shr.{t}",
        f"{t} u32",
        t,
        lambda a, k, n=n, t=t: (signed(a, n) if t[0] == "s" else a) >> min(k, n),
        shift,
    )
    for word, holds in {
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
    }.items():
        row(f"setp.{word}.{t}", two, "pred", whole(t, holds))
    if t[0] == "s":
        row(f"neg.{t}", t, t, lambda a: -a)
        row(f"abs.{t}", t, t, whole(t, abs))
    if n < 64:
        double = f"{t[0]}{2 * n}"
        row(f"mul.wide.{t}", two, double, whole(t, lambda a, b: a * b))
        row(
            f"mad.wide.{t}",
            f"{two} {double}",
            double,
            lambda a, b, c, n=n, t=t: (signed(a, n) * signed(b, n) if t[0] == "s" else a * b) + c,
        )

for word, holds in {"lo": int.__lt__, "ls": int.__le__, "hi": int.__gt__, "hs": int.__ge__}.items():
    row(f"setp.{word}.u32", "u32 u32", "pred", holds)

for n in (16, 32, 64):
    t = f"b{n}"
    row(f"and.{t}", f"{t} {t}", t, int.__and__)
    row(f"or.{t}", f"{t} {t}", t, int.__or__)
    row(f"xor.{t}", f"{t} {t}", t, int.__xor__)
    row(f"not.{t}", t, t, lambda a: ~a)
    row(f"cnot.{t}", t, t, lambda a: int(a == 0))
    shift = [(a, k) for a in integers(n) for k in (0, 1, 5, n - 1, n, n + 1, 2**32 - 1)]
    row(f"shl.{t}", f"{t} u32", t, lambda a, k, n=n: a << min(k, n), shift)
    row(f"shr.{t}", f"{t} u32", t, lambda a, k: a >> min(k, 99), shift)
    row(f"mov.{t}", t, t, lambda a: a)
    row(f"selp.{t}", f"{t} {t} pred", t, lambda a, b, c: a if c else b)

for n in (32, 64):
    row(f"popc.b{n}", f"b{n}", "u32", int.bit_count)
    row(f"clz.b{n}", f"b{n}", "u32", lambda a, n=n: n - a.bit_length())
    row(f"brev.b{n}", f"b{n}", f"b{n}", lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
    places = list(itertools.product(integers(n)[::3], (0, 1, 7, n - 1, n, 255, 256), (0, 1, 9, n, 200, 257)))
    row(f"bfe.u{n}", f"u{n} u32 u32", f"u{n}", lambda a, p, k: field(a, p & 255, k & 255), places)
    row(f"bfe.s{n}", f"s{n} u32 u32", f"s{n}", signed_field(n), places)
    places = [(a, 0x6996A5C3 * 0x100000001 % 2**n, *rest) for a, *rest in places]
    row(f"bfi.b{n}", f"b{n} b{n} u32 u32", f"b{n}", inserted(n), places)

for operator, function in {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}.items():
    row(f"{operator}.pred", "pred pred", "pred", function)
row("not.pred", "pred", "pred", lambda a: 1 - a)
row("mov.pred", "pred", "pred", lambda a: a)

funnel = list(itertools.product(integers(32)[::2], integers(32)[::3], (0, 1, 31, 32, 33, 2**32 - 1)))
row("shf.l.wrap.b32", "b32 b32 u32", "b32", lambda a, b, k: ((b << 32 | a) << (k & 31)) >> 32, funnel)
row("shf.l.clamp.b32", "b32 b32 u32", "b32", lambda a, b, k: ((b << 32 | a) << min(k, 32)) >> 32, funnel)
row("shf.r.wrap.b32", "b32 b32 u32", "b32", lambda a, b, k: (b << 32 | a) >> (k & 31), funnel)
row("shf.r.clamp.b32", "b32 b32 u32", "b32", lambda a, b, k: (b << 32 | a) >> min(k, 32), funnel)


def permuted(a: int, b: int, c: int) -> int:
    """prmt: each nibble of c selects a byte; its highest bit asks for that byte's sign in every bit."""
    found = 0
    for k in range(4):
        select = c >> 4 * k & 15
        byte = (b << 32 | a) >> 8 * (select & 7) & 255
        found |= ((255 if byte & 128 else 0) if select & 8 else byte) << 8 * k
    return found


row(
    "prmt.b32",
    "b32 b32 b32",
    "b32",
    permuted,
    list(
        itertools.product(
            (0x83024180, 0x7F00FF01), (0x00C0FFEE, 0x80402010), (0x3210, 0x7654, 0xFEDC, 0x0123, 0x9A5)
        )
    ),
)


def looked_up(table: int) -> Callable[[int, int, int], int]:
    def function(a: int, b: int, c: int) -> int:
        index = [(a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1) for k in range(32)]
        return sum((table >> i & 1) << k for k, i in enumerate(index))

    return function


ROWS += [
    Row(f"lop3.b32 #0, $0, $1, $2, 0x{table:x};", ("b32",) * 3, "b32", looked_up(table))
    for table in (0x00, 0xFF, 0x96, 0xE8, 0xCA, 0x1D)
]


# ---------------------------------------------------------------------------------------------------
# Floating point
# ---------------------------------------------------------------------------------------------------
def arithmetic(
    type_: str, rounding: str, exact: Callable[..., Fraction | float], minus: Callable[..., bool]
) -> Callable[..., int]:
    """An exact function of numbers, rounded. `minus`: whether a zero is negative, by the operands' bits."""

    def function(*bits: int) -> int:
        numbers = [decoded(b, type_) for b in bits]
        if any(isinstance(x, float) and math.isnan(x) for x in numbers):
            return NAN[type_]
        if all(isinstance(x, Fraction) for x in numbers):
            try:
                value = exact(*numbers)
            except ZeroDivisionError:
                value = math.nan if numbers[0] == 0 and len(numbers) > 1 else math.inf
                if value == math.inf:
                    return infinite(minus(*bits), type_)
        else:  # with infinities; a finite operand counts by its sign alone, and whether it is zero
            small = [float((x > 0) - (x < 0)) if isinstance(x, Fraction) else x for x in numbers]
            try:
                value = exact(*small)
            except ZeroDivisionError:
                return infinite(minus(*bits), type_)
        if isinstance(value, float) and math.isnan(value):
            return NAN[type_]
        if isinstance(value, float) and math.isinf(value):
            return infinite(value < 0, type_)
        return rounded(Fraction(value), type_, rounding, minus(*bits))

    return function


def sum_minus(type_: str, rounding: str, product: bool = False, subtract: bool = False):
    """Whether a sum of zero is -0: of two zeros of one sign theirs; else only where it is rounded down."""

    def minus(*bits: int) -> bool:
        signs = [negative(b, type_) for b in bits]
        if product:
            a, b, c = (decoded(x, type_) for x in bits)
            signs = [signs[0] != signs[1], signs[2]]
            zeros = (a == 0 or b == 0) and c == 0
        else:
            signs[1] ^= subtract
            zeros = all(decoded(b, type_) == 0 for b in bits)
        if product and not zeros and a * b + c != 0:
            return False
        return signs[0] if zeros and signs[0] == signs[1] else rounding == "rm"

    return minus


def product_minus(type_: str):
    return lambda *bits: negative(bits[0], type_) != (len(bits) > 1 and negative(bits[1], type_))


def root(x: Fraction | float) -> Fraction | float:
    """The square root, so near that no rounding tells; exact where it is rational."""
    if x < 0:
        return math.nan
    if x == math.inf:
        return math.inf
    x = Fraction(x)
    scale = 1 << 2300
    n = math.isqrt(x.numerator * scale * scale // x.denominator)
    near = Fraction(n, scale)
    return near if near * near == x else near + Fraction(1, 4 * scale)


def extreme(which, type_: str, nan: bool = False):
    def function(a: int, b: int) -> int:
        if nan and (is_nan(a, type_) or is_nan(b, type_)):
            return NAN[type_]
        if is_nan(a, type_) or is_nan(b, type_):
            return a if is_nan(b, type_) else b
        return which((decoded(x, type_), not negative(x, type_), x) for x in (a, b))[2]

    return function


def comparison(word: str, type_: str):
    ordered = {
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
        "num": lambda a, b: True,
        "nan": lambda a, b: False,
    }[word if word in ("num", "nan") else word[:2]]
    unordered = word == "nan" or (len(word) == 3 and word[2] == "u")

    def function(a: int, b: int) -> int:
        if is_nan(a, type_) or is_nan(b, type_):
            return int(unordered)
        return int(ordered(decoded(a, type_), decoded(b, type_)))

    return function


COMPARISONS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"),
)  # fmt: skip

for t in ("f32", "f64"):
    two = f"{t} {t}"
    for r in ("rn", "rz", "rm", "rp"):
        row(f"add.{r}.{t}", two, t, arithmetic(t, r, lambda a, b: a + b, sum_minus(t, r)))
        row(f"sub.{r}.{t}", two, t, arithmetic(t, r, lambda a, b: a - b, sum_minus(t, r, subtract=True)))
        row(f"mul.{r}.{t}", two, t, arithmetic(t, r, lambda a, b: a * b, product_minus(t)))
        row(f"div.{r}.{t}", two, t, arithmetic(t, r, lambda a, b: a / b, product_minus(t)))
        row(
            f"fma.{r}.{t}",
            f"{two} {t}",
            t,
            arithmetic(t, r, lambda a, b, c: a * b + c, sum_minus(t, r, product=True)),
        )
        row(f"rcp.{r}.{t}", t, t, arithmetic(t, r, lambda a: 1 / a, product_minus(t)))
        row(f"sqrt.{r}.{t}", t, t, arithmetic(t, r, root, lambda a, t=t: negative(a, t)))
    for word in ("add", "sub", "mul"):  # to nearest, where nothing is said
        found = next(one for one in ROWS if str(one) == f"{word}.rn.{t}")
        row(f"{word}.{t}", two, t, found.expected)
    sign = 1 << (width(t) - 1)
    row(f"abs.{t}", t, t, lambda a, sign=sign: a & ~sign)
    row(f"neg.{t}", t, t, lambda a, sign=sign: a ^ sign)
    row(f"copysign.{t}", two, t, lambda a, b, sign=sign: (a & sign) | (b & ~sign))
    row(f"mov.{t}", t, t, lambda a: a)
    row(f"selp.{t}", f"{t} {t} pred", t, lambda a, b, c: a if c else b)

    row(f"min.{t}", two, t, extreme(min, t))
    row(f"max.{t}", two, t, extreme(max, t))
    if t == "f32":
        row("min.NaN.f32", two, t, extreme(min, t, nan=True))
        row("max.NaN.f32", two, t, extreme(max, t, nan=True))

    for word in COMPARISONS:
        row(f"setp.{word}.{t}", two, "pred", comparison(word, t))

    least = Fraction(2) ** (FORMATS[t][2] + FORMATS[t][1] - 1)
    for word, holds in {
        "finite": lambda x: abs(x) < math.inf,
        "infinite": lambda x: abs(x) == math.inf,
        "number": lambda x: x == x,
        "notanumber": lambda x: x != x,
        "normal": lambda x, least=least: least <= abs(x) < math.inf,
        "subnormal": lambda x, least=least: 0 < abs(x) < least,
    }.items():
        row(f"testp.{word}.{t}", t, "pred", lambda a, holds=holds, t=t: int(holds(decoded(a, t))))


def paired(function: Callable[..., int]) -> Callable[..., int]:
    """A function of 16 bits on each half of 32."""
    return lambda *bits: function(*(b >> 16 for b in bits)) << 16 | function(*(b & 0xFFFF for b in bits))


for t in ("f16", "bf16"):
    two, three = f"{t} {t}", f"{t} {t} {t}"
    functions = {
        f"add.{t}": (2, arithmetic(t, "rn", lambda a, b: a + b, sum_minus(t, "rn"))),
        f"sub.rn.{t}": (2, arithmetic(t, "rn", lambda a, b: a - b, sum_minus(t, "rn", subtract=True))),
        f"mul.{t}": (2, arithmetic(t, "rn", lambda a, b: a * b, product_minus(t))),
        f"fma.rn.{t}": (3, arithmetic(t, "rn", lambda a, b, c: a * b + c, sum_minus(t, "rn", product=True))),
        f"min.{t}": (2, extreme(min, t)),
        f"max.{t}": (2, extreme(max, t)),
        f"min.NaN.{t}": (2, extreme(min, t, nan=True)),
        f"max.NaN.{t}": (2, extreme(max, t, nan=True)),
        f"neg.{t}": (1, lambda a: a ^ 0x8000),
        f"abs.{t}": (1, lambda a: a & 0x7FFF),
    }
    for words, (count, function) in functions.items():
        row(words, " ".join([t] * count), t, function)
        asked = list(itertools.product(EDGES[t], repeat=count))[:: 7 if count == 3 else 1]
        ahead = [*asked[1:], asked[0]]
        pairs = [tuple(a << 16 | b for a, b in zip(one, other)) for one, other in zip(asked, ahead)]
        row(f"{words}x2", " ".join([f"{t}x2"] * count), f"{t}x2", paired(function), pairs)
    for word in COMPARISONS:
        row(f"setp.{word}.{t}", two, "pred", comparison(word, t))


# Flushed: subnormal operands and results are zeros of their sign.
def flush(bits: int) -> int:
    return bits if bits & 0x7F800000 else bits & 0x80000000


def flushed(name: str) -> Callable[..., int]:
    plain = next(one for one in ROWS if str(one) == name).expected
    return lambda *bits: flush(plain(*map(flush, bits)))


def clamped(name: str) -> Callable[..., int]:
    """.sat: into [0, 1], a NaN to 0."""
    plain = next(one for one in ROWS if str(one) == name).expected

    def function(*bits: int) -> int:
        value = decoded(plain(*bits), "f32")
        return rounded(Fraction(min(max(value, 0), 1)), "f32", "rn") if value == value else 0

    return function


row("add.ftz.f32", "f32 f32", "f32", flushed("add.rn.f32"))
row("mul.rn.ftz.f32", "f32 f32", "f32", flushed("mul.rn.f32"))
row("fma.rn.ftz.f32", "f32 f32 f32", "f32", flushed("fma.rn.f32"))
row("abs.ftz.f32", "f32", "f32", flushed("abs.f32"))
row("div.rn.ftz.f32", "f32 f32", "f32", flushed("div.rn.f32"))
row(
    "setp.lt.ftz.f32",
    "f32 f32",
    "pred",
    lambda a, b: int(decoded(flush(a), "f32") < decoded(flush(b), "f32")),
)
row("add.sat.f32", "f32 f32", "f32", clamped("add.rn.f32"))
row("fma.rn.sat.f32", "f32 f32 f32", "f32", clamped("fma.rn.f32"))
ROWS.append(
    Row(
        "setp.lt.and.s32 #0, $0, $1, $2;",
        ("s32", "s32", "pred"),
        "pred",
        lambda a, b, c: int(signed(a, 32) < signed(b, 32) and c),
    )
)
ROWS.append(
    Row(
        "setp.gt.xor.u32 #0, $0, $1, !$2;",
        ("u32", "u32", "pred"),
        "pred",
        lambda a, b, c: int((a > b) != (not c)),
    )
)


# ---------------------------------------------------------------------------------------------------
# Conversions
# ---------------------------------------------------------------------------------------------------
INTEGERS = [f"{letter}{n}" for letter in "us" for n in (8, 16, 32, 64)]


def cut(value: int, type_: str) -> int:
    """Clamped to the range of an integer."""
    n = width(type_)
    low, high = (-(1 << (n - 1)), (1 << (n - 1)) - 1) if type_[0] == "s" else (0, (1 << n) - 1)
    return min(max(value, low), high)


def holder(type_: str) -> str:
    """There are no registers of 8 bits to load to: they lie in wider ones."""
    return type_ if width(type_) > 8 else f"{type_[0]}16"


for source in INTEGERS:
    for to in INTEGERS:
        n = width(source)

        def converted(a: int, source=source, to=to, n=n) -> int:
            value = signed(a, n) if source[0] == "s" else a & ((1 << n) - 1)
            value &= (1 << width(to)) - 1  # into the narrow type, then widened as the type says
            return signed(value, width(to)) if to[0] == "s" else value

        def saturated(a: int, source=source, to=to, n=n) -> int:
            return cut(signed(a, n) if source[0] == "s" else a & ((1 << n) - 1), to)

        row(f"cvt.{to}.{source}", holder(source), holder(to), converted)
        row(f"cvt.sat.{to}.{source}", holder(source), holder(to), saturated)

NEAR = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


def to_whole(value: Fraction, rounding: str) -> int:
    return {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[rounding](value)


for t in ("f32", "f64"):
    ends = [float(x) for x in (127, 128, 255, 256, 32767.5, 65535.5, 2**31 - 1, 2**31, 2**32, 2**63, 2**64)]
    ends += [0.5, 1.5, 2.5, 0.75, 3.25, *(-x for x in ends)]
    asked = [(b,) for b in (*EDGES[t], *(rounded(Fraction(x), t, "rn") for x in ends))]
    for r, plain in NEAR.items():

        def integral(a: int, t=t, r=r) -> int:
            value = decoded(a, t)
            if not isinstance(value, Fraction):
                return a if abs(value) == math.inf else NAN[t]
            return rounded(Fraction(to_whole(value, r)), t, "rn", negative(a, t))

        row(f"cvt.{r}.{t}.{t}", t, t, integral, asked)
        for i in INTEGERS:

            def clipped(a: int, t=t, r=r, i=i) -> int:
                value = decoded(a, t)
                if value != value:
                    lowest = 1 << (width(i) - 1)
                    return (-lowest if i[0] == "s" else lowest) if 64 in (width(i), width(t)) else 0
                if isinstance(value, float):
                    return cut((1 if value > 0 else -1) << 99, i)
                return cut(to_whole(value, r), i)

            row(f"cvt.{r}.{i}.{t}", t, holder(i), clipped, asked)
            more = [
                (b,)
                for b in (*integers(width(holder(i))), 0x1000001, 0x1000003, 2**53 + 1)
                if b < 1 << width(holder(i))
            ]

            def floating(a: int, t=t, plain=plain, i=i) -> int:
                a &= (1 << width(i)) - 1
                return rounded(Fraction(signed(a, width(i)) if i[0] == "s" else a), t, plain)

            row(f"cvt.{plain}.{t}.{i}", holder(i), t, floating, more)


for i in ("u16", "s16", "u32", "s32"):
    more = [(b,) for b in (*integers(width(i)), 2049, 2051, 65519, 65520) if b < 1 << width(i)]
    row(
        f"cvt.rn.f16.{i}",
        i,
        "f16",
        lambda a, i=i: rounded(Fraction(signed(a, width(i)) if i[0] == "s" else a), "f16", "rn"),
        more,
    )
    for r in NEAR:

        def clipped_half(a: int, r=r, i=i) -> int:
            value = decoded(a, "f16")
            if isinstance(value, float):
                return 0 if value != value else cut((1 if value > 0 else -1) << 99, i)
            return cut(to_whole(value, r), i)

        row(f"cvt.{r}.{i}.f16", "f16", i, clipped_half, [(b,) for b in range(0, 1 << 16, 37)])


def narrowed(source: str, to: str, rounding: str) -> Callable[[int], int]:
    def function(a: int) -> int:
        value = decoded(a, source)
        if isinstance(value, Fraction):
            return rounded(value, to, rounding, negative(a, source))
        if value != value:
            return 0x7FFF if width(to) == 16 else NAN[to]
        return infinite(value < 0, to)

    return function


row("cvt.f64.f32", "f32", "f64", narrowed("f32", "f64", "rn"))
between = [
    (b,)
    for b in (
        *EDGES["f64"],
        0x3FF0000010000000,
        0x3FF0000010000001,
        0x36A0000000000001,
        0x380FFFFFFFFFFFFF,
        0x47EFFFFFF0000000,
        0x3F10000000000001,
        0x3FF0020000000000,
        0x3FF0020000000001,
    )
]
for r in ("rn", "rz", "rm", "rp"):
    row(f"cvt.{r}.f32.f64", "f64", "f32", narrowed("f64", "f32", r), between)
row("cvt.rn.f16.f64", "f64", "f16", narrowed("f64", "f16", "rn"), between)
# Each half, those between two of them, and their neighbours.
halves = [
    int(b)
    for b in np.arange(0, 1 << 16, 61, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
]
around = [(b + more,) for b in halves for more in (0, 0x0FFF, 0x1000, 0x1001)] + [(b,) for b in EDGES["f32"]]
around = [(b,) for (b,) in around if b < 1 << 32]
for t in ("f16", "bf16"):
    for r in ("rn", "rz"):
        row(f"cvt.{r}.{t}.f32", "f32", t, narrowed("f32", t, r), around)
        one = narrowed("f32", t, r)
        row(f"cvt.{r}.{t}x2.f32", "f32 f32", f"{t}x2", lambda a, b, one=one: one(a) << 16 | one(b))


def tf32(a: int) -> int:
    """Ten bits of mantissa: the nearest, of two as near the one farther from zero."""
    value = decoded(a, "f32")
    if not isinstance(value, Fraction) or value == 0:
        return 0x7FFFFFFF if value != value else a
    below = a & ~0x1FFF
    neighbours = [below, below + 0x2000]
    sizes = [
        abs(decoded(b, "f32")) if (b & 0x7F800000) < 0x7F800000 else Fraction(2) ** 128 for b in neighbours
    ]
    low, high = abs(value) - sizes[0], sizes[1] - abs(value)
    return neighbours[low >= high]


row(
    "cvt.rna.tf32.f32",
    "f32",
    "u32",
    tf32,
    around + [(b << 13 | h,) for b in (1, 5, 1023) for h in (0xFFF, 0x1000)],
)
row(
    "cvt.f32.f16",
    "f16",
    "f32",
    narrowed("f16", "f32", "rn"),
    [(b,) for b in (*range(0, 1 << 16, 5), 0x7C01, 0xFC00)],
)
row("cvt.f64.f16", "f16", "f64", narrowed("f16", "f64", "rn"), [(b,) for b in range(0, 1 << 16, 17)])
row("cvt.f32.bf16", "bf16", "f32", narrowed("bf16", "f32", "rn"), [(b,) for b in range(0, 1 << 16, 17)])
row(
    "cvt.sat.f32.f32",
    "f32",
    "f32",
    lambda a: (
        rounded(Fraction(min(max(decoded(a, "f32"), 0), 1)), "f32", "rn") if not is_nan(a, "f32") else 0
    ),
)
row("cvt.ftz.f32.f32", "f32", "f32", flush)
row(
    "cvt.rn.sat.f16.f32",
    "f32",
    "f16",
    lambda a: (
        rounded(Fraction(min(max(decoded(a, "f32"), 0), 1)), "f16", "rn") if not is_nan(a, "f32") else 0
    ),
)


# ---------------------------------------------------------------------------------------------------
# The tests
# ---------------------------------------------------------------------------------------------------
def wrong(one: Row, rows: Sequence[Sequence[int]]) -> list[str]:
    """What comes out other than expected."""
    found, bits = [], width(one.result)
    for operands, (got,) in zip(rows, compute(one.instruction, one.types, (one.result,), rows)):
        if (expected := one.expected(*operands)) is None:
            continue
        expected = int(expected) & ((1 << bits) - 1)
        nan = one.result in FORMATS and is_nan(expected, one.result) and bits > 16
        if got != expected and not (nan and is_nan(got, one.result)):
            found.append(f"{one} of {[hex(x) for x in operands]}: {got:#x}, expected {expected:#x}")
    return found


FAMILIES = sorted({str(one).split(".")[0] for one in ROWS})


@pytest.mark.parametrize("family", FAMILIES)
def test_instructions(family):
    found = [text for one in ROWS if str(one).split(".")[0] == family for text in wrong(one, one.asked())]
    assert not found, found[:10]


#: What test_ptx_machine.py, test_ptx_approx.py and test_ptx_matrix.py ask.
ELSEWHERE = (
    *("ld.", "st.", "atom.", "cvta.", "cp.async.", "shfl.", "vote.", "redux.", "match.", "bar", "bra", "brx"),
    *("exit", "trap", "nothing", "activemask", "mma.", "ldmatrix.", "pack2.", "low.", "high."),
)


def test_every_operation_is_asked_for():
    """A new row of the table needs a row here, or a test of its own."""
    asked, names = set(), operations()
    for one in ROWS:
        made = program(text_of(one.instruction, one.types, (one.result,)), "k")
        asked |= {names[row] for row in made.code["row"]}
    known = (*ELSEWHERE, *(name for name in names if ".approx." in name or ".full." in name))
    missing = [name for name in names if name not in asked and not name.startswith(known)]
    assert not missing, "\n".join(missing)
