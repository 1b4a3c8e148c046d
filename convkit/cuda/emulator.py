"""Runs CUDA C++ on the CPU: the text that NVRTC compiles for a GPU goes to the host's C++ compiler instead.

`compile` puts `kernels/emulator/cuda.hpp` in front of the text, builds a shared library of it (cached on disk
by content) and binds it to the runtime, which is itself built once from the sources beside that header. What
the runtime does, and why, stands at the head of its files.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..paths import kernels_dir
from . import shared_memory
from .cache import Cache, key_of
from .host_compiler import (
    RUNTIME_FLAGS,
    CompilerFailed,
    available,
    compile_error,
    find_compiler,
    included,
    kernel_flags,
    processor,
    run,
)
from .launch import Argument, KernelError
from .unsupported import judged

__all__ = ["Argument", "Counter", "Function", "KernelError", "available", "compile"]

_HINTS = {
    "out of bounds": "guard the index against the array's extent, also in the last tile of each axis",
    "write to an input": "declare the argument an output, or write elsewhere; a GPU writes without a word",
    "uninitialised shared memory": "write it, then a barrier, then read; a GPU reads what was there",
    "uninitialised output": "write before reading, or declare that the argument's old content is read",
    "race": "put __syncthreads() between the two, or __syncwarp() where both threads are of one warp",
    "two blocks, one address": "blocks run in any order: give each its own part, reduce in a second kernel",
    "divergent barrier": "every thread of a block must come to the same __syncthreads()",
    "exit before a barrier": "let threads without work skip the work, not the barrier: no return before it",
    "bad mask": "name exactly the lanes that come here, and let each of them come",
    "deadlock": "every barrier needs all of its threads",
    "unrounded operand": "round each operand of a tf32 product first: to_tf32",
    "divergent matrix operation": "all 32 lanes of a warp must come to the same mma or ldmatrix",
    "write in flight": "wait for the copy (cp_async_wait), then __syncthreads(), then read",
    "misaligned access": "a vector access needs an address that is a multiple of its size",
    "array overrun": "keep the index inside the array",
    "integer overflow": "compute the offset in 64 bits: static_cast<long long>(a) * b",
    "timeout": "look for a loop that does not end; raise the time limit if the kernel is just slow",
    "stack overflow": "a thread's local arrays are too large for registers on a GPU as well",
    "division by zero": "a GPU would go on with garbage",
    "null pointer": "an optional argument that is not there must be tested before it is read",
    "wild access": "the address belongs to no argument and to no shared memory",
}


# ---------------------------------------------------------------------------------------------------
# What the runtime's C functions take: keep in step with runtime.hpp and launch.cpp
# ---------------------------------------------------------------------------------------------------
class _Place(ctypes.Structure):
    _fields_ = [
        ("file", ctypes.c_char * 512),
        ("line", ctypes.c_int32),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("pc", ctypes.c_uint64),
    ]


class _Report(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char * 48),
        ("text", ctypes.c_char * 768),
        ("at", _Place),
        ("other", _Place),
        ("has_other", ctypes.c_int32),
        ("argument", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("bytes", ctypes.c_int32),
        ("is_write", ctypes.c_int32),
    ]


class _Spec(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("anchor", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("seeded", ctypes.c_int32),
        ("check", ctypes.c_int32),
        ("counters", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("unit", ctypes.c_int32),
        ("arguments", ctypes.c_int32),
        ("guards", ctypes.POINTER(ctypes.c_uint64)),
        ("guard_count", ctypes.c_uint64),
    ]


class _ArgumentSpec(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("pointer", ctypes.c_int32),
        ("writable", ctypes.c_int32),
        ("readable", ctypes.c_int32),
        ("unit", ctypes.c_int32),
    ]


class _Row(ctypes.Structure):
    _fields_ = [
        ("pc", ctypes.c_uint64),
        ("shared", ctypes.c_int32),
        ("write", ctypes.c_int32),
        ("accesses", ctypes.c_uint64),
        ("actual", ctypes.c_uint64),
        ("ideal", ctypes.c_uint64),
    ]


# ---------------------------------------------------------------------------------------------------
# Building
# ---------------------------------------------------------------------------------------------------
def _folder() -> Path:
    return kernels_dir() / "emulator"


@functools.lru_cache(maxsize=4)
def _runtime(folder: Path, compiler: tuple[str, str]) -> tuple[ctypes.CDLL, Path]:
    """The runtime, loaded, and its file, which kernels are linked with."""
    sources = sorted(folder.glob("*.cpp"))
    headers = [
        folder / name
        for name in ("api.hpp", "types.hpp", "fiber.hpp", "runtime.hpp", "memory.hpp", "check.hpp")
    ]
    key = key_of([*compiler, *RUNTIME_FLAGS, processor(), *(p.read_bytes() for p in (*sources, *headers))])

    def build(path: Path) -> None:
        soname = f"-Wl,-soname,libconvkit-emulator-{key}.so"
        run([compiler[0], *RUNTIME_FLAGS, "-shared", soname, *sources, "-o", path, "-ldl"], path.parent)

    try:
        path = Cache().get(f"emulator-{key}", build)
    except CompilerFailed as error:
        raise KernelError(
            f"the emulator's runtime does not compile:\n{error}", kind="compile error"
        ) from None
    library = ctypes.CDLL(str(path))
    library.ckemu_begin.argtypes = [ctypes.POINTER(_Spec), ctypes.POINTER(_ArgumentSpec)]
    library.ckemu_wait.argtypes = [ctypes.c_double]
    library.ckemu_cancel.restype = None
    library.ckemu_end.argtypes = [
        ctypes.POINTER(_ArgumentSpec),
        ctypes.POINTER(_Report),
        ctypes.POINTER(ctypes.c_uint64),
    ]
    library.ckemu_counters.argtypes = [ctypes.POINTER(_Row), ctypes.c_int]
    library.ckemu_site.argtypes = [ctypes.c_uint64, ctypes.POINTER(ctypes.c_char_p)]
    library.ckemu_printed.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    library.ckemu_printed.restype = ctypes.c_uint64
    return library, path


#: Sources that do not compile, by key: the gate asks for the same one in every case.
_refused: dict[str, KernelError] = {}


def compile(source: str, entry: str, *, include: Sequence[Path] = (), check: bool = False) -> Function:
    """Build a kernel for the CPU.

    Parameters
    ----------
    source : str
        A complete translation unit of CUDA C++, as NVRTC would get it.
    entry : str
        Name of its ``extern "C" __global__`` function.
    include : sequence of paths
        Folders of the files that it includes; `kernels_dir()` is always among them.
    check : bool
        Watch every access to memory, an order of magnitude slower.

    Raises
    ------
    KernelError
        The source does not compile (with the first error and its place), or there is no compiler. The kind
        is "unsupported" where the source is right and the emulator lacks what it uses.
    """
    compiler = find_compiler(os.environ.get("CXX"))
    folder = _folder()
    runtime, runtime_file = _runtime(folder, compiler)
    folders = [*(Path(p) for p in include), kernels_dir()]
    # The entry is declared where it stands; a name that is not there fails in this line, not in the user's.
    unit = f'{source}\n#line 1 "convkit_entry"\nCONVKIT_ENTRY({entry})\n'
    flags = kernel_flags(compiler, check=check)
    files = included(
        f'#include "cuda.hpp"\n{source}', [folder, folder / "shim", kernels_dir() / "std", *folders]
    )
    own = [text for path, text in files.items() if kernels_dir() not in path.parents]
    dynamic = any(
        shared_memory.found(text) for text in (source, *(t.decode("utf-8", "replace") for t in own))
    )
    key = key_of(
        [*compiler, *flags, processor(), runtime_file.name, unit]
        + [part for path in sorted(files) for part in (str(path.name), files[path])]
        + [Path(shared_memory.__file__).read_bytes()]
    )

    def build(path: Path) -> None:
        text, object_file = path.with_suffix(".cpp"), path.with_suffix(".o")
        text.write_text(unit, encoding="utf-8")
        # Paths in debug information are those of #line, not of the folder where this happens to be built.
        command: list[str | Path] = [compiler[0], *flags, f"-fdebug-prefix-map={path.parent}=."]
        search = [f"-I{p.resolve()}" for p in (folder / "shim", kernels_dir() / "std", *folders)]
        search += ["-include", str(folder / "cuda.hpp")]
        rewrite = dynamic
        if not rewrite:
            try:
                run([*command, *search, "-c", text.name, "-o", object_file], path.parent)
            except CompilerFailed as error:
                if not shared_memory.helps(str(error)):
                    raise
                rewrite = True
        if rewrite:
            plain = path.with_suffix(".ii")
            run([*command, *search, "-E", text.name, "-o", plain], path.parent)
            plain.write_text(shared_memory.rewritten(plain.read_text(encoding="utf-8")), encoding="utf-8")
            run([*command, "-c", plain.name, "-o", object_file], path.parent)
        run([compiler[0], "-shared", object_file, runtime_file, "-o", path, "-lm"], path.parent)

    if key in _refused:
        raise copy.copy(_refused[key])
    try:
        path = Cache().get(f"{re.sub('[^A-Za-z0-9_]', '_', entry)[:64]}-{key}", build)
    except CompilerFailed as error:
        _refused[key] = judged(compile_error(str(error), entry, folder), source, folders)
        raise copy.copy(_refused[key]) from None
    return Function(entry, path, runtime, compiler[0], folder, check)


# ---------------------------------------------------------------------------------------------------
# Launches
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Counter:
    """How a line of a kernel uses memory, over a launch.

    Attributes
    ----------
    kind : str
        "shared load", "shared store" (unit: wavefronts; more than ideal means bank conflicts), "global load"
        or "global store" (unit: sectors of 32 bytes; more than ideal means accesses that do not coalesce).
    accesses : int
        Warp-wide instructions.
    actual, ideal : int
        Units that they took, and that they would take if their bytes lay side by side.
    """

    file: str
    line: int
    kind: str
    accesses: int
    actual: int
    ideal: int

    @property
    def ratio(self) -> float:
        return self.actual / self.ideal if self.ideal else 1.0


_launching = threading.Lock()
#: Outputs of launches that went well: another launch may read them, as the second one of a kernel file reads
#: the workspace that the first one filled.
_filled: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
_RESTART = "restart in bytes"  # the runtime's word for: this kernel accesses less than four bytes at once


def _access(report: _Report, kind: str, argument: Argument) -> tuple[str, dict[str, Any]]:
    """An access to an argument in words, and what the error has of it."""
    array = np.asarray(argument.value)
    past = report.offset - array.nbytes if report.offset >= 0 else report.offset
    what = "writes" if report.is_write else "reads"
    size = f" {report.bytes} bytes of" if report.bytes else ""
    if report.offset < 0:
        beyond = f"{-past} bytes before its start"
    elif kind != "out of bounds":
        beyond = f"at byte {report.offset}"
    else:
        past = max(past, 0)  # an access may begin inside
        beyond = f"{past} bytes past its end" if past else "just past its end"
    about: dict[str, Any] = {"argument": argument.name}
    if kind == "out of bounds":
        about["bytes_past_end"] = past
    return f"  {what}{size} {argument.name} ({array.dtype}{list(array.shape)}), {beyond}", about


class Function:
    """A compiled kernel; made by `compile`."""

    def __init__(
        self, entry: str, path: Path, runtime: ctypes.CDLL, compiler: str, folder: Path, check: bool
    ) -> None:
        self.name = entry
        self.check = check
        self._path = path
        self._runtime = runtime
        self._folder = folder
        self._addr2line = Path(compiler).with_name("addr2line")
        try:
            self._module = ctypes.CDLL(str(path))
        except OSError as error:
            raise self._error(f"uses what the emulator does not have: {error}", "unsupported") from None
        self._entry = ctypes.cast(self._module.convkit_entry, ctypes.c_void_p).value
        self._anchor = ctypes.cast(self._module.convkit_anchor, ctypes.c_void_p).value
        self._parameters: list[tuple[int, int]] = []  # bytes; 0 by value, 1 a pointer, 2 a pointer to const
        pointer = ctypes.c_int()
        while (size := self._module.convkit_parameter(len(self._parameters), ctypes.byref(pointer))) >= 0:
            self._parameters.append((size, pointer.value))
        self._unit = 4
        self._counters: list[Counter] = []
        #: What device printf wrote in the last launch, block by block.
        self.printed = ""
        self._guards = self._shared_guards() if check else []

    def launch(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Argument],
        *,
        shared: int = 0,
        seed: int | None = None,
        timeout: float = 60.0,
        threads: int | None = None,
        counters: bool = False,
    ) -> None:
        """Run the kernel to its end.

        Parameters
        ----------
        grid, block : up to three extents
        arguments : sequence of Argument
            One per parameter. Arrays are copied in, and outputs back when all went well.
        shared : int
            Bytes of dynamic shared memory.
        seed : int, optional
            Run threads and blocks in an order drawn from it, rather than by index.
        timeout : float
            Seconds after which a kernel that has not ended is stopped.
        threads : int, optional
            OS threads to spread the blocks over; default: one per CPU (in check mode always one).
        counters : bool
            In check mode: count bank conflicts and sectors, for `counters()`.

        Raises
        ------
        KernelError
            The arguments do not fit, or the kernel did what it must not; nothing was written then.
        """
        extents = [tuple(int(v) for v in e) + (1,) * (3 - len(e)) for e in (grid, block)]
        self._validate(extents, shared)
        if counters and not self.check:
            raise self._error("counters need check mode: compile(..., check=True)", "arguments")
        if 0 in extents[0]:
            return
        prepared, keep = self._prepare(arguments)
        spec = _Spec(self._entry, self._anchor)
        spec.grid[:], spec.block[:] = extents
        spec.shared, spec.check, spec.counters = shared, self.check, counters
        spec.seeded, spec.seed = seed is not None, (seed or 0) & (2**64 - 1)
        spec.threads = 1 if self.check else max(1, threads or len(os.sched_getaffinity(0)))
        spec.arguments = len(arguments)
        guards = (ctypes.c_uint64 * len(self._guards))(*self._guards)
        spec.guards, spec.guard_count = guards, len(self._guards)
        with _launching:
            while True:
                spec.unit = self._unit
                failed, report, low = self._run(spec, prepared, timeout)
                if failed and report.kind.decode() == _RESTART and self._unit == 4:
                    self._unit = 1  # shadow memory by the byte from now on
                    for row in prepared:
                        row.unit = 1
                    continue
                break
            if counters and not failed:
                self._counters = self._read_counters()
            self.printed = self._read_printed()
        del keep
        if self.printed:  # also what a kernel that failed has printed; a GPU writes to stdout as well
            sys.stdout.write(self.printed)
            sys.stdout.flush()
        if failed:
            raise self._describe(report, low, arguments, timeout)
        for argument in arguments:
            if argument.output and isinstance(argument.value, np.ndarray):
                _filled[id(argument.value)] = argument.value

    def counters(self) -> list[Counter]:
        """What the last launch with ``counters=True`` counted, by line of the source."""
        return self._counters

    def _run(self, spec: _Spec, prepared: Any, timeout: float) -> tuple[bool, _Report, int]:
        report, low = _Report(), ctypes.c_uint64()
        if self._runtime.ckemu_begin(ctypes.byref(spec), prepared):
            raise self._error("there is no memory for the arguments", "out of memory")
        try:
            left = timeout
            while True:
                slice_ = min(max(left, 0.001), 0.2)
                state = self._runtime.ckemu_wait(slice_)
                if state == 1:
                    break
                left -= slice_
                if state == 2 or left <= 0:
                    self._stop()
                    break
        except BaseException:  # Ctrl-C: the workers must have stopped before their memory goes
            self._stop()
            self._runtime.ckemu_end(prepared, ctypes.byref(report), ctypes.byref(low))
            raise
        failed = self._runtime.ckemu_end(prepared, ctypes.byref(report), ctypes.byref(low))
        return bool(failed), report, low.value

    def _stop(self) -> None:
        while True:
            self._runtime.ckemu_cancel()
            if self._runtime.ckemu_wait(0.005) == 1:
                return

    # -- arguments ----------------------------------------------------------------------------------
    def _error(self, message: str, kind: str, **where: Any) -> KernelError:
        return KernelError(f"{self.name}: {message}", kernel=self.name, kind=kind, **where)

    def _validate(self, extents: list[tuple[int, ...]], shared: int) -> None:
        grid, block = extents
        number = block[0] * block[1] * block[2]
        if min(block) < 1 or number > 1024 or block[2] > 64:
            raise self._error(f"a block has 1 to 1024 threads, at most 64 in z, not {block}", "arguments")
        if min(grid) < 0 or grid[0] > 2**31 - 1 or max(grid[1:]) > 65535:
            raise self._error(f"a grid has at most 2^31 - 1, 65535, 65535 blocks, not {grid}", "arguments")
        if not 0 <= shared <= 227 * 1024:
            raise self._error(f"a block has at most 232448 bytes of shared memory, not {shared}", "arguments")

    def _prepare(self, arguments: Sequence[Argument]) -> tuple[Any, list[Any]]:
        """The C form of the arguments, and what must stay alive with it."""
        if len(arguments) != len(self._parameters):
            names = ", ".join(a.name for a in arguments)
            raise self._error(
                f"the kernel takes {len(self._parameters)} arguments, not {len(arguments)}: {names}",
                "arguments",
            )
        prepared = (_ArgumentSpec * max(1, len(arguments)))()
        keep: list[Any] = []
        for spec, argument, (size, pointer) in zip(prepared, arguments, self._parameters):
            value = argument.value
            by_value = isinstance(value, (np.generic, int, float)) or (
                isinstance(value, np.ndarray) and value.dtype.names is not None
            )
            if (value is not None and by_value) == bool(pointer) or (value is None and not pointer):
                takes = "a pointer" if pointer else f"{size} bytes by value"
                given = "None" if value is None else type(value).__name__
                raise self._error(
                    f"{argument.name}: the kernel's parameter is {takes}, not {given}",
                    "arguments",
                    argument=argument.name,
                )
            if value is None:
                spec.pointer = 1
                continue
            array = np.asarray(value)
            if by_value:
                if isinstance(value, int):
                    array = np.asarray(value, {4: np.int32, 8: np.int64}.get(size, np.int64))
                elif isinstance(value, float) and not isinstance(value, np.generic):
                    array = np.asarray(value, {4: np.float32, 8: np.float64}.get(size, np.float64))
                if array.nbytes != size:
                    raise self._error(
                        f"{argument.name}: the kernel's parameter has {size} bytes, the value has "
                        f"{array.nbytes} ({array.dtype})",
                        "arguments",
                        argument=argument.name,
                    )
            elif not array.flags.c_contiguous or (argument.output and not array.flags.writeable):
                wrong = "read-only" if array.flags.c_contiguous else "not contiguous"
                raise self._error(f"{argument.name} is {wrong}", "arguments", argument=argument.name)
            keep.append(array)
            spec.data = array.ctypes.data
            spec.bytes = array.nbytes
            spec.pointer = int(not by_value)
            spec.writable = int(argument.output)
            spec.readable = int(argument.reads or not argument.output or _filled.get(id(value)) is value)
            spec.unit = 4 if self._unit == 4 and array.itemsize % 4 == 0 else 1
        return prepared, keep

    # -- reports ------------------------------------------------------------------------------------
    def _lines(self, addresses: Iterable[int]) -> dict[int, tuple[str, int]]:
        """File and line of instructions, by their offsets in this kernel's library."""
        wanted = sorted(set(addresses))
        tool = str(self._addr2line) if self._addr2line.is_file() else shutil.which("addr2line")
        if not wanted or not tool:
            return {}
        shown = subprocess.run(
            [tool, "-a", "-i", "-e", str(self._path), *(hex(a) for a in wanted)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        found: dict[int, tuple[str, int]] = {}
        address = -1
        for row in shown.splitlines():
            if row.startswith("0x"):
                address = int(row, 16)
                continue
            # Inlined callees come first: the first place outside our own headers is the user's.
            file, _, line = row.partition(" (discriminator")[0].rpartition(":")
            file = file[2:] if file.startswith("./") else file
            if (
                address in found
                or not line.isdigit()
                or not int(line)
                or str(self._folder) in os.path.normpath(file)
            ):
                continue
            found[address] = (file, int(line))
        return found

    def _place(self, place: _Place, low: int, back: int) -> tuple[str, int]:
        told = place.file.decode("utf-8", "replace"), place.line
        if place.pc <= low or (place.line and str(self._folder) not in told[0]):
            return told
        address = place.pc - low - back
        return self._lines([address]).get(address, told)

    def _describe(
        self, report: _Report, low: int, arguments: Sequence[Argument], timeout: float
    ) -> KernelError:
        """The report in words."""
        kind = report.kind.decode()
        # A return address lies behind its call; a fault's address is the instruction itself.
        back = 1 if self.check else 0
        rows = [f"{self.name}: {kind}"]
        details: dict[str, Any] = {}
        known = report.at.line >= 0
        file, line = self._place(report.at, low, back) if known else ("", 0)
        block, thread = (tuple(report.at.block), tuple(report.at.thread)) if known else (None, None)
        if file:
            rows.append(f"  at {file}:{line}, block {block}, thread {thread}")
        elif known:
            rows.append(f"  block {block}, thread {thread}")
        if report.has_other:
            other_file, other_line = self._place(report.other, low, back)
            details.update(other_file=other_file, other_line=other_line)
            where = f"{other_file}:{other_line}, " if other_file else ""
            rows.append(
                f"  and {where}block {tuple(report.other.block)}, thread {tuple(report.other.thread)}"
            )
        if report.argument >= 0:
            row, about = _access(report, kind, arguments[report.argument])
            rows.append(row)
            details.update(about)
        if report.argument < -1:
            what = "writes" if report.is_write else "reads"
            rows.append(
                f"  {what} {report.bytes} bytes of {self._shared_name(report.argument, report.offset)}"
            )
        text = report.text.decode("utf-8", "replace")
        if kind == "timeout":
            text = f"the kernel had not ended after {timeout:g} s"
        if kind == "null pointer":
            nulls = [a.name for a in arguments if a.value is None]
            text += f"; passed as None: {', '.join(nulls)}" if nulls else "; no argument was None"
        if text:
            rows.append(f"  {text}")
        if kind in _HINTS:
            rows.append(f"  {_HINTS[kind]}")
        return KernelError(
            "\n".join(rows),
            kernel=self.name,
            kind=kind,
            file=file,
            line=line,
            block=block,
            thread=thread,
            **details,
        )

    def _shared_name(self, space: int, offset: int) -> str:
        """The __shared__ variable at an offset, as far as the library's symbols tell."""
        if space == -3:
            return f"dynamic shared memory at byte {offset}"
        for first, size, variable in self._symbols():
            if first <= offset < first + size and "::" in variable:
                return f"{variable} (shared memory) at byte {offset - first}"
        return f"shared memory at byte {offset}"

    def _shared_guards(self) -> list[int]:
        """Offsets of the guard variables of __shared__ arrays whose type has constructors, such as __half."""
        if b"_ZGV" not in self._path.read_bytes():
            return []
        return [first for first, _, name in self._symbols() if name.startswith("guard variable for")]

    def _symbols(self) -> list[tuple[int, int, str]]:
        """Offset, bytes and name of each variable in the library."""
        tool = self._addr2line.with_name("nm")
        name = str(tool) if tool.is_file() else shutil.which("nm")
        if not name:
            return []
        shown = subprocess.run(
            [name, "-SC", str(self._path)], capture_output=True, text=True, check=False
        ).stdout
        found = re.findall(r"^(\w+) (\w+) [bBdD] (.*)$", shown, re.MULTILINE)
        return [(int(start, 16), int(size, 16), variable) for start, size, variable in found]

    def _read_printed(self) -> str:
        size = self._runtime.ckemu_printed(None, 0)
        if not size:
            return ""
        buffer = ctypes.create_string_buffer(size)
        self._runtime.ckemu_printed(buffer, size)
        return buffer.raw.decode("utf-8", "replace")

    def _site(self, pc: int) -> tuple[str, int] | None:
        """Where in the source a row of the counters belongs that names no instruction."""
        file = ctypes.c_char_p()
        line = self._runtime.ckemu_site(pc, ctypes.byref(file))
        return ((file.value or b"").decode("utf-8", "replace"), line) if line else None

    def _read_counters(self) -> list[Counter]:
        rows = (_Row * 65536)()
        count = self._runtime.ckemu_counters(rows, len(rows))
        sites = {row.pc: site for row in rows[:count] if (site := self._site(row.pc))}
        lines = self._lines(row.pc - 1 for row in rows[:count] if row.pc not in sites)
        totals: dict[tuple[str, int, str], list[int]] = {}
        for row in rows[:count]:
            file, line = sites.get(row.pc) or lines.get(row.pc - 1, ("", 0))
            kind = ("shared " if row.shared else "global ") + ("store" if row.write else "load")
            total = totals.setdefault((file, line, kind), [0, 0, 0])
            for i, number in enumerate((row.accesses, row.actual, row.ideal)):
                total[i] += number
        return [Counter(*place, *total) for place, total in sorted(totals.items())]
