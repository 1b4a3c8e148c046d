"""The network that a recipe asks for."""

from __future__ import annotations

from ..errors import OptionError
from ..network.alexnet import AlexNet
from ..network.presets import preset
from ..network.update import Update
from ..network.variant import variant
from .recipe import Recipe


def stored_size(recipe: Recipe) -> int:
    """Height and width to which files are decoded for a recipe, in pixels."""
    if recipe.images.size:
        return recipe.images.size
    size = recipe.network.image_size
    return variant(preset(recipe.network.preset), image_size=size if size > 0 else None).preprocess.resize


def build(
    recipe: Recipe,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    device: str = "cpu",
    math: str | None = None,
) -> AlexNet:
    """The network for images of a data set, with its first weights.

    Parameters
    ----------
    recipe : Recipe
    image_shape : (H, W, C)
        Of the stored images.
    num_classes : int
    device, math
        As in `convkit.AlexNet`.

    Raises
    ------
    OptionError
        If the stored images are smaller than the crops, or the schedule names parameters that there are not.
    ShapeError
        If the network does not take images of that size.
    """
    H, W, C = image_shape
    wanted = recipe.network
    size = {-1: min(H, W), 0: None}.get(wanted.image_size, wanted.image_size)
    net = AlexNet(
        wanted.preset, num_classes, seed=recipe.seed, dtype=wanted.dtype, math=math, device=device,
        image_size=size, channels=C, widths=None if wanted.widths == 1 else wanted.widths,
        init=wanted.init or None,
    )  # fmt: skip
    reach = min(H, W) + 2 * recipe.images.crop_padding
    if net.preset.image_size > reach:
        padded = f", {reach} with crop_padding" if recipe.images.crop_padding else ""
        size = net.preset.image_size
        raise OptionError(
            f"recipe: the network takes {size} x {size} pixels, but the stored images are {H} x {W}{padded}: "
            f"take larger ones, or network.image_size = {min(H, W)}"
        )
    for number, stage in enumerate(recipe.schedule, 1):  # now, not when its epoch has come
        try:
            Update(rates=stage.rates or {}, frozen=stage.frozen or ()).require(net.params)
        except OptionError as error:
            raise OptionError(f"recipe: schedule[{number}].{error}") from None
    return net
