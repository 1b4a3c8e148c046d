"""Training: labelled images in, weights and error rates out. The public names stand here.

They are imported when they are first asked for: the rest of convkit takes single modules from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import open_data
    from .errors import DataError, NotFinite, RunError
    from .evaluation import evaluate
    from .preparation import prepare
    from .recipe import Recipe
    from .recipe import load as load_recipe
    from .stops import Stopped
    from .trained import Trained, open_run
    from .training import fit

_PLACES = {
    "DataError": "errors.DataError",
    "NotFinite": "errors.NotFinite",
    "Recipe": "recipe.Recipe",
    "RunError": "errors.RunError",
    "Stopped": "stops.Stopped",
    "Trained": "trained.Trained",
    "evaluate": "evaluation.evaluate",
    "fit": "training.fit",
    "load_recipe": "recipe.load",
    "open_data": "data.open_data",
    "open_run": "trained.open_run",
    "prepare": "preparation.prepare",
}
__all__ = [
    "DataError", "NotFinite", "Recipe", "RunError", "Stopped", "Trained", "evaluate", "fit", "load_recipe",
    "open_data", "open_run", "prepare",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own_name = _PLACES[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), own_name)
