"""Framing: what two parsers could read differently is refused, whole or in pieces."""

from __future__ import annotations

from typing import Any

import h11
import pytest

from service.http.strict import FREE_CHUNKS, MAX_CHUNK_LINE, MAX_HEAD_BYTES, MAX_HEAD_LINES, StrictConnection

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def events(*parts: bytes) -> list[Any]:
    """The events that come of the parts, arriving one after the other."""
    connection, found = StrictConnection(), []
    for part in filter(None, parts):
        connection.receive_data(part)
        while not isinstance(event := connection.next_event(), type):  # NEED_DATA and PAUSED are classes
            found.append(event)
    return found


def singly(sent: bytes) -> list[bytes]:
    return [sent[at : at + 1] for at in range(len(sent))]


@pytest.mark.parametrize(
    "sent",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\rB: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\tfolded\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * MAX_HEAD_LINES + b"\r\n",
        CHUNKED + b"1;" + b"a" * MAX_CHUNK_LINE + b"\r\nx\r\n0\r\n\r\n",
        CHUNKED + b"1;a\rb\r\nx\r\n0\r\n\r\n",
        CHUNKED + b"1\nx\n0\n\n",
        CHUNKED + b"0\r\nA: b\r\n folded\r\n\r\n",
        CHUNKED + b"1\r\nx\r\n" * (FREE_CHUNKS + 1) + b"0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_what_is_ambiguous_or_costs_too_much_is_refused(sent: bytes, apart: bool) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        events(*(singly(sent) if apart else [sent]))


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, 100_000])
def test_the_limit_on_headers_holds_whether_or_not_they_come_at_once(size: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * size + b"\r\n\r\n"
    for parts in ([head], [head[:50_000], head[50_000:]]):
        with pytest.raises(h11.RemoteProtocolError):
            events(*parts)
    (request, end) = events(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n")
    assert (type(request), type(end)) == (h11.Request, h11.EndOfMessage)


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (POST + b"Content-Length: 4\r\n\r\na\nb\r", b"a\nb\r"),
        (CHUNKED + b"5\r\na\n\r\nb\r\n1;name=value\r\nc\r\n0\r\n\r\n", b"a\n\r\nbc"),
        (CHUNKED + b"1\r\na\r\n0\r\nTrailer: b\r\n\r\n", b"a"),
        (CHUNKED + b"1\r\na\r\n" * FREE_CHUNKS + b"0\r\n\r\n", b"a" * FREE_CHUNKS),
        (CHUNKED + (b"100\r\n" + b"a" * 256 + b"\r\n") * 1000 + b"0\r\n\r\n", b"a" * 256_000),
    ],
)  # fmt: skip
def test_bodies_are_read_as_they_are(sent: bytes, body: bytes) -> None:
    for parts in ([sent], [*singly(sent)[:2000], sent[2000:]]):
        found = events(*parts)
        assert b"".join(event.data for event in found if isinstance(event, h11.Data)) == body
        assert isinstance(found[-1], h11.EndOfMessage)


def test_the_limit_on_chunks_is_each_bodys_own() -> None:
    connection = StrictConnection()
    for _ in range(3):
        connection.receive_data(CHUNKED + b"1\r\na\r\n" * FREE_CHUNKS + b"0\r\n\r\n")
        while connection.next_event() is not h11.PAUSED and connection.their_state is not h11.DONE:
            pass
        connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()
