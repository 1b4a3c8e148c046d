"""Two stages of `bench/gpu.py`: AlexNet's layers, and its training step, beside cuDNN and PyTorch."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import gpu_samples
import numpy as np
from gpu_common import REHEARSED, SIZES, Record, clock, emulated, place, torch_here

import convkit as ck
from convkit import check
from convkit.arrays import np_dtype
from convkit.bench import work
from convkit.bench.measure import conditions, own, whole
from convkit.bench.measure.timing import in_turns
from convkit.bench.peers import Missing, need
from convkit.bench.peers import torch as torch_peer
from convkit.check import inputs as fill
from convkit.check import tolerance
from convkit.check.cases import Case
from convkit.op import OPS

# ---------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------
GRADES = (("float32", "fp32"), ("float32", "tf32"), ("bfloat16", "fp32"))
#: The best of each library by one call have all the samples.
FINALISTS = 3
#: cuDNN's algorithms that are tried: its heuristic's favourites.
TRIED = 8


@functools.lru_cache(maxsize=1)
def layer_items() -> dict[str, work.Item]:
    """What is measured, by key: convolutions first, in float32 first; last what takes the host longest."""
    found: list[work.Item] = []
    for dtype, math in GRADES:
        wanted = work.Wanted(
            preset="paper", batches=(SIZES.batch,), dtypes=(dtype,), math=math, convs=SIZES.convs,
            directions=("fwd", "dgrad", "wgrad", "bgrad"),
        )  # fmt: skip
        mine = [i for i in work.items(wanted) if "+" not in i.layer and i.op in gpu_samples.SAMPLED]
        found += [i for i in mine if math != "tf32" or i.op.startswith(("conv2d", "linear"))]
    first = [i for i in found if i.op.startswith("conv2d") and not i.op.endswith("bgrad")]
    last = [i for i in found if i.op == "maxpool2d_dgrad"]
    return {i.id: i for i in [*first, *(i for i in found if i not in last), *last]}


def layer(key: str) -> Record:
    """An op on a layer: convkit's picked kernel, cuDNN's algorithms, PyTorch in its layouts."""
    import cupy

    item = layer_items()[key]
    case = Case(item.op, item.problem, "layer", heavy=True, absent=item.absent)
    host = {name: a for name, a in fill.make(case, check.fresh_seed()).items() if a is not None}
    inputs = {name: cupy.asarray(a) for name, a in host.items()}
    outputs = {
        name: cupy.empty(item.problem.shape(name), np_dtype(item.problem.dtype_of(name)))
        for name in OPS[item.op].outputs
    }
    record: Record = {
        "ok": None, "op": item.op, "layer": item.layer, "dtype": item.dtype, "math": item.math,
        "flops": item.flops, "bytes": item.bytes, "missing": {}, "contenders": [],
    }  # fmt: skip
    field: list[tuple[Any, Record, Callable[[], None]]] = []
    with emulated():
        for library in (_own, _torches, _cudnn):
            try:
                mine = library(item)
            except Missing as reason:
                record["missing"][library.__name__.strip("_")] = str(reason)
                continue
            begun = []
            for entry in mine:
                about: Record = {"name": entry.name, "library": entry.library, **_facts(entry)}
                record["contenders"].append(about)
                try:
                    arrays = host if entry.library == "PyTorch" else inputs
                    run = entry.bind(arrays, outputs)
                    run()
                    about["first_ms"] = clock().time(run)
                except Exception as error:  # an algorithm that refuses, a library that breaks
                    about["refused"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                    if entry.library == own.OWN:
                        record |= {"ok": False, "error": about["refused"]}
                    continue
                begun.append((entry, about, run))
            begun.sort(key=lambda one: one[1]["first_ms"])
            field += begun[:FINALISTS]
        sample = gpu_samples.Sample(item, host) if field else None
        for entry, about, run in field:
            assert sample is not None
            _poison({**outputs, **(entry.memory() if entry.memory else {})})
            run()
            got = entry.read() if entry.read else {n: a.get() for n, a in outputs.items()}
            mine = entry.implementation
            about |= sample.verdict(got, mine.math if mine else item.math, own=mine is not None)
            if mine:
                record["ok"] = about["ok"] and record["ok"] is not False
        _in_turns(field)
    return record


def _facts(entry: Any) -> Record:
    facts = {k: v for k, v in entry.facts.items() if isinstance(v, (str, int, float, bool))}
    return {"layout": entry.layout, "facts": facts}


def _poison(outputs: dict[str, Any]) -> None:
    """NaN everywhere, by the bits: an element that is not written shows."""
    for array in outputs.values():
        array.view(np.uint8).fill(0xFF)


def _in_turns(field: list[tuple[Any, Record, Callable[[], None]]]) -> None:
    """Samples of everyone, in a random order in each round, with cold caches."""
    left = {id(about): SIZES.seconds * 1e3 for _, about, _ in field}
    order = random.Random()
    for _ in range(SIZES.samples):
        for _, about, run in in_turns(field, order):
            if left[id(about)] <= 0:
                continue
            clock().cold()
            ms = clock().time(run)
            about.setdefault("ms", []).append(ms)
            host_us = getattr(clock(), "host_us", None)
            if host_us is not None:
                about.setdefault("host_us", []).append(float(host_us))
            left[id(about)] -= ms + 0.1


def _own(item: work.Item) -> list[Any]:
    pick = own.picked(item, "cuda")[own.PICKED]
    if pick is None:
        raise Missing(f"convkit has no CUDA kernel for {item.op} in {item.dtype}, {item.math}")
    return [own.entry(pick, item, {})]


class _Box(torch_peer.Box):
    """PyTorch's side of an entry, which takes the host's arrays and puts them where it works."""

    def tensor(self, array: Any) -> Any:
        return super().tensor(array).to(self.device)


def _torches(item: work.Item) -> list[Any]:
    torch_here()
    torch_peer.Box = _Box  # type: ignore[misc]
    found = torch_peer.entries(item, place())
    if item.dtype == "bfloat16":
        found = [c for c in found if c.layout == "NHWC"] or found
    return found


def _cudnn(item: work.Item) -> list[Any]:
    from convkit.bench.peers.cudnn import peer

    if REHEARSED and item.dtype != "float32":
        raise Missing("its stand-in has float32 alone")
    engines = peer.entries_in(item, peer._session(), need("cupy"))
    usual = [e for e in engines if e.facts["api"] == "legacy" and e.layout in SIZES.layouts]

    def rank(entry: Any) -> int:
        found = entry.facts.get("heuristic_rank")
        return 99 if found is None else int(found)

    by_layout = [sorted((e for e in usual if e.layout == name), key=rank)[:TRIED] for name in SIZES.layouts]
    return list(itertools.chain(*by_layout))


# ---------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------
#: Steps of a sample.
TOGETHER = 4
#: Largest relative RMS error of logits.
LOGITS = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 5e-2, "fp16": 1e-2}
#: How a network of convkit's computes so. In 16 bits its parameters are float32; PyTorch's here are not.
OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {}, "tf32": {"math": "tf32"}, "bf16": {"dtype": "bfloat16"}, "fp16": {"dtype": "float16"},
}  # fmt: skip


def step_tasks() -> list[str]:
    grades = ("fp32", "tf32", "bf16")
    eager = [f"convkit/{grade}" for grade in grades]
    eager += ["torch/fp32", "torch/tf32", "torch channels_last/bf16"]
    compiled = [f"torch compiled/{grade}" for grade in grades] if SIZES.compiled else []
    # What is compiled takes half a minute each before its first step.
    return [f"{who}/N={batch}" for field in (eager, compiled) for batch in SIZES.batches for who in field]


def step(key: str) -> Record:
    """A training step, forward to update: its logits first, then its times.

    By the wall clock, from idle device to idle device over a few steps: a step asks for its loss, so that no
    event could stand for what a user waits for. Beside it what this thread's own work was of that.
    """
    import cupy

    who, grade, batch = key.split("/")
    N = int(batch.removeprefix("N="))
    wait = cupy.cuda.runtime.deviceSynchronize
    with emulated():
        net, to = _convkit_net(grade) if who == "convkit" else _torch_net(who, grade)
        x, labels = whole.images(SIZES.net, N)
        error = tolerance.relative_rms(np.asarray(net.logits(to(x[:2])), np.float64), _logits(N))
        right = bool(error <= LOGITS[grade])
        record: Record = {"ok": right if who == "convkit" else None, "right": right, "logits_error": error}
        record |= {"before": conditions.sample("cuda"), "ms": [], "host_ms": []}
        net.load(to(x), to(labels))
        record["first_loss"] = loss = net.step()
        stop = time.monotonic() + SIZES.step_seconds
        while len(record["ms"]) < SIZES.samples and time.monotonic() < stop:
            wait()
            began, own_time = time.perf_counter_ns(), time.thread_time_ns()
            for _ in range(TOGETHER):
                loss = net.step()
            wait()
            record["ms"].append((time.perf_counter_ns() - began) / 1e6 / TOGETHER)
            record["host_ms"].append((time.thread_time_ns() - own_time) / 1e6 / TOGETHER)
    return {**record, "together": TOGETHER, "loss": float(loss), "after": conditions.sample("cuda")}


@functools.lru_cache(maxsize=2)
def _logits(batch: int) -> np.ndarray:
    """In float64, of the first two images of a batch."""
    net = ck.AlexNet(SIZES.net, seed=0, dtype="float64")
    return np.asarray(net.forward(whole.images(SIZES.net, batch)[0][:2].astype(np.float64)))


def _convkit_net(grade: str) -> tuple[Any, Callable[[Any], Any]]:
    import cupy

    from convkit.bench.peers.networks import ConvkitNet

    class Net(ConvkitNet):
        def logits(self, x: Any) -> Any:
            return super().logits(x).get()

    return Net({"preset": SIZES.net}, "cuda", **OPTIONS[grade]), cupy.asarray


def _torch_net(who: str, grade: str) -> tuple[Any, Callable[[Any], Any]]:
    from convkit.bench.peers import networks, threads

    torch = torch_here()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = grade == "tf32"
    torch.backends.cudnn.benchmark = True
    kind = torch.bfloat16 if grade == "bf16" else torch.float32

    class Tools(networks.TorchTools):
        def tensor(self, array: np.ndarray, grad: bool = False) -> Any:
            t = super().tensor(array).to(place(), kind)
            return t.contiguous(
                memory_format=self.format if t.ndim == 4 else torch.contiguous_format
            ).requires_grad_(grad)

    class Net(networks.TorchNet):
        def logits(self, x: np.ndarray) -> Any:
            with torch.inference_mode():
                return self._apply(self.peer.tensor(x), False).float().cpu().numpy()

        def load(self, x: np.ndarray, labels: np.ndarray) -> None:
            self.x, self.labels = self.peer.tensor(x), torch.from_numpy(labels).to(place())

    layout = "channels_last" if "channels_last" in who or grade == "bf16" else "nchw"
    tools = Tools(threads(), layout, compiled="compiled" in who)
    params = {name: np.array(w) for name, w in _params().items()}
    return Net(tools, networks.describe(SIZES.net), params), lambda a: a


@functools.lru_cache(maxsize=1)
def _params() -> dict[str, np.ndarray]:
    return dict(ck.AlexNet(SIZES.net, seed=0).params)
