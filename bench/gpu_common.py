"""What the stages of `bench/gpu.py` share: how much, the clock, PyTorch, what a rehearsal changes."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gpu

Record = dict[str, Any]
REHEARSED = bool(os.environ.get(gpu.REHEARSAL))
if REHEARSED:  # before anything of convkit is imported
    import gpu_rehearse

    gpu_rehearse.install()

from convkit.bench.measure.clocks import CudaClock  # noqa: E402
from convkit.bench.peers import Missing, need  # noqa: E402


@dataclass(frozen=True)
class Sizes:
    """How much of it: all, or as little as walks every line."""

    kernels: tuple[str, ...] = ()  # none: all of them
    gate_cases: int | None = None
    passes: int = 3  # of the gate, each on data and random geometries of its own
    presets: tuple[str, ...] = ("paper", "2012", "caffe", "owt")
    convs: tuple[str, ...] = ()  # none: AlexNet's layers
    batch: int = 128
    net: str = "paper"
    batches: tuple[int, ...] = (128, 1)
    seconds: float = 0.12  # of samples, for each entry of a layer
    samples: int = 30
    step_seconds: float = 3.0  # of a step's samples
    layouts: tuple[str, ...] = ("NCHW", "NHWC")
    compiled: bool = True


TINY = Sizes(
    kernels=("relu_fprop_vectorized",), gate_cases=2, passes=1, presets=("tiny",), net="plain", batches=(2,),
    convs=("2,4,9,8,6,3,3,stride=2,pad=1,groups=2",), batch=2, seconds=0.002, samples=3, step_seconds=1.0,
    layouts=("NCHW",), compiled=False,
)  # fmt: skip
SIZES = TINY if REHEARSED else Sizes()


@contextlib.contextmanager
def emulated(small: bool = True) -> Iterator[bool]:
    """On a GPU nothing. In a rehearsal, small work is emulated and the rest launches nothing.

    Yields whether what comes out means something.
    """
    if not REHEARSED:
        yield True
        return
    with gpu_rehearse.emulator() if small else contextlib.nullcontext():
        yield small


@functools.lru_cache(maxsize=1)
def clock() -> CudaClock:
    return CudaClock()


def torch_here() -> Any:
    torch = need("torch")
    if not REHEARSED and not torch.cuda.is_available():
        raise Missing("this PyTorch sees no GPU")
    return torch


def place() -> str:
    return "cpu" if REHEARSED else "cuda"
