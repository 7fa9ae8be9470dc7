"""A caller's connection: uvicorn's HTTP/1.1, with a time limit for headers, and refusals that are problem documents.

h11 is used, though httptools is faster: httptools stops reading at a request to upgrade, so that the body behind
`Upgrade: h2c` (which Java's HttpClient sends by default) is lost or taken for another request, and it does not limit
headers. h11 accepts at most 64 KiB of them, and continues to read where there is nothing to upgrade to.
"""

from __future__ import annotations

import asyncio
import json
import uuid

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import MalformedRequest
from service.http.problems import PROBLEM_TYPE, problem

HEADER_SECONDS = 10.0
"""For a request's headers to arrive, from its first byte on, or from the start of a new connection: silent connections
must not be held open for ever."""


class Connection(H11Protocol):
    """One connection, over which requests arrive one after the other."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_header_timer()

    def _watch_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._cancel_header_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.timeout_keep_alive_handler)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not a request, and close: nothing after it could be understood either."""
        request_id = uuid.uuid4().hex
        error = MalformedRequest("this is not HTTP/1.1, or its headers have more than 64 KiB")
        headers = {"Content-Type": PROBLEM_TYPE, "X-Request-ID": request_id, "Connection": "close"}
        for event in (
            h11.Response(status_code=error.status, headers=list(headers.items())),
            h11.Data(data=json.dumps(problem(error, request_id)).encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
