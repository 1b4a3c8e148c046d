"""`convkit report`: the bench defines the command."""

from ..bench.command import add_report as add

__all__ = ["add"]
