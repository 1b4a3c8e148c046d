"""`convkit bench`: the bench defines the command."""

from ..bench.command import add_bench as add

__all__ = ["add"]
