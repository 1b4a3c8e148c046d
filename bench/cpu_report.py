"""What `bench/cpu.py` makes of its rows: tables, a JSON, a picture."""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import re
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cpu_measure import COPY, FMA, LABELS, OTHERS, OWN, Row, Verdict, evaluate, ratio_of
from tabulate import tabulate

#: Flags of /proc/cpuinfo that say something about float32 arithmetic.
FLAGS = re.compile(r"^(avx.*|fma.?|f16c|sse4_[12]|amx.*|asimd.*|sve.*|neon)$")
#: Okabe and Ito's colours, which the colour-blind tell apart; hatched besides, for print in grey.
STYLES = {
    "convkit-op": ("#000000", ""),
    "torch": ("#0072B2", "///"),
    "torch-channels-last": ("#56B4E9", ""),
    "torch-compile": ("#009E73", "xx"),
    "onnxruntime": ("#E69F00", "..."),
    "jax": ("#F0E442", "\\\\\\"),
}
DOTS = "Other geometries"
KINDS = {  # of calls, in the roofline
    "convolution": ("#0072B2", "o"),
    "fully connected": ("#D55E00", "s"),
    "LRN": ("#009E73", "^"),
    "pooling": ("#E69F00", "D"),
    "other": ("#999999", "v"),
}


def machine(threads: int) -> dict[str, Any]:
    """What `convkit.bench` says of a machine, and what a figure of the CPU depends on besides."""
    from convkit.bench import capsule, conditions
    from convkit.cpu import extension

    info = conditions.machine("cpu", threads)
    for name in ("onnx", "scipy"):
        if name in sys.modules:
            info["versions"][name] = str(getattr(sys.modules[name], "__version__", "?"))
    if glibc := platform.libc_ver()[1]:
        info["versions"]["glibc"] = glibc
    kernels = extension.kernels()
    return {
        **info, "isas": list(extension.isas()), "lanes": kernels.lanes if kernels else None,
        "flags": _flags(), "logical_cpus": os.cpu_count(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "source": capsule.commit(),
    }  # fmt: skip


def _flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    found = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    return sorted(flag for flag in found[0].split() if FLAGS.match(flag)) if found else []


# ---------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------
def section_table(rows: list[Row]) -> str:
    """One line for each row: medians and quartiles, the ratio to the best peer, the probes."""
    names = [n for n in LABELS if any(n in row.samples for row in rows)]
    table = []
    for row in rows:
        cells: list[str] = [row.name.partition("/")[2]]
        for name in names:
            if row.samples.get(name):
                low, high = row.quartiles(name)
                cells.append(f"{_short(row.middle(name))} ({_short(low)}-{_short(high)})")
            else:
                cells.append("wrong" if row.refused.get(name, "").startswith("wrong") else "-")
        best, own = row.best(), row.own
        if best and own:
            ratio = ratio_of(row.rounds(best), row.rounds(own))
            cells.append(f"{ratio.middle:.2f} ({ratio.low:.2f}-{ratio.high:.2f})")
        else:
            cells.append("-")
        cells.append(LABELS.get(best, "-") if best else "-")
        cells += [f"{median(row.probes[p]):.0f}" if row.probes.get(p) else "-" for p in (FMA, COPY)]
        others = row.probes.get(OTHERS)
        cells.append(f"{median(others):.0%}" if others and math.isfinite(median(others)) else "-")
        table.append(cells)
    unit = rows[0].unit if rows else "ms"
    headers = [f"{unit}, median (quartiles)", *(LABELS[n] for n in names), "ratio (95 %)", "to the best peer"]
    return tabulate(
        table, [*headers, "FMA GFLOP/s", "copy GB/s", "others"], tablefmt="simple", disable_numparse=True
    )


def against_each(rows: list[Row]) -> list[str]:
    """Median and smallest of the ratios to each peer: for many rows of one kind."""
    lines = []
    for name in LABELS:
        found = [
            ratio_of(row.rounds(name), row.rounds(row.own)).middle
            for row in rows
            if name not in OWN and row.own and row.samples.get(name)
        ]
        if found:
            middle, least = median(found), min(found)
            lines.append(f"against {LABELS[name]}: median {middle:.2f}, smallest {least:.2f} of {len(found)}")
    return lines


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def refusals(rows: list[Row]) -> list[str]:
    """What was not timed, and why."""
    return [
        f"{row.name}: {LABELS.get(name, name)} not timed: {why}"
        for row in rows
        for name, why in row.refused.items()
    ]


def warnings(rows: list[Row], limit: float = 0.1) -> list[str]:
    """Rows in whose rounds others kept the CPUs busy: a pool that spins at its barriers suffers most."""
    busy = {row.name: median(values) for row in rows if (values := row.probes.get(OTHERS))}
    above = {name: share for name, share in busy.items() if share > limit}
    if not above:
        return []
    worst = max(above, key=lambda name: above[name])
    return [
        f"warning: in {len(above)} of {len(busy)} rows others took more than {limit:.0%} of the CPUs "
        f"({above[worst]:.0%} in {worst}): measure again on a machine that is left alone"
    ]


def goals_table(verdicts: list[Verdict], all_of_them: bool) -> str:
    """The goals beside what was measured."""
    table = [
        (
            v.row, f"{v.measured:.2f}" if math.isfinite(v.measured) else "-",
            f"{v.low:.2f}-{v.high:.2f}" if math.isfinite(v.low) else "-",
            f"{'<=' if v.goal.against == () else '>='} {v.goal.value:g}", v.what,
            v.verdict if v.clear else f"{v.verdict}, within the interval",
        )
        for v in verdicts
        if all_of_them or v.verdict != "not measured"
    ]  # fmt: skip
    if not table:
        return "no goal speaks of these rows"
    headers = ("goal", "measured", "95 %", "wanted", "of what", "verdict")
    return tabulate(table, headers, tablefmt="simple", disable_numparse=True)


def calls_table(points: list[dict[str, Any]]) -> str:
    """Every planned call of a step, on its own, with cold caches."""
    table = [
        (
            p["layer"], p["op"], p["implementation"], f"{p['ms']:.2f}", f"{p['gflops']:.1f}",
            f"{p['gbs']:.1f}",
            f"{p['share']:.0%}" + (" ABOVE" if p["rejected"] else ""),
        )
        for p in points
    ]  # fmt: skip
    headers = ("layer", "op", "implementation", "ms", "GFLOP/s", "GB/s", "of its ceiling")
    totals: dict[str, float] = {}
    for p in points:
        totals[p["kind"]] = totals.get(p["kind"], 0) + p["ms"]
    parts = ", ".join(f"{kind} {ms:.1f} ms" for kind, ms in totals.items())
    return f"{tabulate(table, headers, tablefmt='simple', disable_numparse=True)}\n\napart: {parts}"


# ---------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------
def document(
    info: dict[str, Any], settings: dict[str, Any], missing: dict[str, str], rows: list[Row],
    calls: dict[str, Any], interrupted: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything that was measured, raw samples included."""
    return _finite({
        "machine": info, "settings": settings, "missing": missing, "interrupted": interrupted,
        "goals": [v.as_dict() for v in evaluate(rows)], "rows": [row.as_dict() for row in rows],
        "calls": calls,
    })  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 6) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def write_json(path: Path, found: dict[str, Any]) -> None:
    """One line for each row keeps a diff of two results legible."""
    from convkit.bench import capsule

    path.parent.mkdir(parents=True, exist_ok=True)
    capsule.replace(path, json.dumps(found, indent=1, allow_nan=False) + "\n")


def default_path(info: dict[str, Any], folder: Path) -> Path:
    """cpu-<model>-<date>.json"""
    model = re.sub(r"[^A-Za-z0-9]+", "-", re.sub(r"\((R|TM)\)|CPU|Processor", "", str(info["cpu"]))).strip(
        "-"
    )
    return folder / f"cpu-{model}-{str(info['time'])[:10]}.json"


# ---------------------------------------------------------------------------------------------------
# Picture
# ---------------------------------------------------------------------------------------------------
def picture(path: Path, found: dict[str, Any]) -> str:
    """Bars against the peers, and a roofline; returns what was written, or why nothing was."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        return "no picture: matplotlib is not installed (pip install matplotlib)"
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    timed = [row for row in found["rows"] if row["ratio"]]
    groups = [
        ("Networks", [r for r in timed if r["name"].startswith(("step/", "forward/"))]),
        ("Convolutions, one at a time", [r for r in timed if r["name"].startswith("layers/")]),
        (
            "LRN + pool, fully connected, memory",
            [r for r in timed if r["name"].startswith(("blocks/", "memory/"))],
        ),
        (DOTS, [r for r in timed if r["name"].startswith("geometries/")]),
    ]
    groups = [(title, rows) for title, rows in groups if rows]
    if not groups and not found["calls"]:
        return "no picture: nothing was measured that it could show"
    columns = min(2, len(groups)) or 1
    heights = [5.5 if title == DOTS else max(3.5, 1.2 + 0.52 * len(rows)) for title, rows in groups]
    lines = [max(heights[i : i + columns]) for i in range(0, len(heights), columns)]
    lines += [7.5] * bool(found["calls"])
    figure = plt.figure(figsize=(max(11, 8.2 * columns), sum(lines) + 1.4), layout="constrained")
    grid = figure.add_gridspec(len(lines), columns, height_ratios=lines)
    info, goals = found["machine"], {v["row"]: v["goal"] for v in found["goals"] if not v["over"]}
    probes = _spread([p for r in found["rows"] for p in r["probes"].get(FMA, [])])
    figure.suptitle(
        f"convkit {info['versions']['convkit']} on {info['cpu']}, {info['threads']} threads, "
        f"{str(info['time'])[:10]}\nhow many times as long the others take; FMA probe beside them: {probes}",
        fontsize=13,
    )
    legend: dict[str, Any] = {}
    for number, (title, rows) in enumerate(groups):
        # The last panel takes what is left of its line.
        across = slice(number % columns, columns) if number == len(groups) - 1 else number % columns
        axes = figure.add_subplot(grid[number // columns, across])
        if title == DOTS:
            _dots(axes, title, rows)
        else:
            legend |= _bars(axes, title, rows, goals)
    if legend:
        figure.legend(
            legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), fontsize=9
        )
    if found["calls"]:
        _roofline(figure.add_subplot(grid[-1, :]), found["calls"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return f"picture: {path}"


def _spread(values: list[float]) -> str:
    return f"{min(values):.0f}-{max(values):.0f} GFLOP/s" if values else "none"


def _bars(axes: Any, title: str, rows: list[dict[str, Any]], goals: dict[str, float]) -> dict[str, Any]:
    """Returns what the legend shall name."""
    names = [n for n in STYLES if any(n in r["summary"] for r in rows)]
    if "convkit-op" in names and not any("convkit" in r["summary"] for r in rows):
        names.remove("convkit-op")
    thick = 0.84 / max(1, len(names))
    legend, values = {}, [1.0]
    for y, row in enumerate(rows):
        own = next(n for n in OWN if n in row["summary"])
        base = row["summary"][own]["median"]
        for i, name in enumerate(names):
            if name not in row["summary"] or name == own:
                continue
            colour, hatch = STYLES[name]
            value = row["summary"][name]["median"] / base
            values.append(value)
            at = y - 0.42 + thick * (i + 0.5)
            legend[LABELS[name]] = axes.barh(
                at,
                value - 1,
                thick * 0.9,
                left=1,
                color=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.4,
            )
            right = value >= 1
            axes.annotate(
                f"{value:.1f}", (value, at), (2 if right else -2, 0), textcoords="offset points",
                va="center", ha="left" if right else "right", fontsize=6,
            )  # fmt: skip
        if row["name"] in goals and row["unit"] != "GB":
            at = goals[row["name"]]
            values.append(at)
            (legend["goal"],) = axes.plot([at, at], [y - 0.46, y + 0.46], color="#D55E00", linewidth=2.2)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, min(values) * 0.75), max(values) * 1.4)
    ticks = [
        t for t in (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if axes.get_xlim()[0] < t < axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_yticks(range(len(rows)), [_bar_label(row) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.set_title(title)
    axes.set_xlabel("times convkit's figure (right of the line at 1: convkit is ahead)", fontsize=8)
    return legend


def _bar_label(row: dict[str, Any]) -> str:
    own = next(n for n in OWN if n in row["summary"])
    section, _, rest = row["name"].partition("/")
    name = row["name"] if section in ("step", "forward", "memory") else rest
    return f"{name.replace('/', ' ')}\nconvkit {_short(row['summary'][own]['median'])} {row['unit']}"


def _dots(axes: Any, title: str, rows: list[dict[str, Any]]) -> None:
    marks = {"fwd": ("o", "#000000"), "dgrad": ("^", "#0072B2"), "wgrad": ("s", "#E69F00")}
    labels = list(dict.fromkeys(row["name"].split("/")[1] for row in rows))
    for direction, (mark, colour) in marks.items():
        chosen = [row for row in rows if row["name"].endswith(f"/{direction}")]
        axes.plot(
            [labels.index(row["name"].split("/")[1]) for row in chosen],
            [row["ratio"]["median"] for row in chosen],
            mark, color=colour, markersize=5, markeredgecolor="black", markeredgewidth=0.4, label=direction,
        )  # fmt: skip
    axes.axhline(1.0, color="black", linewidth=1, label="as fast as the best peer")
    axes.axhline(0.6, color="black", linewidth=1, linestyle="--", label="goal: none below")
    axes.set_yscale("log")
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if axes.get_ylim()[0] < t < axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axes.set_title(f"{title}, by the public op")
    axes.set_ylabel("the best peer's time / convkit's")
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(fontsize=7)


def _roofline(axes: Any, calls: dict[str, Any]) -> None:
    peak, rates = calls["peak_gflops"], calls["rates_gbs"]
    total = sum(p["ms"] for p in calls["points"])
    named_kinds = ("convolution", "fully connected", "LRN")
    points = [
        p
        for p in calls["points"]
        if not p["rejected"]
        and p["intensity"] > 0
        and p["ms"] > (5e-4 if p["kind"] in named_kinds else 5e-3) * total
    ]
    low = min([p["intensity"] for p in points], default=0.1) / 2
    high = max([p["intensity"] for p in points], default=100) * 6
    xs = np.geomspace(low, high, 200)
    fastest = max(rates, key=rates.get)
    axes.plot(xs, np.minimum(peak, xs * rates[fastest]), color="black", linewidth=1.6,
              label=f"ceilings: {peak:.0f} GFLOP/s; {WORDS[fastest]} {rates[fastest]:.0f} GB/s")  # fmt: skip
    axes.plot(xs, np.minimum(peak, xs * rates["copy"]), color="black", linewidth=0.8, linestyle="--",
              label=f"{WORDS['copy']} {rates['copy']:.0f} GB/s")  # fmt: skip
    for kind, (colour, mark) in KINDS.items():
        for winograd in (False, True):
            part = [p for p in points if p["kind"] == kind and p["winograd"] == winograd]
            if part:
                axes.plot([p["intensity"] for p in part], [p["gflops"] for p in part], mark, color=colour,
                          markeredgecolor="black" if not winograd else colour, markersize=7,
                          fillstyle="none" if winograd else "full",
                          label=f"{kind}{', Winograd' if winograd else ''}")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Labels stand in columns, one for each cluster of points, and are kept apart.
    named = [p for p in points if p["kind"] in named_kinds and not p["layer"].endswith(".b")]
    clusters: list[list[dict[str, Any]]] = []
    for p in sorted(named, key=lambda p: p["intensity"]):
        if clusters and p["intensity"] < 6 * clusters[-1][0]["intensity"]:
            clusters[-1].append(p)
        else:
            clusters.append([p])
    bottom, top = axes.get_ylim()
    gap = (top / bottom) ** 0.026
    for cluster in clusters:
        cluster.sort(key=lambda p: p["gflops"])
        x = max(p["intensity"] for p in cluster) * 1.35
        y = cluster[len(cluster) // 2]["gflops"] / gap ** (len(cluster) / 2)
        y = max(bottom * gap, min(y, top / gap ** len(cluster)))
        for p in cluster:
            axes.annotate(f"{p['layer'].split('+')[0]} {_direction(p['op'])}", (p["intensity"], p["gflops"]),
                          (x, y), fontsize=6.5, va="center",
                          arrowprops={"arrowstyle": "-", "linewidth": 0.4, "shrinkB": 3})  # fmt: skip
            y *= gap
    axes.set_xlabel("declared FLOP / declared byte\n"
                    "Winograd multiplies less often than the direct convolution whose FLOPs are\n"
                    "declared, so it may lie above the arithmetic ceiling; nothing else may.\n"
                    "Each call finds its data in DRAM.",
                    fontsize=8)  # fmt: skip
    axes.set_ylabel("direct-convolution GFLOP/s")
    axes.set_title(f"Roofline: the calls of a training step, {calls['preset']}, N = {calls['batch']}")
    axes.grid(which="major", linewidth=0.3)
    axes.legend(fontsize=7, loc="upper left")


#: What is done to memory, in the roofline's legend.
WORDS = {"copy": "copying", "read": "reading", "update": "changing in place"}


def _direction(op: str) -> str:
    return next((d for d in ("fprop", "dgrad", "wgrad", "bgrad") if d in op), op)
