"""A caller's connection: uvicorn's HTTP/1.1, with limits on what comes before a request, and our own kind of refusal.

uvicorn would choose httptools, which is faster and not for us: it stops reading at a request to upgrade, so that the
body behind `Upgrade: h2c` (which Java's HttpClient sends by default) is lost, or taken for a request of its own; and it
bounds no headers. h11 takes 64 KiB of them at most, and reads on where there is nothing to upgrade to.
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
"""For a request's headers to arrive, from its first byte on, or from the start of a new connection: whoever opens
connections and says nothing must not take them from others."""


class Connection(H11Protocol):
    """One connection, over which requests come one after the other."""

    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._calm()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._calm()
        elif self._impatience is None:
            self._impatience = self.loop.call_later(HEADER_SECONDS, self.timeout_keep_alive_handler)

    def _calm(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _should_upgrade(self) -> bool:
        return False

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, and hang up: nothing after it could be understood either."""
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
