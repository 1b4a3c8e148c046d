"""CuPy's RawKernel and ElementwiseKernel on the stand-in for CuPy: their source runs under the emulator.

What they are given is what CuPy would be given. They show that the source is right, and that a function calls
them rightly; not that CuPy behaves as it is written to here.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import fake_cupy
import numpy as np

from convkit.cuda.emulate import Emulator
from convkit.cuda.launch import Argument

EMULATOR = Emulator()
C_TYPES = {"float32": "float", "float64": "double", "int32": "int", "int64": "long long"}


def install(cupy: types.ModuleType) -> None:
    """Put the two into a stand-in for CuPy."""
    cupy.RawKernel, cupy.ElementwiseKernel = RawKernel, ElementwiseKernel


def launch(source: str, name: str, grid: tuple, block: tuple, args: tuple, outputs: int) -> None:
    """Run a kernel of which any array may be written to; the last `outputs` are said to be."""
    parameters, values = [], []
    arrays = [i for i, value in enumerate(args) if isinstance(value, fake_cupy.ndarray)]
    for i, value in enumerate(args):
        assert not isinstance(value, np.ndarray), f"argument {i} of {name} is host memory"
        output = i in arrays[len(arrays) - outputs :]
        parameters.append(Argument(f"argument {i}", None, output=output, reads=output))
        values.append(value.use(write=output) if i in arrays else value)
    three = [(*extent, 1, 1)[:3] for extent in (grid, block)]
    function(source, name).bind(*three, 0, tuple(parameters))(EMULATOR.pack(values))


@functools.lru_cache(maxsize=16)
def function(source: str, name: str) -> Any:
    return EMULATOR.function(source, name, include=(), name=name)


class RawKernel:
    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        self.code, self.name = code, name

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        assert type(grid) is type(block) is tuple and not shared_mem
        launch(self.code, self.name, grid, block, args, outputs=len(args))


class ElementwiseKernel:
    def __init__(self, in_params: str, out_params: str, operation: str, name: str = "kernel") -> None:
        self.inputs, self.outputs = (
            [part.split() for part in params.split(",")] for params in (in_params, out_params)
        )
        self.operation, self.name = operation, name

    def __call__(self, *args: Any) -> None:
        assert len(args) == len(self.inputs) + len(self.outputs)
        assert len({(a.shape, str(a.dtype)) for a in args}) == 1
        named = [*self.inputs, *self.outputs]
        takes = [
            f"{'const ' if i < len(self.inputs) else ''}{kind}* p_{name}"
            for i, (kind, name) in enumerate(named)
        ]
        body = [f"const {kind} {name} = p_{name}[i];" for kind, name in self.inputs]
        body += [f"{kind} {name};" for kind, name in self.outputs]
        body += [f"{self.operation};", *(f"p_{name}[i] = {name};" for _, name in self.outputs)]
        source = "\n".join([
            f"typedef {C_TYPES[str(args[0].dtype)]} T;",
            f'extern "C" __global__ void {self.name}({", ".join(takes)}, long long size) {{',
            "const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;",
            "if (i >= size) return;", *body, "}",
        ])  # fmt: skip
        size = args[0].size
        if size:
            every = (*args, np.int64(size))
            launch(source, self.name, (-(-size // 128),), (128,), every, outputs=len(self.outputs))
