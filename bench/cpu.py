"""convkit against the other libraries of this machine: a training step, its layers, other geometries, memory.

    make bench-cpu                                   everything; some half an hour
    python bench/cpu.py --quick                      a minute: small batches, few rounds
    python bench/cpu.py --sections layers,blocks --rounds 15
    python bench/cpu.py --save                       and keep a JSON and a picture in bench/results

One process; the contenders take turns in a random order, with pauses between them, and probes of the
machine's arithmetic and memory take turns with them. What is wrong is not timed. Ratios are taken within a
round. Leave the machine alone meanwhile: "others" says how busy everything else kept its CPUs. Settings of a
peer that are environment variables (OMP_WAIT_POLICY, THP_MEM_ALLOC_ENABLE, GLIBC_TUNABLES) reach it.

Sections
  step        a training step: forward, loss, backward, update (paper, owt; N = 1, 16, 128)
  forward     the forward pass (paper; N = 1, 16, 128)
  layers      each convolution of AlexNet, N = 16: fwd, dgrad, wgrad
  blocks      LRN + pool, forward and both ways; fc6 to fc8: forward, backward, update (N = 16)
  geometries  convolutions of other networks, through the public ops
  memory      the peak memory of a training step, N = 128, each contender in a process of its own
  first       the first call after an import, against a later one, in a process of its own
  calls       each planned call of a step with cold caches, beside the ceilings: the roofline
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SECTIONS = ("step", "forward", "layers", "blocks", "geometries", "memory", "first", "calls")
CONTENDERS = ("convkit", "torch", "torch-channels-last", "torch-compile", "onnxruntime", "jax")
PRESETS = ("paper", "owt", "caffe")
#: resnet-256, mobilenet-dw-down, mobilenet-pw-in, inception-5x5
QUICK_CASES = (9, 17, 20, 22)
QUICK_SECTIONS = ("step", "forward", "layers", "blocks", "geometries", "first", "calls")
QUICK_CONTENDERS = ("convkit", "torch", "torch-channels-last", "onnxruntime")


# ---------------------------------------------------------------------------------------------------
# Command line. Nothing heavy is imported before the number of threads is set.
# ---------------------------------------------------------------------------------------------------
class Parser(argparse.ArgumentParser):
    """Bad input gets one line."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{Path(self.prog).name}: {message}\n")


def _list(what: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {what} {name!r}; known: {', '.join(known)}")
        if not names:
            raise argparse.ArgumentTypeError(f"no {what} given; known: {', '.join(known)}")
        return list(dict.fromkeys(names))

    return parse


def _number(least: float, kind: type = int) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            word = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {word} of at least {least:g}, not {text!r}")
        return value

    return parse


def _batches(text: str) -> list[int]:
    return [_number(1)(part) for part in text.split(",")]


def parser() -> Parser:
    p = Parser("cpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sections", type=_list("section", SECTIONS), metavar="A,B", help="only these")
    p.add_argument("--contenders", type=_list("contender", CONTENDERS), metavar="A,B",
                   help=f"of {', '.join(CONTENDERS)}; by default all but torch-compile")  # fmt: skip
    p.add_argument("--preset", type=_list("preset", PRESETS), metavar="A,B",
                   help="of step, forward, memory, calls: paper, owt, caffe")  # fmt: skip
    p.add_argument("--batch", type=_batches, metavar="N,M", help="images, instead of each section's own")
    p.add_argument("--rounds", type=_number(1), help="turns of each contender (default 9; quick 3)")
    p.add_argument("--budget", type=_number(0, float), metavar="SECONDS",
                   help="of a contender in a row; a slow one gets fewer rounds (40; quick 2)")  # fmt: skip
    p.add_argument(
        "--pause", type=_number(0, float), metavar="SECONDS", help="before each turn (default 0.05)"
    )
    p.add_argument(
        "--threads", type=_number(1), help="of every contender (default: the CPUs of this process)"
    )
    p.add_argument("--compile", action="store_true", help="torch.compile takes part in step and forward too")
    p.add_argument("--quick", action="store_true", help="small batches, few rounds, no JAX: a minute")
    p.add_argument("--save", action="store_true", help="write bench/results/cpu-<model>-<date>.json and .png")
    p.add_argument("--json", type=Path, metavar="PATH", help="write the JSON here")
    p.add_argument(
        "--picture", type=Path, metavar="PATH", help="write the picture here (PNG; needs matplotlib)"
    )
    return p


def prepare(threads: int | None) -> int:
    """Give every pool the same number of threads, before a peer is imported; returns it.

    Whether idle threads spin is left to each library: told to sleep at once (OMP_WAIT_POLICY=passive),
    PyTorch might be slower itself. The pauses between turns are longer than they spin.
    """
    from convkit.bench.command import use_threads

    affinity = getattr(os, "sched_getaffinity", None)
    count = threads or len(affinity(0) if affinity else range(os.cpu_count() or 1))
    use_threads(count)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return count


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    threads = prepare(args.threads)
    sys.path.insert(0, str(HERE))
    for path in (args.json, args.picture):
        if path is not None and not path.parent.is_dir():
            p.error(f"there is no folder {path.parent} to write {path.name} into")
    if args.picture and args.picture.suffix.lower() != ".png":
        p.error(f"a picture is a PNG: {args.picture} must end in .png")
    names = args.contenders or list(QUICK_CONTENDERS if args.quick else CONTENDERS)
    if not args.contenders and not args.compile:
        names = [name for name in names if name != "torch-compile"]
    elif args.compile and "torch-compile" not in names:
        names.append("torch-compile")
    if "convkit" not in names:
        names.insert(0, "convkit")
    bench = Bench(args, threads, names)
    interrupted = False
    try:
        bench.run(args.sections or list(QUICK_SECTIONS if args.quick else SECTIONS))
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted: what was measured so far", file=sys.stderr)
    bench.report(interrupted)
    return 130 if interrupted else 0


class Bench:
    """The sections, and what they have measured so far."""

    def __init__(self, args: argparse.Namespace, threads: int, names: list[str]) -> None:
        import cpu_measure as measure
        import cpu_peers as peers
        import cpu_report as report

        self.m, self.p, self.r = measure, peers, report
        self.args, self.threads, quick = args, threads, args.quick
        self.contenders, self.missing = peers.make(names, threads)
        self.names = names
        self.rows: list[Any] = []
        self.calls: dict[str, Any] = {}
        self.settings = measure.Settings(
            rounds=args.rounds or (3 if quick else 9),
            budget=args.budget if args.budget is not None else (2.0 if quick else 40.0),
            pause=args.pause if args.pause is not None else 0.05,
            turn=0.02 if quick else 0.1, threads=threads, progress=self.say, order=random.Random(0),
            probe_seconds=0.02 if quick else 0.03,
        )  # fmt: skip
        self._params: dict[str, dict[str, Any]] = {}
        self._exact: tuple[Any, Any] = (None, None)
        self._planned: tuple[Any, Any] = (None, None)
        self.started = time.time()

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{time.time() - self.started:6.0f} s  {text}", file=sys.stderr, flush=True)

    def run(self, sections: list[str]) -> None:
        print(self.title(), flush=True)
        for name in sections:
            before = len(self.rows)
            try:
                self.roofline() if name == "calls" else getattr(self, name)()
            finally:
                if rows := [r for r in self.rows[before:] if r.samples or r.refused]:
                    print(f"\n== {name}\n{self.r.section_table(rows)}", flush=True)
                    more = self.r.against_each(rows) if name == "geometries" else []
                    for line in (*more, *self.r.refusals(rows)):
                        print(line, flush=True)
                if name == "calls" and self.calls:
                    self.print_calls()
            self._forget()

    def title(self) -> str:
        info = self.r.machine(self.threads)
        parts = [f"{self.m.LABELS[n]} {c.version}" for n, c in self.contenders.items()]
        lines = [
            f"{info['cpu']}, {self.threads} threads, convkit for {info['isa']}",
            f"against each other: {', '.join(parts)}",
        ]
        lines += [f"missing: {self.m.LABELS[n]}: {why}" for n, why in self.missing.items()]
        return "\n".join(lines)

    # -- sections -------------------------------------------------------------------------------------
    def batches(self, own: tuple[int, ...], quick: tuple[int, ...]) -> list[int]:
        return self.args.batch or list(quick if self.args.quick else own)

    def presets(self, own: tuple[str, ...]) -> list[str]:
        return self.args.preset or list(own[:1] if self.args.quick else own)

    def step(self) -> None:
        for preset in self.presets(("paper", "owt")):
            for batch in self.batches((1, 16, 128), (1,)):
                self._network(f"step/{preset}/N={batch}", preset, batch, True)

    def forward(self) -> None:
        for preset in self.presets(("paper",)):
            for batch in self.batches((1, 16, 128), (1,)):
                self._network(f"forward/{preset}/N={batch}", preset, batch, False)

    def layers(self) -> None:
        spec = self.p.describe("paper")
        for batch in self.batches((16,), (2,)):
            shape = spec["input"]
            for layer in spec["layers"]:
                if layer["op"] == "conv":
                    top, bottom, left, right = layer["pad"]
                    H, pad = shape[1], top
                    if (top, left) != (bottom, right):  # padded beforehand: most peers have no such padding
                        H, pad = shape[1] + top + bottom, 0
                    K, C, R, _ = spec["parameters"][f"{layer['name']}.w"]
                    case = self.p.ConvCase(
                        layer["name"], batch, C * layer["groups"], H, K, R, layer["stride"], pad, 1,
                        layer["groups"],
                    )  # fmt: skip
                    if not (self.args.quick and layer["name"] in ("conv1", "conv4", "conv5")):
                        self._layer(case, batch)
                shape = layer["output"]

    def blocks(self) -> None:
        spec = self.p.describe("paper")
        by_name = {layer["name"]: layer for layer in spec["layers"]}
        for batch in self.batches((16,), (2,)):
            for i in (1,) if self.args.quick else (1, 2):
                self._norm_pool(by_name[f"norm{i}"], by_name[f"pool{i}"], batch)
            for names in (("fc6",), ("fc7",), ("fc8",), ("fc6", "fc7", "fc8")):
                if not self.args.quick or len(names) == 3:
                    self._dense(spec, names, batch)

    def geometries(self) -> None:
        from dataclasses import replace

        cases = geometry_cases(self.p.ConvCase)
        settings = replace(
            self.settings, turn=min(self.settings.turn, 0.05), pause=min(self.settings.pause, 0.04)
        )
        wanted = [
            n for n in ("convkit", "torch", "torch-channels-last", "onnxruntime") if n in self.contenders
        ]
        for case in [cases[i] for i in QUICK_CASES] if self.args.quick else cases:
            self.say(f"geometries/{case.label}: preparing")
            data = self.p.ConvData.of(case)
            found = {name: self._works(self.contenders[name].conv, data) for name in wanted}
            for direction in ("fwd", "dgrad", "wgrad"):
                row = self._row(f"geometries/{case.label}/{direction}", case.problem.flops(""))
                row.notes["problem"] = str(case.problem)
                entries = []
                for name, works in found.items():
                    own = name if name != "convkit" else "convkit-op"
                    entries += self._entries(row, own, works, direction, data.expected[direction])
                self.m.measure(row, entries, settings)

    def memory(self) -> None:
        trainers = [n for n in self.contenders if n not in ("onnxruntime", "torch-compile")]
        for preset in self.presets(("paper",)):
            for batch in self.batches((128,), (16,)):
                row = self._row(f"memory/{preset}/N={batch}")
                row.unit = "GB"
                for name in trainers:
                    self.say(f"{row.name}: {self.m.LABELS[name]}, in a process of its own")
                    task = {"kind": "memory", "contender": name, "preset": preset, "batch": batch}
                    answer = self._child(row, name, task)
                    if answer:
                        row.samples[name] = [[answer["peak"] / 1e9]]
                        row.notes[name] = answer

    def first(self) -> None:
        ops = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "lrn_fprop", "maxpool2d_fprop", "linear_fprop")
        ops = ops[:1] if self.args.quick else ops
        repeats = 1 if self.args.quick else 5
        for op in ops:
            row = self._row(f"first/{op}")
            row.notes["what"] = "first call after the import less a later call, N = 1"
            contenders = [n for n in ("convkit", "torch") if n in self.contenders]
            for number in range(repeats):
                self.say(f"{row.name}: process {number + 1} of {repeats}")
                for name in contenders:
                    time.sleep(self.settings.pause)
                    answer = self._child(row, name, {"kind": "first", "contender": name, "op": op})
                    if answer:
                        extra = max(answer["first"] - answer["later"], 1e-3)
                        row.samples.setdefault(name, []).append([extra])
                        row.notes.setdefault(f"{name}_later_ms", []).append(answer["later"])

    def calls_section(self, preset: str, batch: int) -> None:
        """Each call of a planned step on its own, caches emptied before it."""
        m, settings = self.m, self.settings
        plan = self._plan(preset, batch)[1]
        calls = [*plan.forward, *plan.loss, *plan.backward, *plan.update]
        flush = m.Flush()
        samples: list[list[float]] = [[] for _ in calls]
        probes: dict[str, list[float]] = {m.FMA: [], m.COPY: [], "read": [], "update": []}
        rounds = min(settings.rounds, 7)
        for number in range(rounds):
            self.say(f"calls/{preset}/N={batch}: round {number + 1} of {rounds}")
            for name in (m.FMA, m.COPY):
                probes[name].append(m._probe(name, settings))
            for name, rate in m.memory_rates(self.threads).items():
                probes[name].append(rate)
            for row, call in zip(samples, calls):
                flush()
                row.append(m._timed(call.run) * 1e3)
        rates = {"copy": max(probes[m.COPY]), "read": max(probes["read"]), "update": max(probes["update"])}
        peak = max(probes[m.FMA])
        points = [point(call, row, peak, max(rates.values())) for call, row in zip(calls, samples)]
        self.calls = {
            "preset": preset, "batch": batch, "peak_gflops": peak, "rates_gbs": rates, "probes": probes,
            "points": points,
        }  # fmt: skip

    def roofline(self) -> None:
        self.calls_section(self.presets(("paper",))[0], self.batches((128,), (2,))[-1])

    def print_calls(self) -> None:
        calls = self.calls
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in calls["rates_gbs"].items())
        print(f"\n== calls, {calls['preset']}, N = {calls['batch']}; ceilings {calls['peak_gflops']:.0f} "
              f"GFLOP/s, {rates} GB/s\n{self.r.calls_table(calls['points'])}")  # fmt: skip
        rejected = [p for p in calls["points"] if p["rejected"]]
        for p in rejected:
            print(f"rejected: {p['layer']} {p['op']} is above its ceiling ({p['share']:.0%}): not drawn")

    # -- what the sections share ----------------------------------------------------------------------
    def _row(self, name: str, flops: int = 0) -> Any:
        row = self.m.Row(name, flops=flops)
        self.rows.append(row)
        return row

    def _works(self, make: Callable[[Any], Any], data: Any) -> Any:
        """What a contender offers, or the reason that it offers nothing."""
        try:
            return make(data)
        except Exception as problem:  # a peer without this convolution must not end the others' race
            return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]

    def _entries(self, row: Any, name: str, works: Any, direction: str, expected: Any) -> list[Any]:
        if isinstance(works, str):
            row.refused[name] = works
            return []
        if direction not in works:
            return []
        run, value = works[direction]
        return [self.m.Entry(name, run, lambda: self.p.worst_rms(value(run()), expected))]

    def _ops(self) -> dict[str, Any]:
        """The contenders of single ops: compiling one op is PyTorch's own op again."""
        return {n: c for n, c in self.contenders.items() if n != "torch-compile"}

    def params(self, preset: str) -> dict[str, Any]:
        """The weights that every contender starts from."""
        import numpy as np

        import convkit as ck

        if preset not in self._params:
            self._params.clear()
            self._params[preset] = {n: np.array(w) for n, w in ck.AlexNet(preset, seed=0).params.items()}
        return self._params[preset]

    def images(self, preset: str, batch: int) -> tuple[Any, Any]:
        import numpy as np

        rng = np.random.default_rng(batch)
        spec = self.p.describe(preset)
        x = rng.standard_normal((batch, *spec["input"]), np.float32) * (1 if preset == "owt" else 50)
        return x, rng.integers(0, 1000, batch)

    def _reference(self, preset: str, batch: int) -> tuple[Any, Any, Any]:
        """Logits, their gradient, and every parameter's gradient, in float64, of the first images."""
        import numpy as np

        import convkit as ck

        key = preset, batch
        if self._exact[0] != key:
            self._exact = (None, None)
            self.say(f"{preset}, N = {batch}: the reference in float64")
            net = ck.AlexNet(preset, seed=0, dtype="float64")
            x = self.images(preset, batch)[0].astype(np.float64)
            dlogits = np.random.default_rng(9).standard_normal((batch, 1000)).astype(np.float32) / batch
            logits = net.forward(x)
            net.backward(dlogits.astype(np.float64))
            grads = {name: g.astype(np.float32) for name, g in net.grads.items()}
            self._exact = key, (logits, dlogits, grads)
        return self._exact[1]

    def _network(self, name: str, preset: str, batch: int, train: bool) -> None:
        spec, params = self.p.describe(preset), self.params(preset)
        x, labels = self.images(preset, batch)
        row, entries = self._row(name), []
        for contender, peer in self.contenders.items():
            if train and contender == "onnxruntime":
                continue
            self.say(f"{name}: {self.m.LABELS[contender]}, building")
            try:
                net = peer.network(spec, params)
                net.load(x, labels)
            except Exception as problem:
                row.refused[contender] = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
                continue
            error = self._network_error(net, preset, x, batch, train)
            # Gradients are compared where a ReLU may flip between two float32 implementations.
            limit = 1e-2 if train else 1e-3
            entries.append(self.m.Entry(contender, net.step if train else net.forward, error, limit))
            del net
        self.m.measure(row, entries, self.settings)
        del entries
        gc.collect()

    def _network_error(self, net: Any, preset: str, x: Any, batch: int, train: bool) -> Callable[[], float]:
        import numpy as np

        def error() -> float:
            part = min(batch, 16)
            few = self.images(preset, part)[0]
            logits, dlogits, grads = self._reference(preset, part)
            if batch != part:  # the same images, in a batch of the timed size
                whole = np.concatenate([few, x[part:]])
                worst = self.p.rms(net.logits(whole)[:part], logits)
            else:
                worst = self.p.rms(net.logits(few), logits)
            if not train or not worst <= 1e-3:
                return worst if worst <= 1e-3 else math.inf
            found = net.gradients(few, dlogits)
            worst = max(worst, *(self.p.rms(found[n], g) for n, g in grads.items()))
            del found
            before = np.array(_host(net.params["fc8.w"]))
            loss = net.step()
            if not math.isfinite(loss) or np.array_equal(before, _host(net.params["fc8.w"])):
                return math.inf  # a step that does not learn is no step
            return worst

        return error

    def _plan(self, preset: str, batch: int) -> tuple[Any, Any]:
        """A network that has made a step, so that every buffer holds real values, and its plan."""
        import convkit as ck

        key = preset, batch
        if self._planned[0] != key:
            self._planned = (None, None)
            self.say(f"{preset}, N = {batch}: planning")
            net = ck.AlexNet(preset, seed=0)
            x, labels = self.images(preset, batch)
            net.step(x, labels, lr=self.p.LR)
            self._planned = key, (net, net.load_step(x, labels, lr=self.p.LR))
        return self._planned[1]

    def _planned_entry(self, preset: str, batch: int, choose: Callable[[Any], list[Any]]) -> list[Any]:
        """An entry for some calls of a plan, checked call by call against float64."""
        from convkit.bench.profile import run_and_compare

        net, plan = self._plan(preset, batch)
        calls = choose(plan)
        if not calls:
            return []

        def error() -> float:
            try:
                return max(run_and_compare(call) for call in calls)
            except Exception:  # a fused call may have no reference of its own: then the whole network's
                wrapped = self.p.ConvkitNet.__new__(self.p.ConvkitNet)
                wrapped.net, wrapped.params = type(net)(preset, seed=0), {}
                part = min(batch, 16)
                few = self.images(preset, part)[0]
                logits, dlogits, grads = self._reference(preset, part)
                worst = self.p.rms(wrapped.logits(few), logits)
                found = wrapped.gradients(few, dlogits)
                return max(worst, max(self.p.rms(found[n], g) for n, g in grads.items()) / 10)

        def run() -> None:
            for call in calls:
                call.run()

        return [self.m.Entry("convkit", run, error)]

    def _layer(self, case: Any, batch: int) -> None:
        self.say(f"layers/{case.label}/N={batch}: preparing")
        data = self.p.ConvData.of(case)
        found = {name: self._works(peer.conv, data) for name, peer in self._ops().items()}
        for direction, word in (("fwd", "fprop"), ("dgrad", "dgrad"), ("wgrad", "wgrad")):
            row = self._row(f"layers/{case.label}/N={batch}/{direction}", case.problem.flops(""))

            def choose(plan: Any, word: str = word) -> list[Any]:
                calls = plan.forward if word == "fprop" else [*plan.backward, *_input_gradient(plan)]
                return [
                    c
                    for c in calls
                    if case.label in parts(c) and word in c.op.name and c.op.name.startswith("conv")
                ]

            entries = self._planned_entry("paper", batch, choose)
            for name, works in found.items():
                own = name if name != "convkit" else "convkit-op"
                entries += self._entries(row, own, works, direction, data.expected[direction])
            self.m.measure(row, entries, self.settings)

    def _norm_pool(self, lrn: dict[str, Any], pool: dict[str, Any], batch: int) -> None:
        self.say(f"blocks/{lrn['name']}+{pool['name']}/N={batch}: preparing")
        data = self.p.NormPoolData.of(lrn, pool, batch)
        found = {name: self._works(peer.norm_pool, data) for name, peer in self._ops().items()}
        wanted = {lrn["name"], pool["name"]}
        for direction in ("fwd", "both"):
            row = self._row(f"blocks/{lrn['name']}+{pool['name']}/N={batch}/{direction}")

            def choose(plan: Any, both: bool = direction == "both") -> list[Any]:
                calls = [*plan.forward, *plan.backward] if both else plan.forward
                return [c for c in calls if parts(c) & wanted and not any("conv" in p for p in parts(c))]

            entries = self._planned_entry("paper", batch, choose)
            for name, works in found.items():
                own = name if name != "convkit" else "convkit-op"
                entries += self._entries(row, own, works, direction, data.expected[direction])
            self.m.measure(row, entries, self.settings)

    def _dense(self, spec: dict[str, Any], names: tuple[str, ...], batch: int) -> None:
        label = names[0] if len(names) == 1 else f"{names[0]}-{names[-1][2:]}"
        row = self._row(f"blocks/{label}/N={batch}/step")
        self.say(f"{row.name}: preparing")
        data = self.p.DenseData.of(spec, names, batch)

        def choose(plan: Any) -> list[Any]:
            return [c for c in (*plan.forward, *plan.backward, *plan.update) if parts(c) & set(names)]

        entries = self._planned_entry("paper", batch, choose)
        for name, peer in self._ops().items():
            if name == "onnxruntime":
                continue
            works = self._works(peer.dense, data)
            own = name if name != "convkit" else "convkit-op"
            if isinstance(works, str):
                row.refused[own] = works
            else:
                entries.append(self.m.Entry(own, works[0], works[1]))
        self.m.measure(row, entries, self.settings)

    def _forget(self) -> None:
        """Free what only the last section needed."""
        self._planned = (None, None)
        gc.collect()

    def _child(self, row: Any, name: str, task: dict[str, Any]) -> dict[str, Any] | None:
        command = [sys.executable, str(HERE / "cpu_child.py"), str(self.threads), json.dumps(task)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            row.refused[name] = "its process took longer than 15 minutes"
            return None
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            words = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            row.refused[name] = words[:200]
            return None
        return json.loads(lines[-1])

    # -- the end --------------------------------------------------------------------------------------
    def report(self, interrupted: bool) -> None:
        """Goals, files."""
        from convkit.bench import run

        rows = [row for row in self.rows if any(row.samples.values()) or row.refused]
        found = self.m.evaluate(rows)
        print(f"\n== goals\n{self.r.goals_table(found, all_of_them=not self.args.quick)}")
        for line in self.r.warnings(rows):
            print(line)
        info = self.r.machine(self.threads)
        s = self.settings
        environment = run.environment()
        settings = {
            "rounds": s.rounds, "budget": s.budget, "pause": s.pause, "turn": s.turn, "threads": self.threads,
            "quick": self.args.quick, "environment": environment, "contenders": self.names,
            "seconds": round(time.time() - self.started),
        }  # fmt: skip
        document = self.r.document(info, settings, self.missing, rows, self.calls, interrupted)
        path, picture = self.args.json, self.args.picture
        if self.args.save:
            path = path or self.r.default_path(info, RESULTS)
            picture = picture or path.with_suffix(".png")
        if path:
            self.r.write_json(path, document)
            print(f"written: {path}")
        if picture:
            print(self.r.picture(picture, document))


# ---------------------------------------------------------------------------------------------------
# Calls of a plan
# ---------------------------------------------------------------------------------------------------
def parts(call: Any) -> set[str]:
    """The layers that a call belongs to: "conv1+relu1" to two, "fc6.w" to fc6."""
    return {part.partition(".")[0] for part in call.layer.split("+")}


def _input_gradient(plan: Any) -> list[Any]:
    found = getattr(plan, "input_gradient", None)
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _host(array: Any) -> Any:
    """A parameter of any contender as a NumPy array."""
    import numpy as np

    return np.asarray(array.detach() if hasattr(array, "detach") else array)


def point(call: Any, samples: list[float], peak: float, rate: float) -> dict[str, Any]:
    """A call in the roofline: declared FLOPs and bytes, the measured time, the share of its ceiling."""
    from statistics import median

    op = call.op.name
    flops = call.problem.flops(op)
    try:
        present = [n for n, a in zip(call.op.inputs, call.inputs, strict=True) if a is not None]
        moved = call.problem.bytes(*present, *call.op.outputs)
    except (AttributeError, KeyError, TypeError, ValueError):
        moved = sum(a.nbytes for a in (*call.inputs, *call.outputs) if a is not None)
    ms, name = median(samples), call.implementation.name
    winograd = "winograd" in name
    words = {"conv2d": "convolution", "linear": "fully connected", "lrn": "LRN", "maxpool": "pooling"}
    kind = next((k for word, k in words.items() if word in op), "other")
    if op.startswith("sgd") and call.layer.startswith("fc"):
        kind = "fully connected"
    if op.endswith("bgrad"):
        kind = "other"
    gflops, gbs = flops / ms / 1e6, moved / ms / 1e6
    share = max(gflops / peak, gbs / rate)
    beyond = (gbs / rate if winograd else share) > 1.1
    return {
        "layer": call.layer, "op": op, "implementation": name, "kind": kind, "winograd": winograd,
        "flops": flops, "bytes": moved, "ms": ms, "gflops": gflops, "gbs": gbs,
        "intensity": flops / max(1, moved), "share": share, "rejected": beyond, "samples_ms": samples,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Other geometries
# ---------------------------------------------------------------------------------------------------
def geometry_cases(case: Any) -> list[Any]:
    """Thirty convolutions of other networks, and odd ones: label, N, C, H, K, R, then options."""
    return [
        case("vgg-1.1", 4, 3, 224, 64, 3, pad=1),
        case("vgg-1.2", 2, 64, 224, 64, 3, pad=1),
        case("vgg-2.2", 2, 128, 112, 128, 3, pad=1),
        case("vgg-3.2", 4, 256, 56, 256, 3, pad=1),
        case("vgg-4.2", 4, 512, 28, 512, 3, pad=1),
        case("vgg-5.2", 8, 512, 14, 512, 3, pad=1),
        case("resnet-stem", 8, 3, 224, 64, 7, stride=2, pad=3),
        case("resnet-64", 8, 64, 56, 64, 3, pad=1),
        case("resnet-128", 8, 128, 28, 128, 3, pad=1),
        case("resnet-256", 8, 256, 14, 256, 3, pad=1),
        case("resnet-512", 16, 512, 7, 512, 3, pad=1),
        case("resnet-down", 8, 128, 56, 128, 3, stride=2, pad=1),
        case("resnet-1x1-in", 8, 256, 56, 64, 1),
        case("resnet-1x1-out", 8, 64, 56, 256, 1),
        case("resnet-1x1-down", 8, 256, 56, 512, 1, stride=2),
        case("resnext-32", 4, 256, 28, 256, 3, pad=1, groups=32),
        case("mobilenet-dw", 8, 144, 56, 144, 3, pad=1, groups=144),
        case("mobilenet-dw-down", 8, 144, 56, 144, 3, stride=2, pad=1, groups=144),
        case("mobilenet-dw5", 8, 240, 28, 240, 5, pad=2, groups=240),
        case("mobilenet-pw-out", 8, 144, 56, 24, 1),
        case("mobilenet-pw-in", 8, 96, 14, 576, 1),
        case("inception-1x7", 8, 128, 17, 192, 1, pad=3, S=7),
        case("inception-5x5", 8, 32, 28, 96, 5, pad=2),
        case("unet-valid", 2, 64, 130, 64, 3),
        case("dilated-2", 4, 128, 33, 128, 3, pad=2, dilation=2),
        case("dilated-4", 4, 128, 33, 128, 3, pad=4, dilation=4),
        case("odd-channels", 4, 37, 45, 53, 3, pad=1),
        case("odd-image", 3, 64, 31, 48, 3, pad=1, W=97),
        case("odd-stride-3", 4, 48, 50, 80, 5, stride=3, pad=1),
        case("single-image", 1, 256, 13, 384, 3, pad=1),
    ]


if __name__ == "__main__":
    sys.exit(main())
