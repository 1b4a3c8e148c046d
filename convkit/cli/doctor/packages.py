"""Python's packages. A version is read from the metadata of what is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import operator
import re
import shlex
import sys
from collections.abc import Iterable, Sequence

from . import driver
from .row import BROKEN, MISSING, OK, OLD, Row, one_line

#: The oldest versions that work: those of pyproject.toml.
OLDEST = {
    "cuda-core": "1.0",
    "jax": "0.5",
    "matplotlib": "3.9",
    "ml_dtypes": "0.5",
    "numba": "0.61",
    "numpy": "2.0",
    "nvidia-ml-py": "12",
    "onnx": "1.17",
    "onnxruntime": "1.20",
    "pillow": "10.1",
    "scikit-image": "0.25",
    "tabulate": "0.9",
    "threadpoolctl": "3.2",
    "tqdm": "4.66",
}
#: Optional packages: (row, distribution, module, extra, what for).
OPTIONAL = (
    ("PyTorch", "torch", "torch", "torch", "convkit.torch, and the comparison with it in `convkit bench`"),
    ("JAX", "jax", "jax", "peers", "the comparison with it in `convkit bench`"),
    ("ONNX", "onnx", "onnx", "onnx", "convkit.onnx"),
    ("ONNX Runtime", "onnxruntime", "onnxruntime", "peers", "the comparison with it in `convkit bench`"),
    ("Pillow", "pillow", "PIL", "images", "photographs of your own"),
    ("scikit-image", "scikit-image", "skimage", "images", "example photographs"),
    ("matplotlib", "matplotlib", "matplotlib", "bench", "pictures of `convkit bench`"),
    ("nvidia-ml-py", "nvidia-ml-py", "pynvml", "cuda13", "a GPU's clocks and power in `convkit bench`"),
)


def installed(distribution: str) -> str:
    """The version of an installed distribution; empty where it is not installed."""
    try:
        return importlib.metadata.version(distribution) or "unknown"
    except importlib.metadata.PackageNotFoundError:
        return ""


def there(module: str) -> bool:
    """Whether a module could be imported, as far as that is known without doing it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def numbers(version: str, length: int = 4) -> tuple[int, ...]:
    """(2, 0, 0, 0) of "2.0", and of "2.0.0rc1" too."""
    found = [int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])][:length]
    return (*found, *([0] * (length - len(found))))


def is_old(distribution: str, version: str) -> bool:
    """Whether a version is older than what convkit works with."""
    return version != "unknown" and numbers(version) < numbers(OLDEST.get(distribution, "0"))


_COMPARE = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq,
    ">": operator.gt, ">=": operator.ge, "!=": operator.ne,
}  # fmt: skip


def _unmet(distribution: str, needed: Sequence[str]) -> list[str]:
    """Of these packages, what a distribution asks for and does not get: "numpy<2.3, and here is 2.4.6"."""
    unmet = []
    for requirement in importlib.metadata.requires(distribution) or ():
        match = re.match(r"([\w.-]+)\s*\(?([^;)]*)", requirement.partition(";")[0])
        if match is None or match[1].lower() not in needed:
            continue
        here = installed(match[1])
        for sign, bound in re.findall(r"(<=|>=|==|!=|<|>)\s*([\d.]+)", match[2]):
            if not here or not _COMPARE[sign](numbers(here), numbers(bound)):
                unmet.append(f"{match[1]}{sign}{bound}, and here is {here or 'none'}")
    return unmet


def pins(names: Iterable[str]) -> str:
    """Arguments of pip for the oldest versions that work, or newer."""
    return " ".join(shlex.quote(f"{name}>={OLDEST[name]}") for name in names)


def again(distribution: str) -> str:
    """The command that installs a distribution once more."""
    return f"pip install --force-reinstall {distribution}"


def numpy() -> Row:
    """NumPy and its BLAS."""
    import numpy
    import threadpoolctl

    version = str(numpy.__version__)
    blas = [
        f"BLAS: {found['internal_api']} {found['version'] or ''}, threads: {found['num_threads']}"
        for found in threadpoolctl.threadpool_info()
        if found["user_api"] == "blas"
    ]
    found = "; ".join([version, *dict.fromkeys(blas)] if blas else [version, "BLAS: unknown"])
    if is_old("numpy", version):
        return Row("NumPy", OLD, found, f"pip install 'numpy>={OLDEST['numpy']}'", version)
    return Row("NumPy", OK, found, version=version)


def core() -> Row:
    """The packages that convkit cannot do without."""
    versions = {name: installed(name) for name in ("ml_dtypes", "threadpoolctl", "tabulate", "tqdm")}
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    bad = [name for name, version in versions.items() if not version or is_old(name, version)]
    if not bad:
        return Row("core packages", OK, found)
    state = MISSING if not all(versions.values()) else OLD
    return Row("core packages", state, found, f"pip install {pins(bad)}")


def numba() -> Row:
    """Numba, and whether the other packages have the versions that it asks for."""
    version = installed("numba")
    if not version:
        return Row("Numba", MISSING, "not installed", f"pip install {pins(['numba'])}")
    if not there("numba"):
        return Row("Numba", BROKEN, f"{version}, but its files are gone", again("numba"), version)
    if unmet := _unmet("numba", ("numpy", "llvmlite")):
        advice = "pip install -U numba, or the version of the other that it asks for"
        return Row("Numba", BROKEN, f"{version} asks for {'; '.join(unmet)}", advice, version)
    if is_old("numba", version):
        return Row("Numba", OLD, version, f"pip install {pins(['numba'])}", version)
    return Row("Numba", OK, version, version=version)


def optional(name: str, distribution: str, module: str, extra: str, purpose: str, imports: bool) -> Row:
    """An optional package; imported only on request."""
    version = installed(distribution)
    install = f"pip install 'convkit[{driver.extra() if extra == 'cuda13' else extra}]'"
    if not there(module):
        if version:
            return Row(name, BROKEN, f"{version}, but its files are gone", again(distribution), version)
        return Row(name, MISSING, f"not installed; it is for {purpose}", install)
    version = version or "unknown"
    if is_old(distribution, version):
        return Row(name, OLD, f"{version}; {OLDEST[distribution]} or newer is needed", install, version)
    if imports:
        try:
            importlib.import_module(module)
        except Exception as error:
            found = f"{version} cannot be imported: {one_line(error)}"
            return Row(name, BROKEN, found, again(distribution), version)
    return Row(name, OK, version, version=version)
