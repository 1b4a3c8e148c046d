"""AlexNet, in its published versions, and a small one."""

from __future__ import annotations

from collections.abc import Sequence

from .network import Network
from .plan_cache import PLAN_MEMORY
from .presets import preset as find
from .variant import variant


class AlexNet(Network):
    """The network of 2012, assembled from convkit's ops.

    Parameters
    ----------
    preset : {"paper", "2012", "caffe", "owt", "small"}
        Which published version, or a small one for images of 28 to 64 pixels; `convkit alexnet --diff paper
        2012` prints how two of them differ.
    num_classes : int, optional
        1000 by default; 10 for "small".
    seed, dtype, math, device, plan_memory, graph
        As in `Network`.
    image_size : int, optional
        Height and width of the images; the preset's by default: 224, 227 for "caffe", 32 for "small".
    channels : int
        Of the images.
    widths : float, or sequence of seven ints, optional
        A factor for the outputs of conv1 to conv5, fc6 and fc7, each rounded to what the groups allow; or
        these seven numbers.
    init : {"he"}, optional
        Instead of the preset's initialisation: weights normal with sigma sqrt(2/fan in), biases 0.

    Attributes
    ----------
    preset : Preset
        With these options.

    Raises
    ------
    ShapeError
        Where the images are too small; the message says the smallest size. And where a width does not fit
        the groups.
    OptionError
        For an option that is not known or out of its range.

    Examples
    --------
    >>> net = ck.AlexNet(preset="paper", seed=0)
    >>> logits = net.forward(x)              # (N, 1000)
    >>> dx = net.backward(dlogits)           # net.grads["conv1.w"], ... are filled
    >>> loss = net.step(x, labels, lr=0.01)  # forward, loss, backward, update
    >>> digits = ck.AlexNet(preset="small", image_size=28, channels=1)
    >>> narrow = ck.AlexNet(preset="paper", widths=0.5, init="he")
    """

    def __init__(
        self,
        preset: str = "paper",
        num_classes: int | None = None,
        seed: int = 0,
        dtype: str = "float32",
        math: str | None = None,
        device: str = "cpu",
        *,
        image_size: int | None = None,
        channels: int = 3,
        widths: float | Sequence[int] | None = None,
        init: str | None = None,
        plan_memory: int = PLAN_MEMORY,
        graph: bool = True,
    ) -> None:
        self.preset = variant(
            find(preset), image_size=image_size, channels=channels, widths=widths, init=init
        )
        size = self.preset.image_size
        super().__init__(
            self.preset.layers, (channels, size, size),
            self.preset.num_classes if num_classes is None else num_classes, seed=seed, dtype=dtype,
            update=self.preset.update, math=math, device=device, plan_memory=plan_memory, graph=graph,
        )  # fmt: skip
