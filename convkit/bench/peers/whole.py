"""Whole networks as entries: convkit's, and those of the other libraries that have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...network.alexnet import AlexNet
from ..measure.entry import OWN, PICKED, Entry
from ..measure.whole import NetworkEntry
from ..status import UNRUN
from ..steps import Step
from ..work import FORWARD, Item
from . import PEERS, Missing, networks, onnxruntime, threads

Array = np.ndarray


def entries(item: Item, device: str, peers: Sequence[str]) -> tuple[list[Entry], dict[str, str]]:
    """convkit's network and the peers'; and why a peer has none."""
    assert isinstance(item.problem, Step)
    marks = (PICKED, *((UNRUN,) if device == "cuda" else ()))
    found: list[Entry] = []
    lacking: dict[str, str] = {}
    for name in (OWN, *peers):
        try:
            for title, build in networks_of(name, item, device):
                found.append(_entry(title, PEERS.get(name, OWN), marks if name == OWN else (), item, build))
        except Missing as reason:
            lacking[name] = str(reason)
    return found, lacking


def _entry(
    name: str, library: str, marks: tuple[str, ...], item: Item, build: Callable[[], Any]
) -> NetworkEntry:
    def bind(inputs: Any, outputs: Any) -> Callable[[], None]:
        raise NotImplementedError("a network is built, not bound")

    facts = {"algorithm_flops": item.fast_flops}
    return NetworkEntry(name, library, bind, layout="", facts=facts, marks=marks, build=build)


def networks_of(name: str, item: Item, device: str) -> list[tuple[str, Callable[[], Any]]]:
    """(name, how it is built) of a library's networks.

    Raises
    ------
    Missing
        If the library has none for this pass.
    """
    assert isinstance(item.problem, Step)
    preset = item.problem.preset
    if name == OWN:
        return [(OWN, lambda: networks.ConvkitNet({"preset": preset}, device))]
    if name not in ("torch", "torch-compile", "jax", "onnxruntime"):
        raise Missing("has no networks, only layers")
    if name == "onnxruntime" and item.op != FORWARD:
        raise Missing("trains nothing")
    if device == "cuda":
        raise Missing("its networks are written for the CPU here")
    spec = networks.describe(preset)

    def torch(layout: str, compiled: bool = False) -> Callable[[], Any]:
        tools = networks.TorchTools
        return lambda: networks.TorchNet(tools(threads(), layout, compiled), spec, _params(preset))

    found: dict[str, list[tuple[str, Callable[[], Any]]]] = {
        "torch": [("torch", torch("nchw")), ("torch channels_last", torch("channels_last"))],
        "torch-compile": [("torch-compile", torch("nchw", compiled=True))],
        "jax": [("jax", lambda: networks.JaxNet(networks.JaxTools(threads()), spec, _params(preset)))],
        "onnxruntime": [("onnxruntime", lambda: onnxruntime.Network(spec, _params(preset)))],
    }
    return found[name]


@lru_cache(maxsize=1)
def _params(preset: str) -> dict[str, Array]:
    return {name: np.array(w) for name, w in AlexNet(preset, seed=0).params.items()}
