"""What tests of the tuner share: a ReLU that is tuned, candidates for it, races without a clock."""

from __future__ import annotations

import contextlib
import json

import numpy as np

import convkit as ck
from convkit import registry, tuned
from convkit.bench import work
from convkit.bench.measure.entry import Result
from convkit.ops.elementwise import Elementwise
from convkit.tune import candidates, jobs
from convkit.tune.gpus import H200
from convkit.tuned import Store

THOUSAND = Elementwise((1000,))


@contextlib.contextmanager
def apart():
    """No choices to begin with, and a registry of its own."""
    ck.implementations()
    before = dict(registry._IMPLEMENTATIONS)
    with tuned.using(Store()):
        yield
        registry._IMPLEMENTATIONS.clear()
        registry._IMPLEMENTATIONS.update(before)
        registry.changed()


def kernel(tmp_path, header, body="", problem=THOUSAND, gpu=H200, wrong=""):
    """Register a ReLU kernel with a header of the test's, above all others; gives its candidates."""
    path = tmp_path / "relu_fprop_mine.cu"
    lines = ['op = "relu_fprop"', "rank = 1000", *header.strip().splitlines()]
    head = "\n".join(["// /// kernel", *(f"// {line.strip()}" for line in lines), "// ///"])
    code = (
        f'{body}\nextern "C" __global__ void relu_fprop_mine('
        "GEOMETRY(Elementwise), const float* x, float* y) {\n"
        "  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;\n"
        f"  if (i >= g.size) return;\n  y[i] = x[i] < 0 ? 0 : x[i];\n  {wrong}\n}}\n"
    )
    path.write_text(f"{head}\n{code}")
    registry._IMPLEMENTATIONS.pop(("relu_fprop", "cuda", "mine", "NCHW"), None)
    ck.register(path)
    found = candidates.of_job(relu(problem, "cuda"), gpu)
    return {c.name: c for c in found if c.name.startswith("mine")}


def header(tile, tune, grid="8", block="64", **more):
    """The lines of a header."""
    lines = [f"{name} = {json.dumps(text)}" for name, text in more.items()]
    tables = (", ".join(f"{k} = {v}" for k, v in table.items()) for table in (tile, tune))
    named = [f"{name} = {{ {table} }}" for name, table in zip(("tile", "tune"), tables)]
    return "\n".join([*named, *lines, f'grid = ["{grid}"]', f'block = ["{block}"]'])


def relu(problem=THOUSAND, device="cpu"):
    item = work.Item("relu", "relu_fprop", problem, layer="relu1")
    (job,) = jobs.of_items([item], device)
    return job


def plant(name, rank=-1000, wrong=False):
    """An implementation of ReLU for the CPU."""

    @ck.implements("relu_fprop", name=name, rank=rank)
    def function(problem, x, y):
        np.maximum(x, 0.5 if wrong else 0, out=y)
        y[np.isnan(x)] = np.nan


def racing(times, seen=None, wrong=()):
    """A race in which an entry takes what `times` says: a figure, or a function of the round."""

    def race(item, entries, clock, settings, say):
        result = Result(item)
        if seen is not None:
            seen.append([e.name for e in entries])
        for entry in entries:
            if entry.name in wrong:
                result.refused[entry.name] = "y is wrong"
                continue
            ms = times[entry.name]
            result.samples[entry.name] = [[ms(n) if callable(ms) else ms] for n in range(settings.rounds)]
        return result

    return race


class Best:
    """By name: one takes 1 ms, the others 2."""

    def __init__(self, best):
        self.best = best

    def __getitem__(self, name):
        return 1.0 if name.startswith(self.best) else 2.0
