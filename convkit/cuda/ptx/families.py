"""What is particular to a family of instructions, by its first word: `FAMILIES`.

A new instruction is a row of the machine's table (`kernels/ptx/*.cpp`). Where its words and operands are
those of the row, nothing is to be done here: `plain` finds it. Else a function here says how it is
put together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .assemble import Use
from .parse import SIZES

FAMILIES: dict[str, Callable[[Use], None]] = {}

#: Words that say how an access is ordered or cached: nothing that a lane at a time could tell.
_ORDER = (
    *("weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "cta", "cluster", "gpu", "sys"),
    *("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"),
)
_SPACES = {
    "global": "global",
    "const": "global",
    "shared": "shared",
    "shared:cta": "shared",
    "local": "local",
}
_SPACES |= {"param": "param", "param:entry": "param"}
_FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
_ROUNDED = ("add", "sub", "mul")
_ROUNDINGS = ("rn", "rz", "rm", "rp")


def family(*names: str) -> Callable[[Callable[[Use], None]], Callable[[Use], None]]:
    """Registers a function for instructions that begin with one of these words."""

    def register(function: Callable[[Use], None]) -> Callable[[Use], None]:
        FAMILIES.update(dict.fromkeys(names, function))
        return function

    return register


def plain(use: Use) -> None:
    """An instruction whose operands are those of its row, in their order."""
    words = use.words
    single = words[-1] == "f32"
    flush = single and use.take("ftz")
    clamp = single and use.take("sat")
    if words[0] in _ROUNDED and words[-1] in _FLOATS and words[1] not in _ROUNDINGS:
        words.insert(1, "rn")  # it is the default
    if words[0] == "shr" and words[-1].startswith("b"):
        words[-1] = "u" + words[-1][1:]
    apply(use, ".".join(words), use.operands, flush=flush, clamp=clamp)


def apply(
    use: Use,
    name: str,
    operands: tuple[str, ...],
    *,
    flush: bool = False,
    clamp: bool = False,
    resize: bool = False,
) -> None:
    """An operation on operands as they stand there.

    Parameters
    ----------
    flush, clamp : bool
        Subnormal numbers are taken, and given, as zeros; the result lies in [0, 1].
    resize : bool
        Registers may be wider than the operands.
    """
    types = use.types(name)
    if len(types) != len(operands):
        raise use.refuse(f"{use.instruction} with {len(operands)} operands")
    rows: list[int] = []
    behind: list[Callable[[], None]] = []
    for text, type_ in zip(operands, types):
        if type_.startswith(">"):
            row, widen = use.write(text, type_[1:], widen=resize)
            rows.append(row)
            if type_ == ">f32":
                behind += [partial(use.emit, "sat.f32", row, row)] if clamp else []
                behind += [partial(use.emit, "ftz.f32", row, row)] if flush else []
            behind.append(widen)
        else:
            row = use.read(text, type_, narrow=resize)
            if flush and type_ == "f32":
                flushed = use.temporary("f32")
                use.emit("ftz.f32", flushed, row)
                row = flushed
            rows.append(row)
    use.emit(name, *rows)
    for emit in behind:
        emit()


# ---------------------------------------------------------------------------------------------------
# Registers
# ---------------------------------------------------------------------------------------------------
def _bits(use: Use) -> str:
    """The last word as a type of bits: "f32" is "b32"."""
    type_ = use.words[-1]
    if type_ not in SIZES:
        raise use.refuse()
    return type_ if type_ == "pred" else f"b{8 * SIZES[type_]}"


@family("mov")
def mov(use: Use) -> None:
    if len(use.words) != 2 or len(use.operands) != 2:
        raise use.refuse()
    type_, (to, source) = _bits(use), use.operands
    halves = f"b{4 * SIZES[type_]}"
    if source.startswith("{"):
        _pack(use, use.write(to, type_)[0], [(part, halves) for part in use.several(source)], type_)
    elif to.startswith("{"):
        _unpack(use, use.read(source, type_), use.several(to), type_)
    else:
        apply(use, f"mov.{type_}", (to, source))


def _pack(use: Use, to: int, parts: list[tuple[str, str]], type_: str) -> None:
    """Parts side by side, the first in the lowest bits."""
    if len(parts) not in (2, 4):
        raise use.refuse()
    if len(parts) == 4:
        half, quarter = f"b{4 * SIZES[type_]}", f"b{2 * SIZES[type_]}"
        made = [use.temporary(half), use.temporary(half)]
        for row, pair in zip(made, (parts[:2], parts[2:])):
            _pack(use, row, [(text, quarter) for text, _ in pair], half)
        use.emit(f"pack2.{type_}", to, *made)
        return
    use.emit(f"pack2.{type_}", to, *(use.read(text, part) for text, part in parts))


def _unpack(use: Use, source: int, parts: list[str], type_: str) -> None:
    """The parts of a value, the lowest bits first."""
    if len(parts) not in (2, 4):
        raise use.refuse()
    half = f"b{4 * SIZES[type_]}"
    for which, pair in zip(("low", "high"), (parts[: len(parts) // 2], parts[len(parts) // 2 :])):
        if len(pair) == 1:
            if pair[0] != "_":
                use.emit(f"{which}.{type_}", use.write(pair[0], half)[0], source)
        else:
            row = use.temporary(half)
            use.emit(f"{which}.{type_}", row, source)
            _unpack(use, row, pair, half)


@family("selp")
def selp(use: Use) -> None:
    if len(use.words) != 2:
        raise use.refuse()
    apply(use, f"selp.{_bits(use)}", use.operands)


@family("setp")
def setp(use: Use) -> None:
    type_, comparison = use.words[-1], use.words[1]
    flush = use.take("ftz")
    combine = next((word for word in ("and", "or", "xor") if use.take(word)), "")
    if len(use.words) != 3 or type_ not in SIZES or len(use.operands) != (4 if combine else 3):
        raise use.refuse()
    if type_[0] in "bu" and type_ not in _FLOATS:  # unsigned comparisons have names of their own as well
        comparison = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(comparison, comparison)
        if type_[0] == "b" and comparison not in ("eq", "ne"):
            raise use.refuse()
        type_ = f"u{8 * SIZES[type_]}"
    name = f"setp.{comparison}.{type_}"
    use.types(name)  # refused, if it is not known, before anything is emitted
    to, _, inverse = (part.strip() for part in use.operands[0].partition("|"))
    sources = []
    for text in use.operands[1:3]:
        row = use.read(text, type_)
        if flush and type_ == "f32":
            flushed = use.temporary("f32")
            use.emit("ftz.f32", flushed, row)
            row = flushed
        sources.append(row)
    # The results come last: one of them may be an operand too.
    holds = use.temporary("pred")
    use.emit(name, holds, *sources)
    fails = use.temporary("pred")
    use.emit("not.pred", fails, holds)
    if combine:
        other = use.read(use.operands[3], "pred")
        use.emit(f"{combine}.pred", fails, fails, other)
        use.emit(f"{combine}.pred", holds, holds, other)
    if inverse and inverse != "_":
        use.emit("mov.pred", use.write(inverse, "pred")[0], fails)
    if to != "_":
        use.emit("mov.pred", use.write(to, "pred")[0], holds)


@family("cvt")
def cvt(use: Use) -> None:
    if len(use.words) < 3:
        raise use.refuse()
    to, source = use.words[-2:]
    flush, clamp = use.take("ftz"), use.take("sat")
    integers = to[0] in "us" and source[0] in "us"
    if flush and "f32" not in (to, source):
        raise use.refuse()
    if clamp and integers:
        use.words.insert(1, "sat")
        clamp = False
    if clamp and to not in ("f32", "f16", "bf16"):
        raise use.refuse()
    name, operands = ".".join(use.words), use.operands
    if clamp and to != "f32":  # [0, 1] is the same before it is rounded
        clamped = use.temporary("f32")
        use.emit("sat.f32", clamped, use.read(operands[1], "f32"))
        use.emit(name, use.write(operands[0], use.types(name)[0][1:])[0], clamped)
        return
    apply(use, name, operands, flush=flush, clamp=clamp, resize=True)


@family("cvta")
def cvta(use: Use) -> None:
    space = use.words[-2]
    if use.words[-1] != "u64":
        raise use.refuse()
    if space in ("global", "const", "param"):
        apply(use, "mov.b64", use.operands)
        return
    apply(use, ".".join(use.words), use.operands)


# ---------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------
def _access(use: Use, operand: str) -> tuple[str, int, int]:
    """Space and width of an access as the row's name has them, the row of its address, the offset."""
    use.take(*_ORDER, *(word for word in use.words if word.startswith(("L1:", "L2:"))))
    words = [word for word in use.words[1:] if word in _SPACES]
    use.take(*words)
    row, size, offset, own = use.memory(operand)
    space = _SPACES[words[0]] if words else "generic"
    if len(words) > 1 or (own and own != space and space != "generic"):
        raise use.refuse(f"the address {operand} in {use.instruction}")
    if own == "shared" and space == "generic":
        raise use.refuse(f"the address {operand} in {use.instruction}")
    if size == 4 and space != "shared":
        wide = use.temporary("u64")
        use.emit("cvt.u64.u32", wide, row)
        row, size = wide, 8
    return f"{space}.u{8 * size}", row, offset


def _vector(use: Use) -> int:
    """How many elements are accessed at once."""
    for count in (2, 4, 8):
        if use.take(f"v{count}"):
            return count
    return 1


@family("ld", "ldu")
def ld(use: Use) -> None:
    type_, count = use.words[-1], _vector(use)
    if len(use.operands) != 2 or type_ not in SIZES or type_ == "pred":
        raise use.refuse()
    where, address, offset = _access(use, use.operands[1])
    if len(use.words) != 2:
        raise use.refuse()
    to = use.several(use.operands[0])
    if len(to) != count:
        raise use.refuse()
    rows = [use.write(text, type_, widen=True) for text in to]
    use.emit(f"ld.{where}.v{count}.b{8 * SIZES[type_]}", *(row for row, _ in rows), address, offset=offset)
    for _, widen in rows:
        widen()


@family("st")
def st(use: Use) -> None:
    type_, count = use.words[-1], _vector(use)
    if len(use.operands) != 2 or type_ not in SIZES or type_ == "pred":
        raise use.refuse()
    where, address, offset = _access(use, use.operands[0])
    if len(use.words) != 2:
        raise use.refuse()
    parts = use.several(use.operands[1])
    if len(parts) != count:
        raise use.refuse()
    rows = [use.read(text, type_, narrow=True) for text in parts]
    use.emit(f"st.{where}.v{count}.b{8 * SIZES[type_]}", address, *rows, offset=offset)


@family("atom", "red")
def atom(use: Use) -> None:
    returns = use.words[0] == "atom"
    to, operands = (use.operands[0], use.operands[1:]) if returns else ("_", use.operands)
    where, address, offset = _access(use, operands[0])
    if len(use.words) != 3 or len(operands) != (3 if use.words[1] == "cas" else 2):
        raise use.refuse()
    name = f"atom.{where}.{use.words[1]}.{use.words[2]}"
    type_ = use.types(name)[0][1:]
    sources = [use.read(text, type_) for text in operands[1:]]
    use.emit(
        name, use.write(to, type_)[0], address, *sources, *sources[-1:] * (2 - len(sources)), offset=offset
    )


@family("cp")
def cp(use: Use) -> None:
    words = [word for word in use.words if not word.startswith(("L2:", "L1:"))]
    if words[2:] in (["commit_group"], ["wait_group"], ["wait_all"]):
        apply(use, ".".join(words), use.operands)
        return
    if words[:2] != ["cp", "async"] or words[2] not in ("ca", "cg") or words[-1] != "global":
        raise use.refuse()
    if words[3:-1] not in (["shared"], ["shared:cta"]) or len(use.operands) not in (3, 4):
        raise use.refuse()
    size = use.operands[2]
    to, width, offset, _ = use.memory(use.operands[0])
    wide = use.temporary("u64")
    if width == 4:
        use.emit("cvt.u64.u32", wide, to)
        to = wide
    if offset:
        use.emit("add.u64", wide, to, use.read(str(offset), "u64"))
        to = wide
    source, width, offset, _ = use.memory(use.operands[1])
    if width != 8:
        raise use.refuse()
    use.emit(f"cp.async.{size}", to, source, use.read(use.operands[-1], "u32"), offset=offset)


@family("membar", "fence", "prefetch", "prefetchu", "nanosleep", "discard", "applypriority")
def nothing(use: Use) -> None:
    use.emit("nothing")


# ---------------------------------------------------------------------------------------------------
# Lanes together
# ---------------------------------------------------------------------------------------------------
@family("shfl")
def shfl(use: Use) -> None:
    if len(use.operands) != 5:
        raise use.refuse()
    to, _, in_range = (part.strip() for part in use.operands[0].partition("|"))
    apply(use, ".".join(use.words), (to, in_range or "_", *use.operands[1:]))


@family("bar", "barrier")
def bar(use: Use) -> None:
    words, operands = use.words, use.operands
    if words[1:3] == ["warp", "sync"]:
        apply(use, "bar.warp.sync", operands)
        return
    use.take("cta")
    if use.take("aligned") or words[1:2] == ["red"]:
        words[0] = "bar"
    if words[1:2] == ["red"]:
        to, number, *count, source = operands
        apply(use, ".".join(words), (number, *(count or ["0"]), source, to))
        return
    number, *count = operands
    apply(use, ".".join(words), (number, *(count or ["0"])))


@family("mma")
def mma(use: Use) -> None:
    # mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32: types of d, a, b and c
    words = use.words
    if len(words) != 10 or words[1:3] != ["sync", "aligned"] or words[4:7] != ["row", "col", "f32"]:
        raise use.refuse()
    if words[7] != words[8] or words[9] != "f32" or len(use.operands) != 4:
        raise use.refuse()
    parts = tuple(part for text in use.operands for part in use.several(text))
    apply(use, f"mma.{words[3]}.{words[7]}", (*parts, "-1"))


@family("ldmatrix")
def ldmatrix(use: Use) -> None:
    # ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
    words, transposed = use.words, ".trans" if use.take("trans") else ""
    if words[1:4] != ["sync", "aligned", "m8n8"] or words[5:] not in (
        ["shared", "b16"],
        ["shared:cta", "b16"],
    ):
        raise use.refuse()
    to = use.several(use.operands[0])
    address, size, offset, _ = use.memory(use.operands[1])
    if size == 4:
        wide = use.temporary("u64")
        use.emit("cvt.u64.u32", wide, address)
        address = wide
    name = f"ldmatrix.{words[4]}{transposed}"
    if len(to) != len(use.types(name)) - 2:
        raise use.refuse()
    rows = [use.write(text, "u32")[0] for text in to]
    use.emit(name, *rows, address, use.read("-1", "u32"), offset=offset)


# ---------------------------------------------------------------------------------------------------
# Where a kernel goes on
# ---------------------------------------------------------------------------------------------------
@family("bra")
def bra(use: Use) -> None:
    use.take("uni")
    if len(use.words) != 1 or len(use.operands) != 1:
        raise use.refuse()
    use.emit("bra", label=use.operands[0])


@family("brx")
def brx(use: Use) -> None:
    use.take("uni")
    if use.words != ["brx", "idx"] or len(use.operands) != 2:
        raise use.refuse()
    use.emit("brx", use.read(use.operands[0], "u32"), table=use.operands[1])


@family("ret", "exit")
def leave(use: Use) -> None:
    use.take("uni")
    if len(use.words) != 1:
        raise use.refuse()
    use.emit("exit")


@family("call")
def call(use: Use) -> None:
    names = [text for text in use.operands if not text.startswith("(")]
    raise use.refuse(f"a call of the function {names[0] if names else '?'}")
