"""cuDNN's graph API through nvidia-cudnn-frontend: each plan that the heuristics propose for a convolution.

A convolution, with bias and ReLU where they are asked for, is one graph. Its plans are those of the
heuristics' modes A, B and FALLBACK, in that order, without repetitions; their index is their rank. Each is
built by its own index (what `build_plan_policy.ALL` does in one go, but so each refusal keeps its reason).

Which plans use tensor cores, or are not deterministic, is a numerical note of their engine. The frontend
filters by notes but does not tell them, so `notes` asks a second graph: with a limit of -1 bytes no plan can
be built, and what refuses it first, the note or the limit, says whether it has the note.

Written to the documentation. cudnn-frontend 1.32 with cuDNN 9.28 listed and built these plans, with their
notes, for a GPU that was described to it, beside a driver library that does nothing: engines compiled
when they run were not among them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ....ops.conv2d import Conv2d
from .engine import ARGUMENTS, Engine
from .library import CudnnError, NotSupported, Unavailable, dotted, version_of

DATA_TYPES = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "HALF", "bfloat16": "BFLOAT16"}
MODES = ("A", "B", "FALLBACK")
#: Numerical notes that are asked for.
NOTES = (
    "NONDETERMINISTIC", "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT",
    "WINOGRAD",
)  # fmt: skip
#: A frontend's own words when a plan is left out because of a note.
_DESELECTED = "eselect"


class Frontend:
    """The frontend, with a handle of its own on the current GPU.

    Parameters
    ----------
    properties : str, optional
        JSON that describes a GPU (cuDNN's "device properties"): plans are listed and built for it where there
        is none, and cannot be run.

    Raises
    ------
    Unavailable
        Where it is not installed, finds no libcudnn, or there is no GPU.
    """

    def __init__(self, properties: str | None = None) -> None:
        try:
            self.module: Any = importlib.import_module("cudnn")
        except ImportError as error:
            raise Unavailable(
                f"the graph API needs nvidia-cudnn-frontend ({error}): "
                "pip install 'convkit[cudnn]', or without the packages that it brings along: "
                "pip install --no-deps nvidia-cudnn-frontend"
            ) from None
        except Exception as error:
            raise Unavailable(f"nvidia-cudnn-frontend cannot be imported: {_line(error)}") from error
        self._stream: int | None = None
        self.handle: Any = None
        self.properties: Any = None
        try:
            self.version = str(getattr(self.module, "__version__", "unknown"))
            self.backend = version_of(int(self.module.backend_version()))
        except Exception as error:
            raise Unavailable(f"nvidia-cudnn-frontend is no use here: {_line(error)}") from error
        try:
            if properties is None:
                self.handle = self.module.create_handle()
            else:
                self.properties = self.module.create_device_properties(properties)
        except Exception as error:
            what = (
                "needs a GPU with a driver"
                if properties is None
                else "does not take that description of a GPU"
            )
            raise Unavailable(f"{self} {what}: {_line(error)}") from error

    def __str__(self) -> str:
        return f"cudnn-frontend {self.version} with cuDNN {dotted(self.backend)}"

    def use(self, stream: int) -> None:
        """Let what follows run on a stream."""
        if stream != self._stream:
            self.module.set_stream(handle=self.handle, stream=stream)
            self._stream = stream

    def close(self) -> None:
        """Destroy the handle; plans that use it cannot be run any more."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self.module.destroy_handle(handle)


def engines(
    frontend: Frontend, problem: Conv2d, op: str, math: str | None, layout: str, bias: bool, relu: bool
) -> list[Engine]:
    """Every plan for an op in a layout; those that cannot run have their reason in `refused`."""
    inputs, outputs = ARGUMENTS[op]
    if op == "conv2d_fprop" and bias:
        inputs += ("b",)

    def refused(reason: str) -> list[Engine]:
        return [Engine(f"graph:{op}", "graph", layout, inputs, outputs, refused=reason)]

    if problem.empty:
        return refused("cuDNN takes no empty batch")

    def planned() -> Graph:
        return Graph(frontend, problem, op, layout, bias, relu)

    try:
        graph = planned()
    except Exception as error:  # the frontend raises what it likes
        return refused(_line(error))
    return _Plans(frontend, graph, notes(planned), problem, math).engines(inputs, outputs)


class Graph:
    """One graph with its list of plans, and its tensors by name."""

    def __init__(self, frontend: Frontend, g: Conv2d, op: str, layout: str, bias: bool, relu: bool) -> None:
        module = self.module = frontend.module
        self.g, self.op, self.layout = g, op, layout
        self.type = getattr(module.data_type, DATA_TYPES[g.dtype])
        wide = module.data_type.DOUBLE if g.dtype == "float64" else module.data_type.FLOAT
        where = {"handle": frontend.handle} if frontend.properties is None else {
            "device_property": frontend.properties
        }  # fmt: skip
        self.graph = module.pygraph(
            name=op, io_data_type=self.type, intermediate_data_type=wide, compute_data_type=wide, **where
        )
        self.tensors: dict[str, Any] = {}
        self._build(bias, relu)
        self.graph.validate()
        self.graph.build_operation_graph()
        self.graph.create_execution_plans([getattr(module.heur_mode, mode) for mode in MODES])

    def _build(self, bias: bool, relu: bool) -> None:
        g, graph = self.g, self.graph
        geometry = {
            "pre_padding": [g.pad_top, g.pad_left], "post_padding": [g.pad_bottom, g.pad_right],
            "stride": [g.stride_h, g.stride_w], "dilation": [g.dilation_h, g.dilation_w],
        }  # fmt: skip
        if self.op == "conv2d_fprop":
            out = graph.conv_fprop(image=self._input("x"), weight=self._input("w"), **geometry)
            if bias:
                out = graph.bias(input=out, bias=self._input("b", (1, g.K, 1, 1)))
            if relu:
                out = graph.relu(input=out)
        elif self.op == "conv2d_wgrad":
            out = graph.conv_wgrad(image=self._input("x"), loss=self._input("dy"), **geometry)
        else:
            out = graph.conv_dgrad(loss=self._input("dy"), filter=self._input("w"), **geometry)
            if self.op == "conv2d_dgrad_relu":
                # Where the image is smaller than strides allow, dx's size cannot be told from dy's.
                out.set_dim(list(g.shape("dx"))).set_stride(strides(g.shape("dx"), self.layout))
                out = graph.relu_backward(loss=out, input=self._input("x"))
        name = ARGUMENTS[self.op][1][0]
        shape = g.shape(name)
        out.set_output(True).set_data_type(self.type)
        out.set_dim(list(shape)).set_stride(strides(shape, self.layout))
        self.tensors[name] = out

    def _input(self, name: str, shape: Sequence[int] | None = None) -> Any:
        extents = tuple(shape or self.g.shape(name))
        self.tensors[name] = self.graph.tensor(
            name=name, dim=list(extents), stride=strides(extents, self.layout), data_type=self.type
        )
        return self.tensors[name]

    def names(self) -> dict[int, str]:
        """The plans' names by index, without repetitions: two modes may propose the same."""
        found: dict[str, int] = {}
        for index in range(self.graph.get_execution_plan_count()):
            found.setdefault(str(self.graph.get_plan_name_at_index(index)), index)
        return {index: name for name, index in found.items()}


class _Plans:
    """The plans of a graph as engines."""

    def __init__(
        self, frontend: Frontend, graph: Graph, noted: Mapping[int, frozenset[str]] | None, g: Conv2d,
        math: str | None,
    ) -> None:  # fmt: skip
        self.frontend, self.graph, self.noted, self.g, self.math = frontend, graph, noted, g, math

    def engines(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> list[Engine]:
        found, rank = [], 0
        for index, name in self.graph.names().items():
            noted = None if self.noted is None else self.noted.get(index, frozenset())
            engine = Engine(
                f"graph:{readable(name)}", "graph", self.graph.layout, inputs, outputs,
                declared_deterministic=None if noted is None else "NONDETERMINISTIC" not in noted,
                facts={"plan": name, "numerical_notes": None if noted is None else sorted(noted)},
            )  # fmt: skip
            engine.refused = forbidden(self.g.dtype, self.math, noted or frozenset())
            engine.asked = not engine.refused
            if engine.asked:
                # Ranked among those that were asked for: so a framework picks that has no TF32 allowed.
                engine.heuristic_rank, rank = rank, rank + 1
                self._build(engine, index)
            found.append(engine)
        return found

    def _build(self, engine: Engine, index: int) -> None:
        graph = self.graph.graph
        try:
            graph.build_plan_at_index(index)
            engine.workspace_bytes = int(graph.get_workspace_size_plan_at_index(index))
        except Exception as error:
            engine.refused = _line(error)
            return
        try:
            behaviour = graph.get_behavior_notes_for_plan_at_index(index)
            engine.facts["behaviour_notes"] = [str(note).rpartition(".")[2] for note in behaviour]
        except Exception:
            engine.facts["behaviour_notes"] = None
        if self.frontend.properties is not None:
            engine.refused = "planned for a GPU that was described: it cannot be run"
            return
        engine.launch = self._launch(engine.name, engine.inputs + engine.outputs, index)

    def _launch(self, name: str, names: tuple[str, ...], index: int) -> Callable[..., None]:
        tensors = [self.graph.tensors[n] for n in names]
        graph, frontend = self.graph.graph, self.frontend

        def launch(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
            if frontend.handle is None:
                raise CudnnError(name, -1, "its session was closed")
            frontend.use(stream)
            pack = dict(zip(tensors, (*read, *write)))
            try:
                graph.execute_plan_at_index(pack, workspace, index, handle=frontend.handle)
            except Exception as error:
                kind = NotSupported if "NOT_SUPPORTED" in str(error) else CudnnError
                raise kind(name, -1, "failed", _line(error)) from error

        return launch


def notes(planned: Callable[[], Graph]) -> dict[int, frozenset[str]] | None:
    """The numerical notes of each plan, by index; None where the frontend cannot be asked."""
    found: dict[int, set[str]] = {}
    try:
        for name in NOTES:
            probe = planned()
            note = getattr(probe.module.numerical_note, name, None)
            if note is None:
                continue
            probe.graph.deselect_workspace_greater_than(-1)
            probe.graph.deselect_numeric_notes([note])
            for index in range(probe.graph.get_execution_plan_count()):
                has = found.setdefault(index, set())
                try:
                    probe.graph.build_plan_at_index(index)
                except Exception as error:
                    if _DESELECTED in str(error):
                        has.add(name)
    except Exception:  # a frontend without these filters
        return None
    return {index: frozenset(has) for index, has in found.items()}


def forbidden(dtype: str, math: str | None, noted: frozenset[str]) -> str:
    """Why a plan with these notes is not what was asked for, or an empty string."""
    if dtype != "float32":
        return ""
    wanted = math or "fp32"
    if "DOWN_CONVERT_INPUTS" in noted:
        return f"rounds its inputs to a smaller type, and {wanted} was asked for"
    if "TENSOR_CORE" in noted and wanted != "tf32":
        return f"uses tensor cores, which round float32 to TF32, and {wanted} was asked for"
    return ""


def strides(shape: Sequence[int], layout: str) -> list[int]:
    """Strides in elements of a tensor of four extents, which stay in the order N, C, H, W."""
    _, c, h, w = shape
    return [c * h * w, h * w, w, 1] if layout == "NCHW" else [c * h * w, 1, w * c, c]


def readable(name: str) -> str:
    """ "eng62_k2=6_k13=0" as "eng62{k2=6,k13=0}"."""
    engine, _, knobs = name.partition("_")
    return f"{engine}{{{knobs.replace('_', ',')}}}" if "=" in knobs else name


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
