"""What a network consists of: layers, parameters, an update rule and plans. Passes are in `network`."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import arrays, registry
from ..arrays import Array
from ..checked import lacking
from ..cuda.graph import Staging
from ..errors import NotChecked, OptionError, ShapeError, unknown
from ..op import Shape
from ..ops import loss_scale
from ..options import flag, integer
from ..registry import MATH
from . import arguments
from .layers import Layer
from .parameters import Kept, Parameters, initial
from .plan import Plan
from .plan.fusion import ops_of
from .plan.graph import GOOD_STEPS, MIXED, SCALE, SCALED, lower
from .plan.program import Program
from .plan_cache import PLAN_MEMORY, Key, PlanCache, Setting
from .state import Record
from .update import Update


class Planned:
    """Layers in a row with their parameters, gradients and velocities, and the plans for them.

    `Network` says what its parameters and attributes are.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: Shape,
        num_classes: int,
        *,
        seed: int = 0,
        dtype: str = "float32",
        update: Update | None = None,
        math: str | None = None,
        device: str = "cpu",
        plan_memory: int = PLAN_MEMORY,
        graph: bool = True,
    ) -> None:
        arguments.require_device(device)
        if dtype not in arrays.DTYPES:
            raise unknown("dtype", dtype, arrays.DTYPES)
        if math is not None and math not in MATH:
            raise unknown("math", math, MATH)
        self.layers = arguments.named_layers(layers)
        self.input_shape = arguments.image_shape(input_shape)
        self.num_classes = integer("num_classes", num_classes, 1)
        self.seed = arguments.seed(seed)
        self.dtype, self.math, self.device = dtype, math, device
        self._param_dtype = MIXED.get(dtype, dtype)
        self._arrays: dict[str, Parameters] = {}  # what `Kept` reads
        self._arrays["params"] = Parameters("params", self._initial())
        self._arrays["grads"] = Parameters("grads", self._like_params())
        self._arrays["velocities"] = Parameters("velocities", self._like_params())
        self.dropout_offset = 0
        self._scale: dict[str, Array] = {}  # of float16: the loss scale, and the steps since it changed
        if dtype in SCALED:
            self._scale = {
                SCALE: arrays.empty((1,), "float32", device), GOOD_STEPS: arrays.zeros((1,), "int32", device)
            }  # fmt: skip
        self._names: dict[str, dict[str, str]] = {}  # by layer, implementations by op
        self._record = Record()
        self._plan_memory = integer("plan_memory", plan_memory, 0)
        self._forget_plans()
        if self._scale:
            self.loss_scale = loss_scale.INITIAL
        self.graph = graph
        self.update = Update() if update is None else update
        self.on_gradient = self.before_update = None

    #: The hooks; see `Network`.
    on_gradient: Callable[[str, Any], None] | None
    before_update: Callable[[Parameters, Any], bool | None] | None

    #: The choices for a layer that must have passed the gate: (layer, op).
    _checked: frozenset[tuple[str, str]] = frozenset()

    def _forget_plans(self) -> None:
        self._plans = PlanCache(self._plan_memory)
        self._last: tuple[Setting, Plan] | None = None  # of the last forward pass, for backward
        self._turn = threading.RLock()
        self._in_hook = False
        # Images, and labels, on their way from the host to a GPU; the plans share it.
        self._staged = Staging(), Staging()
        self._told: set[str] = set()  # why passes run call by call
        self._ruled: tuple[Update, float, dict[str, dict[str, Any]]] | None = None  # the last step's

    # -- attributes -----------------------------------------------------------------------------------
    params = Kept("The parameters by name.")
    grads = Kept("The gradients that the last backward pass made, by the parameters' names.")
    velocities = Kept("The momentum of each parameter.")

    @property
    def update(self) -> Update:
        """The update rule. What is set here holds from the next step on."""
        return self._update

    @update.setter
    def update(self, value: Update) -> None:
        if not isinstance(value, Update):
            raise OptionError(f"update must be a convkit.Update, not {value!r}")
        value.require(self.params)
        with self._turn:  # a step reads it more than once
            self._update = value

    @property
    def plan_memory(self) -> int:
        """Bytes of plans that are kept."""
        return self._plan_memory

    @plan_memory.setter
    def plan_memory(self, value: int) -> None:
        self._plan_memory = integer("plan_memory", value, 0)
        with self._turn:
            self._plans.limit = self._plan_memory

    @property
    def graph(self) -> bool:
        """Whether passes on a GPU may be CUDA graphs. What is set here holds from the next pass on."""
        return self._graph

    @graph.setter
    def graph(self, value: bool) -> None:
        self._graph = flag("graph", value)

    @property
    def loss_scale(self) -> float:
        """Factor of the gradient of the loss in the next step, in float16; else it is 1.

        A step in which a gradient is not finite halves it, 2000 good steps in a row double it. It can be set.
        On a GPU, reading it waits for the steps that are queued.
        """
        return self.scaling[0]

    @loss_scale.setter
    def loss_scale(self, value: float) -> None:
        if not self._scale:
            raise OptionError(f"only a network in float16 scales its loss; this one is {self.dtype}")
        self.scaling = loss_scale.checked_scale(value), 0

    @property
    def scaling(self) -> tuple[float, int]:
        """The loss scale, and the good steps in a row at it; (1, 0) where the loss is not scaled."""
        if not self._scale:
            return 1.0, 0
        scale, steps = np.empty(1, np.float32), np.empty(1, np.int32)
        with self._turn:
            arrays.assign(scale, self._scale[SCALE])
            arrays.assign(steps, self._scale[GOOD_STEPS])
        return float(scale[0]), int(steps[0])

    @scaling.setter
    def scaling(self, value: tuple[float, int]) -> None:
        for name, number in zip((SCALE, GOOD_STEPS), value) if self._scale else ():
            with self._turn, arrays.on(self._scale[name]):
                self._scale[name].fill(number)

    def __getstate__(self) -> dict[str, Any]:
        """All but the plans, which are bound to this network's own arrays."""
        own = ("_plans", "_last", "_turn", "_in_hook", "_staged", "_told", "_ruled")
        kept = {name: value for name, value in self.__dict__.items() if name not in own}
        record = replace(self._record, plan=None)
        return {**kept, "_record": record, "on_gradient": None, "before_update": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_plans()

    def __copy__(self) -> Any:
        """As `copy.deepcopy`: two networks with the same arrays would train each other."""
        return copy.deepcopy(self)

    def gpu_arrays(self) -> list[Array]:
        """What `operation` asks for: an array on the network's own GPU, or none."""
        return [] if self.device == "cpu" else list(self.params.values())[:1]

    def _initial(self) -> dict[str, Array]:
        """The parameters' first values, after a check that the layers fit together."""
        shape: Shape = (1, *self.input_shape)
        for layer in self.layers:
            layer.passes(shape, self.num_classes, self.dtype)
            shape = layer.output_shape(shape, self.num_classes)
        if shape != (1, self.num_classes):
            raise ShapeError(
                f"the last layer must make (N, {self.num_classes}), one value for each class, not "
                f"{('N', *shape[1:])}"
            )
        return initial(
            self.layers, self.input_shape, self.num_classes, self.seed, self._param_dtype,
            self.device,
        )  # fmt: skip

    def _like_params(self) -> dict[str, Array]:
        return {
            name: arrays.zeros(w.shape, self._param_dtype, self.device) for name, w in self.params.items()
        }

    def use(self, layer: str, *, checked: bool = False, **names: str | None) -> None:
        """Choose implementations by name for one layer; `convkit.use` does so for all layers.

        It holds from the next call on. It counts before `convkit.use`.

        Parameters
        ----------
        layer : str
            Name of a layer.
        checked : bool
            Whether these implementations must have passed the gate as they are now, in all cases, on the
            engine of the network. They are asked now, and again whenever they are planned.
        **names
            `op=name`, such as `conv2d_fprop="mine"`; None removes a choice. A name that does not fit the
            layer's problem is an error when the network is planned. A fused op (`linear_dgrad_wgrad_sgd`)
            runs where its implementation fits; elsewhere its parts run.

        Raises
        ------
        OptionError
            For a layer, op or implementation that is not known, and for an op that the layer does not use.
        NotChecked
            If `checked`, and one of them has not passed; the message has the command that checks it.

        Examples
        --------
        >>> net.use("conv2", conv2d_fprop="mine", conv2d_wgrad="mine")
        """
        known = [own.name for own in self.layers]
        if layer not in known:
            raise unknown("layer", layer, known)
        graph = lower(self.layers, (1, *self.input_shape), self.num_classes, self.dtype)
        ops = sorted(ops_of(graph, layer))
        for op, name in names.items():
            if op not in ops:
                raise unknown(f"op of {layer}", op, ops)
            if name is not None:
                found = sorted({i.name for i in registry.implementations(op, layout=None)})
                if name not in found:
                    raise unknown(f"implementation of {op}", name, found)
        if checked:
            registry.require_checked({op: name for op, name in names.items() if name is not None})
        with self._turn:
            chosen = {**self._names.get(layer, {}), **names}
            self._names[layer] = {op: name for op, name in chosen.items() if name is not None}
            self._checked -= {(layer, op) for op in names}
            if checked:
                self._checked |= {(layer, op) for op, name in names.items() if name is not None}
                self._plans = PlanCache(self._plan_memory)  # those that there are were not asked

    # -- plans ----------------------------------------------------------------------------------------
    def plan(self, batch: int) -> Plan:
        """The plan for a batch size, with the implementations that `convkit.use` has chosen here.

        Parameters
        ----------
        batch : int

        Returns
        -------
        Plan
            `print(plan)` shows each call with its implementation, layout, bytes and FLOPs.
        """
        batch = integer("batch", batch, 0)
        with self._turn:
            key = Key.here(batch, self._names, self.device)
            plan = self._plans.get(key, lambda: self._new_plan(batch))
            if not self._in_hook:
                plan.frozen = frozenset(name for name in self.params if self.update.is_frozen(name))
                plan.fused = self.on_gradient is None and self.before_update is None
                plan.graphs = self.graph
            return plan

    def _new_plan(self, batch: int) -> Plan:
        with arrays.queue(self.gpu_arrays()):
            program = Program(
                self.layers, (batch, *self.input_shape), self.num_classes, self.dtype, self.device,
                self.math, self._names,
            )  # fmt: skip
            plan = Plan(
                program, self.layers, self.params, self.grads, self.velocities, self.device,
                self._scale,
            )  # fmt: skip
        for call in plan.calls() if self._checked else ():
            layers = {part.partition(".")[0] for part in call.layer.split("+")}
            asked = any((layer, call.op.name) in self._checked for layer in layers)
            if asked and (reason := lacking(call.implementation, full=True)):
                raise NotChecked(reason)
        return plan
