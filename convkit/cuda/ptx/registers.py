"""Where a program keeps things: registers, constants, special registers, variables."""

from __future__ import annotations

from dataclasses import dataclass, field

LANES = 32

#: Special registers of 32 bits, in the order of `begin_warp` in kernels/ptx/machine.cpp.
SPECIAL = (
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"),
    *("%laneid", "%warpid", "%nwarpid"),
    *(f"%lanemask_{which}" for which in ("eq", "le", "lt", "ge", "gt")),
    "%dynamic_smem_size",
)

#: What a constant is relative to, as in machine.hpp.
NOTHING, PARAMETERS, MODULE = 0, 1, 2


def row_bytes(size: int, predicate: bool = False) -> int:
    """Bytes of a register's row: a value for each lane, or a bit for a predicate."""
    return LANES if predicate else LANES * size


@dataclass(frozen=True)
class Constant:
    """A value that every lane sees."""

    bytes: int
    value: int
    base: int = NOTHING
    predicate: bool = False


@dataclass
class File:
    """A warp's file of rows: constants and special registers in front, then registers.

    A row is known by a number as long as the file grows: that of a register is its place among the
    registers, that of a constant is negative. `place` says where each lies in the end.
    """

    constants: dict[Constant, int] = field(default_factory=dict)
    special: dict[int, int] = field(default_factory=dict)
    front: int = 0
    back: int = 0
    _temporary: dict[tuple[int, bool], list[int]] = field(default_factory=dict)
    _in_use: list[tuple[tuple[int, bool], int]] = field(default_factory=list)

    def register(self, size: int, predicate: bool = False) -> int:
        """A new row for a register."""
        at, self.back = self.back, self.back + row_bytes(size, predicate)
        return at

    def temporary(self, size: int, predicate: bool = False) -> int:
        """A row until `done`."""
        free = self._temporary.setdefault((size, predicate), [])
        at = free.pop() if free else self.register(size, predicate)
        self._in_use.append(((size, predicate), at))
        return at

    def done(self) -> None:
        """All temporary rows are free again."""
        for kind, at in self._in_use:
            self._temporary[kind].append(at)
        self._in_use.clear()

    def constant(self, constant: Constant) -> int:
        """The row of a constant."""
        if constant not in self.constants:
            self.constants[constant] = self._front(row_bytes(constant.bytes, constant.predicate))
        return -1 - self.constants[constant]

    def special_register(self, which: int) -> int:
        """The row of a special register."""
        if which not in self.special:
            self.special[which] = self._front(row_bytes(4))
        return -1 - self.special[which]

    def _front(self, size: int) -> int:
        at, self.front = self.front, self.front + size
        return at

    def place(self, row: int) -> int:
        """Bytes from the file's beginning, when it grows no more."""
        return self.front + row if row >= 0 else -1 - row
