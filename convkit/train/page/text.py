"""Figures as the page and the command write them."""

from __future__ import annotations

import math

from ..evaluation import ErrorRate


def percent(share: float) -> str:
    """A share as "1.76 %"."""
    return "-" if math.isnan(share) else f"{100 * share:.2f} %"


def interval(rate: ErrorRate) -> str:
    """The 95 % interval, as "0.86 to 3.58 %"."""
    low, high = rate.interval
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def number(value: float) -> str:
    """Four digits; a dash for what is no finite number."""
    return f"{value:.4g}" if math.isfinite(value) else "-"
