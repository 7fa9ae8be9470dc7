"""Around every request: its id, its metrics, its one log line, and the last resort against exceptions."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ClientGone
from service.http.problems import as_service_error, problem_response
from service.observability.metrics import Metrics

REQUEST_ID_HEADER = "X-Request-ID"

SANE_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")

log = logging.getLogger("service.request")


@dataclass(slots=True)
class RequestRecord:
    """What is logged about a request."""

    id: str
    started: float = field(default_factory=time.monotonic)
    listings: int = 0
    code: str | None = None
    """The problem's code, if it was answered with one."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage; where listings went through it side by side, of the slowest."""

    def stage(self, name: str, seconds: float) -> None:
        self.stages[name] = max(seconds, self.stages.get(name, 0.0))


def record_of(request: Request) -> RequestRecord:
    record: RequestRecord = request.state.record
    return record


class Observed:
    """Pure ASGI, outermost: whatever happens inside, there is one answer with an id, counted and logged once."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope))
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
            log.exception("unforeseen", extra={"fields": {"request_id": record.id}})
            if not status:
                failure = as_service_error(error)
                record.code = failure.code
                await problem_response(failure, record.id)(scope, receive, send_with_id)
        finally:
            self._finish(scope, _route(inner), record, status or ClientGone.status)

    def _finish(self, scope: Scope, route: str | None, record: RequestRecord, status: int) -> None:
        seconds = time.monotonic() - record.started
        self._metrics.request(method=scope["method"], route=route, status=status, seconds=seconds)
        fields = {
            "request_id": record.id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "code": record.code,
            "listings": record.listings,
            "milliseconds": round(1000 * seconds, 3),
            "stages_ms": {name: round(1000 * spent, 3) for name, spent in record.stages.items()},
        }
        log.info("request", extra={"fields": {name: value for name, value in fields.items() if value}})


def _route(scope: Scope) -> str | None:
    """The template that was matched; None for an unknown path."""
    if scope["path"].startswith("/static/"):
        return "/static"
    path: str | None = getattr(scope.get("route"), "path", None)
    return path


def _request_id(scope: Scope) -> str:
    """The caller's id if it is sane: it goes into logs and headers, where it must not be able to do anything."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
