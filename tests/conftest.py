"""What the tests share: optional packages, Hypothesis profiles, the GPU marker."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# What a user has tuned is no part of what is tested, here and in processes that a test starts.
os.environ["CONVKIT_TUNED"] = "off"

# A run that fails must fail again: every geometry is derived from the test's own name.
settings.register_profile(
    "convkit",
    deadline=None,
    derandomize=True,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("explore", parent=settings.get_profile("convkit"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "convkit"))


def need(module: str) -> ModuleType:
    """An optional package. The test is skipped where it is missing, except in CI, where nothing may be."""
    if os.environ.get("CI"):
        return importlib.import_module(module)
    found = pytest.importorskip(module)
    if found.__spec__ is not None and found.__spec__.origin is None:  # a folder of tests with the same name
        pytest.skip(f"{module} is not installed", allow_module_level=True)
    return found


@pytest.fixture(name="need")
def _need():
    return need


@pytest.fixture(scope="session", autouse=True)
def passes_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What passes the gate in the tests is not kept among the user's own."""
    from convkit import checked

    folder, before = tmp_path_factory.mktemp("checked"), checked._folders
    checked._folders = lambda: [folder]
    yield
    checked._folders = before


@pytest.fixture(scope="session")
def kernels() -> None:
    """For tests of the CPU's C++ kernels: skipped where they are not built, except in CI."""
    from convkit.cpu import extension

    if (missing := extension.kernels_missing()) is not None:
        assert not os.environ.get("CI"), missing
        pytest.skip(missing)


@pytest.fixture(scope="session")
def compiler() -> None:
    """For tests that emulate kernels: skipped without a C++ compiler, except in CI, which must have one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        assert not os.environ.get("CI"), "CI must have a C++ compiler"
        pytest.skip("no C++ compiler")


@pytest.fixture(scope="session")
def cuda_compiler() -> None:
    """For tests that compile kernels to machine code and look into it: the wheels of the extra `[static]`."""
    need("cuda.core")
    from convkit.cuda import nvrtc, sass
    from convkit.errors import MissingExtra

    try:
        nvrtc.version()
        sass.nvdisasm()
    except MissingExtra as missing:
        assert not os.environ.get("CI"), missing
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def chromium_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all pages; its tests are in the group "browser", so that one worker has them."""
    import chromium

    yield from chromium.started(tmp_path_factory.mktemp("browser"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The executor's module, imported anew on the stand-in for CuPy, and forgotten afterwards."""
    import fake_cupy

    from convkit.cuda import launch

    def forget() -> None:
        sys.modules.pop("convkit.cuda.gpu", None)
        launch.__dict__.pop("cuda", None)

    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    forget()
    yield importlib.import_module("convkit.cuda.gpu")
    forget()


def gpu_found() -> bool:
    """Whether the driver is there and knows a device; nothing else is loaded for it."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not gpu_found():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
