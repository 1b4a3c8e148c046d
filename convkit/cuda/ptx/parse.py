"""PTX as text, read: its functions, variables and instructions, with lines of the source where it has them.

Only the form is looked at here; what an instruction means, and whether it is known, `assemble` says.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import refused

#: Bytes of a type.
SIZES = {
    f"{letter}{bits}": bits // 8
    for letter, widths in {
        "b": (8, 16, 32, 64, 128), "u": (8, 16, 32, 64), "s": (8, 16, 32, 64), "f": (16, 32, 64), "bf": (16,)
    }.items()
    for bits in widths
} | {"pred": 1, "f16x2": 4, "bf16x2": 4}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A line of the source; `inlined_at` is where its function was called."""

    file: str
    line: int
    inlined_at: Place | None = None


@dataclass(frozen=True)
class Variable:
    """A variable or a parameter.

    Attributes
    ----------
    space : str
        "global", "const", "shared", "local" or "param".
    size : int
        Bytes of all its elements; 0 for an array whose size the launch says.
    initial : bytes
        What it holds at first; empty where that is not said.
    """

    space: str
    name: str
    type: str
    align: int
    size: int
    initial: bytes = b""
    external: bool = False


@dataclass(frozen=True)
class Instruction:
    """An instruction as it stands there.

    Attributes
    ----------
    opcode : tuple of str
        Its words: ("fma", "rn", "f32").
    operands : tuple of str
    guard : str
        The predicate's register, or nothing.
    negated : bool
        Whether it runs where the predicate is false.
    line : int
        In the PTX.
    scope : tuple of int
        The blocks that it stands in, the outermost first: a name belongs to the innermost that has it.
    """

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str
    negated: bool
    line: int
    place: Place | None
    scope: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(self.opcode)


@dataclass
class Entry:
    """A kernel.

    Attributes
    ----------
    registers : dict
        Type of each register, by the block that declares it and its name.
    counted : dict
        Type and number of `%r<10>`, which declares %r0 to %r9; by block and name.
    labels : dict
        The number of the instruction that a label stands in front of, by block and name.
    tables : dict
        Lists of labels (`.branchtargets`), by block and name.
    """

    name: str
    parameters: list[Variable]
    shared: list[Variable] = field(default_factory=list)
    local: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    registers: dict[tuple[int, str], str] = field(default_factory=dict)
    counted: dict[tuple[int, str], tuple[str, int]] = field(default_factory=dict)
    labels: dict[tuple[int, str], int] = field(default_factory=dict)
    tables: dict[tuple[int, str], tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Module:
    """A whole text: its kernels by name, and the variables outside of them."""

    entries: dict[str, Entry]
    variables: dict[str, Variable]
    target: str


_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_STATEMENT = re.compile(
    r"""\s*(?:
      (?P<loc>\.loc\s+[^\n]*) | (?P<file>\.file\s+[^\n]*) | (?P<section>\.section\s+[^{]*\{[^}]*\})
    | (?P<header>\.(?:version|target|address_size)\s+[^\n]*)
    | (?P<open>\{) | (?P<close>\})
    | (?P<label>[\w$]+)\s*:(?!:)
    | (?P<text>[^;{}]*(?:\{[^{};]*\}[^;{}]*)*);
    )""",
    re.VERBOSE,
)
_FUNCTION = re.compile(
    r"^[ \t]*(?P<link>(?:\.(?:visible|extern|weak)\s+)*)\.(?P<kind>entry|func)\b[^{;]*?"
    r"(?:\((?P<result>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*(?:\((?P<parameters>[^)]*)\))?",
    re.MULTILINE,
)
_VARIABLE = re.compile(
    r"(?P<link>(?:\.(?:visible|extern|weak|common)\s+)*)\.(?P<space>global|const|shared|local|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?(?:\.v(?P<vector>\d)\s+)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr\S*\s+(?:\.(?:global|const|shared|local)\s+)?(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)"
    r"\s*(?P<array>(?:\[\d*\]\s*)*)(?:=\s*(?P<initial>.*))?$",
    re.DOTALL,
)
_INSTRUCTION = re.compile(
    r"(?:@(?P<not>!?)(?P<guard>[%\w$]+)\s+)?(?P<opcode>[a-zA-Z][\w.:]*)\s*(?P<rest>.*)$", re.S
)


def parse(text: str) -> Module:
    """Read a text of PTX.

    Raises
    ------
    KernelError
        Of kind "unsupported", for what is not understood; it says the line.
    """
    text = _COMMENT.sub(lambda f: f[0] if f[0][0] == '"' else "\n" * f[0].count("\n"), text)
    target = re.search(r"^\s*\.target\s+(\w+)", text, re.M)
    files = {int(n): path for n, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)}
    entries: dict[str, Entry] = {}
    outside, at = [], 0
    for found in _FUNCTION.finditer(text):
        if found.start() < at:
            continue
        outside.append((at, text[at : found.start()]))
        begin = re.compile(r"[{;]").search(text, found.end())
        if begin is None or begin[0] == ";":  # a declaration
            at = begin.end() if begin else len(text)
            continue
        end = _closing(text, begin.start())
        if found["kind"] == "entry":
            parameters = [
                _variable(one, _line(text, found.start())) for one in _split(found["parameters"] or "")
            ]
            entry = entries[found["name"]] = Entry(found["name"], parameters)
            _Body(entry, files, text, begin.start(), end).read()
        at = end + 1
    outside.append((at, text[at:]))
    variables = {v.name: v for start, part in outside for v in _variables(text, start, part)}
    return Module(entries, variables, target[1] if target else "")


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _closing(text: str, at: int) -> int:
    """Where the brace that opens here is closed."""
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if found[0] == "{" else -1
        if not depth:
            return found.start()
    raise refused("a brace that is not closed", _line(text, at))


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        if letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[begin:at].strip())
            begin = at + 1
    last = text[begin:].strip()
    return [*parts, last] if last or parts else []


def _variables(whole: str, start: int, part: str) -> Iterator[Variable]:
    """The variables outside of functions."""
    at = start
    for match in _STATEMENT.finditer(part):
        text = (match["text"] or "").strip()
        at = start + match.start()
        if text:
            yield _variable(
                text, _line(whole, at) + match[0][: len(match[0]) - len(match[0].lstrip())].count("\n")
            )


def _variable(text: str, line: int) -> Variable:
    found = _VARIABLE.match(text.strip())
    if not found or found["type"] not in SIZES:
        raise refused(f"the declaration {' '.join(text.split())[:80]!r}", line)
    size = SIZES[found["type"]]
    extents = [int(n or 0) for n in re.findall(r"\[(\d*)\]", found["array"])]
    count = int(found["vector"] or 1)
    for extent in extents:
        count *= extent
    return Variable(
        found["space"], found["name"], found["type"], int(found["align"] or size * int(found["vector"] or 1)),
        size * count, _initial(found["initial"], found["type"], line), "extern" in found["link"],
    )  # fmt: skip


def _initial(text: str | None, type_: str, line: int) -> bytes:
    if not text:
        return b""
    values = [one.strip() for one in text.strip().strip("{}").replace("{", "").replace("}", "").split(",")]
    try:
        return b"".join(number(one, type_).to_bytes(SIZES[type_], "little") for one in values)
    except ValueError:
        raise refused(f"the value {' '.join(text.split())[:60]!r} of a variable", line) from None


def number(text: str, type_: str) -> int:
    """The bits of a constant, as a number of that type.

    Raises
    ------
    ValueError
        If it is none.
    """
    bits = 8 * SIZES[type_]
    if found := re.fullmatch(r"(-?)0([fF])([0-9a-fA-F]{8})|(-?)0([dD])([0-9a-fA-F]{16})", text):
        width = 32 if found[2] else 64
        value = int(found[3] or found[6], 16) ^ ((1 << (width - 1)) if found[1] or found[4] else 0)
        if type_.startswith("f") and bits != width:
            return _float_bits(_float_of(value, width), bits)
        if bits < width:
            raise ValueError(text)
        return value
    if type_ in ("f32", "f64") and re.fullmatch(r"-?(\d+\.\d*|\d*\.\d+|\d+)([eE][-+]?\d+)?", text):
        return _float_bits(float(text), bits)
    found = re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9]\d*)U?", text)
    if not found:
        raise ValueError(text)
    digits = found[2]
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xXbB"
    value = int(digits, 8) if octal else int(digits, 0)
    return (-value if found[1] else value) & ((1 << bits) - 1)


def _float_of(value: int, width: int) -> float:
    return struct.unpack("<f" if width == 32 else "<d", value.to_bytes(width // 8, "little"))[0]


def _float_bits(value: float, bits: int) -> int:
    return int.from_bytes(struct.pack("<f" if bits == 32 else "<d", value), "little")


class _Body:
    """Reads what stands between the braces of a kernel."""

    def __init__(self, entry: Entry, files: dict[int, str], text: str, begin: int, end: int) -> None:
        self.entry, self.files, self.text, self.begin, self.end = entry, files, text, begin, end
        self.scope: list[int] = []
        self.scopes = 0
        self.label = ""
        self.place: Place | None = None

    def read(self) -> None:
        at, line, counted = self.begin, _line(self.text, self.begin), self.begin
        while at <= self.end:
            found = _STATEMENT.match(self.text, at)
            if not found or found.end() > self.end + 1:
                if not self.text[at : self.end + 1].strip():
                    break
                raise refused(f"{' '.join(self.text[at : at + 60].split())!r}", _line(self.text, at))
            begin = at + len(found[0]) - len(found[0].lstrip())
            line += self.text.count("\n", counted, begin)
            counted = begin
            self.statement(found, line)
            at = found.end()

    def statement(self, found: re.Match[str], line: int) -> None:
        if found["open"]:
            self.scope.append(self.scopes)
            self.scopes += 1
        elif found["close"]:
            self.scope.pop()
        elif found["loc"]:
            self.place = self.location(found["loc"])
        elif found["label"]:
            self.label = found["label"]
            self.entry.labels[self.scope[-1], self.label] = len(self.entry.instructions)
        elif found["text"] and (text := found["text"].strip()):
            self.directive(text, line) if text.startswith(".") else self.instruction(text, line)

    def location(self, text: str) -> Place | None:
        """A `.loc`: of a file, line and column, and of the call where it is inlined."""
        own = re.match(r"\.loc\s+(\d+)\s+(\d+)", text)
        called = re.search(r"inlined_at\s+(\d+)\s+(\d+)", text)
        if not own:
            return None

        def place(found: re.Match[str], caller: Place | None = None) -> Place:
            return Place(self.files.get(int(found[1]), ""), int(found[2]), caller)

        return place(own, place(called) if called else None)

    def directive(self, text: str, line: int) -> None:
        entry, word = self.entry, text.split(None, 1)[0]
        if word == ".pragma":
            return  # hints, of no meaning for the result
        if word == ".reg":
            found = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text, re.S)
            if not found or found[1] not in SIZES or found[1] == "b128":
                raise refused(f"the registers {text!r}", line)
            for name in _split(found[2]):
                if several := re.fullmatch(r"([%\w$]+)<(\d+)>", name):
                    entry.counted[self.scope[-1], several[1]] = found[1], int(several[2])
                else:
                    entry.registers[self.scope[-1], name] = found[1]
        elif word == ".branchtargets":
            entry.tables[self.scope[-1], self.label] = tuple(_split(text.removeprefix(word)))
        elif word in (".shared", ".local"):
            (entry.shared if word == ".shared" else entry.local).append(_variable(text, line))
        else:
            raise refused(f"the directive {text!r}", line)

    def instruction(self, text: str, line: int) -> None:
        found = _INSTRUCTION.match(text)
        if not found:
            raise refused(repr(text), line)
        opcode = tuple(found["opcode"].replace("::", ":").split("."))
        self.entry.instructions.append(
            Instruction(
                opcode,
                tuple(_split(found["rest"])),
                found["guard"] or "",
                bool(found["not"]),
                line,
                self.place,
                tuple(self.scope),
            )
        )
