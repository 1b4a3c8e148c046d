"""Other libraries as entries: one small module for each.

A module has

    about(device) -> {"version": ..., "settings": {...}}    raises Missing where it cannot take part at all
    entries(item, device) -> list of Entry                 raises Missing for an op that it lacks

and imports its library inside them. It copies the inputs into the library's own layout when it is bound, so
that no conversion is timed, and brings outputs back in `read`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...errors import OptionError, unknown

if TYPE_CHECKING:
    from ..measure.entry import Entry
    from ..work import Item

#: Name on the command line: how tables call it.
PEERS = {
    "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "jax": "JAX", "cudnn": "cuDNN",
    "torch-compile": "torch.compile",
}  # fmt: skip
#: What takes part unless others are asked for.
USUAL = {"cpu": ("torch", "onnxruntime", "jax"), "cuda": ("cudnn", "torch")}
NOBODY = "none"


class Missing(Exception):
    """A peer that is not installed, or that cannot do this work; the message says why, or what to do."""


def need(module: str, package: str | None = None) -> Any:
    """Import a peer, or raise `Missing` with the way to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"not installed ({error}): pip install {package or module}") from None


def threads() -> int:
    """As many as convkit uses: every library gets the same number."""
    from ...cpu import threads as pool

    return pool.count()


@dataclass
class Field:
    """The peers of a run.

    Attributes
    ----------
    modules : dict
        Those that take part, by name.
    about : dict
        Version and settings of each.
    missing : dict
        Why each of the others does not.
    """

    modules: dict[str, ModuleType] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def entries(self, item: Item, device: str) -> tuple[list[Entry], dict[str, str]]:
        """Everyone's entries for an item, and why a peer has none."""
        found: list[Entry] = []
        lacking: dict[str, str] = {}
        for name, module in self.modules.items():
            try:
                mine = module.entries(item, device)
            except Missing as reason:
                lacking[name] = str(reason)
            except Exception as error:  # a peer that breaks is no reason to lose the row
                lacking[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            else:
                found += mine
        return found, lacking


def gather(names: Sequence[str] | None, device: str) -> Field:
    """The peers of these names, the usual ones by default; one that is not here is in `missing`.

    Raises
    ------
    OptionError
        For a name that is not known.
    """
    chosen = list(USUAL.get(device, ())) if names is None else list(names)
    for name in chosen:
        if name not in (*PEERS, NOBODY):
            raise unknown("library", name, (*PEERS, NOBODY))
    if NOBODY in chosen and len(chosen) > 1:
        raise OptionError(f"{NOBODY!r} stands alone, not in {','.join(chosen)!r}")
    found = Field()
    for name in (name for name in chosen if name != NOBODY):
        try:
            module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
            found.about[name] = module.about(device)
        except Missing as reason:
            found.missing[name] = str(reason)
        except Exception as error:  # a broken installation
            found.missing[name] = f"cannot be used: {type(error).__name__}: {error}".splitlines()[0][:200]
        else:
            found.modules[name] = module
    return found
