"""What fuzzing starts from: small honest files of every kind, and files that once were trouble (the folder `seeds`)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

FOLDER = Path(__file__).parent / "seeds"
"""A name begins with the format: `jpeg-hidden-scans.jpg`. What `make fuzz` finds is added here once it is mended."""

EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
"""A picture on its side."""


@dataclass(frozen=True)
class Seed:
    """A file, and what it is."""

    name: str
    file_format: str
    data: bytes


def honest(width: int = 20, height: int = 12) -> Iterator[Seed]:
    """Yield one file for each way in which Pillow can write the accepted formats."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    grey16 = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    animated = {"save_all": True, "append_images": [rgba.convert("RGB").rotate(180)]}
    ways: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("JPEG", "RGB", rgba, {}),
        ("JPEG", "L", rgba, {"optimize": True}),
        ("JPEG", "CMYK", rgba, {}),
        ("JPEG", "RGB", rgba, {"progressive": True, "exif": EXIF, "icc_profile": profile}),
        ("JPEG", "RGB", rgba, {"subsampling": 0, "restart_marker_blocks": 2, "comment": b"shirt"}),
        ("JPEG", "CMYK", rgba, {"progressive": True}),
        *(("PNG", mode, rgba, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        ("PNG", "I;16", grey16, {}),
        ("PNG", "RGB", rgba, {"exif": EXIF, "icc_profile": profile, "transparency": (0, 0, 0)}),
        ("PNG", "P", rgba, {"transparency": bytes(range(64)), "bits": 4}),
        ("PNG", "RGB", rgba, animated),
        ("WEBP", "RGB", rgba, {}),
        ("WEBP", "RGBA", rgba, {"quality": 30}),
        ("WEBP", "RGB", rgba, {"lossless": True}),
        ("WEBP", "RGBA", rgba, {"lossless": True, "exif": EXIF, "icc_profile": profile}),
        ("WEBP", "RGBA", rgba, animated),
        ("GIF", "P", rgba, {}),
        ("GIF", "P", rgba, {"transparency": 3, "interlace": 0, "comment": b"shirt"}),
        ("GIF", "RGB", rgba, animated),
        ("AVIF", "RGB", rgba, {}),
        ("AVIF", "RGBA", rgba, {"quality": 30, "subsampling": "4:4:4"}),
        ("AVIF", "L", rgba, {"exif": EXIF}),
        ("AVIF", "RGB", rgba, {"icc_profile": profile, "subsampling": "4:2:2"}),
        ("AVIF", "RGB", rgba, animated),
        *(("BMP", mode, rgba, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    ]
    for file_format, mode, image, options in ways:
        source = image if mode == image.mode else image.convert(mode)
        buffer = io.BytesIO()
        source.save(buffer, file_format, **options)
        name = " ".join([file_format, mode, *(key for key in options if key != "append_images")])
        yield Seed(name, file_format, buffer.getvalue())


def kept() -> Iterator[Seed]:
    """Yield the files that once were trouble."""
    for path in sorted(FOLDER.iterdir()):
        yield Seed(path.name, path.name.split("-")[0].upper(), path.read_bytes())


def all_seeds() -> list[Seed]:
    return [*honest(), *kept()]
