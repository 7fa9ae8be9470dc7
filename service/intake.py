"""How a request comes in: key, deadline, readiness and room are checked before its body is read, let alone decoded.

These are route classes, since FastAPI reads and parses a body before it calls anything else of a route's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from service.admission import TIMEOUT_HEADER, Deadline, Ticket, check_key
from service.engine import Call, Engine
from service.errors import ClientGone, PayloadTooLarge, UnsupportedMediaType
from service.middleware import record_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

MAX_JSON_ELEMENTS = 1_000_000
"""Commas and brackets in a body: `{}` costs 3 bytes to send and 70 to hold, so bytes alone bound nothing."""


# Bodies are held in memory, within bounds; moving an upload from there to a temporary file would gain nothing.
MultiPartParser.spool_max_size = sys.maxsize


class KeyedRoute(APIRoute):
    """A route that asks for an API key, where any is configured."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def keyed(request: Request) -> Response:
            check_key(request.headers, engine_of(request).settings.api_keys)
            return await handle(request)

        return keyed


class AdmittedRoute(APIRoute):
    """A route whose requests are admitted before their bodies are read, let alone decoded."""

    media_type: ClassVar[str]

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def admitted(request: Request) -> Response:
            engine = engine_of(request)
            check_key(request.headers, engine.settings.api_keys)
            deadline = Deadline.of(request.headers.get(TIMEOUT_HEADER), cap_ms=engine.settings.request_timeout_ms)
            engine.check_ready()
            self._check_media_type(request)
            length = _declared_length(request, engine.settings.max_body_bytes)
            with engine.admission.admit(deadline, nbytes=length) as ticket:
                async with deadline.enforced():
                    body = await _read_body(request, ticket, declared=length, limit=engine.settings.max_body_bytes)
                request.state.call = Call(deadline, ticket, record_of(request))
                return await _unless_gone(handle(BufferedRequest(request, body)), request.receive)

        return admitted

    def _check_media_type(self, request: Request) -> None:
        sent = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if sent != self.media_type:
            raise UnsupportedMediaType(f"this path takes Content-Type: {self.media_type}")


class JsonRoute(AdmittedRoute):
    media_type = "application/json"


class FormRoute(AdmittedRoute):
    media_type = "multipart/form-data"


class BufferedRequest(Request):
    """A request whose body has been read, and whose JSON is parsed off the event loop where it is large."""

    def __init__(self, request: Request, body: bytes) -> None:
        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        super().__init__(request.scope, replay)
        self._bytes = body

    async def json(self) -> Any:
        if len(self._bytes) < 65_536:
            return _parse(self._bytes)
        return await engine_of(self).in_pool(_parse, self._bytes)


def _parse(body: bytes) -> Any:
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_JSON_ELEMENTS:
        raise PayloadTooLarge(f"the body has more than {MAX_JSON_ELEMENTS} JSON elements")
    return json.loads(body)


def _declared_length(request: Request, limit: int) -> int:
    declared = request.headers.get("Content-Length", "0")
    length = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
    if length > limit:
        raise PayloadTooLarge(f"the body has {length} bytes; at most {limit} are accepted")
    return length


async def _read_body(request: Request, ticket: Ticket, *, declared: int, limit: int) -> bytes:
    """Read the body, counting what really comes in; room for its declared length has been taken already."""
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


async def _unless_gone(work: Coroutine[Any, Any, Response], receive: Receive) -> Response:
    """Do the work, but cancel it if the caller hangs up: nobody's answer is computed for nobody."""

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGone("the caller hung up")
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


def engine_of(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def call_of(request: Request) -> Call:
    call: Call = request.state.call
    return call
