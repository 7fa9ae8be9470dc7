"""The routes of reviews: people judge a random share of what is answered, and what was not accepted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from service.errors import Forbidden, InvalidRequest, NotFound
from service.http.auth import require_key
from service.http.dependencies import CallDep, PipelineDep
from service.http.middleware import record_of
from service.http.openapi import problems
from service.http.route_classes import JsonRoute
from service.pipeline.pipeline import Pipeline
from service.reviews.messages import REVIEWER, NextReply, PrecisionReply, ReviewerName, ReviewReply, ReviewRequest
from service.reviews.pairs import Kind
from service.reviews.reviews import Reviews

MAX_AT_ONCE = 20
"""Pairs that a reviewer may have at once."""

review_routes = APIRouter(dependencies=[Depends(require_key)], tags=["reviews"])

decision_routes = APIRouter(route_class=JsonRoute, tags=["reviews"])


def reviews_of(pipeline: Pipeline) -> Reviews:
    """Raises `NotFound` where no store is configured."""
    if pipeline.reviews is None:
        raise NotFound("reviews are off: CMA_CLIP_STORE names no database")
    return pipeline.reviews


def reviewer_of(request: Request, pipeline: Pipeline, name: str | None) -> str:
    """Return who judges: the name of the API key where keys are configured, and the name given.

    Raises `Forbidden` for a key that may not review, and `InvalidRequest` where there is no name at all.
    """
    key, may_review = record_of(request).key, pipeline.settings.review_keys
    if may_review and key not in may_review:
        raise Forbidden("this API key may not review (CMA_CLIP_REVIEW_KEYS)")
    if key is None and name is None:
        raise InvalidRequest("reviewer: say who judges")
    return "/".join(each for each in (key, name) if each is not None)


@review_routes.get("/v1/reviews/next", response_model=NextReply, responses=problems(401, 403, 404, 422, 503))
async def next_reviews(
    request: Request,
    pipeline: PipelineDep,
    reviewer: Annotated[ReviewerName | None, Query(description=REVIEWER)] = None,
    kind: Annotated[Kind | None, Query(description="default: the random share, then abstentions")] = None,
    count: Annotated[int, Query(ge=1, le=MAX_AT_ONCE, description="pairs, at most")] = 1,
) -> NextReply:
    """Pairs to judge, this reviewer's alone for ten minutes."""
    reviews = reviews_of(pipeline)
    return await reviews.next(reviewer_of(request, pipeline, reviewer), kind=kind, count=count)


DECISION_PROBLEMS = problems(401, 403, 404, 408, 409, 413, 415, 422, 429, 503, 504)


@decision_routes.post("/v1/reviews", response_model=ReviewReply, responses=DECISION_PROBLEMS)
async def review(decision: ReviewRequest, request: Request, pipeline: PipelineDep, call: CallDep) -> ReviewReply:
    """Keep a decision, or take it back. The same decision sent again is one."""
    reviews = reviews_of(pipeline)
    return await reviews.take(decision, reviewer_of(request, pipeline, decision.reviewer))


@review_routes.get("/v1/reviews/precision", response_model=PrecisionReply, responses=problems(401, 404, 503))
async def precision(pipeline: PipelineDep) -> PrecisionReply:
    """What is promised of accepted labels, and what people found: with bounds that hold at every moment, together."""
    return await reviews_of(pipeline).precision()
