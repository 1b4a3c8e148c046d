"""Launches of PTX on the CPU: arguments in, the machine's run, arguments out, and its faults in words."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...paths import kernels_dir
from .. import nvrtc
from ..launch import Argument, Bound, Executor, Extent, KernelError
from . import library
from .assemble import RANGE, Program
from .parse import Module, Place, parse
from .translate import translate

#: Instructions that a warp may execute in a block, by default: hundreds of times what a real layer takes.
STEPS = 1 << 27
#: What stands between two arguments, so that what runs over the end of one meets no other.
_APART = 4096
_ALIGNMENT = 256  # of what cudaMalloc returns
_VECTOR = 16  # the widest access, but for sm_100's

_HINTS = {
    "out of bounds": "guard the index against the array's extent, also in the last tile of each axis",
    "write to an input": "declare the argument an output, or write elsewhere; a GPU writes without a word",
    "divergent barrier": "every lane of a warp must come to the same barrier",
    "bad mask": "name exactly the lanes that come here, and let each of them come",
    "deadlock": "every barrier needs all of its threads",
    "misaligned access": "an access needs an address that is a multiple of its size",
    "null pointer": "an optional argument that is not there must be tested before it is read",
    "wild access": "the address belongs to no argument and to no shared memory",
}


@dataclass(eq=False)
class PtxRunner(Executor):
    """Runs the PTX of kernels on the CPU (`convkit.emulate(engine="ptx")`).

    Attributes
    ----------
    arch : str
        The architecture that NVRTC compiles for.
    seed : int, optional
        Order of blocks, warps and lanes; None is in order.
    timeout : float
        Seconds after which a launch ends behind the block that it is at.
    steps : int
        Instructions of a warp in a block after which it counts as endless; looked at where it jumps back.
    """

    arch: str = "sm_80"
    seed: int | None = None
    timeout: float = 60.0
    steps: int = STEPS
    engine = "ptx"

    @classmethod
    def of(cls, arch: str, seed: int | None, timeout: float) -> PtxRunner:
        """One that is sure to have all that it needs.

        Raises
        ------
        OptionError, MissingExtra, KernelError
            As of `convkit.emulate`.
        """
        nvrtc.checked_architecture(arch)
        library.load()
        return cls(arch, seed, timeout)

    def told(self, timeout: float) -> tuple[Any, ...]:
        """As `Emulator.told`."""
        machine = str(library.path())  # a candidate's process need not build it: its cache is another one
        return self.engine, self.arch, self.seed, min(self.timeout, timeout), self.steps, machine

    @classmethod
    def again(cls, arch: str, seed: int | None, timeout: float, steps: int, machine: str) -> PtxRunner:
        """The one that another process has told of."""
        library.built = Path(machine)
        return cls(arch, seed, timeout, steps)

    def __post_init__(self) -> None:
        super().__init__()

    def _compile(self, source: str, entry: str, include: tuple[Path, ...], name: str) -> _Function:
        text = nvrtc.cached_ptx(source, self.arch, include=include, name=name)
        return _Function(program(text, entry), self)


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> Module:
    return parse(text)


@functools.lru_cache(maxsize=64)
def program(text: str, entry: str) -> Program:
    """The program of a kernel of a text of PTX; the last ones are kept."""
    return translate(_parsed(text), entry, library.find)


class _Function:
    """A kernel with the options of `emulate`."""

    def __init__(self, made: Program, options: PtxRunner) -> None:
        self.program, self.options = made, options
        self.image = np.frombuffer(made.module or b"\0", np.uint8).copy()

    def bind(self, grid: Extent, block: Extent, shared: int, parameters: Sequence[Argument]) -> Bound:
        def launch(values: tuple[Any, ...]) -> None:
            arguments = [p.given(value) for p, value in zip(parameters, values, strict=True)]
            how = self.options
            Launch(self.program, self.image, arguments).run(
                grid, block, shared, seed=how.seed, timeout=how.timeout, steps=how.steps
            )

        return launch


class Launch:
    """One launch of a program.

    Parameters
    ----------
    program : Program
    image : ndarray of uint8
        The module's variables, which outlive a launch.
    arguments : sequence of Argument
        Arrays are copied, and outputs copied back when all went well.

    Raises
    ------
    KernelError
        The arguments do not fit the kernel's parameters.
    """

    def __init__(self, program: Program, image: np.ndarray, arguments: Sequence[Argument]) -> None:
        self.program, self.image, self.arguments = program, image, arguments
        self.parameters = np.zeros(max(1, program.parameter_bytes), np.uint8)
        self.kept: list[np.ndarray] = []
        self.back: list[tuple[np.ndarray, np.ndarray]] = []
        ranges: list[tuple[int, int, int, bool]] = []
        if len(arguments) != len(program.parameters):
            names = ", ".join(a.name for a in arguments)
            raise self._error(
                f"the kernel takes {len(program.parameters)} arguments, not {len(arguments)}: {names}",
                "arguments",
            )
        placed = self._placed()
        for number, (argument, (at, size)) in enumerate(zip(arguments, program.parameters)):
            value = argument.value
            if value is None or not _by_value(value):
                if size != 8:
                    raise self._error(
                        f"{argument.name}: the kernel's parameter has {size} bytes, not a pointer's 8",
                        "arguments",
                        argument=argument.name,
                    )
                if value is None:
                    continue
                there = placed[number]
                self.parameters[at : at + 8] = np.array([there.ctypes.data], np.uint64).view(np.uint8)
                ranges.append((there.ctypes.data, there.nbytes, number, argument.output))
                continue
            data = np.asarray(value).reshape(1).view(np.uint8)
            if data.size != size:
                raise self._error(
                    f"{argument.name}: the kernel's parameter has {size} bytes, the value has {data.size} "
                    f"({np.asarray(value).dtype})",
                    "arguments",
                    argument=argument.name,
                )
            self.parameters[at : at + size] = data
        # Where an array is given twice, what may be written comes first: a store looks for that.
        ranges.sort(key=lambda r: not r[3])
        base = image.ctypes.data
        ranges += [(base + at, v.size, library.MODULE, v.space == "global") for at, v in program.variables]
        self.ranges = np.array(ranges, RANGE)

    def _placed(self) -> dict[int, np.ndarray]:
        """A copy of each array, aligned as on a GPU; arrays that overlap stay together."""
        wanted = []
        for number, argument in enumerate(self.arguments):
            value = argument.value
            if value is None or _by_value(value):
                continue
            array = np.asarray(value)
            if not array.flags.c_contiguous or (argument.output and not array.flags.writeable):
                wrong = "read-only" if array.flags.c_contiguous else "not contiguous"
                raise self._error(f"{argument.name} is {wrong}", "arguments", argument=argument.name)
            wanted.append((array.ctypes.data, array.nbytes, number, array))
        wanted.sort(key=lambda one: one[:2])
        found: dict[int, np.ndarray] = {}
        first = 0
        while first < len(wanted):
            begin, size, *_ = wanted[first]
            end, last = begin + size, first + 1
            while last < len(wanted) and wanted[last][0] < end:
                end = max(end, wanted[last][0] + wanted[last][1])
                last += 1
            room = np.full(end - begin + 2 * _APART + _ALIGNMENT, 0xFF, np.uint8)
            at = _APART + (-(room.ctypes.data + _APART)) % _ALIGNMENT + begin % _VECTOR
            self.kept.append(room)
            for address, nbytes, number, array in wanted[first:last]:
                there = room[at + address - begin :][:nbytes]
                there[:] = array.reshape(-1).view(np.uint8)
                found[number] = there
                if self.arguments[number].output:
                    self.back.append((array.reshape(-1).view(np.uint8), there))
            first = last
        return found

    def run(
        self, grid: Extent, block: Extent, shared: int, *, seed: int | None, timeout: float, steps: int
    ) -> None:
        """Run the kernel to its end.

        Raises
        ------
        KernelError
            The kernel did what it must not; nothing was written then.
        """
        threads = block[0] * block[1] * block[2]
        if min(block) < 1 or threads > 1024 or block[2] > 64:
            raise self._error(f"a block has 1 to 1024 threads, at most 64 in z, not {block}", "arguments")
        if min(grid) < 0 or grid[0] > 2**31 - 1 or max(grid[1:]) > 65535:
            raise self._error(f"a grid has at most 2^31 - 1, 65535, 65535 blocks, not {grid}", "arguments")
        made = self.program
        static = sum(v.size for _, v in made.shared)
        if not 0 <= shared <= 227 * 1024 - static:
            raise self._error(
                f"a block has at most 232448 bytes of shared memory, not {static + shared}", "arguments"
            )
        if 0 in grid:
            return
        variables = np.array([(at, v.size or shared, 0, True) for at, v in made.shared], RANGE)
        arrays = {
            "code": made.code, "operands": made.operands, "fixed": made.fixed, "special": made.special,
            "ranges": self.ranges, "shared": variables, "parameters": self.parameters, "module": self.image,
        }  # fmt: skip
        spec = library.Spec(
            seed=seed or 0, steps=steps, code_count=len(made.code), fixed_count=len(made.fixed),
            special_count=len(made.special), range_count=len(self.ranges), shared_count=len(variables),
            parameter_bytes=made.parameter_bytes, fixed_bytes=made.fixed_bytes, file_bytes=made.file_bytes,
            shared_bytes=made.shared_bytes + shared, dynamic_bytes=shared, local_bytes=made.local_bytes,
            seeded=seed is not None, grid=grid, block=block, seconds=timeout,
            **{name: array.ctypes.data for name, array in arrays.items()},
        )  # fmt: skip
        fault = library.Fault()
        if library.load().ckptx_run(ctypes.byref(spec), ctypes.byref(fault)):
            raise self._describe(fault)
        for target, source in self.back:
            target[:] = source

    # -- errors -------------------------------------------------------------------------------------
    def _error(self, message: str, kind: str, **where: Any) -> KernelError:
        return KernelError(f"{self.program.name}: {message}", kernel=self.program.name, kind=kind, **where)

    def _describe(self, fault: Any) -> KernelError:
        """A fault in words."""
        kind, name = fault.kind.decode(), self.program.name
        rows = [f"{name}: {kind}"]
        details: dict[str, Any] = {}
        block, thread = (tuple(fault.block), tuple(fault.thread)) if fault.at >= 0 else (None, None)
        if fault.at >= 0:
            line, place = self.program.lines[fault.at]
            chain = _chain(place)
            where = f"at {chain[0].file}:{chain[0].line}, " if chain else ""
            rows.append(f"  {where}block {block}, thread {thread} (line {line} of the PTX)")
            rows += [f"  called at {one.file}:{one.line}" for one in chain[1:]]
            if chain:
                details.update(file=chain[0].file, line=chain[0].line)
        if fault.other >= 0:
            line, place = self.program.lines[fault.other]
            chain = _chain(place)
            where = f"{chain[0].file}:{chain[0].line} " if chain else ""
            rows.append(f"  and {where}(line {line} of the PTX)")
            if chain:
                details.update(other_file=chain[0].file, other_line=chain[0].line)
        if fault.bytes:
            row, about = self._access(fault, kind)
            rows.append(row)
            details |= about
        if kind == "null pointer":
            nulls = [a.name for a in self.arguments if a.value is None]
            rows.append(f"  passed as None: {', '.join(nulls)}" if nulls else "  no argument was None")
        if text := fault.text.decode():
            rows.append(f"  {text}")
        if kind == "timeout" and fault.at >= 0:
            rows.append("  a warp had executed so many instructions that it counts as endless")
        if kind in _HINTS:
            rows.append(f"  {_HINTS[kind]}")
        return KernelError("\n".join(rows), kernel=name, kind=kind, block=block, thread=thread, **details)

    def _access(self, fault: Any, kind: str) -> tuple[str, dict[str, Any]]:
        what = f"  {'writes' if fault.writes else 'reads'} {fault.bytes} bytes"
        places = {
            library.MODULE: "of a variable of the module",
            library.PARAMETERS: "of the parameters",
            library.SHARED: "of shared memory",
            library.LOCAL: "of local memory",
        }
        if fault.owner in places:
            return f"{what} {places[fault.owner]}, at byte {fault.offset}", {}
        if fault.owner == library.NOBODY:
            return f"{what} at address 0x{fault.offset & (2**64 - 1):x}", {}
        argument = self.arguments[fault.owner]
        array = np.asarray(argument.value)
        past = fault.offset - array.nbytes if fault.offset >= 0 else fault.offset
        about: dict[str, Any] = {"argument": argument.name}
        beyond = f"at byte {fault.offset}"
        if kind == "out of bounds":
            past = max(past, 0) if fault.offset >= 0 else past
            about["bytes_past_end"] = past
            beyond = f"{-past} bytes before its start" if past < 0 else "just past its end"
            beyond = f"{past} bytes past its end" if past > 0 else beyond
        return f"{what} of {argument.name} ({array.dtype}{list(array.shape)}), {beyond}", about


def _by_value(value: Any) -> bool:
    return isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.dtype.names is not None)


def _chain(place: Place | None) -> list[Place]:
    """A line and those that it was called from, without CUDA's own headers."""
    found = []
    while place is not None:
        if place.file and place.line and not _toolkits(place.file):
            found.append(place)
        place = place.inlined_at
    return found


def _toolkits(file: str) -> bool:
    return str(kernels_dir()) not in file and "nvidia" in Path(file).parts


__all__ = ["STEPS", "Launch", "PtxRunner", "program"]
