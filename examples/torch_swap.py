"""An implementation of your own in a model of PyTorch: swapped in, trained with, compared with float64."""

import numpy as np
import torch
from torch import nn

import convkit as ck
import convkit.torch as ct


@ck.implements("relu_fprop", name="mine", rank=-1)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)


torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
x, labels = torch.randn(8, 3, 8, 8), torch.arange(8)


def step() -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


print(f"on PyTorch  loss {step():.4f}")
with ct.swap(model, relu="mine", conv2d="im2col_gemm", only=["0", "1", "3"]) as handle:
    print(handle)
    print(f"on convkit  loss {step():.4f}")
print(f"on PyTorch  loss {step():.4f}\n")

found = ct.compare(model, x, relu="mine", conv2d="im2col_gemm")
print(found)
assert found.ok
