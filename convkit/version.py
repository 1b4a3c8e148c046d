"""The version of convkit."""

__version__ = "0.1.0"
