"""JSON bodies, parsed so that the event loop never waits for one.

A parser holds the interpreter's lock until it is done, so a thread of its own would not help: 32 MiB of escapes take it
800 ms, one emoji behind 32 MiB of ASCII 900 ms, 16 MiB of nested brackets 29 s. Therefore it is never given that much.
The body is cut into its structure and its long strings (images, in practice), slice by slice; the parser gets the
structure, and the long strings one piece at a time. Other callers have their turn in between.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from itertools import chain
from typing import Any

from pydantic_core import from_json

from service.errors import InvalidRequest, PayloadTooLarge
from service.http.pieces import Pieces

MAX_JSON_ELEMENTS = 100_000
"""Commas, colons, brackets and braces outside strings: `{},` takes 3 bytes to send and 70 to hold."""

MAX_STRUCTURE_BYTES = 2**20
"""What is left of a body without its long strings."""

MAX_ESCAPES = 1_000_000
"""Backslashes. Some encoders write `/` as `\\/`: one in 64 characters of base64."""

MAX_TEXT_BYTES = 64 * 1024
"""A string with other than ASCII characters: the longest title has 4,096, of up to 12 bytes. A single such character
makes Python hold every character of the string in two or four bytes."""

LONG = 512
"""Bytes; longer strings are taken out of the structure."""

PART = 2**18
"""Bytes of a long string that are parsed at once."""

SLICE = 16 * 1024
"""Bytes of a body that are cut up at once."""

TURN_SECONDS = 0.005

ELEMENTS = (b",", b":", b"[", b"{")

QUOTE_OR_ESCAPE = re.compile(rb'["\\]')


class Turns:
    """Lets others have the event loop whenever a turn has taken long enough."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    async def rest(self) -> None:
        if time.monotonic() - self._began > TURN_SECONDS:
            await asyncio.sleep(0)
            self._began = time.monotonic()


async def parse_json(body: Pieces) -> Any:
    """Parse a body, and let go of it. Raises `PayloadTooLarge` or `InvalidRequest`."""
    first = _without_mark(body.take())
    if len(first) + len(body) <= SLICE:
        return _parse(first + b"".join(body.taken()))
    turns, cut = Turns(), Cutter()
    for piece in chain([first], body.taken()):
        for start in range(0, len(piece), SLICE):
            cut.feed(piece[start : start + SLICE])
            await turns.rest()
    cut.finish()
    document = _parse(cut.structure, cut=bool(cut.long))
    await turns.rest()
    return _with_long_strings(document, cut.long) if cut.long else document


def _without_mark(text: bytes) -> bytes:
    """Drop the byte-order mark that .NET and PowerShell write. Raises `InvalidRequest` for that of UTF-16 or UTF-32."""
    if text.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise InvalidRequest("the body is not JSON: it is in UTF-16 or UTF-32; send it in UTF-8")
    return text.removeprefix(b"\xef\xbb\xbf")


class Cutter:
    """Cuts a JSON text into `structure`, a smaller JSON text, and `long`: strings, by what stands for them in it."""

    def __init__(self) -> None:
        self.structure = bytearray()
        self.long: dict[str, str] = {}
        self._mark = uuid.uuid4().hex  # unknown to the caller, whose strings could otherwise pass for one of ours
        self._elements = self._escapes = 0
        self._string: bytearray | None = None
        self._parts: list[str] = []
        self._escaped = False

    def feed(self, text: bytes) -> None:
        """Take the next bytes. Raises `PayloadTooLarge` or `InvalidRequest`."""
        at = 0
        while at < len(text):
            at = self._between_strings(text, at) if self._string is None else self._in_string(text, at)

    def finish(self) -> None:
        """Raises `InvalidRequest` if a string goes on."""
        if self._string is not None:
            raise InvalidRequest("the body is not JSON: a string does not end")

    def _between_strings(self, text: bytes, at: int) -> int:
        quote = text.find(b'"', at)
        between = text[at:] if quote < 0 else text[at:quote]
        self._elements += sum(map(between.count, ELEMENTS))
        if self._elements > MAX_JSON_ELEMENTS:
            raise PayloadTooLarge(f"the body has more than {MAX_JSON_ELEMENTS} JSON elements")
        self._add(between)
        if quote < 0:
            return len(text)
        self._string = bytearray()
        return quote + 1

    def _in_string(self, text: bytes, at: int) -> int:
        assert self._string is not None
        if self._escaped:
            self._escaped = False
            self._string += text[at : at + 1]
            return at + 1
        found = QUOTE_OR_ESCAPE.search(text, at)
        if found is None:
            self._string += text[at:]
            self._take_part()
            return len(text)
        self._string += text[at : found.start()]
        if found[0] == b'"':
            self._end_string()
            return found.end()
        self._string += b"\\"
        self._escaped = True
        self._escapes += 1
        if self._escapes > MAX_ESCAPES:
            raise PayloadTooLarge(f"the body has more than {MAX_ESCAPES} escapes")
        return found.end()

    def _take_part(self) -> None:
        """Parse what there is of a long string, unless its end may be in the middle of a character."""
        assert self._string is not None
        if len(self._string) >= PART and b"\\" not in self._string[-12:]:
            self._parts.append(self._unquoted(self._string))
            self._string = bytearray()

    def _end_string(self) -> None:
        assert self._string is not None
        if self._parts or len(self._string) > LONG:
            stand_in = f"{self._mark}{len(self.long)}"
            self.long[stand_in] = "".join([*self._parts, self._unquoted(self._string)])
            self._add(b'"%s"' % stand_in.encode())
        else:
            self._add(b'"%s"' % self._string)
        self._parts, self._string = [], None

    def _unquoted(self, string: bytearray) -> str:
        if (self._parts or len(string) > MAX_TEXT_BYTES) and not string.isascii():
            raise InvalidRequest(f"a string of more than {MAX_TEXT_BYTES} bytes is not ASCII, so it is not base64")
        text: str = _parse(b'"%s"' % string, cut=True)
        return text

    def _add(self, structure: bytes) -> None:
        self.structure += structure
        if len(self.structure) > MAX_STRUCTURE_BYTES:
            raise PayloadTooLarge(f"the body has more than {MAX_STRUCTURE_BYTES} bytes besides its long strings")


def _parse(text: bytes | bytearray, *, cut: bool = False) -> Any:
    """Parse with pydantic's parser, whose depth is bounded. cut: whether positions are no longer the caller's."""
    try:
        return from_json(text)
    except ValueError as error:
        reason = str(error).partition(" at line ")[0] if cut else str(error)
        raise InvalidRequest(f"the body is not JSON: {reason}") from None


def _with_long_strings(document: Any, long: dict[str, str]) -> Any:
    """Put the long strings back in place."""
    holder = [document]
    unvisited: list[Any] = [holder]
    while unvisited:
        container = unvisited.pop()
        if isinstance(container, dict):
            if not long.keys().isdisjoint(container):
                raise InvalidRequest(f"the name of a field has more than {LONG} bytes")
            entries: Any = list(container.items())
        else:
            entries = enumerate(container)
        for key, value in entries:
            if isinstance(value, str):
                container[key] = long.get(value, value)
            elif isinstance(value, dict | list):
                unvisited.append(value)
    return holder[0]
