"""How fast images are read: files to a network's input, on a core, against Pillow and NumPy.

    python bench/loader.py                           a minute
    python bench/loader.py --json loader.json        and keep every sample

JPEGs of 400 x 350 pixels, made of scikit-image's photographs, become float32 (3, 224, 224): resized so that
the shorter side has 256 pixels, cropped at random, mirrored or not, with noise along the colours' principal
components, mean and scale. Every entry makes the same input, up to the filter; that is checked first.

Sections
  core    images for each second of CPU time, all entries in turns in one process, one thread each
  whole   images for each second of wall time through `Loader` and `crop_images`, with 1, 2, ... processes,
          the seconds until the first batch, and the share of the time that was waited

The yardstick is torchvision's way: Pillow resizes the whole image and crops it, NumPy does what torchvision
does with torch (ToTensor, colour, Normalize, collate), step by step. "Pillow at its best" crops before it
resizes, and has no step twice.

Medians of the rounds, with the least and the most in brackets. `noise` is a loop of sums whose time would be
the same in each round on a machine that nothing else disturbs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SECTIONS = ("core", "whole")
HEIGHT, WIDTH, SIZE, CROP = 350, 400, 256, 224
#: Times the yardstick's images for each second of CPU time.
GOALS = {"jpeg": 1.3, "store": 8.0}
YARDSTICK = "torchvision's way"
# ImageNet's mean and deviation, and standard deviations and directions of its colours.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STDEVS = np.array([0.4716, 0.1371, 0.0686])
VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
#: Root of the mean square, in grey levels, by which two filters may differ.
ALLOWED = 8.0


@dataclass
class Row:
    """One thing that was timed.

    Attributes
    ----------
    section, source, name : str
        `source` is "jpeg" or "store"; "" for the noise.
    part : bool
        Whether it is a part of another entry alone.
    rates : list of float
        Images a second, for each round: of CPU time in `core`, of wall time in `whole`.
    first : list of float
        Seconds until the first batch.
    waited : list of float
        Share of the time that was waited.
    """

    section: str
    source: str
    name: str
    part: bool = False
    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------
def write_tree(folder: Path, count: int) -> float:
    """JPEGs in two class folders; returns their mean size in bytes."""
    from PIL import Image

    from convkit.train.photos import examples

    rng = np.random.default_rng(0)
    photos = [Image.open(path).convert("RGB") for path in examples()]
    sizes = []
    for number in range(count):
        photo = photos[number % len(photos)]
        scale = min(1.0, photo.width / WIDTH, photo.height / HEIGHT)
        w, h = WIDTH * scale, HEIGHT * scale
        left, top = rng.random() * (photo.width - w), rng.random() * (photo.height - h)
        made = photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + w, top + h))
        path = folder / "train" / f"class{number % 2}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path, quality=92)
        sizes.append(path.stat().st_size)
    return sum(sizes) / count


@dataclass
class Draws:
    """What is drawn for a batch: (top, left, flipped) and three normal numbers for each image."""

    crops: np.ndarray
    normals: np.ndarray


def draws(indices: np.ndarray) -> Draws:
    from convkit.train import draws as drawn

    how = drawn.Crops(CROP)
    return Draws(
        drawn.crops(1, 1, indices, indices, (SIZE, SIZE), how),
        drawn.normals(1, 1, indices).astype(np.float32),
    )


# ---------------------------------------------------------------------------------------------------
# Entries: each fills x with the images of the indices
# ---------------------------------------------------------------------------------------------------
Fill = Callable[[np.ndarray, np.ndarray], object]


def noise(normals: np.ndarray) -> np.ndarray:
    """Of colours from 0 to 1."""
    return (0.1 * normals * STDEVS @ VECTORS.T).astype(np.float32)


def torchvision_way(split: Any) -> Fill:
    """Resize, crop, flip by Pillow; ToTensor, colour, Normalize, collate by NumPy."""
    from PIL import Image

    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    width = SIZE * WIDTH // HEIGHT

    def fill(indices: np.ndarray, x: np.ndarray) -> None:
        drawn = draws(indices)
        colours = noise(drawn.normals)
        made = []
        for index, (top, left, flipped), colour in zip(indices, drawn.crops.tolist(), colours):
            with open(split.name(int(index)), "rb") as file:
                image = Image.open(file).convert("RGB")
            image = image.resize((width, SIZE), Image.Resampling.BILINEAR)
            left += (width - SIZE) // 2
            image = image.crop((left, top, left + CROP, top + CROP))
            if flipped:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            tensor = np.ascontiguousarray(np.array(image).transpose(2, 0, 1)).astype(np.float32)
            tensor /= 255
            tensor += colour[:, None, None]
            tensor -= mean
            tensor /= std
            made.append(tensor)
        np.stack(made, out=x)

    return fill


def pillow_best(split: Any) -> Fill:
    """The square of 2012 resized alone, then one pass for each operation."""
    from PIL import Image

    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    first = (WIDTH - HEIGHT) // 2

    def fill(indices: np.ndarray, x: np.ndarray) -> None:
        drawn = draws(indices)
        shifts = (noise(drawn.normals) - mean) * 255
        scale = 1 / (255 * std)[:, None, None]
        for row, (index, (top, left, flipped)) in enumerate(zip(indices, drawn.crops.tolist())):
            with open(split.name(int(index)), "rb") as file:
                image = Image.open(file)
                box = (first, 0, first + HEIGHT, HEIGHT)
                image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
            _numpy_input(np.asarray(image), top, left, flipped, shifts[row], scale, x[row])

    return fill


def _numpy_input(
    image: np.ndarray,
    top: int,
    left: int,
    flipped: int,
    shift: np.ndarray,
    scale: np.ndarray,
    out: np.ndarray,
) -> None:
    pixels = image[top : top + CROP, left : left + CROP]
    pixels = pixels[:, ::-1] if flipped else pixels
    np.add(pixels.transpose(2, 0, 1), shift[:, None, None], out=out)
    out *= scale


def numpy_from(split: Any) -> Fill:
    """Stored images, by NumPy alone."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    buffer = np.empty((0, *split.shape), np.uint8)

    def fill(indices: np.ndarray, x: np.ndarray) -> None:
        nonlocal buffer
        buffer = _grown(buffer, len(indices))
        split.read_many(indices, buffer[: len(indices)])
        drawn = draws(indices)
        shifts = (noise(drawn.normals) - mean) * 255
        scale = 1 / (255 * std)[:, None, None]
        for row, (top, left, flipped) in enumerate(drawn.crops.tolist()):
            _numpy_input(buffer[row], top, left, flipped, shifts[row], scale, x[row])

    return fill


def convkit(split: Any) -> Fill:
    """Files decoded by OpenCV, or stored images; then `crop_images`."""
    buffer = np.empty((0, *split.shape), np.uint8)

    def fill(indices: np.ndarray, x: np.ndarray) -> None:
        nonlocal buffer
        buffer = _grown(buffer, len(indices))
        split.read_many(indices, buffer[: len(indices)])
        cropped(buffer[: len(indices)], draws(indices), x)

    return fill


def cropped(images: np.ndarray, drawn: Draws, x: np.ndarray) -> None:
    """The input by convkit's op."""
    import convkit as ck

    std = np.array(STD, np.float32)
    mean = np.array(MEAN, np.float32)[:, None, None] * 255
    ck.crop_images(images, drawn.crops, mean, noise(drawn.normals) * 255, 1 / (255 * std), size=CROP, out=x)


def reading_alone(split: Any) -> Fill:
    """What `split` does, and nothing else."""
    buffer = np.empty((0, *split.shape), np.uint8)

    def fill(indices: np.ndarray, x: np.ndarray) -> None:
        nonlocal buffer
        buffer = _grown(buffer, len(indices))
        split.read_many(indices, buffer[: len(indices)])

    return fill


def crop_alone(split: Any) -> Fill:
    """`crop_images`, with what is drawn for it."""
    images = np.zeros((64, *split.shape), np.uint8)
    return lambda indices, x: cropped(images[: len(indices)], draws(indices), x)


def _grown(buffer: np.ndarray, count: int) -> np.ndarray:
    return buffer if len(buffer) >= count else np.empty((count, *buffer.shape[1:]), np.uint8)


def require_alike(fills: dict[str, Fill], count: int) -> dict[str, float]:
    """How far each entry's input is from the yardstick's: root of the mean square, in grey levels."""
    indices = np.arange(count)
    made = {}
    for name, fill in fills.items():
        made[name] = np.full((count, 3, CROP, CROP), np.nan, np.float32)
        fill(indices, made[name])
    levels = 255 * np.array(STD)[:, None, None]
    far = {}
    for name, x in made.items():
        far[name] = float(np.sqrt(np.mean(((x - made[YARDSTICK]) * levels) ** 2)))
        if not far[name] <= ALLOWED:
            raise SystemExit(
                f"{name} makes another input than {YARDSTICK}: {far[name]:.1f} grey levels apart"
            )
    return far


# ---------------------------------------------------------------------------------------------------
# Samples
# ---------------------------------------------------------------------------------------------------
def core(files: Any, store: Any, args: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    """Every entry in turns."""
    fills: dict[tuple[str, str], Fill] = {
        ("jpeg", "convkit"): convkit(files),
        ("jpeg", YARDSTICK): torchvision_way(files),
        ("jpeg", "Pillow at its best"): pillow_best(files),
        ("store", "convkit"): convkit(store),
        ("store", "NumPy"): numpy_from(store),
        ("jpeg", "its decoding"): reading_alone(files),
        ("store", "its copying"): reading_alone(store),
        ("store", "its crop_images"): crop_alone(store),
    }
    whole = {f"{source}: {name}" if name == "convkit" else name: fill
             for (source, name), fill in fills.items() if not name.startswith("its ")}  # fmt: skip
    far = require_alike(whole, min(16, args.images))
    rows = {key: Row("core", *key, part=key[1].startswith("its ")) for key in fills}
    idle = Row("core", "", "noise")
    rng = np.random.default_rng(1)
    x = np.empty((min(64, args.images), 3, CROP, CROP), np.float32)
    block = np.ones(1 << 14, np.float32)
    for number in range(args.rounds + 1):
        for key in rng.permutation(len(fills)):
            name = list(fills)[key]
            # What takes less time is done more often, so that each sample has some tenths of a second.
            times = 1 if name[0] == "jpeg" and "crop_images" not in name[1] else 10
            batches = [rng.permutation(args.images)[: len(x)] for _ in range(times)]
            start = time.process_time()
            for indices in batches:
                fills[name](indices, x)
            took = time.process_time() - start
            if number:  # the first round warms up
                rows[name].rates.append(len(x) * times / took)
        start = time.process_time()
        for _ in range(20000):
            block.sum()
        if number:
            idle.rates.append(20000 / (time.process_time() - start))
    return [*rows.values(), idle], far


def _reader(workers: int) -> str:
    return f"{workers} process{'es' * (workers > 1)}" if workers else "a thread"


def whole(files: Any, store: Any, args: argparse.Namespace) -> list[Row]:
    """Through `Loader`."""
    from convkit.train.loader import Loader

    rows = []
    entries = [("jpeg", files, workers) for workers in range(args.workers + 1)] + [("store", store, 0)]
    for source, _, workers in entries:
        rows.append(Row("whole", source, _reader(workers)))
    x = np.empty((64, 3, CROP, CROP), np.float32)
    rng = np.random.default_rng(2)

    def requests(batches: int) -> Iterator[np.ndarray]:
        for _ in range(batches):
            yield rng.integers(0, args.images, len(x))

    for _ in range(args.whole_rounds):
        for row, (source, split, workers) in zip(rows, entries):
            batches = 60 if source == "store" else 15
            start = time.perf_counter()
            with Loader(split, workers=workers) as loader:
                waited = 0.0
                for number, read in enumerate(loader.read(requests(batches))):
                    if not number:
                        began = time.perf_counter()
                        row.first.append(began - start)
                    else:
                        waited += read.waited
                    cropped(read.images, draws(read.indices), x)
                took = time.perf_counter() - began
            row.rates.append(batches * len(x) / took)
            row.waited.append(waited / took)
    return rows


# ---------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------
def ratios(rows: list[Row]) -> dict[str, list[float]]:
    """convkit's rates over the yardstick's, round by round, for each source."""
    by = {(row.source, row.name): row for row in rows if row.section == "core"}
    yardstick = by["jpeg", YARDSTICK].rates
    return {
        source: [a / b for a, b in zip(by[source, "convkit"].rates, yardstick, strict=True)]
        for source in GOALS
    }


def _spread(values: list[float], form: str = ".0f") -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def shown(rows: list[Row]) -> str:
    """The tables."""
    lines = []
    inside = [row for row in rows if row.section == "core"]
    if inside:
        yardstick = median(next(row.rates for row in inside if row.name == YARDSTICK))
        lines += [f"{'images for each second of CPU time':44}{'rate':>26}{'times':>8}"]
        for row in inside:
            if row.source:
                name = f"  {row.name}" if row.part else row.name
                lines += [
                    f"{row.source:7}{name:37}{_spread(row.rates):>26}{median(row.rates) / yardstick:8.2f}"
                ]
            else:
                lines += [f"{'noise':44}{_spread([v / median(row.rates) for v in row.rates], '.3f'):>26}"]
        for source, values in ratios(rows).items():
            met = "met" if median(values) >= GOALS[source] else "missed"
            lines += [f"{source}: {_spread(values, '.2f')} times {YARDSTICK}; goal {GOALS[source]:g}: {met}"]
    outside = [row for row in rows if row.section == "whole"]
    if outside:
        lines += [
            "",
            f"{'images for each second, through Loader':44}{'rate':>26}{'first batch, s':>24}{'waited':>8}",
        ]
        for row in outside:
            lines += [
                f"{row.source:7}{row.name:37}{_spread(row.rates):>26}{_spread(row.first, '.2f'):>24}"
                f"{median(row.waited):8.0%}"
            ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the samples were taken on."""
    from importlib import metadata

    names = ("numpy", "opencv-python-headless", "pillow", "convkit")
    return {
        "processor": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in names}},
    }


# ---------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "loader.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--sections", type=lambda text: text.split(","), default=list(SECTIONS), metavar="A,B")
    p.add_argument("--images", type=int, default=256, help="JPEGs (default 256)")
    p.add_argument("--rounds", type=int, default=15, help="of `core` (default 15)")
    p.add_argument("--whole-rounds", type=int, default=3, help="of `whole` (default 3)")
    p.add_argument("--workers", type=int, default=2, help="most processes of `whole` (default 2)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write every sample here")
    return p


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Make the images and the store, and time what is asked for."""
    from threadpoolctl import threadpool_limits

    from convkit.train.data import open_data
    from convkit.train.preparation import prepare

    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        size = write_tree(Path(folder, "tree"), args.images)
        files = open_data(Path(folder, "tree"), SIZE).train
        store = prepare(Path(folder, "tree"), Path(folder, "store"), size=SIZE, workers=0).data.train
        args.images = len(files)
        rows: list[Row] = []
        far: dict[str, float] = {}
        if "core" in args.sections:
            found, far = core(files, store, args)
            rows += found
        if "whole" in args.sections:
            rows += whole(files, store, args)
    return {
        "convkit_loader": 1,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "load": {"before": before, "after": os.getloadavg()},
        "settings": {key: value for key, value in vars(args).items() if key != "json"},
        "jpeg_bytes": size,
        "grey_levels_apart": far,
        "rows": [asdict(row) for row in rows],
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, write the JSON; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    if unknown := [name for name in args.sections if name not in SECTIONS]:
        p.error(f"unknown section {unknown[0]!r}; known: {', '.join(SECTIONS)}")
    document = measure(args)
    print(shown([Row(**row) for row in document["rows"]]))
    load = " to ".join(f"{document['load'][when][0]:.2f}" for when in ("before", "after"))
    print(f"\nJPEGs of {document['jpeg_bytes'] / 1000:.0f} kB; load of the machine {load}")
    if args.json:
        args.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
