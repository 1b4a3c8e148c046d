"""Checkpoints: all that a run goes on from, in one file.

A safetensors file. Its tensors are "params/conv1.w", "velocities/conv1.w", ..., of any storage that networks
have; its metadata holds the rest as JSON. Other programs read the weights from it without convkit.

A file appears under its name whole or not at all: it is written beside it, brought to the disk, and renamed.
A process that is killed in between leaves the file that was there before. A checksum of each tensor,
and one of the JSON, find what a disk has damaged since.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConvkitError, MissingExtra
from ..version import __version__
from . import disk
from .errors import RunError, one_line

#: Version of what the file holds.
FORMAT = 1
_KEY = "convkit_checkpoint"
#: Of what stands under that key; files of earlier versions have none.
_SUM = "convkit_crc32"
#: What consists of tensors in a network's state.
_TENSORS = ("params", "velocities")
_LISTED = 3


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes
    ----------
    state : dict
        As `Network.state` returned it.
    position : dict
        How far training has come.
    recipe_toml : str
        The recipe, as `recipe.dump` wrote it; empty where none was given.
    info : dict
        What the run knows of its data (`run_folder.Info` as a dict).
    path : Path
    version : str
        Of the convkit that wrote it.
    """

    state: dict[str, Any]
    position: dict[str, Any]
    recipe_toml: str
    info: dict[str, Any]
    path: Path
    version: str = ""

    def load_into(self, net: Any, classes: Sequence[str] | None = None) -> None:
        """Load the state into a network.

        Parameters
        ----------
        net : Network
        classes : sequence of str, optional
            Keys of the classes that the network is for, by number: those of the checkpoint must be the same.

        Raises
        ------
        RunError
            With the difference, if the checkpoint is of another network or of other classes. The network has
            not changed.
        """
        own = self.info.get("classes")
        if classes is not None and own is not None and (line := class_difference(own, classes)):
            raise RunError(f"{self.path} is of another network: {line}")
        try:
            net.load_state(self.state)
        except ConvkitError as error:
            raise RunError(f"{self.path} is of another network: {one_line(error)}") from error


def class_difference(own: Sequence[str], other: Sequence[str]) -> str:
    """Where two lists of classes differ, in words; empty if they do not."""
    own, other = list(own), list(other)
    if own == other:
        return ""
    parts = [f"it has {len(own)} classes, the data {len(other)}"] if len(own) != len(other) else []
    for where, names, rest in (("only it has", own, set(other)), ("only the data have", other, set(own))):
        if missing := [name for name in names if name not in rest]:
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            parts.append(f"{where} {', '.join(map(repr, missing[:_LISTED]))}{more}")
    if not parts:
        n = next(n for n, (a, b) in enumerate(zip(own, other)) if a != b)
        parts = [
            f"the same classes in another order: class {n} is {own[n]!r} in it, {other[n]!r} in the data"
        ]
    return "; ".join(parts)


def save(
    path: str | Path,
    state: Mapping[str, Any],
    position: Mapping[str, Any],
    *,
    recipe_toml: str = "",
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all. It is on the disk when this returns.

    Arrays that are contiguous are written from where they are, without a copy.

    Parameters
    ----------
    path : str or Path
        A file that is there is replaced.
    state : mapping
        As `Network.state` returns it.
    position, info : mapping
        As JSON has them.
    recipe_toml : str

    Raises
    ------
    RunError
        If it cannot be written: the disk is full, the folder read-only, ... A file that was there stays.
    MissingExtra
        If safetensors is not installed.
    """
    safetensors = _safetensors()
    path = Path(path)
    tensors = {
        f"{group}/{name}": np.asarray(array, order="C")
        for group in _TENSORS
        for name, array in state[group].items()
    }
    document = {
        "format": FORMAT,
        "convkit": __version__,
        "state": {name: value for name, value in state.items() if name not in _TENSORS},
        "position": dict(position),
        "recipe": recipe_toml,
        "info": dict(info or {}),
        "checksums": {name: _checksum(array) for name, array in tensors.items()},  # in their order
    }
    text = json.dumps(document, ensure_ascii=False)
    metadata = {_KEY: text, _SUM: str(zlib.crc32(text.encode()))}

    # safetensors writes through a temporary file whose name it chooses. In a folder of its own, what a
    # killed process has left is found and removed by the next one.
    draft = path.parent / f".{path.name}.draft"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            safetensors.numpy.save_file(tensors, draft / "file", metadata)
            disk.sync(draft / "file")
            os.chmod(draft / "file", 0o666 & ~_umask())  # safetensors makes it 0600
            os.replace(draft / "file", path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        disk.sync(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"cannot write {path}: {_reason(error)}") from error


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    RunError
        In one line: the file is not there, is damaged or cut short, is something else, or has a format that
        this convkit does not read.
    MissingExtra
        If safetensors is not installed.
    """
    safetensors = _safetensors()
    path = Path(path)
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with safetensors.safe_open(str(path), "np") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise RunError(f"{path} is no checkpoint of convkit: its metadata has no {_KEY!r}")
            text = metadata[_KEY]
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise RunError(f"{path} has format {document['format']!r}; this convkit reads {FORMAT}")
            if metadata.get(_SUM, crc := str(zlib.crc32(text.encode()))) != crc:
                raise RunError(f"{path} is damaged: the checksum of its metadata is not that of the text")
            names = set(file.keys())
            if lost := [name for name in document["checksums"] if name not in names]:
                raise RunError(f"{path} is damaged: it has no tensor {lost[0]!r} ({len(lost)} are missing)")
            tensors = {name: file.get_tensor(name) for name in document["checksums"]}
        for name, checksum in document["checksums"].items():
            if _checksum(tensors[name]) != checksum:
                raise RunError(f"{path} is damaged: the checksum of {name!r} is not that of its values")
        return _checkpoint(document, tensors, path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} is damaged, or no checkpoint: {_reason(error)}") from error


def _checkpoint(document: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> Checkpoint:
    groups: dict[str, dict[str, np.ndarray]] = {name: {} for name in _TENSORS}
    for full, array in tensors.items():
        group, _, name = full.partition("/")
        groups[group][name] = array
    state = {**document["state"], **groups}
    state["shapes"] = {name: tuple(shape) for name, shape in state["shapes"].items()}
    return Checkpoint(
        state, document["position"], document["recipe"], document["info"], path, document["convkit"]
    )


# ---------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------
def put(path: str | Path, content: str | bytes) -> None:
    """Write a small file, whole or not at all; it is on the disk when this returns.

    Raises
    ------
    RunError
        If it cannot be written; a file that was there is as it was.
    """
    path = Path(path)
    try:
        encoded = content.encode() if isinstance(content, str) else content
        disk.replace(path, encoded, path.parent / f".{path.name}.draft")
    except OSError as error:
        raise RunError(f"cannot write {path}: {_reason(error)}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data) if array.size else 0


def _reason(error: Exception) -> str:
    """What went wrong, in one line; safetensors hides the operating system's number in a text."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return os.strerror(int(found[1]))
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise MissingExtra("a checkpoint", "safetensors", "train") from None
    return safetensors
