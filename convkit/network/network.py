"""A network: layers in a row, their parameters, and a training step."""

from __future__ import annotations

import copy
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from .. import arrays, registry
from ..call import Call
from ..devices import emulating
from ..dispatch import operation
from ..errors import DtypeError, OptionError, OutOfMemory, ShapeError, unknown
from ..op import Shape
from ..options import flag, integer
from ..registry import MATH, current_choice
from .layers import Layer
from .loss import Loss
from .parameters import Parameters
from .plan import Plan, fusion
from .plan.graph import VIEW, lower
from .plan.program import Program
from .state import FORMAT, checked, copies, differences
from .update import Update, number

#: Bytes of plans that a network keeps by default. AlexNet's takes some 6.5 MB for each image of its batch.
PLAN_MEMORY = 4 * 2**30


def _named_layers(layers: Any) -> tuple[Layer, ...]:
    """Layers in a tuple, after a check of their names."""
    found = tuple(layers) if isinstance(layers, Iterable) else (layers,)
    for layer in found:
        if not isinstance(layer, Layer):
            raise OptionError(f"layers must be a sequence of convkit.layers, and not hold {layer!r}")
        if not isinstance(layer.name, str) or not layer.name:
            raise OptionError(f"a layer's name must be a str, and not empty: {layer!r}")
    names = [layer.name for layer in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"every layer needs a name of its own; more than once: {', '.join(twice)}")
    return found


def _image_shape(shape: Any) -> Shape:
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise OptionError(f"input_shape must be (C, H, W), not {shape!r}")
    C, H, W = (integer("an extent of input_shape", extent, 1) for extent in shape)
    return C, H, W


def _is_bool_array(value: Any) -> bool:
    return getattr(value, "dtype", None) == np.bool_ and getattr(value, "size", 0) == 1


def _require_hook(name: str, hook: Any) -> None:
    if hook is not None and not callable(hook):
        raise OptionError(f"{name} must be a function or None, not {hook!r}")


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
        The update rule, its rates, and which parameters are frozen.
    math : {"fp32", "tf32", "fp32-emulated"}, optional
        As in `convkit.conv2d_fprop`.
    device : {"cpu", "cuda", "cuda:1", ...}
        Where parameters and activations live; on a GPU they are CuPy arrays. "cuda" is CuPy's current one.
    plan_memory : int
        Bytes of plans to keep. There is one for each batch size and choice of implementations; it holds the
        activations. Those used least recently go when all take more than this; the last one used stays.

    Attributes
    ----------
    params, grads, velocities : Parameters
        Mappings of "conv1.w", "conv1.b", ... to arrays. Write into them (`net.params["fc8.b"][...] = 0`);
        replacing one is an error.
    update, plan_memory
        As above; both can be set, which holds from the next step on.
    on_gradient : callable, optional
        A step calls ``on_gradient(name, gradient)`` for each parameter that it updates as soon as the
        gradient is final, in the order of the backward pass; what it writes into the array counts. For
        exchange between processes, while the rest of the pass goes on.
    before_update : callable, optional
        A step calls ``before_update(grads, finite)`` when all gradients are final; for clipping and checks.
        `grads` are those of the parameters that the step updates; what it writes into them counts.
        `finite` is an int32 array (1,): with 0 in it, or where False is returned, the step changes nothing.
        Either hook keeps updates apart from gradients, so that `net.grads` holds them (in float16 and
        bfloat16 they are then rounded once more); a copy has neither.
        Neither may run the network, or load a state. An error in one ends the step before its update.
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
    ) -> None:
        _require_device(device)
        if dtype not in arrays.DTYPES:
            raise unknown("dtype", dtype, arrays.DTYPES)
        if math is not None and math not in MATH:
            raise unknown("math", math, MATH)
        self.layers = _named_layers(layers)
        self.input_shape = _image_shape(input_shape)
        self.num_classes = integer("num_classes", num_classes, 1)
        self.seed = integer("seed", seed, 0)
        self.dtype, self.math, self.device = dtype, math, device
        if self.seed >= 2**64:
            raise OptionError(f"seed must be below 2^64, not {self.seed}")
        self._params = Parameters("params", self._initialised())
        self._grads = Parameters("grads", self._like_params())
        self._velocities = Parameters("velocities", self._like_params())
        self.dropout_offset = 0
        self._names: dict[str, dict[str, str]] = {}  # by layer, implementations by op
        # Fingerprint of the last step's plan; and that of a loaded state, until a step is compared with it.
        self._planned: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self._forget_plans()
        self.update = Update() if update is None else update
        self.plan_memory = plan_memory
        self.on_gradient = self.before_update = None

    #: See the class.
    on_gradient: Callable[[str, Any], None] | None
    before_update: Callable[[Parameters, Any], bool | None] | None

    def _forget_plans(self) -> None:
        self._plans: dict[Any, Plan] = {}  # the last one used last
        self._last: tuple[Any, Plan] | None = None  # of the last forward pass, for backward
        self._stepped: Any = None  # key of the plan that `_planned` is of
        self._turn = threading.RLock()
        self._in_hook = False

    # -- attributes -----------------------------------------------------------------------------------
    @property
    def params(self) -> Parameters:
        """The parameters by name."""
        return self._params

    @params.setter
    def params(self, value: Any) -> NoReturn:
        self._refuse("params")

    @property
    def grads(self) -> Parameters:
        """The gradients that the last backward pass made, by the parameters' names."""
        return self._grads

    @grads.setter
    def grads(self, value: Any) -> NoReturn:
        self._refuse("grads")

    @property
    def velocities(self) -> Parameters:
        """The momentum of each parameter."""
        return self._velocities

    @velocities.setter
    def velocities(self, value: Any) -> NoReturn:
        self._refuse("velocities")

    @staticmethod
    def _refuse(name: str) -> NoReturn:
        raise OptionError(f"a network keeps its {name}; write into them: net.{name}[name][...] = array")

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
            self._limit_plans()

    def __getstate__(self) -> dict[str, Any]:
        """All but the plans, which are bound to this network's own arrays."""
        own = ("_plans", "_last", "_stepped", "_turn", "_in_hook")
        hooks = {"on_gradient": None, "before_update": None}
        return {**{k: v for k, v in self.__dict__.items() if k not in own}, **hooks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_plans()

    def __copy__(self) -> Network:
        """As `copy.deepcopy`: two networks with the same arrays would train each other."""
        return copy.deepcopy(self)

    def gpu_arrays(self) -> list[Any]:
        """What `operation` asks for: an array on the network's own GPU, or none."""
        return [] if self.device == "cpu" else list(self.params.values())[:1]

    def _like_params(self) -> dict[str, np.ndarray]:
        return {name: arrays.zeros(w.shape, self.dtype, self.device) for name, w in self.params.items()}

    def _initialised(self) -> dict[str, np.ndarray]:
        """Each parameter has a random stream of its own: adding a layer leaves the others as they were."""
        found: dict[str, np.ndarray] = {}
        shape: Shape = (1, *self.input_shape)
        for layer in self.layers:  # all are checked before any memory is taken
            layer.passes(shape, self.num_classes, self.dtype)
            shape = layer.output_shape(shape, self.num_classes)
        if shape != (1, self.num_classes):
            raise ShapeError(
                f"the last layer must make (N, {self.num_classes}), one value for each class, not "
                f"{('N', *shape[1:])}"
            )
        shape = (1, *self.input_shape)
        for index, layer in enumerate(self.layers):
            parameters = layer.parameters(shape, self.num_classes)
            fan_in = int(np.prod(parameters["w"][0][1:])) if "w" in parameters else 1
            for which, (name, (w_shape, init)) in enumerate(parameters.items()):
                stream = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index, which)))
                array = arrays.empty(w_shape, self.dtype, self.device)
                arrays.assign(array, init.fill(stream, w_shape, fan_in))
                found[f"{layer.name}.{name}"] = array
            shape = layer.output_shape(shape, self.num_classes)
        return found

    def use(self, layer: str, **names: str | None) -> None:
        """Choose implementations by name for one layer; `convkit.use` does for all.

        It holds from the next call on, and comes before `convkit.use`.

        Parameters
        ----------
        layer : str
            Name of a layer.
        **names
            `op=name`, such as `conv2d_fprop="mine"`; None takes a choice back. A name that does not fit the
            layer's problem is an error when the network is planned. An op that is several in one
            (`linear_dgrad_wgrad_sgd`) runs where its implementation fits, and else its parts do.

        Raises
        ------
        OptionError
            For a layer, op or implementation that is not known, and an op that the layer has not.

        Examples
        --------
        >>> net.use("conv2", conv2d_fprop="mine", conv2d_wgrad="mine")
        """
        known = [own.name for own in self.layers]
        if layer not in known:
            raise unknown("layer", layer, known)
        ops = self._ops_of(layer)
        for op, name in names.items():
            if op not in ops:
                raise unknown(f"op of {layer}", op, ops)
            if name is not None:
                found = sorted({i.name for i in registry.implementations(op, layout=None)})
                if name not in found:
                    raise unknown(f"implementation of {op}", name, found)
        with self._turn:
            chosen = {**self._names.get(layer, {}), **names}
            self._names[layer] = {op: name for op, name in chosen.items() if name is not None}

    def _ops_of(self, layer: str) -> list[str]:
        """The ops that a layer has a part in."""
        graph = lower(self.layers, (1, *self.input_shape), self.num_classes, self.dtype)
        nodes = [n for s in graph.stages for n in (s.forward, *s.backward) if layer in s.layers]
        own = {node.op for node in nodes} - {VIEW}
        if any(name.rpartition(".")[0] == layer for name in self.params):
            own.add("sgd_momentum")
        own |= {op for op, parts in fusion.PARTS.items() if own.intersection(parts)}
        return sorted(own)

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
            key = self._key(batch)
            self._plans = {k: plan for k, plan in self._plans.items() if k[-1] == key[-1]}
            # Taken out and put in again: the plans stand in the order of their last use.
            plan = self._plans.pop(key, None) or self._new_plan(batch)
            self._plans[key] = plan
            self._limit_plans()
            if not self._in_hook:
                plan.frozen = frozenset(name for name in self.params if self.update.is_frozen(name))
                plan.fused = self.on_gradient is None and self.before_update is None
            return plan

    def _key(self, batch: int) -> tuple[Any, ...]:
        """What a plan depends on. Implementations that are registered meanwhile may be better ones."""
        registry.builtin("cuda" if emulating() else self.device.partition(":")[0])  # or it counts as new
        names = tuple((layer, *sorted(of.items())) for layer, of in sorted(self._names.items()) if of)
        return batch, names, *self._setting(), registry.generation()

    def _new_plan(self, batch: int) -> Plan:
        def make() -> Plan:
            with arrays.queue(self.gpu_arrays()):
                program = Program(
                    self.layers, (batch, *self.input_shape), self.num_classes, self.dtype, self.device,
                    self.math, self._names,
                )  # fmt: skip
                return Plan(program, self.layers, self.params, self.grads, self.velocities, self.device)

        try:
            return make()
        except OutOfMemory:
            if not self._plans:
                raise
        self._plans.clear()  # what they hold may be enough
        return make()

    def _limit_plans(self) -> None:
        """Drop the plans used least recently, until the rest fits; the last one used stays."""
        while len(self._plans) > 1 and sum(p.bytes for p in self._plans.values()) > self.plan_memory:
            self._plans.pop(next(iter(self._plans)))

    @staticmethod
    def _setting() -> tuple[Any, ...]:
        """What is chosen for the block of code that runs here."""
        return current_choice(), emulating()

    # -- running --------------------------------------------------------------------------------------
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
        training = flag("training", training)
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
            self._require_idle()
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
    def step(
        self, x: Any, labels: Any, *, lr: float | None = None, shard: tuple[int, int] | None = None
    ) -> Loss:
        """One step of training: forward, loss, backward, update. Allocates next to nothing.

        `grads` are `backward`'s: a step that updates weights as it makes their gradient does not keep it,
        unless there are hooks (`on_gradient`, `before_update`). Where the loss is not finite, weights and
        velocities stay as they are; dropout's counters go on. Only the loss is looked at: an infinite
        gradient behind a finite loss (of a -inf that a ReLU made 0) is for `before_update` to find.

        Parameters
        ----------
        x : array, (N, C, H, W)
        labels : array of integers, (N,)
        lr : float, optional
            Learning rate of the weights; the update rule's own by default. Biases, parameters with rates
            of their own and frozen ones follow as `update` says; see the schedule in `Update`.
        shard : (int, int), optional
            (first, total): x are the images from `first` on of a batch of `total`, whose other images are
            elsewhere. Dropout then draws what it would for the whole batch, and losses and gradients are
            this shard's part of the batch's mean: those of all shards are to be added (`on_gradient`).

        Returns
        -------
        loss : Loss
            A float: mean cross-entropy of the batch before the update, in nats. Its attributes count the
            errors.
        """
        with self._turn:
            plan = self.load_step(x, labels, lr=lr, shard=shard)
            phases = plan.phases()
            plan.run(phases["forward"])
            plan.run(phases["loss"])
            wanted = self._run_backward(plan, phases["backward"])
            # An update that does not know the flag is asked for by the host, which waits for it.
            if wanted and (plan.guarded or plan.results()[3]):
                plan.run(phases["update"])
            return self._result(plan, plan.x.shape[0] if shard is None else shard[1])

    @operation
    def evaluate(self, x: Any, labels: Any) -> Loss:
        """Loss and errors of a batch, with dropout as at test time; nothing changes.

        Parameters
        ----------
        x : array, (N, C, H, W)
        labels : array of integers, (N,)

        Returns
        -------
        loss : Loss
            A float: mean cross-entropy in nats. Its attributes count the errors.
        """
        with self._turn:
            plan = self._load_labelled(x, labels)
            self._begin(plan, training=False)
            plan.run(plan.forward)
            plan.run(plan.loss)
            return self._result(plan, plan.x.shape[0])

    def _run_backward(self, plan: Plan, calls: list[Call]) -> bool:
        """The backward pass of a step with its hooks; whether they let the update happen."""
        if plan.fused:  # there are none
            plan.run(calls)
            return True
        on_gradient, before_update = self.on_gradient, self.before_update
        self._in_hook = True
        try:
            plan.run(calls, behind=on_gradient and self._tell(plan, on_gradient))
            return before_update is None or self._asked(plan, before_update)
        finally:
            self._in_hook = False

    def _tell(self, plan: Plan, on_gradient: Callable[[str, Any], None]) -> Callable[[Call], None]:
        """What is called behind a call that makes gradients: the hook for each that is wanted, in turn."""

        def behind(call: Call) -> None:
            for name in plan.made_by(call):
                if name not in plan.frozen:
                    on_gradient(name, self.grads[name])

        return behind

    def _asked(self, plan: Plan, before_update: Callable[[Parameters, Any], Any]) -> bool:
        """Whether the hook lets the update happen; it is given no gradient that is not computed any more."""
        grads = {name: gradient for name, gradient in self.grads.items() if name not in plan.frozen}
        answer = before_update(Parameters("grads", grads), plan.finite)
        # What a comparison of arrays gives is a bool of NumPy's or CuPy's. A number, such as a norm, says
        # nothing.
        return bool(answer) if isinstance(answer, bool) or _is_bool_array(answer) else True

    def _require_idle(self) -> None:
        """Refuse to run or change the network from one of its hooks, whose step is under way."""
        if self._in_hook:
            raise OptionError("a hook cannot run the network whose step calls it, nor load a state into it")

    @staticmethod
    def _result(plan: Plan, total: int) -> Loss:
        """The results of a plan's loss phase; on a GPU this waits for it."""
        whole, errors, top5_errors, finite = plan.results()
        return Loss(whole / total, errors, top5_errors, plan.x.shape[0], finite)

    def load_step(
        self, x: Any, labels: Any, *, lr: float | None = None, shard: tuple[int, int] | None = None
    ) -> Plan:
        """Everything of `step` but the running: check the arguments, and load a plan with them.

        Returns
        -------
        plan : Plan
            Its `phases`, run in their order, are the step.
        """
        _require_hook("on_gradient", self.on_gradient)
        _require_hook("before_update", self.before_update)
        rate = self.update.lr if lr is None else number("lr", lr)
        N = int(getattr(x, "shape", (0,))[0]) if getattr(x, "shape", ()) else 0
        first, total = (0, N) if shard is None else self._shard(shard, N)
        plan = self._load_labelled(x, labels)
        self._compare_plan(plan, N)
        self._begin(plan, True, first, total)
        plan.set_total(total)
        self._set_update(plan, rate)
        return plan

    @staticmethod
    def _shard(shard: Any, N: int) -> tuple[int, int]:
        if not isinstance(shard, (tuple, list)) or len(shard) != 2:
            raise OptionError(f"shard must be (first, total), not {shard!r}")
        first, total = integer("shard[0]", shard[0], 0), integer("shard[1]", shard[1], 1)
        if first + N > total:
            raise OptionError(f"shard {(first, total)}: {N} images from {first} on are more than {total}")
        return first, total

    def _load_labelled(self, x: Any, labels: Any) -> Plan:
        values = self._labels(labels)
        plan, _ = self._load(x)
        N = plan.x.shape[0]
        if N == 0:
            raise ShapeError("a step needs at least one image")
        if values.shape != (N,):
            raise ShapeError(f"labels must have shape {(N,)}, as x has {N} images, not {values.shape}")
        arrays.assign(plan.labels, values)
        return plan

    def _set_update(self, plan: Plan, lr: float) -> None:
        """Give a plan's updates what the update rule says of their parameters."""
        plan.set_rates(self._rules(lr))

    def _rules(self, lr: float = 0.0) -> dict[str, dict[str, Any]]:
        """For each parameter that is not frozen, what `sgd_momentum` is given."""
        first = next(iter(self.params), "").rpartition(".")[0]
        rules = {name: self.update.options(name, lr, first) for name in self.params}
        return {name: rule for name, rule in rules.items() if rule["lr"] is not None}

    def _begin(self, plan: Plan, training: bool, first: int = 0, total: int | None = None) -> None:
        """Point the plan's dropouts at counters that no step has used."""
        self._last = None  # until a forward pass has succeeded
        self.dropout_offset = plan.set_dropout(training, self.seed, self.dropout_offset, first, total)

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
        self._require_idle()
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

    # -- state ----------------------------------------------------------------------------------------
    @operation
    def state(self) -> dict[str, Any]:
        """Everything that training goes on from, as plain data; `load_state` takes it back.

        A network that loads it goes on with the same bits, where it also runs the same implementations on the
        same instruction set and sees the same batches. The update rule and the layers are not in it.

        Returns
        -------
        dict
            ========================  ======================================================================
            "format"                  1
            "dtype"                   "float32", ...: of the arrays
            "shapes"                  dict of str to tuple of int, in the parameters' order
            "params", "velocities"    dict of str to NumPy array: copies, on the CPU
            "seed", "dropout_offset"  int: the counters of the next dropout
            "plan"                    JSON-able dict of what ran in the last step (batch, device, instruction
                                      set, the implementation of each call), or None where that is not known
            ========================  ======================================================================
        """
        with self._turn:
            return {
                "format": FORMAT,
                "dtype": self.dtype,
                "shapes": {name: tuple(w.shape) for name, w in self.params.items()},
                "params": copies(self.params),
                "velocities": copies(self.velocities),
                "seed": self.seed,
                "dropout_offset": self.dropout_offset,
                "plan": copy.deepcopy(self._planned),
            }

    @operation
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, of this network or of another one with the same parameters.

        All of it is checked first: a state that does not fit changes nothing. Where the next step runs other
        implementations or another instruction set than the state's last one, it warns once and goes on: its
        bits may then differ from those of an uninterrupted run.

        Parameters
        ----------
        state : mapping
            As `state` returns it; arrays may be NumPy or CuPy arrays, also as `numpy.load` gives them back.

        Raises
        ------
        OptionError
            For another format, and for names that are missing or not known.
        ShapeError
            Lists the parameters whose shapes differ.
        DtypeError
            Where dtypes differ.
        """
        loaded = checked(state, self.params, self.dtype)
        with self._turn:
            self._require_idle()
            for own, part in ((self.params, loaded.params), (self.velocities, loaded.velocities)):
                for name, values in part.items():
                    arrays.assign(own[name], values)
            self.seed, self.dropout_offset = loaded.seed, loaded.dropout_offset
            self._planned = self._resumed = copy.deepcopy(loaded.plan)
            self._last = self._stepped = None

    def _compare_plan(self, plan: Plan, batch: int) -> None:
        """Note what a step runs; warn where it is not what a loaded state was made with.

        Implementations depend on the batch: the comparison waits for one of the same size.
        """
        key = self._key(batch), plan.fused
        if key != self._stepped:
            self._planned, self._stepped = plan.fingerprint(), key
        before, now = self._resumed, self._planned
        if before is None or now is None or before.get("batch") != batch:
            return
        self._resumed = None
        if found := differences(before, now):
            warnings.warn(
                f"this step does not run as the loaded state's last, so its bits may differ:{found}",
                UserWarning,
                stacklevel=5,  # the caller of `step`, which `operation` wraps
            )
