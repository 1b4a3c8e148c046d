"""Machine code -> facts: what a compiled kernel's main loop is made of, with no GPU.

`nvdisasm` (a wheel of its own, in the extra `[static]`) prints the instructions; the rest is here: basic
blocks, the branches between them, dominators, natural loops. The **main loop** is the loop with the most
multiply-adds in its *own* blocks, those of loops inside it left out: a rolled copy loop inside the loop over
gemm_k is innermost, and not it.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConvkitError, MissingExtra

#: What counts as multiply-add, and how many of them a thread does in one (of the tensor cores': about).
MULTIPLY_ADDS = {"FFMA": 1, "FFMA2": 2, "DFMA": 1, "HMMA": 64, "HGMMA": 1024, "UTCHMMA": 1024}

_FUNCTION = re.compile(r"^\.text\.(?P<name>[^:\s]+):")
_LABEL = re.compile(r"^(?P<name>[.$\w]+):")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@(?P<guard>!?U?P[T\d]+)\s+)?"
    r"(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>.*?)\s*;?\s*(?:\*?\}|/\*.*)?$"
)
_TARGET = re.compile(r"\.L[\w.$]*")
#: These go to the labels they name. (BSSY names one where threads meet again; BSYNC stands right before it.)
_JUMPS = {"BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU", "CALL"}
_ENDS = {"EXIT", "RET", "KILL"}
#: These only read registers.
_NO_RESULT = {"ST", "STG", "STS", "STL", "RED", "BAR", *_JUMPS, *_ENDS}
#: A register among operands; of an address of 64 bits, the lower half of it.
_REGISTER = re.compile(r"(?<![\w.])R(\d+)(\.64)?(?!\w)")


@dataclass(frozen=True)
class Instruction:
    """One line of nvdisasm: `@guard opcode.with.modifiers operands`."""

    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def never_runs(self) -> bool:
        """A placeholder: NOP, or what `@!PT` switches off."""
        return self.name == "NOP" or self.guard in ("!PT", "!UPT")

    @property
    def targets(self) -> list[str]:
        """The labels that it may go to, other than the next instruction."""
        return _TARGET.findall(self.operands) if self.name in _JUMPS else []

    @property
    def written(self) -> frozenset[int]:
        """Registers of the first operand, where that is one; the width of a load says how many."""
        first = _REGISTER.match(self.operands)
        if first is None or self.name in _NO_RESULT:
            return frozenset()
        return frozenset(range(int(first[1]), int(first[1]) + self._width))

    @property
    def read(self) -> frozenset[int]:
        """Registers of the operands but the one that is written; of a matrix operation, the first of each."""
        behind = self.operands if not self.written else self.operands.partition(",")[2]
        width = self._width if self.name in _NO_RESULT else 1
        found: set[int] = set()
        for number, pair in _REGISTER.findall(behind):
            found.update(range(int(number), int(number) + (2 if pair else width)))
        return frozenset(found)

    @property
    def _width(self) -> int:
        """Registers that a load or store moves."""
        return 4 if ".128" in self.opcode else 2 if ".64" in self.opcode else 1

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow it."""
        if self.guard not in ("", "PT", "UPT"):
            return True
        if (
            self.targets
        ):  # a branch may have a condition of its own: `BRA P0, ...`, `BRA.U !UP0, ...`, `BRA.DIV`
            return "DIV" in self.opcode or re.match(r"!?U?P\d", self.operands) is not None
        return self.name not in _ENDS


@dataclass
class Block:
    """A basic block: runs from its first instruction to its last. `successors` are indices of blocks."""

    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """A natural loop: its header, all its blocks, and those that belong to no loop inside it."""

    header: int
    blocks: frozenset[int]
    own: frozenset[int]


@dataclass(frozen=True)
class Facts:
    """What a kernel's machine code holds.

    Counts of the main loop are of its own blocks; all are 0 where there is no such loop.

    Attributes
    ----------
    instructions, mufu : int
        Of the whole kernel; NOPs and the like not counted. MUFU: reciprocals, roots, exponentials, sines.
    ffma, loop_instructions : int
        FFMA instructions of the main loop, and all of its instructions.
    shared_loads, shared_loads_128 : int
        LDS, and those that load 128 bits.
    global_loads, local_accesses : int
        LDG (and LDGSTS, UBLKCP, UTMALDG); loads and stores of local memory: spills, or indexed arrays.
    inner_loops : int
        Loops inside the main loop.
    hmma, matrix_loads, async_copies : int
        HMMA (a multiplication on tensor cores), LDSM (ldmatrix) and LDGSTS (cp.async) of the main loop.
    load_to_use : int
        Instructions from a global load of the main loop to the first that reads what it brings, in the order
        of addresses and around the end of the loop; the shortest such way. What the loop has to hide
        memory's latency with. 0 where the loop loads nothing into registers.
    """

    instructions: int
    mufu: int
    ffma: int = 0
    loop_instructions: int = 0
    shared_loads: int = 0
    shared_loads_128: int = 0
    global_loads: int = 0
    local_accesses: int = 0
    inner_loops: int = 0
    hmma: int = 0
    matrix_loads: int = 0
    async_copies: int = 0
    load_to_use: int = 0

    @property
    def ffma_density(self) -> float:
        """FFMA among all instructions of the main loop."""
        return self.ffma / max(1, self.loop_instructions)

    @property
    def lds128_share(self) -> float:
        """Loads of 128 bits among the shared loads of the main loop."""
        return self.shared_loads_128 / max(1, self.shared_loads)

    @property
    def ffma_per_lds128(self) -> float:
        return self.ffma / max(1, self.shared_loads_128)

    @property
    def hmma_density(self) -> float:
        """HMMA among all instructions of the main loop."""
        return self.hmma / max(1, self.loop_instructions)

    @property
    def hmma_per_ldsm(self) -> float:
        return self.hmma / max(1, self.matrix_loads)


# ---------------------------------------------------------------------------------------------------
# CUBIN -> text
# ---------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def nvdisasm() -> str:
    """Path of nvdisasm: of its wheel, of a CUDA toolkit, or on PATH.

    Raises
    ------
    MissingExtra
        If there is none.
    """
    try:
        from cuda import pathfinder

        found = pathfinder.find_nvidia_binary_utility("nvdisasm")
    except (ImportError, AttributeError):  # pathfinder is not there, or too old
        found = None
    found = found or shutil.which("nvdisasm")
    if not found:
        raise MissingExtra("disassembling CUDA kernels (nvdisasm)", "nvidia-cuda-nvdisasm", "static")
    return str(found)


def disassemble(cubin: bytes) -> str:
    """What `nvdisasm -c` prints of a CUBIN."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        # Without the data-flow analysis, which only adds comments.
        done = subprocess.run([nvdisasm(), "-c", "-ndf", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise ConvkitError(f"nvdisasm failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# ---------------------------------------------------------------------------------------------------
# Text -> basic blocks
# ---------------------------------------------------------------------------------------------------
def parse(text: str) -> dict[str, list[Block]]:
    """The basic blocks of each kernel, by its name, in the order of their addresses.

    A function that a kernel calls (a division, say) stands behind it, in blocks that nothing leads to.
    """
    functions: dict[str, list[Block]] = {}
    blocks: list[Block] = []
    fresh = True  # the next instruction begins a block
    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            blocks = functions.setdefault(found["name"], [])
            blocks.append(Block())
            fresh = False
        elif found := _LABEL.match(line):
            if blocks and (blocks[-1].instructions or fresh):
                blocks.append(Block())
            if blocks:
                blocks[-1].labels.append(found["name"])
            fresh = False
        elif blocks and (found := _INSTRUCTION.match(line)):
            if fresh:
                blocks.append(Block())
            instruction = Instruction(
                int(found["address"], 16), found["guard"] or "", found["opcode"], found["operands"]
            )
            blocks[-1].instructions.append(instruction)
            fresh = bool(instruction.targets) or instruction.name in _ENDS
    for blocks in functions.values():
        _connect(blocks)
    return functions


def _connect(blocks: list[Block]) -> None:
    at = {label: i for i, block in enumerate(blocks) for label in block.labels}
    for i, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        if last:
            block.successors += [at[t] for t in last.targets if t in at]
        if (last is None or last.falls_through) and i + 1 < len(blocks):
            block.successors.append(i + 1)


# ---------------------------------------------------------------------------------------------------
# Basic blocks -> loops
# ---------------------------------------------------------------------------------------------------
def dominators(blocks: Sequence[Block]) -> dict[int, int]:
    """For each block that can be reached from the first: the blocks that every way to it passes, it included.

    A set of blocks is an integer here: block i is bit i.
    """
    before = _predecessors(blocks)
    found = {i: (1 << len(blocks)) - 1 for i in before}
    found[0] = 1
    changed = True
    while changed:
        changed = False
        for i in sorted(before.keys() - {0}):
            new = found[i]
            for p in before[i]:
                new &= found[p]
            new |= 1 << i
            if new != found[i]:
                found[i], changed = new, True
    return found


def _predecessors(blocks: Sequence[Block]) -> dict[int, list[int]]:
    """For each block that can be reached from the first: those that lead to it."""
    before: dict[int, list[int]] = {0: []}
    todo = [0]
    while todo:
        i = todo.pop()
        for s in blocks[i].successors:
            if s not in before:
                before[s] = []
                todo.append(s)
            before[s].append(i)
    return before


def loops(blocks: Sequence[Block]) -> list[Loop]:
    """The natural loops; those that share a header are one."""
    before, dominated_by = _predecessors(blocks), dominators(blocks)
    bodies: dict[int, set[int]] = {}
    for header in before:
        todo = [i for i in before[header] if dominated_by[i] >> header & 1]
        if todo:
            body = bodies[header] = {header}
            while todo:
                i = todo.pop()
                if i not in body:
                    body.add(i)
                    todo += before[i]
    found = []
    for header, body in bodies.items():
        inner = (b for h, b in bodies.items() if h in body and h != header)
        found.append(Loop(header, frozenset(body), frozenset(body.difference(*inner))))
    return found


def main_loop(blocks: Sequence[Block]) -> Loop | None:
    """The loop with the most multiply-adds in its own blocks, or None if no loop has any.

    Of several with as many, as in a kernel with a path of its own for aligned arrays, it is the shortest.
    """

    def weight(loop: Loop) -> tuple[int, int]:
        own = list(_working(blocks, loop.own))
        return sum(MULTIPLY_ADDS.get(i.name, 0) for i in own), -len(own)

    found = loops(blocks)
    best = max(found, key=weight, default=None)
    return best if best and weight(best)[0] else None


def _working(blocks: Sequence[Block], chosen: Iterable[int]) -> Iterator[Instruction]:
    """The instructions of some blocks, without placeholders and the branch to itself that ends a kernel."""
    for i in chosen:
        block = blocks[i]
        for instruction in block.instructions:
            alone = len(block.instructions) == 1 and i in block.successors
            if not instruction.never_runs and not alone:
                yield instruction


# ---------------------------------------------------------------------------------------------------
# Facts
# ---------------------------------------------------------------------------------------------------
def facts(text: str) -> dict[str, Facts]:
    """The facts of each kernel in what nvdisasm prints, by its name."""
    return {name: _facts(blocks) for name, blocks in parse(text).items()}


def _facts(blocks: Sequence[Block]) -> Facts:
    everything = list(_working(blocks, range(len(blocks))))
    loop = main_loop(blocks)
    own = list(_working(blocks, sorted(loop.own))) if loop else []

    def count(instructions: list[Instruction], *names: str) -> int:
        return sum(i.name in names for i in instructions)

    return Facts(
        instructions=len(everything),
        mufu=count(everything, "MUFU"),
        ffma=count(own, "FFMA", "FFMA2"),
        loop_instructions=len(own),
        shared_loads=count(own, "LDS"),
        shared_loads_128=sum(i.opcode.startswith("LDS") and ".128" in i.opcode for i in own),
        global_loads=count(own, "LDG", "LDGSTS", "UBLKCP", "UTMALDG"),
        local_accesses=count(own, "LDL", "STL"),
        inner_loops=sum(other.header in loop.blocks for other in loops(blocks)) - 1 if loop else 0,
        hmma=count(own, "HMMA"),
        matrix_loads=count(own, "LDSM"),
        async_copies=count(own, "LDGSTS"),
        load_to_use=min(filter(None, map(functools.partial(_distance, own), range(len(own)))), default=0),
    )


def _distance(loop: Sequence[Instruction], i: int) -> int:
    """Instructions from a global load, the i-th of a loop, to the first use of a register that it fills.

    0 for any other instruction, and for a load whose registers are filled anew before a use is seen.
    """
    if loop[i].name != "LDG":
        return 0
    filled = loop[i].written
    for away in range(1, len(loop)):
        later = loop[(i + away) % len(loop)]
        if filled & later.read:
            return away
        if not later.guard:
            filled -= later.written
    return 0
