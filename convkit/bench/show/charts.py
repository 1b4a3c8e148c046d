"""What the charts show, on the page and in the pictures alike: colours, shapes, scales, points, labels.

Nothing is drawn here: `svg` and `pictures` do that. A library has one colour, one shape and one hatching
everywhere, so that a chart can be read in grey, and by readers with another sense of colour.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..results.figures import OWN, correct

Row = Mapping[str, Any]
Entry = Mapping[str, Any]
Document = Mapping[str, Any]

#: Libraries that have their own style; others get the next ones in turn.
KNOWN = (OWN, "PyTorch", "ONNX Runtime", "JAX", "cuDNN")
#: Style by style: shape and hatching as matplotlib writes them.
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "h", "*")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "|||", "+++", "ooo")
#: Colours by their use. Texts have 4.5 : 1 and shapes 3 : 1 against what is behind them.
LIGHT = {
    "bg": "#ffffff",
    "panel": "#f4f6f8",
    "text": "#16191d",
    "muted": "#565e68",
    "line": "#d3d8de",
    "grid": "#e4e7eb",
    "control": "#767f8a",
    "link": "#0a57a4",
    "win": "#00656b",
    "loss": "#a3330c",
    "tie": "#565e68",
    "warn": "#fff3d1",
    "bad": "#fde7e0",
    "s0": "#16191d",
    "s1": "#0072b2",
    "s2": "#b35900",
    "s3": "#00795c",
    "s4": "#a03a8c",
    "s5": "#686d75",
    "s6": "#80660a",
    "s7": "#6f45c4",
    "s8": "#b0284a",
}
DARK = {
    "bg": "#14171b", "panel": "#1d2127", "text": "#e9ebee", "muted": "#a7b0bb", "line": "#363d46",
    "grid": "#2b3139", "control": "#7f8894", "link": "#7fc1ff", "win": "#55d3c6", "loss": "#ffa27c",
    "tie": "#a7b0bb", "warn": "#3a3013", "bad": "#44231a",
    "s0": "#ffffff", "s1": "#56b4e9", "s2": "#f0a732", "s3": "#35c9a0", "s4": "#e79fd0", "s5": "#b0b6be",
    "s6": "#d8c24c", "s7": "#b9a2ff", "s8": "#ff8fa8",
}  # fmt: skip
#: A verdict's shape, beside its word.
VERDICTS = {"win": "▲", "loss": "▼", "tie": "◆"}
#: Keys of a row's verdicts that are no library.
GROUPS = {"best": "best of the others", "heuristic": "their heuristic's pick",
          "deterministic": "their best deterministic one"}  # fmt: skip


def styles(documents: Iterable[Document]) -> dict[str, int]:
    """The number of each library's style, in the order of the legend."""
    found: dict[str, None] = {}
    for document in documents:
        for row in document["rows"]:
            found.update(dict.fromkeys(str(c["library"]) for c in row["contenders"]))
    known = [name for name in KNOWN if name in found]
    others = [name for name in found if name not in KNOWN]
    free = len(SHAPES) - len(KNOWN)
    return {
        **{name: KNOWN.index(name) for name in known},
        **{name: len(KNOWN) + i % free for i, name in enumerate(others)},
    }


# ---------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------
def own(row: Row) -> Entry | None:
    """convkit's pick, where it was timed."""
    name = (row.get("ranking") or {}).get("own")
    found = (c for c in row["contenders"] if c["library"] == OWN and c["name"] == name)
    return next(found, None) if name else None


def against(row: Row, key: str) -> Mapping[str, Any] | None:
    """A verdict of the row: against "best", "heuristic", "deterministic", or a library."""
    found = ((row.get("ranking") or {}).get("against") or {}).get(key)
    return found or None


def rival(row: Row, name: str) -> Entry | None:
    """The entry of this name of another library."""
    return next((c for c in row["contenders"] if c["library"] != OWN and c["name"] == name), None)


def grade(row: Row) -> str:
    """Storage, and arithmetic where it is not the storage's own."""
    return str(row["dtype"]) if row["math"] in ("fp32", "", None) else f"{row['dtype']} {row['math']}"


def labels(rows: Sequence[Row]) -> list[str]:
    """A short name for each row that tells it from every other: what differs among them, and no more."""
    parts = [
        [
            str(row.get("layer") or row.get("problem_text") or row["op"]),
            str(row.get("direction") or ""),
            f"({row['unit']})" if row.get("unit") not in (None, "ms") else "",
        ]
        for row in rows
    ]
    more = (
        lambda row: f"N={row['batch']}",
        grade,
        lambda row: str(row.get("net") or ""),
        lambda row: str(row["op"]),
    )
    for number, describe in enumerate(more):
        words = [describe(row) for row in rows]
        counts = Counter(map(tuple, parts))
        if number == 3:  # an op's name is long: only for those rows that nothing else tells apart
            parts = [p + [w] if counts[tuple(p)] > 1 else p for p, w in zip(parts, words)]
        elif len(set(words)) > 1:
            parts = [p + [w] for p, w in zip(parts, words)]
    texts = [" ".join(filter(None, p)) for p in parts]
    same = Counter(texts)
    return [text if same[text] == 1 else str(row["id"]) for text, row in zip(texts, rows)]


def where(document: Document) -> str:
    """The machine and the day."""
    machine = document["machine"]
    name = machine.get("name") or machine.get("cpu") or "unknown machine"
    return f"{name}, {str(document.get('created'))[:10]}"


# ---------------------------------------------------------------------------------------------------
# What the charts show
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bar:
    """convkit's pick against the best of a library, or against another that a row has a verdict on.

    Attributes
    ----------
    library : str
    title : str
        What it stands for, beside the entry's name.
    name : str
    ratio, low, high : float
        The other's time over that of convkit's pick, with its interval.
    verdict : {"win", "loss", "tie"}
    group : str
        A key of `GROUPS` where it is not the best of its library, else empty.
    """

    library: str
    title: str
    name: str
    ratio: float
    low: float
    high: float
    verdict: str
    group: str = ""

    @property
    def best(self) -> bool:
        """Whether it is the best of its library."""
        return not self.group


def bars(row: Row) -> list[Bar]:
    """A row's verdicts, each entry once: the best of each library, then those of `GROUPS`."""
    found: list[Bar] = []
    verdicts = (row.get("ranking") or {}).get("against") or {}
    names = [k for k in (*KNOWN, *verdicts) if k not in GROUPS and k != OWN]
    for key in dict.fromkeys((*names, "heuristic", "deterministic")):
        v = verdicts.get(key)
        if not v or not v.get("ratio") or (key in GROUPS and v["name"] in {b.name for b in found}):
            continue
        other = rival(row, v["name"])
        library = str(other["library"]) if other else key
        title = f"{library}, {GROUPS[key]}" if key in GROUPS else library
        low, high = v.get("low") or v["ratio"], v.get("high") or v["ratio"]
        found.append(
            Bar(library, title, v["name"], v["ratio"], low, high, v["verdict"], key if key in GROUPS else "")
        )
    return found


@dataclass(frozen=True)
class Point:
    """An entry in a plane.

    Attributes
    ----------
    x, y : float
    row : int
    library, name : str
    label : str
        Of its row.
    kind : {"pick", "own", "peer"}
        convkit's pick, another of convkit's, or the best of a library.
    """

    x: float
    y: float
    row: int
    library: str
    name: str
    label: str
    kind: str


def roofline(document: Document) -> list[Point]:
    """FLOP/byte and GFLOP/s of each correct entry of convkit's, and of the best of each library."""
    found = []
    for number, (row, label) in enumerate(zip(document["rows"], labels(document["rows"]))):
        if not row.get("flops") or not row.get("bytes"):
            continue
        x = row["flops"] / row["bytes"]
        for entry, kind in _shown(row):
            if entry.get("gflops"):
                found.append(_point(x, entry["gflops"], number, entry, label, kind))
    return found


def accuracy(document: Document) -> list[Point]:
    """Milliseconds and relative error of the same entries; an error of 0 is kept as 0."""
    found = []
    for number, (row, label) in enumerate(zip(document["rows"], labels(document["rows"]))):
        for entry, kind in _shown(row):
            if entry.get("error") is not None:
                found.append(_point(entry["median_ms"], entry["error"], number, entry, label, kind))
    return found


def _point(x: float, y: float, row: int, entry: Entry, label: str, kind: str) -> Point:
    return Point(x, y, row, str(entry["library"]), str(entry["name"]), label, kind)


def _shown(row: Row) -> list[tuple[Entry, str]]:
    """The pick last, so that it is drawn on top."""
    pick = own(row)
    found: list[tuple[Entry, str]] = []
    best: dict[str, Entry] = {}
    for entry in sorted(filter(correct, row["contenders"]), key=lambda c: c["median_ms"]):
        if entry["library"] != OWN:
            best.setdefault(entry["library"], entry)
        elif entry is not pick:
            found.append((entry, "own"))
    found += [(entry, "peer") for entry in best.values()]
    return found + ([(pick, "pick")] if pick is not None and correct(pick) else [])


@dataclass(frozen=True)
class Roof:
    """A ceiling that was measured: GFLOP/s, or GB/s, which is a slope."""

    name: str
    value: float
    memory: bool

    @property
    def text(self) -> str:
        return f"{self.name} {number(self.value)} {'GB/s' if self.memory else 'GFLOP/s'}"

    def at(self, intensity: float) -> float:
        """GFLOP/s under it."""
        return self.value * intensity if self.memory else self.value


def roofs(document: Document) -> list[Roof]:
    """The ceilings, the highest of each kind first."""
    found = [
        Roof(str(name), float(record["value"]), "B/s" in str(record.get("unit")))
        for name, record in document["ceilings"].items()
        if record.get("value")
    ]
    return sorted(found, key=lambda roof: (roof.memory, -roof.value))


def samples(entry: Entry, limit: int = 200) -> list[float]:
    """All calls of all rounds in ms, sorted; of more than `limit` an even choice, the extremes among them."""
    flat = sorted(v for calls in entry.get("samples_ms") or () for v in calls if v)
    if len(flat) <= limit:
        return flat
    return [flat[round(i * (len(flat) - 1) / (limit - 1))] for i in range(limit)]


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values in order, interpolated."""
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


# ---------------------------------------------------------------------------------------------------
# Scales
# ---------------------------------------------------------------------------------------------------
def number(value: float) -> str:
    """Three digits, and those before the point."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return short_power(value, 2)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def milliseconds(value: float | None) -> str:
    """Three digits, zeros among them, and those before the point."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def short_power(value: float, digits: int = 1) -> str:
    """A power of ten, with at most so many digits behind the point: "1e-7", not "1.0e-07"."""
    if value == 0:
        return "0"
    mantissa, _, power = f"{value:.{digits}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float], pad: float = 1.25, least: float = 1.5) -> Scale:
        """Around these positive values, at least a factor of `least` wide; from 0.1 to 10 around none."""
        found = [v for v in values if v > 0 and math.isfinite(v)]
        if not found:
            return cls(0.1, 10.0)
        low, high = min(found) / pad, max(found) * pad
        if high / low < least:
            middle = math.sqrt(low * high)
            low, high = middle / math.sqrt(least), middle * math.sqrt(least)
        return cls(low, high)

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high one; held between them."""
        return min(1.0, max(0.0, math.log(value / self.low) / math.log(self.high / self.low)))

    def ticks(self, most: int = 8) -> list[float]:
        """Round values: powers of ten, or 1, 2, 5 of them, or even steps where the axis spans little."""
        decades = math.log10(self.high / self.low)
        if decades < 0.6:
            return self._steps(most)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high]
            if 3 <= len(found) <= most:
                return found
        if decades < 1.2:
            return self._steps(most)
        return found[:: math.ceil(len(found) / most)]

    def _steps(self, most: int) -> list[float]:
        span = self.high - self.low
        base = 10.0 ** math.floor(math.log10(span / most))
        for step in (
            base,
            2 * base,
            5 * base,
            10 * base,
        ):
            places = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
            if len(places) <= most + 1:
                break
        return [float(f"{i * step:.12g}") for i in places]


# ---------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------
Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Iterable[Box],
    frame: Box,
    gap: float = 10,
) -> list[tuple[float, float] | None]:
    """Where labels can stand beside their points without touching anything.

    Parameters
    ----------
    anchors : sequence of (x, y)
        In pixels; the first are served first.
    sizes : sequence of (width, height)
        Of the labels.
    obstacles : iterable of Box
        What must stay free.
    frame : Box
        What a label must stay inside.
    gap : float
        Between a point and its label.

    Returns
    -------
    list of (x, y) or None
        The label's centre, or None where there is no room.
    """
    taken = list(obstacles)
    found: list[tuple[float, float] | None] = []
    for (x, y), (width, height) in zip(anchors, sizes):
        across, up = gap + width / 2, gap + height / 2
        around = ((across, 0), (-across, 0), (0, up), (0, -up),
                  (across, up), (-across, up), (across, -up), (-across, -up))  # fmt: skip
        for dx, dy in around:
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
            if inside and not any(_touch(box, other) for other in taken):
                taken.append(box)
                found.append((x + dx, y + dy))
                break
        else:
            found.append(None)
    return found


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
