"""The CPU kernels under AddressSanitizer and UBSan: `make sanitize`, or python tests/sanitize.py [NAME ...].

Builds the extensions for one instruction set (CONVKIT_ISA, else the widest here) into build/sanitize, and
puts the implementations that use them through the gate's small cases, in a process with the sanitizers'
runtime. The gate's guard bands are poisoned meanwhile: there, a read beside a tensor ends the process too,
which changes nothing that the gate could see. Python, NumPy and BLAS are not instrumented. GCC is needed.

NAME: an op or an implementation. --random N: so many random problems for each op (5).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "build" / "sanitize"
SANITIZERS = "address,undefined"
INSIDE = "CONVKIT_SANITIZED"  # set in the process that has the runtime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--random", type=int, default=5)
    args = parser.parse_args()
    return check(args.names, args.random) if os.environ.get(INSIDE) else build_and_run(sys.argv[1:])


def build_and_run(arguments: list[str]) -> int:
    from convkit.cpu import extension

    if extension.load() is None:
        print(f"sanitize: {extension.why_missing()}", file=sys.stderr)
        return 2
    isa = os.environ.get("CONVKIT_ISA") or (extension.isas() or ("generic",))[0]
    print(f"sanitize: building the kernels for {isa} with -fsanitize={SANITIZERS}", flush=True)
    build = ["setup.py", "-q", "build", "--build-base", TARGET, "--build-lib", TARGET / "lib"]
    chosen = {"CONVKIT_SANITIZE": SANITIZERS, "CONVKIT_BUILD_ISAS": isa, "CONVKIT_REQUIRE_NATIVE": "1"}
    subprocess.run([sys.executable, *build], cwd=ROOT, env={**os.environ, **chosen}, check=True)
    environment = {
        **os.environ,
        INSIDE: "1",
        "CONVKIT_ISA": isa,
        "CONVKIT_NUM_THREADS": os.environ.get("CONVKIT_NUM_THREADS", "2"),
        # The C++ runtime too, or the sanitizer finds no function to throw exceptions with.
        "LD_PRELOAD": " ".join(runtime(name) for name in ("libasan.so", "libstdc++.so")),
        # Python keeps what it has allocated until it ends.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(TARGET / "lib"),
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run(
        [sys.executable, __file__, *arguments], cwd=TARGET, env=environment, check=False
    ).returncode


def runtime(name: str) -> str:
    compiler = os.environ.get("CXX", "c++").split()
    found = subprocess.run(
        [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"sanitize: {compiler[0]} has no {name}: GCC and its sanitizers are needed")
    return str(path.resolve())


def check(names: list[str], random: int) -> int:
    import convkit
    from convkit.check import check_these, summary
    from convkit.cpu import extension
    from convkit.registry import implementations

    assert Path(convkit.__file__).is_relative_to(TARGET), convkit.__file__
    assert extension.kernels() is not None, extension.kernels_missing()
    found = [
        i
        for i in implementations(device="cpu", layout=None)
        if i.missing is extension.kernels_missing and (not names or {i.op, i.name} & set(names))
    ]
    if not found:
        print(f"sanitize: no implementation in C++ {'named ' + ' '.join(names) if names else 'yet'}")
        return 2 if names else 0
    verdicts = check_these(
        [dataclasses.replace(i, run=fenced(i.run), prepare=None) for i in found], quick=True, random=random
    )
    print(summary(verdicts))
    failed = [verdict for verdict in verdicts if not verdict.ok]
    print(*failed[:5], sep="\n")
    print(f"sanitize: {len(verdicts) - len(failed)} of {len(verdicts)} passed, for {extension.isa()}")
    return 1 if failed else 0


def fenced(run: Callable[..., None]) -> Callable[..., None]:
    """`run`, with everything poisoned that lies in the memory of its arrays, but not in them."""
    sanitizer = ctypes.CDLL(None)
    poison, heal = sanitizer.__asan_poison_memory_region, sanitizer.__asan_unpoison_memory_region
    for function in (poison, heal):
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t], None

    def fenced_run(problem: Any, *arguments: Any, **options: Any) -> None:
        arrays = list(_arrays((*arguments, *options.values())))
        whole = {id(base): base for base in map(_owner, arrays)}.values()
        for base in whole:
            poison(base.ctypes.data, base.nbytes)
        for array in arrays:
            heal(array.ctypes.data, array.nbytes)
        try:
            run(problem, *arguments, **options)
        finally:
            for base in whole:
                heal(base.ctypes.data, base.nbytes)

    return fenced_run


def _arrays(arguments: tuple[Any, ...]) -> Iterator[Any]:
    import numpy

    for argument in arguments:
        if isinstance(argument, numpy.ndarray):
            yield argument
        elif isinstance(getattr(argument, "data", None), numpy.ndarray):  # a tensor in blocks
            yield argument.data


def _owner(array: Any) -> Any:
    import numpy

    while isinstance(array.base, numpy.ndarray):
        array = array.base
    return array


if __name__ == "__main__":
    sys.exit(main())
