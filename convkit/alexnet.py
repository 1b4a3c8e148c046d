"""AlexNet, in its published versions."""

from __future__ import annotations

from .network import Network
from .presets import preset as find


class AlexNet(Network):
    """The network of 2012, assembled from convkit's ops.

    Parameters
    ----------
    preset : {"paper", "2012", "caffe", "owt"}
        Which published version; `convkit alexnet --diff paper 2012` prints how they differ.
    num_classes : int
    seed, dtype, math, device
        As in `Network`.

    Examples
    --------
    >>> net = ck.AlexNet(preset="paper", seed=0)
    >>> logits = net.forward(x)              # (N, 1000)
    >>> dx = net.backward(dlogits)           # net.grads["conv1.w"], ... are filled
    >>> loss = net.step(x, labels, lr=0.01)  # forward, loss, backward, update
    """

    def __init__(
        self,
        preset: str = "paper",
        num_classes: int = 1000,
        seed: int = 0,
        dtype: str = "float32",
        math: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.preset = find(preset)
        size = self.preset.image_size
        super().__init__(
            self.preset.layers, (3, size, size), num_classes, seed=seed, dtype=dtype,
            update=self.preset.update, math=math, device=device,
        )  # fmt: skip
