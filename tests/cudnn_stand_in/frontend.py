"""Stands in for nvidia-cudnn-frontend: graphs, ranked plans, notes, filters, and execution on the host.

Make one with `module(...)` and put it into sys.modules as "cudnn". It plans what `Plan`s it is given and
computes with convkit, through the strides that it was told: a wrong stride gives wrong numbers.
"""

from __future__ import annotations

import ctypes
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import convkit as ck

DTYPES = {"FLOAT": np.float32, "DOUBLE": np.float64}


@dataclass
class Plan:
    """A plan that the heuristics propose; `fails` is why it cannot be built."""

    name: str
    workspace: int = 0
    notes: tuple[str, ...] = ()
    behaviour: tuple[str, ...] = ()
    fails: str = ""


@dataclass
class Tensor:
    name: str = ""
    dim: list[int] = field(default_factory=list)
    stride: list[int] = field(default_factory=list)
    data_type: Any = None
    output: bool = False

    def set_output(self, flag: bool) -> Tensor:
        self.output = flag
        return self

    def set_data_type(self, kind: Any) -> Tensor:
        self.data_type = kind
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = stride
        return self

    __hash__ = object.__hash__

    def view(self, address: int) -> np.ndarray:
        assert self.data_type in DTYPES and len(self.dim) == len(self.stride) == 4
        size = 1 + sum((d - 1) * s for d, s in zip(self.dim, self.stride))
        kind = np.ctypeslib.as_ctypes_type(DTYPES[self.data_type])
        flat = np.ctypeslib.as_array((kind * size).from_address(address))
        return np.lib.stride_tricks.as_strided(
            flat, self.dim, [s * flat.itemsize for s in self.stride], writeable=True
        )


class Graph:
    """pygraph."""

    def __init__(self, module: Any, **arguments: Any) -> None:
        self.module, self.arguments = module, arguments
        self.work: list[tuple[str, dict[str, Any]]] = []
        self.plans: list[Plan] = []
        self.limit, self.unwanted = 2**62, set()
        self.built: set[int] = set()
        module.graphs.append(self)

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: Any) -> Tensor:
        return Tensor(name, dim, stride, data_type)

    def _add(self, op: str, arguments: dict[str, Any]) -> Tensor:
        out = Tensor(f"out of {op}")
        self.work.append((op, {**arguments, "out": out}))
        return out

    def conv_fprop(self, **arguments: Any) -> Tensor:
        return self._add("conv_fprop", arguments)

    def conv_dgrad(self, **arguments: Any) -> Tensor:
        return self._add("conv_dgrad", arguments)

    def conv_wgrad(self, **arguments: Any) -> Tensor:
        return self._add("conv_wgrad", arguments)

    def bias(self, **arguments: Any) -> Tensor:
        return self._add("bias", arguments)

    def relu(self, **arguments: Any) -> Tensor:
        return self._add("relu", arguments)

    def relu_backward(self, **arguments: Any) -> Tensor:
        return self._add("relu_backward", arguments)

    def validate(self) -> None:
        assert self.work

    def build_operation_graph(self) -> None:
        if self.module.refuses_graphs:
            raise self.module.cudnnGraphNotSupportedError("this graph\n is not supported")

    def create_execution_plans(self, modes: list[str]) -> None:
        fused = any(op == "relu_backward" for op, _ in self.work)
        for mode in modes:
            self.plans += [] if fused else self.module.planned[mode]
        if not self.plans:
            raise self.module.cudnnGraphNotSupportedError("No valid engine configs")

    def get_execution_plan_count(self) -> int:
        return len(self.plans)

    def get_plan_name_at_index(self, index: int) -> str:
        return self.plans[index].name

    def build_plan_at_index(self, index: int) -> None:
        plan = self.plans[index]
        if self.unwanted & set(plan.notes):
            raise RuntimeError("Deselecting execution plan")
        if plan.workspace > self.limit:
            raise RuntimeError(f"Skipping plan since workspace violation. Requires {plan.workspace}")
        if plan.fails:
            raise self.module.cudnnGraphNotSupportedError(plan.fails)
        self.built.add(index)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        assert index in self.built
        return self.plans[index].workspace

    def get_behavior_notes_for_plan_at_index(self, index: int) -> list[str]:
        return [f"behavior_note.{name}" for name in self.plans[index].behaviour]

    def execute_plan_at_index(self, pack: dict[Tensor, int], workspace: int, index: int, handle: Any) -> None:
        assert index in self.built and handle is self.module.handle
        assert all(type(address) is int for address in pack.values())
        assert workspace or not self.plans[index].workspace
        self.module.executed.append(index)
        if self.module.breaks_when_run:
            raise RuntimeError("execute failed: CUDNN_STATUS_EXECUTION_FAILED")
        values = {id(t): t.view(address) for t, address in pack.items()}
        for op, a in self.work:
            out = COMPUTE[op](a, lambda t: values[id(t)])
            values.setdefault(id(a["out"]), out)[...] = out


class Filters:
    """What frontends that filter plans by notes have."""

    def deselect_workspace_greater_than(self, limit: int) -> None:
        self.limit = limit

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        self.unwanted |= set(notes)


def _geometry(a: dict[str, Any], image: Any, window: Any) -> dict[str, Any]:
    (top, left), (bottom, right) = a["pre_padding"], a["post_padding"]
    return {
        "stride": tuple(a["stride"]), "dilation": tuple(a["dilation"]),
        "padding": ((top, bottom), (left, right)), "groups": image.dim[1] // window.dim[1],
    }  # fmt: skip


def _dense(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array)


def _fprop(a: dict[str, Any], get: Any) -> np.ndarray:
    geometry = _geometry(a, a["image"], a["weight"])
    return ck.conv2d_fprop(_dense(get(a["image"])), _dense(get(a["weight"])), **geometry)


def _dgrad(a: dict[str, Any], get: Any) -> np.ndarray:
    geometry = _geometry(a, a["out"], a["filter"])
    return ck.conv2d_dgrad(_dense(get(a["loss"])), _dense(get(a["filter"])), tuple(a["out"].dim), **geometry)


def _wgrad(a: dict[str, Any], get: Any) -> np.ndarray:
    geometry = _geometry(a, a["image"], a["out"])
    return ck.conv2d_wgrad(_dense(get(a["image"])), _dense(get(a["loss"])), tuple(a["out"].dim), **geometry)


COMPUTE = {
    "conv_fprop": _fprop,
    "conv_dgrad": _dgrad,
    "conv_wgrad": _wgrad,
    "bias": lambda a, get: get(a["input"]) + get(a["bias"]),
    "relu": lambda a, get: np.maximum(get(a["input"]), 0),
    "relu_backward": lambda a, get: np.where(get(a["input"]) > 0, get(a["loss"]), 0),
}


def module(planned: dict[str, list[Plan]], *, gpu: bool = True, filters: bool = True) -> types.ModuleType:
    """A frontend that proposes these plans, by mode of the heuristics."""
    found = types.ModuleType("cudnn")

    class NotSupported(Exception):
        pass

    def create_handle() -> Any:
        if not gpu:
            raise RuntimeError("cudnnHandle Create failed\n cudaGetDeviceCount(&count) != cudaSuccess")
        return found.handle

    def set_stream(*, handle: Any, stream: int) -> None:
        assert handle is found.handle
        found.streams.append(stream)

    def destroy_handle(handle: Any) -> None:
        assert handle is found.handle
        found.destroyed += 1

    notes = ("NONDETERMINISTIC", "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "FFT", "WINOGRAD")
    graph = type("pygraph", (Filters, Graph) if filters else (Graph,), {})
    for name, value in {
        "__version__": "1.99", "backend_version": lambda: 92801, "handle": ctypes.c_int(), "streams": [],
        "destroyed": 0, "planned": planned, "graphs": [], "executed": [], "breaks_when_run": False,
        "refuses_graphs": False, "cudnnGraphNotSupportedError": NotSupported, "create_handle": create_handle,
        "set_stream": set_stream, "destroy_handle": destroy_handle,
        "create_device_properties": lambda text: text,
        "data_type": types.SimpleNamespace(FLOAT="FLOAT", DOUBLE="DOUBLE", HALF="HALF", BFLOAT16="BFLOAT16"),
        "heur_mode": types.SimpleNamespace(A="A", B="B", FALLBACK="FALLBACK"),
        "numerical_note": types.SimpleNamespace(**{n: n for n in notes}),
        "pygraph": lambda **arguments: graph(found, **arguments),
    }.items():  # fmt: skip
        setattr(found, name, value)
    return found
