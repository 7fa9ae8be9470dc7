"""The story of a request, top to bottom.

admitted (key, deadline, readiness, room, body) → options checked → per listing: image fetched → decoded
and tokenised → batched and computed → read → reply
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Form, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.types import Message, Receive

from service.admission import TIMEOUT_HEADER, Deadline, Ticket, check_key
from service.engine import Call, Engine, Wanted
from service.errors import (
    PROBLEM_TYPE,
    ClientGone,
    InvalidRequest,
    PayloadTooLarge,
    ServiceError,
    UnsupportedMediaType,
    describe,
    problem,
)
from service.middleware import record_of
from service.schemas import (
    AttributeInfo,
    AttributesReply,
    BatchReply,
    BatchRequest,
    ClassifyReply,
    ClassifyRequest,
    FailedListing,
    Given,
    Listing,
    ModelReply,
    Problem,
    StatusReply,
    UploadForm,
)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

MAX_JSON_ELEMENTS = 1_000_000
"""Commas and brackets in a body: `{}` costs 3 bytes to send and 70 to hold, so bytes alone bound nothing."""


# ── admission ───────────────────────────────────────────────────────────────────────────────────────────────


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
        return await asyncio.to_thread(_parse, self._bytes)


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
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise PayloadTooLarge(f"the body has more than {limit} bytes")
        body += chunk
        if len(body) > declared:
            ticket.add_bytes(len(body) - declared)
            declared = len(body)
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


# ── one listing ─────────────────────────────────────────────────────────────────────────────────────────────


async def read(engine: Engine, given: Given, wanted: Wanted, call: Call) -> ClassifyReply:
    """Answer one listing. Every way of sending one ends here."""
    async with call.deadline.enforced():
        fetched = await engine.fetch(given.url, call) if given.url is not None else None
        prepared = await engine.prepare(given, fetched, wanted, call)
        prediction = await engine.infer(prepared, call)
    started = time.monotonic()
    readings = {
        name: prediction.read(name, target_precision=wanted.target_precision, top_k=wanted.top_k)
        for name in wanted.attributes
    }
    engine.metrics.answered(prediction.situation, readings)
    reply = ClassifyReply.of(given.id, engine.predictor.info, readings)
    engine.stage("respond", time.monotonic() - started, call)
    return reply


async def read_or_fail(
    engine: Engine, listing: object, wanted: Wanted, call: Call
) -> ClassifyReply | tuple[str | None, ServiceError]:
    """Answer one listing of a batch, or say what is wrong with this one."""
    try:
        given = Listing.model_validate(listing).given()
    except ValidationError as error:
        return _usable_id(listing), InvalidRequest(describe(error.errors()))
    try:
        return await read(engine, given, wanted, call)
    except ServiceError as error:
        return given.id, error


def _usable_id(listing: object) -> str | None:
    """The id of a listing that is otherwise not in order, if at least that is."""
    try:
        return Listing.model_validate({"id": listing["id"], "title": "-"}).id  # type: ignore[index]
    except (ValidationError, TypeError, KeyError, IndexError):
        return None


# ── the routes ──────────────────────────────────────────────────────────────────────────────────────────────


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare refusals in the OpenAPI document."""
    reasons = {
        401: "no API key, or a wrong one",
        413: "body, image bytes, pixels or number of listings over the limit",
        415: "not an accepted image format or request type",
        422: "the caller's mistake, named",
        424: "the image's host failed, timed out or sent something else",
        500: "a bug",
        503: "overloaded, draining or not ready: try another replica, or again after Retry-After seconds",
        504: "the deadline passed, or cannot be met",
    }
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": reasons[status], "content": {PROBLEM_TYPE: schema}, **_headers(status)}
        for status in statuses
    }


def _headers(status: int) -> dict[str, Any]:
    seconds = {"description": "seconds after which another try makes sense", "schema": {"type": "integer"}}
    return {"headers": {"Retry-After": seconds}} if status in {503, 504} else {}


TIMEOUT_PARAMETER = {
    "parameters": [
        {
            "name": TIMEOUT_HEADER,
            "in": "header",
            "required": False,
            "description": "the caller's deadline; a request that cannot meet it is refused at once",
            "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
        }
    ]
}
CLASSIFY: dict[str, Any] = {
    "responses": _problems(401, 413, 415, 422, 424, 500, 503, 504),
    "openapi_extra": TIMEOUT_PARAMETER,
    "response_model_exclude_unset": True,
    "tags": ["classify"],
}

json_routes = APIRouter(route_class=JsonRoute)
form_routes = APIRouter(route_class=FormRoute)
model_routes = APIRouter(route_class=KeyedRoute, tags=["model"])
open_routes = APIRouter(tags=["operation"])


@json_routes.post("/v1/classify", response_model=ClassifyReply, **CLASSIFY)
async def classify(listing: ClassifyRequest, request: Request) -> ClassifyReply:
    """Read the attributes of one listing."""
    engine, call = engine_of(request), call_of(request)
    call.record.listings = 1
    return await read(engine, listing.given(), engine.check_options(listing), call)


@json_routes.post("/v1/classify/batch", response_model=BatchReply, **CLASSIFY)
async def classify_batch(batch: BatchRequest, request: Request) -> BatchReply:
    """Read the attributes of many listings. One that fails has its error in its place; the others are
    answered.

    The batch is admitted, or refused with 503, as a whole. If all its listings fail for reasons of the
    service's own, it fails as a whole too, so that a load balancer can try the next replica.
    """
    engine, call = engine_of(request), call_of(request)
    if len(batch.listings) > engine.settings.listings_limit:
        limit = engine.settings.listings_limit
        raise PayloadTooLarge(f"the batch has {len(batch.listings)} listings; at most {limit} are accepted")
    wanted = engine.check_options(batch)
    more = len(batch.listings) - 1  # one has been admitted already
    engine.admission.check_deadline(call.deadline, listings=more)
    call.ticket.add_listings(more)
    call.record.listings = len(batch.listings)
    outcomes = await asyncio.gather(*(read_or_fail(engine, listing, wanted, call) for listing in batch.listings))
    failures = [outcome[1] for outcome in outcomes if isinstance(outcome, tuple)]
    if len(failures) == len(outcomes) and all(failure.status >= 500 for failure in failures):
        raise failures[0]
    for failure in failures:
        engine.metrics.rejected(failure.code)
    return BatchReply(
        results=[
            FailedListing(id=outcome[0], error=Problem(**problem(outcome[1], call.record.id)))
            if isinstance(outcome, tuple)
            else outcome
            for outcome in outcomes
        ]
    )


@form_routes.post("/v1/classify/upload", response_model=ClassifyReply, **CLASSIFY)
async def classify_upload(
    form: Annotated[UploadForm, Form(media_type="multipart/form-data")], request: Request
) -> ClassifyReply:
    """Read the attributes of one listing, sent as a form: its image as a file, the rest as fields."""
    engine, call = engine_of(request), call_of(request)
    call.record.listings = 1
    image = await form.image.read() if form.image is not None else None
    try:
        given = Given.of(id=form.id, title=form.title, image=image)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    return await read(engine, given, engine.check_options(form.options), call)


@model_routes.get("/v1/attributes", response_model=AttributesReply, responses=_problems(401, 503))
async def attributes(request: Request) -> AttributesReply:
    """The attributes, their labels, and their thresholds at every target precision."""
    predictor = engine_of(request).predictor
    return AttributesReply(
        target_precisions=list(predictor.info.target_precisions),
        attributes={
            task.name: AttributeInfo(
                labels=list(task.labels),
                thresholds={
                    situation: {str(precision): threshold for precision, threshold in by_precision.items()}
                    for situation, by_precision in predictor.thresholds(task.name).items()
                },
            )
            for task in predictor.tasks
        },
    )


@model_routes.get("/v1/model", response_model=ModelReply, responses=_problems(401, 503))
async def model(request: Request) -> ModelReply:
    """What is served: name, version, size, device, and what was measured on the checkpoint's test part."""
    return ModelReply.of(engine_of(request).predictor.info)


@open_routes.get("/healthz", response_model=StatusReply, responses=_problems(503))
async def healthz(request: Request) -> StatusReply:
    """200 while the process can recover by itself; anything else asks for a restart."""
    engine_of(request).check_alive()
    return StatusReply(status="alive")


@open_routes.get("/readyz", response_model=StatusReply, responses=_problems(503))
async def readyz(request: Request) -> StatusReply:
    """200 once warm; 503 while loading, when draining, and when the inference thread has died."""
    engine_of(request).check_ready()
    return StatusReply(status="ready")


@open_routes.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus"}},
)
async def metrics(request: Request) -> Response:
    """The Prometheus exposition."""
    content, content_type = engine_of(request).metrics.render(request.headers.get("Accept", ""))
    return Response(content, headers={"Content-Type": content_type})


def engine_of(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def call_of(request: Request) -> Call:
    call: Call = request.state.call
    return call
