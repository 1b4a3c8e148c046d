"""What every exchange can do, whatever it runs on."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ... import arrays
from ...errors import OptionError, ShapeError
from ...network.loss import Loss
from ...network.network import Network

E = TypeVar("E", bound="Exchange")


class Exchange:
    """The processes that train one network together, each with its share of every batch.

    All of them call the same methods in the same order, but for `share` and the attributes. It is a
    context manager: an error that leaves the block ends the job, so that no process waits for one that is
    gone.

    Attributes
    ----------
    rank : int
        Number of this process, from 0 on.
    size : int
        How many there are.
    device : str
        Where this process's network belongs: "cpu", "cuda:0", ...
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    # -- training ---------------------------------------------------------------------------------------
    def share(self, total: int) -> tuple[int, int]:
        """This process's images of a batch.

        Parameters
        ----------
        total : int
            Images of the whole batch; there may be fewer than processes.

        Returns
        -------
        first, stop : int
            The images range(first, stop) are this process's. Shares differ by one image at the most.
        """
        if total < 0:
            raise OptionError(f"a batch has at least 0 images, not {total}")
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def attach(self, net: Network) -> None:
        """Have the steps of a network exchange its gradients.

        Weights, velocities, seed and dropout's counter are those of rank 0 afterwards. The hooks that the
        network has stay: `on_gradient` then gets this process's part of a gradient, `before_update` the sums.

        Parameters
        ----------
        net : Network

        Raises
        ------
        RunError
            If the processes have different networks.
        """
        raise NotImplementedError

    def same(self, net: Network) -> bool:
        """Whether all processes have the same bits in weights, velocities, seed and dropout's counter."""
        raise NotImplementedError

    def step(self, net: Network, x: Any, labels: Any, total: int, *, lr: float | None = None) -> Loss:
        """A step with this process's share of a batch, after `attach`.

        Parameters
        ----------
        net : Network
        x : array, (n, C, H, W)
            The images of `share(total)`. There may be none; the process then only exchanges.
        labels : array of integers, (n,)
        total : int
            Images of the whole batch, at least 1.
        lr : float, optional
            As in `Network.step`.

        Returns
        -------
        loss : Loss
            Of the whole batch, with the same bits in all processes.
        """
        first, stop = self.share(total)
        if total < 1:
            raise ShapeError("a step needs at least one image")
        if (found := len(x)) != stop - first:
            raise ShapeError(
                f"of a batch of {total} images, process {self.rank} of {self.size} takes {stop - first} "
                f"(from {first} on), not {found}"
            )
        if found:
            part = net.step(x, labels, lr=lr, shard=(first, total))
        else:
            part = self._step_without_images(net, total, lr)
        return self._whole(part)

    def _step_without_images(self, net: Network, total: int, lr: float | None) -> Loss:
        """A step with an image that does not count: the network updates its weights as all others do."""
        with arrays.on(next(iter(net.params.values()))):
            x = arrays.zeros((1, *net.input_shape), net.dtype, net.device)
        self._absent = True
        try:
            loss = net.step(x, np.zeros(1, np.int64), lr=lr, shard=(0, total))
        finally:
            self._absent = False
        return Loss(0.0, 0, 0, 0, loss.finite, loss.overflow)

    #: Whether this process has no image of the batch whose step is under way.
    _absent = False

    def _whole(self, part: Loss) -> Loss:
        own = [part, part.errors, part.top5_errors, part.images, not part.finite, part.overflow]
        value, errors, top5, images, broken, overflows = self.add(np.array(own, np.float64))
        # Of one process the loss may be no number, and then the others have been told to change nothing.
        overflow = bool(overflows) and not broken
        return Loss(float(value), int(errors), int(top5), int(images), not broken, overflow)

    # -- small things -----------------------------------------------------------------------------------
    def add(self, values: Any) -> np.ndarray:
        """Sums over the processes, in the order of their ranks: the same bits everywhere.

        Parameters
        ----------
        values : array of numbers
            Of the same shape in all processes.

        Returns
        -------
        sums : float64 array
        """
        raise NotImplementedError

    def broadcast(self, value: Any) -> Any:
        """A value of rank 0, which can be pickled, in all processes; what the others pass does not count."""
        raise NotImplementedError

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, which can be pickled, in the order of their ranks."""
        raise NotImplementedError

    # -- as a context -----------------------------------------------------------------------------------
    def __enter__(self: E) -> E:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """An error leaves the block; whoever catches it prints it."""
