"""All that is known about a row: its entries, its verdicts, every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...measure import stats
from ...results import figures
from .. import caveats, charts, tables
from . import svg
from .cells import figure, interval, marks, megabytes, ms, one_line, rates, ratio, table, verdict
from .circumstances import spans
from .markup import Markup, joined, tag

Row = Mapping[str, Any]
Entry = Mapping[str, Any]
Document = Mapping[str, Any]


_ENTRIES = (
    ("entry", ""),
    ("library", ""),
    ("layout", ""),
    ("ms", "n"),
    ("convkit's pick against it", ""),
    ("GFLOP/s", "n"),
    ("GB/s", "n"),
    ("% of ceiling", "n"),
    ("error", "n"),
    ("same bits twice", ""),
    ("workspace", "n"),
    ("checks", ""),
    ("facts", ""),
)
#: Where the host's column stands, if there is one: behind the device's time.
HOST = 4


def details(document: Document, row: Row, label: str, styles: Mapping[str, int], key: str) -> Markup:
    """All that is known about a row."""
    own = charts.own(row)
    timed = sorted(filter(figures.timed, row["contenders"]), key=lambda c: c["median_ms"])
    entries = [*timed, *(c for c in row["contenders"] if not figures.timed(c))]
    said = f"{own['name']} {ms(own['median_ms'])} ms" if own else "convkit's pick was not timed"
    summary = tag(
        "summary",
        tag("strong", label),
        " ",
        verdict(caveats.outcome(row)),
        tag("span", f" {said}", class_="muted"),
        " ",
        marks(["unchecked"] if caveats.is_unchecked(row) else []),
    )
    keys = [(None, styles[str(c["library"])]) for c in entries]
    classes = ["refused" if not figures.timed(c) else "pick" if c is own else "" for c in entries]
    least = stats.least(figures.confidence_of(document["settings"]))
    body = [_entry_cells(row, c, styles, c is own) for c in entries]
    heads = list(_ENTRIES)
    if figures.has_host(row):  # of GPUs alone
        heads.insert(HOST, ("host µs", "n"))
    return tag(
        "details", summary, tag("p", _work(row)), tag("p", _conditions_of(document, row), class_="muted"),
        table(f"Entries, {label}", heads, body, keys, classes),
        tag("ul", _sentences(row, least), class_="sentences"), _latency(timed, styles),
        id=key, class_="row", data_r=key,
    )  # fmt: skip


def _work(row: Row) -> Markup:
    flops, size = row["flops"], row["bytes"]
    words = [f"{row['op']}: {row.get('problem_text') or row['problem']}"]
    words.append(f"{charts.number(flops / 1e9)} GFLOP, {charts.number(size / 1e6)} MB")
    if flops and size:
        words.append(f"{charts.number(flops / size)} FLOP/byte")
    if row.get("bound"):
        words.append(f"bound by {row['bound']}")
    if row.get("options"):
        words.append(", ".join(f"{name} = {value}" for name, value in row["options"].items()))
    return joined("; ".join(words), ". ", tag("code", row["id"]))


def _conditions_of(document: Document, row: Row) -> str:
    mine = [c for c in document.get("conditions") or () if c.get("row") == row["id"]]
    return "; ".join(f"{title} {span}" for title, span, _ in spans(mine)) or "no conditions were recorded"


def _entry_cells(row: Row, c: Entry, styles: Mapping[str, int], pick: bool) -> list[Markup]:
    facts = "; ".join(
        f"{name.replace('_', ' ')}: {charts.number(value) if isinstance(value, float) else value}"
        for name, value in (c.get("facts") or {}).items()
        if name != "workspace_bytes" and value is not None  # it has a column
    )
    name = tag(
        "th", tag("span", c["name"]), " ", marks(c["marks"]),
        tag("div", f"refused: {c['refused']}", class_="reason") if c.get("refused") else None,
        tag("div", "not timed", class_="reason") if not c.get("refused") and not figures.timed(c) else None,
        scope="row",
    )  # fmt: skip
    version = tag("span", c.get("version") or "", class_="interval")
    library = tag(
        "td",
        svg.swatch(styles[str(c["library"])]),
        f"{c['library']} ",
        version,
        class_=one_line(c["library"]),
    )
    bits = {True: "yes", False: "no, they differ"}.get(c.get("deterministic"), "–")  # type: ignore[arg-type]
    space, error = c.get("workspace_bytes"), c.get("error")
    shown = figures.timed(c)
    host = c.get("host_us") if shown else None
    return [
        name,
        library,
        tag("td", c.get("layout") or "–"),
        figure(
            c.get("median_ms") if shown else None,
            ms(c.get("median_ms")),
            interval(c.get("low_ms"), c.get("high_ms")),
        ),
        *([figure(host, tables.microseconds(host))] if figures.has_host(row) else []),
        tag("td", tag("span", "the pick", class_="muted") if pick else _against(row, c)),
        *(rates(c) if shown else [figure(None, "")] * 3),
        figure(error, charts.short_power(error) if error is not None else ""),
        tag("td", bits),
        figure(space, megabytes(space)),
        tag("td", _checks(c)),
        tag("td", facts or "–", class_="small"),
    ]


def _checks(c: Entry) -> Markup:
    """What the checks found; what was not checked is said."""
    checks = {when: str(word or "unchecked") for when, word in (c.get("checks") or {}).items()}
    if not checks:
        return tag("span", "unchecked", class_="mark doubt")
    if all(word == "passed" for word in checks.values()):
        return Markup("passed")
    open_ = [when for when, word in checks.items() if word == "unchecked"]
    if len(open_) == len(checks):
        return tag("span", "unchecked", class_="mark doubt") if figures.timed(c) else Markup("–")
    words = [f"{when}: {word}" for when, word in checks.items() if word not in ("passed", "unchecked")]
    return joined(
        "; ".join(words), " " if words else None,
        tag("span", f"unchecked {', '.join(open_)}", class_="mark doubt") if open_ else None,
    )  # fmt: skip


def _against(row: Row, c: Entry) -> Any:
    """The result file's verdict against this entry, where it has one."""
    if not figures.timed(c):
        return "–"
    for key, v in ((row.get("ranking") or {}).get("against") or {}).items():
        same = (
            v
            and v["name"] == c["name"]
            and (key == c["library"] or (key in charts.GROUPS and c["library"] != figures.OWN))
        )
        if same:
            return joined(verdict(v["verdict"]), " ", ratio(v["ratio"], v["low"], v["high"]))
    return "–"


def _sentences(row: Row, least: int) -> list[Markup]:
    """The row's verdicts in words; fewer rounds than `least` are named."""
    rank = row.get("ranking") or {}
    if not rank.get("own"):
        return [tag("li", "convkit's pick was not timed: no verdict.")]
    place = f"{tables.ordinal(rank['rank'])} of {rank['of']}"
    found = [tag("li", f"{rank['own']}, convkit's pick, is {place} that are correct.")]
    titles: dict[tuple[str, bool], list[str]] = {}
    verdicts: dict[tuple[str, bool], Mapping[str, Any]] = {}
    for key, v in (rank.get("against") or {}).items():
        if v:  # the best of all is also the best of its library: one sentence for it
            rival = (v["name"], key == figures.OWN)
            titles.setdefault(rival, []).append(
                charts.GROUPS.get(key) or f"best {'other ' * rival[1]}of {key}"
            )
            verdicts[rival] = v
    for rival, v in verdicts.items():
        few = f", in only {v['rounds']} rounds" if v["rounds"] < least else ""
        found.append(
            tag(
                "li",
                verdict(v["verdict"]),
                f" against {v['name']} ({', '.join(titles[rival])}): it takes ",
                ratio(v["ratio"], v["low"], v["high"]),
                f" as long{few}",
            )
        )
    return found


def _latency(timed: Sequence[Entry], styles: Mapping[str, int]) -> Markup | None:
    """Every call of every entry."""
    drawn = [(c, charts.samples(c)) for c in timed]
    drawn = [(c, values) for c, values in drawn if values]
    if not drawn:
        return None
    scale = charts.Scale.over([v for _, values in drawn for v in values], pad=1.04, least=1.05)
    lines = [
        tag(
            "div", tag("span", c["name"], tag("span", c["library"], class_="muted small"), class_="entry"),
            svg.strip(values, scale, styles[str(c["library"])]),
            tag("span", f"{ms(charts.quantile(values, 0.5))} ",
                tag("span", f"{ms(values[0])} to {ms(values[-1])}", class_="interval"), class_="value"),
            class_="line", data_l=styles[str(c["library"])],
        )
        for c, values in drawn
    ]  # fmt: skip
    heading = tag("div", tag("span", "ms", class_="muted"), svg.axis(scale), class_="line axis-line")
    caption = (
        "Latency of every call in ms: dots are calls (of more than 200 an even choice), the box is the "
        "middle half, the line the median. At the right: median, fastest and slowest of those that are drawn."
    )
    return tag(
        "figure",
        tag("figcaption", caption),
        tag("div", heading, lines, class_="bars"),
        class_="chart latency",
    )
