"""The examples run as they stand, in a process of their own, and print what they are there to show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
#: What each example must print.
SHOWN = {
    "bench_one_layer": ("lrn_fprop, N = 2, float32", "numba", "ceilings"),
    "import_and_call": ("dw      float64", "a call that is refused says why: conv2d_fprop: w of shape"),
    "languages": ("C++      passes", "PyTorch  passes", "plain    passes"),
    "numba_candidate": ("lrn_fprop  numba", "passes", "LRN of ones"),
    "run_my_kernel": ("relu_fprop  stride", "passes", "out of bounds", "relu_fprop_too_far.cu:18"),
    "torch_swap": ("3 layers swapped, 0 left as they are", "as exact", "\nok"),
    "swap": ("reference", "im2col_gemm differs from the reference by", "which ran 1 time(s)"),
}
#: The longest that an example may be.
LINES = 60


def test_each_example_is_run() -> None:
    assert sorted(SHOWN) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "bench_one_layer")) for name in SHOWN]
)
def test_runs(name: str, tmp_path: Path) -> None:
    # Nothing is skipped: the emulator's example must fail where there is no C++ compiler, not pass unseen.
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for text in SHOWN[name]:
        assert text in done.stdout, f"{text!r} is not in\n{done.stdout}"
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_is_short(path: Path) -> None:
    if path.is_file():
        assert len(path.read_text(encoding="utf-8").splitlines()) < LINES
