"""Compile a C file to a shared library, which stands in for one of NVIDIA's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def build(source: Path, target: Path, *options: str) -> Path:
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    compiler = next((name for name in names if shutil.which(name.split()[0])), None)
    if compiler is None:
        assert not os.environ.get("CI"), "CI must have a C compiler"
        pytest.skip("no C compiler")
    command = [*compiler.split(), "-std=c99", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", *options]
    done = subprocess.run([*command, str(source), "-o", str(target), "-lm"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return target
