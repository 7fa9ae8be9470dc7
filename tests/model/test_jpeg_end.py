"""JPEG files without their end marker: whole where nothing else is missing, and never half an image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.errors import ModelError
from model.inputs.decode import decode_image


def noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (101, 83, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 4}, {"optimize": True}])
@pytest.mark.parametrize("target", [None, (80, 60), (8, 6)])
def test_a_jpeg_without_its_end_marker_is_whole(
    mode: str, options: dict[str, Any], target: tuple[int, int] | None
) -> None:
    data = write(noise(mode), **options)
    assert data.endswith(b"\xff\xd9")
    for cut in (data[:-2], data[:-1], data[:-2] + b"\0\0"):
        assert decode_image(cut, target).image.tobytes() == decode_image(data, target).image.tobytes()


@pytest.mark.parametrize("background", ["white", "noise"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
def test_a_jpeg_of_which_more_is_missing_is_damaged(background: str, share: float) -> None:
    image = noise()
    if background == "white":
        image = Image.new("RGB", (400, 400), "white")
        image.paste(noise(), (20, 250))
    data = write(image)
    start = data.index(b"\xff\xda")
    with pytest.raises(ModelError, match="truncated"):
        decode_image(data[: start + int(share * (len(data) - start))])


def test_a_progressive_jpeg_without_its_end_is_damaged() -> None:
    """Its last scan may be missing, which nobody would see but the model."""
    with pytest.raises(ModelError, match="truncated"):
        decode_image(write(noise(), progressive=True)[:-2])


def test_what_follows_the_end_is_no_concern() -> None:
    data = write(noise())
    assert decode_image(data + b"a phone's video").image.tobytes() == decode_image(data).image.tobytes()
