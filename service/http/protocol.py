"""A caller's connection: uvicorn's HTTP/1.1 with strict framing, and a time limit for each phase.

h11 is used, though httptools is faster: httptools stops reading at a request to upgrade, so that the body behind
`Upgrade: h2c` (which Java's HttpClient sends by default) is lost or taken for another request, and it does not limit
headers. `service.http.strict` says what is refused.

At each moment a connection is in one phase, and in each phase something is owed:

    HEAD       by the caller: the rest of a request's headers; a new connection begins here
    BODY       by the application: an answer, which its own deadline and least rate for bodies see to
    SENDING    by the caller: to take what is being sent
    REST       by the caller: the rest of a body, though the answer is out
    IDLE       by nobody, but not for ever: the next request
    CLOSING    by the caller: to take the last bytes
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import MalformedRequest, Overloaded, ServiceError
from service.http.problems import PROBLEM_TYPE, problem
from service.http.strict import StrictConnection

HEADER_SECONDS = 10.0
"""For a request's headers to arrive, from its first byte on, or from the start of a new connection."""

REST_SECONDS = 5.0
"""For the rest of a body whose request has been answered: a caller who reads the answer only after sending it all gets
that long, and may then use the connection again."""

SEND_SECONDS, LEAST_SENT_BYTES = 10.0, 10 * 1024
"""A caller who does not take at least that much of an answer in that time is cut off."""


class Phase(Enum):
    HEAD = auto()
    BODY = auto()
    SENDING = auto()
    REST = auto()
    IDLE = auto()
    CLOSING = auto()


WAITING = {Phase.HEAD, Phase.REST, Phase.IDLE}
"""Nothing is lost but a connection when it is closed in one of these."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What all connections of a server have in common."""

    max_connections: int
    keep_alive_seconds: float
    on_refused: Callable[[ServiceError], None]
    """Told of each refusal that no route sees."""


class Connection(H11Protocol):
    """One connection, over which requests arrive one after the other."""

    conn: StrictConnection

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = StrictConnection()
        self.limits = limits
        self.phase: Phase | None = None
        self.phase_began = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0

    # ── phases ──────────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        """Start the clock of the present phase, if it has just begun. Called whenever anything has happened."""
        if (phase := self._present_phase()) is self.phase:
            return
        self._stop_watching()
        self.phase, self.phase_began = phase, self.loop.time()
        self._unsent = self.transport.get_write_buffer_size()
        seconds = {
            Phase.HEAD: HEADER_SECONDS,
            Phase.SENDING: SEND_SECONDS,
            Phase.REST: REST_SECONDS,
            Phase.IDLE: self.limits.keep_alive_seconds,
            Phase.CLOSING: SEND_SECONDS,
        }.get(phase)
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._expire)

    def _present_phase(self) -> Phase:
        if self.transport.is_closing():
            return Phase.CLOSING
        if self.flow.write_paused:
            return Phase.SENDING
        if self.conn.their_state is h11.IDLE:
            return Phase.HEAD if self.cycle is None or self.conn.unparsed else Phase.IDLE
        return Phase.REST if self.cycle.response_complete else Phase.BODY

    def _expire(self) -> None:
        if self.phase in {Phase.SENDING, Phase.CLOSING}:
            unsent = self.transport.get_write_buffer_size()
            if unsent > self._unsent - LEAST_SENT_BYTES:
                self.transport.abort()
            else:
                self._unsent, self._timer = unsent, self.loop.call_later(SEND_SECONDS, self._expire)
        else:
            self.hang_up()

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def hang_up(self) -> None:
        """Close, once what has been written is sent."""
        self.transport.close()
        self._watch()

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections and not self._make_room():
            full = f"{self.limits.max_connections} connections are open, all with a request in progress"
            self.refuse(Overloaded(full, retry_after=1))
        self._watch()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its caller; return whether there is one."""
        others = (cast(Connection, each) for each in self.connections if each is not self)
        waiting = [each for each in others if each.phase in WAITING]
        if not waiting:
            return False
        longest = min(waiting, key=lambda each: each.phase_began)
        self.connections.discard(longest)
        longest.hang_up()
        return True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def shutdown(self) -> None:
        super().shutdown()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    # ── refusals ────────────────────────────────────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not a request: nothing after it could be understood either."""
        self.refuse(
            MalformedRequest("this is not HTTP/1.1 as RFC 9112 has it, or its headers are too large or too many")
        )

    def refuse(self, error: ServiceError) -> None:
        """Answer for the application, unless it has begun to, and close."""
        self.limits.on_refused(error)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            request_id = uuid.uuid4().hex
            body = json.dumps(problem(error, request_id)).encode()
            headers = {
                "Content-Type": PROBLEM_TYPE,
                "Content-Length": str(len(body)),
                "X-Request-ID": request_id,
                "Connection": "close",
            }
            if error.retry_after is not None:
                headers["Retry-After"] = str(round(error.retry_after))
            for event in (
                h11.Response(status_code=error.status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.hang_up()
