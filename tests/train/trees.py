"""Makes trees of labelled images for tests: class folders of small JPEGs; files that are odd, or broken.

Images are crops of scikit-image's photographs under a grating, whose direction and colour tell the class, so
that a network can learn it.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from conftest import need

from convkit.train.data.names import synsets
from convkit.train.data.pillow import TURNS


@cache
def photographs() -> list[np.ndarray]:
    """scikit-image's photographs, uint8 (H, W, 3); a generated one where it is not installed."""
    Image = need("PIL.Image")
    try:
        from convkit.train.photos import examples

        return [np.asarray(Image.open(path).convert("RGB")) for path in examples()]
    except ImportError:
        down, across = np.mgrid[:400, :500]
        waves = [np.sin(down / 17 + across / (23 + 9 * k)) * 100 + 127 for k in range(3)]
        return [np.stack(waves, -1).astype(np.uint8)]


def picture(label: int, number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """An image of a class, uint8 (height, width, 3): a photograph's crop under the grating of the class."""
    rng = np.random.default_rng((label, number))
    photo = photographs()[int(rng.integers(len(photographs())))]
    top, left = (int(rng.integers(max(1, a - b))) for a, b in zip(photo.shape, (height, width)))
    crop = photo[top : top + height, left : left + width].astype(np.float64)
    crop = np.pad(crop, ((0, height - crop.shape[0]), (0, width - crop.shape[1]), (0, 0)), mode="wrap")
    down, across = np.mgrid[:height, :width]
    angle, phase = np.pi * (label * 0.382 % 1), rng.random() * 6.3
    grating = np.sin((np.cos(angle) * down + np.sin(angle) * across) / 2 + phase)[..., np.newaxis]
    colour = 1 + 0.9 * np.cos(2 * np.pi * (label * 0.618 + np.arange(3) / 3))
    return np.clip(0.4 * crop + 70 + 60 * grating * colour, 0, 255).astype(np.uint8)


def written(image: Any, format: str = "JPEG", **options: Any) -> bytes:
    """An image, or its pixels, as a file."""
    file = io.BytesIO()
    image = image if hasattr(image, "save") else need("PIL.Image").fromarray(image)
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int = 50000, height: int = 50000) -> bytes:
    """A PNG of a few hundred bytes that says that it has 2.5 billion pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(3 * width))
    parts = png_chunk(b"IHDR", head) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def damaged(data: bytes) -> bytes:
    """A JPEG with a marker in the middle of its data, so that the rest of the picture is lost."""
    torn = bytearray(data)
    at = data.index(b"\xff\xda") + (len(data) - data.index(b"\xff\xda")) // 2
    torn[at : at + 4] = b"\x12\xff\xc4\x34"
    return bytes(torn)


def turned(stored: Any, orientation: int) -> bytes:
    """A JPEG of an image that is stored turned, and says so: EXIF's orientation turns it upright."""
    Image = need("PIL.Image")
    backwards = {6: 8, 8: 6}.get(orientation, orientation)
    if orientation in TURNS:
        stored = stored.transpose(getattr(Image.Transpose, TURNS[backwards]))
    exif = Image.Exif()
    exif[274] = orientation
    return written(stored, exif=exif, quality=95, subsampling=0)


#: Files that hold no image, or a damaged one: how each is made of a good JPEG, and a word of the reason.
BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty.JPEG": (lambda jpeg: b"", "empty"),
    "text.JPEG": (lambda jpeg: b"<html>404 Not Found</html>\n" * 20, "not an image"),
    "zeros.JPEG": (lambda jpeg: bytes(len(jpeg)), "not an image"),
    "header.JPEG": (lambda jpeg: jpeg[:40], "truncated"),
    "half.JPEG": (lambda jpeg: jpeg[: len(jpeg) // 2], "truncated"),
    "cut.JPEG": (lambda jpeg: jpeg[:-1], "truncated"),
    "damaged.JPEG": (damaged, "damaged"),
    "half.png": (lambda jpeg: (png := written(picture(0, 0), "PNG"))[: len(png) // 2], "truncated"),
    "bomb.png": (lambda jpeg: bomb(), "50000 x 50000 pixels"),
}


def odd(pixels: np.ndarray) -> dict[str, bytes]:
    """Files that are read as any other, by name; each holds these pixels, or the grey of them, nearly."""
    Image = need("PIL.Image")
    image = Image.fromarray(pixels)
    grey = image.convert("L")
    other = Image.fromarray(255 - pixels)
    cmyk = Image.merge("CMYK", [*Image.fromarray(255 - pixels).split(), Image.new("L", image.size)])
    alpha = image.copy()
    alpha.putalpha(grey)
    wide = np.asarray(grey, np.uint16) * 257
    fine = {"quality": 95, "subsampling": 0}
    return {
        "cmyk.JPEG": written(cmyk, **fine),
        "grey.JPEG": written(grey, quality=95),
        "progressive.JPEG": written(image, progressive=True, **fine),
        "png.JPEG": written(image, "PNG"),
        "jpeg.png": written(image, **fine),
        "alpha.png": written(alpha, "PNG"),
        "grey16.png": written(Image.fromarray(wide), "PNG"),
        "palette.png": written(image.quantize(256), "PNG"),
        "frames.gif": written(image.quantize(256), "GIF", save_all=True, append_images=[other]),
        "frames.webp": written(image, "WEBP", save_all=True, append_images=[other], lossless=True),
        "plain.bmp": written(image, "BMP"),
        "plain.webp": written(image, "WEBP", lossless=True),
        "turned6.JPEG": turned(image, 6),
        "turned3.JPEG": turned(image, 3),
        "turned_cmyk.JPEG": turned(cmyk, 8),
    }


@dataclass
class Tree:
    """What has been made.

    Attributes
    ----------
    root : Path
    classes : list of str
        Synsets, in order.
    broken : dict of Path to str
        Files of `train` that cannot be read, and a word of the reason.
    left_out : list of Path
        What is no image by its name.
    """

    root: Path
    classes: list[str]
    broken: dict[Path, str] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)


def make(
    root: Path,
    classes: int = 4,
    train: int = 6,
    validation: int = 2,
    *,
    height: int = 48,
    width: int = 64,
    awkward: bool = False,
    parts: tuple[str, str] = ("train", "val"),
) -> Tree:
    """An ImageNet-shaped tree: `train/SYNSET/SYNSET_NUMBER.JPEG`, and the same under `val`.

    Parameters
    ----------
    root : Path
    classes : int
        The first so many synsets of ILSVRC 2012.
    train, validation : int
        Images of each class. No folder is made for validation if there are none.
    height, width : int
        Of the images.
    awkward : bool
        Whether the first class also gets files that are broken in each known way and files that are odd, and
        the last one only what is no image.
    parts : (str, str)
        Names of the two folders; with an empty name, class folders stand in `root` itself.
    """
    tree = Tree(root, sorted(synsets())[:classes])
    for part, count in zip(parts, (train, validation)):
        if not count:
            continue
        for label, key in enumerate(tree.classes):
            folder = root / part / key
            folder.mkdir(parents=True)
            if awkward and part == parts[0] and label == classes - 1:
                (folder / "readme.txt").write_text("nothing")
                tree.left_out += [folder / "readme.txt", folder]
                continue
            for number in range(count):
                # Images of validation are others than those of training.
                pixels = picture(label, number + (train if part == parts[1] else 0), height, width)
                (folder / f"{key}_{number}.JPEG").write_bytes(written(pixels, quality=90))
    if awkward:
        add_awkward(tree, root / parts[0] / tree.classes[0])
    return tree


def add_awkward(tree: Tree, folder: Path) -> None:
    """Add files that are odd or broken, each in its way, to a class folder; the tree notes the broken."""
    jpeg = written(picture(0, 0), quality=90)
    for name, (maker, word) in BROKEN.items():
        (folder / name).write_bytes(maker(jpeg))
        tree.broken[folder / name] = word
    for name, data in odd(picture(0, 1)).items():
        (folder / name).write_bytes(data)
    (folder / "tiny.png").write_bytes(written(np.full((1, 1, 3), 77, np.uint8), "PNG"))
    os.symlink("nowhere", folder / "link.JPEG")
    tree.broken[folder / "link.JPEG"] = "No such file"
    (folder / "folder.jpg").mkdir()
    (folder / "Thumbs.db").write_bytes(b"\0" * 9)
    (folder / "._hidden.jpg").write_bytes(b"\0" * 9)
    tree.left_out += [folder / name for name in ("folder.jpg", "Thumbs.db", "._hidden.jpg")]
