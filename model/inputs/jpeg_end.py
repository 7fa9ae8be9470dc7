"""JPEG files that lack their end marker and nothing else: cameras, uploads and old programs write them.

Pillow refuses them as it refuses a file of which half is missing. With the marker added, libjpeg decodes both and fills
what is missing with grey, so what must be known is whether the last block of pixels is there.
"""

from __future__ import annotations

import io
import os
import re

from PIL import Image, ImageFile

END = b"\xff\xd9"

MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
"""Neither fill bytes, nor an escaped 0xff within a scan, nor a marker that stands alone (restarts)."""

MAX_SEGMENTS = 10_000

SEQUENTIAL_FRAMES = (b"\xc0", b"\xc1")
OTHER_FRAMES = frozenset(bytes([code]) for code in range(0xC2, 0xD0)) - {b"\xc4", b"\xc8", b"\xcc"}
SCAN = b"\xda"

GREY = range(127, 130)


def restore_end(image: Image.Image) -> None:
    """Let an opened JPEG that lacks its end marker, and nothing else, be decoded. Others stay as they are.

    Raises any exception that Pillow raises for a damaged file.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format != "JPEG" or image.fp is None:
        return
    file, at = image.fp, image.fp.tell()
    file.seek(-len(END), os.SEEK_END)
    if file.read() != END:
        file.seek(0)
        data = file.read()
        if _is_one_scan_without_end(data) and _has_last_block(data + END):
            image.fp = file = io.BytesIO(data + END)
    file.seek(at)


def _is_one_scan_without_end(data: bytes) -> bool:
    """Whether the file is one scan of all components: of others, what is missing doesn't show as grey."""
    at, components, scans = 2, b"", 0
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, at)
        if found is None:
            return scans == 1
        kind, segment = found[1], found.end()
        if kind == END[1:] or kind in OTHER_FRAMES:
            return False
        if kind in SEQUENTIAL_FRAMES:
            components = data[segment + 7 : segment + 8]
        if kind == SCAN:
            scans += 1
            if data[segment + 2 : segment + 3] != components:
                return False
        at = segment + int.from_bytes(data[segment : segment + 2])
    return False


def _has_last_block(data: bytes) -> bool:
    """Whether the lower right corner is anything but the grey of missing blocks; decoded at an eighth of the size."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.draft(None, (1, 1))
        image.load()
        corner = image.getpixel((image.width - 1, image.height - 1))
    values = corner if isinstance(corner, tuple) else (corner,)
    return not all(value in GREY for value in values)
