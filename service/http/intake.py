"""How a request comes in: key, deadline, readiness and room are checked before its body is read, let alone decoded.

These are route classes, since FastAPI reads and parses a body before it calls anything else of a route's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from service.engine import Call, Engine
from service.errors import ClientGone, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from service.http.auth import check_key
from service.http.middleware import record_of
from service.pipeline.admission import TIMEOUT_HEADER, Deadline, Ticket
from service.schemas import check_members

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

MAX_JSON_ELEMENTS = 1_000_000
"""Commas in a body: `{},` costs 3 bytes to send and 70 to hold, so bytes alone bound nothing."""

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
                    reading = _read_body(request, ticket, declared=length, limit=engine.settings.max_body_bytes)
                    body = await _unless(engine.given_up(), reading)
                request.state.call = Call(deadline, ticket, record_of(request))
                ends = engine.given_up(), _hang_up(request.receive)
                response: Response = await _unless(*ends, handle(BufferedRequest(request, body)))
                return response

        return admitted

    def _check_media_type(self, request: Request) -> None:
        sent = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if sent != self.media_type:
            raise UnsupportedMediaType(f"this path takes Content-Type: {self.media_type}")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("bodies are taken as they are, not compressed")


class JsonRoute(AdmittedRoute):
    media_type = "application/json"


class FormRoute(AdmittedRoute):
    media_type = "multipart/form-data"

    def _check_media_type(self, request: Request) -> None:
        super()._check_media_type(request)
        # Any codec of Python's would be taken, and some of them take minutes for a few hundred kilobytes.
        charset = parse_options_header(request.headers["Content-Type"])[1].get(b"charset", b"utf-8")
        if charset.lower() not in {b"utf-8", b"us-ascii"}:
            raise UnsupportedMediaType("the fields of a form are taken in UTF-8")


class BufferedRequest(Request):
    """A request whose body has been read; its JSON is parsed by pydantic's parser, whose depth is bounded."""

    def __init__(self, request: Request, body: bytes) -> None:
        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        super().__init__(request.scope, replay)
        self._bytes = body

    async def json(self) -> Any:
        if self._bytes.count(b",") > MAX_JSON_ELEMENTS:
            raise PayloadTooLarge(f"the body has more than {MAX_JSON_ELEMENTS} JSON elements")
        try:
            document = from_json(self._bytes)
        except ValueError as error:
            raise InvalidRequest(f"the body is not JSON: {error}") from None
        check_members(document)
        return document


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


async def _hang_up(receive: Receive) -> None:
    """Wait until the caller hangs up: nobody's answer is computed for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone("the caller hung up")


async def _unless(*given: Coroutine[Any, Any, Any]) -> Any:
    """Do the last of what is given, but cancel it as soon as one of those before it raises."""
    tasks = [asyncio.ensure_future(each) for each in given]
    *ends, work = tasks
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else next(end for end in ends if end.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def engine_of(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def call_of(request: Request) -> Call:
    call: Call = request.state.call
    return call
