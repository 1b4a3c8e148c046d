"""What is installed (kernel files, version, licence, the optional extension), and what an import costs.

The slow tests build and install copies of the source tree, with no network and no build isolation. Only one
of the builds compiles C++, and that one not what the last install has compiled already; all the others are
made as if there were no compiler, which tests that as well, or with a script in its place.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import simulated
import threadpoolctl

import convkit
from convkit import paths
from convkit.cpu import extension, probe
from convkit.errors import ConvkitError, OptionError

ROOT = Path(__file__).resolve().parent.parent
NO_COMPILER = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++", "CONVKIT_REQUIRE_NATIVE": "0"}

is_checkout = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")
# The fixtures are built once per worker, so one worker gets all of these.
in_one_worker = pytest.mark.xdist_group("packaging")


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, free of what this test session has set."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CONVKIT_", "PYTHONPATH", "COV_"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def python(*args: object, cwd: Path, **env: str) -> str:
    return run(sys.executable, *args, cwd=cwd, **env).stdout.strip()


def kernel_files(folder: Path) -> set[str]:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not re.search(r"(^|/)(\.|__pycache__)|\.(o|so|pyc)$", name)}


def copy_of_the_tree(target: Path) -> Path:
    # .git too is left out: what is packaged must not depend on it.
    skipped = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "*.egg-info", "*.so", "_kernels", "_native_missing.txt"
    )
    shutil.copytree(ROOT, target, ignore=skipped)
    (target / "kernels" / "emulator").mkdir(parents=True, exist_ok=True)
    (target / "kernels" / "emulator" / "packaging_probe.cuh").write_text("// a file in a subfolder\n")
    (target / "kernels" / "packaging_probe.cu").write_text("// a file that is sure to be there\n")
    return target


# ---- without building -----------------------------------------------------------------------------------


def test_version_is_the_installed_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", convkit.__version__)
    assert importlib.metadata.version("convkit") == convkit.__version__


@is_checkout
def test_version_is_written_once():
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "setup.py").read_text()
    assert convkit.__version__ not in re.findall(r"version\s*=\s*\"([^\"]+)\"", text)


@pytest.mark.skipif("CONVKIT_KERNELS" in os.environ, reason="CONVKIT_KERNELS is set")
def test_kernels_dir_is_the_source_tree_or_its_copy():
    assert paths.kernels_dir().is_absolute()
    assert paths.kernels_dir().name in ("kernels", "_kernels")


def test_kernels_dir_obeys_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVKIT_KERNELS", str(tmp_path))
    assert paths.kernels_dir() == tmp_path.resolve()
    monkeypatch.setenv("CONVKIT_KERNELS", str(tmp_path / "absent"))
    with pytest.raises(ConvkitError, match="CONVKIT_KERNELS.*absent"):
        paths.kernels_dir()


def test_kernels_dir_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.delenv("CONVKIT_KERNELS", raising=False)
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "convkit")
    with pytest.raises(ConvkitError, match="_kernels.*kernels.*CONVKIT_KERNELS"):
        paths.kernels_dir()


def test_import_is_silent_and_light(tmp_path):
    done = run(sys.executable, "-c", "import convkit", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    modules = set(python("-c", "import sys, convkit; print(*sys.modules)", cwd=tmp_path).split())
    assert not modules & {"numba", "torch", "cupy", "onnx", "skimage", "PIL"}


def test_import_is_quick(tmp_path):
    """Beside NumPy's, which it needs: in CPU time, and in calls, whose number no machine changes."""
    code = """if True:
        import sys, time
        calls = 0
        def count(frame, event, argument):
            global calls
            calls += event.endswith("call")
        if "count" in sys.argv:
            sys.setprofile(count)
        start = time.process_time()
        import numpy
        numpys, between = calls, time.process_time()
        import convkit
        sys.setprofile(None)
        print(calls - numpys, numpys, time.process_time() - between, between - start)
    """
    own, numpys, *_ = map(float, python("-c", code, "count", cwd=tmp_path).split())
    assert own < numpys  # four times as few; Numba alone has twice as many
    seconds = [list(map(float, python("-c", code, cwd=tmp_path).split()[2:])) for _ in range(3)]
    assert min(own for own, _ in seconds) < 4 * min(numpys for _, numpys in seconds), seconds


def test_native_is_there_or_says_why():
    assert (extension.load() is None) == bool(extension.why_missing())
    if os.environ.get("CI") == "true":
        assert extension.load() is not None, extension.why_missing()


def test_probes_without_the_extension(monkeypatch):
    """On a clock that moves on by 10 ms at each look: so long each call takes."""
    monkeypatch.setattr(extension, "load", lambda: None)
    monkeypatch.setattr(probe, "time", simulated.Clock(look=0.01).module())
    peak = probe.peak_gflops(1, seconds=0.05)
    assert peak.gflops == pytest.approx(2 * 1024**3 / 0.01 / 1e9) and peak.threads is None
    assert peak.method == "BLAS sgemm 1024" and "GFLOP/s" in str(peak)
    copy = probe.copy_gbs(1, megabytes=64, seconds=0.05)
    assert copy.gbs == pytest.approx(64e6 / 0.01 / 1e9) and "GB/s" in str(copy)
    with pytest.raises(OptionError, match="threads"):
        probe.peak_gflops(0)


def test_probes_are_plausible_against_blas():
    """BLAS cannot beat the peak.

    Each is the best of many short stretches, in turns: another process cannot have the core in all of them.
    """
    if extension.load() is None:
        pytest.skip(extension.why_missing())
    a, b, c = np.ones((3, 256, 256), np.float32)
    peaks, products, copies = [], [], []
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        for _ in range(10):
            peak = probe.peak_gflops(1, seconds=0.005)
            peaks.append(peak.gflops)
            products.append(2 * 256**3 / probe._best_time(lambda: np.matmul(a, b, out=c), 0.005) / 1e9)
            copy = probe.copy_gbs(1, megabytes=8, seconds=0.005)
            copies.append(copy.gbs)
    assert 0.7 * max(products) < max(peaks) < 2000
    assert 0.5 < max(copies) < 2000
    assert peak.method == "native fma" and peak.threads == 1 and "GFLOP/s" in str(peak)
    assert peak.isa in ("avx512", "avx2", "sse2", "neon", "generic") and "GB/s" in str(copy)


# ---- with building --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return copy_of_the_tree(tmp_path_factory.mktemp("packaging") / "tree")


def build_wheel(source: Path, target: Path, **env: str) -> Path:
    pip = ["-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", target, source]
    python(*pip, cwd=source.parent, **env)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    """With the extension, where there is a compiler. A kernel of an earlier build that is gone stays out."""
    work = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(tree, work / "tree")
    stale = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (stale / "convkit" / "_kernels").mkdir(parents=True)
    (stale / "convkit" / "_kernels" / "gone.cu").write_text("// removed from kernels/ since\n")
    if (ROOT / "build" / "objects").is_dir():
        shutil.copytree(ROOT / "build" / "objects", source / "build" / "objects")
    return build_wheel(
        source, work / "dist", CONVKIT_REQUIRE_NATIVE=os.environ.get("CONVKIT_REQUIRE_NATIVE", "0")
    )


@pytest.fixture(scope="module")
def wheel_without_compiler(tree, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("wheel-no-compiler")
    return build_wheel(shutil.copytree(tree, work / "tree"), work / "dist", **NO_COMPILER)


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("sdist")
    python("-m", "build", "--sdist", "--no-isolation", "--outdir", work, tree, cwd=work, **NO_COMPILER)
    (archive,) = work.glob("*.tar.gz")
    return archive


def bare_environment(target: Path) -> Path:
    """The interpreter of an environment that sees the packages of this one, but not this one's convkit.

    A path in a .pth file does that: the .pth files in there, such as an editable install's, are not read.
    (PYTHONPATH would not do: setuptools' import hook would still find what the other convkit has beyond.)
    """
    venv.create(target, with_pip=False)
    interpreter = target / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(interpreter, "-c", query, cwd=target).stdout.strip())
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def install(wheel: Path, folder: Path) -> str:
    """Install a wheel into an environment of its own, and return what it reports from another folder."""
    interpreter = bare_environment(folder / "venv")
    run(interpreter, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return run(interpreter, "-c", REPORT, cwd=folder).stdout.strip()


REPORT = """
import importlib.metadata, convkit
from convkit import paths
from convkit.cpu import extension as native
native.kernels()
print(convkit.__version__, importlib.metadata.version("convkit"), sep="\\n")
print(convkit.__file__, paths.kernels_dir(), bool(native.load()), native.why_missing(), sep="\\n")
"""


def check(report: str, tree: Path) -> dict[str, str]:
    """Check what every kind of install owes, and return the rest of its report."""
    version, metadata, file, kernels, loaded, why = report.splitlines() + [""] * (
        6 - len(report.splitlines())
    )
    assert version == metadata == convkit.__version__
    assert kernel_files(Path(kernels)) == kernel_files(tree / "kernels")
    assert (loaded == "True") == (why == "")
    return {"file": file, "kernels": kernels, "loaded": loaded, "why": why}


@pytest.mark.slow
@is_checkout
@in_one_worker
def test_wheel(tree, wheel, tmp_path):
    found = check(install(wheel, tmp_path), tree)
    assert Path(found["kernels"]) == Path(found["file"]).parent / "_kernels"
    assert Path(found["file"]).is_relative_to(tmp_path)
    if found["loaded"] == "False":
        assert "no C++ compiler was found" in found["why"]
        assert os.environ.get("CI") != "true"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    # All of them, whatever this machine can run: it may be installed on another.
    isas = set(re.findall(r"convkit/_cpu_(\w+)\.[^/]*\.so", "\n".join(names)))
    if found["loaded"] == "True":
        assert isas == {"x86_64": {"v2", "v3", "v4"}, "aarch64": {"neon"}}.get(
            platform.machine(), {"generic"}
        )
        assert "convkit/_native_missing.txt" not in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {
        "convkit",
        f"convkit-{convkit.__version__}.dist-info",
    }
    assert not [n for n in names if n.endswith((".cpp", ".hpp")) and "/_kernels/" not in n]


@pytest.mark.slow
@is_checkout
@in_one_worker
def test_wheel_without_compiler(tree, wheel_without_compiler, tmp_path):
    found = check(install(wheel_without_compiler, tmp_path), tree)
    assert found["loaded"] == "False"
    assert "no C++ compiler was found when convkit was installed" in found["why"]
    assert "install g++ and run `pip install -e .` again" in found["why"]


@pytest.mark.slow
@is_checkout
@in_one_worker
def test_missing_compiler_can_be_made_an_error(tree, tmp_path):
    source = shutil.copytree(tree, tmp_path / "tree")
    with pytest.raises(AssertionError, match=r"no C\+\+ compiler was found"):
        build_wheel(source, tmp_path / "dist", **{**NO_COMPILER, "CONVKIT_REQUIRE_NATIVE": "1"})


COMPILER = r"""#!/bin/sh
# Makes empty files in the place of objects and modules, and notes for which. Asked for the macros that it
# defines, it has one for each instruction set, and knows a machine with those of $HERE.
for argument; do
  case "$argument" in $REFUSED) echo "error: unrecognized $argument" >&2; exit 1;; esac
done
case " $* " in *" -dM "*)
  for argument; do
    case "$argument" in
      -march=native) for macro in $HERE; do echo "#define $macro 1"; done;;
      -march=x86-64-v2) echo "#define V2 1";;
      -march=x86-64-v3) printf '#define V2 1\n#define V3 1\n';;
      -march=x86-64-v4) printf '#define V2 1\n#define V3 1\n#define V4 1\n';;
    esac
  done
  exit 0;;
esac
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then : > "$2"; echo "$2" >> "$LOG"; fi
  shift
done
"""


@pytest.fixture
def pretend(tree, tmp_path):
    """Builds the extensions in a tree of its own with a script for a compiler.

    Returns what was written down as missing, the modules that there are, and the objects that were made.
    """
    source = shutil.copytree(tree, tmp_path / "tree")
    compiler = tmp_path / "c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    log, lib, progress = tmp_path / "log", tmp_path / "lib", tmp_path / "progress"

    def build(refused="nothing", inplace=False, **env):
        log.write_text("")
        progress.write_text("")
        env = {
            "CONVKIT_REQUIRE_NATIVE": "0",
            "CXX": str(compiler),
            "LOG": str(log),
            "REFUSED": refused,
            "CONVKIT_BUILD_PROGRESS": str(progress),
            **env,
        }
        where = ["--inplace"] if inplace else ["--build-lib", lib]
        said = python("setup.py", "-q", "build_ext", *where, cwd=source, **env)
        package = (source if inplace else lib) / "convkit"
        reasons = package / "_native_missing.txt"
        missing = reasons.read_text().splitlines() if reasons.is_file() else []
        modules = {path.name.partition(".")[0] for path in package.glob("*.so")}
        objects = [Path(line).name for line in log.read_text().splitlines() if line.endswith(".o")]
        build.progress = progress.read_text().splitlines()
        assert build.progress == [line for line in said.splitlines() if line.startswith("convkit: C++")]
        return missing, modules, objects

    build.source = source
    return build


on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64's instruction sets")
ALL = {"_native", "_cpu_v2", "_cpu_v3", "_cpu_v4"}


@pytest.mark.slow
@is_checkout
@in_one_worker
@on_x86
def test_a_compiler_that_does_not_know_an_instruction_set_leaves_out_that_one(pretend):
    assert pretend()[:2] == ([], ALL)
    (missing,), modules, _ = pretend(refused="-march=x86-64-v4")
    assert re.fullmatch(r"convkit\._cpu_v4: .*c\+\+ does not know -march=x86-64-v4", missing)
    assert modules == ALL - {"_cpu_v4"}  # the older one is gone
    # A flag that only makes code better is left out alone.
    assert pretend(refused="-fno-gnu-unique")[:2] == ([], ALL)


@pytest.mark.slow
@is_checkout
@in_one_worker
@on_x86
def test_a_module_that_does_not_compile_leaves_the_others(pretend):
    broken = "*_cpu_v3-*/winograd.o"
    (missing,), modules, objects = pretend(refused=broken)
    file = "convkit/cpu/native/kernels/winograd.cpp"
    assert missing.startswith(f"convkit._cpu_v3: {file} does not compile: error: unrecognized /")
    assert modules == ALL - {"_cpu_v3"}
    assert len(pretend.progress) == len(objects) + 1
    failed = next(line for line in pretend.progress if "failed" in line)
    assert failed.endswith("v3 kernels/winograd.cpp, failed")
    with pytest.raises(AssertionError, match=rf"convkit\._cpu_v3: {file} does not compile"):
        pretend(refused=broken, CONVKIT_REQUIRE_NATIVE="1")
    missing, modules, _ = pretend(refused="*/objects/bindings-*", CXXFLAGS="-DOTHER")
    assert modules == {"_native"} and len(missing) == 3
    assert all("convkit/cpu/native/bindings/module.cpp does not compile" in line for line in missing)
    missing, modules, _ = pretend(CONVKIT_BUILD_ISAS="v3")
    assert [line.partition(":")[0] for line in sorted(missing)] == ["convkit._cpu_v2", "convkit._cpu_v4"]
    assert modules == {"_native", "_cpu_v3"}
    assert all("CONVKIT_BUILD_ISAS=v3 left it out" in line for line in missing)
    with pytest.raises(AssertionError, match="v5 is not among v2 v3 v4"):
        pretend(CONVKIT_BUILD_ISAS="v5")


@pytest.mark.slow
@is_checkout
@in_one_worker
@on_x86
def test_an_editable_install_has_the_kernels_of_its_own_machine(pretend):
    missing, modules, _ = pretend(inplace=True, HERE="V2 V3 other")
    assert modules == {"_native", "_cpu_v3"}
    assert [line.partition(":")[0] for line in missing] == ["convkit._cpu_v2", "convkit._cpu_v4"]
    assert all("CONVKIT_BUILD_ISAS=all" in line for line in missing)
    assert pretend(inplace=True, HERE="V2 V3", CONVKIT_BUILD_ISAS="all")[:2] == ([], ALL)
    assert pretend(inplace=True, HERE="V2 V3 V4 V5")[1] == {"_native", "_cpu_v4"}  # the others are gone
    # A machine that is older than each of them, and a compiler that does not know it: all are built.
    assert pretend(inplace=True, HERE="V1")[:2] == ([], ALL)
    assert pretend(inplace=True, refused="-march=native", HERE="V2")[:2] == ([], ALL)
    assert pretend(HERE="V2")[:2] == ([], ALL)  # what is built for a wheel


@pytest.mark.slow
@is_checkout
@in_one_worker
@on_x86
def test_only_what_has_changed_is_compiled_again(pretend):
    native_folder = pretend.source / "convkit" / "cpu" / "native"
    kernels = [path.stem for path in (native_folder / "kernels").glob("*.cpp")]
    # The bindings once, with those of the module of probes: two files of the same name.
    everything = sorted([f"{stem}.o" for stem in kernels] * 3 + ["module.o"] * 2 + ["probe.o"])
    assert sorted(pretend()[2]) == everything
    total = len(everything)
    assert re.fullmatch(rf"convkit: C\+\+ {total}/{total}  \S.*\.cpp, \d+\.\d s", pretend.progress[-1])
    assert pretend()[2] == [] and pretend.progress == []

    def touch(path):
        path.write_text(path.read_text() + "\n")

    touch(native_folder / "kernels" / "thread_pool.cpp")
    assert pretend()[2] == ["thread_pool.o"] * 3
    touch(native_folder / "kernels" / "thread_pool.hpp")
    assert sorted(pretend()[2]) == everything
    assert sorted(pretend(CXXFLAGS="-DOTHER")[2]) == everything  # and those of before are still there:
    touch(native_folder / "probe.cpp")
    assert pretend()[2] == ["probe.o"]


@pytest.mark.slow
@is_checkout
@in_one_worker
def test_sdist_builds_the_same_wheel(tree, wheel_without_compiler, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "setup.py", "pyproject.toml", "convkit/cpu/native/module.cpp"} <= names
    built = build_wheel(sdist, tmp_path / "dist", **NO_COMPILER)
    with zipfile.ZipFile(built) as ours, zipfile.ZipFile(wheel_without_compiler) as direct:
        assert sorted(ours.namelist()) == sorted(direct.namelist())
    check(install(built, tmp_path), tree)


@pytest.mark.slow
@is_checkout
@in_one_worker
@pytest.mark.parametrize("mode", ["lenient", "strict", "compat"])
def test_editable(tree, tmp_path, mode):
    # As a clone is called: a script beside it sees a folder `convkit` first, which is no package.
    source = shutil.copytree(tree, tmp_path / "convkit")
    interpreter = bare_environment(tmp_path / "venv")
    options = [
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--config-settings",
        f"editable_mode={mode}",
    ]
    run(interpreter, "-m", "pip", "install", *options, "-e", source, cwd=tmp_path, **NO_COMPILER)
    (tmp_path / "script.py").write_text(REPORT)
    found = check(run(interpreter, "script.py", cwd=tmp_path).stdout.strip(), source)
    assert Path(found["file"]).resolve() == source / "convkit" / "__init__.py"
    assert Path(found["kernels"]) == source / "kernels"
    assert "no C++ compiler was found" in found["why"]
    # A kernel that is dropped in is found without another install.
    (source / "kernels" / "dropped_in.cu").write_text("// new\n")
    check(run(interpreter, "-c", REPORT, cwd=tmp_path).stdout.strip(), source)
