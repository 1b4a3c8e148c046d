"""What the model of waves (`heuristics`) predicts for AlexNet's convolutions, as a table.

python -m convkit.cuda.tiles [BATCH]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from ..op import OPS
from . import budget
from .header import KernelFile, builtin_files, read
from .heuristics import fitted, predict

#: FP32 of an H200, FLOP/s: 132 SMs, 128 multiply-adds in a cycle, 1.98 GHz.
PEAK = 66.9e12


def named(tile: Mapping[str, int]) -> str:
    """A tile in a few characters: the block's, and a thread's."""
    return f"{tile['TILE_M']} x {tile['TILE_N']}, {tile['THREAD_M']} x {tile['THREAD_N']}"


def table(batch: int = 128) -> str:
    """For each convolution of the 2012 AlexNet and each kernel with several tiles: the first, and the chosen.

    Registers, the share of FFMA, and the instructions from a global load to its use are counted in the
    machine code for sm_90a (`kernels/budget.json`). MB are those of the op's tensors. The rest is what the
    model predicts: efficiencies in % of the FP32 peak, without and with the choice, and the time with it in
    microseconds.
    """
    heads = (
        "kernel",
        "layer",
        "tile",
        "use, %",
        "waves",
        "registers",
        "FFMA, %",
        "load to use",
        "MB",
        "first",
        "chosen",
        "us",
    )
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|" + "--:|" * (len(heads) - 3)]
    counted = budget.load()["kernels"]
    for kernel in map(read, builtin_files()):
        op = OPS[kernel.header.op]
        for name, problem in op.cases.layers() if kernel.header.tiles else ():
            preset, _, layer = name.partition(" ")
            if preset != "2012":
                continue
            asked = replace(problem, N=batch)  # type: ignore[call-arg]
            chosen = fitted(kernel, asked)
            before, after = predict(kernel.header, asked), predict(chosen.header, asked)
            us = 1e6 * asked.flops(op.name) / PEAK / after.efficiency
            row = counted[kernel.stem][f"{kernel.stem} {_key(kernel, chosen)}"]
            lines.append(
                f"| `{kernel.stem}` | {layer} | {named(chosen.header.tile)} | {100 * after.use:.0f} "
                f"| {after.waves:.1f} | {row['registers']} | {100 * row['ffma_density']:.0f} "
                f"| {row['load_to_use']:.0f} "
                f"| {asked.bytes(*op.inputs, *op.outputs) / 1e6:.0f} | {100 * before.efficiency:.0f} "
                f"| {100 * after.efficiency:.0f} | {us:,.0f} |"
            )
    return "\n".join(lines)


def _key(kernel: KernelFile, chosen: KernelFile) -> str:
    """The key of a tile's row in the budget."""
    tiles = ({}, *kernel.header.tiles)
    tile = next(t for t in tiles if kernel.tiled(t).header.tile == chosen.header.tile)
    return budget.Build(kernel.path, "float32", "sm_90a", tuple(tile.items())).key


if __name__ == "__main__":
    print(table(int((sys.argv[1:] or ["128"])[0])))
