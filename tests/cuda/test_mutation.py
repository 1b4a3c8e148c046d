"""Every barrier of every shipped kernel is needed: taken out, the emulator's check mode reports it.

One in the loop of a tree becomes several where the loop is unrolled: each of them in turn, too.
A header's barrier that a kernel makes no use of leaves no trace in that kernel's machine code.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import need

import convkit as ck
from convkit import check
from convkit.check.attempt import FIRST, attempt
from convkit.check.cases import cases as of_the_gate
from convkit.cuda import nvrtc
from convkit.cuda.header import builtin_files, read
from convkit.cuda.prepare import implementation
from convkit.cuda.source import translation_unit
from convkit.op import Problem
from convkit.ops.conv2d import Conv2d
from convkit.ops.linear import Linear
from convkit.ops.reorder import Reorder

pytestmark = pytest.mark.slow

KERNELS = builtin_files()
FOLDER = KERNELS[0].parent
BARRIER = re.compile(r"^(\s*)(__syncthreads\(\)|__syncwarp\([^)]*\)|cp_async_wait<[^>]*>\(\));", re.M)


def included(path: Path) -> list[Path]:
    """The file, and every header of convkit's that it includes, at any depth."""
    found, todo = [path], [path]
    while todo:
        for name in re.findall(r'^#include "(\w+\.cuh)"', todo.pop().read_text(), re.M):
            header = FOLDER / name
            if header not in found:
                found.append(header)
                todo.append(header)
    return [f for f in found if f.name not in ("convkit.cuh", "ptx.cuh")]


MUTANTS = [
    (kernel, file, match.start())
    for kernel in KERNELS
    for file in included(kernel)
    for match in BARRIER.finditer(file.read_text())
]


#: Problems in which a kernel on tensor cores goes a way that random ones seldom have: elements that it copies
#: asynchronously. By a part of its stem, the first that fits. Of one slice; the last step stands in the ring
#: where the result will.
COPIED: dict[str, Problem] = {
    "tap_rows": Conv2d.of((2, 2, 30, 30), (16, 2, 3, 3), padding=1),
    "conv2d_wgrad": Conv2d.of((2, 8, 30, 30), (16, 8, 3, 3), padding=1),
    "conv2d": Conv2d.of((1, 48, 12, 12), (40, 48, 3, 1), padding=(1, 0)),
    "linear": Linear(136, 264, 136),
}


def line(file: Path, at: int) -> int:
    return file.read_text()[:at].count("\n") + 1


def cases(kernel: Path) -> list:
    """Small problems, of which the largest have more than one step along the reduction."""
    implemented = implementation(kernel)
    random = [case.of(implemented.dtypes[0]) for case in check.random_cases(implemented.op, 40, 3)]
    # Few random geometries suit a kernel of few options: then the gate's own do.
    own = [case.of(implemented.dtypes[0]) for case in of_the_gate(implemented.op) if not case.heavy]
    fitting, more = (
        [case for case in some if implemented.refusal(case.problem, implemented.math) is None]
        for some in (random, own)
    )
    fitting += more if len(fitting) < 4 else []
    fitting.sort(key=lambda c: -c.problem.reduction(implemented.op) * c.problem.flops(implemented.op))
    if kernel.stem.endswith(("_mma", "_tf32")):
        problem = next(problem for part, problem in COPIED.items() if part in kernel.stem)
        fitting[:0] = [
            replace(random[0], problem=problem, name="copied asynchronously").of(implemented.dtypes[0])
        ]
    if implemented.op == "reorder":  # by tiles, and with either side the short one
        problems = Reorder(2, 67, 9, 15), Reorder(3, 3, 37, 41), Reorder(2, 131, 3, 3)
        fitting[:0] = [
            replace(random[0], problem=p, name="reorder").of(implemented.dtypes[0]) for p in problems
        ]
    return fitting[:4]


def asked(kernel: Path, cases: list) -> list[check.Question]:
    return [check.Question.of(case, implementation(kernel).dtypes[0]) for case in cases]


def faults(kernel: Path, questions: list) -> list[str]:
    implemented = implementation(kernel)
    with ck.emulate(check=True, timeout=120):
        return [attempt(implemented, question, FIRST).fault for question in questions]


def machine_code(path: Path) -> bytes:
    need("cuda.core")
    kernel = read(path)
    unit = translation_unit(kernel, cases(path)[0].of(kernel.header.dtypes[0]).problem)
    return nvrtc.compile_cubin(unit, "sm_90a", include=(path.parent,)).code


@pytest.mark.parametrize(
    ("kernel", "file", "at"), MUTANTS, ids=[f"{k.stem}-{f.name}-{line(f, at)}" for k, f, at in MUTANTS]
)
def test_a_barrier_taken_out_is_reported(kernel, file, at, compiler, tmp_path):
    for path in FOLDER.glob("*.cu*"):
        shutil.copy(path, tmp_path)
    text = file.read_text()
    mutated = text[:at] + BARRIER.sub(r"\1;", text[at:], count=1)
    assert mutated != text
    questions = asked(kernel, cases(kernel))
    (tmp_path / file.name).write_text(mutated)
    found = faults(tmp_path / kernel.name, questions)
    if not any(word in f for f in found for word in ("race", "uninitialised", "in flight")):
        assert file != kernel and machine_code(kernel) == machine_code(tmp_path / kernel.name), found


#: A tree through shared memory: a loop that halves, and a barrier in it.
TREE = re.compile(
    r"for \(int (?P<name>\w+) = (?P<first>\w+) / 2; (?P=name) > 0; (?P=name) /= 2\) \{[^}]*?"
    r"(?P<barrier>__syncthreads\(\);)"
)


def steps() -> list[tuple[Path, re.Match, int]]:
    found = []
    for kernel in KERNELS:
        for tree in TREE.finditer(kernel.read_text()):
            step = read(kernel).header.tile[tree["first"]] // 2
            while step:
                found.append((kernel, tree, step))
                step //= 2
    return found


@pytest.mark.parametrize(("kernel", "tree", "step"), steps(), ids=lambda v: getattr(v, "stem", None))
def test_a_barrier_taken_out_of_one_step_of_a_tree_is_reported(kernel, tree, step, compiler, tmp_path):
    for path in FOLDER.glob("*.cu*"):
        shutil.copy(path, tmp_path)
    text, at = kernel.read_text(), tree.start("barrier")
    (tmp_path / kernel.name).write_text(f"{text[:at]}if ({tree['name']} != {step}) {text[at:]}")
    questions = asked(kernel, cases(kernel))
    found = faults(tmp_path / kernel.name, questions)
    assert any("race" in f or "uninitialised" in f for f in found), found


def test_there_is_a_tree_with_steps():
    assert len(steps()) >= 3


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.stem)
def test_check_mode_finds_nothing_in_what_ships(kernel, compiler):
    questions = asked(kernel, cases(kernel))
    edges = [c for c in check.cases(implementation(kernel).op) if not c.heavy and c.fill == "normal"]
    edges = [case.of(implementation(kernel).dtypes[0]) for case in edges if not case.problem.empty]
    fitting = [
        case
        for case in edges
        if implementation(kernel).refusal(case.problem, implementation(kernel).math) is None
    ]
    questions += asked(kernel, fitting[:12])
    assert faults(kernel, questions) == [""] * len(questions)
