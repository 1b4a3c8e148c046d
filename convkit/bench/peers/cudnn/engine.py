"""One way in which cuDNN does an op on a problem: what it needs, what it says of itself, how to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....errors import DtypeError, ShapeError
from .library import NotSupported

#: (addresses of the inputs, of the outputs, of the workspace, of the stream)
Launch = Callable[[Sequence[int], Sequence[int], int, int], None]
LAYOUTS = ("NCHW", "NHWC")
#: What an op's engines read and write, in order; a convolution with bias reads b last.
ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "conv2d_fprop": (("x", "w"), ("y",)),
    "conv2d_dgrad": (("dy", "w"), ("dx",)),
    "conv2d_dgrad_relu": (("dy", "w", "x"), ("dx",)),
    "conv2d_wgrad": (("x", "dy"), ("dw",)),
    "conv2d_bgrad": (("dy",), ("db",)),
    "linear_bgrad": (("dy",), ("db",)),
    "relu_fprop": (("x",), ("y",)),
    "relu_dgrad": (("dy", "y"), ("dx",)),
    "lrn_fprop": (("x",), ("y",)),
    "lrn_dgrad": (("dy", "x", "y"), ("dx",)),
    "maxpool2d_fprop": (("x",), ("y",)),
    "maxpool2d_dgrad": (("dy", "x", "y"), ("dx",)),
    "softmax_fprop": (("logits",), ("probs",)),
    "softmax_dgrad": (("probs", "dprobs"), ("dlogits",)),
}


@dataclass
class Engine:
    """An algorithm of the legacy API, or a plan of the graph API, for one problem in one layout.

    Attributes
    ----------
    name : str
        "legacy:winograd_nonfused/fma", "graph:eng62{k2=6,k13=0}"; unique within its layout.
    api : {"legacy", "graph"}
    layout : {"NCHW", "NHWC"}
        Of every tensor with four extents; filters are (K, C/groups, R, S) or (K, R, S, C/groups).
    inputs, outputs : tuple of str
        What `run` takes, in this order. cuDNN's ops want more than convkit's: see `legacy`.
    workspace_bytes : int
    declared_deterministic : bool or None
        What cuDNN says; None where it says nothing.
    heuristic_rank : int or None
        Place in the heuristic's ranking, 0 the first; None where that does not list it.
    refused : str
        Why it cannot run; empty if it can, as far as is known before it is run.
    asked : bool
        False where it is refused because its arithmetic is not what was asked for: nothing is wrong with it.
    facts : dict
        "algorithm", "math_type", "numerical_notes", ...
    launch : callable or None
    """

    name: str
    api: str
    layout: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    workspace_bytes: int = 0
    declared_deterministic: bool | None = None
    heuristic_rank: int | None = None
    refused: str = ""
    asked: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    launch: Launch | None = field(default=None, repr=False)

    def run(
        self, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any = None, stream: int = 0
    ) -> None:
        """Start it on a stream; nothing is waited for.

        Parameters
        ----------
        inputs, outputs : sequence
            In the order of `self.inputs` and `self.outputs`: device addresses as integers, or arrays with
            ``.data.ptr`` (CuPy's), in `self.layout`, contiguous, of the problem's dtype.
        workspace : int or array, optional
            At least `workspace_bytes`, aligned to 256 bytes. Its size is not known here, so it is not
            checked.
        stream : int
            Address of a CUDA stream; 0 is the default one.

        Raises
        ------
        NotSupported
            If it was refused, or says so only now.
        CudnnError
            If it fails.
        ShapeError, DtypeError
            If a tensor or the workspace is missing, or lies on the host.
        """
        if self.refused or self.launch is None:
            raise NotSupported(self.name, -1, self.refused or "it cannot be run")
        for what, given, wanted in (("input", inputs, self.inputs), ("output", outputs, self.outputs)):
            if len(given) != len(wanted):
                raise ShapeError(
                    f"{self.name} takes {len(wanted)} {what}s, {', '.join(wanted)}, not {len(given)}"
                )
        scratch = address("the workspace", workspace)
        if self.workspace_bytes and not scratch:
            raise ShapeError(f"{self.name} needs a workspace of {self.workspace_bytes} bytes")
        self.launch(
            [address(n, a) for n, a in zip(self.inputs, inputs)],
            [address(n, a) for n, a in zip(self.outputs, outputs)],
            scratch,
            stream,
        )


def address(name: str, array: Any) -> int:
    """The device address of an array.

    Raises
    ------
    DtypeError
        For anything that is not on a device: cuDNN would crash on it, or write over something else.
    """
    if array is None:
        return 0
    if type(array) is int:
        return array
    found = getattr(getattr(array, "data", None), "ptr", None)
    if found is None:
        raise DtypeError(f"{name} must be a device address or a CuPy array, not {type(array).__name__}")
    return int(found)
