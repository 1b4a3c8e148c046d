"""A run in use: its network with a checkpoint's weights, on data that are matched to its classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import OptionError
from ..network.alexnet import AlexNet
from .build import build, stored_size
from .checkpoint import Checkpoint
from .data import open_data
from .data.dataset import Data, Failures, Split
from .errors import DataError
from .evaluation import Evaluation, evaluate
from .inputs import Inputs
from .prediction import Prediction, predict
from .run_folder import RunFolder

PARTS = ("validation", "train")
_LISTED = 5


@dataclass(frozen=True)
class Trained:
    """The network of a run, and what prepares images for it: `open_run` makes one.

    Attributes
    ----------
    net : AlexNet
    inputs : Inputs
    run : RunFolder
    which : str
        The checkpoint's name: "best", "last", ..., or its file.
    checkpoint : Checkpoint
        Whose weights the network has.
    """

    net: AlexNet
    inputs: Inputs
    run: RunFolder
    which: str
    checkpoint: Checkpoint

    def open_split(self, path: str | Path | None = None, part: str = "validation") -> tuple[Data, Split]:
        """Images to evaluate the network on, labelled with the run's classes.

        Parameters
        ----------
        path : str or Path, optional
            As `open_data` takes it; by default where the run found its own.
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
        run = self.run
        if part not in PARTS:
            raise OptionError(f"split must be {' or '.join(PARTS)}, not {part!r}")
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

    def evaluate(
        self,
        images: str | Path | Split | None = None,
        part: str = "validation",
        *,
        views: int = 1,
        batch: int | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """Error rates on images: `convkit.train.evaluate` with the run's network.

        Parameters
        ----------
        images : str, Path or Split, optional
            Data as `open_split` takes them, or one of its splits.
        part : {"validation", "train"}
        views : {1, 10}
        batch : int, optional
            Images at a time; by default the recipe's batch.
        workers, progress
            As in `convkit.train.evaluate`.

        Raises
        ------
        DataError
            As `open_split` does, and if no image can be read.
        """
        split = images if isinstance(images, Split) else self.open_split(images, part)[1]
        batch = self.run.recipe.batch if batch is None else batch
        return evaluate(
            self.net, split, self.inputs, views=views, batch=batch, workers=workers, progress=progress
        )

    def predict(
        self, paths: str | Path | Iterable[str | Path], *, top: int = 5, views: int = 1
    ) -> Iterator[Prediction]:
        """The first classes of image files, one after the other.

        Parameters
        ----------
        paths : path, or iterable of paths
            Files and folders; folders are searched to any depth. What cannot be read is reported, and the
            rest goes on.
        top : int
            Classes of each image; all where there are fewer.
        views : {1, 10}
            As in `evaluate`.

        Yields
        ------
        Prediction
            In the order of the files.
        """
        paths = [paths] if isinstance(paths, (str, Path)) else paths
        return predict(
            self.net, self.inputs, self.run.info.names, paths, image_shape=self.run.info.image_shape,
            square=self.run.recipe.images.square, top=top, views=views,
        )  # fmt: skip


def open_run(path: str | Path, checkpoint: str | None = None, device: str = "cpu") -> Trained:
    """Open a run's folder, and load a checkpoint into its network.

    Parameters
    ----------
    path : str or Path
    checkpoint : str, optional
        "best", "last", "previous", or a file. By default "best", or "last" where there is none:
        without validation, or before the end of the first epoch.
    device : str
        As in `convkit.AlexNet`.

    Raises
    ------
    RunError
        If there is no such run or checkpoint, it is damaged, or it is of another network.
    """
    run = RunFolder.open(path)
    which = checkpoint or ("best" if run.has_checkpoint("best") else "last")
    loaded = run.load(which)
    info = run.info
    net = build(run.recipe, info.image_shape, len(info.classes), device=device)
    loaded.load_into(net, info.classes)
    inputs = Inputs(net.preset, run.recipe, run.statistics, info.image_shape, device=device)
    return Trained(net, inputs, run, which, loaded)


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
