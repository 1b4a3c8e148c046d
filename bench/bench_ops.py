"""Every op of a training step of AlexNet, each implementation of convkit's, in pytest-benchmark's tables.

    pytest bench/ -k "relu or lrn"                  a first look: the paper's network, batch 4, cold caches
    pytest bench/ --thorough -k conv2               batch 16, every round, `convkit check` first
    pytest bench/ --preset owt --batch 1 -k conv2   another network, only some layers
    pytest bench/ --device cuda --cache warm        on a GPU, by its events
    pytest bench/ --benchmark-autosave --benchmark-compare

The samples come from the timing loop of `convkit bench` (`convkit.bench.measure.timing.race`).
Implementations of an op take turns, each call has new inputs and cold caches, results are compared with
float64 before, during and after. What is wrong is not timed, and its test fails with the reason. pytest-
benchmark gets the samples through a timer that stands still, but for the time that a call is known to
have taken. `convkit bench` times other libraries too.
"""

from __future__ import annotations

import pytest

from convkit.bench.measure import stats
from convkit.bench.results import figures

_now = 0.0


def device_time() -> float:
    """Seconds that the replayed calls took, on the device's own clock."""
    return _now


def _advance(seconds: float) -> None:
    global _now
    _now += seconds


@pytest.mark.benchmark(timer=device_time)
@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # by what is not timed
def test_call(benchmark, races, row, entry):
    result = races.result(row, timed=benchmark.enabled)
    if entry in result.refused:
        pytest.fail(f"{row} {entry!r} was not timed: {result.refused[entry]}", pytrace=False)
    item, samples = result.item, [ms / 1e3 for calls in result.samples[entry] for ms in calls]
    replay = iter(samples)
    benchmark.group = f"{item.layer} {item.op}"
    benchmark.pedantic(lambda: _advance(next(replay)), rounds=len(samples))
    checks, rounds = result.checks[entry], result.rounds(entry)
    ms, (low, high) = stats.median(rounds), stats.interval(rounds)
    work = {"dtype": item.dtype, "math": item.math, "flops": item.flops, "bytes": item.bytes}
    ceilings = figures.ceilings_for({**work, "probes": result.probes}, races.ceilings)
    percent, ceiling = figures.share(work, ms, *ceilings)
    benchmark.extra_info.update(
        **races.about[row, entry],
        percent=percent,
        ceiling=ceiling,
        clock=races.clock.name,
        cache=result.cache,
        flops=item.flops,
        bytes=item.bytes,
        gflops=item.flops / ms / 1e6,
        gbytes_per_s=item.bytes / ms / 1e6,
        error=checks.error,
        deterministic=checks.deterministic,
        rounds=len(rounds),
        median_ms=ms,
        low_ms=low,
        high_ms=high,
    )
