"""What FastAPI hands to the routes: the life cycle, the pipeline, and the call that was admitted.

All are coroutine functions, since FastAPI would run plain functions in a thread.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request

from service.http.body import AdmittedRequest
from service.lifecycle import Lifecycle
from service.pipeline.call import Call
from service.pipeline.pipeline import Pipeline


def provide(app: FastAPI, lifecycle: Lifecycle, pipeline: Pipeline) -> None:
    """Make both available to the app's routes."""
    app.state.lifecycle, app.state.pipeline = lifecycle, pipeline


async def get_lifecycle(request: Request) -> Lifecycle:
    lifecycle: Lifecycle = request.app.state.lifecycle
    return lifecycle


async def get_pipeline(request: Request) -> Pipeline:
    pipeline: Pipeline = request.app.state.pipeline
    return pipeline


async def get_call(request: AdmittedRequest) -> Call:
    """For the routes of `service.http.route_classes`, which make an `AdmittedRequest` of each request."""
    return request.call


LifecycleDep = Annotated[Lifecycle, Depends(get_lifecycle)]

PipelineDep = Annotated[Pipeline, Depends(get_pipeline)]

CallDep = Annotated[Call, Depends(get_call)]
