"""AlexNet, VGG-11 and ResNet-18 in plain PyTorch, as wide as asked: torchvision is not used here."""

from __future__ import annotations

import torch
from torch import nn


def alexnet(width: float = 1.0, classes: int = 1000, hidden: int = 4096, lrn: bool = True) -> nn.Sequential:
    """The network of 2012 on one GPU, for images of 67 pixels at least."""
    a, b, c = (max(4, int(n * width)) for n in (96, 256, 384))

    def norm() -> list[nn.Module]:
        return [nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)] if lrn else []

    features = nn.Sequential(
        nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(inplace=True), *norm(), nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, padding=2, groups=2), nn.ReLU(inplace=True), *norm(), nn.MaxPool2d(3, 2),
        nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(c, c, 3, padding=1, groups=2), nn.ReLU(inplace=True),
        nn.Conv2d(c, b, 3, padding=1, groups=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(), nn.LazyLinear(hidden), nn.ReLU(inplace=True),
        nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, classes),
    )  # fmt: skip
    return nn.Sequential(features, nn.Flatten(), classifier)


def vgg11(width: float = 1.0, classes: int = 1000, hidden: int = 4096) -> nn.Sequential:
    """VGG's configuration A, for images of 32 pixels at least."""
    layers: list[nn.Module] = []
    channels = 3
    for wide in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if wide == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            wide = max(4, int(wide * width))
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU(inplace=True)]
            channels = wide
    layers += [nn.Flatten(), nn.LazyLinear(hidden), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))


class Block(nn.Module):
    """Two convolutions beside a shortcut; its ReLU is called twice."""

    def __init__(self, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wide, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.downsample = None
        if stride != 1 or channels != wide:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + shortcut)


def resnet18(width: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """ResNet-18, for images of 32 pixels at least."""
    widths = [max(4, int(n * width)) for n in (64, 128, 256, 512)]
    stem = [nn.Conv2d(3, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
    blocks: list[nn.Module] = []
    channels = widths[0]
    for number, wide in enumerate(widths):
        blocks += [Block(channels, wide, 2 if number else 1), Block(wide, wide, 1)]
        channels = wide
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *head)


#: name: (network of a 16th of the width and ten classes, extent of its images)
SMALL = {
    "alexnet": (lambda: alexnet(1 / 16, 10, 32), 67),
    "vgg11": (lambda: vgg11(1 / 16, 10, 32), 32),
    "resnet18": (lambda: resnet18(1 / 16, 10), 32),
}


def small(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """One of them, with a batch for it."""
    torch.manual_seed(seed)
    make, extent = SMALL[name]
    model, x = make(), torch.randn(2, 3, extent, extent)
    model.eval()(x)  # lazy layers learn their size
    return model.train(), x
