"""A run of `bench/gpu.py` as one page: no script, nothing from elsewhere; the samples are in the JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0 1.6em}td,th{padding:.2em .7em;
border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.bad{color:#b00020;font-weight:600}.dim{color:#777}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}td,th{border-color:#444}.bad{color:#ff8a80}}"""
Record = Mapping[str, Any]


def page(document: Mapping[str, Any]) -> str:
    """The page's text."""
    machine = document["machine"]
    about = (
        machine.get("device"),
        machine.get("cpu"),
        f"Python {machine.get('python')}",
        document.get("began"),
    )
    parts = [f"<h1>convkit on {escape(str(machine.get('device')))}</h1>", f"<p>{_text(about)}</p>"]
    parts += [_table(("stage", "status", "seconds", "tasks", "failed", ""), map(_stage, document["stages"]))]
    for stage in document["stages"]:
        records = [r for r in stage["records"] if not r.get("stopped")]
        if not records:
            continue
        parts.append(f"<h2>{escape(stage['title'])}</h2>")
        parts.append(_TABLES.get(stage["name"], _plain)(records))
        parts += [_wrong(record) for record in records if record.get("ok") is False]
    title = escape(f"convkit on {machine.get('device')}")
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    )
    return f"{head}\n" + "\n".join(parts) + "\n</html>\n"


def _text(words: Iterable[Any]) -> str:
    return escape(" · ".join(str(word) for word in words if word))


def _stage(stage: Record) -> Sequence[Any]:
    failed = sum(r.get("ok") is False for r in stage["records"])
    return (
        stage["name"],
        stage["status"],
        stage["seconds"],
        len(stage["records"]),
        failed or "",
        stage["note"],
    )


def _table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join("<tr>" + "".join(f"<td>{_cell(v)}</td>" for v in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _cell(value: Any) -> str:
    if value is True or value is None:
        return "yes" if value else '<span class="dim">-</span>'
    if value is False:
        return '<span class="bad">NO</span>'
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _plain(records: Sequence[Record]) -> str:
    names = [
        k
        for k in ("run", "declined", "calls", "worst", "bytes", "exit", "summary")
        if any(k in r for r in records)
    ]
    rows = [(r["key"], r.get("ok"), *(r.get(n) for n in names), r.get("not_run", "")) for r in records]
    return _table(("task", "right", *names, ""), rows)


def _wrong(record: Record) -> str:
    lines = [
        record.get("error") or "",
        *(f"{f.get('case')}: {f.get('reason')}" for f in record.get("failures", [])),
    ]
    return f'<p><span class="bad">{escape(record["key"])}</span> {escape("; ".join(filter(None, lines)))}</p>'


def _ceilings(records: Sequence[Record]) -> str:
    found = {k: v for r in records for k, v in r.get("found", {}).items()}
    rows = [(name, record["value"], record["unit"], record["method"]) for name, record in found.items()]
    return _table(("", "best", "unit", "by"), rows)


def _layers(records: Sequence[Record]) -> str:
    """For each op the median of convkit, and of the best of each library whose sample was right."""
    libraries = ("convkit", "cuDNN", "PyTorch")
    rows = []
    for r in records:
        best: dict[str, tuple[float, str]] = {}
        for one in r.get("contenders", []):
            if one.get("ms") and one.get("ok"):
                mine = (median(one["ms"]), one["name"])
                best[one["library"]] = min(best.get(one["library"], mine), mine)
        own = best.get("convkit", (0.0, ""))[0]
        others = [ms for name, (ms, _) in best.items() if name != "convkit"]
        rate = r.get("flops", 0) / own / 1e9 if own else None
        times = [best[name][0] if name in best else None for name in libraries]
        fastest = min((b for name, b in best.items() if name != "convkit"), default=(0, ""))[1]
        rows.append(
            (r["key"], r.get("ok"), *times, min(others) / own if own and others else None, rate, fastest)
        )
    headers = (
        "op",
        "right",
        *(f"{name} ms" for name in libraries),
        "fastest other / convkit",
        "TFLOP/s",
        "it is",
    )
    return _table(headers, rows)


def _steps(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        times = [median(r[name]) if r.get(name) else None for name in ("ms", "host_ms")]
        why = r.get("error") or r.get("not_run", "")
        rows.append((r["key"], r.get("right"), *times, r.get("logits_error"), why))
    return _table(("step", "right", "ms", "host ms", "error of logits", ""), rows)


def _profile(records: Sequence[Record]) -> str:
    wanted = (
        "Duration",
        "Compute (SM) Throughput",
        "Memory Throughput",
        "Registers Per Thread",
        "Achieved Occupancy",
    )
    rows = []
    for r in records:
        found = {name: f"{value} {unit}" for _, name, unit, value in reversed(r.get("details", []))}
        rows.append((r["key"], *(found.get(name) for name in wanted), r.get("error") or r.get("not_run", "")))
    return _table(("kernel", *wanted, ""), rows)


_TABLES = {"ceilings": _ceilings, "layers": _layers, "steps": _steps, "profile": _profile}
