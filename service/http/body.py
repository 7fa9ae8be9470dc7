"""A request's body: read within limits of size and time, held in memory, and parsed without keeping the event loop."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, NoReturn

from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from service.errors import BodyTooSlow, ClientGone, PayloadTooLarge
from service.http.json_body import parse_json
from service.http.pieces import Pieces
from service.pipeline.admission import Ticket
from service.pipeline.call import Call
from service.schemas import check_members

BODY_SETTING = "CMA_CLIP_MAX_BODY_BYTES"

BODY_SECONDS, LEAST_BODY_BYTES = 3.0, 12 * 1024
"""A body ends, or brings at least that much, in every so many seconds."""


class AdmittedRequest(Request):
    """A request that has been admitted as `call`, and whose body has been read."""

    def __init__(self, request: Request, body: Pieces, call: Call) -> None:
        async def replay() -> Message:
            await asyncio.sleep(0)  # between the pieces, for the form parser has them without waiting
            return {"type": "http.request", "body": body.take(), "more_body": len(body) > 0}

        super().__init__(request.scope, replay)
        self._pieces = body
        self.call = call

    async def body(self) -> bytes:
        """Say whether there is a body: FastAPI needs no more before it asks for `json`, and would keep the bytes."""
        return b"..." if self._pieces else b""

    async def json(self) -> Any:
        """Parse the body and let go of its bytes. Raises `PayloadTooLarge` or `InvalidRequest`."""
        document = await parse_json(self._pieces)
        check_members(document)
        return document


def keep_forms_in_memory() -> None:
    """Stop Starlette from writing uploads to temporary files: the bodies are in memory already, within bounds."""
    MultiPartParser.spool_max_size = sys.maxsize


def declared_length(request: Request, limit: int, *, setting: str = BODY_SETTING) -> int:
    """Return the length that the header states, 0 if it states none. Raises `PayloadTooLarge`."""
    declared = request.headers.get("Content-Length", "0")
    length = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
    if length > limit:
        raise PayloadTooLarge.bytes_of("the body", length, limit, setting)
    return length


async def read_body(request: Request, ticket: Ticket, *, limit: int) -> Pieces:
    """Read the body, taking room for its bytes as they arrive.

    Raises `PayloadTooLarge`, `Overloaded` (no room for more bytes), `BodyTooSlow` or `ClientGone`.
    """
    body, loop = Pieces(), asyncio.get_running_loop()
    enough = LEAST_BODY_BYTES
    try:
        async with asyncio.timeout(BODY_SECONDS) as patience:
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise PayloadTooLarge.bytes_of("the body", None, limit, BODY_SETTING)
                ticket.add_bytes(len(chunk))
                body.append(chunk)
                if len(body) >= enough:
                    enough = len(body) + LEAST_BODY_BYTES
                    patience.reschedule(loop.time() + BODY_SECONDS)
    except ClientDisconnect:
        raise ClientGone("the caller hung up") from None
    except TimeoutError:
        if not patience.expired():
            raise
        slow = f"the body brought fewer than {LEAST_BODY_BYTES} bytes in {BODY_SECONDS:g} s"
        raise BodyTooSlow(slow) from None
    return body


async def raise_when_gone(receive: Receive) -> NoReturn:
    """Wait until the caller hangs up, and raise `ClientGone`."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone("the caller hung up")
