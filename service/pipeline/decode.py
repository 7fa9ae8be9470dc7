"""Encoded bytes to an RGB image. Hostile input is the normal case here.

The first bytes decide the format, and only its decoder is tried; size and pixels are taken from the header before
anything is decoded. Whatever makes a decoder fail is the caller's `UndecodableImage`.
"""

from __future__ import annotations

import io
import re
import struct

from PIL import AvifImagePlugin, Image

from model.inputs.decode import Decoded, upright_rgb
from model.inputs.other_formats import name_format
from service.errors import PayloadTooLarge, ServiceError, UndecodableImage, UnsupportedMediaType

ACCEPTED = "JPEG, PNG, WebP, GIF, AVIF, BMP"

MAX_JPEG_SCANS = 64
"""A progressive JPEG has about ten scans. Each takes a pass over all pixels and only a few bytes, so a small file
with thousands of them would keep a decoder busy for minutes."""

MAX_JPEG_SEGMENTS = 10_000

JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
"""Neither fill bytes, nor an escaped 0xff within a scan, nor a marker that stands alone (restarts, start of the image).

Two bytes and no repetition, so that a search takes linear time whatever it searches."""

JPEG_SCAN, JPEG_END = b"\xda", b"\xd9"


def configure_pillow() -> None:
    """Set what `decode` needs of Pillow, once per process: Pillow knows these settings only globally."""
    # The limit on pixels is a setting of ours, checked below for every format; Pillow's fixed one would come first.
    Image.MAX_IMAGE_PIXELS = None
    # The pool decodes several images at once; threads inside one decoder would compete with it.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def decode(data: bytes, *, max_pixels: int, target: tuple[int, int]) -> Decoded:
    """Decode the first frame upright, as sRGB by its colour profile, transparency on white.

    target: the model's input (height, width); large images are reduced to a scale not far above it.

    Raises `UnsupportedMediaType` (not one of the accepted formats), `PayloadTooLarge` (too many pixels) or
    `UndecodableImage` (damaged).
    """
    file_format = sniff(data)
    _check_header(data, file_format, max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=(file_format,)) as image:
            _check_pixels(image.size, max_pixels)
            return upright_rgb(image, target)
    except ServiceError:
        raise
    except Exception as error:
        # Not a list of classes: Pillow's parsers raise struct.error, SyntaxError, ValueError, ZeroDivisionError
        # and more, all of which mean that the file is damaged.
        cut = ": it ends too early" if "truncated" in str(error) else ""
        raise UndecodableImage(f"the image is a damaged {file_format} file{cut}") from error


def sniff(data: bytes) -> str:
    """Return Pillow's name of the format that the first bytes announce.

    Raises `UndecodableImage` if there are no bytes, `UnsupportedMediaType` if it is none of the accepted
    ones.
    """
    match data[:12]:
        case b"":
            raise UndecodableImage("the image is empty")
        case head if head.startswith(b"\xff\xd8\xff"):
            return "JPEG"
        case head if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return "PNG"
        case head if head.startswith((b"GIF87a", b"GIF89a")):
            return "GIF"
        case head if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return "WEBP"
        case head if head[4:8] == b"ftyp" and {b"avif", b"avis"} & _brands(data):
            return "AVIF"
        case head if head.startswith(b"BM"):
            return "BMP"
    found = name_format(data)
    what = f"the image is {found}, which is none" if found else "the image is in none"
    raise UnsupportedMediaType(f"{what} of the accepted formats ({ACCEPTED}): save it as JPEG")


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file, which tell AVIF from HEIC: the major one and the compatible ones."""
    box = data[8 : min(int.from_bytes(data[:4]), 256)]
    return {box[at : at + 4] for at in range(0, len(box), 4)}


def _check_header(data: bytes, file_format: str, max_pixels: int) -> None:
    """Check what Pillow would check only after spending memory or time."""
    if file_format == "WEBP" and (size := _webp_size(data)):
        # Its decoder allocates the whole canvas on opening.
        _check_pixels(size, max_pixels)
    if file_format == "JPEG":
        _check_jpeg(data)


def _check_jpeg(data: bytes) -> None:
    """Count scans, segment by segment up to the end of the image: phones append whole videos."""
    scans, at = 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = JPEG_MARKER.search(data, at)
        if marker is None or marker[1] == JPEG_END:
            return
        scans += marker[1] == JPEG_SCAN
        if scans > MAX_JPEG_SCANS:
            raise UndecodableImage(f"the image has more than {MAX_JPEG_SCANS} JPEG scans")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    raise UndecodableImage(f"the image has more than {MAX_JPEG_SEGMENTS} JPEG segments")


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        accepted = f"at most {max_pixels:,} are accepted (CMA_CLIP_MAX_IMAGE_PIXELS)"
        raise PayloadTooLarge(f"the image has {width} × {height} = {width * height:,} pixels; {accepted}")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the canvas size of a WebP header: extended, lossy or lossless; None if it is too short or unknown."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(data) >= 25:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
