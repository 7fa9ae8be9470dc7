"""The routes, and the way of a request from top to bottom.

admitted (key, deadline, readiness, room, body) → options checked → per listing: image fetched → decoded
and tokenized → batched and computed → answer per attribute → reply
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from pydantic import ValidationError

from service.errors import InvalidRequest, NotFound, PayloadTooLarge, ServiceError
from service.http.auth import require_key
from service.http.dependencies import CallDep, LifecycleDep, PipelineDep
from service.http.openapi import CLASSIFY, problems
from service.http.problems import as_service_error, describe, problem
from service.http.route_classes import FormRoute, JsonRoute
from service.pipeline.call import Call
from service.pipeline.options import CheckedOptions
from service.pipeline.pipeline import Pipeline
from service.reviews.pairs import Promise
from service.schemas import (
    AttributeInfo,
    AttributesReply,
    BatchReply,
    BatchRequest,
    Borne,
    ClassifyReply,
    ClassifyRequest,
    FailedListing,
    Listing,
    ListingInput,
    ModelReply,
    Problem,
    StatusReply,
    UploadForm,
    check_members,
)

log = logging.getLogger(__name__)


# ── one listing ─────────────────────────────────────────────────────────────────────────────────────────────


async def classify_listing(
    pipeline: Pipeline, listing: ListingInput, options: CheckedOptions, call: Call
) -> ClassifyReply:
    """Answer one listing; all routes that classify end here. Raises `ServiceError`."""
    async with call.deadline.enforced():
        fetched = await pipeline.fetch(listing.url, call) if listing.url is not None else None
        prepared = await pipeline.prepare(listing, fetched, explain=options.explain, call=call)
        answer = await pipeline.answer(listing, fetched, prepared, options, call)
    reply = ClassifyReply.of(listing.id, pipeline.predictor.info, answer.prediction, answer.attributes)
    pipeline.record_stage("respond", time.monotonic() - answer.computed, call)
    return reply


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one listing of a batch has no answer."""

    id: str | None
    error: ServiceError


async def classify_or_fail(
    pipeline: Pipeline, submitted: object, options: CheckedOptions, call: Call
) -> ClassifyReply | Failure:
    """Answer one listing of a batch, or say what is wrong with this one."""
    try:
        check_members(submitted)
        listing = Listing.model_validate(submitted).to_input()
    except ValidationError as error:
        return Failure(_valid_id(submitted), InvalidRequest(describe(error.errors())))
    except InvalidRequest as error:
        return Failure(_valid_id(submitted), error)
    try:
        return await classify_listing(pipeline, listing, options, call)
    except ServiceError as error:
        return Failure(listing.id, error)
    except Exception as error:
        log.exception("a listing has failed", extra={"fields": {"request_id": call.record.id}})
        return Failure(listing.id, as_service_error(error))


def _valid_id(submitted: object) -> str | None:
    """The id of an invalid listing, if the id itself is valid."""
    try:
        return Listing.model_validate({"id": submitted["id"], "image": {"base64": ""}}).id  # type: ignore[index]
    except (ValidationError, TypeError, KeyError, IndexError):
        return None


# ── the routes ──────────────────────────────────────────────────────────────────────────────────────────────


json_routes = APIRouter(route_class=JsonRoute)

form_routes = APIRouter(route_class=FormRoute)

model_routes = APIRouter(dependencies=[Depends(require_key)], tags=["model"])

open_routes = APIRouter(tags=["operation"])


@json_routes.post("/v1/classify", response_model=ClassifyReply, **CLASSIFY)
async def classify(listing: ClassifyRequest, pipeline: PipelineDep, call: CallDep) -> ClassifyReply:
    """Predict the attributes of one listing."""
    call.record.listings = 1
    return await classify_listing(pipeline, listing.to_input(), pipeline.check_options(listing), call)


@json_routes.post("/v1/classify/batch", response_model=BatchReply, **CLASSIFY)
async def classify_batch(batch: BatchRequest, pipeline: PipelineDep, call: CallDep) -> BatchReply:
    """Predict the attributes of many listings. One that fails has its error in its place; the others are answered.

    The batch is admitted, or refused with 503, as a whole. If all its listings fail for reasons of the
    service's own, it fails as a whole too, so that a load balancer can try the next replica.
    """
    if len(batch.listings) > (limit := pipeline.settings.listings_limit):
        raise PayloadTooLarge(
            f"the batch has {len(batch.listings)} listings; at most {limit} are accepted (CMA_CLIP_MAX_LISTINGS)"
        )
    options = pipeline.check_options(batch)
    call.ticket.add_listings(len(batch.listings) - 1)  # one has been admitted already
    pipeline.admission.check_deadline(call.deadline, listings=0, own=call.ticket.listings)
    call.record.listings = len(batch.listings)
    outcomes = await asyncio.gather(*(classify_or_fail(pipeline, each, options, call) for each in batch.listings))
    errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
    if len(errors) == len(outcomes) and all(error.status >= 500 for error in errors):
        raise errors[0]
    for error in errors:
        pipeline.metrics.requests.rejected(error.code)
    return BatchReply(
        results=[
            FailedListing(id=outcome.id, error=Problem(**problem(outcome.error, call.record.id)))
            if isinstance(outcome, Failure)
            else outcome
            for outcome in outcomes
        ]
    )


@form_routes.post("/v1/classify/upload", response_model=ClassifyReply, **CLASSIFY)
async def classify_upload(
    form: Annotated[UploadForm, Form(media_type="multipart/form-data")], pipeline: PipelineDep, call: CallDep
) -> ClassifyReply:
    """Predict the attributes of one listing, sent as a form: its image as a file, the rest as fields."""
    call.record.listings = 1
    image = await form.image.read() if form.image is not None else None
    try:
        listing = ListingInput.of(id=form.id, title=form.title, image=image)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    return await classify_listing(pipeline, listing, pipeline.check_options(form.options), call)


@model_routes.get("/v1/attributes", response_model=AttributesReply, responses=problems(401, 503))
async def attributes(pipeline: PipelineDep) -> AttributesReply:
    """The attributes, their labels, and their thresholds at every target precision."""
    predictor = pipeline.predictor
    applicability = predictor.info.applicability
    never = applicability.never if applicability else {}
    withdrawn = pipeline.reviews.withdrawn if pipeline.reviews else frozenset()
    return AttributesReply(
        target_precisions=list(predictor.info.target_precisions),
        product_type=applicability.product_type if applicability else None,
        attributes={
            task.name: AttributeInfo(
                labels=list(task.labels),
                separator=task.separator,
                names={label: dict(names) for label, names in task.names.items()},
                not_applicable={
                    kind: Borne(listings=borne.listings, labelled=borne.labelled)
                    for kind, borne in never.get(task.name, {}).items()
                },
                thresholds={
                    situation: {
                        str(precision): None if Promise(task.name, situation, precision) in withdrawn else threshold
                        for precision, threshold in by_precision.items()
                    }
                    for situation, by_precision in predictor.thresholds(task.name).items()
                },
            )
            for task in predictor.tasks
        },
    )


@model_routes.get("/v1/model", response_model=ModelReply, responses=problems(401, 503))
async def model(pipeline: PipelineDep) -> ModelReply:
    """What is served: name, version, engine, size, device, and what was measured on the checkpoint's test part."""
    return ModelReply.of(pipeline.predictor.info)


without_store = APIRouter(include_in_schema=False)


@without_store.api_route("/v1/jobs", methods=["GET", "POST"])
@without_store.api_route("/v1/jobs/{rest:path}", methods=["GET", "DELETE"])
async def no_store() -> None:
    """Say why there are no jobs."""
    raise NotFound("jobs are off: the setting CMA_CLIP_STORE names no database")


@open_routes.get("/healthz", response_model=StatusReply, responses=problems(503))
async def healthz(lifecycle: LifecycleDep) -> StatusReply:
    """200 while the process can recover by itself; anything else asks for a restart."""
    lifecycle.check_alive()
    return StatusReply(status="alive")


@open_routes.get("/readyz", response_model=StatusReply, responses=problems(503))
async def readyz(lifecycle: LifecycleDep) -> StatusReply:
    """200 once warm; 503 while loading, draining, once the inference thread has died, or if no image can be decoded."""
    lifecycle.check_ready()
    return StatusReply(status="ready")


@open_routes.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus"}},
)
async def metrics(request: Request, pipeline: PipelineDep) -> Response:
    """The Prometheus exposition."""
    content, content_type = pipeline.metrics.render(request.headers.get("Accept", ""))
    return Response(content, headers={"Content-Type": content_type})
