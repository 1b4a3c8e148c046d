"""How a network is trained: a recipe, read from TOML.

`recipes/` has those that convkit ships, a file each; they argue their numbers and name their sources. A run
keeps its recipe, with every value, in its folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..arrays import DTYPES
from ..errors import OptionError, unknown
from ..network.presets import PRESETS
from ..network.update import Update
from .data.decode import SQUARES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"
MEANS = ("image", "channel", "preset", "none")


@dataclass(frozen=True)
class Net:
    """Which AlexNet.

    Attributes
    ----------
    preset : str
    image_size : int
        0: the preset's; -1: that of the images of the data.
    widths : float
    init : str
        "he", or "" for the preset's.
    dtype : str
        "float32"; "bfloat16" or "float16" for mixed precision; "float64".
    """

    preset: str = "small"
    image_size: int = 0
    widths: float = 1.0
    init: str = ""
    dtype: str = "float32"


@dataclass(frozen=True)
class Rule:
    """The update rule: SGD with momentum. As in `convkit.Update`, but for the rate, which a recipe has apart.

    Attributes
    ----------
    momentum, weight_decay, bias_decay : float
    bias_lr_multiplier : float
    bias_lr_fixed : float
        0: there is none.
    lr_in_velocity : bool
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_decay: float = 0.0
    bias_lr_multiplier: float = 1.0
    bias_lr_fixed: float = 0.0
    lr_in_velocity: bool = True


@dataclass(frozen=True)
class Images:
    """From stored images to the network's input, in training.

    The input is (pixel - mean + colour noise) * the preset's scale / standard deviation, in the preset's
    order of channels, at a random place, mirrored or not.

    Attributes
    ----------
    size : int
        Files become squares of this many pixels; 0: the preset's. Pixel data (IDX, digits) and stores keep
        their size.
    square : str
        "crop": the shorter side is resized, the square in the centre kept; "stretch": both are resized.
    crop_padding : int
        Pixels by which a crop may reach beyond the image. What is there has the value of the mean.
    crop_group : int
        Images in a row that share a crop and a flip.
    flip : bool
        Whether half of the images are mirrored.
    mean : str
        What is subtracted: "image", a value for each pixel; "channel", one for each colour, both of the
        training set; "preset", the preset's numbers; "none".
    mean_at_crop : bool
        Of a mean image: whether a pixel's own mean is subtracted, or, as the authors' code does, that of the
        centre crop, wherever the crop is.
    colour_noise : float
        Times a normal number, times the standard deviation along each principal component of the training
        set's colours, along that component.
    colour_rescale : bool
        Whether images with noise are divided by 1 + colour_noise.
    """

    size: int = 0
    square: str = "crop"
    crop_padding: int = 0
    crop_group: int = 1
    flip: bool = True
    mean: str = "image"
    mean_at_crop: bool = True
    colour_noise: float = 0.0
    colour_rescale: bool = False


@dataclass(frozen=True)
class Stage:
    """What changes at the beginning of an epoch, or before a step. It holds until another stage says else.

    Attributes
    ----------
    epoch : int
        From 1 on; 0 if `step` says when.
    step : int
        From 1 on, over all epochs; 0 if `epoch` says when.
    lr_factor : float or None
        The rate is `lr` times this.
    rates : mapping of str to float, or None
        As in `convkit.Update`.
    frozen : tuple of str, or None
        As in `convkit.Update`.
    colour_noise : float or None
    """

    epoch: int = 0
    step: int = 0
    lr_factor: float | None = None
    rates: Mapping[str, float] | None = None
    frozen: tuple[str, ...] | None = None
    colour_noise: float | None = None


@dataclass(frozen=True)
class Plateau:
    """Lower the rate where the validation error no longer falls.

    Attributes
    ----------
    factor : float
        The rate is multiplied by it; 0: never.
    patience : int
        Epochs without a lower top-1 error, after which it is.
    times : int
        How often; training ends where it would be lowered once more.
    """

    factor: float = 0.0
    patience: int = 3
    times: int = 3


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    about : str
        One line.
    batch : int
    epochs : int
    steps : int
        End after so many steps, even within an epoch; 0: after `epochs`.
    lr : float
    seed : int
        Of the weights, of dropout, and of the images' order, crops and colours.
    network, update, images, schedule, plateau
        As above.
    """

    about: str = ""
    batch: int = 128
    epochs: int = 90
    steps: int = 0
    lr: float = 0.01
    seed: int = 0
    network: Net = field(default_factory=Net)
    update: Rule = field(default_factory=Rule)
    images: Images = field(default_factory=Images)
    schedule: tuple[Stage, ...] = ()
    plateau: Plateau = field(default_factory=Plateau)

    def __post_init__(self) -> None:
        _require(self)


@dataclass(frozen=True)
class Setting:
    """What a step is trained with."""

    lr: float
    colour_noise: float
    update: Update


def setting(recipe: Recipe, epoch: int, step: int, lowered: int = 0) -> Setting:
    """The rates and the noise of one step.

    Parameters
    ----------
    recipe : Recipe
    epoch, step : int
        Both from 1 on.
    lowered : int
        How often `plateau` has lowered the rate.
    """
    factor, noise = 1.0, recipe.images.colour_noise
    rates: Mapping[str, float] = {}
    frozen: tuple[str, ...] = ()
    for stage in recipe.schedule:
        if not (0 < stage.epoch <= epoch or 0 < stage.step <= step):
            continue
        factor = factor if stage.lr_factor is None else stage.lr_factor
        noise = noise if stage.colour_noise is None else stage.colour_noise
        rates = rates if stage.rates is None else stage.rates
        frozen = frozen if stage.frozen is None else stage.frozen
    rule = dataclasses.asdict(recipe.update)
    rule["bias_lr_fixed"] = rule["bias_lr_fixed"] or None
    lr = recipe.lr * factor * (recipe.plateau.factor**lowered if lowered else 1.0)
    return Setting(lr, noise, Update(lr=lr, rates=rates, frozen=frozen, **rule))


# ---------------------------------------------------------------------------------------------------
# Reading and writing
# ---------------------------------------------------------------------------------------------------
def names() -> list[str]:
    """The recipes that convkit ships."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def text(name: str | Path) -> str:
    """A shipped recipe, or a file, as it is written, with its comments.

    Parameters
    ----------
    name : str or Path
        Of a shipped recipe, or the path of a TOML file.

    Raises
    ------
    OptionError
        If there is none.
    """
    name = str(name)
    if name in names():
        return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    if not (name.endswith(".toml") or "/" in name):
        raise OptionError(f"{unknown('recipe', name, names())}; a file's name ends in .toml")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read the recipe {name}: {getattr(error, 'strerror', error)}") from error


def load(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name or from a file, with some values changed.

    Parameters
    ----------
    name : str or Path
        Of a shipped recipe ("paper", "2012", "caffe", "small"), or the path of a TOML file.
    overrides : iterable of str
        "lr=0.005", "images.flip=false", "network.preset=paper": a key, and a value as in TOML; a word needs
        no quotes.

    Raises
    ------
    OptionError
        For what is not TOML, a key that is not known, and a value that does not fit; it names the key.
    """
    try:
        found = tomllib.loads(text(name))
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"the recipe {name} is not TOML: {error}") from error
    return parse(overridden(found, overrides))


def overridden(found: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The table of a recipe, with some values changed, as in `load`."""
    for override in overrides:
        _set(found, override)
    return found


def parse(found: Mapping[str, Any]) -> Recipe:
    """A recipe from the dict that TOML gives; the errors are those of `load`."""
    made: Recipe = _build(Recipe, found, "")
    return made


def dump(recipe: Recipe) -> str:
    """A recipe as TOML, with every value: what `load` reads."""
    found = table(recipe)
    stages = found.pop("schedule")
    lines = [f"{key} = {_value(v)}" for key, v in found.items() if not isinstance(v, dict)]
    for key, part in found.items():
        if isinstance(part, dict):
            lines += ["", f"[{key}]", *(f"{k} = {_value(v)}" for k, v in part.items())]
    for stage in stages:
        lines += ["", "[[schedule]]", *(f"{k} = {_value(v)}" for k, v in stage.items())]
    return "\n".join(lines) + "\n"


def differences(a: Recipe, b: Recipe) -> list[str]:
    """The keys in which two recipes differ, each with both values; `about` does not count."""
    left, right = _flat(table(a)), _flat(table(b))
    keys = [key for key in {**left, **right} if key != "about"]
    return [
        f"{k}: {_value(left.get(k))} against {_value(right.get(k))}"
        for k in keys
        if left.get(k) != right.get(k)
    ]


def _set(table: dict[str, Any], override: str) -> None:
    key, equals, value = (part.strip() for part in override.partition("="))
    if not key or not equals:
        raise OptionError(f"--set takes KEY=VALUE, such as lr=0.005 or images.flip=false, not {override!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *parts, last = key.split(".")
    for part in parts:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise OptionError(f"recipe: {part} is a value, so there is no {key}")
        table = inner
    table[last] = parsed


def _build(kind: Any, table: Any, where: str) -> Any:
    """A dataclass from a table, each value checked against the type of its field."""
    if not isinstance(table, Mapping):
        raise OptionError(f"recipe: {where or 'it'} must be a table, not {table!r}")
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    values = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if key not in known:
            raise OptionError(
                f"recipe: {unknown('key', path, (f'{where}.{k}' if where else k for k in known))}"
            )
        values[key] = _fitting(hints[key], value, path)
    return kind(**values)


def _fitting(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    parts = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise OptionError(f"recipe: {path} must be a list, not {value!r}")
        return tuple(_fitting(parts[0], v, f"{path}[{i}]") for i, v in enumerate(value, 1))
    if type(None) in get_args(kind):
        return _fitting(parts[0], value, path)
    if get_origin(kind) is not None:  # Mapping[str, float]
        if not isinstance(value, Mapping):
            raise OptionError(f"recipe: {path} must be a table, not {value!r}")
        return {str(k): _fitting(float, v, f"{path}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
        raise OptionError(f"recipe: {path} must be {words[kind]}, not {value!r}")
    return value


def table(part: Any) -> dict[str, Any]:
    """A dataclass as TOML's values; what is None is left out."""
    found: dict[str, Any] = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            value = table(value)
        elif f.name == "schedule":
            value = [table(stage) for stage in value]
        if value is not None and not (isinstance(part, Stage) and f.name in ("epoch", "step") and not value):
            found[f.name] = value
    return found


def _flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and key != "rates":
            flat |= _flat(value, f"{where}{key}.")
        elif key == "schedule":
            for number, stage in enumerate(value, 1):
                flat |= _flat(stage, f"schedule[{number}].")
        else:
            flat[f"{where}{key}"] = value
    return flat


def _value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{json.dumps(k)} = {_value(v)}' for k, v in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if value is None:
        return "nothing"
    return json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------
def _require(recipe: Recipe) -> None:
    def refuse(key: str, must: str, value: object) -> None:
        raise OptionError(f"recipe: {key} must be {must}, not {value!r}")

    for key, least in (("batch", 1), ("epochs", 1), ("steps", 0), ("seed", 0)):
        if getattr(recipe, key) < least:
            refuse(key, f"at least {least}", getattr(recipe, key))
    if recipe.seed >= 2**64:
        refuse("seed", "below 2^64", recipe.seed)
    net, images, plateau = recipe.network, recipe.images, recipe.plateau
    if net.preset not in PRESETS:
        raise OptionError(f"recipe: {unknown('network.preset', net.preset, PRESETS)}")
    if net.dtype not in DTYPES:
        raise OptionError(f"recipe: {unknown('network.dtype', net.dtype, DTYPES)}")
    if images.mean not in MEANS:
        raise OptionError(f"recipe: {unknown('images.mean', images.mean, MEANS)}")
    if images.square not in SQUARES:
        raise OptionError(f"recipe: {unknown('images.square', images.square, SQUARES)}")
    for key, number, least in (
        ("network.image_size", net.image_size, -1),
        ("images.size", images.size, 0),
        ("images.crop_padding", images.crop_padding, 0),
        ("images.crop_group", images.crop_group, 1),
        ("plateau.patience", plateau.patience, 1),
        ("plateau.times", plateau.times, 0),
    ):
        if number < least:
            refuse(key, f"at least {least}", number)
    for key, value in [("lr", recipe.lr), *_numbers(recipe)]:
        if not 0 <= value < float("inf"):
            refuse(key, "a finite number of at least 0", value)
    if plateau.factor >= 1:
        refuse("plateau.factor", "below 1", plateau.factor)
    for number, stage in enumerate(recipe.schedule, 1):
        if (stage.epoch > 0) == (stage.step > 0):
            raise OptionError(f"recipe: schedule[{number}] needs either an epoch or a step, from 1 on")
    setting(recipe, 1, 1)


def _numbers(recipe: Recipe) -> Sequence[tuple[str, float]]:
    """All other numbers that must be finite and not negative, by key."""
    found = [
        ("network.widths", recipe.network.widths),
        ("images.colour_noise", recipe.images.colour_noise),
        ("plateau.factor", recipe.plateau.factor),
    ]
    found += [(f"update.{f.name}", float(getattr(recipe.update, f.name))) for f in fields(recipe.update)]
    for number, stage in enumerate(recipe.schedule, 1):
        for key in ("lr_factor", "colour_noise"):
            if (value := getattr(stage, key)) is not None:
                found.append((f"schedule[{number}].{key}", value))
        found += [(f"schedule[{number}].rates.{name}", rate) for name, rate in (stage.rates or {}).items()]
    return found
