"""What a file is that was sent as an image and can't be read as one: by its first bytes, whatever its name."""

from __future__ import annotations

_STARTS = (
    (b"II*\0", "a TIFF file"),
    (b"MM\0*", "a TIFF file"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (b"PK\3\4", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"SIMPLE  =", "a FITS file"),
    (b"/9j/", "base64 of a JPEG, encoded twice"),
    (b"iVBORw0KGgo", "base64 of a PNG, encoded twice"),
    (b"data:", "a data: URL as text"),
)

_HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))

_TEXTS = ((b"<svg", "an SVG drawing"), (b"<!doctype html", "a web page"), (b"<html", "a web page"))


def name_format(data: bytes) -> str | None:
    """Return what a file is, as in "a HEIC file"; None where that isn't known."""
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in range(8, min(int.from_bytes(data[:4]), 64), 4)}
        return "a HEIC file" if brands & _HEIC else "a video"
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, name in _TEXTS:
        if text.startswith(start):
            return name
    if text.startswith(b"<?xml"):
        return "an SVG drawing" if b"<svg" in text else "an XML document"
    if text.startswith((b"{", b"[")):
        return "a JSON document"
    return None
