"""The program of a candidate's process: load the candidate, then do what the judge asks.

It answers in JSON. Whatever it holds, the candidate can read: the judge sends no answers here, nor anything
else that would help a candidate to look right without being right.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import socket
import struct
import warnings
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from ... import devices, registry
from ...arrays import np_dtype
from ...call import Call
from ...cuda import emulate as emulation
from ...cuda.launch import Executor
from ...discovery import register
from ...errors import ConvkitError, UncheckedWarning
from ...op import OPS
from ...registry import Implementation
from .. import sizes
from ..attempt import last_line
from ..device import Placed, Twins
from ..faults import kind_of
from . import judge, limits, proxies
from .memory import Shared
from .training import Training

#: Characters of a message that are told.
_MOST = 4000
#: What of an implementation is told as it is.
DECLARED: tuple[str, ...] = (
    "op",
    "name",
    "device",
    "dtypes",
    "layout",
    "rank",
    "error",
    "math",
    "truncates",
    "packs",
    "flags",
    "compiled",
    "source",
)


def main(told: dict[str, Any]) -> None:
    """Serve the judge until it closes its end."""
    judge.inside = True
    warnings.simplefilter("ignore", UncheckedWarning)  # whoever runs a candidate here knows that it is one
    warnings.filterwarnings("ignore", "a pass runs call by call")  # so do most candidates in Python
    limits.end_with_parent()
    trace = os.fdopen(told["trace"], "wb", 0)
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR2, trace)
    conn = socket.socket(fileno=told["socket"])
    candidate = Candidate(Shared(told["memory"]), told)
    data = b""
    while (head := _read(conn, 16)) is not None:
        length, number = struct.unpack("<QQ", head)
        new = _read(conn, length)
        if new is None:
            break
        data = new or data
        answer = json.dumps(candidate.answer(data, again=not new)).encode()
        conn.sendall(struct.pack("<QQ", len(answer), number) + answer)
    os._exit(0)  # threads of the candidate's would keep the process


def _read(conn: socket.socket, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        data = conn.recv(min(size - len(found), 1 << 20))
        if not data:
            return None
        found += data
    return bytes(found)


class Candidate:
    """What a candidate's process holds."""

    def __init__(self, shared: Shared, told: dict[str, Any]) -> None:
        self.shared, self.told = shared, told
        self.implementations: list[Implementation] = []
        self._emulators: dict[Any, Executor] = {}
        self._again: Callable[[], dict[str, Any]] | None = None
        self.training: Training | None = None

    def answer(self, data: bytes, again: bool) -> dict[str, Any]:
        """What the judge asks for, or what was raised on the way."""
        try:
            if again and self._again is not None:
                return self._again()
            message = pickle.loads(data)
            self._again = None
            return getattr(self, "do_" + message.pop("do"))(**message)
        except BaseException as error:  # also SystemExit and KeyboardInterrupt
            # `register` says itself what is wrong with a file, and where.
            whole = isinstance(error, ConvkitError) and not self.implementations
            text = _first(str(error) if whole else last_line(error))
            if isinstance(error, MemoryError):
                text += f"; a candidate may take {self.told['most'] / 2**30:.3g} GiB"
            return {"raised": {"text": text, "kind": kind_of(error)}}

    def do_start(self) -> dict[str, Any]:
        """Give up what a candidate does not need."""
        unconfined = limits.keep_off(self.told["writable"])
        limits.limit_memory(self.told["most"])
        return {"unconfined": unconfined}

    def do_load(self, what: str, given: Any) -> dict[str, Any]:
        """Load implementations: of a file, pickled ones, or those of convkit's that have these keys."""
        if what == "file":
            self.implementations = register(given)
        elif what == "pickled":
            self.implementations = pickle.loads(given)
        else:
            keys = {(i.op, i.device, i.name, i.layout): i for i in registry.implementations(layout=None)}
            self.implementations = [keys[key] for key in given]
        return {
            "rows": [
                {name: getattr(i, name) for name in DECLARED}
                | {"asked": [name for name in proxies.ASKED if getattr(i, name) is not None]}
                for i in self.implementations
            ]
        }

    def do_missing(self, index: int) -> dict[str, Any]:
        """What this machine lacks to run an implementation."""
        missing = self.implementations[index].missing
        lack = missing() if missing else None
        return {"value": None if lack is None else _first(str(lack))}

    def do_about(self, index: int, problem: Any) -> dict[str, Any]:
        """What an implementation declares of a problem; of one that it does not take, just that."""
        i = self.implementations[index]
        found: dict[str, Any] = {"when": (reason := i.declines(problem)) and _first(reason)}
        if found["when"] is None and not problem.empty:
            for what in ("workspace", "flops"):
                if (function := getattr(i, what)) is not None:
                    found[what] = int(function(problem))
        return found

    def do_hints(self, index: int) -> dict[str, Any]:
        """Numbers and comparisons that the code spells out."""
        declared, code, text = sizes.hints(self.implementations[index])
        return {"declared": declared, "code": code, "text": text}

    def do_run(
        self,
        index: int,
        problem: Any,
        tensors: list[Any],
        options: dict[str, Any],
        emulate: tuple[Any, ...] | None,
        gpu: bool,
    ) -> dict[str, Any]:
        """Run an implementation on tensors of the shared memory."""
        implementation = self.implementations[index]
        op = OPS[implementation.op]
        run = self._on_gpu if gpu else self._here
        memory = [_placed(self.shared, place) if place else None for place in tensors]
        named = {name: _placed(self.shared, v) if _is_place(v) else v for name, v in options.items()}
        split = len(op.inputs)

        def call(arrays: list[Any], options: dict[str, Any]) -> Call:
            outputs = tuple(arrays[split:])
            return Call(op, implementation, problem, tuple(arrays[:split]), outputs, options)

        self._again = again = run(call, memory, named, emulate)
        return again()

    def do_network(self, emulated: bool, **told: Any) -> dict[str, Any]:
        """Make the network that `do_step` trains; its implementations are the loaded ones, where named."""
        self.training = Training(self.implementations, emulated, told)
        return {"parameters": {n: [w.shape, w.dtype.name] for n, w in self.training.net.params.items()}}

    def do_step(self, x: Any, labels: Any, lr: float) -> dict[str, Any]:
        """A step of training, without copies of what the candidate gets."""
        assert self.training
        images, numbers = self._arrays(x, labels)
        return self.training.step(images, numbers, lr)

    def do_gradients(self, x: Any, labels: Any, weights: Any, gradients: Any) -> dict[str, Any]:
        """The gradients of a batch at weights that the judge gives; the training does not notice."""
        assert self.training
        given, made = (dict(zip(t, self._arrays(*t.values()))) for t in (weights, gradients))
        images, numbers = self._arrays(x, labels)
        return self.training.gradients(images, numbers, given, made)

    def do_weights(self, weights: Any) -> dict[str, Any]:
        """The weights that the training has reached."""
        assert self.training
        return self.training.weights(dict(zip(weights, self._arrays(*weights.values()))))

    def _arrays(self, *places: Any) -> list[Any]:
        return [_placed(self.shared, place).array for place in places]

    def _here(
        self, make: Callable[..., Call], memory: list[Any], options: dict[str, Any], emulate: Any
    ) -> Callable[[], dict[str, Any]]:
        call = make(
            [m and m.array for m in memory],
            {name: v.array if isinstance(v, Placed) else v for name, v in options.items()},
        )

        def again() -> dict[str, Any]:
            with self._emulator(emulate) as emulator:
                call.run()
                if not isinstance(emulator, emulation.Emulator) or not emulator.counters:
                    return {}
                counted, emulator.counted = emulator.counted, []
                return {"counted": [vars(c) for c in counted]}

        return again

    def _on_gpu(
        self, make: Callable[..., Call], memory: list[Any], options: dict[str, Any], emulate: Any
    ) -> Callable[[], dict[str, Any]]:
        """On copies of the memory on the GPU, guard bands and all."""

        def again() -> dict[str, Any]:
            twins = Twins([m for m in (*memory, *options.values()) if isinstance(m, Placed)])
            arrays = [m and twins.array(m) for m in memory]
            named = {n: twins.array(v) if isinstance(v, Placed) else v for n, v in options.items()}
            make(arrays, named).run()
            twins.bring_back()
            return {}

        return again

    @contextlib.contextmanager
    def _emulator(self, emulate: tuple[Any, ...] | None) -> Iterator[Executor | None]:
        if emulate is None:
            yield None
            return
        if emulate not in self._emulators:  # kept, and with it what it has compiled
            self._emulators[emulate] = emulation.made(emulate)
        with devices.instead(self._emulators[emulate]):
            yield self._emulators[emulate]


def _first(text: str) -> str:
    """A text, or the beginning and the end of a long one: an answer has room for so much."""
    return text if len(text) <= _MOST else f"{text[:_MOST]} ... {text[-100:]}"


def _is_place(value: Any) -> bool:
    return isinstance(value, dict) and "block" in value


def _placed(shared: Shared, place: dict[str, Any]) -> Placed:
    """The tensor at a place of the shared memory that the judge has told."""
    first, behind = place["block"]
    raw, start, kind = shared.block(first, behind - first), place["at"] - first, np_dtype(place["dtype"])
    array = raw[start : start + prod(place["shape"]) * kind.itemsize].view(kind).reshape(place["shape"])
    array.flags.writeable = place["writable"]
    return Placed(raw, start, array)
