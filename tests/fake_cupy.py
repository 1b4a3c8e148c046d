"""A stand-in for CuPy, so that the way to the GPU is walked where there is none.

Arrays are NumPy's behind a wrapper that is no NumPy array; kernels run under the emulator. There are two
GPUs. Streams are times until which they are busy: what is queued costs nothing until somebody waits. A stream
may be held back by a kernel that spins on a flag in pinned memory (`HOLD`), until its limit; what is behind
it, and what waits for that, is not done before. The host's time stands still for none of this.

It is not kinder than CuPy. New arrays lie on the current device and are full of NaN; work on an array of
another device is refused, and so is work on one that is not aligned; `ascontiguousarray` gives a 0-d array
one dimension; functions have no attributes but CuPy's own. And with `watch_races` it keeps account of who
knows what has ended: work that reads what another stream may still be writing, or writes what another may
still be reading, is a `Race`. (Streams do not wait for the default one here, as those of `non_blocking=True`
do not.)

`torch_module` is the same for PyTorch's tensors on a GPU. What all this cannot show is whether CuPy behaves
as it is written to here: a GPU has the last word.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from convkit import arrays
from convkit.cuda import graph
from convkit.cuda import launch as protocol

#: GPUs, and the number of the current one.
DEVICES = 2
current_device = [0]
#: Not empty where a `Race` is raised.
races: list[bool] = []


class Race(AssertionError):
    """Two streams on the same memory, with nothing to order them."""


class Refused(ValueError):
    """What CuPy or CUDA would answer with an error."""


# ---------------------------------------------------------------------------------------------------
# Time and order
# ---------------------------------------------------------------------------------------------------
#: Seconds, where time is simulated: each look at it takes a microsecond, and waiting takes no time at all.
simulated: list[float] = []
#: Of each stream, by device and pointer, how much of its work has ended.
Knowledge = dict[tuple[int, int], int]
host_knows: Knowledge = {}


def now() -> float:
    """Seconds of the host, or simulated ones, which no other process can hold up."""
    if simulated:
        simulated[0] += 1e-6
    pump()
    return _moment()


def _moment() -> float:
    """The time, without a look at it."""
    return simulated[0] if simulated else time.perf_counter()


def _learn(known: Knowledge, more: Knowledge) -> None:
    for key, count in more.items():
        known[key] = max(count, known.get(key, 0))


class Stream:
    """Work in its order; `until` is when the last of it ends, in seconds of the host.

    `knows` has, by stream, how much of its work has ended where this stream's next begins.
    """

    every: list[Stream] = []
    _pointers = itertools.count(4096, 16)

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else next(Stream._pointers)
        self.device_id = -1 if null else current_device[0]
        self.key = (current_device[0], self.ptr)
        self.until = 0.0
        #: What is queued and not done yet, in order; each says whether it could be done now.
        self.pending: list[Callable[[], bool]] = []
        #: While it captures, what is to be done in each replay; None when something has spoilt the capture.
        self.captured: list[Callable[[], Any]] | None = None
        self.capturing = False
        self.knows: Knowledge = {}
        Stream.every.append(self)

    @classmethod
    def from_external(cls, other: Any) -> Stream:
        version, pointer = other.__cuda_stream__()
        assert version == 0
        return _stream(pointer)

    def _check(self) -> None:
        if self.device_id not in (-1, current_device[0]):
            raise Refused(f"a stream of device {self.device_id}, and {current_device[0]} is current")

    def __enter__(self) -> Stream:
        self._check()
        _streams().append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _streams().pop()

    def work(self) -> int:
        """Something more in the stream; how much there is by now."""
        _learn(self.knows, host_knows)
        self.knows[self.key] = self.knows.get(self.key, 0) + 1
        return self.knows[self.key]

    def spoil(self, what: str) -> None:
        """Refuse what waits, or must not be in a graph, within a capture."""
        if self.capturing:
            self.captured = None
            raise Refused(f"cudaErrorStreamCaptureUnsupported: {what} when stream is capturing")

    def record(self, event: Event | None = None) -> Event:
        self.spoil("an event that the host may wait for")
        event = event or Event()
        if event.device_id != self.key[0]:
            raise Refused("cudaErrorInvalidResourceHandle: an event of another device")
        mark = event.mark = Mark()
        event.knows = dict(self.knows)
        queued = now()

        def done() -> bool:
            mark.at = max(queued, self.until)
            return True

        self.add(done)
        return event

    def wait_event(self, event: Event) -> None:
        _learn(self.knows, event.knows)
        mark = event.mark

        def done() -> bool:
            if mark is not None and mark.at is None:
                return False
            self.until = max(self.until, mark.at if mark is not None else 0.0)
            return True

        self.add(done)

    def add(self, done: Callable[[], bool]) -> None:
        """Queue something; it is done at once where nothing ahead of it is held back."""
        self.pending.append(done)
        pump()

    def synchronize(self) -> None:
        self.spoil("waiting")
        _drain([self])

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.capturing:
            raise Refused("cudaErrorIllegalState: a capture within a capture")
        self.captured, self.capturing = [], True

    def end_capture(self) -> Graph:
        work, self.captured, self.capturing = self.captured, None, False
        if work is None:
            raise Refused("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        return Graph(work, self.key[0])


#: For each graph that was destroyed while it ran, how often it was running.
destroyed: list[int] = []


class Graph:
    """Captured work; each launch does it once more, on the current stream."""

    def __init__(self, work: list[Callable[[], Any]], device: int) -> None:
        self.work, self.device, self.running = work, device, 0

    def __del__(self) -> None:
        if self.running:
            destroyed.append(self.running)

    def launch(self, stream: Stream | None = None) -> None:
        if current_device[0] != self.device:
            raise Refused("cudaErrorInvalidResourceHandle: a graph of another device")
        running = weakref.ref(self)
        self.running += 1
        for one in self.work:
            one()
        queue(0.0, lambda: running() and running()._ended())

    def _ended(self) -> None:
        self.running -= 1


#: Of each device, its current streams, the innermost last.
_stacks: dict[int, list[Stream]] = {}


def _streams() -> list[Stream]:
    return _stacks[current_device[0]]


def _stream(pointer: int) -> Stream:
    """The stream of the current device with this pointer."""
    return next(s for s in Stream.every if s.key == (current_device[0], pointer))


def current_stream(device_id: int = -1) -> Stream:
    return _stacks[current_device[0] if device_id == -1 else device_id][-1]


class Mark:
    """When an event was reached; None while it was not."""

    at: float | None = None


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.mark: Mark | None = None
        self.knows: Knowledge = {}
        self.device_id, self.timed = current_device[0], not disable_timing

    def record(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).record(self)

    def synchronize(self) -> None:
        current_stream().spoil("waiting")
        _learn(host_knows, self.knows)
        if self.mark is not None:
            _wait_for(self.mark)


#: Seconds of other work on arrays.
SHORT = 2e-6


def queue(seconds: float, work: Any = None) -> None:
    """Work on the current stream; done at once, unless it is captured."""
    stream = current_stream()
    if stream.captured is not None:
        stream.captured.append(lambda: queue(seconds, work))
        return
    queued = now()

    def done() -> bool:
        if not ends:
            ends.append(max(queued, stream.until) + seconds)
            _deadlines.append(ends[0])
        if _moment() < ends[0]:
            return False
        _deadlines.remove(ends[0])
        begin = _moment()
        if work is not None:
            work()  # what it writes is seen when it ends
        spent = _moment() - begin  # where time is not simulated, by the host in the GPU's place
        stream.until = ends[0] + spent
        return True

    ends: list[float] = []
    stream.add(done)


def get_elapsed_time(start: Event, end: Event) -> float:
    for event in (start, end):
        if event.mark is None or not event.timed:
            raise Refused("cudaErrorInvalidResourceHandle: an event that was not recorded")
        if event.mark.at is None or event.mark.at > now():
            raise Refused("cudaErrorNotReady: device not ready")
    if start.device_id != end.device_id:
        raise Refused("cudaErrorInvalidResourceHandle: events of two devices")
    return (end.mark.at - start.mark.at) * 1e3


_pumping: list[bool] = []
#: When what runs now will have ended, or run out.
_deadlines: list[float] = []


def pump() -> None:
    """Do what can be done by now, in every stream."""
    if _pumping:
        return
    _pumping.append(True)
    try:
        moved = True
        while moved:
            moved = False
            for stream in Stream.every:
                while stream.pending:
                    first = stream.pending.pop(0)
                    if not first():
                        stream.pending.insert(0, first)
                        break
                    moved = True
    finally:
        _pumping.clear()


def synchronize() -> None:
    """Wait for every stream, of both devices."""
    _drain(Stream.every)


def _device_synchronize() -> None:
    """As CUDA has it: of the current device alone."""
    _drain([stream for stream in Stream.every if stream.key[0] == current_device[0]])


def _drain(streams: list[Stream]) -> None:
    for stream in streams:
        _learn(host_knows, stream.knows)
    _settle(streams)


def _settle(streams: list[Stream]) -> None:
    """Let the time pass in which these have done their work."""
    pump()
    while any(stream.pending for stream in streams):
        if not _deadlines:
            raise AssertionError("a stream waits for what nobody queued")
        _wait_until(min(_deadlines))
        pump()
    _wait_until(max((stream.until for stream in streams), default=0.0))


def _wait_for(mark: Mark) -> None:
    """Let the time pass in which an event is reached."""
    pump()
    while mark.at is None:
        if not _deadlines or _pumping:
            raise AssertionError("an event waits for what nobody queued")
        _wait_until(min(_deadlines))
        pump()
    _wait_until(mark.at)


def _wait_until(end: float) -> None:
    """To the microsecond: a sleep would overshoot."""
    if simulated:
        simulated[0] = max(simulated[0], end)
    while now() < end:
        pass


# ---------------------------------------------------------------------------------------------------
# Pinned memory, and the kernel that spins on it
# ---------------------------------------------------------------------------------------------------
#: Name of the kernel that holds a stream back: `convkit.bench.measure.hold`.
HOLD = "convkit_hold"
_pinned: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
#: Of each stream that is held back, how much of its work is not behind the hold.
held_since: dict[tuple[int, int], int] = {}
#: A hold's limits, in seconds, and how it ended, one after the other.
holds: list[list[Any]] = []


def alloc_pinned_memory(size: int) -> Any:
    """Bytes of the host with an address, which are freed with the object; full of rubbish."""

    class PinnedMemoryPointer(ctypes.c_byte * max(512, size)):
        ptr = property(lambda self: ctypes.addressof(self))

    made = PinnedMemoryPointer(*[-1] * max(512, size))
    _pinned[made.ptr] = made
    return made


class RawKernel:
    """Takes a millisecond; but for the one that holds a stream back."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        assert f"void {name}(" in code
        self.name = name

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        assert type(grid) is type(block) is tuple
        for value in args:
            if not isinstance(value, (np.generic, ndarray, int, float)):
                raise TypeError(f"Unsupported type {type(value)}")
        if self.name != HOLD:
            queue(1e-3)
            return
        pointer, cycles, reads = args
        assert (grid, block) == ((1,), (1,)) and [a.itemsize for a in args] == [8, 8, 8]
        _hold(int(pointer), min(int(cycles) / 2e9, int(reads) * 1e-6))


def _hold(pointer: int, limit: float) -> None:
    """Nothing behind this begins before its flag is seen, or its limit is over: a microsecond a read."""
    stream, queued = current_stream(), now()
    entry: list[Any] = [limit, "waits"]
    holds.append(entry)
    held_since[stream.key] = stream.knows.get(stream.key, 0)
    begun: list[float] = []

    def done() -> bool:
        if pointer not in _pinned:
            raise AssertionError("cudaErrorIllegalAddress: the flag's memory was freed")
        words = np.frombuffer(_pinned[pointer], np.int32, 2)
        if not begun:
            begun.append(max(queued, stream.until))
            _deadlines.append(begun[0] + limit)
        end = begun[0] + limit
        if _moment() < end and words[0] == 0:
            return False
        let_go = _moment() < end
        stream.until = max(begun[0], _moment()) if let_go else end
        words[1], entry[1] = (1, "let go") if let_go else (2, "ran out")
        _deadlines.remove(end)
        del held_since[stream.key]
        return True

    stream.add(done)


class Device:
    """One GPU; in a `with` block, the current one."""

    def __init__(self, device: Any = None) -> None:
        self.id = current_device[0] if device is None else int(device)
        self.compute_capability = "90"

    def __int__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        if not 0 <= self.id < DEVICES:
            raise Refused("cudaErrorInvalidDevice: invalid device ordinal")
        self.before = [*getattr(self, "before", []), current_device[0]]
        current_device[0] = self.id
        return self

    def __exit__(self, *error: object) -> None:
        current_device[0] = self.before.pop()


# ---------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------
class Memory:
    """What one allocation got, and who last used it."""

    every: weakref.WeakSet[Memory] = weakref.WeakSet()

    def __init__(self, size: int) -> None:
        if _allocators:
            _allocators[-1](size)
        Memory.every.add(self)
        self.device = current_device[0]
        self.bytes = np.empty(size + 512, np.uint8)
        if size < 2**20:
            self.bytes.fill(255)  # NaN of every dtype
        self.start = -self.bytes.ctypes.data % 512
        self.write: Knowledge = {}  # the stream, and how much work it had then
        self.reads: Knowledge = {}

    @classmethod
    def at(cls, ptr: int, size: int) -> tuple[Memory, np.ndarray]:
        """The allocation of these bytes, and the bytes."""
        for memory in cls.every:
            offset = ptr - memory.bytes.ctypes.data
            if memory.start <= offset and offset + size <= memory.bytes.size:
                return memory, memory.bytes[offset : offset + size]
        raise AssertionError(f"{ptr:#x} is no device memory")

    def use(self, stream: Stream, *, write: bool) -> None:
        """Note that a stream reads or writes it; a `Race` where what it must follow may not have ended."""
        if stream.captured is not None:
            stream.captured.append(lambda: self.use(current_stream(), write=write))
            return
        mine = {stream.key: stream.work()}
        before = {**self.reads, **self.write} if write else self.write
        for key, count in before.items():
            if not write and count > held_since.get(key, count):
                continue  # what would be written is held back: nobody is at it
            if count > stream.knows.get(key, 0) and races:
                raise Race(f"stream {stream.key} does not wait for {key}")
        if write:
            self.write, self.reads = mine, {}
        else:
            self.reads.update(mine)


#: The innermost last: called with the bytes of each allocation.
_allocators: list[Callable[[int], Any]] = []


@contextlib.contextmanager
def using_allocator(allocator: Callable[[int], Any]) -> Iterator[None]:
    _allocators.append(allocator)
    try:
        yield
    finally:
        _allocators.pop()


class Pointer:
    """An address in device memory."""

    def __init__(self, memory: Memory, ptr: int) -> None:
        self.memory, self.ptr = memory, ptr
        self.device = Device(memory.device)
        self.device_id = memory.device

    def copy_from_host_async(self, mem: int, size: int, stream: Stream | None = None) -> None:
        """From pinned memory, as it is when the stream comes to it."""
        assert stream is None and type(mem) is int
        if self.memory.device != current_device[0]:
            raise Refused("a copy on a stream of another device")
        self.memory.use(current_stream(), write=True)
        start = self.ptr - self.memory.bytes.ctypes.data
        target = self.memory.bytes[start : start + size]

        def copy() -> None:
            if mem not in _pinned:
                raise AssertionError("cudaErrorIllegalAddress: pinned memory was freed before it was read")
            target[...] = np.frombuffer(_pinned[mem], np.uint8, size)

        queue(SHORT, copy)


class ndarray:
    """Device memory: only `get` and `set` cross to the host."""

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        dtype = np.dtype(dtype)
        if memptr is None:
            assert strides is None
            count = math.prod(shape) if isinstance(shape, (tuple, list)) else shape
            memory = Memory(int(count) * dtype.itemsize)
            offset = memory.start
        else:
            memory, offset = memptr.memory, memptr.ptr - memptr.memory.bytes.ctypes.data
        self._memory = memory
        self._host = np.ndarray(shape, dtype, memory.bytes, offset, strides, order)

    @classmethod
    def _of(cls, host: np.ndarray, memory: Memory) -> ndarray:
        """A view of device memory."""
        array = cls.__new__(cls)
        array._host, array._memory = np.asarray(host), memory
        return array

    @classmethod
    def _new(cls, host: Any) -> ndarray:
        """New device memory, on the current device, with these values; something that its stream does."""
        host = np.asarray(host)
        array = cls(host.shape, host.dtype)
        array._host[...] = host
        array._memory.use(current_stream(), write=True)
        return array

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    device = property(lambda self: Device(self._memory.device))
    data = property(lambda self: Pointer(self._memory, self._host.ctypes.data))

    @property
    def flags(self) -> Any:
        flags = self._host.flags
        return types.SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=True
        )

    def _use(self, *, write: bool = False) -> np.ndarray:
        """The values, for a kernel on the current stream."""
        if self._memory.device != current_device[0]:
            raise Refused(
                "Array device must be same as the current device: "
                f"array device = {self._memory.device} while current = {current_device[0]}"
            )
        if self.size and not self._host.flags.aligned:
            raise Refused("cudaErrorMisalignedAddress: misaligned address")
        self._memory.use(current_stream(), write=write)
        return self._host

    def use(self, *, write: bool = False) -> np.ndarray:
        """The values, when the current stream has come to where it is by now."""
        host = self._use(write=write)
        _settle([current_stream()])
        return host

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._memory.device

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        """A capsule; the consumer's stream waits for the current one."""
        _hand_over(current_stream(), stream)
        return types.SimpleNamespace(array=self)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("implicit conversion of device memory, as CuPy refuses it")

    def get(self) -> np.ndarray:
        stream = current_stream()
        stream._check()
        if self._memory.device != current_device[0]:
            raise Refused("a copy on a stream of another device")
        self._memory.use(stream, write=False)
        stream.synchronize()
        return self._host.copy()

    def __bool__(self) -> bool:
        """Of one element, which is copied to the host; of several an error, as NumPy's."""
        return bool(self.get())

    def set(self, values: np.ndarray) -> None:
        current_stream().spoil("a copy from pageable memory")
        assert isinstance(values, np.ndarray) and values.dtype == self.dtype and values.shape == self.shape
        assert self._host.flags.c_contiguous or self._host.flags.f_contiguous
        if self._memory.device != current_device[0]:
            raise Refused("a copy on a stream of another device")
        self._memory.use(current_stream(), write=True)
        if current_stream().pending:  # pageable memory of the host: the copy may wait for the stream
            current_stream().synchronize()
        self._host[...] = values

    def fill(self, value: Any) -> None:
        host = self._use(write=True)
        queue(SHORT, lambda: host.fill(value))

    def _made(self, function: Callable[[np.ndarray], Any]) -> ndarray:
        """New device memory, with what the stream makes of the values that it finds when it comes to it."""
        host = self._use()
        made = ndarray._new(function(host))
        if current_stream().pending:
            queue(SHORT, lambda: made._host.__setitem__(..., function(host)))
        return made

    def copy(self) -> ndarray:
        return self._made(lambda host: host)

    def view(self, dtype: Any) -> ndarray:
        return ndarray._of(self._host.view(dtype), self._memory)

    def reshape(self, *shape: Any) -> ndarray:
        view = self._host.reshape(*shape)
        if np.shares_memory(view, self._host) or not self.size:
            return ndarray._of(view, self._memory)
        return self._made(lambda host: host.reshape(*shape))

    def transpose(self, *axes: Any) -> ndarray:
        return ndarray._of(self._host.transpose(*axes), self._memory)

    def mean(self, **options: Any) -> ndarray:
        return self._made(lambda host: host.mean(**options))

    def max(self) -> ndarray:
        queue(1e-4)
        return ndarray._new(self._use().reshape(-1)[:1].max())

    def astype(self, dtype: Any) -> ndarray:
        return self._made(lambda host: host.astype(dtype))

    def __float__(self) -> float:
        return float(self.get())

    def __getitem__(self, index: Any) -> ndarray:
        view = self._host[index if isinstance(index, tuple) else (index,)] if self.ndim else self._host[index]
        return ndarray._of(view, self._memory)

    def __setitem__(self, index: Any, value: Any) -> None:
        assert not isinstance(value, np.ndarray), "host memory assigned to device memory"
        source = value._use() if isinstance(value, ndarray) else value
        target = self._use(write=True)
        queue(SHORT, lambda: target.__setitem__(index, source))


ndarray.__module__ = "cupy"


def _hand_over(producer: Stream, consumer: Any) -> None:
    """DLPack's protocol on the producer's side: the consumer's stream waits for the producer's."""
    assert isinstance(consumer, int) and consumer != 0, "the legacy default stream is 1"
    if consumer == -1:
        return
    pointer = 0 if consumer == 1 else consumer
    if pointer != producer.ptr:
        _stream(pointer).wait_event(producer.record())


def _from_dlpack(value: Any) -> ndarray:
    """As CuPy does it: on the array's device, with CuPy's current stream there."""
    kind, index = value.__dlpack_device__()
    assert kind == 2
    with Device(index):
        stream = current_stream().ptr or 1
        try:
            capsule = value.__dlpack__(stream=stream, max_version=(1, 0), copy=None)
        except TypeError:
            capsule = value.__dlpack__(stream=stream)
    return ndarray._of(capsule.array._host, capsule.array._memory)


def _ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if a.flags.c_contiguous and a.dtype == dtype:
        return a if a.ndim else a.reshape(1)
    new = ndarray(a.shape or (1,), dtype)
    new[...] = a
    return new


#: Seconds of `maximum`.
KERNEL = [2e-3]


def _maximum(a: ndarray, b: float, out: ndarray) -> None:
    x, y = a._use(), out._use(write=True)
    queue(KERNEL[0], lambda: np.maximum(x, b, out=y))


def _add(a: ndarray, b: ndarray, out: ndarray) -> None:
    x, y, z = a._use(), b._use(), out._use(write=True)
    queue(SHORT, lambda: np.add(x, y, out=z))


def _random(shape: Any, dtype: Any = np.float32) -> ndarray:
    return ndarray._new(np.random.default_rng(0).standard_normal(shape, dtype))


# ---------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------
class CUDADriverError(RuntimeError):
    pass


class Function:
    """A kernel that has been loaded; it keeps what it was launched with."""

    __slots__ = ("_launches", "module", "ptr")
    _pointers = itertools.count(1 << 20, 64)

    def __init__(self, module: Any, name: str) -> None:
        self.module, self.ptr, self._launches = module, next(Function._pointers), []

    def __call__(
        self, grid: tuple, block: tuple, args: Any, shared_mem: int = 0, stream: Any = None, **options: Any
    ) -> None:
        asked = self.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        allowed = driver.attributes.get(asked, 48 << 10)
        if shared_mem > allowed:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._launches.append((grid, block, args, shared_mem))


class Module:
    """Machine code on the device that was current as it was loaded."""

    def load(self, cubin: bytes) -> None:
        assert type(cubin) is bytes
        self.cubin, self.device = cubin, current_device[0]

    def get_function(self, name: str) -> Function:
        return Function(self, name)


class _Driver:
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
    CUDADriverError = CUDADriverError
    #: Of an H100.
    LIMIT = 227 << 10

    def __init__(self) -> None:
        self.attributes: dict[tuple[int, int], int] = {}
        self.calls = 0

    def funcSetAttribute(self, f: int, attribute: int, value: int) -> None:
        self.calls += 1
        if value > self.LIMIT:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self.attributes[f, attribute] = value


driver = _Driver()


class Executor(protocol.Executor):
    """Launches on arrays of the current device, by the emulator."""

    def __init__(self, emulator: Any) -> None:
        super().__init__()
        self.emulator, self.device = emulator, current_device[0]
        self.captured = 0

    captures = True

    def capture(self, run: Any) -> Any:
        assert current_device[0] == self.device
        self.captured += 1
        return graph.capture(run)

    def _compile(self, source: str, entry: str, include: Any, name: str) -> Any:
        assert current_device[0] == self.device, "code is loaded on the current device"
        return _Emulated(self.emulator.function(source, entry, include=include, name=name), self.device)


class _Emulated:
    def __init__(self, function: Any, device: int) -> None:
        self.function, self.device = function, device

    def bind(self, grid: Any, block: Any, shared: int, parameters: Any) -> Any:
        launch = self.function.bind(grid, block, shared, parameters)

        def queued(values: Any) -> None:
            if current_device[0] != self.device:
                raise Refused("CUDA_ERROR_INVALID_HANDLE: a function of another device")
            found = []
            for parameter, value in zip(parameters, values, strict=True):
                tensor = isinstance(value, np.ndarray) and value.ndim and value.dtype.names is None
                assert not tensor, f"{parameter.name} is host memory"
                if isinstance(value, ndarray):
                    value = value._use(write=parameter.output)
                found.append(value)
            queue(SHORT, lambda: launch(tuple(found)))

        return queued


def current_executor(emulator: Any) -> Callable[[], Executor]:
    """What to put in the place of `devices.current`."""
    found: dict[int, Executor] = {}

    def current() -> Executor:
        if current_device[0] not in found:
            found[current_device[0]] = Executor(emulator)
        return found[current_device[0]]

    return current


# ---------------------------------------------------------------------------------------------------
# The modules
# ---------------------------------------------------------------------------------------------------
def module(*, watch_races: bool = False) -> types.ModuleType:
    """The module to put in the place of `cupy`; races are refused on request, as no GPU does."""
    cupy = types.ModuleType("cupy")
    races[:] = [True] if watch_races else []
    limits: dict[int, int] = {}
    current_device[0] = 0
    Stream.every.clear()
    _deadlines.clear()
    holds.clear()
    destroyed.clear()
    held_since.clear()
    host_knows.clear()
    _allocators.clear()
    _stacks.clear()
    for device in range(DEVICES):
        with Device(device):
            _stacks[device] = [Stream(null=True)]
    driver.__init__()
    runtime = types.SimpleNamespace(
        getDevice=lambda: current_device[0],
        getDeviceCount=lambda: DEVICES,
        deviceGetPCIBusId=lambda device: f"0000:{device:02x}:00.0",
        getDeviceProperties=lambda device: {
            "name": b"no GPU at all", "major": 9, "minor": 0, "multiProcessorCount": 1, "l2CacheSize": 4096,
        },
        driverGetVersion=lambda: 0,
        runtimeGetVersion=lambda: 0,
        deviceSynchronize=_device_synchronize,
        deviceSetLimit=limits.__setitem__,
        limits=limits,
    )  # fmt: skip
    members = {
        "ndarray": ndarray,
        "__version__": "14.2.0",
        "empty": ndarray,
        "empty_like": lambda a: ndarray(a.shape, a.dtype),
        "ones": lambda shape, dtype=float: ndarray._new(np.ones(min(shape, 2**16), dtype)),
        "asarray": lambda a: ndarray._new(a),
        "ascontiguousarray": _ascontiguousarray,
        "copyto": lambda target, source: target.__setitem__(..., source),
        "from_dlpack": _from_dlpack,
        "matmul": lambda a, b, out: queue(1e-3),
        "maximum": _maximum,
        "add": _add,
        "RawKernel": RawKernel,
        "random": types.SimpleNamespace(standard_normal=lambda shape, dtype: _random((4, 4), dtype)),
        "cuda": types.SimpleNamespace(
            is_available=lambda: True,
            runtime=runtime,
            driver=driver,
            function=types.SimpleNamespace(Function=Function, Module=Module),
            Device=Device,
            Event=Event,
            Stream=Stream,
            get_current_stream=current_stream,
            get_elapsed_time=get_elapsed_time,
            alloc_pinned_memory=alloc_pinned_memory,
            using_allocator=using_allocator,
        ),
    }
    cupy.__dict__.update(members)
    return cupy


class Tensor:
    """A tensor of PyTorch's on a GPU; what its user queues there goes to PyTorch's current stream."""

    requires_grad = is_nested = is_quantized = False
    is_cuda = True
    layout = "strided"

    def __init__(self, array: ndarray) -> None:
        self._array, self._version = array, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> str:
        return f"torch.{self._array.dtype.name}"

    def is_neg(self) -> bool:
        return False

    def view(self, dtype: str) -> Tensor:
        names = {"torch.bfloat16": "bfloat16", "torch.int16": "int16"}
        return Tensor(self._array.view(np.dtype(names[dtype])))

    def __torch_dispatch__(self) -> None:
        """Only compared."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = -1, max_version: Any = None, copy: Any = None) -> Any:
        if self._array.device.id != current_device[0]:
            raise BufferError("Can't export tensors on a different CUDA device index.")
        _hand_over(torch_stream(current_device[0]), stream)
        return types.SimpleNamespace(array=self._array)

    def use(self, *, write: bool = False) -> np.ndarray:
        """What PyTorch's own kernels do with it: on PyTorch's current stream."""
        with Device(self._array.device.id):
            self._array._memory.use(torch_stream(current_device[0]), write=write)
            _settle([torch_stream(current_device[0])])
        return self._array._host


Tensor.__module__ = "torch"
_torch_streams: dict[int, list[Stream]] = {}


def torch_stream(device: int) -> Stream:
    """PyTorch's current stream."""
    return _torch_streams[device][-1]


@contextlib.contextmanager
def torch_streams() -> Iterator[None]:
    """A stream of PyTorch's own as its current one, on each device."""
    for device in range(DEVICES):
        with Device(device):
            _torch_streams[device].append(Stream(non_blocking=True))
    yield
    for stack in _torch_streams.values():
        stack.pop()


def torch_module() -> types.ModuleType:
    """The module to put in the place of `torch`; after `module`."""
    torch = types.ModuleType("torch")
    arrays._library_of.cache_clear()  # which library a type is of was found out in another world
    _torch_streams.clear()
    _torch_streams.update({device: [_stacks[device][0]] for device in range(DEVICES)})

    def from_dlpack(value: Any) -> Tensor:
        index = value.__dlpack_device__()[1]
        stream = torch_stream(index).ptr or 1
        return Tensor(value.__dlpack__(stream=stream, max_version=(1, 0)).array)

    def increment_version(tensors: list[Tensor]) -> None:
        for tensor in tensors:
            tensor._version += 1

    forward_ad = types.SimpleNamespace(unpack_dual=lambda t: types.SimpleNamespace(tangent=None))
    lazy = type("UninitializedTensorMixin", (), {})
    members = {
        "Tensor": Tensor,
        "nn": types.SimpleNamespace(parameter=types.SimpleNamespace(UninitializedTensorMixin=lazy)),
        "_is_functional_tensor": lambda tensor: False,
        "strided": "strided",
        "bfloat16": "torch.bfloat16",
        "from_dlpack": from_dlpack,
        "cuda": types.SimpleNamespace(
            current_stream=lambda device: types.SimpleNamespace(cuda_stream=torch_stream(device).ptr)
        ),
        "autograd": types.SimpleNamespace(
            graph=types.SimpleNamespace(increment_version=increment_version), forward_ad=forward_ad
        ),
    }
    torch.__dict__.update(members)
    return torch
