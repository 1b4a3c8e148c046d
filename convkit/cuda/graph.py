"""Calls in a row as one CUDA graph: captured once, then replayed.

A graph keeps what was passed by value. So the numbers that differ from step to step lie in memory on the
device, from which the kernels read them ("live" in their headers), and which is filled before each replay.
Whatever else a call is given is frozen: another number leads to another graph.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from .. import arrays, devices
from ..arrays import Array
from ..call import Call
from ..errors import OutOfMemory
from .header import OPTION_TYPES, Header
from .launch import Executor, Kept
from .prepare import Runner

#: Options that are other numbers in each step.
CHANGING = ("lr", "seed", "offset")
#: Graphs that are kept for the same calls, each with other numbers frozen into it.
MOST = 8
#: Copies from the host that may be under way through one `Staging`.
SLOTS = 2


def obstacle(call: Call) -> str:
    """Why a call cannot be part of a graph, or an empty string."""
    what = f"{call.op.name} {call.implementation.name!r}" + (f" ({call.layer})" if call.layer else "")
    header = _header(call)
    if header is None:
        return f"{what} is not a CUDA kernel file"
    fixed = [name for name in CHANGING if name in header.options and name not in header.live]
    if fixed:
        return f"{what} takes {' and '.join(fixed)} by value; its header needs live = {json.dumps(fixed)}"
    return ""


def _header(call: Call) -> Header | None:
    runner = call.implementation.run
    return runner.kernel.header if isinstance(runner, Runner) else None


# ---------------------------------------------------------------------------------------------------
# Capturing
# ---------------------------------------------------------------------------------------------------
def capture(run: Callable[[], None]) -> Callable[[], None]:
    """What `run` queues, as a graph, on CuPy's current device.

    Parameters
    ----------
    run : callable
        Queues work on CuPy's current stream. Nothing of it is done here.

    Returns
    -------
    callable
        Queues the graph on CuPy's current stream.

    Raises
    ------
    Exception
        CUDA's, where something in `run` cannot be captured; `OutOfMemory` where it allocates: a graph keeps
        addresses, and would go on to use memory that has been freed.
    """
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)  # CUDA does not capture the default one
    with stream:
        stream.begin_capture()
        try:
            with cupy.cuda.using_allocator(_refuse):
                run()
        except BaseException:
            with contextlib.suppress(Exception):  # after an error, ending it is one more error
                stream.end_capture()
            raise
        graph = stream.end_capture()
    return lambda: graph.launch()


def _refuse(size: int) -> Any:
    raise OutOfMemory(f"a call allocates {size} bytes while it is captured")


# ---------------------------------------------------------------------------------------------------
# From the host, without waiting
# ---------------------------------------------------------------------------------------------------
class Staging:
    """Pinned memory, through which values of the host go to a GPU while the host goes on.

    A copy is queued, and reads the pinned memory when the GPU comes to it. An event says when it has done so;
    only then is that memory filled again. There are `SLOTS` pieces, so the host is so many copies ahead at
    the most.
    """

    def __init__(self) -> None:
        self._slots: list[_Slot] = []

    def put(self, target: Array, values: Array) -> None:
        """target[...] = values; where that is from the host to a GPU, on CuPy's current stream there.

        The values may be overwritten as soon as this returns.

        Parameters
        ----------
        target : array
            Contiguous, where it is on a GPU.
        values : array, of the same shape
        """
        if isinstance(target, np.ndarray) or not isinstance(values, np.ndarray) or not target.size:
            arrays.assign(target, values)
            return
        with arrays.on(target):
            if len(self._slots) < SLOTS:
                self._slots.append(_Slot())
            else:
                self._slots.append(self._slots.pop(0))  # the one that was used longest ago
            self._slots[-1].put(target, values)

    def __del__(self) -> None:
        # CuPy's pool would lend the memory to others while it is still read.
        for slot in self._slots:
            slot.free()


class _Slot:
    """A piece of pinned memory, and the event that guards it."""

    def __init__(self) -> None:
        import cupy

        self._alloc = cupy.cuda.alloc_pinned_memory
        self._event = cupy.cuda.Event(block=True, disable_timing=True)
        self._memory: Any = None
        self._size = 0

    def put(self, target: Any, values: np.ndarray) -> None:
        self._event.synchronize()
        if self._size < target.nbytes:
            self._memory = None  # before more is taken
            self._memory, self._size = self._alloc(target.nbytes), target.nbytes
        staged = np.frombuffer(self._memory, np.uint8, target.nbytes)
        staged.view(target.dtype).reshape(target.shape)[...] = values
        target.data.copy_from_host_async(self._memory.ptr, target.nbytes)
        self._event.record()

    def free(self) -> None:
        with contextlib.suppress(Exception):  # as the interpreter ends, CuPy may be gone
            self._event.synchronize()


# ---------------------------------------------------------------------------------------------------
# Replaying
# ---------------------------------------------------------------------------------------------------
class Replay:
    """Calls in a row, which become a graph as soon as they have run one by one.

    Parameters
    ----------
    calls : sequence of Call
    device : str
        Where their arrays are.

    Attributes
    ----------
    refusal : str
        Why they cannot be captured, or an empty string.
    """

    def __init__(self, calls: Sequence[Call], device: str) -> None:
        self._calls, self._device = tuple(calls), device
        self._frozen = [one for call in calls if (one := _frozen(call))]
        self._empty = any(call.problem.empty for call in calls)
        self._start(None)

    def _start(self, executor: Executor | None) -> None:
        """Nothing has run on that executor, and nothing is captured."""
        self._executor = executor
        self._warm = False
        self._graphs: Kept[_Graph] = Kept(MOST)
        self.refusal = next(filter(None, map(obstacle, self._calls)), "")

    def run(self) -> bool:
        """Queue the calls as a graph, captured now where there is none.

        Returns
        -------
        bool
            False where they are to run one by one: for the first time, which loads modules and whatever else
            the first run of a kernel brings with it; and where they cannot be captured.
        """
        executor = devices.current()
        if executor is not self._executor:
            self._start(executor)
        if self.refusal or self._empty or not executor.captures:
            return False
        if not self._warm:
            self._warm = True
            return False
        try:
            graph = self._graphs.get(self._key(), lambda: _Graph(executor, self._calls, self._device))
        except Exception as error:  # CUDA's own: whatever it is, the calls one by one may still run
            self.refusal = f"it could not be captured: {error}"
            return False
        graph.launch()
        return True

    def _key(self) -> tuple[Any, ...]:
        """The numbers that a graph has frozen into it, of those that change between steps at all."""
        return tuple([values(options) for options, values in self._frozen])


def _frozen(call: Call) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]] | None:
    """The options of a call, and what takes those out of them that a graph freezes.

    None where a plan never changes them.
    """
    header = _header(call)
    if header is None or not set(CHANGING).intersection(call.op.options):
        return None
    names = [n for n, ctype in header.options.items() if ctype in OPTION_TYPES and n not in header.live]
    return (call.options, itemgetter(*names)) if names else None


class _Graph:
    """A graph, with all that it needs: the arrays it works on, and memory for the numbers that change."""

    def __init__(self, executor: Executor, calls: Sequence[Call], device: str) -> None:
        places = [
            (call, name, pointer, OPTION_TYPES[header.options[name]])
            for call in calls
            if (header := _header(call)) is not None
            for name, pointer in zip(header.live, header.pointers, strict=True)
        ]
        # On the host, and on the device: 8 bytes for each.
        self._host = np.zeros(8 * max(1, len(places)), np.uint8)
        self._memory = arrays.empty(self._host.shape, "uint8", device)
        self._staging = Staging()
        self._numbers: list[tuple[np.ndarray, dict[str, Any], str]] = []
        pointers: dict[int, dict[str, Array]] = {}
        for i, (call, name, pointer, kind) in enumerate(places):
            part = slice(8 * i, 8 * i + np.dtype(kind).itemsize)
            self._numbers.append((self._host[part].view(kind), call.options, name))
            pointers.setdefault(id(call), {})[pointer] = self._memory[part].view(kind)
        # What a graph uses must live as long as it does; scratch memory, an option, a plan may replace.
        self._kept = [
            (call.launch(), (*call.inputs, *call.outputs), {**call.options, **pointers.get(id(call), {})})
            for call in calls
        ]
        self._replay = executor.capture(self._queue)
        self._ended = _event(self._memory)

    def _queue(self) -> None:
        for prepared, tensors, options in self._kept:
            prepared(*tensors, **options)

    def launch(self) -> None:
        """Queue it, with the numbers that the calls' options have now."""
        for number, options, name in self._numbers:
            number[0] = options[name]
        if self._numbers:
            self._staging.put(self._memory, self._host)
        self._replay()
        if self._ended is not None:
            self._ended.record()

    def __del__(self) -> None:
        # CUDA does not say what becomes of a graph that is destroyed while it runs.
        with contextlib.suppress(Exception):
            self._ended.synchronize()


def _event(memory: Array) -> Any:
    """An event of the GPU that an array is on; None for one on the CPU."""
    if isinstance(memory, np.ndarray):
        return None
    import cupy

    with arrays.on(memory):
        return cupy.cuda.Event(block=True, disable_timing=True)
