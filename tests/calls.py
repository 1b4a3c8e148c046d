"""The `Call` behind an op's call, for tests that run it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from convkit import bound
from convkit.call import Call


def call_of(run: Callable[[], Any]) -> Call:
    """Run an op's call the whole way; returns what it was bound to."""
    bound.clear()
    made: list[Call] = []
    with patch.object(bound, "leave", made.append):
        run()
    (call,) = made
    return call
