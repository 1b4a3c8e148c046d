"""What the model of waves (`heuristics`) predicts for AlexNet's convolutions, as a table.

python -m convkit.cuda.tiles [BATCH]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from ..op import OPS
from .header import builtin_files, read
from .heuristics import fitted, predict


def named(tile: Mapping[str, int]) -> str:
    """A tile in a few characters: the block's, and a thread's."""
    return f"{tile['TILE_M']} x {tile['TILE_N']}, {tile['THREAD_M']} x {tile['THREAD_N']}"


def table(batch: int = 128) -> str:
    """For each convolution of the 2012 AlexNet and each kernel with several tiles: the first, and the chosen.

    Efficiencies are in % of the FP32 peak, without and with the choice: predictions.
    """
    lines = ["| kernel | layer | tile | waves | first tile | chosen |", "|---|---|---|--:|--:|--:|"]
    for kernel in map(read, builtin_files()):
        for name, problem in OPS[kernel.header.op].cases.layers() if kernel.header.tiles else ():
            preset, _, layer = name.partition(" ")
            if preset != "2012":
                continue
            asked = replace(problem, N=batch)  # type: ignore[call-arg]
            chosen = fitted(kernel, asked)
            before, after = predict(kernel.header, asked), predict(chosen.header, asked)
            cells = (
                f"`{kernel.stem}`", layer, named(chosen.header.tile), f"{after.waves:.1f}",
                f"{100 * before.efficiency:.0f}", f"{100 * after.efficiency:.0f}",
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(int((sys.argv[1:] or ["128"])[0])))
