"""Routes that admit a request before its body is read: API key, deadline, readiness and room are checked first.

FastAPI reads and parses a body before it resolves any dependency, so admission cannot be a dependency; it wraps the
route's handler instead. What it finds out travels in the `AdmittedRequest`, and reaches a handler by
`service.http.dependencies`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, NoReturn, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header

from service.content_encoding import is_compressed
from service.errors import ServiceError, UnsupportedMediaType
from service.http.auth import check_key
from service.http.body import AdmittedRequest, declared_length, raise_when_gone, read_body
from service.http.dependencies import get_lifecycle, get_pipeline
from service.http.middleware import record_of
from service.pipeline.admission import TIMEOUT_HEADER, Deadline
from service.pipeline.call import Call

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

Result = TypeVar("Result")


class AdmittedRoute(APIRoute):
    """A route whose requests are admitted before their bodies are read, let alone decoded."""

    media_type: ClassVar[str]

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def admit_and_handle(request: Request) -> Response:
            lifecycle, pipeline = await get_lifecycle(request), await get_pipeline(request)
            settings = pipeline.settings
            record = record_of(request)
            record.key = check_key(request.headers, settings.api_keys)
            deadline = Deadline.of(request.headers.get(TIMEOUT_HEADER), cap_ms=settings.request_timeout_ms)
            lifecycle.check_ready()
            self._check_media_type(request)
            length = declared_length(request, settings.max_body_bytes)
            with pipeline.admission.admit(deadline, nbytes=length, quota=pipeline.quota(record.key)) as ticket:
                async with deadline.enforced():
                    reading = read_body(request, ticket, limit=settings.max_body_bytes)
                    body = await _unless(lifecycle.raise_when_given_up(), work=reading)
                ticket.add_listings(1)
                admitted = AdmittedRequest(request, body, Call(deadline, ticket, record))
                stops = lifecycle.raise_when_given_up(), raise_when_gone(request.receive)
                try:
                    return await _unless(*stops, work=handle(admitted))
                except ServiceError as error:
                    # An answer, not a bug: nobody reads its traceback, whose frames hold the body and the listings.
                    error.__context__ = None
                    raise error.with_traceback(None) from None

        return admit_and_handle

    def _check_media_type(self, request: Request) -> None:
        """Raise `UnsupportedMediaType` for another type of body than the route takes, or a compressed one."""
        sent = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if sent != self.media_type:
            raise UnsupportedMediaType(f"this path takes Content-Type: {self.media_type}")
        if is_compressed(request.headers.get("Content-Encoding", "")):
            raise UnsupportedMediaType("compressed bodies are not accepted: send it without Content-Encoding")


class JsonRoute(AdmittedRoute):
    media_type = "application/json"


class FormRoute(AdmittedRoute):
    media_type = "multipart/form-data"

    def _check_media_type(self, request: Request) -> None:
        super()._check_media_type(request)
        # Starlette would take any of Python's codecs, and some need minutes for a few hundred kilobytes.
        charset = parse_options_header(request.headers["Content-Type"])[1].get(b"charset", b"utf-8")
        if charset.lower() not in {b"utf-8", b"us-ascii"}:
            raise UnsupportedMediaType("the fields of a form must be in UTF-8")


async def _unless(*stops: Coroutine[Any, Any, NoReturn], work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, but cancel it and raise as soon as one of `stops` raises."""
    working, stopping = asyncio.ensure_future(work), [asyncio.ensure_future(stop) for stop in stops]
    try:
        await asyncio.wait([working, *stopping], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return next(stop for stop in stopping if stop.done()).result()
    finally:
        for task in (working, *stopping):
            task.cancel()
        await asyncio.gather(working, *stopping, return_exceptions=True)
        # A task holds its exception, whose traceback holds this frame: without this, a cycle with the body in it.
        del working, stopping, task
