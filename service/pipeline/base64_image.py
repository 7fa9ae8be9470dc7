"""An image that was sent as text to its bytes: base64 as the many encoders write it, `data:` URLs among them.

What is harmless is taken: line breaks, the URL-safe alphabet, padding left out, the head of a `data:` URL. Each step
runs over the text once.
"""

from __future__ import annotations

import base64
import binascii
import string

from service.errors import InvalidRequest, PayloadTooLarge
from service.request_form import is_data_url

MAX_HEAD = 256
"""Characters in which the head of a `data:` URL ends."""

STANDARD = bytes.maketrans(b"-_", b"+/")

SETTING = "CMA_CLIP_MAX_IMAGE_BYTES"


def decode_base64(text: str, *, max_bytes: int) -> bytes:
    """Return the bytes of base64, or of a `data:` URL.

    Raises `InvalidRequest`, or `PayloadTooLarge` before anything is decoded.
    """
    try:
        encoded = _payload(text).encode("ascii").translate(STANDARD, string.whitespace.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("the image is not valid base64: it has characters that are not ASCII") from None
    check_image_bytes(len(encoded) // 4 * 3 - 2, max_bytes)
    if missing := -len(encoded) % 4:
        encoded += b"=" * missing
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise InvalidRequest(_mistake(text)) from None


def check_image_bytes(nbytes: int, max_bytes: int) -> None:
    """Raise `PayloadTooLarge` if an encoded image has more bytes than are accepted."""
    if nbytes > max_bytes:
        raise PayloadTooLarge.bytes_of("the image", nbytes, max_bytes, SETTING)


def _payload(text: str) -> str:
    head = text[:MAX_HEAD].lstrip()
    if not is_data_url(head):
        return text
    before, comma, _ = head.partition(",")
    if not comma or not before.rstrip().lower().endswith(";base64"):
        raise InvalidRequest("the image is a data: URL that is not base64; it should begin data:image/jpeg;base64,")
    return text[text.index(",") + 1 :]


def _mistake(text: str) -> str:
    if text[:8].lower().startswith(("http://", "https://")):
        return "image.base64 is a URL: send it as image.url"
    if text[:1] in ("/", ".", "~") and not text.startswith("/9j/"):
        return "image.base64 is not valid base64: is it a path? Send the file's bytes, in base64"
    return "image.base64 is not valid base64: it has other characters, or was cut off"
