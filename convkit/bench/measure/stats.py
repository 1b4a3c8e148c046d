"""What samples show: the interval of a median, the ratio of two entries, win, loss or tie.

Round after round, entries take turns; a round gives one figure for each, the median of its calls, and a
ratio of two entries is taken within each round, so that whatever slows a whole round cancels.

Why no bootstrap
----------------
The percentile bootstrap of a median is too narrow for the 6 to 20 rounds that a bench has: it calls equal
entries different in 5 to 8 % of runs where it promises 5 (tests/bench/test_bench_core.py counts). And it is a
function of a random generator, which another version of NumPy may not repeat, while a verdict must come out
the same everywhere. Both intervals here are order statistics, without a random number, and exact as
long as rounds are independent:

- `interval`, of one entry's median: the binomial (sign test) interval. Times are skewed; it assumes
  nothing about their distribution.
- `ratio_of`, of two entries: Wilcoxon's signed-rank interval of the logarithms of the ratios. If two
  entries are equal, exchanging their names changes nothing, so the logarithm of their ratio is symmetric
  about zero: that is all that the signed-rank test asks for, and its rate of false alarms is exact, whatever
  the noise. It needs a third fewer rounds than the sign test.

Below `LEAST` rounds no interval holds 95 %: the extremes are given, and the verdict is a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

#: Of the intervals, unless another is asked for.
CONFIDENCE = 0.95
WIN, LOSS, TIE = "win", "loss", "tie"


def least(confidence: float = CONFIDENCE) -> int:
    """The fewest rounds for which an interval of this confidence exists: 6 for 95 %."""
    return math.ceil(1 - math.log2(1 - confidence))


#: Rounds below which nothing can be a win or a loss, at 95 %.
LEAST = least()


@dataclass(frozen=True)
class Ratio:
    """How many times longer the peer takes: the median over rounds, with an interval around it.

    Attributes
    ----------
    middle : float
        Median of the rounds' ratios, peer / own; above 1, own is the faster.
    low, high : float
        The interval; below the fewest rounds that have one, the extremes.
    rounds : int
    confidence : float
    """

    middle: float
    low: float
    high: float
    rounds: int
    confidence: float = CONFIDENCE

    @property
    def verdict(self) -> str:
        """See `verdict`."""
        return verdict(self)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.middle, "low": self.low, "high": self.high, "rounds": self.rounds}


def interval(values: Any, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the median of these values, from order statistics.

    Parameters
    ----------
    values : sequence of float
    confidence : float
        Coverage, at least; the extremes where there are too few values for it.

    Returns
    -------
    (low, high) : float
        (nan, nan) of nothing.
    """
    ordered = np.sort(np.asarray(values, float).reshape(-1))
    if ordered.size == 0:
        return math.nan, math.nan
    skip = _sign_skip(ordered.size, confidence)
    return float(ordered[skip]), float(ordered[-1 - skip])


def ratio_of(peer: Sequence[float], own: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """peer / own, paired by round: the first of one with the first of the other, and so on.

    Parameters
    ----------
    peer, own : sequence of float
        One figure for each round, in any unit; where one has more, its further rounds are left out.
    confidence : float
    """
    count = min(len(peer), len(own))
    if count == 0:
        return Ratio(math.nan, math.nan, math.nan, 0, confidence)
    ratios = np.asarray(peer[:count], float) / np.asarray(own[:count], float)
    middle = float(np.median(ratios))
    logs = np.log(ratios)
    walsh = np.sort((logs[:, None] + logs[None, :])[np.triu_indices(count)] / 2)
    skip = _rank_skip(count, confidence)
    low, high = math.exp(walsh[skip]), math.exp(walsh[-1 - skip])
    # Of two values exp(log) may be off by an ulp; and in skewed samples the median may lie outside.
    low, high = (min(ratios), max(ratios)) if skip == 0 else (low, high)
    return Ratio(middle, float(min(low, middle)), float(max(high, middle)), count, confidence)


def verdict(ratio: Ratio) -> str:
    """ "win" where the whole interval is above 1, "loss" where it is below, else "tie".

    A tie also where there were too few rounds for an interval of that confidence.
    """
    if ratio.rounds < least(ratio.confidence):
        return TIE
    return WIN if ratio.low > 1 else LOSS if ratio.high < 1 else TIE


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return float(np.median(np.asarray(values, float))) if len(values) else math.nan


@lru_cache(maxsize=1024)
def _sign_skip(count: int, confidence: float) -> int:
    """How many values to leave out at each end, so that the rest covers the median with this confidence."""
    tail, skip = 0.0, 0
    for k in range(count // 2):
        tail += math.comb(count, k) / 2**count
        if 2 * tail > 1 - confidence:
            break
        skip = k
    return skip


@lru_cache(maxsize=1024)
def _rank_skip(count: int, confidence: float) -> int:
    """The same for Walsh averages: from the distribution of the sum of signed ranks."""
    if count > 200:  # 1e4 ranks and more: the normal approximation is exact to the rank
        mean, deviation = count * (count + 1) / 4, math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
        return max(0, int(mean - normal_quantile(confidence) * deviation))
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, count + 1):  # each rank counts or does not
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[:-rank]
        ways = (ways + shifted) / 2
    below = np.cumsum(ways)
    return max(0, int(np.searchsorted(2 * below, 1 - confidence, side="right")) - 1)


def normal_quantile(confidence: float) -> float:
    """How many standard deviations from the mean the interval of this confidence ends."""
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + confidence) / 2)
