"""Machine, settings, ceilings, conditions, kernels, failures, raw data; how to read the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from ...results import sources
from ...status import UNRUN
from .. import caveats, charts
from .cells import figure, marks, megabytes, plain, table
from .markup import Markup, joined, tag

Document = Mapping[str, Any]


_CONDITIONS = {
    "sm_mhz": ("SM clock", "MHz"),
    "mem_mhz": ("memory clock", "MHz"),
    "cpu_mhz": ("CPU clock", "MHz"),
    "power_w": ("power", "W"),
    "temperature_c": ("temperature", "°C"),
    "others": ("CPU taken by others", "%"),
}


def spans(conditions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[float]]]:
    """Each quantity that was recorded, from its lowest to its highest value."""
    found = []
    names = dict.fromkeys((*_CONDITIONS, *(k for c in conditions for k in c)))
    for name in names:
        values = [c[name] for c in conditions if isinstance(c.get(name), (int, float)) and name != "t"]
        if values:
            title, unit = _CONDITIONS.get(name, (name.replace("_", " "), ""))
            values = [100 * v for v in values] if unit == "%" else values
            low, high = charts.number(min(values)), charts.number(max(values))
            found.append((title, f"{low if low == high else f'{low} to {high}'} {unit}".strip(), values))
    return found


def circumstances(document: Document) -> Markup:
    """What was measured on, how, and under what conditions; kernels; failures."""
    machine = [(name.replace("_", " "), text) for name, text in _flat(document["machine"])]
    about = [
        ("convkit", _flat_text(document.get("convkit", {}))),
        ("command", " ".join(map(str, document.get("command", ())))),
    ]
    settings = [
        (name if name.startswith("environment") else name.replace("_", " "), text)
        for name, text in _flat(document["settings"])
    ]
    ceilings = [
        (name, f"{charts.number(e['value'])} {e.get('unit', '')}", _ceiling(e))
        for name, e in document["ceilings"].items()
        if e.get("value")
    ]
    conditions = [
        [
            tag("th", title, scope="row"),
            *(figure(v, charts.number(v)) for v in (min(vs), median(vs), max(vs))),
            figure(len(vs), str(len(vs))),
            tag("td", _CONDITIONS_UNIT.get(title, "")),
        ]
        for title, _, vs in spans(document.get("conditions") or [])
    ]
    sides = [
        tag("div", tag("h3", "Machine"), plain("Machine", [*machine, *about])),
        tag("div", tag("h3", "Settings"), plain("Settings", settings)),
    ]
    parts = [
        tag("div", sides, class_="sides"),
        tag("h3", "Ceilings that were measured"),
        plain("Ceilings", [(n, joined(tag("strong", v), f" {m}")) for n, v, m in ceilings])
        if ceilings
        else tag("p", "None: there are no shares of a ceiling.", class_="muted"),
        tag("h3", "Conditions"),
        table(
            "Conditions during the rounds",
            [
                ("what", ""),
                ("lowest", "n"),
                ("median", "n"),
                ("highest", "n"),
                ("readings", "n"),
                ("unit", ""),
            ],
            conditions,
        )
        if conditions
        else tag("p", "None were recorded.", class_="muted"),
    ]
    if document["peers"] or document["missing"]:
        peers = [
            (name, f"{p.get('version')}; {_flat_text(p.get('settings') or {})}".rstrip("; "))
            for name, p in document["peers"].items()
        ]
        peers += [(name, f"did not take part: {reason}") for name, reason in document["missing"].items()]
        parts += [tag("h3", "Other libraries"), plain("Other libraries", peers)]
    return joined(parts, _kernels(document), _failures(document))


_CONDITIONS_UNIT = dict(_CONDITIONS.values())


def _ceiling(record: Mapping[str, Any]) -> str:
    samples = [v for v in record.get("samples") or () if v]
    spread = (
        f"best of {len(samples)}, {charts.number(min(samples))} to {charts.number(max(samples))}"
        if samples
        else ""
    )
    return "; ".join(filter(None, (spread, str(record.get("dtype") or ""), str(record.get("method") or ""))))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}: ")
        else:
            empty = value is None or value == {} or value == []
            yield f"{before}{name}", "–" if empty else _text(name, value)


def _text(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return megabytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _flat_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {text}" for name, text in _flat(values))


def _kernels(document: Document) -> Markup | None:
    if not document["kernels"]:
        return None
    body = [
        [
            tag("th", name, scope="row"),
            tag("td", about.get("file") or "–"),
            tag(
                "td", tag("code", (about.get("source_sha256") or "–")[:12], title=about.get("source_sha256"))
            ),
            tag("td", tag("code", (about.get("cubin_sha256") or "–")[:12], title=about.get("cubin_sha256"))),
            tag("td", " ".join(map(str, about.get("flags") or ())) or "–"),
            tag(
                "td",
                marks([UNRUN]) if about.get("status") == sources.UNRUN else about.get("status") or "–",
            ),
        ]
        for name, about in document["kernels"].items()
    ]
    heads = [
        ("kernel", ""),
        ("file", ""),
        ("SHA-256 of source", ""),
        ("of CUBIN", ""),
        ("flags", ""),
        ("status", ""),
    ]
    return tag(
        "details",
        tag("summary", f"{caveats.count(len(body), 'kernel')}: sources, hashes, flags"),
        table("Kernels", heads, body),
    )


def _failures(document: Document) -> Markup | None:
    if not document["failures"]:
        return None
    body = [
        [tag("th", f.get("row") or "–", scope="row"), tag("td", f.get("contender") or "the whole row"),
         tag("td", f.get("reason") or "–", class_="reason")]
        for f in document["failures"]
    ]  # fmt: skip
    return joined(
        tag("h3", "Failures"), table("Failures", [("row", ""), ("entry", ""), ("reason", "")], body)
    )


def raw(document: Document, digest: str, name: str) -> Markup:
    """The digest, and the way to the raw samples."""
    said = {
        "match": "The digest matches: the result file in this page is as it was written.",
        "mismatch": "The digest does not match the contents of this result file.",
        "missing": "The result file has no digest.",
    }[digest]
    return joined(
        tag("h3", "Raw data"),
        tag("p", said, " ", tag("code", document.get("digest") or "none")),
        tag("p", "Every sample is in this page as JSON. ", tag("code", "convkit verify FILE"),
            " rechecks digest, hashes of the sources and every figure and verdict."),
        tag("p", tag("button", "Save the result file", type="button", class_="save", data_for=f"{name}-data"),
            class_="needs-script"),
    )  # fmt: skip


def reading() -> Markup:
    """How to read the page."""
    points = (
        "ms: median over the rounds, with its interval (95 % unless the settings say otherwise). "
        "Entries take turns in random order, so that whatever slows a round slows all of them.",
        "Ratio: how many times as long the other takes. A win or a loss only where the whole interval "
        "is on one side of 1; otherwise a tie.",
        "GFLOP/s and GB/s: work and least traffic by the definition of the op, whatever the algorithm "
        "does. % is of the nearer ceiling that was measured on the same machine. What is above one by "
        "more than 10 % is refused as an error. An algorithm that needs fewer FLOP than the definition "
        "(Winograd) says so, and may pass 100 % of the ceiling of arithmetic, but not in its own operations; "
        "other libraries' convolutions get the same allowance, since they do not say which algorithm they "
        "chose. With warm caches no rate of memory is a bound.",
        "Error: relative RMS against float64. Same bits twice: measured, by running it again on the "
        "same inputs.",
        "Unchecked: timed, but not compared with a reference. Not yet run on a GPU: the kernel was "
        "emulated and compiled, and no GPU has executed it.",
    )
    return tag(
        "section",
        tag("h2", "How to read this page"),
        tag("ul", [tag("li", p) for p in points]),
        class_="reading",
    )
