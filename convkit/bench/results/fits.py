"""Whether an item fits into memory, and what to say where it does not."""

from __future__ import annotations

from ...errors import OutOfMemory
from ...op import np_itemsize
from ..work import NETWORK_OPS, Item

#: Copies of an item's memory in float64 that its check holds at once: inputs, outputs, squares, bounds.
_CHECKING = 5


def out_of_memory(error: BaseException) -> bool:
    """Whether it is NumPy's, CuPy's or PyTorch's way to say so."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__


def mentions_memory(reason: str) -> bool:
    words = ("MemoryError", "OutOfMemory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return any(word.lower() in reason.lower() for word in words)


class TooLarge(OutOfMemory):
    """An item that cannot fit; `share` is the part of it that could."""

    share = 0.5


def smaller_batch(item: Item, share: float = 0.5) -> str:
    """What to try instead, to stand behind the reason; empty where the batch cannot be smaller."""
    if item.batch < 2:
        return ""
    batch = smaller(item.batch, share)
    return f"; try {f'--batch {batch}' if item.net else f'N = {batch}'}"


def smaller(batch: int, share: float = 0.5) -> int:
    """The largest power of two that is at most this share of the batch, and at least 1."""
    least = max(1, int(batch * share))
    return 1 << (least.bit_length() - 1)


def available_bytes(device: str) -> int | None:
    """Memory that is free; None where the system does not say."""
    if device == "cuda":
        import cupy

        ask = getattr(cupy.cuda.runtime, "memGetInfo", None)
        return int(ask()[0]) if ask else None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def require_memory(item: Item, device: str) -> None:
    """Refuse an item that cannot fit, before the system's way of refusing it ends the process.

    Raises
    ------
    TooLarge
    """
    if item.op in NETWORK_OPS:
        return
    count = item.bytes // np_itemsize(item.dtype)
    wanted = 3 * item.bytes + (0 if device == "cuda" else _CHECKING * 8 * count)
    free = available_bytes(device)
    if free is not None and wanted > free:
        error = TooLarge(
            f"it takes some {wanted / 2**30:.1f} GiB with its check in float64; {free / 2**30:.1f} are free"
        )
        error.share = free / wanted
        raise error
