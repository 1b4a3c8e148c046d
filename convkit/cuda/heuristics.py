"""Which tile a GEMM kernel gets for a problem: the one that a small model of waves finds the fastest.

The model, of an H200. All blocks take the same time, and each streaming multiprocessor (SM) gets as many of
them as any other, or one more. It holds a set of them at a time, which share its issue slots. Where the last
set is not full it takes less time, but not in proportion, since its blocks hide less of each other's latency.
A block pays `FIXED` steps beside its own: its first loads, and the writing of the sums. Of a step's
instructions the multiply-adds are what counts; the others are the shared loads, and `FETCH` for each element
that a thread fetches. `HIDDEN` is left of the issue slots when barriers and latency have taken theirs. What
slices of a sum move through memory is not counted. On tensor cores the others are the step's time in shared
memory, and the peak is what `mma.sync` reaches.

What it says is prediction: it ranks tiles, and no GPU has been asked. `tiles.table()` has it for AlexNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..op import Problem
from . import expressions
from .header import Header, KernelFile


@dataclass(frozen=True)
class Gpu:
    """What the model knows of a GPU.

    Attributes
    ----------
    name : str
    sms : int
    multiplied : float
        Multiply-adds of 16-bit elements by `mma.sync`, to an SM and cycle.
    clock : float
        Hz.
    floor : (float, float)
        What no kernel beats: FLOP/s of 16-bit elements, bytes/s.
    """

    name: str
    sms: int
    multiplied: float
    clock: float
    floor: tuple[float, float]

    @property
    def peak(self) -> float:
        """`mma.sync` of 16-bit elements, FLOP/s."""
        return self.sms * self.multiplied * 2 * self.clock


#: `mma.sync` reaches 62 % of its tensor cores' rate, as reported; the floor is `wgmma`'s and DRAM's as
#: measured by others.
H200 = Gpu("H200", 132, 1270, 1.83e9, (790e12, 4.3e12))
#: By its datasheet, 1024 multiply-adds, 312 TFLOP/s and 2.04 TB/s (80 GB); .9 of each is taken to be in
#: reach.
A100 = Gpu("A100", 108, 922, 1.41e9, (0.9 * 312e12, 0.9 * 2.04e12))
#: SMs of the GPU for which tiles are chosen.
SMS = H200.sms
#: Instructions to fetch an element and to store it in shared memory, addresses and guards included: 8.6 to 11
#: in the machine code of the convolutions for sm_90a.
FETCH = 10
#: Steps' worth of time that a block spends outside its main loop.
FIXED = 6
#: What barriers and latency leave of the issue slots.
HIDDEN = 0.95
#: Share of a full set's time that a set of blocks takes however small it is.
ALONE = 0.4
#: Bytes that go through shared memory, to an SM and cycle.
BANKS = 128
#: Share of a step's time in shared memory that does not hide behind its multiplications.
EXPOSED = 0.25
#: Another tile than the first is taken where it is predicted to save this share of the time, and where the
#: first one has blocks enough to busy every SM: below that, launches and latency decide, not waves.
WORTH = 0.04


@dataclass(frozen=True)
class Prediction:
    """What the model says of one tile for one problem.

    Attributes
    ----------
    blocks : int
        Of the launch.
    waves : float
        Blocks by the places for them on the GPU.
    use : float
        Share of the tiles' multiply-adds that count.
    density : float
        Share of multiply-adds in the instructions of the main loop.
    efficiency : float
        Share of the GPU's peak in multiply-adds that count.
    """

    blocks: int
    waves: float
    use: float
    density: float
    efficiency: float


def density(tile: Mapping[str, int], gpu: Gpu = H200) -> float:
    """Share of multiply-adds in the instructions of the main loop; on tensor cores, in its time."""
    if "WARP_M" in tile:
        return _density_mma(tile, gpu)
    m, n, k = tile["THREAD_M"], tile["THREAD_N"], tile["TILE_K"]
    threads = tile["TILE_M"] * tile["TILE_N"] // (m * n)
    fetched = (tile["TILE_M"] + tile["TILE_N"]) * k / threads
    return m * n * k / (m * n * k + k * (m + n) / 4 + FETCH * fetched)


def _density_mma(tile: Mapping[str, int], gpu: Gpu) -> float:
    """Share of the multiplications in the time of a step on tensor cores.

    A step's copies and fragments move through shared memory, `BANKS` bytes in a cycle. Most of that hides
    behind the multiplications, `multiplied` multiply-adds in a cycle; `EXPOSED` of it does not.
    """
    tile_m, tile_n, k = tile["TILE_M"], tile["TILE_N"], tile["TILE_K"]
    warps = tile_m * tile_n // (tile["WARP_M"] * tile["WARP_N"])
    moved = 2 * k * (tile_m + tile_n + warps * (tile["WARP_M"] + tile["WARP_N"]))
    multiplying = tile_m * tile_n * k / gpu.multiplied
    return multiplying / (multiplying + EXPOSED * moved / BANKS)


def predict(header: Header, problem: Problem, gpu: Gpu = H200) -> Prediction:
    """What the model says of a header's tile; its `let` has BLOCKS, SLICES and STEPS (of one slice)."""
    tile, scope = header.tile, header.scope(problem)
    blocks, per_sm, dense = scope["BLOCKS"] * scope["SLICES"], tile["PER_SM"], density(tile, gpu)
    sets, rest = divmod(-(-blocks // gpu.sms), per_sm)
    # In times of a full set of blocks, which is `per_sm` blocks' multiply-adds on one SM.
    time = sets + (ALONE + (1 - ALONE) * rest / per_sm if rest else 0)
    step = tile["TILE_M"] * tile["TILE_N"] * tile["TILE_K"]
    useful = problem.flops(header.op) / 2
    use = useful / (blocks * step * scope["STEPS"]) if blocks else 0.0
    paid = gpu.sms * time * per_sm * step * (scope["STEPS"] + FIXED)
    efficiency = HIDDEN * dense * useful / paid if blocks else 0.0
    return Prediction(blocks, blocks / (gpu.sms * per_sm), use, dense, efficiency)


def fitted(kernel: KernelFile, problem: Problem) -> KernelFile:
    """The kernel file with the tile that is predicted to be the fastest for the problem.

    Parameters
    ----------
    kernel : KernelFile
    problem : Problem

    Returns
    -------
    KernelFile
        The given one, unless another tile than its first is chosen.
    """
    if not kernel.header.tiles or problem.empty:
        return kernel
    first = predict(kernel.header, problem)
    if first.blocks < SMS:
        return kernel
    found, best = kernel, first.efficiency / (1 - WORTH)
    for tile in kernel.header.tiles:
        other = kernel.tiled(tile)
        when = other.header.when
        if when and not expressions.evaluate(when, other.header.scope(problem)):
            continue
        if (efficiency := predict(other.header, problem).efficiency) > best:
            found, best = other, efficiency
    return found
