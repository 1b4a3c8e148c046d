"""Every shipped kernel compiles for every architecture, and keeps to `kernels/budget.json`."""

from __future__ import annotations

import json

import pytest

from convkit.cuda import budget
from convkit.cuda.header import builtin_files, read

#: What the quick tests compile: float32 for one architecture, the first tile. Tests of PTX compile the rest.
QUICK = {"float32": ("sm_90a",)}
#: What the slow ones do: every dtype and tile for these, and the first of both for the newest.
SLOW, NEWEST = ("sm_80", "sm_90a"), "sm_120"


def marks(build: budget.Build) -> list:
    if build.arch in QUICK.get(build.dtype, ()) and not build.tile:
        return []
    first = not build.tile and build.dtype == read(build.path).header.dtypes[0]
    if build.arch in SLOW or (build.arch == NEWEST and first):
        return [pytest.mark.slow]
    return [pytest.mark.slow, pytest.mark.thorough]


BUILDS = [pytest.param(b, id=str(b), marks=marks(b)) for b in budget.builds()]


@pytest.mark.parametrize("build", BUILDS)
def test_machine_code_keeps_to_the_budget(cuda_compiler, build):
    assert budget.complaints(build, budget.load()) == []


def test_budget_has_every_kernel_and_none_that_is_gone():
    kept = budget.load()
    assert budget.stale(kept) == []
    assert kept["kernels"].keys() == {path.stem for path in builtin_files()}, budget.UPDATE


# ---------------------------------------------------------------------------------------------------
# The comparison itself
# ---------------------------------------------------------------------------------------------------
BUILD = budget.builds()[0]
KEY = f"entry {BUILD.dtype} {BUILD.arch}"
ROW = {
    "registers": 64, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 1024, "local_accesses": 0,
    "ffma_density": 0.9, "lds128_share": 1.0, "ffma_per_lds128": 16.0, "load_to_use": 120,
}  # fmt: skip
#: On tensor cores.
HMMA_ROW = {"registers": 240, "hmma_density": 0.5, "hmma_per_ldsm": 4.0, "async_copies": 8}


def overruns(**changed: float | None) -> list[str]:
    """What is said of ROW with some figures changed, or (None) missing, where the budget is ROW."""
    row = {name: value for name, value in {**ROW, **changed}.items() if value is not None}
    return budget.overruns(BUILD, {KEY: row}, {"kernels": {BUILD.path.stem: {KEY: ROW}}})


@pytest.mark.parametrize(
    "changed",
    [{}, {"registers": 60}, {"shared_bytes": 0}, {"ffma_density": 0.88}, {"ffma_density": 0.95}],
    ids=str,
)
def test_what_keeps_to_the_budget(changed):
    assert overruns(**changed) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"registers": 65}, "registers is 65, over the budget's 64"),
        ({"shared_bytes": 1028}, "shared_bytes is 1028"),
        ({"ffma_density": 0.87}, "ffma_density is 0.87, below the budget's 0.9"),
        ({"lds128_share": 0.5}, "lds128_share is 0.5"),
        ({"ffma_per_lds128": 8.0}, "ffma_per_lds128 is 8.0"),
        ({"load_to_use": 100}, "load_to_use is 100, below the budget's 120"),
        ({"ffma_density": None}, "only the budget has a main loop"),
    ],
    ids=str,
)
def test_what_does_not(changed, said):
    (line,) = overruns(**changed)
    assert said in line
    assert KEY in line
    assert "make budget" in line


def test_missing_and_stale_entries():
    missing = budget.overruns(BUILD, {KEY: ROW}, {"kernels": {}})
    assert ["is not in the budget" in line for line in missing] == [True]
    gone = budget.overruns(BUILD, {}, {"kernels": {BUILD.path.stem: {KEY: ROW}}})
    assert ["is in the budget, and not in the kernel" in line for line in gone] == [True]
    elsewhere = {"kernels": {"gone": {KEY: ROW}, BUILD.path.stem: {f"entry {BUILD.dtype} sm_70": ROW}}}
    assert len(budget.stale(elsewhere)) == 2


@pytest.mark.parametrize("name", sorted(budget.FORBIDDEN))
def test_limits_hold_whatever_the_budget_says(name):
    assert budget.broken_limits({KEY: ROW}) == []
    (line,) = budget.broken_limits({KEY: {**ROW, name: 4}})
    assert "4 " in line and "none is allowed" in line


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"hmma_per_ldsm": 3.9}, "3.9 HMMA to an LDSM; at least 4"), ({"async_copies": 0}, "no cp.async")],
    ids=str,
)
def test_limits_of_tensor_cores(changed, said):
    assert budget.broken_limits({KEY: HMMA_ROW}) == []
    (line,) = budget.broken_limits({KEY: {**HMMA_ROW, **changed}})
    assert said in line


def test_update_writes_a_line_for_each_row_and_nothing_forbidden(cuda_compiler, monkeypatch, tmp_path):
    path = tmp_path / "budget.json"
    monkeypatch.setattr(budget, "budget_path", lambda: path)
    budget.save({BUILD.path.stem: {KEY: {**ROW, "spill_bytes": 4}}})
    kept = {name: value for name, value in ROW.items() if name not in budget.FORBIDDEN}
    assert json.loads(path.read_text()) == {
        "compiler": budget.compiler(),
        "kernels": {BUILD.path.stem: {KEY: kept}},
    }
    assert sum(KEY in line for line in path.read_text().splitlines()) == 1
    assert budget.load()["kernels"][BUILD.path.stem] == {KEY: kept}


def test_unknown_kernel_is_named(capsys):
    assert budget.main(["--kernel", "conv2d_fprop_naif"]) == 2
    assert "did you mean 'conv2d_fprop_naive'" in capsys.readouterr().err
