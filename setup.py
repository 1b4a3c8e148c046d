"""What pyproject.toml cannot say: the kernels' way into a wheel, and the optional C++ extension.

**Kernels.** They stand at the top level, in `kernels/`, where a newcomer finds them. A wheel carries them
as `convkit/_kernels`; an editable install reads the original (`convkit.paths.kernels_dir`).

**Native extensions** are optional. Where one cannot be built, the install goes on without that one, and
leaves the reason in `convkit/_native_missing.txt`, which `convkit.cpu.extension` reads. With
CONVKIT_REQUIRE_NATIVE=1 (as CI sets it) a failed build fails the install.

Objects are kept in `build/objects`, so that another install compiles what has changed. For developers:
CONVKIT_BUILD_ISAS=v3 compiles the kernels for fewer instruction sets, CONVKIT_SANITIZE=address,undefined (see
`tests/sanitize.py`) for GCC's and Clang's sanitizers, and CXX chooses the compiler.
"""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MISSING = "convkit/_native_missing.txt"

COMPILE = ["-std=c++17", "-O3", "-pthread", "-fvisibility=hidden", "-g0"]
# Both compilers may fuse a*b+c into one FMA by default, but only one of them in every standard mode.
COMPILE += ["-ffp-contract=fast"]
# Wider vectors than the baseline's change the ABI of functions that pass them; ours are all inlined.
COMPILE += ["-Wno-psabi"]


#: Instruction sets that the kernels are compiled for, each into a module of its own, of which
#: `convkit/cpu/extension.py` loads the widest that the machine has. x86-64-v2: SSE4; v3: AVX2 and FMA;
#: v4: AVX-512. (`probe.cpp` asks the CPU for all that belongs to each.)
ISAS = {
    "x86_64": {
        "v2": ["-march=x86-64-v2"],
        "v3": ["-march=x86-64-v3"],
        "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    },
    "aarch64": {"neon": []},
}
# Each module is whole in itself: no symbol of one may stand in for that of another, which a CPU may not run.
# sqrt need not set errno, so that it is an instruction.
KERNELS = ["-fno-gnu-unique", "-fno-math-errno", "-fno-trapping-math"]
# What the sanitizers watch stands in lines that can be named, and the first finding ends the process.
SANITIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]


def _machine() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _isas() -> dict[str, list[str]]:
    return ISAS.get(_machine(), {"generic": []})


def _asked() -> dict[str, list[str]]:
    isas = _isas()
    asked = os.environ.get("CONVKIT_BUILD_ISAS", "").replace(",", " ").split()
    if unknown := set(asked) - set(isas):
        sys.exit(f"CONVKIT_BUILD_ISAS: {' '.join(sorted(unknown))} is not among {' '.join(isas)}")
    return {isa: flags for isa, flags in isas.items() if not asked or isa in asked}


def extensions() -> list[Extension]:
    """Every extension module: its name, the folder whose *.cpp files make it, and its own flags.

    A new .cpp file needs no entry here, only a new module does. Nothing is built with -march=native: a wheel
    must run on any machine of its architecture, so wider instruction sets are chosen at run time.
    """
    modules: dict[str, tuple[str, list[str]]] = {"convkit._native": ("convkit/cpu/native", [])}
    for isa, flags in _asked().items():
        name = f"convkit._cpu_{isa}"
        define = f"-DCK_MODULE={name.rpartition('.')[2]}"
        modules[name] = ("convkit/cpu/native/kernels", [*KERNELS, *flags, define])
    sanitize, link = [], ["-pthread"]
    if watched := os.environ.get("CONVKIT_SANITIZE", ""):
        sanitize = [f"-fsanitize={watched}", *SANITIZE]
        link.append(f"-fsanitize={watched}")
    headers = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "convkit/cpu").rglob("*.hpp"))
    return [
        Extension(
            name,
            sources=sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.cpp")),
            depends=[*headers, "setup.py"],
            include_dirs=[folder],
            language="c++",
            extra_compile_args=[*COMPILE, *flags, *sanitize],
            extra_link_args=link,
        )
        for name, (folder, flags) in modules.items()
    ]


class BuildPy(build_py):
    """Copies `kernels/` to `convkit/_kernels`; not for an editable install, which would see it go stale."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "convkit", "_kernels")
            shutil.rmtree(target, ignore_errors=True)  # build/ may be old, with kernels that are gone since
            for source, relative in self._kernels():
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target / relative))

    def get_outputs(self, *args, **kwargs) -> list[str]:
        outputs = super().get_outputs(*args, **kwargs)
        if not self.editable_mode:
            outputs += [str(Path(self.build_lib, "convkit", "_kernels", rel)) for _, rel in self._kernels()]
        return outputs

    @staticmethod
    def _kernels() -> list[tuple[Path, Path]]:
        """Every file below `kernels/`, with its path in there; not what editors and compilers leave."""
        folder = ROOT / "kernels"
        found = []
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if path.is_file() and not hidden and path.suffix not in {".o", ".so", ".pyc"}:
                found.append((path, relative))
        return found


class BuildExt(build_ext):
    """Builds what can be built, and writes down why the rest could not be."""

    def run(self) -> None:
        self.missing: list[str] = []
        super().run()
        targets = [Path(self.build_lib, MISSING)]
        if self.inplace:
            targets.append(
                Path(self.get_finalized_command("build_py").get_package_dir("convkit")).parent / MISSING
            )
        for target in targets:
            target.unlink(missing_ok=True)
            if self.missing:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text("\n".join(self.missing) + "\n", encoding="utf-8")

    def build_extensions(self) -> None:
        """All modules at once, as many objects at a time as there are CPUs; each stands and falls alone."""
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jobs = self.parallel if type(self.parallel) is int else cpus
        together = concurrent.futures.ThreadPoolExecutor
        with together(jobs) as objects, together(len(self.extensions) or 1) as modules:
            built = [
                (extension, modules.submit(self._build, extension, objects)) for extension in self.extensions
            ]
        for extension, done in built:
            if error := done.exception():  # whatever a toolchain may raise: the Python parts still work
                if os.environ.get("CONVKIT_REQUIRE_NATIVE", "") not in ("", "0"):
                    raise RuntimeError(f"{extension.name}: {error}") from error
                self.extensions.remove(extension)
                self._leave_out(extension.name, " ".join(str(error).split()) or type(error).__name__)
        for isa in set(_isas()) - set(_asked()):
            self._leave_out(f"convkit._cpu_{isa}", "CONVKIT_BUILD_ISAS left it out")

    def _build(self, extension: Extension, objects: concurrent.futures.Executor) -> None:
        pybind11 = self._require_pybind11(extension)
        self._require_compiler()
        flags = [flag for flag in extension.extra_compile_args if self._takes(flag)]
        if refused := [f for f in extension.extra_compile_args if f.startswith("-march") and f not in flags]:
            raise RuntimeError(f"{self._compiler()[0]} does not know {' '.join(refused)}")
        extension.extra_compile_args = flags
        # A folder for each module: the same source makes another object for each instruction set. And for
        # whatever else decides what is in an object, so that those of another install are not taken for ours.
        version = subprocess.run([*self._compiler(), "--version"], capture_output=True).stdout
        key = repr((sys.version, self._compiler(), version, flags, pybind11))
        folder = f"{extension.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        alone = copy.copy(self)
        alone.build_temp = str(ROOT / "build" / "objects" / folder)
        alone.force = True  # a module that is newer than its sources may be of other flags, or of a compiler
        alone.compiler = copy.copy(self.compiler)
        alone.compiler.compile = functools.partial(
            _compile, self.compiler.compile, objects, [ROOT / path for path in extension.depends]
        )
        alone.build_extension(extension)

    def _compiler(self) -> list[str]:
        """The command, with CXX and CXXFLAGS of the environment in it."""
        return list(self.compiler.compiler_so_cxx)

    def _takes(self, flag: str) -> bool:
        """Whether the compiler knows a flag that serves speed, or silence; all others it must."""
        if not flag.startswith(("-f", "-m", "-W")) or flag.startswith("-fsanitize"):
            return True
        command = [*self._compiler(), flag, "-fsyntax-only", "-x", "c++", os.devnull]
        return subprocess.run(command, capture_output=True).returncode == 0

    @staticmethod
    def _require_pybind11(extension: Extension) -> str:
        """Puts its headers in the extension's way; returns its version."""
        try:
            import pybind11
        except ImportError:
            raise RuntimeError("pybind11 was not found when convkit was installed") from None
        extension.include_dirs.append(pybind11.get_include())
        return pybind11.__version__

    def _require_compiler(self) -> None:
        """Says so in plain words before the compiler's absence shows up as a failed command."""
        program = self._compiler()[0]
        if not shutil.which(program):
            raise RuntimeError(f"no C++ compiler was found when convkit was installed (looked for {program})")

    def _leave_out(self, name: str, reason: str) -> None:
        self.missing.append(f"{name}: {reason}")
        # An older build must not pass for this one: neither here nor in a wheel that is made of build/.
        stale = [Path(self.build_lib)] + ([ROOT] if self.inplace or self.editable_mode else [])
        for folder in stale:
            (folder / self.get_ext_filename(name)).unlink(missing_ok=True)
        print(f"convkit: {name} is left out: {reason}", file=sys.stderr)


def _compile(
    compile: Callable[..., list[str]],
    pool: concurrent.futures.Executor,
    prerequisites: list[Path],
    sources: list[str],
    output_dir: str,
    **options: object,
) -> list[str]:
    """The compiler's `compile`, one source at a time in a pool, without those whose object is new enough."""
    newest = max(path.stat().st_mtime for path in prerequisites)

    def one(source: str) -> str:
        target = Path(output_dir, source).with_suffix(".o")
        if not (target.is_file() and target.stat().st_mtime > max(newest, Path(source).stat().st_mtime)):
            # Neither what an interrupted compiler leaves nor what it made of a source that was edited
            # meanwhile may pass for new.
            start, begun = time.time(), Path(output_dir, "begun")
            (begun / source).parent.mkdir(parents=True, exist_ok=True)
            (made,) = compile([source], output_dir=str(begun), **options)
            os.utime(made, (start, start))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, target)
        return str(target)

    return list(pool.map(one, sources))


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPy, "build_ext": BuildExt})
