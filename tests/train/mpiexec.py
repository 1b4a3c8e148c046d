"""`mpiexec` for tests: of the environment, or of the machine."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import need


def command(count: int, *given: str) -> list[str]:
    """What starts a command in so many processes. The test is skipped where there is no MPI."""
    need("mpi4py")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("mpiexec", path=path)
    if found is None:
        assert not os.environ.get("CI"), "CI must have mpiexec"
        pytest.skip("no mpiexec")
    return [found, "-n", str(count), *given]
