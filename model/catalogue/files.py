"""Files to text: gzip is opened and the encoding recognised, in constant memory.

Gzip is recognised by its first bytes, so the file's name does not matter. An encoding is taken from the byte-order
mark; without one, text is UTF-8 where the whole file reads as that, else Windows-1252, which spreadsheets in Western
Europe and America write. A file that is plainly neither is refused: a guess would garble every title.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
from pathlib import Path
from typing import IO

from model.errors import CatalogueError
from model.stores import Place

_GZIP = b"\x1f\x8b"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_BLOCK = 1 << 18

_ESCAPED = re.compile("[\udc80-\udcff]+")
_NOT_ASCII = re.compile("[^\x00-\x7f\udc80-\udcff]")


def open_bytes(path: Place) -> IO[bytes]:
    """Open a file for reading, unpacked where it is gzip. Raises `OSError`."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    if not packed:
        return path.open("rb")
    return io.BufferedReader(gzip.open(path if isinstance(path, Path) else path.open()))


def open_text(path: Place, encoding: str) -> IO[str]:
    """Open a file as text with its line ends as they are.

    Bytes that the encoding does not have become lone surrogates, so that one bad byte costs one row.
    """
    strict = encoding.startswith(("utf-16", "utf-32"))  # a byte lost there shifts all that follows
    errors = "strict" if strict else "surrogateescape"
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


def detect_encoding(path: Place) -> str:
    """Return the name of the file's encoding; reads the whole file where it has no byte-order mark.

    Raises `CatalogueError` where it can be neither UTF-8 nor Windows-1252.
    """
    with open_bytes(path) as file:
        head = file.read(_BLOCK)
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                return encoding
        if zeros := head.count(0):
            odd = head[1::2].count(0)
            if zeros > len(head) // 4:
                return "utf-16-le" if odd * 2 > zeros else "utf-16-be"
        return _without_mark(path, head, file)


def _without_mark(path: Place, head: bytes, file: IO[bytes]) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    valid = invalid = clustered = 0
    block = head
    while block:
        if not block.isascii():
            text = decoder.decode(block)
            runs = [len(run) for run in _ESCAPED.findall(text)]
            invalid += sum(runs)
            clustered += sum(run for run in runs if run > 2)
            valid += len(_NOT_ASCII.findall(text))
        block = file.read(_BLOCK)
    if invalid <= valid:  # a few bad bytes in a UTF-8 file cost their rows alone
        return "utf-8"
    # Western words have single accents; other alphabets and scripts have long runs of bytes above 127.
    if clustered * 2 > invalid:
        raise CatalogueError(
            f"the encoding of {path} is not recognised: it is not UTF-8, and makes no sense as Windows-1252; "
            'name it by \'encoding\', for example "cp1251", "gb18030" or "shift_jis"'
        )
    return "cp1252"
