"""Encoded bytes to the model's pixels: `model.inputs` does it, here its errors become the service's.

Whatever makes a decoder fail is the caller's `UndecodableImage`. That no decoder can be started is no caller's fault.
"""

from __future__ import annotations

from PIL import AvifImagePlugin, Image

from model.errors import DecodingStoppedError, ImageError, ImageFormatError, ImageSizeError
from model.inputs.decode import Decoded, decode_image
from model.inputs.limits import Limits
from service.errors import NotReady, PayloadTooLarge, ServiceError, UndecodableImage, UnsupportedMediaType

PIXEL_SETTING = "CMA_CLIP_MAX_IMAGE_PIXELS"


def configure_pillow() -> None:
    """Set what `decode` needs of Pillow, once per process: Pillow knows these settings only globally."""
    # The limit on pixels is a setting of ours, checked for every format; Pillow's fixed one would come first.
    Image.MAX_IMAGE_PIXELS = None
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one image is decoded the same way as many beside one another


def decode(data: bytes, *, max_pixels: int, target: tuple[int, int]) -> Decoded:
    """Decode an image in this process, for a command whose user chose the file.

    target: the model's input (height, width); large images are reduced to a scale not far above it.

    Raises `UnsupportedMediaType` (not one of the accepted formats), `PayloadTooLarge` (too many pixels) or
    `UndecodableImage` (damaged).
    """
    try:
        return decode_image(data, target, Limits(max_pixels=max_pixels))
    except ImageError as error:
        raise as_service_error(error) from error
    except MemoryError as error:
        raise UndecodableImage("decoding the image takes more memory than there is") from error


def as_service_error(error: ImageError | DecodingStoppedError) -> ServiceError:
    """Return what a caller is told of an image that could not be decoded."""
    match error:
        case DecodingStoppedError():
            return NotReady("images cannot be decoded at the moment", retry_after=1)
        case ImageFormatError():
            return UnsupportedMediaType(str(error))
        case ImageSizeError():
            return PayloadTooLarge(f"{error} ({PIXEL_SETTING})")
        case _:
            return UndecodableImage(str(error))
