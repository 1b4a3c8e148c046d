"""Rows of a probe that may raise."""

from __future__ import annotations

import os
from typing import Any

from ...errors import ConvkitError, MissingExtra
from .environment import VARIABLES
from .row import BROKEN, MISSING, Probe, Row, one_line


def guarded(name: str, probe: Probe) -> Any:
    """What a probe returns; where it raises, a row that says so."""
    try:
        return probe()
    except MissingExtra as error:
        found, _, advice = str(error).rpartition(": ")
        return Row(name, MISSING, found, advice)
    except (Exception, SystemExit) as error:
        text = str(error) if isinstance(error, ConvkitError) else one_line(error)
        named = [variable for variable in VARIABLES if variable in text and variable in os.environ]
        advice = (
            f"correct {named[0]}, or unset it" if named else "reinstall it; if that is no help, report this"
        )
        return Row(name, BROKEN, text, advice)


def rows_of(name: str, probe: Probe) -> list[Row]:
    """The same, as a list in any case."""
    found = guarded(name, probe)
    return found if isinstance(found, list) else [found]
