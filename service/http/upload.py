"""A form that is streamed to files: however large, no more than a piece of it is in memory.

Fields are bounded; what they may be called, and how large all of it may be, is the route's business.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.errors import BodyTooSlow, ClientGone, InvalidRequest, PayloadTooLarge, UnsupportedMediaType

PIECE = 2**20
"""Bytes that are gathered before a thread writes them."""

MOST_FIELDS, MOST_FIELD_BYTES = 32, 16 * 1024

PATIENCE_SECONDS = 30.0
"""A body brings something in every so many seconds."""


@dataclass
class Form:
    """What arrived: fields as text, and files in a folder under their own names; `digest` is of all of it."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """What the sender calls each file."""
    digest: str = ""


@dataclass
class _Part:
    name: str = ""
    filename: str | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    value: bytearray = field(default_factory=bytearray)


class FormReader:
    """Parses a form piece by piece."""

    def __init__(self, boundary: bytes, folder: Path, files: Collection[str]) -> None:
        """files: the fields that are files"""
        self.form = Form()
        self._folder, self._files = folder, files
        self._pending: list[tuple[Path, bytes]] = []
        self._digests: dict[str, str] = {}
        self._header, self._value, self._headers = bytearray(), bytearray(), dict[bytes, bytes]()
        self._part = _Part()
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def feed(self, data: bytes) -> None:
        """Parse a piece. Raises `InvalidRequest`."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidRequest("the body is not a multipart form") from None

    def write(self) -> None:
        """Write what has been parsed to the files; blocks."""
        pending, self._pending = self._pending, []
        for path, data in pending:
            with path.open("ab") as file:
                file.write(data)

    def finish(self) -> Form:
        """Return the form. Raises `InvalidRequest` where it has no end."""
        if not self._ended:
            raise InvalidRequest("the body ends in the middle of the form")
        parts = "\n".join(f"{name} {digest}" for name, digest in sorted(self._digests.items()))
        self.form.digest = hashlib.sha256(parts.encode()).hexdigest()
        return self.form

    def _begin(self) -> None:
        self._part, self._headers = _Part(), {}

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if not name or name in self._digests:
            raise InvalidRequest(
                f"the form has {'a field without a name' if not name else f'two fields {name[:64]!r}'}"
            )
        if len(self._digests) == MOST_FIELDS:
            raise InvalidRequest(f"the form has more than {MOST_FIELDS} fields")
        filename = options.get(b"filename")
        self._part.name = name
        if name in self._files:
            if filename is None:
                raise InvalidRequest(f"{name} is sent as a file, with a file name (in curl: -F {name}=@FILE)")
            self._part.filename = filename.decode(errors="replace")
            self.form.names[name] = self._part.filename
            self.form.files[name] = self._folder / name
            self._pending.append((self.form.files[name], b""))

    def _data(self, data: bytes, start: int, end: int) -> None:
        part, piece = self._part, data[start:end]
        part.digest.update(piece)
        if part.filename is not None:
            self._pending.append((self.form.files[part.name], piece))
            return
        part.value += piece
        if len(part.value) > MOST_FIELD_BYTES:
            raise PayloadTooLarge(f"the field {part.name[:64]} has more than {MOST_FIELD_BYTES} bytes")

    def _end(self) -> None:
        part = self._part
        self._digests[part.name] = part.digest.hexdigest()
        if part.filename is None:
            try:
                self.form.fields[part.name] = part.value.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"the field {part.name[:64]} is not UTF-8") from None

    def _finish(self) -> None:
        self._ended = True


async def read_form(request: Request, folder: Path, *, files: Collection[str], limit: int, setting: str) -> Form:
    """Read a form, those of its fields that are `files` into `folder`.

    Raises `UnsupportedMediaType`, `InvalidRequest`, `PayloadTooLarge` (more than `limit` bytes), `BodyTooSlow` or
    `ClientGone`.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaType("this path takes Content-Type: multipart/form-data")
    reader, seen, unwritten = FormReader(options[b"boundary"], folder, files), 0, 0
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS) as patience:
            async for chunk in request.stream():
                seen, unwritten = seen + len(chunk), unwritten + len(chunk)
                if seen > limit:
                    raise PayloadTooLarge.bytes_of("the job", None, limit, setting)
                reader.feed(chunk)
                if unwritten >= PIECE:
                    await asyncio.to_thread(reader.write)
                    unwritten = 0
                patience.reschedule(loop.time() + PATIENCE_SECONDS)
    except ClientDisconnect:
        raise ClientGone("the caller hung up") from None
    except TimeoutError:
        raise BodyTooSlow(f"the body brought nothing in {PATIENCE_SECONDS:g} s") from None
    form = reader.finish()
    await asyncio.to_thread(reader.write)
    return form
