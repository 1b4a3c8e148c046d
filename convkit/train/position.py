"""Where a run is: what a checkpoint holds beside the network's state."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np

from ..network.loss import Loss
from .errors import RunError


@dataclass
class Sums:
    """What adds up over images; of several processes, as arrays.

    Attributes
    ----------
    loss : float
        Of the images' cross-entropies, in nats.
    errors, top5_errors : int
    images : int
        That were looked at.
    left_out : int
        Images that could not be read.
    """

    loss: float = 0.0
    errors: int = 0
    top5_errors: int = 0
    images: int = 0
    left_out: int = 0

    def add(self, loss: Loss) -> None:
        self.loss += float(loss) * loss.images
        self.errors += loss.errors
        self.top5_errors += loss.top5_errors
        self.images += loss.images

    def row(self, prefix: str = "", top5: bool = True) -> dict[str, float]:
        """Mean loss, and shares of wrong images; the top-5 error only if `top5`."""
        count = max(1, self.images)
        found = {f"{prefix}loss": self.loss / count, f"{prefix}error": self.errors / count}
        return found | ({f"{prefix}top5_error": self.top5_errors / count} if top5 else {})

    def array(self) -> np.ndarray:
        """As float64 (5,), for `Exchange.add`."""
        return np.array(astuple(self), np.float64)

    @classmethod
    def of(cls, values: np.ndarray) -> Sums:
        """What `array`, or a sum of such, stands for."""
        loss, *counts = values.tolist()
        return cls(loss, *map(int, counts))


@dataclass
class Position:
    """How far training has come.

    Attributes
    ----------
    epoch : int
        Epochs that are complete.
    batch : int
        Batches of the next one that are done.
    step : int
        Steps that are done, over all epochs.
    epoch_sums, row_sums : Sums
        Of the epoch that is under way; of the steps since the last row of steps.csv.
    lowered, waited : int
        How often a plateau has been reached; epochs since the lowest validation error.
    lowest : float
        The lowest top-1 validation error at the end of an epoch, from 0 to 1. A plateau counts from it.
    best : float
        That of best.safetensors. It is another where the disk was full, or where training ended within an
        epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    epoch_sums: Sums = field(default_factory=Sums)
    row_sums: Sums = field(default_factory=Sums)
    lowered: int = 0
    waited: int = 0
    lowest: float = math.inf
    best: float = math.inf

    @classmethod
    def of(cls, table: dict[str, Any]) -> Position:
        """From what `table` gave.

        Raises
        ------
        RunError
            If something is missing, or not known.
        """
        try:
            sums = {name: Sums(**table[name]) for name in ("epoch_sums", "row_sums")}
            errors = {n: math.inf if table[n] is None else table[n] for n in ("lowest", "best")}
            return cls(**{**table, **sums, **errors})
        except (KeyError, TypeError) as error:
            raise RunError(f"the checkpoint was written by another convkit: its position: {error}") from None

    def table(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}


class Pace:
    """Images a second, and the share of the time that was spent waiting for them, since this was made."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.images, self.waited = 0, 0.0

    def add(self, images: int, waited: float) -> None:
        self.images += images
        self.waited += waited

    def row(self) -> dict[str, float]:
        """Both, up to now."""
        seconds = max(1e-9, time.monotonic() - self.began)
        return {"images_per_second": self.images / seconds, "wait": self.waited / seconds}
