"""What an image file may be and may cost, told from its first bytes and its header, before anything is decoded.

Hostile input is the normal case here. The first bytes decide the format, and only its decoder is tried. From the header
follow the memory and the CPU time that decoding may take; `model.inputs.worker` enforces both, since a header can lie.
Imports the standard library alone.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.errors import ImageFormatError, ImageSizeError, UndecodableError
from model.inputs.other_formats import name_format

if TYPE_CHECKING:
    from PIL.Image import Image

ACCEPTED = "JPEG, PNG, WebP, GIF, AVIF, BMP"

SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
}

MAX_JPEG_SCANS = 64
"""A progressive JPEG has about ten scans. Each takes a pass over all pixels and only a few bytes, so a small file
with thousands of them would keep a decoder busy for minutes."""

MAX_JPEG_SEGMENTS = 10_000

JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
"""Neither fill bytes, nor an escaped 0xff within a scan, nor a marker that stands alone (restarts, start of the image).

Two bytes and no repetition, so that a search takes linear time whatever it searches."""

JPEG_SCAN, JPEG_END = b"\xda", b"\xd9"

MEBI = 2**20

OPENING_BYTES = 32 * MEBI
"""Memory that any image may take besides its file and its pixels: metadata, colour profiles, the decoder's tables."""

FILE_COPIES = 3
"""How often a decoder may hold the file in memory."""

BYTES_PER_PIXEL = {"JPEG": 20, "MPO": 20, "PNG": 20, "GIF": 20, "BMP": 16, "WEBP": 26, "AVIF": 32}
"""Memory at the peak of decoding and converting, for each pixel: what was measured on the costliest files of each
format (`python -m benchmarks.decoding --costs`), and a quarter or more on top."""

OTHER_BYTES_PER_PIXEL = 40

OPENING_SECONDS = 1.0
"""CPU time that any image may take, however small."""

SECONDS_PER_PIXEL = 200e-9
"""Twice what the costliest files took: noise as AVIF, or as a progressive JPEG of four channels, 104 ns."""

SECONDS_PER_BYTE = 100e-9
"""Likewise, for each byte of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What images are accepted from somewhere."""

    max_pixels: int
    """Of the image as its header says, and of every frame of it."""
    any_format: bool = False
    """Whether every format is read that Pillow knows, or only those of `ACCEPTED`."""


CATALOGUE = Limits(max_pixels=178_956_970, any_format=True)
"""Images of a catalogue, which its owner chose; the number is the one from which Pillow suspects a bomb."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What decoding an image may take: bytes of memory, and seconds of CPU time."""

    nbytes: int
    seconds: float


class TooLargeForNowError(Exception):
    """Decoding may take `nbytes` bytes of memory, which is more than has been set aside."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.nbytes = nbytes


def check_header(data: bytes, limits: Limits) -> str | None:
    """Check what a decoder would check only after spending memory or time.

    Returns Pillow's name of the format; None for a format that only Pillow knows, where those are accepted. Raises
    `ImageFormatError`, `ImageSizeError` or `UndecodableError`.
    """
    file_format = sniff(data)
    if file_format is None and not limits.any_format:
        found = name_format(data)
        what = f"the image is {found}, which is none" if found else "the image is in none"
        raise ImageFormatError(f"{what} of the accepted formats ({ACCEPTED}): save it as JPEG")
    if file_format == "WEBP" and (size := webp_size(data)):
        check_pixels(size, limits)  # its decoder allocates the whole canvas on opening
    if file_format == "JPEG":
        _check_jpeg(data)
    return file_format


def sniff(data: bytes) -> str | None:
    """Return Pillow's name of the format that the first bytes announce; None if it is none of `ACCEPTED`.

    Raises `UndecodableError` if there are no bytes.
    """
    head = data[:12]
    if not head:
        raise UndecodableError("the image is empty")
    for file_format, signatures in SIGNATURES.items():
        if head.startswith(signatures):
            return file_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and {b"avif", b"avis"} & _brands(data):
        return "AVIF"
    return None


def opening_cost(data: bytes, file_format: str | None) -> Cost:
    """Return what may be spent on opening an image file, before its header has been read by its decoder."""
    size = webp_size(data) if file_format == "WEBP" else None
    return _cost(file_format, size or (0, 0), len(data))


def decoding_cost(image: Image, full: tuple[int, int], nbytes: int) -> Cost:
    """Return what may be spent on an opened image whose file has `nbytes` bytes.

    full: its (width, height), where it is decoded at a smaller scale; a JPEG takes memory for it if it is progressive.
    """
    scaled = image.size != full and not image.info.get("progressive")
    cost = _cost(image.format, full, nbytes)
    return Cost(_cost(image.format, image.size, nbytes).nbytes, cost.seconds) if scaled else cost


def check_pixels(size: tuple[int, int], limits: Limits) -> None:
    """Raise `ImageSizeError` for a (width, height) of too many pixels."""
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageSizeError(
            f"the image has {width} × {height} = {width * height:,} pixels; at most {limits.max_pixels:,} are accepted"
        )


def webp_size(data: bytes) -> tuple[int, int] | None:
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


def _cost(file_format: str | None, size: tuple[int, int], nbytes: int) -> Cost:
    pixels = size[0] * size[1]
    per_pixel = BYTES_PER_PIXEL.get(file_format or "", OTHER_BYTES_PER_PIXEL)
    return Cost(
        nbytes=OPENING_BYTES + FILE_COPIES * nbytes + per_pixel * pixels,
        seconds=OPENING_SECONDS + SECONDS_PER_PIXEL * pixels + SECONDS_PER_BYTE * nbytes,
    )


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file, which tell AVIF from HEIC: the major one and the compatible ones."""
    box = data[8 : min(int.from_bytes(data[:4]), 256)]
    return {box[at : at + 4] for at in range(0, len(box), 4)}


def _check_jpeg(data: bytes) -> None:
    """Count scans, segment by segment up to the end of the image: phones append whole videos."""
    scans, at = 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = JPEG_MARKER.search(data, at)
        if marker is None or marker[1] == JPEG_END:
            return
        scans += marker[1] == JPEG_SCAN
        if scans > MAX_JPEG_SCANS:
            raise UndecodableError(f"the image has more than {MAX_JPEG_SCANS} JPEG scans")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    raise UndecodableError(f"the image has more than {MAX_JPEG_SEGMENTS} JPEG segments")
