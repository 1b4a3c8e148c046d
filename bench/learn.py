"""Does it learn? convkit and PyTorch, trained by the same recipe, side by side.

    python bench/learn.py                      # the digits, three seeds; `make learn` does the same
    python bench/learn.py FOLDER --seeds 1     # an IDX data set, or whatever `convkit train` takes

Both begin with the same weights and see the same images in the same order, with the same crops, mean and
rates. What differs is the rounding, and the random numbers of dropout. PyTorch's images come from
`convkit.crop_images` too, so that its time is that of its network; it runs in that of its two layouts that is
faster here. The runs take turns, with as many threads each. An epoch's time is that of its training, without
validation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from convkit.cpu import threads
from convkit.errors import ConvkitError
from convkit.network import layers
from convkit.train import draws
from convkit.train import recipe as recipes
from convkit.train.build import build, stored_size
from convkit.train.data import open_data
from convkit.train.data.dataset import Data
from convkit.train.inputs import Inputs
from convkit.train.preparation import statistics as statistics_of
from convkit.train.recipe import Recipe
from convkit.train.training import fit

#: What the digits need of the recipe `small`, whose 16 epochs would be 160 steps of their 1,400 images. Rates
#: fall where they do there.
DIGITS = ("epochs=22", "schedule=[{epoch=15, lr_factor=0.1}, {epoch=20, lr_factor=0.01}]")
LAYOUTS = {"NCHW": "contiguous_format", "channels_last": "channels_last"}


class Twin:
    """A network of convkit's as PyTorch makes it, with the same weights, and its optimizer."""

    def __init__(self, net: Any, recipe: Recipe, layout: str) -> None:
        import torch

        self.torch, self.recipe, self.format = torch, recipe, getattr(torch, LAYOUTS[layout])
        torch.manual_seed(recipe.seed)
        modules = [self._module(net, layer) for layer in net.layers]
        self.model = torch.nn.Sequential(*modules).to(memory_format=self.format)
        self.groups = [
            {"params": [parameter], "name": f"{layer.name}.{which}"}
            for layer, module in zip(net.layers, modules)
            for which, parameter in zip("wb", module.parameters())
        ]
        self.optimizer = torch.optim.SGD(
            self.groups, lr=recipe.lr, momentum=recipe.update.momentum, fused=True
        )
        self.first = net.layers[0].name

    def _module(self, net: Any, layer: Any) -> Any:
        nn, torch = self.torch.nn, self.torch
        if isinstance(layer, (layers.Conv, layers.Linear)):
            w, b = (torch.from_numpy(np.array(net.params[f"{layer.name}.{which}"])) for which in "wb")
            if isinstance(layer, layers.Conv):
                channels, options = w.shape[1] * layer.groups, {"groups": layer.groups}
                made: Any = nn.Conv2d(
                    channels, w.shape[0], layer.window, layer.stride, layer.padding, **options
                )
            else:
                made = nn.Linear(w.shape[1], w.shape[0])
            made.weight.data, made.bias.data = w, b
            return made
        if isinstance(layer, layers.Lrn) and layer.groups == 1 and layer.region == "across_channels":
            return nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
        if isinstance(layer, layers.MaxPool):
            return nn.MaxPool2d(layer.window, layer.stride, ceil_mode=layer.ceil_mode)
        if isinstance(layer, layers.Dropout) and layer.inverted:
            return nn.Dropout(layer.p)
        if isinstance(layer, (layers.Relu, layers.Flatten)):
            return nn.ReLU(inplace=True) if isinstance(layer, layers.Relu) else nn.Flatten()
        sys.exit(f"learn: PyTorch has no {layer} in one module; take another preset")

    def set_rates(self, setting: recipes.Setting) -> None:
        """The rates of the recipe. Its velocity holds the rate; PyTorch's does not: it is rescaled."""
        for group in self.optimizer.param_groups:
            rule = setting.update.options(group["name"], setting.lr, self.first)
            lr = rule["lr"] or 0.0
            if rule["lr_in_velocity"] and lr != group["lr"] and lr:
                for parameter in group["params"]:
                    if (state := self.optimizer.state.get(parameter)) is not None:
                        state["momentum_buffer"] *= group["lr"] / lr
            group["lr"], group["weight_decay"] = lr, rule["weight_decay"]

    def step(self, x: np.ndarray, labels: np.ndarray) -> float:
        torch = self.torch
        images = torch.from_numpy(x).contiguous(memory_format=self.format)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(
            self.model(images), torch.from_numpy(labels.astype(np.int64))
        )
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def error(self, batches: Any) -> float:
        """Top-1 error in percent."""
        torch, wrong, count = self.torch, 0, 0
        self.model.eval()
        with torch.inference_mode():
            for x, labels in batches:
                found = self.model(torch.from_numpy(x)).argmax(1).numpy()
                wrong, count = wrong + int((found != labels).sum()), count + len(labels)
        self.model.train()
        return 100 * wrong / count


class Peer:
    """PyTorch, trained as `convkit train` trains."""

    def __init__(self, data: Data, recipe: Recipe, layout: str) -> None:
        net = build(recipe, data.train.shape, len(data.classes))
        known = data.statistics
        if known is None and Inputs.needs_statistics(recipe):
            known = statistics_of(data.train)
        self.data, self.recipe, self.inputs = (
            data,
            recipe,
            Inputs(net.preset, recipe, known, data.train.shape),
        )
        self.twin, size, images = Twin(net, recipe, layout), net.preset.image_size, recipe.images
        self.crops = draws.Crops(size, images.crop_padding, images.flip, images.crop_group)
        self.step = 0

    def epoch(self, epoch: int) -> float:
        """Train an epoch; returns its seconds."""
        recipe, split, began = self.recipe, self.data.train, time.perf_counter()
        order = draws.order(recipe.seed, epoch, len(split))
        buffer = np.empty((recipe.batch, *split.shape), np.uint8)
        for batch in range(len(split) // recipe.batch):
            setting = recipes.setting(recipe, epoch, self.step + 1)
            places = np.arange(batch * recipe.batch, (batch + 1) * recipe.batch)
            indices = order[places]
            split.read_many(indices, buffer)
            crops = draws.crops(recipe.seed, epoch, places, indices, split.shape[:2], self.crops)
            normals = draws.normals(recipe.seed, epoch, indices) if setting.colour_noise else None
            self.twin.set_rates(setting)
            self.twin.step(
                self.inputs.train(buffer, crops, normals, setting.colour_noise), split.labels[indices]
            )
            self.step += 1
        return time.perf_counter() - began

    def error(self) -> float:
        split = self.data.validation

        def batches() -> Any:
            for first in range(0, len(split), 256):
                indices = np.arange(first, min(first + 256, len(split)))
                images = np.empty((len(indices), *split.shape), np.uint8)
                split.read_many(indices, images)
                yield self.inputs.centre(images), split.labels[indices]

        return self.twin.error(batches())


def convkit_run(data: Data, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """One run of `fit`: each epoch's seconds and error."""
    import csv

    run = fit(data, folder, recipe=recipe, quiet=True)
    with open(run.path / "epochs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "seconds": [float(row["seconds"]) for row in rows],
        "errors": [100 * float(row["validation_error"]) for row in rows],
    }


def torch_run(data: Data, recipe: Recipe, layout: str) -> dict[str, Any]:
    """The same by PyTorch."""
    peer, found = Peer(data, recipe, layout), {"seconds": [], "errors": []}
    for epoch in range(1, recipe.epochs + 1):
        found["seconds"].append(peer.epoch(epoch))
        found["errors"].append(peer.error())
    return found


def faster_layout(data: Data, recipe: Recipe) -> str:
    """Of PyTorch's two: by the median of a few steps, in turns."""
    peers = {layout: Peer(data, recipe, layout) for layout in LAYOUTS}
    x = np.random.default_rng(0).standard_normal(
        (recipe.batch, *build(recipe, data.train.shape, len(data.classes)).input_shape), np.float32
    )
    labels = np.arange(recipe.batch) % len(data.classes)
    times: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for turn in range(6):
        for layout, peer in peers.items():
            began = time.perf_counter()
            peer.twin.step(x, labels)
            if turn:
                times[layout].append(time.perf_counter() - began)
    return min(times, key=lambda layout: statistics.median(times[layout]))


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench/learn.py"
    )
    parser.add_argument(
        "data",
        nargs="?",
        default="digits",
        help="digits (default; 22 epochs of the recipe small), or a folder",
    )
    parser.add_argument("--recipe", default="small", help="a name, or a file (default: small)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
                        help="change a value of the recipe; repeatable")  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ... (default: 3)"
    )
    parser.add_argument(
        "--torch-epochs", type=int, help="train PyTorch for so many epochs only: for its time"
    )
    parser.add_argument(
        "--within", type=float, metavar="POINTS", help="exit with 1 where the mean error is larger by more"
    )
    parser.add_argument("--json", metavar="FILE", help="write every error and time to this file")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {args.seeds}")
    if args.within is not None and args.torch_epochs:
        parser.error("--within compares whole runs; --torch-epochs cuts those of PyTorch short")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parsed(argv)
    of_digits = DIGITS if (args.data, args.recipe) == ("digits", "small") else ()
    try:
        recipe = recipes.load(args.recipe, [*of_digits, *args.overrides])
        data = open_data(args.data, stored_size(recipe), recipe.images.square)
    except ConvkitError as error:
        sys.exit(f"learn: {error}")
    if data.validation is None:
        sys.exit(f"learn: {data.name} has no validation set")
    import torch

    torch.set_num_threads(threads.count())
    layout = faster_layout(data, recipe)
    print(
        f"{data.name}: {len(data.train):,} training and {len(data.validation):,} test images; recipe "
        f"{args.recipe}, {recipe.epochs} epochs, batch {recipe.batch}; {threads.count()} threads each; "
        f"PyTorch {torch.__version__} in {layout}"
    )
    runs: dict[str, list[dict[str, Any]]] = {"convkit": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            one = replace(recipe, seed=seed)
            short = replace(one, epochs=args.torch_epochs or one.epochs)
            runs["convkit"].append(convkit_run(data, one, Path(folder, str(seed))))
            runs["PyTorch"].append(torch_run(data, short, layout))
            print(f"seed {seed}: " + ", ".join(f"{n} {r[-1]['errors'][-1]:.2f} %" for n, r in runs.items()))
    return report(runs, args, {"data": data.name, "recipe": recipes.dump(recipe), "layout": layout})


def report(runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace, about: dict[str, Any]) -> int:
    """Print the table, and write the file; 1 where the goal is missed."""
    means, seconds, rows = {}, {}, []
    for name, found in runs.items():
        last = [run["errors"][-1] for run in found]
        times = [t for run in found for t in run["seconds"][1:] or run["seconds"]]
        means[name], seconds[name] = statistics.mean(last), statistics.median(times)
        rows.append(
            (
                name, " ".join(f"{e:.2f}" for e in last), f"{means[name]:.2f}", len(found[0]["errors"]),
                f"{seconds[name]:.2f}", f"{min(times):.2f} to {max(times):.2f}",
            )
        )  # fmt: skip
    headers = ("", "test error, %", "mean", "epochs", "s an epoch", "from")
    print(f"\n{tabulate(rows, headers, tablefmt='simple', disable_numparse=True)}")
    ratio = seconds["PyTorch"] / seconds["convkit"]
    print(
        f"\nPyTorch takes {ratio:.2f} times as long for an epoch (medians, without the first epoch of a run)"
    )
    if args.json:
        Path(args.json).write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    missed = args.within is not None and means["convkit"] > means["PyTorch"] + args.within
    if missed:
        print(f"convkit's mean error is larger by more than {args.within} points", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
