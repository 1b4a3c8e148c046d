"""A run that is opened for use: its network with a checkpoint's weights, and what prepares images for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..network.alexnet import AlexNet
from .build import build
from .checkpoint import Checkpoint
from .inputs import Inputs
from .run_folder import RunFolder


@dataclass(frozen=True)
class Opened:
    """A run for use.

    Attributes
    ----------
    net : AlexNet
    inputs : Inputs
    run : RunFolder
    checkpoint : Checkpoint
        Whose weights the network has.
    """

    net: AlexNet
    inputs: Inputs
    run: RunFolder
    checkpoint: Checkpoint


def open_run(path: str | Path, which: str = "best", device: str = "cpu") -> Opened:
    """Open a run's folder, and load a checkpoint into its network.

    Parameters
    ----------
    path : str or Path
    which : str
        "best", "last" or "previous", or a checkpoint's file.
    device : str
        As in `convkit.AlexNet`.

    Raises
    ------
    RunError
        If there is no such run or checkpoint, it is damaged, or it is of another network.
    """
    run = RunFolder.open(path)
    loaded = run.load(which)
    info = run.info
    net = build(run.recipe, info.image_shape, len(info.classes), device=device)
    loaded.load_into(net, info.classes)
    inputs = Inputs(net.preset, run.recipe, run.statistics, info.image_shape, device=device)
    return Opened(net, inputs, run, loaded)
