"""What a process that reads images does: rows of batches, into memory that it shares with its parent.

The parent's side is `processes.py`. `read_row` is the one rule for images that cannot be read, with and
without processes.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..check.process.memory import Shared
from .data.dataset import Split, none_readable
from .errors import BadImage, DataError

#: Of images in a row that cannot be read, after which nothing is searched further.
MOST_MISSED = 1000
#: CPU seconds after which an image is given up: its decoder does not end.
MOST_SECONDS = 60.0
#: A task: its number, the byte where its batch begins, the batch's rows, the first row, the row behind the
#: last. 64 bytes divide a page, so that a reader of the pipe gets a whole one.
TASK = struct.Struct("<5q24x")
#: What is answered: bytes of the text that follows, what it is, and three numbers.
ANSWER = struct.Struct("<Hcx3q")
READY, DONE, FAILED, ERROR = b"R", b"D", b"F", b"E"
#: Of a reader that is at no image.
NOWHERE = -1
_ALIGN = 64


def read_row(
    split: Split, index: int, out: np.ndarray, substitute: bool, refused: Mapping[int, str], at: Any = None
) -> tuple[int, list[tuple[int, str]]]:
    """Read one image, or the next one that can be read.

    Parameters
    ----------
    split : Split
    index : int
    out : uint8 array, (H, W, C)
        Zero where nothing can be read.
    substitute : bool
        Whether the image (index + 1) % n, and so on, takes the place of one that cannot be read.
    refused : mapping of int to str
        Images that are not tried, each with the reason.
    at : callable, optional
        Called with the number of each image before it is read.

    Returns
    -------
    found : int
        Number of the image in `out`; -1 if there is none.
    failures : list of (int, str)
        Number of each image that cannot be read, with the reason.

    Raises
    ------
    DataError
        If `substitute` and no image, or none of a thousand in a row, can be read.
    """
    count = len(split)
    failures: list[tuple[int, str]] = []
    for step in range(min(count, MOST_MISSED) if substitute else 1):
        candidate = (index + step) % count
        reason = refused.get(candidate)
        if reason is None:
            if at is not None:
                at(candidate)
            try:
                split.read(candidate, out)
            except BadImage as error:
                reason = str(error)
            else:
                return candidate, failures
        failures.append((candidate, reason))
    out[...] = 0
    if substitute:
        raise nothing(split, *failures[0])
    return -1, failures


def nothing(split: Split, index: int, reason: str) -> DataError:
    """The error for a split of which nothing can be read."""
    what = f"the {len(split)} images"
    if len(split) > MOST_MISSED:
        what = f"{MOST_MISSED} images in a row, of {len(split)},"
    return none_readable(split, what, index, reason)


# ---------------------------------------------------------------------------------------------------
# Where things are in the memory of a batch
# ---------------------------------------------------------------------------------------------------
def extent(rows: int, shape: tuple[int, int, int]) -> int:
    """Bytes of a batch: the images, then what is asked for and what was found."""
    return -(-rows * int(np.prod(shape)) // _ALIGN) * _ALIGN + 16 * rows


def views(block: np.ndarray, rows: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """Images uint8 (m, H, W, C), asked int64 (m,), found int64 (m,) of a batch."""
    size = rows * int(np.prod(shape))
    numbers = block[extent(rows, shape) - 16 * rows : extent(rows, shape)].view(np.int64)
    return block[:size].reshape(rows, *shape), numbers[:rows], numbers[rows:]


# ---------------------------------------------------------------------------------------------------
# A split, in a file that all readers map
# ---------------------------------------------------------------------------------------------------
def pack(split: Split) -> bytearray:
    """A split as bytes; its arrays lie in them as they are."""
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(split, 5, buffer_callback=buffers.append)
    parts = [memoryview(stream), *(buffer.raw() for buffer in buffers)]
    packed = bytearray(struct.pack(f"<{1 + len(parts)}q", len(parts), *map(len, parts)))
    for part in parts:
        packed += bytes(-len(packed) % _ALIGN)
        packed += part
    return packed


def unpack(fd: int) -> Split:
    """The split that a file has; its arrays are those of the file, and read-only."""
    whole = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    (count,) = struct.unpack_from("<q", whole)
    place, parts = 8 * (1 + count), []
    for size in struct.unpack_from(f"<{count}q", whole, 8):
        place += -place % _ALIGN
        parts.append(whole[place : place + size])
        place += size
    split: Split = pickle.loads(parts[0], buffers=parts[1:])
    return split


# ---------------------------------------------------------------------------------------------------
# The process
# ---------------------------------------------------------------------------------------------------
def main() -> None:
    """Read what the parent asks for, until it closes the pipe or is gone."""
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(settings["parent"],), daemon=True).start()
    reader = Reader(settings)
    try:
        reader.open()
        while task := os.read(settings["tasks"], TASK.size):
            reader.run(*TASK.unpack(task))
    except BrokenPipeError:
        pass  # the parent is gone
    except Exception as error:
        message = str(error) if isinstance(error, DataError) else traceback.format_exc()
        reader.answer(ERROR, text=message)
    # Nothing here needs to be put in order, and libraries that end by themselves may wait for one another.
    os._exit(0)


def _end_with(parent: int) -> None:
    """End when the parent has, whatever the decoder is at. Nothing is ever sent here."""
    os.read(parent, 1)
    os._exit(0)


class Reader:
    """One process that reads.

    Parameters
    ----------
    settings : dict
        From the parent: file descriptors, and its own number.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._shared = Shared(settings["memory"])
        self._refused = {int(index): reason for index, reason in settings["refused"].items()}
        #: What each reader is at; the parent looks here if one is lost.
        self._places = self._shared.block(settings["places"], 8 * settings["readers"]).view(np.int64)

    def open(self) -> None:
        """Take over the split."""
        try:
            self._split = unpack(self._settings["split"])
        except Exception as error:
            raise DataError(
                f"worker processes cannot open the images ({type(error).__name__}: {error}): their "
                "class must be in a module that can be imported, or use workers=0"
            ) from error
        self.answer(READY, self._settings["number"])

    def run(self, number: int, place: int, rows: int, first: int, stop: int) -> None:
        """Read some rows of a batch."""
        shape = self._split.shape
        substitute = self._settings["substitute"]
        images, asked, found = views(self._shared.block(place, extent(rows, shape)), rows, shape)
        for row in range(first, stop):
            found[row], failures = read_row(
                self._split, int(asked[row]), images[row], substitute, self._refused, self._at
            )
            for index, reason in failures:
                self.answer(FAILED, number, row, index, text=reason)
        self._at(NOWHERE)
        self.answer(DONE, number)

    def _at(self, index: int) -> None:
        self._places[self._settings["number"]] = index
        # The signal ends the process; what it means, the parent knows.
        signal.setitimer(signal.ITIMER_PROF, 0.0 if index == NOWHERE else self._settings["seconds"])

    def answer(self, what: bytes, a: int = 0, b: int = 0, c: int = 0, text: str = "") -> None:
        """Tell the parent. A pipe takes so few bytes as a whole, whoever else writes."""
        said = text.encode(errors="replace")
        if len(said) > (most := select.PIPE_BUF - ANSWER.size):
            # Of a traceback the end counts, of a reason the beginning.
            said = said[-most:] if what == ERROR else said[:most]
            said = said.decode(errors="ignore").encode()
        os.write(self._settings["answers"], ANSWER.pack(len(said), what, a, b, c) + said)
