"""The host's C++ compiler, as the emulator uses it: flags, the search for it, and its messages.

Two ways to build a kernel: fast, and with the sanitizers' hooks, which the emulator's runtime answers itself
(nothing of the sanitizers is linked). `-march=native` is right here: nothing that is built leaves the
machine.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .launch import KernelError

_COMMON = (
    "-std=c++17",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-U_FORTIFY_SOURCE",
    "-fno-strict-aliasing",
)
# Products of matrices take vectors as wide as there are. No product of the runtime is fused with a sum.
RUNTIME_FLAGS = (*_COMMON, "-O2", "-march=native", "-ffp-contract=off", "-DCONVKIT_EMULATOR_RUNTIME")
# Whatever the compiler is. -march=native: the machine that compiles is the one that runs.
_KERNEL = (
    *(*_COMMON, "-w", "-fno-exceptions", "-fno-math-errno", "-fno-trapping-math", "-march=native"),
    # The page below a thread's stack cannot be jumped over.
    "-fstack-clash-protection",
    # Calls of the runtime take no detour: a kernel that is stopped in a stub of the linker's has no line.
    "-fno-plt",
    # Version 4, since some versions of addr2line are off by one file in version 5.
    *("-gdwarf-4", "-g1"),
    # NVRTC fuses each a*b+c that stands in one expression or one straight line of code; so does this.
    "-ffp-contract=fast",
)
# ... but not where it has made vectors of the products before: of an ordered sum vector products and single
# sums, of a tile in registers single products and vector sums. A processor's tuning (-march=native on Zen)
# splits long chains on purpose. And the pass of GCC that fuses is not among those of -O1.
_GCC = ("-fno-gnu-unique", "-fno-tree-vectorize", "--param=avoid-fma-max-bits=0", "-fexpensive-optimizations")
_CLANG = ("-fno-vectorize", "-fno-slp-vectorize")
# Moves stay as wide as CUDA's widest: those of 32 bytes would ask for an alignment that no GPU asks for.
_X86 = ("-mprefer-vector-width=128",) if platform.machine() in ("x86_64", "AMD64") else ()

# The instrumentation calls our runtime (hooks.cpp), not the sanitizers' own. GCC takes a float4 apart, and
# then only the check in front of an access knows that it must be aligned (-fno-tree-sra: in check mode a
# kernel's 128-bit accesses are to be seen as such). GCC expands these checks behind the pass that fuses;
# Clang's branch before it, and would keep a product from its sum: there fast mode leaves it to the processor
# to trap.
_FAST = ("-O2", *_X86)
_FAST_GCC = (*_FAST, *_GCC, "-fsanitize=alignment")
_FAST_CLANG = (*_FAST, *_CLANG)
_CHECK_GCC = (
    *("-O1", *_GCC, "-fno-tree-sra"),
    "-fsanitize=thread,alignment,bounds,signed-integer-overflow",
)


def kernel_flags(compiler: tuple[str, str], *, check: bool) -> tuple[str, ...]:
    """The flags that a kernel is compiled with.

    Parameters
    ----------
    compiler : (str, str)
        Of `find_compiler`.
    check : bool
        With the hooks of check mode.

    Raises
    ------
    KernelError
        Check mode by Clang, which copies structs by memcpy, so that a float4 written to shared memory goes
        unseen.
    """
    if "clang" not in compiler[1]:
        return (*_KERNEL, *(_CHECK_GCC if check else _FAST_GCC))
    if check:
        raise KernelError(
            f"check mode needs g++: {compiler[0]} is Clang, which does not announce every access; "
            "set CXX to g++",
            kind="no compiler",
        )
    return (*_KERNEL, *_FAST_CLANG)


@functools.lru_cache(maxsize=8)
def find_compiler(wanted: str | None) -> tuple[str, str]:
    """Path and version of the C++ compiler."""
    for name in [wanted] if wanted else ["g++", "c++", "clang++"]:
        path = shutil.which(name)
        if path:
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return path, shown.partition("\n")[0]
    raise KernelError(
        "the emulator needs a C++ compiler, and none was found (looked for "
        f"{wanted or 'g++, c++, clang++'}); install g++, or set CXX to its path",
        kind="no compiler",
    )


def available() -> bool:
    """Whether there is a C++ compiler, which is all that the emulator needs."""
    try:
        find_compiler(os.environ.get("CXX"))
    except KernelError:
        return False
    return True


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """What -march=native stands for: a cache may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(
        sorted({line for line in lines if re.match(r"flags|Features|model name|CPU part", line)})
    )


def run(command: Sequence[str | Path], cwd: Path) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise CompilerFailed(done.stderr)


class CompilerFailed(Exception):
    pass


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)


def included(text: str, folders: Sequence[Path]) -> dict[Path, bytes]:
    """Every file that the text includes, directly or not, as far as it lies in these folders."""
    found: dict[Path, bytes] = {}
    waiting = [(text, list(folders))]
    while waiting:
        text, around = waiting.pop()
        for name in _INCLUDE.findall(text):
            for folder in around:
                path = Path(os.path.normpath(folder / name))
                if path in found:
                    break
                if path.is_file():
                    found[path] = path.read_bytes()
                    waiting.append((found[path].decode("utf-8", "replace"), [path.parent, *folders]))
                    break
    return found


def compile_error(log: str, entry: str, folder: Path) -> KernelError:
    """The first error at a line of the user's own; one inside our headers by the line that led to it."""
    own = str(folder)
    found = re.findall(r"^(\S[^:\n]*):(\d+):\d+: (?:fatal )?error: (.*)$", log, re.MULTILINE)
    called = re.findall(
        r"^(\S[^:\n]*):(\d+):\d+: +(?:required from here|note: in expansion of macro)", log, re.M
    )
    users = [f for f in found if own not in f[0] and f[0] not in ("convkit_entry",)]
    callers = [c for c in called if own not in c[0]]
    file, line, message = (
        users[0] if users else found[0] if found else ("", "0", log.strip().partition("\n")[0])
    )
    if not users and callers:
        file, line = callers[0]
    if file == "convkit_entry":
        file, line = "", "0"
        message = f'{message} (is there an extern "C" __global__ function {entry}?)'
    start = log.find(message.partition(" (is there")[0])
    excerpt = "\n".join(log[max(start, 0) :].split("\n")[1:4]) if start >= 0 else ""
    where = f"\n  at {file}:{line}" if file else ""
    return KernelError(
        f"{entry} does not compile: {message}{where}\n{excerpt}".rstrip(),
        kernel=entry,
        kind="compile error",
        file=file,
        line=int(line),
        log=log,
    )
