"""What is said about an evaluation of a run: the contents of its page, and the JSON document."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from .. import arrays
from ..network.network import Network
from ..version import __version__
from . import recipe as recipes
from . import table
from .data.dataset import Data, Split
from .evaluation import ErrorRate, Evaluation
from .page.content import Content
from .trained import Trained

#: Images in the JSON document that it was most wrong about.
_WORST = 100


def content(trained: Trained, data: Data, split: Split, part: str, evaluation: Evaluation) -> Content:
    """What the page is made of.

    Parameters
    ----------
    trained : Trained
    data, split
        As `Trained.open_split` returned them.
    part : {"validation", "train"}
    evaluation : Evaluation
    """
    run = trained.run
    return Content(
        title=f"{run.path.name}, {data.name}, {part}",
        evaluation=evaluation,
        split=split,
        classes=run.info.classes,
        names=run.info.names,
        facts=_facts(trained, data, part, evaluation),
        notices=notices(trained, data, part, evaluation),
        epochs=table.read(run.path / "epochs.csv"),
        steps=table.read(run.path / "steps.csv", most=20_000),
        filters=first_filters(trained.net, trained.net.preset.preprocess.order),
        recipe=recipes.dump(run.recipe),
    )


def notices(trained: Trained, data: Data, part: str, evaluation: Evaluation) -> list[str]:
    """What must be known to read the figures right."""
    found = []
    own = data.fingerprint == trained.run.info.fingerprint
    if own and part == "train":
        found.append("The network was trained with these images: on others its error is larger.")
    if own and part == "validation" and trained.which == "best":
        found.append("The checkpoint was chosen by its error on these images: on others it may be larger.")
    if evaluation.views > 1 and not trained.run.recipe.images.flip:
        found.append("Half of the ten views are mirrored, which the network was not trained with.")
    if evaluation.left_out:
        found.append(f"{_count(len(evaluation.left_out), 'image')} could not be read, and do not count.")
    if broken := evaluation.not_finite:
        found.append(f"The loss of {_count(broken, 'image')} is not finite.")
    classes = len(trained.run.info.classes)
    if (there := len(np.unique(evaluation.labels))) < classes:
        found.append(f"There are images of {there:,} of the {classes:,} classes.")
    return found


def _facts(trained: Trained, data: Data, part: str, evaluation: Evaluation) -> list[tuple[str, str]]:
    run, net = trained.run, trained.net
    size = net.preset.image_size
    parameters = sum(w.size for w in net.params.values())
    views = "1: the centre" if evaluation.views == 1 else "10: four corners and the centre, and mirrored"
    return [
        ("run", str(run.path)),
        ("recipe", run.recipe.about),
        ("network", f"{net.preset.name}, {size} x {size} pixels, {parameters:,} parameters"),
        ("checkpoint", f"{trained.which}{_where(trained.checkpoint.position)}"),
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


def _rate(rate: ErrorRate) -> dict[str, Any]:
    return {"error": rate.value, "errors": rate.count, "interval_95": list(rate.interval)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
