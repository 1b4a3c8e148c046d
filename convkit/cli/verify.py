"""`convkit verify`: the bench defines the command."""

from ..bench.command import add_verify as add

__all__ = ["add"]
