"""The routes of jobs; they are there where a store is configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from model.errors import ConfigError
from service.content_encoding import is_compressed
from service.errors import InvalidRequest, JobNotDone, UnsupportedMediaType
from service.http.auth import require_key
from service.http.body import declared_length
from service.http.dependencies import LifecycleDep, PipelineDep
from service.http.middleware import record_of
from service.http.openapi import problems
from service.http.upload import Form, read_form
from service.jobs.jobs import Jobs, Submission
from service.jobs.results import MEDIA_TYPES
from service.request_form import check_fields, split_names
from service.schemas import JobReply, JobsReply, Options

FIELDS = {"table", "images", "id", "title", "image", "attributes", "target_precision", "callback_url"}

TABLE_SUFFIXES_LENGTH = 16

SETTING = "CMA_CLIP_MAX_JOB_BYTES"

PIECE = 2**18

job_routes = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(require_key)])


async def get_jobs(lifecycle: LifecycleDep) -> Jobs:
    """The jobs of this replica. Raises `NotReady` until the store is open."""
    return lifecycle.jobs


JobsDep = Annotated[Jobs, Depends(get_jobs)]

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["table"],
                    "additionalProperties": False,
                    "properties": {
                        "table": {"type": "string", "format": "binary", "description": "CSV, JSON Lines, Parquet, …"},
                        "images": {"type": "string", "format": "binary", "description": "a zip of images"},
                        **{name: {"type": "string", "description": f"column of the {name}; default: {name}"}
                           for name in ("id", "title", "image")},
                        "attributes": {"type": "string", "description": "separated by commas; default: all"},
                        "target_precision": {"type": "string"},
                        "callback_url": {"type": "string", "description": "is sent the job once it has ended"},
                    },
                }
            }
        },
    }
}  # fmt: skip


@job_routes.post(
    "", status_code=202, response_model=JobReply, responses=problems(401, 408, 413, 415, 422, 429, 503),
    openapi_extra=FORM,
)  # fmt: skip
async def hand_in(request: Request, jobs: JobsDep, lifecycle: LifecycleDep, pipeline: PipelineDep) -> JobReply:
    """Hand in a table of listings. It is read at once; the reply says which rows are wrong."""
    lifecycle.check_ready()
    if is_compressed(request.headers.get("Content-Encoding", "")):
        raise UnsupportedMediaType("compressed bodies are not accepted: compress the table instead (.csv.gz)")
    limit = pipeline.settings.max_job_bytes
    declared_length(request, limit, setting=SETTING)
    with ExitStack() as stack:
        folder = stack.enter_context(jobs.store.files.scratch())
        form = await read_form(request, folder, files=("table", "images"), limit=limit, setting=SETTING)
        options = pipeline.check_options(_options(form))
        job = await jobs.submit(_submission(request, form, folder), options)
    record_of(request).job = job["id"]
    return JobReply.of(job)


@job_routes.get("", response_model=JobsReply, responses=problems(401, 422, 503))
async def list_jobs(request: Request, jobs: JobsDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> JobsReply:
    """The newest jobs of this key."""
    return JobsReply(jobs=[JobReply.of(job) for job in await jobs.page(_key(request), limit)])


@job_routes.get("/{job}", response_model=JobReply, responses=problems(401, 404, 422, 503))
async def get_job(request: Request, job: str, jobs: JobsDep) -> JobReply:
    """How far a job is."""
    return JobReply.of(await jobs.get(_key(request), job))


@job_routes.delete("/{job}", status_code=204, response_model=None, responses=problems(401, 404, 422, 503))
async def end_job(request: Request, job: str, jobs: JobsDep) -> None:
    """Cancel a job that has not ended; delete one that has, with its results."""
    await jobs.end(_key(request), job)


@job_routes.get(
    "/{job}/results",
    response_class=StreamingResponse,
    responses={200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}, **problems(401, 404, 409, 422, 503)},
)  # fmt: skip
async def get_results(
    request: Request, job: str, jobs: JobsDep, format: Literal["csv", "jsonl", "parquet"] = "csv"
) -> Response:
    """The rows of a job that is done, in the order of its table, with the columns of `cma-clip label`."""
    found = await jobs.get(_key(request), job)
    if found["status"] != "done":
        raise JobNotDone(f"the job is {found['status']}: there are results once it is done")
    stack = ExitStack()
    try:
        out = stack.enter_context(jobs.store.files.scratch()) / f"results.{format}"
        await jobs.write_results(found, format, out)
        file = stack.enter_context(out.open("rb"))
    except ConfigError as error:
        stack.close()
        raise InvalidRequest(str(error)) from None
    except BaseException:
        stack.close()
        raise
    headers = {
        "Content-Disposition": f'attachment; filename="{job}.{format}"',
        "Content-Length": str(out.stat().st_size),
    }
    return StreamingResponse(_pieces(file, stack), headers=headers, media_type=MEDIA_TYPES[format])


async def _pieces(file: IO[bytes], stack: ExitStack) -> AsyncIterator[bytes]:
    with stack:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


def _key(request: Request) -> str:
    return record_of(request).key or ""


def _options(form: Form) -> Options:
    try:
        check_fields(form.fields | form.names, FIELDS)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    names = split_names([form.fields.get("attributes", "")])
    target = form.fields.get("target_precision", "").strip()
    try:
        return Options(attributes=names, target_precision=float(target) if target else None, top_k=1, explain=False)
    except ValueError:
        raise InvalidRequest(f"target_precision is a number such as 0.95, not {target[:32]!r}") from None


def _submission(request: Request, form: Form, folder: Path) -> Submission:
    if "table" not in form.files:
        raise InvalidRequest("the form needs a file field `table` (in curl: -F table=@listings.csv)")
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (1 <= len(key) <= 256 and key.isprintable()):
        raise InvalidRequest("Idempotency-Key must have 1 to 256 printable characters")
    roles = ("id", "title", "image")
    # Its suffix says what the table is, where its content doesn't.
    suffixes = "".join(Path(form.names["table"].replace("\\", "/")).suffixes[-2:]).lower()
    known = suffixes if suffixes.replace(".", "").isalnum() and len(suffixes) <= TABLE_SUFFIXES_LENGTH else ""
    table = form.files["table"].rename(folder / f"table{known or '.csv'}")
    return Submission(
        key=_key(request),
        idempotency_key=key,
        fingerprint=form.digest,
        table=table,
        images=form.files.get("images"),
        columns={role: form.fields.get(role, "").strip() or role for role in roles},
        named=[role for role in roles if form.fields.get(role, "").strip()],
        callback_url=form.fields.get("callback_url", "").strip() or None,
    )
