"""Puts the application together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from model.errors import ConfigError
from model.inference.predictions import ListingPredictor
from model.inputs.pool import DecodePool
from service.errors import ServiceError, Unavailable
from service.http import auth, dependencies, pages, review_routes, routes
from service.http.body import keep_forms_in_memory
from service.http.middleware import Observed, record_of
from service.http.problems import as_service_error, problem_response
from service.lifecycle import Lifecycle, Load
from service.observability.metrics import Metrics, ReviewMetrics
from service.observability.tracing import configured_tracing
from service.pipeline.base64_image import decode_base64
from service.pipeline.gate import Gate
from service.pipeline.pipeline import Pipeline
from service.read_only import expect_no_temporary_folder
from service.reviews.reviews import Reviews
from service.reviews.sampling import Draw
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from service.store.store import Store

DESCRIPTION = (
    "Predicts product attributes from a listing's image and title, each with a calibrated confidence, whether "
    "the label meets a target precision, why not where it doesn't, and how much image and text weighed."
)


def load_predictor(settings: Settings) -> ListingPredictor:
    """Load the configured checkpoint; what computes it is imported only here, since that takes time."""
    expect_no_temporary_folder()
    from model.inference.predictor import Predictor  # noqa: PLC0415
    from model.threads import settle_threads  # noqa: PLC0415

    settle_threads(settings.threads)
    return Predictor.load(settings.checkpoint, device=settings.device, dtype=settings.dtype, engine=settings.engine)


def open_configured(settings: Settings) -> Store | None:
    """Open the configured store; what it needs is imported only then. Raises `ConfigError`."""
    if settings.store is None:
        return None
    from service.store.store import Store  # noqa: PLC0415

    try:
        return Store.open(settings.store.get_secret_value(), settings.files_of_store)
    except Unavailable as error:
        raise ConfigError(f"CMA_CLIP_STORE: {error.detail}") from error


def open_reviews(settings: Settings, metrics: ReviewMetrics, store: Store | None) -> Reviews | None:
    """Return what captures answers for people to judge; None where no store is configured."""
    if store is None:
        return None
    from service.reviews.records import Records  # noqa: PLC0415

    return Reviews(
        Records(store.database),
        metrics,
        Draw(store.secret("reviews"), settings.review_share),
        auto_abstain=settings.auto_abstain,
        keep_days=settings.review_days,
        decode=partial(decode_base64, max_bytes=settings.max_image_bytes),
    )


def check_checkpoint(settings: Settings) -> None:
    """Raise `ModelError` where the configured folder is no checkpoint, without loading it, which takes time."""
    from model.checkpoint.folder import check_checkpoint  # noqa: PLC0415

    compiled = settings.engine not in {"auto", "torch"}
    check_checkpoint(settings.checkpoint, settings.engine if compiled else None)


def create_app(
    settings: Settings | None = None,
    load: Load = load_predictor,
    *,
    gate: Gate | None = None,
    decoding: DecodePool | None = None,
) -> FastAPI:
    """Build the application.

    For tests to replace: `load`, `gate` (which addresses images may come from) and `decoding` (workers to share).

    The model is loaded once the event loop runs; until then `/healthz` says 200 and `/readyz` 503.
    """
    keep_forms_in_memory()
    settings = settings or load_settings()
    metrics = Metrics()
    store = open_configured(settings)
    reviews = open_reviews(settings, metrics.reviews, store)
    pipeline = Pipeline(settings, metrics, reviews=reviews, gate=gate, decoding=decoding)
    tracing = configured_tracing()
    lifecycle = Lifecycle(settings, pipeline, load, store=store, tracing=tracing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lifecycle.start()
        try:
            yield
        finally:
            await lifecycle.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="CMA-CLIP attribute service",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        docs_url=None,  # both load from another host; `pages` has one that works offline
        redoc_url=None,
        redirect_slashes=False,
    )
    dependencies.provide(app, lifecycle, pipeline)
    review = review_routes.review_routes, review_routes.decision_routes
    for router in (routes.json_routes, routes.form_routes, routes.model_routes, *review):
        app.include_router(router, dependencies=auth.KEY_SCHEMES if settings.api_keys else [])
    if settings.store is not None:
        from service.http.jobs import job_routes  # noqa: PLC0415 - SQLAlchemy takes time to import

        app.include_router(job_routes, dependencies=auth.KEY_SCHEMES if settings.api_keys else [])
    else:
        app.include_router(routes.without_store)
    app.include_router(routes.open_routes)
    pages.add_to(app, store=store is not None)
    for error_class in (ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(error_class, _answer_with_problem)
    app.add_middleware(Observed, metrics=pipeline.metrics.requests, tracing=tracing)
    return app


async def _answer_with_problem(request: Request, error: Exception) -> Response:
    failure = as_service_error(error)
    record = record_of(request)
    record.code = failure.code
    pipeline = await dependencies.get_pipeline(request)
    pipeline.metrics.requests.rejected(failure.code)
    response = problem_response(failure, record.id)
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)  # Allow, with 405
    return response
