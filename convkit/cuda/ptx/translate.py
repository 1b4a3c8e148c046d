"""From a text of PTX to a program for the machine."""

from __future__ import annotations

from .assemble import Assembler, Find, Program, Use
from .families import FAMILIES, plain
from .parse import Module


def translate(module: Module, name: str, find: Find) -> Program:
    """The program of a kernel.

    Parameters
    ----------
    module : Module
        Of `parse.parse`.
    name : str
    find : callable
        `library.find`.

    Raises
    ------
    KernelError
        Of kind "unsupported", for what is not known here; it names the instruction and its line.
    """
    return Assembler(module, name, find).program(_put)


def _put(use: Use) -> None:
    FAMILIES.get(use.words[0], plain)(use)
