"""The folder of a run: its recipe, its data's facts, its logs and its checkpoints.

::

    recipe.toml             every value of the recipe
    run.json                what the data were: classes, size, fingerprint (`Info`)
    statistics.npz          mean image and principal components, where the recipe needs them
    steps.csv, epochs.csv   what training has shown, a row for each step and each epoch
    curves.png              the same as a picture
    events/                 the same for TensorBoard, where it is installed
    left_out.txt            files that could not be used, and why
    last.safetensors        the newest checkpoint; previous.safetensors, the one before it
    best.safetensors        the one with the lowest validation error
    lock                    held while a process trains here
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConvkitError, ConvkitWarning
from ..version import __version__
from . import checkpoint, disk
from . import recipe as recipes
from .checkpoint import Checkpoint
from .data import left_out
from .data import statistics as stored
from .data.dataset import Data, Statistics
from .errors import DataError, RunError
from .lock import Lock
from .recipe import Recipe
from .table import Table

WHICH = ("last", "previous", "best")
_FORMAT = 1
#: What `create` finds where a process was killed before it had written run.json, which comes last.
_UNFINISHED = {"lock", "recipe.toml", "statistics.npz", ".recipe.toml.draft", ".statistics.npz.draft",
               ".run.json.draft"}  # fmt: skip


@dataclass(frozen=True)
class Info:
    """What a run knows of its data.

    Attributes
    ----------
    data : str
        The data's name, for people.
    path : str
        Where they are: an absolute path, or "digits"; empty if that is not known.
    classes, names : tuple of str
        As in `Data`.
    fingerprint : str
        As in `Data`.
    image_shape : (H, W, C)
        Of the stored images.
    train, validation : int
        Numbers of images.
    version : str
        Of the convkit that began the run.
    created : str
        When, as ISO 8601, UTC.
    """

    data: str
    path: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    fingerprint: str
    image_shape: tuple[int, int, int]
    train: int
    validation: int = 0
    version: str = __version__
    created: str = ""

    @classmethod
    def of(cls, data: Data, path: str = "") -> Info:
        """Of some data."""
        return cls(
            data.name, path, tuple(data.classes), tuple(data.names), data.fingerprint, data.train.shape,
            len(data.train), 0 if data.validation is None else len(data.validation),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Info:
        """From what `dataclasses.asdict` and JSON made of one."""
        values = {f.name: table[f.name] for f in dataclasses.fields(cls)}
        for name in ("classes", "names", "image_shape"):
            values[name] = tuple(values[name])
        return cls(**values)

    def difference(self, other: Info) -> str:
        """Why a run cannot go on with other data, in words; empty if it can."""
        if line := checkpoint.class_difference(self.classes, other.classes):
            return line
        if self.image_shape != other.image_shape:
            return f"its images are {_shape(self.image_shape)}, those of the data {_shape(other.image_shape)}"
        if (self.train, self.validation) != (other.train, other.validation):
            own, others = (f"{i.train} images to train and {i.validation} to validate" for i in (self, other))
            return f"it has {own}, the data {others}"
        if self.fingerprint != other.fingerprint:
            own, others = self.fingerprint, other.fingerprint
            return f"as many images, but other ones: its fingerprint is {own}, that of the data {others}"
        return ""


class RunFolder:
    """The folder of a run. A context manager: at its end logs are closed and the lock is released.

    `create` makes one, `open` opens it.

    Attributes
    ----------
    path : Path
    recipe : Recipe
    info : Info
    statistics : Statistics or None
    """

    def __init__(self, path: Path, recipe: Recipe, info: Info, statistics: Statistics | None) -> None:
        self.path, self.recipe, self.info, self.statistics = path, recipe, info, statistics
        self._steps, self._epochs = Table(path / "steps.csv"), Table(path / "epochs.csv")
        self._lock: Lock | None = None
        self._last_is_damaged = False

    # -- opening --------------------------------------------------------------------------------------
    @classmethod
    def create(
        cls, path: str | Path, recipe: Recipe, info: Info, statistics: Statistics | None = None
    ) -> RunFolder:
        """Make the folder of a new run, and lock it.

        Parameters
        ----------
        path : str or Path
            A folder that is not there, with those above it, or an empty one.
        recipe : Recipe
        info : Info
        statistics : Statistics, optional

        Raises
        ------
        RunError
            If there is a run in it already, or anything else; if another process trains in it; if it cannot
            be written.
        """
        path = Path(path)
        cls.require_new(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make a run's folder {path}: {os.strerror(error.errno or 0)}") from error
        run = cls(path, recipe, info, statistics)
        run.lock()
        try:
            if (path / "run.json").exists():  # made by another process since
                raise _taken(path)
            checkpoint.put(path / "recipe.toml", recipes.dump(recipe))
            if statistics is not None:
                checkpoint.put(path / "statistics.npz", stored.to_bytes(statistics))
            document = {"format": _FORMAT, **dataclasses.asdict(info)}
            checkpoint.put(path / "run.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        except BaseException:
            run.close()
            raise
        return run

    @staticmethod
    def require_new(path: str | Path) -> None:
        """Refuse a folder in which `create` could make no run, and change nothing.

        Raises
        ------
        RunError
            As `create` does; whether it can be written is found there.
        """
        path = Path(path)
        try:
            there = {entry.name for entry in path.iterdir()}
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:  # a file, no permission, a NUL
            why = getattr(error, "strerror", None) or error
            raise RunError(f"cannot make a run's folder {path}: {why}") from error
        if "run.json" in there:
            raise _taken(path)
        if other := sorted(there - _UNFINISHED):
            raise RunError(f"{path} holds other things ({other[0]!r}): choose a new folder as --output")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the folder of a run, to read it; `lock` comes before writing.

        Raises
        ------
        RunError
            If there is no run, or one of its files cannot be read.
        """
        path = Path(path)
        if not path.is_dir():
            why = "it is a file" if path.exists() else "there is no such folder"
            raise RunError(f"{path} holds no run: {why}")
        if not (path / "run.json").exists():
            raise RunError(f"{path} holds no run: it has no run.json")
        document = _json(path / "run.json")
        if document.get("format") != _FORMAT:
            raise RunError(
                f"{path / 'run.json'} has format {document.get('format')!r}; this convkit reads {_FORMAT}"
            )
        try:
            info = Info.from_dict(document)
        except (KeyError, TypeError) as error:
            raise RunError(f"{path / 'run.json'} is damaged: {type(error).__name__}: {error}") from error
        try:
            recipe = recipes.load(str(path.absolute() / "recipe.toml"))
        except ConvkitError as error:
            raise RunError(f"{path / 'recipe.toml'} is damaged: {error}") from error
        file = path / "statistics.npz"
        try:
            return cls(path, recipe, info, stored.load(file) if file.exists() else None)
        except DataError as error:
            raise RunError(str(error)) from error

    @staticmethod
    def holds_run(path: str | Path) -> bool:
        """Whether there is a run in a folder."""
        return (Path(path) / "run.json").exists()

    def lock(self) -> RunFolder:
        """Take the folder for this process, and remove what a killed one has left half written.

        A second call does nothing. The lock ends with `close`, and with the process, however that ends.

        Raises
        ------
        RunError
            If another process, or another `RunFolder` of this one, has it; it names the process.
        """
        if self._lock is None:
            self._lock = Lock(self.path / "lock")
            for draft in (*self.path.glob(".*.draft"), *self.path.glob(".*.link")):
                with contextlib.suppress(OSError):
                    shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        return self

    def close(self) -> None:
        """Close the logs, and release the lock."""
        self._steps.close()
        self._epochs.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what a run may go on with --------------------------------------------------------------------
    def require_data(self, info: Info) -> None:
        """Refuse data that are not those of the run.

        Raises
        ------
        RunError
            Says in what they differ.
        """
        if line := self.info.difference(info):
            raise RunError(f"{self.path} is a run on other data: {line}")

    def require_recipe(self, recipe: Recipe, allowed: Sequence[str] = ()) -> list[str]:
        """Refuse another recipe than the run's.

        Parameters
        ----------
        recipe : Recipe
        allowed : sequence of str
            Keys that may differ: "epochs", or "plateau" for all of that table.

        Returns
        -------
        differences : list of str
            Those that are allowed. `replace_recipe` takes them over.

        Raises
        ------
        RunError
            Lists the others.
        """
        found = recipes.differences(self.recipe, recipe)
        bad = [line for line in found if not any(_is_below(line.partition(": ")[0], key) for key in allowed)]
        if bad:
            raise RunError(
                f"{self.path} is a run of another recipe; its values against those given: {'; '.join(bad)}"
            )
        return found

    def replace_recipe(self, recipe: Recipe) -> None:
        """Go on with a recipe that `require_recipe` let pass."""
        checkpoint.put(self.path / "recipe.toml", recipes.dump(recipe))
        self.recipe = recipe

    # -- checkpoints ----------------------------------------------------------------------------------
    def save(self, state: Mapping[str, Any], position: Mapping[str, Any], *, best: bool = False) -> None:
        """Write a checkpoint as "last"; what was that becomes "previous".

        At each instant there is a whole "last" on the disk. Write the log's rows first: what they say up to
        here is on the disk before the checkpoint is.

        Parameters
        ----------
        state : mapping
            As `Network.state` returns it.
        position : mapping
            As JSON has it. "step" and "epoch" are how many of them are complete, with their rows in the log.
        best : bool
            Whether it is to be "best" too.

        Raises
        ------
        RunError
            If it cannot be written: the disk is full, ... The checkpoints that were there are as they were.
        """
        self._require_lock()
        self._steps.sync()
        self._epochs.sync()
        new = self.path / ".new.draft"
        made_by, info = recipes.dump(self.recipe), dataclasses.asdict(self.info)
        checkpoint.save(new, state, position, recipe_toml=made_by, info=info)
        last = self.path / "last.safetensors"
        try:
            # First "best": one killed between the two makes the same checkpoint again.
            if best:
                _link(new, self.path / "best.safetensors")
            if last.exists() and not self._last_is_damaged:
                _link(last, self.path / "previous.safetensors")
            os.replace(new, last)
            disk.sync(self.path)
        except OSError as error:
            raise RunError(f"cannot write {last}: {os.strerror(error.errno or 0)}") from error
        self._last_is_damaged = False

    def has_checkpoint(self, which: str = "last") -> bool:
        """Whether there is a checkpoint; "previous" also counts as "last"."""
        names = ("last", "previous") if which == "last" else (which,)
        return any((self.path / f"{name}.safetensors").exists() for name in names)

    def load(self, which: str = "last") -> Checkpoint:
        """Read a checkpoint.

        Parameters
        ----------
        which : str
            "last", "previous", "best", or the path of a file. Where "last" is damaged, "previous" is read,
            with a `ConvkitWarning`.

        Raises
        ------
        RunError
            If there is none that can be read.
        """
        if which not in WHICH:
            if not Path(which).is_file():
                raise RunError(f"there is no checkpoint {which!r}: it can be {', '.join(WHICH)}, or a file")
            return checkpoint.load(which)
        if not self.has_checkpoint(which):
            there = " and ".join(name for name in WHICH if (self.path / f"{name}.safetensors").exists())
            raise RunError(
                f"{self.path} has no checkpoint {which!r}, only {there}"
                if there
                else f"{self.path} has no checkpoint yet"
            )
        path, before = self.path / f"{which}.safetensors", self.path / "previous.safetensors"
        try:
            return checkpoint.load(path)
        except RunError as error:
            if which != "last" or not before.exists():
                raise
            try:
                found = checkpoint.load(before)
            except RunError as other:
                raise RunError(f"{error}; and {other}") from other
            self._last_is_damaged = True
            warnings.warn(f"{error}; the checkpoint before it is used", ConvkitWarning, stacklevel=2)
            return found

    # -- logs -----------------------------------------------------------------------------------------
    def log_step(self, row: Mapping[str, Any]) -> None:
        """Add a row to steps.csv; the first one says its columns, "step" among them."""
        self._require_lock()
        self._steps.append(row)

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Add a row to epochs.csv; the first one says its columns, "epoch" among them."""
        self._require_lock()
        self._epochs.append(row)

    def cut_logs(self, position: Mapping[str, Any]) -> None:
        """Remove the rows that are beyond a checkpoint, and what a killed process has torn.

        Parameters
        ----------
        position : mapping
            The checkpoint's: rows of more than "step" steps and of more than "epoch" epochs go.
        """
        self._require_lock()
        self._steps.cut("step", int(position["step"]))
        self._epochs.cut("epoch", int(position["epoch"]))

    def left_out(self, files: Iterable[tuple[str, str]]) -> None:
        """Write left_out.txt: names of files that could not be used, and why. It is made anew."""
        self._require_lock()
        checkpoint.put(self.path / "left_out.txt", left_out.to_text(files))

    def _require_lock(self) -> None:
        if self._lock is None:
            raise RunError(f"{self.path} is open for reading: `lock` comes before writing")


def _link(source: Path, target: Path) -> None:
    """Let a second name point to a file, in one step; where there are no hard links, it is a copy."""
    draft = target.with_name(f".{target.name}.link")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    try:
        os.link(source, draft)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        shutil.copyfile(source, draft)
        disk.sync(draft)
    os.replace(draft, target)
    with contextlib.suppress(FileNotFoundError):  # rename does nothing where both names are of one file
        draft.unlink()


def _taken(path: Path) -> RunError:
    return RunError(f"{path} holds a run already: --resume goes on with it, or choose another --output")


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise RunError(f"{path} is damaged: it holds no object")
    return document


def _is_below(key: str, allowed: str) -> bool:
    return key == allowed or key.startswith((f"{allowed}.", f"{allowed}["))


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
