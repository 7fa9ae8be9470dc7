"""Small image files that cost a careless decoder gigabytes or minutes, one for each way in which that has been tried.

Each is at most a few hundred kilobytes, and none can be told from an honest file by its size or its first bytes.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

SIDE = 7000
"""Of what is just small enough: 49 megapixels."""

AVIF_OF_144_MEGAPIXELS = zlib.decompress(
    base64.b85decode(
        "c-muNV30{GsVqn=%S>Yc0uY^>nP!-qnF!*)%uOvxWPkw0jFg-rD4U@mGr5ET4e%9YmgIt2j6f`xnUkLk;<$kLj1W;qUIqr{%|NzBW@cU*T&)z4lgb3;C6*"
        "Z&I_Kx)gYC-5EGQ}f(w><G$@xH9B(u066>6UY6a($8$OLQV01`ZjWrog;@-iR+;pF_BqP*ms3ZS{X3~UWRA@R(DT$qo5&SGI?YGwhtX?Jc)Vu=s~7q|TP"
        "y!*RrmoZ84Iv6cv7vTRYdjFr!9|nu_r>qveYqOADKV53^En&U~3)3#SS8rB2@UVo*(06^A@52CBh2w|X?6<ZX|2$Li*SM?w;lDpg7knEALZ>-yovi;<)"
        "r{`FxT~P@=JlB(v3G?ZQa0&5zn0AT-+QmL?x;71lQ+%Dw9=3M8p-sc4glR~7&r"
    )
)
"""Its `ispe` box says 64 × 64, its stream is 12,000 × 12,000 of one colour."""


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def webp_of_one_colour(width: int, height: int) -> bytes:
    """Return a lossless WebP of 38 bytes or so, whatever its size: a pixel takes no bits."""
    data = encoded(Image.new("RGB", (8, 8), (10, 20, 30)), "WEBP", lossless=True, exact=True)
    bits = struct.unpack_from("<I", data, 21)[0] & ~(2**28 - 1)
    return data[:21] + struct.pack("<I", bits | width - 1 | height - 1 << 14) + data[25:]


def jpeg_claiming(width: int, height: int, mode: str = "CMYK") -> bytes:
    """Return a progressive JPEG whose decoder holds the coefficients of all pixels that its header claims."""
    data = bytearray(encoded(Image.new(mode, (8, 8)), "JPEG", progressive=True))
    at = data.index(b"\xff\xc2") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_hidden_scans(scans: int, side: int = 2040) -> bytes:
    """Return a progressive JPEG most of whose scans stand behind a false segment, which a decoder takes for none."""
    blocks = (side // 8) ** 2
    image = Image.new("L", (side, side), 90)
    data = encoded(image, "JPEG", progressive=True, restart_marker_blocks=blocks - 1)  # one in each scan
    restart = data.index(b"\xff\xd0")
    last = data.rindex(b"\xff\xda")
    return data[:restart] + b"\xff\x02\xff\xff" + data[restart + 2 : -2] + data[last:-2] * scans + data[-2:]


def jpeg_of_scans(scans: int, side: int = 2000) -> bytes:
    """Return a progressive JPEG that repeats its last scan."""
    data = encoded(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


def png_of(width: int, height: int, rows: int, *, depth: int = 8, interlace: int = 0) -> bytes:
    """Return an RGB PNG of zeros, with data for `rows` rows at least."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width * 3 * depth // 8)
    data = b"".join([packer.compress(row * 100) for _ in range(-(-rows // 100))]) + packer.flush()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, interlace)),
        (b"IDAT", data),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def png_with_a_packed_profile(nbytes: int) -> bytes:
    """Return a small PNG whose colour profile unpacks to so many bytes."""
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    content = b"bomb\0\0" + zlib.compress(bytes(nbytes), 9)
    chunk = struct.pack(">I", len(content)) + b"iCCP" + content + struct.pack(">I", zlib.crc32(b"iCCP" + content))
    at = data.index(b"IDAT") - 4
    return data[:at] + chunk + data[at:]


def gif_claiming(width: int, height: int) -> bytes:
    """Return a GIF whose screen has one pixel, and its frame far more."""
    return b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0" + struct.pack("<HH", width, height) + b"\0\2\2\x4c\1\0;"


def bmp_claiming(width: int, height: int, compression: int = 0) -> bytes:
    """Return a BMP of a few pixels that claims many, packed by run lengths where `compression` is 1."""
    data = bytearray(encoded(Image.new("P", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    data[30:34] = struct.pack("<I", compression)
    return bytes(data)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "AVIF whose stream is larger than it says": lambda: AVIF_OF_144_MEGAPIXELS,
    "AVIF cut off": lambda: AVIF_OF_144_MEGAPIXELS[:700],
    "WebP of one colour, just small enough": lambda: webp_of_one_colour(SIDE, SIDE),
    "WebP of one colour, too large": lambda: webp_of_one_colour(16_000, 16_000),
    "progressive CMYK JPEG, just small enough": lambda: jpeg_claiming(SIDE, SIDE),
    "progressive CMYK JPEG, too large": lambda: jpeg_claiming(60_000, 60_000),
    "JPEG of hidden scans": lambda: jpeg_of_hidden_scans(2000),
    "JPEG of many scans, just small enough": lambda: jpeg_of_scans(50, SIDE),
    "JPEG of too many scans": lambda: jpeg_of_scans(1000),
    "JPEG of too many segments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000,
    "JPEG of fill bytes": lambda: b"\xff\xd8" + (b"\xff" * 500_000 + b"\0") * 2,
    "PNG just small enough": lambda: png_of(SIDE, SIDE, SIDE, depth=8),
    "PNG of 16 bits, interlaced, just small enough": lambda: png_of(SIDE, SIDE, 2 * SIDE, depth=16, interlace=1),
    "PNG too large": lambda: png_of(60_000, 60_000, 1),
    "PNG with more data than pixels": lambda: png_of(8, 8, 4_000_000),
    "PNG with a packed profile": lambda: png_with_a_packed_profile(200_000_000),
    "GIF whose frame is larger than its screen": lambda: gif_claiming(60_000, 60_000),
    "GIF whose frame is just small enough": lambda: gif_claiming(SIDE, SIDE),
    "BMP just small enough": lambda: bmp_claiming(SIDE, SIDE),
    "BMP of run lengths, just small enough": lambda: bmp_claiming(SIDE, SIDE, 1),
    "BMP too large": lambda: bmp_claiming(60_000, 60_000),
}
"""By what each is; a file is made when it is asked for."""
