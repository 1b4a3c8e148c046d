"""From instructions as PTX has them to a program for the machine: the row of each, and those of its operands.

The machine's table (`kernels/ptx/*.cpp`) says what an operation computes and which types its operands have.
Here stands what the many forms of an instruction have in common: flushing to zero and clamping are operations
around another one, a register wider than what is loaded is extended behind it, a comparison that is combined
with a predicate is two operations. `families` has what is particular to some instructions. What neither
knows is refused by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..launch import KernelError
from .errors import refused
from .parse import SIZES, Instruction, Module, Place, Variable, number
from .registers import MODULE, NOTHING, PARAMETERS, SPECIAL, Constant, File

#: An instruction as the machine takes it: `Code` in machine.hpp.
CODE = np.dtype(
    [(name, "<u4") for name in ("row", "operands", "guard", "flags", "target", "unused")]
    + [("offset", "<i8")]
)
FIXED = np.dtype([("at", "<u4"), ("bytes", "<u4"), ("value", "<u8"), ("base", "<u4"), ("single", "<u4")])
SPECIAL_ROW = np.dtype([("at", "<u4"), ("which", "<u4")])
RANGE = np.dtype([("begin", "<u8"), ("bytes", "<u8"), ("owner", "<i4"), ("writable", "<u4")])

#: Finds an operation of the machine: its row and the types of its operands, or None.
Find = Callable[[str], "tuple[int, tuple[str, ...]] | None"]
#: Bytes between two variables in shared memory, so that what runs over the end of one is seen.
GAP = 64


@dataclass(frozen=True)
class Program:
    """A kernel for the machine.

    Attributes
    ----------
    code, operands, fixed, special : ndarray
        As machine.hpp has them.
    fixed_bytes, file_bytes : int
        Of a warp's file: constants and special registers; all of it.
    parameters : tuple of (int, int)
        Where each parameter begins, and its bytes.
    shared : tuple of (int, Variable)
        Where the variables in shared memory begin; those whose size the launch says come last.
    module : bytes
        What the module's variables hold at first.
    variables : tuple of (int, Variable)
        Where each of them begins.
    lines : tuple of (int, Place or None)
        For each of the machine's instructions, the line of the PTX and that of the source.
    """

    name: str
    code: np.ndarray
    operands: np.ndarray
    fixed: np.ndarray
    special: np.ndarray
    fixed_bytes: int
    file_bytes: int
    local_bytes: int
    parameters: tuple[tuple[int, int], ...]
    parameter_bytes: int
    shared: tuple[tuple[int, Variable], ...]
    shared_bytes: int
    module: bytes
    variables: tuple[tuple[int, Variable], ...]
    lines: tuple[tuple[int, Place | None], ...]


@dataclass
class _Emitted:
    row: int
    operands: list[int]
    offset: int
    label: str  # where a branch goes
    table: str  # of a branch by an index, the name of its list of labels
    source: Instruction


def _laid_out(variables: Sequence[Variable], gap: int = 0) -> tuple[list[tuple[int, Variable]], int]:
    """The variables one behind the other, each where its alignment allows; and the bytes of all."""
    at, found = 0, []
    for variable in variables:
        at = -(-at // variable.align) * variable.align
        found.append((at, variable))
        at += variable.size + gap
    return found, at


class Assembler:
    """Makes the program of one kernel.

    Parameters
    ----------
    module : Module
    name : str
        Of the kernel.
    find : callable
        `library.find`.
    """

    def __init__(self, module: Module, name: str, find: Find) -> None:
        if name not in module.entries:
            known = ", ".join(module.entries) or "none"
            raise KernelError(
                f"the PTX has no kernel {name}; it has {known}", kernel=name, kind="compile error"
            )
        self.module, self.entry, self.find = module, module.entries[name], find
        self.file = File()
        self.emitted: list[_Emitted] = []
        self._registers: dict[tuple[int, str], tuple[int, str]] = {}
        self._addresses: dict[str, tuple[str, int, int]] = {}  # space, offset, base
        entry = self.entry
        # Those whose size the launch says come last, and begin at one address.
        shared = [v for v in (*module.variables.values(), *entry.shared) if v.space == "shared"]
        waiting = [v for v in shared if not v.size]
        self.shared, self.shared_bytes = _laid_out([v for v in shared if v.size], GAP)
        self.shared_bytes = -(-self.shared_bytes // 1024) * 1024 if waiting else self.shared_bytes
        self.shared += [(self.shared_bytes, v) for v in waiting]
        outside = [v for v in module.variables.values() if v.space in ("global", "const")]
        self.variables, module_bytes = _laid_out(outside, 16)
        self.parameters, self.parameter_bytes = _laid_out(entry.parameters)
        self.locals, self.local_bytes = _laid_out(entry.local)
        self.image = bytearray(module_bytes)
        for at, variable in self.variables:
            self.image[at : at + len(variable.initial)] = variable.initial
        for space, base, several in (
            ("shared", NOTHING, self.shared), ("global", MODULE, self.variables),
            ("param", PARAMETERS, self.parameters), ("local", NOTHING, self.locals),
        ):  # fmt: skip
            self._addresses |= {variable.name: (space, at, base) for at, variable in several}

    # -- the program --------------------------------------------------------------------------------
    def program(self, put: Callable[[Use], None]) -> Program:
        """The whole program.

        Parameters
        ----------
        put : callable
            Emits what an instruction is for the machine.
        """
        starts = []
        last = Instruction(("exit",), (), "", False, 0, None, (0,))
        for instruction in (*self.entry.instructions, last):  # a kernel may end without an exit
            starts.append(len(self.emitted))
            put(Use(self, instruction))
            self.file.done()
        for e in self.emitted:
            if e.table:  # the targets follow the index, as constants
                rows = [self.file.constant(Constant(4, starts[t])) for t in self._table(e.table, e.source)]
                e.operands += rows
                e.offset = len(rows)
        code = np.zeros(len(self.emitted), CODE)
        operands: list[int] = []
        place = self.file.place
        for one, e in zip(code, self.emitted):
            one["row"], one["operands"], one["offset"] = e.row, len(operands), e.offset
            operands += map(place, e.operands)
            if e.source.guard:
                one["guard"] = place(self.register(e.source.guard, e.source)[0])
                one["flags"] = 1 + 2 * e.source.negated
            if e.label:
                one["target"] = starts[self._label(e.label, e.source)]
        fixed = [(at, c.bytes, c.value, c.base, c.predicate) for c, at in self.file.constants.items()]
        return Program(
            self.entry.name, code, np.array(operands, np.uint32), np.array(fixed, FIXED),
            np.array([(at, which) for which, at in self.file.special.items()], SPECIAL_ROW),
            self.file.front, self.file.front + self.file.back, self.local_bytes,
            tuple((at, v.size) for at, v in self.parameters), self.parameter_bytes,
            tuple(self.shared), self.shared_bytes, bytes(self.image), tuple(self.variables),
            tuple((e.source.line, e.source.place) for e in self.emitted),
        )  # fmt: skip

    def _label(self, name: str, at: Instruction) -> int:
        for scope in reversed(at.scope):
            if (scope, name) in self.entry.labels:
                return self.entry.labels[scope, name]
        raise refused(f"the label {name}", at.line)

    def _table(self, name: str, at: Instruction) -> list[int]:
        for scope in reversed(at.scope):
            if (scope, name) in self.entry.tables:
                return [self._label(label, at) for label in self.entry.tables[scope, name]]
        raise refused(f"the targets {name}", at.line)

    # -- names --------------------------------------------------------------------------------------
    def register(self, name: str, at: Instruction) -> tuple[int, str]:
        """Row and type of a register."""
        for scope in reversed(at.scope):
            if (scope, name) in self._registers:
                return self._registers[scope, name]
            type_ = self.entry.registers.get((scope, name)) or self._counted(scope, name)
            if type_:
                row = self.file.register(SIZES[type_], type_ == "pred")
                self._registers[scope, name] = row, type_
                return row, type_
        raise refused(f"the register {name}", at.line)

    def _counted(self, scope: int, name: str) -> str | None:
        stem = name.rstrip("0123456789")
        type_, count = self.entry.counted.get((scope, stem), ("", 0))
        return type_ if type_ and name != stem and int(name[len(stem) :]) < count else None

    def is_register(self, name: str, at: Instruction) -> bool:
        return any((scope, name) in self.entry.registers or self._counted(scope, name) for scope in at.scope)

    def address(self, name: str) -> tuple[str, int, int] | None:
        """Space, offset and base of a variable or a parameter."""
        return self._addresses.get(name)


class Use:
    """An instruction while it is assembled: its words, its operands, and what is emitted for it."""

    def __init__(self, assembler: Assembler, instruction: Instruction) -> None:
        self.assembler, self.instruction = assembler, instruction
        self.words = list(instruction.opcode)
        self.operands = instruction.operands

    def refuse(self, what: str = "") -> KernelError:
        """The error for this instruction."""
        return refused(what or f"the instruction {self.instruction}", self.instruction.line)

    def take(self, *words: str) -> bool:
        """Whether one of these words is there; it is then removed."""
        found = [word for word in self.words[1:] if word in words]
        for word in found:
            self.words.remove(word)
        return bool(found)

    def emit(self, name: str, *operands: int, offset: int = 0, label: str = "", table: str = "") -> None:
        """An operation of the machine, on these rows."""
        found = self.assembler.find(name)
        if found is None:
            raise self.refuse()
        self.assembler.emitted.append(
            _Emitted(found[0], list(operands), offset, label, table, self.instruction)
        )

    def types(self, name: str) -> tuple[str, ...]:
        """The types of an operation's operands, written ones with a `>`."""
        found = self.assembler.find(name)
        if found is None:
            raise self.refuse()
        return found[1]

    def temporary(self, type_: str) -> int:
        return self.assembler.file.temporary(SIZES[type_], type_ == "pred")

    # -- operands -----------------------------------------------------------------------------------
    def read(self, text: str, type_: str, *, narrow: bool = False) -> int:
        """The row of an operand that is read.

        Parameters
        ----------
        text : str
            A register, a constant, a special register or the name of a variable.
        type_ : str
            What the operation takes.
        narrow : bool
            The register may be wider: its lowest bits are taken.
        """
        size, predicate = SIZES[type_], type_ == "pred"
        if predicate and text.startswith("!"):
            inverted = self.temporary("pred")
            self.emit("not.pred", inverted, self.read(text[1:].strip(), "pred"))
            return inverted
        if self.assembler.is_register(text, self.instruction):
            row, own = self.assembler.register(text, self.instruction)
            if (own == "pred") != predicate:
                raise self.refuse(f"{text} ({own}) in {self.instruction}")
            if SIZES[own] == size:
                return row
            if not narrow or SIZES[own] < size:
                raise self.refuse(f"{text} ({own}) in {self.instruction}")
            lowest = self.temporary(f"u{8 * size}")
            self.emit(f"cvt.u{8 * size}.u{8 * SIZES[own]}", lowest, row)
            return lowest
        if text in SPECIAL and size == 4:
            return self.assembler.file.special_register(SPECIAL.index(text))
        if text == "WARP_SZ":
            text = "32"
        return self.assembler.file.constant(self.constant(text, type_))

    def constant(self, text: str, type_: str) -> Constant:
        """A constant, or the address of a variable."""
        size = SIZES[type_]
        if type_ == "pred":
            if text in ("0", "1", "-1"):
                return Constant(4, 0 if text == "0" else 2**32 - 1, predicate=True)
            raise self.refuse(f"the predicate {text}")
        name, _, offset = (part.strip() for part in text.partition("+"))
        if (found := self.assembler.address(name)) and size in (4, 8):
            if found[2] != NOTHING and size != 8:
                raise self.refuse(f"the address {text} in {8 * size} bits")
            return Constant(size, found[1] + int(offset or "0", 0), found[2])
        try:
            return Constant(size, number(text, type_))
        except ValueError:
            raise self.refuse(f"the operand {text}") from None

    def write(self, text: str, type_: str, *, widen: bool = False) -> tuple[int, Callable[[], None]]:
        """The row for a result, and what puts it into a register that is wider; "_" is nobody's."""
        size, predicate = SIZES[type_], type_ == "pred"
        if text == "_":
            return self.temporary(type_), _nothing
        row, own = self.assembler.register(text, self.instruction)
        if (own == "pred") == predicate:
            if SIZES[own] == size:
                return row, _nothing
            if widen and SIZES[own] > size and type_[0] in "bus":
                narrow, sign = self.temporary(type_), "s" if type_[0] == "s" else "u"
                widening = f"cvt.{sign}{8 * SIZES[own]}.{sign}{8 * size}"
                return narrow, functools.partial(self.emit, widening, row, narrow)
        raise self.refuse(f"{text} ({own}) in {self.instruction}")

    def memory(self, text: str) -> tuple[int, int, int, str]:
        """Of "[%rd1+8]": the row of the address, its bytes, the offset, the space of a variable's name."""
        found = re.fullmatch(r"\[\s*([%\w$.]+|-?\d+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if not found:
            raise self.refuse(f"the address {text}")
        name, offset = found[1], int(found[2] or "0", 0)
        if self.assembler.is_register(name, self.instruction):
            row, own = self.assembler.register(name, self.instruction)
            return row, SIZES[own], offset, ""
        if address := self.assembler.address(name):
            size = 4 if address[0] == "shared" else 8
            row = self.assembler.file.constant(Constant(size, address[1] + offset, address[2]))
            return row, size, 0, address[0]
        return self.assembler.file.constant(self.constant(name, "u64")), 8, offset, ""

    @staticmethod
    def several(text: str) -> list[str]:
        """Of "{%f1, %f2}" the parts; of a single operand, that."""
        return [one.strip() for one in text[1:-1].split(",")] if text.startswith("{") else [text]


def _nothing() -> None:
    pass
