"""What pyproject.toml cannot say: the kernels' way into a wheel, and the optional C++ extension.

**Kernels.** They stand at the top level, in `kernels/`, where a newcomer finds them. A wheel carries them
as `convkit/_kernels`; an editable install reads the original (`convkit.paths.kernels_dir`).

**Native extensions** are optional. Where one cannot be built, the install goes on, and leaves the reason in
`convkit/_native_missing.txt`, which `convkit.native.why_missing` reads. With CONVKIT_REQUIRE_NATIVE=1 (as CI
sets it) a failed build fails the install.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
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


#: Instruction sets that the kernels are compiled for, each into a module of its own: `convkit/native.py` loads
#: the widest that the machine has. x86-64-v2: SSE4; v3: AVX2 and FMA; v4: AVX-512.
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


def _machine() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def extensions() -> list[Extension]:
    """Every extension module: its name, the folder whose *.cpp files make it, and its own flags.

    A new .cpp file needs no entry here, only a new module does. Nothing is built with -march=native: a wheel
    must run on any machine of its architecture, so wider instruction sets are chosen at run time.
    """
    modules = {"convkit._native": ("convkit/cpu/native", [])}
    for isa, flags in ISAS.get(_machine(), {"generic": []}).items():
        name = f"convkit._cpu_{isa}"
        define = f"-DCK_MODULE={name.rpartition('.')[2]}"
        modules[name] = ("convkit/cpu/native/kernels", [*KERNELS, *flags, define])
    return [
        Extension(
            name,
            sources=sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.cpp")),
            depends=sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.hpp")),
            include_dirs=[folder],
            language="c++",
            extra_compile_args=[*COMPILE, *flags],
            extra_link_args=["-pthread"],
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
        for extension in list(self.extensions):
            try:
                self._require_pybind11(extension)
                self._require_compiler()
                self.build_extension(extension)
            except Exception as error:  # whatever a toolchain may raise: the Python parts still work
                if os.environ.get("CONVKIT_REQUIRE_NATIVE", "") not in ("", "0"):
                    raise
                self._give_up(extension, " ".join(str(error).split()) or type(error).__name__)

    @staticmethod
    def _require_pybind11(extension: Extension) -> None:
        try:
            import pybind11
        except ImportError:
            raise RuntimeError("pybind11 was not found when convkit was installed") from None
        extension.include_dirs.append(pybind11.get_include())

    def _require_compiler(self) -> None:
        """Says so in plain words before the compiler's absence shows up as a failed command."""
        command = os.environ.get("CXX") or shlex.join(getattr(self.compiler, "compiler_so_cxx", []))
        program = (shlex.split(command) or ["c++"])[0]
        if not shutil.which(program):
            raise RuntimeError(f"no C++ compiler was found when convkit was installed (looked for {program})")

    def _give_up(self, extension: Extension, reason: str) -> None:
        self.missing.append(f"{extension.name}: {reason}")
        self.extensions.remove(extension)
        if self.inplace or self.editable_mode:  # an older build must not pass for this one
            stale = ROOT / self.get_ext_filename(extension.name)
            stale.unlink(missing_ok=True)
        print(f"convkit: {extension.name} is left out: {reason}", file=sys.stderr)


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPy, "build_ext": BuildExt})
