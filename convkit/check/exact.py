r"""Cases in memory that is just as large as each tensor, for a tool that watches: a line of JSON for each.

    python -m convkit.check.exact \
        '{"files": [], "chosen": [["relu_fprop", "vectorized"]], "seed": 1, "only": ""}'

compute-sanitizer knows where an allocation ends, and which of its bytes have been written. Of CuPy's pool and
of the gate's canaries it knows nothing, so that both are left out here.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..arrays import np_dtype
from ..call import Call
from ..cuda import nvrtc
from ..cuda.emulate import emulate
from ..devices import gpu_found
from ..discovery import register
from ..op import OPS
from ..registry import Implementation, implementations
from .attempt import Question
from .cases import Case, all_cases
from .tolerance import compare


def small_cases(chosen: Iterable[Implementation], seed: int = 0) -> Iterator[tuple[Implementation, Any]]:
    """The gate's quick cases of these implementations, in each dtype, without empty tensors."""
    for i in chosen:
        for number, case in enumerate(all_cases(i.op, quick=True, seed=seed)):
            if case.unrun or case.heavy or case.problem.empty:
                continue
            for dtype in i.dtypes[:1] if number % 3 else i.dtypes:
                typed: Any = case.of(dtype)
                if i.refusal(typed.problem, i.math) is None:
                    yield i, typed


def run(implementation: Implementation, case: Case, seed: int = 0) -> str:
    """What is wrong with the results of a case; "" if nothing is."""
    problem: Any = case.problem
    op, question = OPS[case.op], Question.of(case, problem.dtype, seed)
    empty, put, get = _memory()
    given = tuple(None if a is None else put(a) for a in question.inputs.values())
    outputs = tuple(empty(problem.shape(n), np_dtype(problem.dtype_of(n))) for n in op.outputs)
    Call(op, implementation, problem, given, outputs, dict(case.options)).run()
    for name, array in zip(op.outputs, outputs, strict=True):
        found = compare(name, get(array), question.wanted[name], implementation, case.op)
        if found.reason:
            return found.reason
    return ""


def _memory() -> tuple[Any, Any, Any]:
    """Three functions: an empty array where kernels run, one with these values, and its values here."""
    if not gpu_found():
        return np.empty, np.array, lambda array: array
    import cupy

    cupy.cuda.set_allocator(None)  # cudaMalloc itself, not the pool
    return cupy.empty, cupy.asarray, lambda array: array.get()


def main(text: str) -> int:
    """Run the cases that are asked for; 1 if a result is wrong."""
    asked = json.loads(text)
    seed = asked["seed"]
    pool = [i for path in asked["files"] for i in register(path)]
    pool = pool or implementations(device="cuda", layout=None)
    chosen = [i for i in pool if [i.op, i.label] in asked["chosen"]]
    nvrtc.line_info = True
    wrong = ran = False
    with contextlib.nullcontext() if gpu_found() else emulate():
        for i, case in small_cases(chosen, seed):
            if asked["only"] not in str(case):
                continue
            name = f"{i.op} {i.label}, {case}, {case.problem.dtype}"
            print(json.dumps({"begins": name}), flush=True)
            try:
                fault = run(i, case, seed)
            except Exception as error:  # the tool ends a kernel that it finds at fault
                fault = f"{type(error).__name__}: {error}"
            wrong, ran = wrong or bool(fault), True
            print(json.dumps({"case": name, "fault": fault}), flush=True)
    if not ran:
        print(f"no case has {asked['only']!r} in its name")
    return int(wrong or not ran)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
