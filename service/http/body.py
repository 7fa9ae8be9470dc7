"""A request's body: read within limits, held in memory, and parsed with bounded depth."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from pydantic_core import from_json
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from service.errors import ClientGone, InvalidRequest, PayloadTooLarge
from service.pipeline.admission import Ticket
from service.pipeline.call import Call
from service.schemas import check_members

MAX_JSON_ELEMENTS = 1_000_000
"""Commas in a body: `{},` takes 3 bytes to send and 70 to hold, so a limit on bytes alone is not enough."""


class AdmittedRequest(Request):
    """A request that has been admitted as `call`, and whose body has been read."""

    def __init__(self, request: Request, body: bytes, call: Call) -> None:
        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        super().__init__(request.scope, replay)
        self._bytes = body
        self.call = call

    async def json(self) -> Any:
        """Parse with pydantic's parser, whose depth is bounded. Raises `PayloadTooLarge` or `InvalidRequest`."""
        if self._bytes.count(b",") > MAX_JSON_ELEMENTS:
            raise PayloadTooLarge(f"the body has more than {MAX_JSON_ELEMENTS} JSON elements")
        try:
            document = from_json(self._bytes)
        except ValueError as error:
            raise InvalidRequest(f"the body is not JSON: {error}") from None
        check_members(document)
        return document


def keep_forms_in_memory() -> None:
    """Stop Starlette from writing uploads to temporary files: the bodies are in memory already, within bounds."""
    MultiPartParser.spool_max_size = sys.maxsize


def declared_length(request: Request, limit: int) -> int:
    """Return the length that the header states, 0 if it states none. Raises `PayloadTooLarge`."""
    declared = request.headers.get("Content-Length", "0")
    length = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
    if length > limit:
        raise PayloadTooLarge(f"the body has {length} bytes; at most {limit} are accepted")
    return length


async def read_body(request: Request, ticket: Ticket, *, declared: int, limit: int) -> bytes:
    """Read the body, counting the bytes that really arrive; room for its declared length has been taken already.

    Raises `PayloadTooLarge`, `Overloaded` (no room for bytes beyond the declared ones) or `ClientGone`.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise PayloadTooLarge(f"the body has more than {limit} bytes")
            body += chunk
            if len(body) > declared:
                ticket.add_bytes(len(body) - declared)
                declared = len(body)
    except ClientDisconnect:
        raise ClientGone("the caller hung up") from None
    return bytes(body)


async def raise_when_gone(receive: Receive) -> NoReturn:
    """Wait until the caller hangs up, and raise `ClientGone`."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone("the caller hung up")
