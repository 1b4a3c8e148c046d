"""An evaluation of a run: its data, matched to its classes; the page and the JSON document about it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .. import arrays
from ..errors import OptionError
from ..network.network import Network
from ..version import __version__
from . import recipe as recipes
from . import table
from .build import stored_size
from .data import open_data
from .data.dataset import Data, Failures, Split
from .errors import DataError
from .evaluate import Evaluation, Rate
from .opened import Opened
from .page.content import Content
from .run_folder import RunFolder

SPLITS = ("validation", "train")
#: Images in the JSON document that it was most wrong about.
_WORST = 100
_LISTED = 5


# ---------------------------------------------------------------------------------------------------
# The data
# ---------------------------------------------------------------------------------------------------
class Relabelled(Split):
    """The images of a split, with other numbers for their classes.

    Parameters
    ----------
    split : Split
    labels : int32 array, (n,)
    """

    def __init__(self, split: Split, labels: np.ndarray) -> None:
        self.split, self.labels = split, labels
        self.shape, self.in_memory = split.shape, split.in_memory

    def name(self, index: int) -> str:
        return self.split.name(index)

    def read(self, index: int, out: np.ndarray) -> None:
        self.split.read(index, out)

    def read_many(self, indices: np.ndarray, out: np.ndarray) -> Failures:
        return self.split.read_many(indices, out)


def open_split(run: RunFolder, path: str | None, part: str) -> tuple[Data, Split]:
    """Images to evaluate a run on, labelled with the run's classes.

    Parameters
    ----------
    run : RunFolder
    path : str or None
        As `open_data` takes it; None: where the run found its own.
    part : {"validation", "train"}

    Returns
    -------
    data : Data
    split : Split
        The labels are the run's numbers of the classes with the same keys.

    Raises
    ------
    DataError
        If there are no such images, they are of another size, or of classes that the run does not have.
    """
    if part not in SPLITS:
        raise OptionError(f"split must be {' or '.join(SPLITS)}, not {part!r}")
    if path is None and not run.info.path:
        raise DataError(f"{run.path} does not say where its data are: name them")
    data = open_data(path or run.info.path, stored_size(run.recipe), run.recipe.images.square)
    split = data.train if part == "train" else data.validation
    if split is None:
        raise DataError(f"{data.name} has no images for validation; --split train takes the others")
    if tuple(split.shape) != tuple(run.info.image_shape):
        raise DataError(f"{data.name} has images of {_extent(split.shape)}, the run of "
                        f"{_extent(run.info.image_shape)}")  # fmt: skip
    numbers = class_numbers(data.classes, run.info.classes, data.name)
    same = np.array_equal(numbers, np.arange(len(numbers)))
    return data, split if same else Relabelled(split, numbers[split.labels])


def class_numbers(classes: Sequence[str], own: Sequence[str], name: str) -> np.ndarray:
    """The run's number of each class of the data, by its key: int32 (len(classes),).

    Data may lack classes of the run, but not have others.

    Raises
    ------
    DataError
        Names those that the run does not have.
    """
    known = {key: number for number, key in enumerate(own)}
    if foreign := [key for key in classes if key not in known]:
        there = set(classes)
        missing = [key for key in own if key not in there]
        lacking = (
            f"; it lacks {len(missing):,} of the run's {len(own):,}: {_some(missing)}" if missing else ""
        )
        raise DataError(
            f"{name} has {len(foreign):,} classes that the run does not have: {_some(foreign)}{lacking}"
        )
    return np.array([known[key] for key in classes], np.int32)


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:_LISTED]) + (", ..." if len(words) > _LISTED else "")


def _extent(shape: Sequence[int]) -> str:
    H, W, C = shape
    return f"{H} x {W} x {C}"


# ---------------------------------------------------------------------------------------------------
# What is said about it
# ---------------------------------------------------------------------------------------------------
def content(
    opened: Opened, data: Data, split: Split, part: str, evaluation: Evaluation, which: str
) -> Content:
    """What the page is made of.

    Parameters
    ----------
    opened : Opened
    data, split
        As `open_split` returned them.
    part : {"validation", "train"}
    evaluation : Evaluation
    which : str
        The checkpoint, as `open_run` was given it.
    """
    run = opened.run
    return Content(
        title=f"{run.path.name}, {data.name}, {part}",
        evaluation=evaluation,
        split=split,
        classes=run.info.classes,
        names=run.info.names,
        facts=_facts(opened, data, part, evaluation, which),
        notices=notices(opened, data, part, evaluation, which),
        epochs=table.read(run.path / "epochs.csv"),
        steps=table.read(run.path / "steps.csv", most=20_000),
        filters=first_filters(opened.net, opened.net.preset.preprocess.order),
        recipe=recipes.dump(run.recipe),
    )


def notices(opened: Opened, data: Data, part: str, evaluation: Evaluation, which: str) -> list[str]:
    """What must be known to read the figures right."""
    found = []
    own = data.fingerprint == opened.run.info.fingerprint
    if own and part == "train":
        found.append("The network was trained with these images: on others its error is larger.")
    if own and part == "validation" and which == "best":
        found.append("The checkpoint was chosen by its error on these images: on others it may be larger.")
    if evaluation.views > 1 and not opened.run.recipe.images.flip:
        found.append("Half of the ten views are mirrored, which the network was not trained with.")
    if evaluation.left_out:
        found.append(f"{_count(len(evaluation.left_out), 'image')} could not be read, and do not count.")
    if broken := evaluation.not_finite:
        found.append(f"The loss of {_count(broken, 'image')} is not finite.")
    classes = len(opened.run.info.classes)
    if (there := len(np.unique(evaluation.labels))) < classes:
        found.append(f"There are images of {there:,} of the {classes:,} classes.")
    return found


def _facts(
    opened: Opened, data: Data, part: str, evaluation: Evaluation, which: str
) -> list[tuple[str, str]]:
    run, net = opened.run, opened.net
    size = net.preset.image_size
    parameters = sum(w.size for w in net.params.values())
    views = "1: the centre" if evaluation.views == 1 else "10: four corners and the centre, and mirrored"
    return [
        ("run", str(run.path)),
        ("recipe", run.recipe.about),
        ("network", f"{net.preset.name}, {size} x {size} pixels, {parameters:,} parameters"),
        ("checkpoint", f"{which}{_where(opened.checkpoint.position)}"),
        ("data", data.name),
        ("split", f"{part}, {_count(len(evaluation.labels) + len(evaluation.left_out), 'image')}"),
        ("left out", f"{len(evaluation.left_out):,}"),
        ("views", views),
        ("convkit", __version__),
        ("when", _now()),
    ]


def _where(position: Mapping[str, Any]) -> str:
    """How far training had come."""
    if "step" not in position:
        return ""
    # The position counts the epochs that are complete; a batch more is in the one after them.
    epoch = position.get("epoch", 0) + bool(position.get("batch"))
    return f", after step {position['step']:,}" + (f", in epoch {epoch}" if epoch > 0 else "")


def first_filters(net: Network, order: str = "RGB") -> np.ndarray | None:
    """The first layer's filters as images: float64 (K, C, R, S); None where its channels are no colours."""
    weights = next(iter(net.params.values()), None)
    if weights is None or len(weights.shape) != 4 or weights.shape[1] not in (1, 3):
        return None
    here = np.empty(weights.shape, weights.dtype)
    arrays.assign(here, weights)
    found: np.ndarray = here.astype(np.float64)
    return found[:, ::-1] if order == "BGR" else found


def document(content: Content) -> dict[str, Any]:
    """The same as plain data for JSON; what is not finite is None.

    `confusion` has [true class, first class, images], by number, where there are any.
    """
    evaluation = content.evaluation
    top5 = evaluation.top5
    by_class = zip(content.classes, content.names, evaluation.by_class())
    worst = evaluation.worst(_WORST, content.split.name)
    return {
        "format": 1,
        "facts": dict(content.facts),
        "notices": list(content.notices),
        "images": evaluation.images,
        "views": evaluation.views,
        "loss": _finite(evaluation.loss),
        "top1": _rate(evaluation.top1),
        "top5": None if top5 is None else _rate(top5),
        "classes": [
            {"key": key, "name": name, "images": first.total, "errors": first.count}
            | ({} if top5 is None else {"top5_errors": fifth.count})
            for key, name, (first, fifth) in by_class
        ],
        "confusion": evaluation.pairs(),
        "most_wrong": [{k: _finite(v) for k, v in asdict(one).items()} for one in worst],
        "left_out": [list(one) for one in evaluation.left_out],
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {"error": rate.value, "errors": rate.count, "interval_95": list(rate.interval)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
