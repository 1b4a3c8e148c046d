"""What could run a job, and what of it need not be tried: by the header and the problem, before it compiles.

A kernel file's tiles are those of `tile` and `tiles`, and every combination of `tune`. Most combinations
cannot launch, or are clearly worse than others:

- a tile is no whole number of its warps' tiles, or of its threads';
- a block has more threads than it may, or no whole number of warps;
- its dynamic shared memory is more than a block may have;
- it needs more registers than a thread can have, or than `PER_SM` blocks leave it;
- its grid leaves SMs idle that another tile keeps busy, or the model of waves (`cuda.heuristics`) predicts a
  low efficiency: less than `WORTH` of the best one's; or so many others are better.

What is known only of machine code (registers, spills, static shared memory) is looked at when it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..cuda.header import MODELLED, Header
from ..cuda.heuristics import density, fitted, predict
from ..cuda.launch import Extent
from ..cuda.nvrtc import Resources
from ..cuda.prepare import Runner
from ..errors import ConvkitError
from ..op import Problem
from ..registry import Implementation
from ..tuned import digest, with_tile
from .gpus import GRAIN, H200, MOST_REGISTERS, MOST_THREADS, Gpu
from .jobs import Job

#: Share of the best tile's prediction below which a tile is not tried.
WORTH = 0.6
#: Multiply-adds of tensor cores in the time in which one element of a factor reaches an SM from L2, of which
#: half is hidden: 1024 in a cycle, against 64 bytes.
COPIED = 16
#: Tiles of one kernel file that are compiled at the most, and that are timed, of those which launch: by the
#: highest prediction.
MOST_COMPILED, MOST_TILES = 32, 16
#: What a GEMM's tile is cut into.
PARTS = (("TILE_M", "WARP_M"), ("TILE_N", "WARP_N"), ("TILE_M", "THREAD_M"), ("TILE_N", "THREAD_N"))
#: Registers that a GEMM's loads and addresses take at the least. In machine code for sm_90a 96 sums fit into
#: 168 registers, with 20 for factors, and 128 with 24 do not.
OVERHEAD = 48


@dataclass(frozen=True)
class Candidate:
    """One implementation, with its tile, for one job.

    Attributes
    ----------
    implementation : Implementation
    reason : str
        Why it is not tried; empty where it is.
    predicted : float, optional
        What orders the tiles of a file: see `prediction`. None where there are no tiles.
    default : bool
        Whether it runs where nothing was tuned.
    order : tuple
        Of the tiles of a file: the smallest comes first.
    """

    implementation: Implementation
    reason: str = ""
    predicted: float | None = None
    default: bool = False
    order: tuple[bool, float, int] = (False, 0.0, 0)

    @property
    def name(self) -> str:
        return self.implementation.name_and_tile


def of_job(job: Job, gpu: Gpu = H200) -> list[Candidate]:
    """Every candidate of a job: implementations, and for kernel files also each of their tiles.

    An implementation without a tile of its own takes the one that the model of waves chooses.
    """
    default = job.default()
    found: list[Candidate] = []
    for implementation in job.candidates():
        reason = "" if digest(implementation) else "no file: a choice could not be kept"
        whole = Candidate(implementation, reason, default=implementation is default)
        run, problem = implementation.run, job.question.problem
        if isinstance(run, Runner) and len(tiles(run.kernel.header)) > 1:
            whole = replace(whole, predicted=prediction(Runner(run.fitted(problem)), problem, gpu))
            found += [whole, *_tiles_of(whole, run, problem, gpu)]
        else:
            found.append(whole)
    return found


def tiles(header: Header) -> list[dict[str, int]]:
    """Every tile that a header names, whole, each once; its first one first."""
    values = product(*header.tune.values())
    named = [{}, *header.tiles, *(dict(zip(header.tune, combination)) for combination in values)]
    return list({tuple(tile.items()): tile for one in named if (tile := {**header.tile, **one})}.values())


def _tiles_of(whole: Candidate, runner: Runner, problem: Problem, gpu: Gpu) -> list[Candidate]:
    """The tiles of a kernel file that is a candidate already, with the tile that the model chooses."""
    kernel = runner.kernel
    chosen = fitted(kernel, problem).header.tile
    varied = {
        name
        for tile in tiles(kernel.header)
        for name, value in tile.items()
        if value != kernel.header.tile[name]
    }
    found = []
    for tile in tiles(kernel.header):
        if tile == chosen:  # the implementation itself runs it
            continue
        one = with_tile(whole.implementation, {name: tile[name] for name in tile if name in varied})
        assert one is not None
        tiled: Any = one.run
        try:
            reason = refused(tiled, runner, problem, gpu)
            predicted = prediction(tiled, problem, gpu) if not reason else 0.0
        except (ConvkitError, ArithmeticError) as error:  # expressions of the header that have no value here
            reason, predicted = f"its header has no value: {error}", 0.0
        found.append(Candidate(one, reason, predicted))
    return _worth(found, whole.predicted or 0.0, kernel.header)


def _worth(found: Sequence[Candidate], default: float, header: Header) -> list[Candidate]:
    """The same, but those far below the best, and those beyond the number that is tried, have a reason."""
    best = max([default, *(one.predicted or 0.0 for one in found if not one.reason)])
    offered = [{**header.tile, **one} for one in ({}, *header.tiles)]
    judged = []
    for one in found:
        predicted, reason = one.predicted or 0.0, one.reason
        if not reason and predicted < WORTH * best:
            reason = f"waves: {predicted / best:.0%} of the best tile's predicted use of the GPU"
        # First those that the file itself offers. Of others that are predicted to be alike, those that differ
        # least from its first tile.
        tile = {**header.tile, **dict(one.implementation.tile)}
        unlike = sum(tile[name] != value for name, value in header.tile.items())
        judged.append(replace(one, reason=reason, order=(tile not in offered, -round(predicted, 2), unlike)))
    return first(judged, MOST_COMPILED, "compiled")


def first(candidates: Sequence[Candidate], most: int, what: str) -> list[Candidate]:
    """The same, but of each file's tiles those beyond a number have a reason; what is left is `what`."""
    left: dict[str, list[Candidate]] = {}
    for one in candidates:
        if one.implementation.tile and not one.reason:
            left.setdefault(one.implementation.name, []).append(one)
    last = {id(one) for tiled in left.values() for one in sorted(tiled, key=lambda c: c.order)[most:]}
    reason = f"waves: {most} tiles are {what}, and none of them is predicted to be worse"
    return [replace(one, reason=reason) if id(one) in last else one for one in candidates]


# ---------------------------------------------------------------------------------------------------
# Before it compiles
# ---------------------------------------------------------------------------------------------------
def refused(runner: Runner, plain: Runner, problem: Problem, gpu: Gpu) -> str:
    """Why a tile cannot run a problem on a GPU, or an empty string; `plain` is the file as it is."""
    if (reason := runner.refusal(problem)) is not None:
        return reason
    tile = runner.kernel.header.tile
    for whole, part in PARTS:
        if whole in tile and part in tile and tile[whole] % max(1, tile[part]):
            return f"tile: {whole} = {tile[whole]} is no multiple of {part} = {tile[part]}"
    whole_warps = all(_count(block) % 32 == 0 for _, _, block, _ in plain.ready(problem).launches)
    for entry, _, block, shared in runner.ready(problem).launches:
        threads = _count(block)
        if not 0 < threads <= MOST_THREADS:
            return f"threads: {threads} in a block of {entry}, of 1 to {MOST_THREADS}"
        if threads % 32 and whole_warps:
            return f"threads: {threads} in a block of {entry}, which is no number of warps"
        if shared > gpu.shared:
            return f"shared memory: {shared:,} bytes in a block of {entry}, of {gpu.shared:,}"
    if (needed := sums(tile)) is None or (main := _main(runner, problem)) is None:
        return ""
    threads, per_sm = _count(main[2]), tile.get("PER_SM", 1)
    left = min(MOST_REGISTERS, gpu.registers_sm // (threads * per_sm) // GRAIN * GRAIN)
    if needed > left:
        blocks = f"{per_sm} block{'s' * (per_sm > 1)} of {threads} threads"
        return f"registers: {needed} of a thread at the least, of {left} with {blocks} on an SM"
    return ""


def sums(tile: Mapping[str, int]) -> int | None:
    """Registers that a thread of a GEMM needs at the least; None for other kernels."""
    if {"THREAD_M", "THREAD_N"} <= set(tile):
        m, n = tile["THREAD_M"], tile["THREAD_N"]
        return m * n + m + n + OVERHEAD
    if {"WARP_M", "WARP_N"} <= set(tile):  # a warp's fp32 sums, and 16-bit factors of 16 terms
        m, n = tile["WARP_M"], tile["WARP_N"]
        return m * n // 32 + (m + n) * 16 // 2 // 32 + OVERHEAD
    return None


def prediction(runner: Runner, problem: Problem, gpu: Gpu) -> float:
    """What orders the tiles of a file: `Candidate.predicted`.

    The model of waves where the header says enough for it. Else the share of the SMs' time in which blocks
    work, and of a GEMM's tile the share of that which is multiplication, and of use.
    """
    header = runner.kernel.header
    modelled = {*MODELLED, "BLOCKS", "SLICES", "STEPS"} <= {*header.tile, *header.let}
    if modelled and {"THREAD_M", "WARP_M"}.intersection(header.tile):
        return predict(header, problem).efficiency
    main = _main(runner, problem)
    if main is None:
        return 0.0
    blocks = _count(main[1])
    places = -(-blocks // gpu.sms) * gpu.sms
    if not {"TILE_M", "TILE_N"} <= set(header.tile):
        return blocks / places
    m, n = header.tile["TILE_M"], header.tile["TILE_N"]
    terms = problem.reduction(header.op) / header.scope(problem).get("SLICES", 1)
    use = problem.flops(header.op) / 2 / (places * m * n * terms)
    threads_known = {"THREAD_M", "THREAD_N", "TILE_K"} <= set(header.tile)
    return min(1.0, use) * (density(header.tile) if threads_known else m * n / (m * n + COPIED * (m + n)))


def _main(runner: Runner, problem: Problem) -> tuple[str, Extent, Extent, int] | None:
    """The launch that is called as the file is: others bring data into order, or add up slices."""
    launches = runner.ready(problem).launches
    return next((one for one in launches if one[0] == runner.kernel.stem), (*launches, None)[0])


def _count(extent: Sequence[int]) -> int:
    x, y, z = extent
    return x * y * z


# ---------------------------------------------------------------------------------------------------
# When it is compiled
# ---------------------------------------------------------------------------------------------------
def unfit(runner: Runner, problem: Problem, resources: Mapping[str, Resources], gpu: Gpu) -> str:
    """Why machine code is not worth a try, or cannot be launched; or an empty string."""
    for entry, _, block, dynamic in runner.ready(problem).launches:
        used = resources.get(entry)
        if used is None:
            continue
        if used.spill_bytes:
            return f"registers: {entry} spills {used.spill_bytes} bytes of them"
        if used.stack_bytes:
            return f"registers: {entry} keeps {used.stack_bytes} bytes on a stack"
        if (shared := used.shared_bytes + dynamic) > gpu.shared:
            return f"shared memory: {shared:,} bytes in a block of {entry}, of {gpu.shared:,}"
        threads = _count(block)
        if (taken := -(-used.registers // GRAIN) * GRAIN * threads) > gpu.registers_sm:
            return f"registers: {taken:,} in a block of {entry}, of {gpu.registers_sm:,}"
    return ""
