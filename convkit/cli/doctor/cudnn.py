"""cuDNN, and the frontend of its graph API."""

from __future__ import annotations

import importlib
import os

from ...bench.peers.cudnn import library
from . import driver, packages
from .row import BROKEN, MISSING, OK, OLD, Row, one_line


def _install_cudnn() -> str:
    if driver.cuda_major() == 12:
        return "pip install nvidia-cudnn-cu12 nvidia-cudnn-frontend"
    return "pip install 'convkit[cudnn]'"


def cudnn() -> Row:
    wheels = {cuda: version for cuda in (12, 13) if (version := packages.installed(f"nvidia-cudnn-cu{cuda}"))}
    if len(wheels) > 1:
        names = " ".join(f"nvidia-cudnn-cu{cuda}" for cuda in wheels)
        found = f"two, which overwrite each other's files: {names}"
        return Row("cuDNN", BROKEN, found, f"pip uninstall -y {names}; {_install_cudnn()}")
    named = os.environ.get(library.VARIABLE)
    try:
        loaded = library.load()
    except library.NotInstalled:
        if not wheels:
            return Row(
                "cuDNN",
                MISSING,
                "not installed; it is for the comparison with it in `convkit bench`",
                _install_cudnn(),
            )
        cuda, version = next(iter(wheels.items()))
        advice = packages.again(f"nvidia-cudnn-cu{cuda}")
        return Row("cuDNN", BROKEN, f"{version}, but its files are gone", advice, version)
    except library.Unavailable as error:
        state = OLD if isinstance(error, library.TooOld) else BROKEN
        return Row("cuDNN", state, str(error), f"unset {library.VARIABLE}" if named else _install_cudnn())
    version = library.dotted(loaded.version)
    row = Row("cuDNN", OK, f"{version} ({loaded.path}, {loaded.where})", version=version, path=loaded.path)
    cuda = next(iter(wheels), 0)
    if loaded.where == "the wheel" and (advice := driver.too_new(cuda)):
        advice = advice.partition(", or")[0]
        found = f"{row.found}, made for CUDA {cuda}, which the driver does not run"
        return Row("cuDNN", BROKEN, found, f"{advice}, or {_install_cudnn()}", version, loaded.path)
    return row


def cudnn_frontend() -> Row:
    name, version = "cuDNN frontend", packages.installed("nvidia-cudnn-frontend")
    again = f"pip install --force-reinstall --no-deps nvidia-cudnn-frontend=={version}" if version else ""
    if not packages.there("cudnn"):
        if version:
            return Row(name, BROKEN, f"{version}, but its files are gone", again, version)
        return Row(name, MISSING, "not installed; it is for cuDNN's graph API", _install_cudnn())
    try:
        module = importlib.import_module("cudnn")
        version = version or str(getattr(module, "__version__", "unknown"))
    except Exception as error:
        found = f"{version} cannot be imported: {one_line(error)}".lstrip()
        return Row(name, BROKEN, found, again or _install_cudnn(), version)
    path = str(getattr(module, "__file__", None) or "")
    try:
        backend = library.dotted(library.version_of(int(module.backend_version())))
    except Exception as error:
        found = f"{version}, which finds no cuDNN: {one_line(error)}"
        return Row(name, BROKEN, found, _install_cudnn(), version, path)
    return Row(name, OK, f"{version} with cuDNN {backend}", version=version, path=path)
