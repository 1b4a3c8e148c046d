"""What the model of waves (`heuristics`) predicts for AlexNet's convolutions, as tables.

python -m convkit.cuda.tiles [BATCH]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..op import OPS, Problem
from . import budget
from .header import KernelFile, builtin_files, read
from .heuristics import A100, H200, fitted, predict
from .prepare import Runner

#: FP32 of an H200, FLOP/s: 132 SMs, 128 multiply-adds in a cycle, 1.98 GHz.
PEAK = 66.9e12
#: The ops of a training step whose kernels on tensor cores the second table has; conv1 needs no dgrad.
STEP = ("conv2d_fprop", "conv2d_dgrad_relu", "conv2d_wgrad_bgrad")
BATCHES = (1, 16, 128)


def named(tile: Mapping[str, int]) -> str:
    """A tile in a few characters: the block's, and a thread's or a warp's."""
    of = "WARP" if "WARP_M" in tile else "THREAD"
    return f"{tile['TILE_M']} x {tile['TILE_N']}, {tile[f'{of}_M']} x {tile[f'{of}_N']}"


def _layers(op: str) -> Iterator[tuple[str, Problem]]:
    """AlexNet's of 2012."""
    for name, problem in OPS[op].cases.layers():
        preset, _, layer = name.partition(" ")
        if preset == "2012":
            yield layer, problem


def _head(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---|---|---|" + "--:|" * (len(names) - 3)]


def table(batch: int = 128) -> str:
    """For each convolution of the 2012 AlexNet and each FFMA kernel with tiles: the first, and the chosen.

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
    lines = _head(heads)
    counted = budget.load()["kernels"]
    for kernel in map(read, builtin_files()):
        op = OPS[kernel.header.op]
        for layer, problem in _layers(op.name) if "THREAD_M" in kernel.header.tile else ():
            if not kernel.header.tiles:
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


def table_mma(batches: Sequence[int] = BATCHES) -> str:
    """For each convolution of the 2012 AlexNet in bfloat16, and each batch: the kernel on tensor cores.

    Registers are counted in the machine code for sm_90a. The rest is what the model predicts: the share of
    multiply-adds that count, in %; and for each GPU the waves, and in microseconds the floor, which is that
    of the op's FLOP and bytes, and the time. Tile and slices are the same on every GPU.
    """
    heads = ["kernel", "layer", "tile", "N", "slices", "use, %", "registers"]
    for gpu in (H200, A100):
        heads += [f"{gpu.name}: waves", "floor, us", "us"]
    lines = _head(heads)
    counted = budget.load()["kernels"]
    files = [k for k in map(read, builtin_files()) if "WARP_M" in k.header.tile]
    for op in map(OPS.__getitem__, STEP):
        for layer, problem in _layers(op.name):
            dtype = "bfloat16/float32" if op.pairs else "bfloat16"
            for batch in batches if (op.name, layer) != ("conv2d_dgrad_relu", "conv1") else ():
                asked = replace(problem, N=batch, dtype=dtype)  # type: ignore[call-arg]
                fitting = [
                    k
                    for k in files
                    if k.header.op == op.name and dtype in k.header.dtypes and not Runner(k).refusal(asked)
                ]
                kernel = max(fitting, key=lambda k: k.header.rank)
                chosen = fitted(kernel, asked)
                found = predict(chosen.header, asked)
                row = counted[kernel.stem][f"{kernel.stem} {_key(kernel, chosen, dtype)}"]
                slices = chosen.header.scope(asked)["SLICES"]
                cells = [
                    f"`{kernel.stem}`", layer, named(chosen.header.tile), str(batch), str(slices),
                    f"{100 * found.use:.0f}", str(row["registers"]),
                ]  # fmt: skip
                flops, moved = asked.flops(op.name), asked.bytes(*op.inputs, *op.outputs)
                for gpu in (H200, A100):
                    there = predict(chosen.header, asked, gpu)
                    floor = max(flops / gpu.floor[0], moved / gpu.floor[1])
                    us = 1e6 * flops / gpu.peak / there.efficiency
                    cells += [f"{there.waves:.1f}", f"{1e6 * floor:.1f}", f"{us:.1f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _key(kernel: KernelFile, chosen: KernelFile, dtype: str = "float32") -> str:
    """The key of a tile's row in the budget."""
    tiles = ({}, *kernel.header.tiles)
    tile = next(t for t in tiles if kernel.tiled(t).header.tile == chosen.header.tile)
    return budget.Build(kernel.path, dtype, "sm_90a", tuple(tile.items())).key


if __name__ == "__main__":
    batch = [int(argument) for argument in sys.argv[1:2]]
    print(table(*batch), table_mma(batch or BATCHES), sep="\n\n")
