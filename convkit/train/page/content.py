"""What a page is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..data.dataset import Split
from ..evaluation import Evaluation

#: The columns of a log, by name; NaN where there is no figure.
Log = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Content:
    """What a page is about.

    Attributes
    ----------
    title : str
    evaluation : Evaluation
    split : Split
        What was evaluated: the images are read from it once more.
    classes, names : sequence of str
        Key of each class, and its name for people.
    facts : sequence of (str, str)
        Names and values: the run, the data, the checkpoint, ...
    notices : sequence of str
        What must be known to read the figures right.
    epochs, steps : mapping of str to array
        The run's logs.
    filters : float array, (K, C, R, S), or None
        Weights of the first layer; the channels are red, green, blue, or grey alone.
    recipe : str
        As TOML.
    """

    title: str
    evaluation: Evaluation
    split: Split
    classes: Sequence[str]
    names: Sequence[str]
    facts: Sequence[tuple[str, str]] = ()
    notices: Sequence[str] = ()
    epochs: Log = field(default_factory=dict)
    steps: Log = field(default_factory=dict)
    filters: np.ndarray | None = None
    recipe: str = field(default="", repr=False)

    @cached_property
    def _count(self) -> Counter[str]:
        return Counter(self.names)

    def label(self, number: int) -> str:
        """A class for people: its name, with its key where another has the same name; "no class" for -1."""
        if number < 0:
            return "no class (NaN)"
        name = self.names[number]
        return name if self._count[name] == 1 else f"{name} ({self.classes[number]})"
