"""What failing cases have in common that passing ones have not.

Each verdict carries the facts of its case: the problem's numbers, dtype, options, flags, data. A condition is
a short statement about them, such as "dilation != 1" or "C > 32". All conditions that the facts allow are
tried. The cheapest that separates failing from passing cases exactly wins. If none does, the best one is
given with its counts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .verdicts import Verdict

Mask = np.ndarray
#: Names of facts that are no number of the problem.
DTYPE, DATA, NAME = "dtype", "data", "case"

_ZEROS = "zeros in the data"
#: What several fills have in common: (condition, fills).
_CONTENTS = (
    ("NaN in the data", ("nan", "nan beside zeros")),
    ("infinities in the data", ("inf", "minus_inf")),
    ("NaN or infinities in the data", ("nan", "nan beside zeros", "inf", "minus_inf")),
    (_ZEROS, ("zeros", "nan beside zeros", "rectified", "ties")),
    ("equal values in the data", ("ties", "constant", "zeros", "rectified", "minus_inf", "nan beside zeros")),
)
#: Moduli: sizes of vectors, warps and blocks.
_MODULI = (2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: Pairs whose inequality says something, with the words for it.
_PAIRS = (
    ("stride_h", "stride_w", "stride_h != stride_w"),
    ("dilation_h", "dilation_w", "dilation_h != dilation_w"),
    ("pad_top", "pad_bottom", "pad_top != pad_bottom"),
    ("pad_left", "pad_right", "pad_left != pad_right"),
    ("pad_top", "pad_left", "pad_top != pad_left"),
    ("R", "S", "R != S"),
    ("H", "W", "H != W"),
    ("P", "Q", "P != Q"),
)
#: Numbers that are no extent of a tensor: small, and each value is a kind of its own.
_SETTINGS = re.compile(r"(stride|dilation|pad)_|^(groups|size|R|S|window|ceil_mode)$")


# ---------------------------------------------------------------------------------------------------
# Conditions
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Condition:
    """A statement about a case.

    Attributes
    ----------
    text : str
    cost : float
        How much it takes to believe it: 1 for an option or a flag, more for a threshold.
    holds : ndarray of bool
        For each case, in order.
    about : frozenset of str
        The facts that it speaks of.
    """

    text: str
    cost: float
    holds: Mask
    about: frozenset[str] = frozenset()

    def __and__(self, other: Condition) -> Condition:
        text = f"{self.text} and {other.text}"
        return Condition(
            text, self.cost + other.cost + 0.3, self.holds & other.holds, self.about | other.about
        )


def _column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray | None:
    """The numbers of a fact, or None where a case lacks it or has no number there."""
    values = [row.get(name) for row in rows]
    if not all(isinstance(v, (int, float)) for v in values):
        return None
    return np.array(values, np.float64)


def _derived(columns: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Numbers that kernels have limits at, and that no field of a problem holds."""
    have = columns.get
    for name, parts in (
        ("P*Q", ("P", "Q")),
        ("H*W", ("H", "W")),
        ("R*S", ("R", "S")),
        ("N*P*Q", ("N", "P", "Q")),
    ):
        if all(p in columns for p in parts):
            yield name, np.prod([columns[p] for p in parts], axis=0)
    if (groups := have("groups")) is not None:
        for name in ("C", "K"):
            if name in columns:
                yield f"{name}/groups", columns[name] / groups
    for axis, extent, window, out, step, dilation, pads in (
        ("rows", "H", "R", "P", "stride_h", "dilation_h", ("pad_top", "pad_bottom")),
        ("columns", "W", "S", "Q", "stride_w", "dilation_w", ("pad_left", "pad_right")),
    ):
        if all(n in columns for n in (extent, window, out, step, dilation, *pads)):
            span = (columns[window] - 1) * columns[dilation] + 1
            whole = columns[extent] + columns[pads[0]] + columns[pads[1]]
            yield f"{axis} behind the last window", whole - span - (columns[out] - 1) * columns[step]


def _number(value: float) -> str:
    if value == int(value) and abs(value) >= 2**20:
        power = int(abs(value)).bit_length() - 1
        return f"2^{power}" if value == 2**power else f"{int(value)}"
    return f"{int(value)}" if value == int(value) else f"{value:g}"


def _of_number(name: str, values: np.ndarray, failed: Mask, cost: float) -> Iterator[Condition]:
    """Thresholds, single values, divisibility of one number."""
    about = frozenset([name])
    distinct = np.unique(values)
    if len(distinct) < 2:
        return
    whole = bool((distinct == np.round(distinct)).all())
    setting = _SETTINGS.search(name) is not None or not whole
    if name.endswith("behind the last window"):
        axis = name.split()[0]
        yield Condition(f"{axis} that no window covers", 1.6, values > 0, about)
        yield Condition(f"a window beyond the last {axis[:-1]} (ceil_mode)", 1.6, values < 0, about)
        return
    for value in distinct if len(distinct) <= 40 else ():
        usual = value in (0, 1) and not (name == "P" or name == "Q")
        own = cost + (0 if usual and setting else 0.6 if usual or setting else 1.4)
        yield Condition(f"{name} != {_number(value)}", own, values != value, about)
        yield Condition(f"{name} = {_number(value)}", own + 0.6, values == value, about)
    # A threshold between each two neighbours, where one fails and the other passes.
    for low, high in itertools.pairwise(distinct):
        at_low, at_high = failed[values == low], failed[values == high]
        if at_low.all() == at_high.all() and at_low.any() == at_high.any():
            continue
        if low == distinct[0] and low in (0, 1):
            continue  # "!= 1" says the same
        own = cost + 1 + (0 if setting else 0.2)
        yield Condition(_beyond(name, low, high), own, values >= high, about)
        yield Condition(_below(name, low, high), own + 0.2, values <= low, about)
    if whole and (distinct >= 0).all():
        for m in _MODULI:
            if m > distinct[-1]:
                break
            words = ("even", "odd") if m == 2 else (f"a multiple of {m}", f"no multiple of {m}")
            rest = values % m == 0
            # Of several that hold, the largest says most.
            own = cost + (0.9 if m == 2 else 1.3 - 0.01 * m.bit_length())
            yield Condition(f"{name} {words[0]}", own, rest & (values > 0), about)
            yield Condition(f"{name} {words[1]}", own, ~rest, about)


_POWERS = tuple(2**n for n in range(1, 32))
#: Limits that are one whatever lies between the two cases: of 8, 16, 31 and 32 bits.
_WIDTHS = (2**8, 2**16, 2**31, 2**32)


def _beyond(name: str, low: float, high: float) -> str:
    found = [n for n in _WIDTHS if low < n <= high]
    if len(found) == 1:
        return f"{name} >= {_number(found[0])}"
    if found:
        return f"{name} >= {_number(high)} ({_number(low)} passes)"
    if high - low <= 1 or low in _POWERS:
        return f"{name} > {_number(low)}"
    return f"{name} >= {_number(high)}"


def _below(name: str, low: float, high: float) -> str:
    if high in _POWERS:
        return f"{name} < {_number(high)}"
    return f"{name} <= {_number(low)}"


def _of_windows(columns: dict[str, np.ndarray]) -> Iterator[Condition]:
    """Stride, dilation, padding of both axes together; and only where they have an effect."""
    ones = next(iter(columns.values())) * 0 + 1
    for word, matters in (("stride", ("P", "Q")), ("dilation", ("R", "S"))):
        names = (f"{word}_h", f"{word}_w")
        if not all(n in columns for n in names):
            continue
        h, w = (columns[n] for n in names)
        seen_h, seen_w = (columns.get(m, ones * 2) > 1 for m in matters)
        about = frozenset(names)
        rows, cols = (h != 1) & seen_h, (w != 1) & seen_w
        yield Condition(f"{word} != 1", 0.9, rows | cols, about)
        yield Condition(f"{names[0]} != 1", 1.05, rows, about)
        yield Condition(f"{names[1]} != 1", 1.05, cols, about)
        yield Condition(f"{word} > 2", 1.8, ((h > 2) & seen_h) | ((w > 2) & seen_w), about)
        unequal = (h != w) & (seen_h | seen_w)
        yield Condition(f"{names[0]} != {names[1]}", 1.1, unequal, about)
    pads = ("pad_top", "pad_bottom", "pad_left", "pad_right")
    if all(n in columns for n in pads):
        top, bottom, left, right = (columns[n] for n in pads)
        about = frozenset(pads)
        yield Condition("padding", 0.9, (top + bottom + left + right) > 0, about)
        yield Condition("padding at the top or left", 1.2, (top + left) > 0, about)
        yield Condition("padding at the bottom or right", 1.2, (bottom + right) > 0, about)
        differ = (top != bottom) | (left != right)
        yield Condition("padding that differs from side to side", 1.1, differ, about)
        yield Condition("pad_top + pad_bottom > 0", 1.3, top + bottom > 0, frozenset(pads[:2]))
        yield Condition("pad_left + pad_right > 0", 1.3, left + right > 0, frozenset(pads[2:]))
    if "R" in columns and "S" in columns:
        R, S = columns["R"], columns["S"]
        yield Condition("a window of more than one tap", 1.1, R * S > 1, frozenset("RS"))
        yield Condition("an even R or S", 1.5, (R % 2 == 0) | (S % 2 == 0), frozenset("RS"))
        yield Condition("a window other than 3 x 3", 1.6, (R != 3) | (S != 3), frozenset("RS"))
        steps = ("stride_h", "stride_w")
        if all(n in columns for n in steps):
            h, w = (columns[n] for n in steps)
            about = frozenset((*steps, "R", "S"))
            lapping = ((h < R) & (columns["P"] > 1)) | ((w < S) & (columns["Q"] > 1))
            yield Condition("windows that overlap", 1.4, lapping, about)
            apart = ((h > R) & (columns["P"] > 1)) | ((w > S) & (columns["Q"] > 1))
            yield Condition("windows with gaps between them", 1.4, apart, about)


def _of_words(rows: Sequence[dict[str, Any]]) -> Iterator[Condition]:
    """Texts, truth values, data."""
    for name in dict.fromkeys(key for row in rows for key in row):
        if name == NAME:
            continue
        values = [row.get(name) for row in rows]
        about = frozenset([name])
        if name == DATA:
            for text, fills in _CONTENTS:
                holds = np.array([v in fills for v in values])
                if text == _ZEROS:
                    holds |= np.array([row.get("an input is rectified", False) for row in rows])
                yield Condition(text, 0.9 if "NaN" in text or "inf" in text else 1.2, holds, about)
        for value in sorted({v for v in values if isinstance(v, (bool, str))}, key=str):
            holds = np.array([v is value or (v == value and isinstance(v, str)) for v in values])
            if name == DATA:
                if value == "normal":  # what fails with nothing special about it has no cause here
                    continue
                text = f"the data {value!r}"
            elif name == DTYPE:
                text = f"dtype {value}"
            elif isinstance(value, bool):
                text = name if value else f"no {name}"
                if name.endswith(" is None"):
                    text = name if value else name.replace(" is None", " given")
            elif value == "not given":
                yield Condition(f"{name}= given", 1.0, ~holds, about)
                continue
            else:
                text = f"{name} = {value}"
            yield Condition(text, 1.0, holds, about)
        if name not in (DATA, DTYPE) and any(v == "not given" for v in values):
            for held in sorted({v for v in values if isinstance(v, int) and not isinstance(v, bool)}):
                yield Condition(f"{name}=[{held}]", 1.2, np.array([v == held for v in values]), about)


def conditions(rows: Sequence[dict[str, Any]], failed: Mask) -> list[Condition]:
    """Every condition that is tried on these cases, those that hold nowhere or everywhere left out."""
    names = dict.fromkeys(key for row in rows for key in row)
    truths = {n for n in names if any(isinstance(row.get(n), bool) for row in rows)}
    columns = {n: c for n in names if n not in truths and (c := _column(rows, n)) is not None}
    found = [*_of_words(rows), *(_of_windows(columns) if columns else ())]
    for name, values in columns.items():
        found += _of_number(name, values, failed, 1.0 if not name.startswith("elements") else 1.4)
    for name, values in _derived(columns):
        found += _of_number(name, values, failed, 1.5)
    for a, b, text in _PAIRS:
        if a in columns and b in columns:
            about = frozenset((a, b))
            found.append(Condition(text, 1.5, columns[a] != columns[b], about))
            found.append(Condition(f"{a} > {b}", 2.2, columns[a] > columns[b], about))
            found.append(Condition(f"{a} < {b}", 2.2, columns[a] < columns[b], about))
    return [c for c in found if c.holds.any() and not c.holds.all()]


# ---------------------------------------------------------------------------------------------------
# The one that separates
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Counts:
    """How a condition divides the cases."""

    failed_with: int
    passed_with: int
    failed_without: int
    passed_without: int

    @classmethod
    def of(cls, holds: Mask, failed: Mask) -> Counts:
        a, b = int((holds & failed).sum()), int((holds & ~failed).sum())
        return cls(a, b, int(failed.sum()) - a, int((~failed).sum()) - b)

    @property
    def exact(self) -> bool:
        return not self.passed_with and not self.failed_without

    @property
    def one_sided(self) -> bool:
        """Whether every failure meets it, or whether meeting it is always a failure."""
        return not self.passed_with or not self.failed_without

    def least(self, cost: float) -> float:
        """The correlation below which a condition of this cost is not worth its words."""
        if self.one_sided:
            return 0.5 if cost <= 1.3 else 0.65 if cost <= 1.6 else 0.85
        return 0.7 if cost <= 1.3 else 0.9

    @property
    def correlation(self) -> float:
        """Matthews' coefficient: 1 where it separates exactly, 0 where it says nothing."""
        a, b, c, d = self.failed_with, self.passed_with, self.failed_without, self.passed_without
        base = float(a + b) * (a + c) * (d + b) * (d + c)
        return (a * d - b * c) / base**0.5 if base else 0.0


@dataclass(frozen=True)
class Cause:
    """What failing cases have in common.

    Attributes
    ----------
    text : str
        A sentence without its subject: "fails in every case with dilation != 1 (14), ...".
    exact : bool
        Whether failing and passing cases are told apart without exception.
    condition : str
        The condition alone; empty where there is none.
    """

    text: str
    exact: bool = False
    condition: str = ""


#: With fewer failing cases, a threshold separates by chance.
_FEW = 3


def cause(verdicts: Iterable[Verdict]) -> Cause:
    """What the failing ones of one implementation's verdicts have in common.

    Parameters
    ----------
    verdicts : iterable of Verdict
        Of one implementation. Those that were not run are left out.
    """
    judged = [v for v in verdicts if not v.declined and not v.unrun and v.facts]
    empty = {_is_empty(v) for v in judged if not v.ok}
    if empty == {True}:
        count = sum(not v.ok for v in judged)
        others = len(judged) - count
        text = f"fails only with an empty batch ({count} of {sum(map(_is_empty, judged))})"
        return Cause(f"{text}, passes in {others} other cases", True, "an empty batch")
    if True not in empty:  # an empty batch passes, whatever is wrong
        judged = [v for v in judged if not _is_empty(v)]
    failed = np.array([not v.ok for v in judged], bool)
    if not failed.any():
        return Cause("")
    if all(v.kind == "compile error" for v in judged):
        return Cause("does not compile", True)
    found = _cause([v.facts for v in judged], failed)
    if not found.exact and (several := _by_kind(judged)) and (several.exact or not found.condition):
        return several
    manner = {_manner(v.reason) for v in judged if not v.ok}
    if len(manner) == 1 and (only := manner.pop()):
        return Cause(f"{only}: {found.text}", found.exact, found.condition)
    return found


#: What a failure looks like, by how its reason begins; all others are wrong values.
_KINDS = (
    ("raises", re.compile(r"raised |its process ")),
    ("does not write everything", re.compile(r"did not write ")),
    ("is not repeatable", re.compile(r"is not deterministic|depends on |reads |gave different ")),
    ("writes outside", re.compile(r"wrote outside |changed its input ")),
)


def _by_kind(judged: list[Verdict]) -> Cause | None:
    """A cause for each kind of failure, where they have none in common; None if not one has one."""
    kinds: dict[str, list[Verdict]] = {}
    for v in judged:
        if not v.ok:
            kind = next((word for word, pattern in _KINDS if pattern.match(v.reason)), "gives wrong values")
            kinds.setdefault(kind, []).append(v)
    if len(kinds) < 2:
        return None
    passing = [v for v in judged if v.ok]
    parts, named, exact = [], [], True
    for kind, mine in kinds.items():
        rows = [v.facts for v in (*passing, *mine)]
        failed = np.array([False] * len(passing) + [True] * len(mine))
        found = _cause(rows, failed)
        parts.append(found.text.replace("fails", kind, 1))
        named += [found.condition] if found.condition else []
        exact = exact and found.exact
    return Cause("; ".join(parts), exact, " or ".join(named)) if named else None


def _is_empty(verdict: Verdict) -> bool:
    return any(value == 0 for name, value in verdict.facts.items() if name.startswith("elements of"))


def _cause(rows: list[dict[str, Any]], failed: Mask) -> Cause:
    total, bad = len(rows), int(failed.sum())
    if bad == total:
        return Cause(f"fails in every case ({total} of {total})", total > 1)
    tried = conditions(rows, failed)
    counted = [(c, Counts.of(c.holds, failed)) for c in tried]
    exact = sorted((c for c, n in counted if n.exact), key=lambda c: c.cost)
    if not exact or exact[0].cost > 1.6:
        exact = sorted([*exact, *_both(counted, failed)], key=lambda c: c.cost)
    if exact and (bad >= _FEW or exact[0].cost <= 1.2 or total - bad < _FEW):
        return _said_exactly(exact, failed, total, bad)
    if bad < _FEW:
        names = dict.fromkeys(str(row.get(NAME, "")) for row, bad in zip(rows, failed, strict=True) if bad)
        text = f"fails in {bad} of {total} cases alone: {'; '.join(names)}"
        if not exact:
            return Cause(text)
        return Cause(f"{text}: all those with {exact[0].text}, which may be chance", False, exact[0].text)
    nearly = bad >= 0.85 * total
    several = []
    if nearly:  # almost anything is true of the failing ones
        counted = [(c, n) for c, n in counted if not n.failed_without and n.passed_without > 2]
    else:
        several = _each_with(counted, failed)
    if not counted:
        return Cause(f"fails in nearly every case ({bad} of {total})")
    best, counts = max(counted, key=lambda pair: _worth(*pair))
    if several and (len(several) == 2 or counts.correlation < 0.85):
        parts = [f"{c.text} ({int((c.holds & failed).sum())})" for c in several]
        text = f"fails in every case with {', '.join(parts[:-1])} or {parts[-1]}"
        words = " or ".join(c.text for c in several)
        return Cause(f"{text}, passes in all {total - bad} others", True, words)
    if counts.correlation >= counts.least(best.cost):
        return Cause(_said(best, counts), False, best.text)
    if nearly:
        return Cause(f"fails in nearly every case ({bad} of {total})")
    return Cause(f"fails in {bad} of {total} cases, which no one parameter tells from the others")


def _worth(condition: Condition, counts: Counts) -> float:
    """Of an inexact condition: one that every failure meets, or that is always enough, says more."""
    return counts.correlation - 0.02 * condition.cost + (0.15 if counts.one_sided else 0)


def _both(counted: list[tuple[Condition, Counts]], failed: Mask) -> Iterator[Condition]:
    """Two conditions that together separate exactly, each of which holds in every failing case."""
    needed = [(c, n) for c, n in counted if not n.failed_without]
    needed.sort(key=lambda pair: (pair[1].passed_with, pair[0].cost))
    bad = int(failed.sum())
    some = [c for c, n in needed if c.cost <= 2.3][:60] if bad >= _FEW else []
    for i, one in enumerate(some):
        for other in some[i + 1 :]:
            low, high = sorted((one.cost, other.cost))
            if one.about == other.about or high > (
                2.3 if low <= 1.05 and bad >= 5 else 1.5 if bad >= 4 else 1.05
            ):
                continue
            together = one & other if one.cost <= other.cost else other & one
            if not (together.holds & ~failed).any():
                yield together


def _each_with(counted: list[tuple[Condition, Counts]], failed: Mask) -> list[Condition]:
    """Two or three plain conditions, each enough for a failure, one of which each failing case meets."""
    enough = [c for c, n in counted if not n.passed_with and c.cost <= 1.3 and n.failed_with >= 2]
    left = failed.copy()
    chosen: list[Condition] = []
    while left.any() and len(chosen) < 3:
        best = max(enough, key=lambda c: ((c.holds & left).sum(), -c.cost), default=None)
        if best is None or (best.holds & left).sum() < 2:
            return []
        chosen.append(best)
        left &= ~best.holds
    return chosen if not left.any() and len(chosen) > 1 else []


def _said_exactly(exact: list[Condition], failed: Mask, total: int, bad: int) -> Cause:
    best = exact[0]
    others = [c for c in exact[1:] if c.cost <= best.cost + 0.35 and not c.about & best.about]
    text = f"fails in every case with {best.text} ({bad} of {bad}), passes in all others ({total - bad})"
    if others:
        text += f"; {' or '.join(c.text for c in others[:2])} would explain it as well"
    elif min(bad, total - bad) < _FEW and best.cost > 1.2:
        text += "; so few cases that it may be chance"
    return Cause(text, True, best.text)


def _said(condition: Condition, n: Counts) -> str:
    """An inexact condition with its counts."""
    having, lacking = n.failed_with + n.passed_with, n.failed_without + n.passed_without
    if not n.failed_without:
        return (
            f"fails only with {condition.text}: in {n.failed_with} of {having} such cases, in none of the "
            f"{lacking} others"
        )
    if not n.passed_with:
        return (
            f"fails in every case with {condition.text} ({having} of {having}), and in {n.failed_without} "
            f"of {lacking} others"
        )
    return (
        f"fails mostly with {condition.text}: in {n.failed_with} of {having} such cases, in "
        f"{n.failed_without} of {lacking} others"
    )


#: How a reason begins that says under what circumstances a case goes wrong, whatever its parameters.
_MANNERS = (
    (re.compile(r"with (\w+ in place of \w+(?: and \w+ in place of \w+)*): "), r"only with \1"),
    (re.compile(r"depends on the alignment"), "only with arrays aligned to one element alone"),
    (re.compile(r"is not deterministic"), "other bits at each run"),
    (re.compile(r"passed at first, and then, in a new process"), "only without the calls before it"),
)


def _manner(reason: str) -> str:
    for pattern, text in _MANNERS:
        if match := pattern.match(reason):
            return match.expand(text) if "\\" in text else text
    return ""
