"""The story of a request, top to bottom.

admitted (key, deadline, readiness, room, body) → options checked → per listing: image fetched → decoded
and tokenized → batched and computed → read → reply
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from pydantic import ValidationError

from service.engine import Call, Engine, Wanted
from service.errors import InvalidRequest, PayloadTooLarge, ServiceError
from service.http.intake import FormRoute, JsonRoute, KeyedRoute, call_of, engine_of
from service.http.openapi import CLASSIFY, problems
from service.http.problems import as_service_error, describe, problem
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
    check_members,
)

log = logging.getLogger(__name__)


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
        check_members(listing)
        given = Listing.model_validate(listing).given()
    except ValidationError as error:
        return _usable_id(listing), InvalidRequest(describe(error.errors()))
    except InvalidRequest as error:
        return _usable_id(listing), error
    try:
        return await read(engine, given, wanted, call)
    except ServiceError as error:
        return given.id, error
    except Exception as error:
        log.exception("a listing has failed", extra={"fields": {"request_id": call.record.id}})
        return given.id, as_service_error(error)


def _usable_id(listing: object) -> str | None:
    """The id of a listing that is otherwise not in order, if at least that is."""
    try:
        return Listing.model_validate({"id": listing["id"], "title": "-"}).id  # type: ignore[index]
    except (ValidationError, TypeError, KeyError, IndexError):
        return None


# ── the routes ──────────────────────────────────────────────────────────────────────────────────────────────


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
    """Read the attributes of many listings. One that fails has its error in its place; the others are answered.

    The batch is admitted, or refused with 503, as a whole. If all its listings fail for reasons of the
    service's own, it fails as a whole too, so that a load balancer can try the next replica.
    """
    engine, call = engine_of(request), call_of(request)
    if len(batch.listings) > engine.settings.listings_limit:
        limit = engine.settings.listings_limit
        raise PayloadTooLarge(f"the batch has {len(batch.listings)} listings; at most {limit} are accepted")
    wanted = engine.check_options(batch)
    more = len(batch.listings) - 1  # one has been admitted already
    call.ticket.add_listings(more)
    engine.admission.check_deadline(call.deadline, listings=0, own=call.ticket.listings)
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


@model_routes.get("/v1/attributes", response_model=AttributesReply, responses=problems(401, 503))
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


@model_routes.get("/v1/model", response_model=ModelReply, responses=problems(401, 503))
async def model(request: Request) -> ModelReply:
    """What is served: name, version, size, device, and what was measured on the checkpoint's test part."""
    return ModelReply.of(engine_of(request).predictor.info)


@open_routes.get("/healthz", response_model=StatusReply, responses=problems(503))
async def healthz(request: Request) -> StatusReply:
    """200 while the process can recover by itself; anything else asks for a restart."""
    engine_of(request).check_alive()
    return StatusReply(status="alive")


@open_routes.get("/readyz", response_model=StatusReply, responses=problems(503))
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
