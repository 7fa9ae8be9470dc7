"""Encoded image to upright RGB: the one way for training, calibration, bulk labelling and serving.

A certificate holds only for pixels that are decoded as they were when it was measured. Imports Pillow alone, so that
the service can use it without torch.
"""

from __future__ import annotations

import io
import threading

from PIL import Image, UnidentifiedImageError

from model.errors import ModelError

DRAFT_MARGIN = 3
"""JPEGs are decoded at the smallest scale that is still this many times the model's input, so that the model's own
resampling still has more pixels than it needs, even of a product that fills no more than a third of its photo."""

LARGE_PIXELS = 4_000_000
"""An image that still has more pixels than this after the draft takes hundreds of megabytes to decode and convert. Such
images are decoded two at a time, whatever the number of threads, and reduced before they are returned."""

ORIENTATION_TAG = 0x0112

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of EXIF's orientation tag."""

_large_images = threading.Semaphore(2)


def upright_rgb(image: Image.Image, target: tuple[int, int] | None = None) -> Image.Image:
    """Decode the first frame of an opened image upright, as RGB, with transparent areas white.

    target: the model's input (height, width); large images are reduced to a scale slightly above it. None: no image is
    reduced.

    Raises any exception that Pillow raises for a damaged file, which is almost any.
    """
    if target is None:
        return _upright(_as_rgb(image), image)
    if image.format == "JPEG":
        height, width = target
        image.draft(None, (DRAFT_MARGIN * width, DRAFT_MARGIN * height))
    if image.width * image.height <= LARGE_PIXELS:
        return _upright(_as_rgb(image), image)
    with _large_images:
        return _upright(_reduced(_as_rgb(image), target), image)


def _as_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        # 16 bits a pixel, which Pillow would clip at 255 instead of scaling. A transparent grey value (rare) is
        # ignored.
        image.info.pop("transparency", None)
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA") if image.mode != "RGBA" else image
        white = Image.new("RGB", image.size, "white")
        white.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return white
    return image.convert("RGB") if image.mode != "RGB" else image


def _reduced(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    """Average whole blocks of pixels, down to no less than a JPEG's draft would leave."""
    height, width = target
    factor = min(image.width // (DRAFT_MARGIN * width), image.height // (DRAFT_MARGIN * height))
    return image.reduce(factor) if factor > 1 else image


def _upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """Undo the camera's orientation; an EXIF block that cannot be read is ignored."""
    try:
        orientation = source.getexif().get(ORIENTATION_TAG)
    except Exception:
        return rgb
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def decode_image(data: bytes, target: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file of any format that Pillow knows, as `upright_rgb` does.

    Raises `ModelError` if the bytes are not an image. For trusted files: images from HTTP requests are checked first by
    `service.pipeline.decode`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return upright_rgb(image, target)
    except UnidentifiedImageError:  # whose message is an address in memory
        raise ModelError("the image cannot be decoded: it is in no known format") from None
    except Exception as error:  # Pillow's parsers let almost anything escape
        raise ModelError(f"the image cannot be decoded: {error}") from error
