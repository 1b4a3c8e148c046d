"""Which tile a kernel gets for a problem: the model, what it chooses, and every tile on its own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import convkit as ck
from convkit.cli import main
from convkit.cuda import budget, expressions, heuristics, tiles
from convkit.cuda.header import KernelFile, builtin_files, read
from convkit.cuda.prepare import Runner
from convkit.cuda.source import translation_unit
from convkit.errors import OptionError
from convkit.op import OPS, Problem
from convkit.ops.conv2d import Conv2d
from convkit.paths import kernels_dir

TILED = [k for k in map(read, builtin_files()) if k.header.tiles]
#: With each access watched, those on tensor cores take a minute each.
EACH_TILE = [
    pytest.param(
        k,
        tile,
        id=f"{k.stem}-{'-'.join(map(str, tile.values()))}",
        marks=[pytest.mark.thorough] * ("WARP_M" in k.header.tile),
    )
    for k in TILED
    for tile in k.header.tiles
]
#: AlexNet's convolutions at a batch of 128: rows of the tile, columns.
ALEXNET = {
    ("conv2d_fprop", "conv1"): (96, 128),
    ("conv2d_fprop", "conv2"): (128, 128),
    ("conv2d_fprop", "conv4"): (64, 256),
    ("conv2d_dgrad", "conv2"): (48, 256),
    ("conv2d_dgrad", "conv4"): (64, 256),
    ("conv2d_wgrad", "conv1"): (96, 128),
    ("conv2d_wgrad", "conv5"): (128, 128),
}


def kernel(stem: str) -> KernelFile:
    return read(kernels_dir() / f"{stem}.cu")


def layer(op: str, name: str, batch: int) -> Conv2d:
    found = dict(OPS[op].cases.layers())[f"2012 {name}"]
    assert isinstance(found, Conv2d)
    return replace(found, N=batch)


@pytest.mark.parametrize(("op", "name"), ALEXNET)
def test_the_tiles_of_alexnet(op, name):
    tile = heuristics.fitted(kernel(f"{op}_implicit_gemm"), layer(op, name, 128)).header.tile
    assert (tile["TILE_M"], tile["TILE_N"]) == ALEXNET[op, name]


def test_rows_that_are_used_are_worth_a_denser_loop():
    """The 96 filters of conv1 in tiles of 96 against tiles of 128: fewer useless sums, thinner loop."""
    of = kernel("conv2d_fprop_implicit_gemm")
    problem = layer("conv2d_fprop", "conv1", 128)
    first = heuristics.predict(of.header, problem)
    chosen = heuristics.predict(heuristics.fitted(of, problem).header, problem)
    assert chosen.density < first.density and chosen.efficiency > 1.2 * first.efficiency
    full = replace(problem, K=128)
    assert heuristics.fitted(of, full) is of


@pytest.mark.parametrize("of", TILED, ids=lambda k: k.stem)
def test_what_is_chosen_is_never_predicted_to_be_slower(of):
    rng = np.random.default_rng(1)
    others = 0
    for _ in range(200):
        groups = int(rng.choice([1, 2]))
        C, K = (groups * int(rng.integers(1, 300)) for _ in range(2))
        if "tap_rows" in of.stem:
            C, K, groups = int(rng.integers(1, 8)), K // groups, 1
        size, window = int(rng.integers(7, 60)), int(rng.choice([1, 3, 5]))
        problem = Conv2d.of(
            (int(rng.integers(1, 129)), C, size, size), (K, C // groups, window, window),
            groups=groups, stride=int(rng.integers(1, 3)), padding=window // 2,
        )  # fmt: skip
        chosen = heuristics.fitted(of, problem)
        first, best = (heuristics.predict(k.header, problem) for k in (of, chosen))
        assert 0 < best.efficiency <= heuristics.HIDDEN * best.density < 1
        assert chosen is of or best.efficiency > first.efficiency
        others += chosen is not of
    assert others > 20


@pytest.mark.parametrize("of", TILED, ids=lambda k: k.stem)
def test_few_blocks_get_the_first_tile(of):
    """Launches and latency decide there, and the model knows neither."""
    few = Conv2d.of((3, 16, 13, 13), (50, 8, 3, 3), groups=2, padding=1)
    assert heuristics.predict(of.header, few).blocks < 20
    assert heuristics.fitted(of, few) is of
    assert heuristics.fitted(of, Conv2d.of((0, 3, 9, 9), (96, 3, 3, 3))) is of


def test_an_sm_holds_the_blocks_that_a_tile_says():
    """Registers of the machine code; and the model's density, against what is counted in it."""
    rows = budget.load()["kernels"]
    for of in TILED:
        problem = tile_problem(of)
        for tile in ({}, *of.header.tiles):
            fitting = of.tiled(tile)
            whole = fitting.header.tile
            launch = max(fitting.header.launches, key=lambda one: len(one.block[0]))
            threads, dynamic = (
                expressions.evaluate(text, fitting.header.scope(problem))
                for text in (launch.block[0], launch.shared)
            )
            key = budget.Build(of.path, of.header.dtypes[0], "sm_90a", tuple(tile.items())).key
            row = rows[of.stem][f"{of.stem} {key}"]
            used = -(-row["registers"] // 8) * 8 * threads * whole["PER_SM"]
            assert used <= 65536, f"{of.stem} {tile}"
            # Of the shared memory of an H200, 228 KB, a block takes 1 KB more than it asks for.
            assert (row["shared_bytes"] + dynamic + 1024) * whole["PER_SM"] <= 228 * 1024, f"{of.stem} {tile}"
            if "THREAD_M" in whole:
                assert heuristics.density(whole) == pytest.approx(row["ffma_density"], abs=0.025)


def tile_problem(of: KernelFile) -> Problem:
    """One that the kernel takes."""
    return next(p for _, p in OPS[of.header.op].cases.layers() if Runner(of).refusal(p) is None)


def test_tiles_on_tensor_cores_are_of_use():
    """Of each convolution of AlexNet at a batch of 128, 85 % of the multiply-adds count, or more."""
    lines = tiles.table_mma([128]).splitlines()
    heads = [head.strip() for head in lines[0].split("|")]
    found = [int(line.split("|")[heads.index("use, %")]) for line in lines[2:]]
    assert len(found) == 14 and min(found) >= 85


def test_a_runner_runs_the_tile_that_is_chosen(monkeypatch, compiler):
    """Grid, block, memory, source and dividers are of one tile."""
    monkeypatch.setattr(heuristics, "fitted", lambda of, problem: of.tiled(of.header.tiles[-1]))
    problem = Conv2d.of((2, 20, 8, 9), (90, 20, 3, 3), padding=1)
    runner = Runner(kernel("conv2d_fprop_implicit_gemm"))
    chosen = runner.fitted(problem)
    assert (chosen.header.tile["TILE_M"], chosen.header.tile["TILE_N"]) == (64, 256)
    scope = runner.scope(problem)
    grid, block, _ = runner.extents(runner.kernel.header.launches[0], problem)
    assert (grid[0], grid[2]) == (scope["BLOCKS"], scope["SLICES"]) and block[0] == 128
    assert "constexpr int TILE_M = 64;" in translation_unit(chosen, problem)
    rng = np.random.default_rng(2)
    x, w = (rng.standard_normal(problem.shape(name), np.float32) for name in ("x", "w"))
    with ck.emulate(check=True):
        y = np.full(problem.shape("y"), np.nan, np.float32)
        workspace = np.empty(runner.workspace(problem), np.uint8)
        runner(problem, x, w, None, y, workspace=workspace, relu=False)
    np.testing.assert_allclose(y, ck.conv2d_fprop(x, w, padding=1, impl="reference"), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("of", "tile"), EACH_TILE)
def test_the_gate_of_every_tile(of, tile, tmp_path, compiler):
    """Each tile as the only one of its file, whatever the model would choose."""
    assert main(["check", str(alone(of, tile, tmp_path)), "--quick", "--sanitize"]) == 0


def alone(of: KernelFile, tile: dict[str, int], folder: Path) -> Path:
    """The kernel under another name, with that tile and no other."""
    whole = ", ".join(f"{name} = {value}" for name, value in of.tiled(tile).header.tile.items())
    text, found = re.subn(r"// tile +=.*", f"// tile = {{ {whole} }}", of.source)
    text, several = re.subn(r"// tiles +=.*?// \]\n", "", text, flags=re.S)
    assert found == several == 1
    name = f"{of.header.op}_one_tile"
    path = folder / f"{name}.cu"
    path.write_text(text.replace(of.stem, name))
    assert read(path).header.tiles == () and read(path).header.tile == of.tiled(tile).header.tile
    return path


HEADER = """// relu_fprop_mine
// /// kernel
// op    = "relu_fprop"
// tile  = {{ THREADS = 64 }}
// tiles = {tiles}
// grid  = ["1"]
// block = ["THREADS"]
// ///
"""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "[{ THREADS = 32 }]",
            "'tiles' needs TILE_M, TILE_N, TILE_K, PER_SM, and THREAD_M and THREAD_N or WARP_M",
        ),
        ("[{ THREADS = 0.5 }]", "'tiles' must be a list of tables of integers by names of 'tile'"),
        ("[{ WARPS = 2 }]", "'tiles' must be a list of tables of integers by names of 'tile'"),
        ("{ THREADS = 32 }", "'tiles' must be a list of tables of integers by names of 'tile'"),
    ],
)
def test_tiles_that_cannot_be(given, said, tmp_path):
    path = tmp_path / "relu_fprop_mine.cu"
    path.write_text(HEADER.format(tiles=given))
    with pytest.raises(OptionError, match=re.escape(said)):
        read(path)


def test_the_page_has_what_is_predicted():
    page = (kernels_dir().parent / "docs" / "kernels.md").read_text()
    for table in (tiles.table(), tiles.table_mma()):
        assert table in page, "docs/kernels.md: python -m convkit.cuda.tiles prints the tables"
