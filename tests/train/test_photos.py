"""Photographs in: files, folders, examples, and what is not an image."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from conftest import need

from convkit import OptionError
from convkit.network.presets import PRESETS, Preprocess, Preset
from convkit.train import photos

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)


@pytest.fixture
def folder(tmp_path):
    Image = need("PIL.Image")
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (300, 280), (255, 0, 10)).save(tmp_path / "red.png")
    Image.new("L", (64, 500), 128).save(tmp_path / "deep" / "grey.jpg")
    Image.new("RGBA", (5, 7), (1, 2, 3, 4)).save(tmp_path / "tiny.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_folders_are_searched_and_photographs_take_turns(folder):
    x, labels, files = photos.batch([folder], PRESETS["paper"], 5)
    assert [f.name for f in files] == ["grey.jpg", "red.png", "tiny.png"]
    assert x.shape == (5, 3, 224, 224) and x.dtype == np.float32
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert np.array_equal(x[0], x[3])


@pytest.mark.parametrize(
    ("preset", "pixel"),
    [
        ("paper", (255 - 127.3, -119.7, 10 - 104.9)),
        ("caffe", (10 - 104.0, -117.0, 255 - 123.0)),
        ("owt", ((1 - 0.485) / 0.229, -0.456 / 0.224, (10 / 255 - 0.406) / 0.225)),
    ],
)
def test_each_preset_prepares_pixels_its_own_way(folder, preset, pixel):
    image = photos.load(folder / "red.png", PRESETS[preset])
    size = PRESETS[preset].image_size
    assert image.shape == (3, size, size)
    np.testing.assert_allclose(image[:, size // 2, size // 2], pixel, rtol=1e-5)


def test_examples_are_real_photographs():
    need("skimage")
    x, labels, files = photos.batch([], PRESETS["paper"])
    assert len(files) == len(photos.EXAMPLES) == len(set(labels.tolist()))
    assert all(image.std() > 20 for image in x)


def test_what_is_not_an_image(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    torn = folder / "torn.png"
    torn.write_bytes((folder / "red.png").read_bytes()[:60])
    for paths, message in (
        ([folder / "notes.txt"], "notes.txt is not an image"),
        ([torn], "torn.png is not an image"),
        ([empty], "no image in the folder"),
        ([folder / "absent.png"], "no such file or folder"),
    ):
        with pytest.raises(photos.ImageError, match=message):
            photos.batch(paths, PRESETS["paper"])
    with pytest.raises(OptionError, match="batch must be at least 1"):
        photos.batch([folder / "red.png"], PRESETS["paper"], 0)


# ---------------------------------------------------------------------------------------------------
# Modes and formats: a ramp of all 256 greys, or three of them, neither resized nor cropped
# ---------------------------------------------------------------------------------------------------
def plain(size: int, resize: int | None = None) -> Preset:
    """RGB as it is."""
    return Preset("plain", size, (), preprocess=Preprocess(mean=(0.0, 0.0, 0.0), resize=resize or size))


def png(samples: np.ndarray, colour: int) -> bytes:
    """A 16-bit PNG: colour 0 is grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(
    samples: np.ndarray, kind: int = 1, photometric: int = 1, bits: int = 0, deflate: bool = False
) -> bytes:
    """A TIFF in the samples' byte order; kind 1 is unsigned, 2 signed, 3 floating point."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    height, width = samples.shape[:2]
    bands = samples.shape[2] if samples.ndim == 3 else 1
    data = samples.tobytes()
    if bits == 12:  # two samples in three bytes
        pairs = samples.reshape(-1, 2).astype(int)
        a, b = pairs[:, 0], pairs[:, 1]
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    bits = bits or 8 * samples.itemsize
    data = zlib.compress(data) if deflate else data
    tags = [(256, width), (257, height), (258, bits), (259, 8 if deflate else 1), (262, photometric)]
    tags += [(273, 0), (277, bands), (278, height), (279, len(data)), (339, kind)]
    behind = 8 + 2 + 12 * len(tags) + 4
    extra = b""
    entries = b""
    for tag, value in tags:
        count = 1
        if tag in (258, 339) and bands > 1:
            count, value, extra = (
                bands,
                behind + len(extra),
                extra + struct.pack(f"{order}{bands}H", *[value] * bands),
            )
        if tag == 273:
            value = behind + 12
        packed = struct.pack(f"{order}HH", value, 0) if count == 1 and tag not in (273, 279) else b""
        packed = packed or struct.pack(f"{order}I", value)
        entries += struct.pack(f"{order}HHI", tag, 4 if tag in (273, 279) else 3, count) + packed
    head = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + extra.ljust(12, b"\0") + data


def written(image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def fits(samples: np.ndarray) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": "16", "NAXIS": "2", "NAXIS1": "16", "NAXIS2": "16"}
    text = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items()) + "END".ljust(80)
    return text.ljust(2880).encode() + samples.astype(">i2").tobytes()


def greys() -> dict[str, tuple[bytes, np.ndarray]]:
    """Files, and the grey that each pixel of theirs is."""
    Image = need("PIL.Image")
    ramp = Image.fromarray(RAMP)
    wide = RAMP.astype(np.uint16) * 257
    between = (np.arange(256) * 256 + 3).astype(np.uint16).reshape(16, 16)
    rounded = np.floor(between / 257 + 0.5)
    halves = Image.fromarray(np.where(RAMP < 100, 0, 255).astype(np.uint8))
    alpha = Image.merge("LA", [ramp, Image.fromarray(RAMP.T)])
    palette = ramp.convert("P")  # a palette of greys; below, its colours are written backwards
    backwards = Image.fromarray(255 - RAMP, "P")
    backwards.putpalette([v for v in range(255, -1, -1) for _ in range(3)])
    first, second = ramp, Image.fromarray(255 - RAMP)
    unit = RAMP.astype(np.float32) / 255
    return {
        "1.png": (written(halves.convert("1"), "PNG"), np.asarray(halves)),
        "1.tiff": (written(halves.convert("1"), "TIFF", compression="group4"), np.asarray(halves)),
        "l.png": (written(ramp, "PNG"), RAMP),
        "l.tiff": (written(ramp, "TIFF"), RAMP),
        "l-white-is-zero.tiff": (tiff(RAMP, photometric=0), 255 - RAMP),
        "l.pgm": (written(ramp, "PPM"), RAMP),
        "l.jp2": (written(ramp, "JPEG2000"), RAMP),
        "la.png": (written(alpha, "PNG"), RAMP),
        "la.tiff": (written(alpha, "TIFF"), RAMP),
        "p.png": (written(palette, "PNG"), RAMP),
        "p-backwards.png": (written(backwards, "PNG"), RAMP),
        "p-transparent.png": (written(backwards, "PNG", transparency=bytes(range(256))), RAMP),
        "p-one-transparent.gif": (written(backwards, "GIF", transparency=7), RAMP),
        "pa.tiff": (written(palette.convert("PA"), "TIFF"), RAMP),
        "frames.gif": (written(first, "GIF", save_all=True, append_images=[second]), RAMP),
        "frames.tiff": (written(first, "TIFF", save_all=True, append_images=[second]), RAMP),
        "frames.png": (written(first, "PNG", save_all=True, append_images=[second]), RAMP),
        "16.png": (png(wide, 0), RAMP),
        "16-between.png": (png(between, 0), rounded),
        "16-alpha.png": (png(np.stack([wide, wide[::-1]], -1), 4), RAMP),
        "16.jp2": (written(Image.fromarray(wide), "JPEG2000"), RAMP),
        "16.tiff": (tiff(wide), RAMP),
        "16-between.tiff": (tiff(between), rounded),
        "16-deflate.tiff": (tiff(wide, deflate=True), RAMP),
        "16-big.tiff": (tiff(wide.astype(">u2")), RAMP),
        "16-big-deflate.tiff": (tiff(wide.astype(">u2"), deflate=True), RAMP),
        "16-white-is-zero.tiff": (tiff(wide, photometric=0), 255 - RAMP),
        "12.tiff": (tiff(RAMP.astype(np.uint16) * 16, bits=12), np.floor(RAMP * 16.0 * 255 / 4095 + 0.5)),
        "16.pgm": (b"P5 16 16 65535\n" + wide.astype(">u2").tobytes(), RAMP),
        "10.pgm": (b"P5 16 16 1020\n" + (RAMP * 4.0).astype(">u2").tobytes(), RAMP),
        "10-plain.pgm": (b"P2 16 16 1020\n" + b" ".join(b"%d" % (4 * int(v)) for v in RAMP.flat), RAMP),
        "unit.tiff": (tiff(unit, 3), RAMP),
        "unit-big.tiff": (tiff(unit.astype(">f4"), 3), RAMP),
        "unit.pfm": (b"Pf\n16 16\n-1.0\n" + unit[::-1].astype("<f4").tobytes(), RAMP),
    }


def colours() -> dict[str, tuple[bytes, np.ndarray]]:
    """Files, and the RGB that each pixel of theirs is."""
    Image = need("PIL.Image")
    image = Image.fromarray(COLOURS)
    clear = image.copy()
    clear.putalpha(Image.fromarray(RAMP))
    wide = COLOURS.astype(np.uint16) * 256 + 77  # Pillow keeps the high byte
    cmyk = Image.merge("CMYK", [*Image.fromarray(255 - COLOURS).split(), Image.new("L", (16, 16))])
    found = {
        f"rgb.{f.lower()}": (written(image, f), COLOURS) for f in ("PNG", "TIFF", "BMP", "PPM", "TGA", "SGI")
    }
    found |= {
        f"rgba.{f.lower()}": (written(clear, f), COLOURS) for f in ("PNG", "TIFF", "TGA", "JPEG2000", "DDS")
    }
    return {
        **found,
        "rgba.webp": (written(clear, "WEBP", lossless=True, exact=True), COLOURS),
        "16-rgb.png": (png(wide, 2), COLOURS),
        "16-rgba.png": (png(np.concatenate([wide, wide[..., :1]], -1), 6), COLOURS),
        "16-rgb.tiff": (tiff(wide, photometric=2), COLOURS),
        "16-rgb.ppm": (b"P6 16 16 65535\n" + (COLOURS.astype(">u2") * 257).tobytes(), COLOURS),
        "cmyk.tiff": (written(cmyk, "TIFF"), COLOURS),
    }


def test_every_mode_of_a_file_is_scaled_by_its_own_range(tmp_path):
    for name, (data, grey) in greys().items():
        (tmp_path / name).write_bytes(data)
        image = photos.load(tmp_path / name, plain(16))
        np.testing.assert_array_equal(image, np.stack([np.float32(grey)] * 3), err_msg=name)
    for name, (data, rgb) in colours().items():
        (tmp_path / name).write_bytes(data)
        image = photos.load(tmp_path / name, plain(16))
        np.testing.assert_array_equal(image, np.float32(rgb).transpose(2, 0, 1), err_msg=name)


def test_lossy_and_converted_colours(tmp_path):
    """JPEG, grey, colour, CMYK as Adobe inverts it; YCbCr and LAB, by the grey that is without colour."""
    Image = need("PIL.Image")
    smooth = Image.fromarray(np.tile(RAMP.ravel(), (256, 1)))
    colour = Image.merge("RGB", [smooth, smooth.transpose(Image.Transpose.ROTATE_90), smooth])
    cmyk = Image.merge("CMYK", [*colour.point(lambda v: 255 - v).split(), Image.new("L", colour.size)])
    neutral = Image.new("L", smooth.size, 128)
    ycc = Image.merge("YCbCr", [smooth, neutral, neutral])
    for name, image, options, expected in (
        ("grey.jpg", smooth, {"quality": 100}, smooth.convert("RGB")),
        ("colour.jpg", colour, {"quality": 100, "subsampling": 0}, colour),
        ("cmyk.jpg", cmyk, {"quality": 100}, colour),
        ("progressive.jpg", colour, {"quality": 100, "subsampling": 0, "progressive": True}, colour),
        ("ycc.tiff", ycc, {}, smooth.convert("RGB")),
    ):
        image.save(tmp_path / name, **options)
        got = photos.load(tmp_path / name, plain(256)).transpose(1, 2, 0)
        assert np.abs(got - np.asarray(expected, np.float32)).max() <= 3, name


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "signed.tiff",
            lambda: tiff(RAMP.astype(np.int32), 2),
            "it holds signed integers, and what is white",
        ),
        (
            "signed16.tiff",
            lambda: tiff(RAMP.astype(np.int16), 2),
            "it holds signed integers, and what is white",
        ),
        ("signed8.tiff", lambda: tiff(RAMP.view(np.int8), 2), "it holds signed integers, and what is white"),
        (
            "unsigned.tiff",
            lambda: tiff(RAMP.astype(np.uint32), 1),
            "it holds 32-bit integers, and what is white",
        ),
        ("16.fits", lambda: fits(RAMP), "it holds 16-bit measurements, and what is white"),
        (
            "float.tiff",
            lambda: tiff(RAMP.astype(np.float32), 3),
            "floating point from 0 to 255, not from 0 to 1, and",
        ),
        (
            "below.tiff",
            lambda: tiff(RAMP.astype(np.float32) / 255 - 0.5, 3),
            "point from -0.5 to 0.5, not from 0 to 1",
        ),
        (
            "inf.tiff",
            lambda: tiff(np.where(RAMP > 9, np.inf, 0).astype(np.float32), 3),
            "point from 0 to inf, not",
        ),
        ("nan.tiff", lambda: tiff(np.where(RAMP == 9, np.nan, 0).astype(np.float32), 3), "it holds NaN"),
        ("all-nan.tiff", lambda: tiff(np.full((16, 16), np.nan, np.float32), 3), "point from nan to nan"),
    ],
)
def test_samples_without_a_known_white_are_refused(name, data, message, tmp_path):
    need("PIL.Image")
    (tmp_path / name).write_bytes(data())
    with pytest.raises(photos.ImageError) as error:
        photos.load(tmp_path / name, plain(16))
    assert message in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------
# The window that is resized
# ---------------------------------------------------------------------------------------------------
def whole(image, resize: int, size: int) -> np.ndarray:
    """The same by the definition: all of the image resized, then its centre cropped."""
    Image = need("PIL.Image")
    ratio = resize / min(image.size)
    image = image.resize(
        [max(resize, round(extent * ratio)) for extent in image.size], Image.Resampling.BILINEAR
    )
    left, top = ((extent - size) // 2 for extent in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)), np.float32).transpose(2, 0, 1)


def test_photographs_are_as_if_all_of_them_were_resized():
    Image = need("PIL.Image")
    need("skimage")
    for path in photos.examples():
        with Image.open(path) as file:
            expected = whole(file.convert("RGB"), 256, 227)
        np.testing.assert_array_equal(photos.load(path, plain(227, 256)), expected, err_msg=str(path))


def test_odd_and_thin_sizes_are_as_if_all_of_them_were_resized(tmp_path):
    Image = need("PIL.Image")
    rng = np.random.default_rng(5)
    path = tmp_path / "noise.bmp"
    for shape in ((16, 16), (17, 40), (41, 18), (7, 301), (150, 3), (1, 90), (90, 1), (64, 257), (200, 33)):
        image = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
        image.save(path)
        # A window may change the order of the filter's two passes, each of which rounds.
        most = 2 if max(shape) > 4 * min(shape) else 0
        for resize, size in ((16, 16), (16, 13), (40, 27)):
            difference = photos.load(path, plain(size, resize)) - whole(image, resize, size)
            assert np.abs(difference).max() <= most, (shape, resize, size)


def test_a_long_photograph_is_as_if_all_of_it_were_resized(tmp_path):
    Image = need("PIL.Image")
    need("skimage")
    path = tmp_path / "long.png"
    with Image.open(photos.examples()[0]) as file:
        image = file.convert("RGB").crop((100, 40, 400, 100))
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
        turned.save(path)
        assert np.abs(photos.load(path, plain(48, 60)) - whole(turned, 60, 48)).max() <= 1
        assert np.abs(photos.load(path, plain(227, 256)) - whole(turned, 256, 227)).max() <= 1


def test_every_exif_orientation_is_upright_and_centred(tmp_path):
    Image = need("PIL.Image")
    rng = np.random.default_rng(6)
    upright = rng.integers(0, 256, (20, 93, 3), np.uint8)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    for size, resize in ((12, 15), (20, 20)):
        expected = photos.load(tmp_path / "upright.png", plain(size, resize))
        stored = {
            1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
            5: upright.transpose(1, 0, 2), 6: upright.transpose(1, 0, 2)[::-1],
            7: upright.transpose(1, 0, 2)[::-1, ::-1], 8: upright.transpose(1, 0, 2)[:, ::-1],
        }  # fmt: skip
        for orientation, pixels in stored.items():
            exif = Image.Exif()
            exif[274] = orientation
            for name, options in (("a.png", {}), ("a.tiff", {}), ("a.webp", {"lossless": True})):
                Image.fromarray(pixels[..., :].copy()).save(tmp_path / name, exif=exif, **options)
                image = photos.load(tmp_path / name, plain(size, resize))
                # Turned, the filter rounds in the other order between its two passes.
                assert np.abs(image - expected).max() <= 1, (orientation, name)


@pytest.mark.parametrize("shape", [(1, 60000), (60000, 1), (3, 20000)])
def test_long_and_thin_images_take_no_more_than_what_is_cropped(shape, tmp_path, monkeypatch):
    Image = need("PIL.Image")
    made: list[int] = []
    resize = Image.Image.resize

    def watched(self, size, *args, **kwargs):
        assert size[0] * size[1] <= 2**16, f"resized to {size}"
        made.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    ramp = np.linspace(0, 255, max(shape)).astype(np.uint8)
    pixels = np.broadcast_to(ramp if shape[0] < shape[1] else ramp[:, None], shape)
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "thin.png")
    image = photos.load(tmp_path / "thin.png", PRESETS["owt"])
    expected = (127 / 255 - 0.485) / 0.229
    assert made and abs(image[0, 112, 112] - expected) < 0.02


# ---------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------
def read_or_refused(path) -> bool:
    """Whether it is read; what is not is refused by a line, without a warning."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            assert photos.load(path, plain(16)).shape == (3, 16, 16)
            read = True
        except photos.ImageError as error:
            assert path.name in str(error) and "\n" not in str(error), error
            read = False
    assert not warned
    return read


def test_damaged_files_end_in_a_line(tmp_path, monkeypatch, capsys):
    Image = need("PIL.Image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**16)  # so that damage to a size costs no time
    rng = np.random.default_rng(7)
    files = {name: data for name, (data, _) in {**greys(), **colours()}.items()}
    image = Image.fromarray(COLOURS)
    exif = Image.Exif()
    exif[274] = 6
    for format in ("JPEG", "WEBP", "TIFF", "PNG"):
        files[f"exif.{format.lower()}"] = written(image, format, exif=exif)
    for format in ("ICO", "PCX", "GIF", "SPIDER", "DIB", "ICNS", "QOI", "PDF"):
        try:
            files[f"other.{format.lower()}"] = written(
                image.convert("F" if format == "SPIDER" else "RGB"), format
            )
        except (KeyError, OSError, ValueError):  # another Pillow writes other formats
            pass
    read = []
    for name, data in files.items():
        path = tmp_path / f"bad-{name}"
        for cut in (20, len(data) - 3):
            path.write_bytes(data[:cut])
            read.append(read_or_refused(path))
        for _ in range(3):
            torn = bytearray(data)
            for at in rng.integers(0, min(len(data), 300), rng.integers(1, 6)):
                torn[at] = rng.integers(0, 256)
            path.write_bytes(torn)
            read.append(read_or_refused(path))
    assert 0.1 * len(read) < sum(read) < 0.9 * len(read)
    assert capsys.readouterr() == ("", "")


def test_a_decompression_bomb_is_refused_and_what_is_only_large_is_read(tmp_path, monkeypatch):
    Image = need("PIL.Image")
    path = tmp_path / "large.png"
    Image.new("L", (30, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert read_or_refused(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(photos.ImageError, match="large.png is not an image that can be read: .*bomb"):
        photos.load(path, plain(16))


@pytest.mark.parametrize(
    "raised", [MemoryError(), EOFError(), struct.error("a\nb"), RecursionError(), KeyError(3)]
)
def test_whatever_pillow_raises_is_one_line(raised, tmp_path, monkeypatch):
    ImageFile = need("PIL.ImageFile")
    path = tmp_path / "two\nlines.png"
    need("PIL.Image").new("L", (30, 30)).save(path)

    def load(self):
        raise raised

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    monkeypatch.setattr(need("PIL.PngImagePlugin").PngImageFile, "load", load)
    with pytest.raises(photos.ImageError, match="^[^\n]*two lines.png[^\n]*$"):
        photos.load(path, plain(16))


def test_an_image_without_pixels_and_paths_that_cannot_be(tmp_path, monkeypatch):
    Image = need("PIL.Image")
    path = tmp_path / "none.png"
    Image.new("L", (30, 30)).save(path)
    monkeypatch.setattr(
        need("PIL.PngImagePlugin").PngImageFile, "load", lambda self: setattr(self, "_size", (0, 3))
    )
    with pytest.raises(photos.ImageError, match="none.png: it has no pixels"):
        photos.load(path, plain(16))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("x" * 300, "a\0b", str(tmp_path / "loop"), ""):
        with pytest.raises(photos.ImageError, match="^[^\n]+$"):
            photos.find([name])


def test_a_crop_that_is_larger_than_what_it_is_cut_from(folder):
    with pytest.raises(OptionError, match="a crop of 20 pixels needs resize of at least as many, not 16"):
        photos.load(folder / "red.png", plain(20, 16))
