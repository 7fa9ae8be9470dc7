"""h11, made as strict about framing as RFC 9112 asks of a server behind a proxy.

Where two parsers disagree about the end of a request, one of them takes the rest of it for another request (request
smuggling). h11 is lenient: it takes a bare LF for a line's end, joins folded lines, prefers `Transfer-Encoding` to
`Content-Length` without closing, and limits a request's head only while it is incomplete. All that h11 parses it takes
from its receive buffer, so with a strict buffer there is nothing left to be lenient about.
"""

from __future__ import annotations

import re
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer

MAX_HEAD_BYTES = 64 * 1024
"""A request's line and headers together; also the trailers of a chunked body."""

MAX_HEAD_LINES = 128

MAX_CHUNK_LINE = 256
"""A chunk's size and its extensions, which nobody reads."""

FREE_CHUNKS, LEAST_CHUNK_BYTES = 64, 256
"""A body may come in 64 chunks of any size; if in more, they have 256 bytes on average. Each takes the event loop some
20 µs, whatever its size, and 40,000 of them fit into what the loop reads at once."""

BARE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")
"""A CR or LF that stands alone (RFC 9112, section 2.2)."""

VERSIONS = {b"1.0", b"1.1"}


class StrictBuffer(ReceiveBuffer):
    """What h11 takes lines and bodies from. Its `LocalProtocolError`s are reported by h11 as the peer's fault."""

    def __init__(self) -> None:
        super().__init__()
        self._searched = 0
        self._chunks = self._body_bytes = 0

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines of a head or trailer section once it is complete, None until then."""
        self._chunks = self._body_bytes = 0
        if self._data.startswith(b"\r\n"):
            self._extract(2)
            return []
        end = self._data.find(b"\r\n\r\n", max(0, self._searched - 3))
        if BARE.search(self._data, max(0, self._searched - 1), len(self._data) if end < 0 else end):
            raise h11.LocalProtocolError("a line ends in CR or LF alone")
        if max(end, self._searched) > MAX_HEAD_BYTES:
            raise h11.LocalProtocolError("too many bytes of headers")
        if end < 0:
            self._searched = len(self._data)
            return None
        self._searched = 0
        lines = [bytearray(line) for line in self._extract(end + 4)[:-4].split(b"\r\n")]
        if len(lines) > MAX_HEAD_LINES:
            raise h11.LocalProtocolError("too many headers")
        if any(line.startswith((b" ", b"\t")) for line in lines):
            raise h11.LocalProtocolError("a header is folded")
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        """Return the line before a chunk once it is complete, None until then."""
        line = super().maybe_extract_next_line()
        seen = self._data if line is None else line
        if len(seen) > MAX_CHUNK_LINE:
            raise h11.LocalProtocolError("the line before a chunk is too long")
        if BARE.search(seen):
            raise h11.LocalProtocolError("a line ends in CR or LF alone")
        if line is not None:
            if self._chunks > FREE_CHUNKS + self._body_bytes // LEAST_CHUNK_BYTES:
                raise h11.LocalProtocolError("the chunks are too small")
            self._chunks += 1
        return line

    def maybe_extract_at_most(self, count: int) -> bytearray | None:
        """Return up to `count` bytes of a body, None if there are none."""
        taken = super().maybe_extract_at_most(count)
        self._body_bytes += len(taken or b"")
        return taken


class StrictConnection(h11.Connection):
    """The server's side of a connection; `next_event` raises h11's `RemoteProtocolError` for what must be refused."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._receive_buffer = StrictBuffer()

    @property
    def unparsed(self) -> int:
        """Bytes that have arrived and are not yet part of an event."""
        return len(self._receive_buffer)

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version != b"1.1"):
                raise h11.RemoteProtocolError("the length of the body is ambiguous")  # RFC 9112, section 6.1
            if event.http_version not in VERSIONS:
                raise h11.RemoteProtocolError("not a version of HTTP/1")
        return event
