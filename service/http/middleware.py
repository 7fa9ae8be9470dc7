"""Around every request: its id, metrics, log line and span, and the handling of unexpected exceptions."""

from __future__ import annotations

import logging
import re
import time
import uuid
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ClientGone
from service.http.problems import as_service_error, problem_response
from service.observability.metrics import RequestMetrics
from service.observability.request_log import RequestRecord
from service.observability.tracing import Tracing

REQUEST_ID_HEADER = "X-Request-ID"

PROBES = {"/healthz", "/readyz", "/metrics"}
"""Asked every few seconds by machines; only what they are refused is logged, and none is traced."""

UNTRACED = ("/static/", *PROBES)

SANE_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")

log = logging.getLogger("service.request")


def record_of(request: Request) -> RequestRecord:
    """Return what the middleware below has put into the request's state."""
    record: RequestRecord = request.state.record
    return record


class Observed:
    """Outermost ASGI middleware: whatever happens inside, there is one answer with an id, counted and logged once."""

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics, tracing: Tracing | None) -> None:
        """tracing: makes the requests' spans; None: they are not traced"""
        self._app, self._metrics, self._tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope))
        if self._tracing is not None and not scope["path"].startswith(UNTRACED):
            record.trace = self._tracing.request(Headers(scope=scope), record.id)
        scope.setdefault("state", {})["record"] = record
        # HEAD is GET without the body, which the server leaves out.
        inner: Scope = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = record.id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(inner, receive, send_with_id)
        except Exception as error:
            log.exception("unexpected error", extra={"fields": {"request_id": record.id}})
            if not status:
                failure = as_service_error(error)
                record.code = failure.code
                await problem_response(failure, record.id)(scope, receive, send_with_id)
        finally:
            self._finish(scope, _route(inner), record, status or ClientGone.status)

    def _finish(self, scope: Scope, route: str | None, record: RequestRecord, status: int) -> None:
        seconds = time.monotonic() - record.started
        self._metrics.answered(method=scope["method"], route=route, status=status, seconds=seconds)
        if record.trace is not None:
            record.trace.end(
                method=scope["method"],
                route=route,
                status=status,
                code=record.code,
                listings=record.listings,
                job=record.job,
            )
        if record.key is not None:
            self._metrics.answered_key(record.key, status)
        if route in PROBES and status == HTTPStatus.OK:
            return
        fields = record.fields(method=scope["method"], route=route, status=status, seconds=seconds)
        log.info("request", extra={"fields": fields})


def _route(scope: Scope) -> str | None:
    """The template of the matched route; None for an unknown path."""
    if scope["path"].startswith("/static/"):
        return "/static"
    path: str | None = getattr(scope.get("route"), "path", None)
    return path


def _request_id(scope: Scope) -> str:
    """The caller's id if it is safe to repeat in logs and headers, else a new one."""
    sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return sent if SANE_ID.fullmatch(sent) else uuid.uuid4().hex
