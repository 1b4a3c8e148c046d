"""What pyproject.toml cannot say: the kernels' way into a wheel, and the optional C++ extension.

**Kernels.** They stand at the top level, in `kernels/`, where a newcomer finds them. A wheel carries them
as `convkit/_kernels`; an editable install reads the original (`convkit.paths.kernels_dir`).

**Native extensions** are optional. Where one cannot be built, the install goes on without that one, and
leaves the reason in `convkit/_native_missing.txt`, which `convkit.cpu.extension` reads. With
CONVKIT_REQUIRE_NATIVE=1 (as CI sets it) a failed build fails the install.

A wheel has the kernels for every instruction set of its architecture. An editable install, which stays on its
machine, has those for the widest one of that machine. CONVKIT_BUILD_ISAS=v3,v4 or all says otherwise.

Objects are kept in `build/objects`, so that another install compiles what has changed. The bindings to Python
do not depend on the instruction set: they are compiled once. For developers:
CONVKIT_SANITIZE=address,undefined (see `tests/sanitize.py`) compiles for GCC's and Clang's sanitizers, and
CXX chooses the compiler. Each object that is made is a line on standard output, and in the file that
CONVKIT_BUILD_PROGRESS names: pip hides the former.
"""

from __future__ import annotations

import concurrent.futures
import copy
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MISSING = "convkit/_native_missing.txt"

COMPILE = ["-std=c++17", "-O2", "-pthread", "-fvisibility=hidden", "-g0"]
# Both compilers may fuse a*b+c into one FMA by default, but only one of them in every standard mode.
COMPILE += ["-ffp-contract=fast"]
# Wider vectors than the baseline's change the ABI of functions that pass them; ours are all inlined.
COMPILE += ["-Wno-psabi"]
# Each module is whole in itself: no symbol of one may stand in for that of another, which a CPU may not run.
COMPILE += ["-fno-gnu-unique"]


#: Instruction sets that the kernels are compiled for, narrowest first, each into a module of its own:
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
# sqrt need not set errno, so that it is an instruction.
KERNELS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
# What the sanitizers watch stands in lines that can be named, and the first finding ends the process.
SANITIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]


def _machine() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _isas() -> dict[str, list[str]]:
    return ISAS.get(_machine(), {"generic": []})


def _asked() -> set[str]:
    """The instruction sets that CONVKIT_BUILD_ISAS names; none if it names none."""
    isas = _isas()
    asked = set(os.environ.get("CONVKIT_BUILD_ISAS", "").replace(",", " ").split())
    if asked == {"all"}:
        return set(isas)
    if unknown := asked - set(isas):
        sys.exit(
            f"CONVKIT_BUILD_ISAS: {' '.join(sorted(unknown))} is not among {' '.join(isas)}, and not 'all'"
        )
    return asked


NATIVE = Path("convkit/cpu/native")
#: Sources that are compiled once, for the baseline, and linked into each module of kernels.
BINDINGS = NATIVE / "bindings"


class NativeExtension(Extension):
    """An extension module from the sources of some folders; `isa` is the instruction set of kernels."""

    def __init__(self, name: str, folders: list[Path], isa: str, flags: list[str]) -> None:
        sanitize, link = [], ["-pthread"]
        if watched := os.environ.get("CONVKIT_SANITIZE", ""):
            sanitize = [f"-fsanitize={watched}", *SANITIZE]
            link.append(f"-fsanitize={watched}")
        super().__init__(
            name,
            sources=[path.as_posix() for folder in folders for path in _sources(folder)],
            depends=[path.as_posix() for path in [*sorted(NATIVE.rglob("*.hpp")), Path("setup.py")]],
            language="c++",
            extra_compile_args=[*COMPILE, *flags, *sanitize],
            extra_link_args=link,
        )
        self.isa = isa
        self.common = [*COMPILE, *sanitize]

    def flags_of(self, source: str) -> list[str]:
        return self.common if Path(source).parent == BINDINGS else self.extra_compile_args


def _sources(folder: Path) -> list[Path]:
    """The largest first: what is compiled last should be short, or one CPU works alone in the end."""
    return sorted(folder.glob("*.cpp"), key=lambda path: (-path.stat().st_size, path))


def extensions() -> list[Extension]:
    """Every extension module; a build leaves out those of instruction sets that are not wanted.

    A new .cpp file needs no entry here, only a new module does. Nothing is built with -march=native: a wheel
    must run on any machine of its architecture, so wider instruction sets are chosen at run time.
    """
    found: list[Extension] = [NativeExtension("convkit._native", [NATIVE], "", [])]
    for isa, flags in _isas().items():
        # The bindings first: they take the longest.
        folders = [BINDINGS, NATIVE / "kernels"]
        found.append(NativeExtension(f"convkit._cpu_{isa}", folders, isa, [*KERNELS, *flags]))
    return found


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


@dataclass(frozen=True)
class Object:
    """An object file, and what it is made of."""

    source: str
    path: Path
    label: str
    command: tuple[str, ...]
    newest: float  # when the last header was changed

    def is_new(self) -> bool:
        changed = max(self.newest, Path(self.source).stat().st_mtime)
        return self.path.is_file() and self.path.stat().st_mtime > changed

    def make(self) -> float:
        """Compiles it; returns the seconds that it took.

        Raises
        ------
        RuntimeError
            With the file, and the compiler's first error.
        """
        start = time.time()
        # Neither what an interrupted compiler leaves nor what it made of a source that was edited meanwhile
        # may pass for new.
        begun = self.path.parent / "begun" / self.path.name
        begun.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [*self.command, "-o", str(begun)], capture_output=True, text=True, errors="replace"
        )
        if done.stderr:
            print(done.stderr, file=sys.stderr)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            reason = errors[0] if errors else f"{self.command[0]} ended with exit status {done.returncode}"
            raise RuntimeError(f"{self.source} does not compile: {reason}")
        os.utime(begun, (start, start))
        os.replace(begun, self.path)
        return time.time() - start


class Progress:
    """A line for each object: on standard output, and in the file that CONVKIT_BUILD_PROGRESS names."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def say(self, what: str, how: str) -> None:
        self.count += 1
        line = f"convkit: C++ {self.count:{len(str(self.total))}}/{self.total}  {what}, {how}"
        print(line, flush=True)
        if name := os.environ.get("CONVKIT_BUILD_PROGRESS"):
            try:
                with open(name, "a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            except OSError:
                pass  # a terminal that is gone stops no build


class BuildExt(build_ext):
    """Builds what can be built, and writes down why the rest could not be."""

    def run(self) -> None:
        self.missing: list[str] = []
        self.stays = bool(self.inplace or self.editable_mode)  # setuptools clears `inplace` for a while
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
        """All objects first, as many at a time as there are CPUs; then each module stands and falls alone."""
        wanted = _asked() or self._isas_of_this_machine()
        for extension in [e for e in self.extensions if e.isa and e.isa not in wanted]:
            self.extensions.remove(extension)
            self._leave_out(
                extension.name,
                f"CONVKIT_BUILD_ISAS={os.environ['CONVKIT_BUILD_ISAS']} left it out"
                if _asked()
                else "an editable install has the kernels of its machine's widest instruction set alone "
                "(with CONVKIT_BUILD_ISAS=all in the environment: every set)",
            )
        errors: dict[str, Exception] = {}
        objects: dict[str, list[Object]] = {}
        for extension in self.extensions:
            try:
                objects[extension.name] = self._objects_of(extension)
            except Exception as error:  # whatever a toolchain may raise: the Python parts still work
                errors[extension.name] = error
        failed = self._make([made for of_one in objects.values() for made in of_one])
        for extension in list(self.extensions):
            try:
                if extension.name in errors:
                    raise errors[extension.name]
                for made in objects[extension.name]:
                    if made.path in failed:
                        raise failed[made.path]
                self._link(extension, [str(made.path) for made in objects[extension.name]])
            except Exception as error:
                if os.environ.get("CONVKIT_REQUIRE_NATIVE", "") not in ("", "0"):
                    raise RuntimeError(f"{extension.name}: {error}") from error
                self.extensions.remove(extension)
                self._leave_out(extension.name, " ".join(str(error).split()) or type(error).__name__)

    def _isas_of_this_machine(self) -> set[str]:
        """Those to build where nothing is asked for: all for a wheel, else the widest one of this machine.

        The compiler knows the machine: -march=native defines a macro for each feature. If it does not, every
        instruction set is built.
        """
        isas = _isas()
        if not self.stays or len(isas) == 1:
            return set(isas)
        here, baseline = self._macros(["-march=native"]), self._macros([])
        features = {isa: self._macros(flags) - baseline for isa, flags in isas.items()}
        fitting = [isa for isa, macros in features.items() if macros and macros <= here]
        return set(fitting[-1:] or isas)

    def _macros(self, flags: list[str]) -> set[str]:
        """The macros that the compiler defines; none if it does not know a flag, or cannot be asked."""
        command = [*self._compiler(), *flags, "-dM", "-E", "-x", "c++", os.devnull]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError:
            return set()
        lines = done.stdout.splitlines() if done.returncode == 0 else []
        return {words[1] for words in map(str.split, lines) if len(words) > 1}

    def _objects_of(self, extension: NativeExtension) -> list[Object]:
        pybind11 = self._require_pybind11()
        self._require_compiler()
        known = {flag for flag in extension.extra_compile_args if self._takes(flag)}
        if refused := [f for f in extension.extra_compile_args if f.startswith("-march") and f not in known]:
            raise RuntimeError(f"{self._compiler()[0]} does not know {' '.join(refused)}")
        version = subprocess.run([*self._compiler(), "--version"], capture_output=True).stdout
        includes = [f"-I{folder}" for folder in (pybind11.get_include(), *self.compiler.include_dirs)]
        newest = max(Path(path).stat().st_mtime for path in extension.depends)
        found = []
        for source in extension.sources:
            flags = [flag for flag in extension.flags_of(source) if flag in known]
            # A folder for each module: the same source makes another object for each instruction set. And for
            # whatever else decides what is in an object, so that another install's are not taken for ours.
            key = repr((sys.version, self._compiler(), version, flags, pybind11.__version__))
            module = "bindings" if Path(source).parent == BINDINGS else extension.name
            folder = f"{module}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
            path = (ROOT / "build" / "objects" / folder / source).with_suffix(".o")
            of = "" if module == "bindings" else extension.isa
            label = f"{of} {Path(source).relative_to(NATIVE).as_posix()}".strip()
            command = (*self._compiler(), *flags, *includes, "-c", source)
            found.append(Object(source, path, label, command, newest))
        return found

    def _make(self, objects: list[Object]) -> dict[Path, Exception]:
        """Compiles those that are not new enough, each once; returns what went wrong with which."""
        stale = list({made.path: made for made in objects if not made.is_new()}.values())
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jobs = self.parallel if type(self.parallel) is int else cpus
        progress, failed = Progress(len(stale)), {}
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            begun = {pool.submit(made.make): made for made in stale}
            for done in concurrent.futures.as_completed(begun):
                made = begun[done]
                if error := done.exception():
                    failed[made.path] = error
                progress.say(made.label, "failed" if error else f"{done.result():.1f} s")
        return failed

    def _link(self, extension: NativeExtension, objects: list[str]) -> None:
        alone = copy.copy(self)
        alone.force = True  # a module that is newer than its sources may be of other flags, or of a compiler
        alone.compiler = copy.copy(self.compiler)
        alone.compiler.compile = lambda *args, **options: objects
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
    def _require_pybind11() -> ModuleType:
        try:
            import pybind11
        except ImportError:
            raise RuntimeError("pybind11 was not found when convkit was installed") from None
        return pybind11

    def _require_compiler(self) -> None:
        """Says so in plain words before the compiler's absence shows up as a failed command."""
        program = self._compiler()[0]
        if not shutil.which(program):
            raise RuntimeError(f"no C++ compiler was found when convkit was installed (looked for {program})")

    def _leave_out(self, name: str, reason: str) -> None:
        self.missing.append(f"{name}: {reason}")
        # An older build must not pass for this one: neither here nor in a wheel that is made of build/.
        stale = [Path(self.build_lib)] + ([ROOT] if self.stays else [])
        for folder in stale:
            (folder / self.get_ext_filename(name)).unlink(missing_ok=True)
        print(f"convkit: {name} is left out: {reason}", file=sys.stderr)


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPy, "build_ext": BuildExt})
