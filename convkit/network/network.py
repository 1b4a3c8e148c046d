"""A network: layers in a row, their parameters, and a training step."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, overload

import numpy as np

from .. import arrays
from ..arrays import A, Array
from ..call import Call
from ..checked import outside
from ..dispatch import operation
from ..errors import ConvkitWarning, OptionError, ShapeError
from ..ops.loss_scale import LEAST, rescale
from ..options import flag
from . import arguments, hooks
from .loss import Loss, PendingLoss
from .plan import Plan
from .plan.graph import SCALE
from .plan.results import Summary
from .plan_cache import Setting
from .planned import Planned
from .state import FORMAT, Record, checked, copies
from .update import number

#: A gradient of the logits in float16 that leaves room for sums in the layers below.
_LARGEST = 2.0**13


class Network(Planned):
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
    dtype : {"float32", "float64", "bfloat16", "float16"}
        Storage of parameters and activations. The 16-bit types mean mixed precision: of that type are the
        activations, their gradients, and working copies of the parameters, which each forward pass makes;
        parameters, their gradients, velocities and losses are float32. In float16 the loss is scaled
        (`loss_scale`).
    update : Update
        The update rule, its rates, and which parameters are frozen.
    math : {"fp32", "tf32", "fp32-emulated"}, optional
        Coarsest arithmetic accepted for float32 data; None means "fp32". On a GPU, "tf32" lets tensor cores
        multiply where they have kernels; convolutions then read copies of their weights in KRSC, which each
        forward pass makes.
    device : {"cpu", "cuda", "cuda:1", ...}
        Where parameters and activations live; on a GPU they are CuPy arrays. "cuda" is CuPy's current one.
    plan_memory : int
        Bytes of plans to keep. There is one for each batch size and choice of implementations; it holds the
        activations. Those used least recently go when all take more than this; the last one used stays.
    graph : bool
        Whether a pass on a GPU may be one CUDA graph: captured when it runs for the second time, and replayed
        from then on, to the same bits. A pass that cannot be captured runs call by call, and a warning says
        why, once; ``print(net.plan(batch))`` says which it is. A step with hooks runs call by call, without
        a warning.

    Attributes
    ----------
    params, grads, velocities : Parameters
        Mappings of "conv1.w", "conv1.b", ... to arrays. Write into them (`net.params["fc8.b"][...] = 0`);
        replacing one is an error.
    update, plan_memory, graph
        As above. They can be set; the new value holds from the next step on.
    loss_scale : float
        In float16, what the gradient of the loss is multiplied by, so that gradients of activations do not
        vanish. Those of parameters are divided by it before anything else sees them. A step in which one of
        them is not finite changes no weight, and halves the scale; 2000 good steps in a row double it. It can
        be set. Of other dtypes it is 1.
    on_gradient : callable, optional
        A step calls ``on_gradient(name, gradient)`` for each parameter that it updates as soon as the
        gradient is final, in the order of the backward pass. It may change the array. For exchange between
        processes while the rest of the pass goes on.
    before_update : callable, optional
        A step calls ``before_update(grads, finite)`` when all gradients are final; for clipping and checks.
        `grads` are those of the parameters that the step updates. It may change the arrays.
        `finite` is an int32 array (1,). If it holds 0, or the hook returns False, the step changes nothing.
        With either hook, updates are not fused with gradients, so `net.grads` holds the gradients. A copy of
        a network has no hooks.
        A hook must not run the network, or load a state. An error in a hook ends the step before its update.
    """

    # -- running --------------------------------------------------------------------------------------
    def inputs(self, batch: int) -> tuple[Array, Array]:
        """The arrays from which batches of this size are read: to be filled, then passed on.

        `forward`, `step` and `evaluate` copy what they are given into these arrays; given these arrays
        themselves they copy nothing. They belong to the plan for this batch size, as implementations are
        chosen now, and no longer serve where that plan is not kept (`plan_memory`): ask for them before each
        batch; it costs microseconds. Then whatever is passed is right, at worst copied. Fill them before each
        pass, which may overwrite x; between `forward` and its `backward` leave them alone.

        Parameters
        ----------
        batch : int

        Returns
        -------
        x : array, (N, C, H, W)
            Of the network's dtype (of 16 bits in mixed precision), on its device.
        labels : array of int64, (N,)

        Examples
        --------
        >>> x, labels = net.inputs(len(crops))
        >>> ck.crop_images(images, crops, mean, size=224, out=x)
        >>> labels[...] = classes
        >>> loss = net.step(x, labels)
        """
        with self._turn:
            self._require_idle()
            plan = self.plan(batch)
            return plan.x, plan.labels

    @operation
    def forward(self, x: A, *, training: bool = False) -> A:
        """Run the network on a batch of images.

        Parameters
        ----------
        x : array, (N, C, H, W)
            Of the network's dtype; in mixed precision also of float32 or uint8.
        training : bool
            Whether dropout drops.

        Returns
        -------
        logits : array, (N, num_classes)
            A new array of the kind of x; in mixed precision of float32.
        """
        training = flag("training", training)
        with self._turn:
            plan, kind = self._load(x)
            self._begin(plan, training)
            self._tell(plan.replay(plan.forward))
            self._last = Setting.here(), plan
            return kind.wrap(self._wide(plan.logits))

    @operation
    def backward(self, dlogits: A) -> A:
        """All gradients, after `forward`: fills `grads`.

        It runs the plan of that forward pass, so the same `convkit.use` must be in force. In float16 it
        multiplies dlogits by `loss_scale`, or by less where that does not fit, and divides all gradients by
        it. One that is not finite is for the caller to find: the scale stays as it is.

        Parameters
        ----------
        dlogits : array, (N, num_classes)
            Of the network's dtype; in mixed precision also of float32.

        Returns
        -------
        dx : array, (N, C, H, W)
            Gradient of the images, a new array of the kind of dlogits; in mixed precision of float32.
        """
        with self._turn:
            self._require_idle()
            if self._last is None:
                raise OptionError("forward comes first, and nothing between it and backward")
            setting, plan = self._last
            if setting != Setting.here():
                raise OptionError("forward ran under another `use` or `emulate`: put both calls inside")
            kind = arrays.kind_of("dlogits", dlogits)
            wide = (self._param_dtype,)
            given = arguments.tensor("dlogits", dlogits, plan.dlogits.shape, self.dtype, wide)
            with self._scaled_for_once(given) as scaled:
                with np.errstate(over="ignore"):  # what is not finite is the caller's
                    arrays.assign(plan.dlogits, scaled)
                self._tell(plan.replay(plan.backward, plan.input_gradient))
                dx = self._wide(plan.dx)
                if self._scale:
                    flag = arrays.zeros((1,), "int32", arrays.place(dx))
                    rescale(dx, self._scale[SCALE], flag, inverse=True, out=(dx, flag))
            return kind.wrap(dx)

    @contextlib.contextmanager
    def _scaled_for_once(self, dlogits: Array) -> Iterator[Array]:
        """A block with gradients of the logits times a scale with which they fit float16, for it alone."""
        if not self._scale:
            yield dlogits
            return
        values = np.empty(dlogits.shape, dlogits.dtype)
        arrays.assign(values, dlogits)  # on a GPU, the host waits for them
        kept, largest = self.scaling, float(np.abs(values).max(initial=0))
        scale = kept[0]
        while scale > LEAST and _LARGEST < scale * largest < math.inf:
            scale = max(scale / 2, LEAST)
        self.scaling = scale, 0
        try:
            yield values.astype(np.float32) * np.float32(scale)
        finally:
            self.scaling = kept

    def _wide(self, array: Array) -> Any:
        """A copy of an activation, in the parameters' dtype."""
        return array.astype(arrays.np_dtype(self._param_dtype))

    @overload
    def step(
        self, x: Any, labels: Any, *, lr: float | None = ..., shard: tuple[int, int] | None = ...,
        sync: Literal[True] = ...,
    ) -> Loss: ...  # fmt: skip

    @overload
    def step(
        self, x: Any, labels: Any, *, lr: float | None = ..., shard: tuple[int, int] | None = ...,
        sync: Literal[False],
    ) -> PendingLoss: ...  # fmt: skip

    @operation
    def step(
        self,
        x: Any,
        labels: Any,
        *,
        lr: float | None = None,
        shard: tuple[int, int] | None = None,
        sync: bool = True,
    ) -> Loss | PendingLoss:
        """One step of training: forward, loss, backward, update. It allocates next to nothing.

        Use `backward` to get all of `grads`: a step without hooks updates some weights as it makes their
        gradient, and does not store it. If the loss is not finite, weights and velocities do not change;
        dropout's counters advance. Only the loss is checked. A gradient can be infinite while the loss is
        finite, for example where a ReLU turns -inf into 0: check it in `before_update` where that matters.
        In float16 all gradients are checked.

        Parameters
        ----------
        x : array, (N, C, H, W)
        labels : array of integers, (N,)
        lr : float, optional
            Learning rate of the weights; by default that of the update rule. `update` says what it means
            for biases, and for parameters that have rates of their own or are frozen.
        shard : (int, int), optional
            (first, total): x holds the images from `first` on of a batch of `total`; other processes have
            the rest. Dropout then draws the same numbers as for the whole batch. Loss and gradients are
            this shard's part of the batch's mean: add those of all shards (in `on_gradient`).
        sync : bool
            Whether to wait for the loss. If not, the step is queued on the GPU, and the host goes on: to the
            next step, of which several may be queued. x and labels may be overwritten at once where they are
            NumPy arrays; on a GPU, in the order of the current stream.

        Returns
        -------
        loss : Loss, or PendingLoss if not `sync`
            A float: mean cross-entropy of the batch before the update, in nats. Its attributes count the
            errors. What is pending has it when `wait` returns.
        """
        sync = flag("sync", sync)
        with self._turn:
            plan = self.load_step(x, labels, lr=lr, shard=shard)
            self._run_step(plan)
            images, result = plan.x.shape[0], self._result
            total = images if shard is None else shard[1]
            if sync:
                return result(plan.results(), images, total)
            later = plan.results_later()  # what is pending keeps neither the plan nor the network
            return PendingLoss(lambda: result(later(), images, total))

    def _run_step(self, plan: Plan) -> None:
        """All phases of a step: one by one where something of the host's stands between them."""
        phases = plan.phases()
        if plan.fused and plan.guarded:
            self._tell(plan.replay(*phases.values()))
            return
        if plan.fused and plan.graphs and plan.captures:  # of hooks, who has set them knows
            self._tell(plan.step_refusal())
        plan.run(phases["forward"])
        plan.run(phases["loss"])
        wanted = self._run_backward(plan, phases["backward"])
        # Where an update does not read the flag "finite", the host waits for it and decides.
        if wanted and (plan.guarded or plan.results().sound):
            plan.run(phases["update"])
        if wanted:
            plan.run(phases.get("scale", []))

    def _tell(self, refusal: str) -> None:
        """Warn that passes run call by call; once for each reason."""
        if refusal and refusal not in self._told:
            self._told.add(refusal)
            warnings.warn(
                f"a pass runs call by call, not as a CUDA graph: {refusal} (graph=False ends this warning)",
                ConvkitWarning,
                stacklevel=outside(),
            )

    @operation
    def evaluate(self, x: Any, labels: Any) -> Loss:
        """Loss and errors of a batch, with dropout as at test time. It changes nothing.

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
            self._tell(plan.replay(plan.forward, plan.loss))
            found = plan.results()._replace(sound=True)  # there are no gradients
            return self._result(found, plan.x.shape[0], plan.x.shape[0])

    def _run_backward(self, plan: Plan, calls: list[Call]) -> bool:
        """The backward pass of a step, with its hooks; returns whether they let the update happen."""
        if plan.fused:  # there are no hooks
            plan.run(calls)
            return True
        self._in_hook = True
        try:
            return hooks.run_backward(plan, calls, self.grads, self.on_gradient, self.before_update)
        finally:
            self._in_hook = False

    def _require_idle(self) -> None:
        """Refuse to run or change the network inside one of its hooks: a step is under way."""
        if self._in_hook:
            raise OptionError("a hook cannot run the network whose step calls it, nor load a state into it")

    @staticmethod
    def _result(summary: Summary, images: int, total: int) -> Loss:
        return Loss(
            summary.total / total, summary.errors, summary.top5_errors, images, summary.finite,
            overflow=summary.finite and not summary.sound,
        )  # fmt: skip

    def load_step(
        self, x: Any, labels: Any, *, lr: float | None = None, shard: tuple[int, int] | None = None
    ) -> Plan:
        """The first part of `step`: check the arguments, and load a plan with them. It runs nothing.

        Returns
        -------
        plan : Plan
            Its `phases`, run in their order, are the step.
        """
        arguments.require_hook("on_gradient", self.on_gradient)
        arguments.require_hook("before_update", self.before_update)
        rate = self.update.lr if lr is None else number("lr", lr)
        N = int(getattr(x, "shape", (0,))[0]) if getattr(x, "shape", ()) else 0
        first, total = (0, N) if shard is None else arguments.shard(shard, N)
        plan = self._load_labelled(x, labels)
        self._compare_plan(plan)
        self._begin(plan, True, first, total)
        plan.set_total(total)
        plan.set_rates(self._rules(rate))
        return plan

    def _load_labelled(self, x: Any, labels: Any) -> Plan:
        values = arguments.labels(labels, self.num_classes)
        plan, _ = self._load(x)
        N = plan.x.shape[0]
        if N == 0:
            raise ShapeError("a step needs at least one image")
        if values.shape != (N,):
            raise ShapeError(f"labels must have shape {(N,)}, as x has {N} images, not {values.shape}")
        self._staged[1].put(plan.labels, values)
        return plan

    def _rules(self, lr: float) -> dict[str, dict[str, Any]]:
        """For each parameter that is not frozen, what `sgd_momentum` is given."""
        if self._ruled is None or self._ruled[0] is not self.update or self._ruled[1] != lr:
            first = next(iter(self.params), "").rpartition(".")[0]
            rules = {name: self.update.options(name, lr, first) for name in self.params}
            rules = {name: rule for name, rule in rules.items() if rule["lr"] is not None}
            self._ruled = self.update, lr, rules
        return self._ruled[2]

    def _begin(self, plan: Plan, training: bool, first: int = 0, total: int | None = None) -> None:
        """Point the plan's dropouts at counters that no step has used."""
        self._last = None  # until a forward pass has succeeded
        self.dropout_offset = plan.set_dropout(training, self.seed, self.dropout_offset, first, total)

    def _load(self, x: Any) -> tuple[Plan, arrays.Kind]:
        self._require_idle()
        mixed = self._param_dtype != self.dtype
        images, kind = arguments.images(x, self.input_shape, self.dtype, mixed)
        plan = self.plan(images.shape[0])
        with np.errstate(over="ignore"):  # a float32 beyond float16 is an infinity there
            self._staged[0].put(plan.x, images)
        return plan, kind

    # -- state ----------------------------------------------------------------------------------------
    @operation
    def state(self) -> dict[str, Any]:
        """All that training needs to go on later, as plain data; `load_state` loads it.

        A network that loads it goes on with the same bits, if it runs the same implementations on the same
        instruction set and gets the same batches. The update rule and the layers are not part of the state.

        Returns
        -------
        dict
            ========================  ======================================================================
            "format"                  1
            "dtype"                   "float32", ...: of the arrays; "float32" in mixed precision too
            "shapes"                  dict of str to tuple of int, in the parameters' order
            "params", "velocities"    dict of str to NumPy array: copies, on the CPU
            "seed", "dropout_offset"  int: the counters of the next dropout
            "loss_scale"              in float16 alone: dict of "scale" and "steps", the good ones in a row
            "plan"                    JSON-able dict of what ran in the last step (batch, device, instruction
                                      set, the implementation of each call), or None where that is not known
            ========================  ======================================================================
        """
        with self._turn:
            return {
                "format": FORMAT,
                "dtype": self._param_dtype,
                "shapes": {name: tuple(w.shape) for name, w in self.params.items()},
                "params": copies(self.params),
                "velocities": copies(self.velocities),
                "seed": self.seed,
                "dropout_offset": self.dropout_offset,
                **({"loss_scale": dict(zip(("scale", "steps"), self.scaling))} if self._scale else {}),
                "plan": copy.deepcopy(self._record.ran),
            }

    @operation
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load what `state` returned, of this network or of another one with the same parameters.

        States of float32 and of mixed precision are of the same kind: one may be loaded into a network of the
        other. A network in float16 that finds no loss scale in it begins with 65,536.

        All of it is checked first: a state that does not fit changes nothing. If the next step runs other
        implementations or another instruction set than the last step of the state, it warns once and goes
        on. Its bits may then differ from those of an uninterrupted run.

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
        loaded = checked(state, self.params, self._param_dtype)
        with self._turn:
            self._require_idle()
            for own, part in ((self.params, loaded.params), (self.velocities, loaded.velocities)):
                for name, values in part.items():
                    arrays.assign(own[name], values)
            self.seed, self.dropout_offset = loaded.seed, loaded.dropout_offset
            self.scaling = loaded.loss_scale
            plan = copy.deepcopy(loaded.plan)
            self._record = Record(ran=plan, expected=plan)
            self._last = None

    def _compare_plan(self, plan: Plan) -> None:
        """Note what a step runs; warn where it is not what the last step of a loaded state ran."""
        if lines := self._record.note(plan):
            warnings.warn(
                f"this step does not run as the loaded state's last, so its bits may differ:{lines}",
                UserWarning,
                stacklevel=5,  # the caller of `step`, which `operation` wraps
            )
