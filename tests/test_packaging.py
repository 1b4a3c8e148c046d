"""What is installed (kernel files, version, licence, the optional extension), and what an import costs.

The slow tests build and install copies of the source tree, with no network and no build isolation. Only one
of the builds compiles C++; all the others are made as if there were no compiler, which tests that as well.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import convkit
from convkit import native, paths, probe
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
    # CPU time, since a wall clock would measure the tests that run beside this one. The first import, which
    # may write byte code, is not counted.
    code = "import time; start = time.process_time(); import convkit; print(time.process_time() - start)"
    seconds = [float(python("-c", code, cwd=tmp_path)) for _ in range(6)][1:]
    assert statistics.median(seconds) < 0.5, seconds


def test_native_is_there_or_says_why():
    assert (native.load() is None) == bool(native.why_missing())
    if os.environ.get("CI") == "true":
        assert native.load() is not None, native.why_missing()


@pytest.mark.parametrize("missing", [False, True])
def test_probes(monkeypatch, missing):
    if missing:
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip(native.why_missing())
    peak = probe.peak_gflops(1, seconds=0.05)
    assert 1 < peak.gflops < 2000
    assert peak.method in (("BLAS sgemm 1024",) if missing else ("native fma",))
    assert missing or (peak.isa in ("avx512", "avx2", "sse2", "neon", "generic") and peak.threads == 1)
    copy = probe.copy_gbs(1, megabytes=64, seconds=0.05)
    assert 0.5 < copy.gbs < 2000
    assert "GFLOP/s" in str(peak)
    assert "GB/s" in str(copy)
    with pytest.raises(OptionError, match="threads"):
        probe.peak_gflops(0)


def test_probes_are_plausible_against_blas():
    if native.load() is None:
        pytest.skip(native.why_missing())
    # BLAS cannot beat the machine's peak. (Other processes may slow either, hence the wide margin.)
    assert probe.peak_gflops().gflops > 0.5 * probe._blas_peak(0.2).gflops


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
from convkit import native, paths
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
    source = shutil.copytree(tree, tmp_path / "tree")
    interpreter = bare_environment(tmp_path / "venv")
    options = [
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--config-settings",
        f"editable_mode={mode}",
    ]
    run(interpreter, "-m", "pip", "install", *options, "-e", source, cwd=tmp_path, **NO_COMPILER)
    found = check(run(interpreter, "-c", REPORT, cwd=tmp_path).stdout.strip(), source)
    assert Path(found["file"]).resolve() == source / "convkit" / "__init__.py"
    assert Path(found["kernels"]) == source / "kernels"
    assert "no C++ compiler was found" in found["why"]
    # A kernel that is dropped in is found without another install.
    (source / "kernels" / "dropped_in.cu").write_text("// new\n")
    check(run(interpreter, "-c", REPORT, cwd=tmp_path).stdout.strip(), source)
