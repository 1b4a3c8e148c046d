"""A network: layers in a row, their parameters, and a training step."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import arrays
from .devices import emulating
from .dispatch import operation
from .errors import DtypeError, OptionError, ShapeError, unknown
from .geometry import Shape, finite, integer
from .layers import Layer
from .plan import Plan
from .plan.program import Program
from .presets import Update
from .registry import MATH, current_choice

#: Plans that a network keeps; each holds the activations of its batch size.
MAX_PLANS = 2


def _require_device(device: str) -> None:
    """Refuse what is no device, and a GPU beyond those that are there."""
    if device == "cpu":
        return
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:[0-9]{1,4})?", device):
        raise OptionError(f"{unknown('device', device, ('cpu', 'cuda'))}; a GPU's number: cuda:1")
    if ":" in device:
        count = arrays.gpus()
        if int(device.removeprefix("cuda:")) >= count:
            seen = f"{count}, from cuda:0 to cuda:{count - 1}" if count else "no GPU"
            raise OptionError(f"there is no {device}: CuPy sees {seen}")


class Network:
    """Layers in a row, with their parameters, gradients and velocities.

    Several Python threads may use one network; they take turns. A copy, or a pickle, has its own parameters
    and makes its own plans.

    Parameters
    ----------
    layers : sequence of Layer
        Ends in a layer with `num_classes` outputs.
    input_shape : (C, H, W)
    num_classes : int
    seed : int
        Of the initialisation and of dropout: the same seed gives the same run, bit for bit.
    dtype : {"float32", "float64", "float16", "bfloat16"}
        Storage of parameters and activations.
    update : Update
        The update rule and its rates.
    math : {"fp32", "tf32", "fp32-emulated"}, optional
        As in `convkit.conv2d_fprop`.
    device : {"cpu", "cuda", "cuda:1", ...}
        Where parameters and activations live; on a GPU they are CuPy arrays. "cuda" is CuPy's current one.

    Attributes
    ----------
    params, grads, velocities : dict of str to ndarray
        "conv1.w", "conv1.b", ... Write into the arrays (`net.params["fc8.b"][...] = 0`), never replace one.
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
    ) -> None:
        _require_device(device)
        if dtype not in arrays.DTYPES:
            raise unknown("dtype", dtype, arrays.DTYPES)
        if math is not None and math not in MATH:
            raise unknown("math", math, MATH)
        self.layers = tuple(layers)
        self.input_shape = tuple(input_shape)
        self.num_classes = integer("num_classes", num_classes, 1)
        self.seed = integer("seed", seed, 0)
        self.dtype, self.math, self.device = dtype, math, device
        self.update = update or Update()
        if self.seed >= 2**64:
            raise OptionError(f"seed must be below 2^64, not {self.seed}")
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise OptionError(f"every layer needs a name of its own; more than once: {', '.join(twice)}")
        self.params: dict[str, np.ndarray] = {}
        self._initialise()
        self.grads = {name: self._zeros(w.shape) for name, w in self.params.items()}
        self.velocities = {name: self._zeros(w.shape) for name, w in self.params.items()}
        self.dropout_offset = 0
        self._forget_plans()

    def _forget_plans(self) -> None:
        self._plans: dict[Any, Plan] = {}
        self._last: tuple[Any, Plan] | None = None  # of the last forward pass, for backward
        self._turn = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """All but the plans, which are bound to this network's own arrays."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_plans", "_last", "_turn")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_plans()

    def gpu_arrays(self) -> list[Any]:
        """What `operation` asks for: an array on the network's own GPU, or none."""
        return [] if self.device == "cpu" else list(self.params.values())[:1]

    def _zeros(self, shape: Shape) -> np.ndarray:
        return arrays.zeros(shape, self.dtype, self.device)

    def _initialise(self) -> None:
        """Each parameter has a random stream of its own: adding a layer leaves the others as they were."""
        shape: Shape = (1, *self.input_shape)
        for index, layer in enumerate(self.layers):
            parameters = layer.parameters(shape, self.num_classes)
            fan_in = int(np.prod(parameters["w"][0][1:])) if "w" in parameters else 1
            for which, (name, (w_shape, init)) in enumerate(parameters.items()):
                stream = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index, which)))
                array = arrays.empty(w_shape, self.dtype, self.device)
                arrays.assign(array, init.fill(stream, w_shape, fan_in))
                self.params[f"{layer.name}.{name}"] = array
            shape = layer.output_shape(shape, self.num_classes)
        if shape != (1, self.num_classes):
            raise ShapeError(
                f"the last layer must make (N, {self.num_classes}), one value for each class, not "
                f"{('N', *shape[1:])}"
            )

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
        key = (batch, *self._setting())
        if key not in self._plans:
            while len(self._plans) >= MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            with arrays.queue(self.gpu_arrays()):
                program = Program(
                    self.layers, (batch, *self.input_shape), self.num_classes, self.dtype, self.device,
                    self.math,
                )  # fmt: skip
                u = self.update
                rules = {
                    name: {
                        "lr": u.lr, "momentum": u.momentum,
                        "weight_decay": u.weight_decay if name.endswith("w") else u.bias_decay,
                        "dampening": 0.0, "nesterov": False, "lr_in_velocity": u.lr_in_velocity,
                    }
                    for name in self.params
                }  # fmt: skip
                self._plans[key] = Plan(
                    program, self.layers, self.params, self.grads, self.velocities, rules, self.device
                )
        return self._plans[key]

    @staticmethod
    def _setting() -> tuple[Any, ...]:
        """What a plan depends on besides the batch."""
        return current_choice(), emulating()

    @operation
    def forward(self, x: Any, *, training: bool = False) -> Any:
        """Run the network on a batch of images.

        Parameters
        ----------
        x : array, (N, C, H, W)
            Of the network's dtype.
        training : bool
            Whether dropout drops.

        Returns
        -------
        logits : array, (N, num_classes)
            A new array of the kind of x.
        """
        with self._turn:
            plan, kind = self._load(x)
            self._begin(plan, training)
            plan.run(plan.forward)
            self._last = self._setting(), plan
            return kind.wrap(plan.logits.copy())

    @operation
    def backward(self, dlogits: Any) -> Any:
        """Gradients of everything, after `forward`: fills `grads`.

        It runs the plan of that forward pass, and so must see the same `convkit.use`.

        Parameters
        ----------
        dlogits : array, (N, num_classes)

        Returns
        -------
        dx : array, (N, C, H, W)
            Gradient of the images, a new array of the kind of dlogits.
        """
        with self._turn:
            if self._last is None:
                raise OptionError("forward comes first, and nothing between it and backward")
            setting, plan = self._last
            if setting != self._setting():
                raise OptionError("forward ran under another `use` or `emulate`: put both calls inside")
            kind = arrays.kind_of("dlogits", dlogits)
            arrays.assign(plan.dlogits, self._checked("dlogits", dlogits, plan.dlogits.shape))
            plan.run(plan.backward)
            plan.run(plan.input_gradient)
            return kind.wrap(plan.dx.copy())

    @operation
    def step(self, x: Any, labels: Any, *, lr: float | None = None) -> float:
        """One step of training: forward, loss, backward, update. Allocates next to nothing.

        `grads` are `backward`'s: a step that updates weights as it makes their gradient does not keep it.

        Parameters
        ----------
        x : array, (N, C, H, W)
        labels : array of integers, (N,)
        lr : float, optional
            Learning rate of the weights; the preset's by default. Biases follow as `update` says.

        Returns
        -------
        loss : float
            Mean cross-entropy of the batch before the update, in nats.
        """
        with self._turn:
            plan = self.load_step(x, labels, lr=lr)
            for calls in plan.phases().values():
                plan.run(calls)
            return float(plan.losses.mean(dtype=np.float64))

    def load_step(self, x: Any, labels: Any, *, lr: float | None = None) -> Plan:
        """Everything of `step` but the running: check the arguments, and load a plan with them.

        Returns
        -------
        plan : Plan
            Its `phases`, run in their order, are the step.
        """
        rate = self.update.lr if lr is None else finite("lr", lr, 0)
        values = self._labels(labels)
        plan, _ = self._load(x)
        N = plan.x.shape[0]
        if N == 0:
            raise ShapeError("a step needs at least one image")
        if values.shape != (N,):
            raise ShapeError(f"labels must have shape {(N,)}, as x has {N} images, not {values.shape}")
        arrays.assign(plan.labels, values)
        self._begin(plan, training=True)
        self._set_rate(plan, rate)
        return plan

    def _set_rate(self, plan: Plan, lr: float) -> None:
        """Give a plan's update the learning rate of each parameter."""
        first = next(iter(self.params)).partition(".")[0]
        for name, call in plan.rated:
            layer, _, kind = name.partition(".")
            rate = lr
            if kind == "b":
                rate = lr * self.update.bias_lr_multiplier
                if self.update.bias_lr_fixed is not None and layer != first:
                    rate = self.update.bias_lr_fixed
            call.options["lr"] = rate

    def _begin(self, plan: Plan, training: bool) -> None:
        """Point the plan's dropouts at counters that no step has used."""
        self._last = None  # until a forward pass has succeeded
        end = plan.set_dropout(training, self.seed, self.dropout_offset)
        if training:
            self.dropout_offset = end

    def _labels(self, labels: Any) -> np.ndarray:
        arrays.kind_of("labels", labels)
        values = arrays.view("labels", labels)
        if values.dtype.kind not in "iu":
            raise DtypeError(f"labels must be of an integer dtype, not {values.dtype}")
        on_host = isinstance(values, np.ndarray)  # reading values on a GPU would have to wait for it
        if on_host and values.size and (values.min() < 0 or values.max() >= self.num_classes):
            bad = values.min() if values.min() < 0 else values.max()
            raise OptionError(f"labels must each be a class, 0 <= value < {self.num_classes}; found {bad}")
        return values

    def _load(self, x: Any) -> tuple[Plan, arrays.Kind]:
        kind = arrays.kind_of("x", x)
        shape = tuple(getattr(x, "shape", ()))
        if len(shape) != 4 or shape[1:] != self.input_shape:
            C, H, W = self.input_shape
            raise ShapeError(f"x must have shape (N, {C}, {H}, {W}), not {shape}")
        images = self._checked("x", x, shape)
        plan = self.plan(shape[0])
        arrays.assign(plan.x, images)
        return plan, kind

    def _checked(self, name: str, value: Any, shape: Shape) -> np.ndarray:
        array = arrays.view(name, value)
        if array.shape != shape:
            raise ShapeError(f"{name} must have shape {shape}, not {array.shape}")
        if (found := arrays.dtype_name(name, array)) != self.dtype:
            raise DtypeError(f"{name} has dtype {found}, but the network is {self.dtype}")
        return array
