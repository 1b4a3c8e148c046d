"""What the markers of a JPEG, and the chunks of a PNG, say before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadImage

#: Start-of-frame markers of the codings that every decoder has: baseline, extended, progressive.
_FRAMES = (0xC0, 0xC1, 0xC2)
_ALL_FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
_SCAN, _APP1 = 0xDA, 0xE1
_END_OF_IMAGE = b"\xff\xd9"
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

_PNG = b"\x89PNG\r\n\x1a\n"
#: Grey, RGB, RGB with alpha.
_PNG_COLOURS = (0, 2, 6)
#: Chunks that change what is seen, or which way up, or hold more frames.
_PNG_ODD = (b"eXIf", b"iTXt", b"tRNS", b"acTL", b"CgBI")


@dataclass(frozen=True)
class Header:
    """An image of 8-bit grey or RGB samples, which any decoder reads in the same way.

    Attributes
    ----------
    width, height : int
    exif : bytes
        EXIF data as the file has them; empty where there are none.
    scales : bool
        Whether it can be decoded at 1/2, 1/4 or 1/8 of its size.
    """

    width: int
    height: int
    exif: bytes
    scales: bool


def ordinary(data: bytes) -> Header | None:
    """The header of an ordinary JPEG or PNG; None for whatever else it is, or may be.

    Raises
    ------
    BadImage
        If a JPEG or a PNG ends too early. Decoders fill up what is missing, some of them without a word, so
        the end is looked for here: a JPEG's data cannot hold the two bytes of its end-of-image marker, since
        each FF in them is followed by a zero; a PNG's chunks say where the next one begins.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(_PNG):
        return _png(data)
    return None


def _jpeg(data: bytes) -> Header | None:
    size = len(data)
    frame: tuple[int, int] | None = None
    plain, exif, at = True, b"", 2
    while True:
        if at + 4 > size:
            raise BadImage("truncated: it ends in the header of the JPEG")
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker in _ALL_FRAMES and len(body) >= 6:
            frame = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
            plain = plain and marker in _FRAMES and body[0] == 8 and body[5] in (1, 3)
        elif marker == _APP1 and body.startswith(_EXIF):
            plain = plain and not exif  # EXIF data in parts
            exif = body
        elif marker == _APP1 and body.startswith(_XMP) and b"Orientation" in body:
            plain = False
        elif marker == _SCAN:
            break
        at += 2 + length
    if data.rfind(_END_OF_IMAGE, at) < 0:  # from the end, where it is as a rule
        raise BadImage("truncated: the JPEG has no end-of-image marker")
    if frame is None or not plain or 0 in frame:
        return None
    return Header(*frame, exif=exif, scales=True)


def _png(data: bytes) -> Header | None:
    size, at, plain = len(data), len(_PNG), True
    while True:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if at + 12 + length > size:
            raise BadImage("truncated: the PNG ends inside a chunk")
        plain = plain and kind not in _PNG_ODD
        if kind == b"IEND":
            break
        at += 12 + length
    if data[12:16] != b"IHDR" or data[24] != 8 or data[25] not in _PNG_COLOURS or not plain:
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return Header(width, height, exif=b"", scales=False) if width and height else None
