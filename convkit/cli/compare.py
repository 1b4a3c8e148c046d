"""`convkit compare`: the bench defines the command."""

from ..bench.command import add_compare as add

__all__ = ["add"]
