"""Options of the benchmarks, and the calls that they time: those of a planned training step."""

from __future__ import annotations

import numpy as np

import convkit as ck


def pytest_addoption(parser):
    group = parser.getgroup("convkit")
    group.addoption("--preset", default="paper", help="which AlexNet (paper, 2012, caffe, owt)")
    group.addoption("--batch", type=int, default=16, help="images in a batch")
    group.addoption("--reference", action="store_true", help="time the float64 reference too")


def pytest_generate_tests(metafunc):
    if "call" not in metafunc.fixturenames:
        return
    options = metafunc.config.option
    net = ck.AlexNet(options.preset)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.batch, *net.input_shape), np.float32) * 50
    net.step(x, rng.integers(0, 1000, options.batch))  # so that every buffer holds real values
    plan = net.plan(options.batch)
    rows, ids = [], []
    for call in (call for calls in plan.phases().values() for call in calls):
        layout = call.implementation.layout  # of the memory that the plan has bound
        for implementation in ck.implementations(call.op.name, device="cpu", layout=layout):
            if implementation.name == "reference" and not options.reference:
                continue
            if implementation.refusal(call.problem) is None:
                rows.append((call, implementation))
                ids.append(f"{call.layer}-{call.op.name}-{implementation.name}")
    metafunc.parametrize(("call", "implementation"), rows, ids=ids)
