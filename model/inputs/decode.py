"""Encoded image to upright RGB: the one way for training, calibration, bulk labelling and serving.

A certificate holds only for pixels that are decoded as they were when it was measured. Imports nothing of torch, so
that the service can use it.
"""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError
from PIL.ImageCms import ImageCmsTransform

from model.errors import ModelError
from model.inputs.jpeg_end import restore_end
from model.inputs.other_formats import name_format
from model.inputs.profiles import UnreadableProfileError, conversion_to_srgb
from model.situations import ListingWarning

DRAFT_MARGIN = 3
"""JPEGs are decoded at the smallest scale that is still this many times the model's input, so that the model's own
resampling still has more pixels than it needs, even of a product that fills no more than a third of its photo."""

LARGE_PIXELS = 4_000_000
"""An image that still has more pixels than this after the draft takes hundreds of megabytes to decode and convert. Such
images are decoded two at a time, whatever the number of threads, and reduced before they are returned."""

JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names of formats that can be decoded at a smaller scale; the second is a JPEG with others appended, which
phones write."""

MODES = {"L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK", "LAB": "LAB"}
"""Modes whose profiles are applied, and what each is without its alpha; images of other modes are converted first."""

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


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright RGB image, its colours sRGB, and what a caller should know about how it was read."""

    image: Image.Image
    warnings: tuple[ListingWarning, ...] = ()


def upright_rgb(image: Image.Image, target: tuple[int, int] | None = None) -> Decoded:
    """Decode the first frame of an opened image upright, as sRGB by its colour profile, with transparent areas white.

    target: the model's input (height, width); large images are reduced to a scale slightly above it. None: no image is
    reduced. A profile that cannot be read is ignored, with a warning.

    Raises any exception that Pillow raises for a damaged file, which is almost any.
    """
    restore_end(image)
    if target is not None and image.format in JPEG_FORMATS:
        height, width = target
        image.draft(None, (DRAFT_MARGIN * width, DRAFT_MARGIN * height))
    large = target is not None and image.width * image.height > LARGE_PIXELS
    with _large_images if large else nullcontext():
        rgb, warnings = _as_rgb(image, target)
        if large and target is not None:
            rgb = _reduced(rgb, target)
        return Decoded(_upright(rgb, image), warnings)


def _as_rgb(image: Image.Image, target: tuple[int, int] | None) -> tuple[Image.Image, tuple[ListingWarning, ...]]:
    image.load()
    profile = image.info.get("icc_profile") or None
    if image.mode.startswith("I"):
        # 16 bits a pixel, which Pillow would clip at 255 instead of scaling. A transparent grey value (rare) is
        # ignored.
        image.info.pop("transparency", None)
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA")
    if image.mode not in MODES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    warnings: tuple[ListingWarning, ...] = ()
    try:
        conversion = conversion_to_srgb(profile, MODES[image.mode])
    except UnreadableProfileError:
        conversion, warnings = conversion_to_srgb(None, MODES[image.mode]), (ListingWarning.PROFILE_UNREADABLE,)
    if conversion is not None and target is not None and image.mode != "LAB":  # whose values cannot be averaged
        image = _reduced(image, target)  # before the conversion, which costs far more
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    rgb = _converted(image, conversion)
    if alpha is None:
        return rgb, warnings
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white, warnings


def _converted(image: Image.Image, conversion: ImageCmsTransform | None) -> Image.Image:
    """Return an image's colours as RGB, without its alpha."""
    if conversion is None:
        return image.convert("RGB") if image.mode != "RGB" else image
    if image.mode != conversion.input_mode:
        image = image.convert(conversion.input_mode)
    return conversion.apply(image)


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


def decode_image(data: bytes, target: tuple[int, int] | None = None) -> Decoded:
    """Decode an image file of any format that Pillow knows, as `upright_rgb` does.

    Raises `ModelError` if the bytes are not an image. For trusted files: images from HTTP requests are checked first by
    `service.pipeline.decode`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return upright_rgb(image, target)
    except UnidentifiedImageError:  # whose message is an address in memory
        found = name_format(data) or "in no known format"
        raise ModelError(f"the image cannot be decoded: it is {found}") from None
    except Exception as error:  # Pillow's parsers let almost anything escape
        raise ModelError(f"the image cannot be decoded: {error}") from error
