"""Jobs of one replica: handed in, looked at, computed in the background, and cleared away in the end."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from model.inputs.pool import interpreter
from service.errors import InvalidRequest, NotFound, PayloadTooLarge, RateLimited, ServiceError, Unavailable
from service.jobs import queue, results
from service.jobs.callbacks import Callbacks
from service.jobs.queue import Job
from service.jobs.split import Outcome, Task
from service.jobs.worker import Leases, Worker
from service.observability.metrics import JobMetrics
from service.observability.tracing import Tracing
from service.pipeline.options import CheckedOptions
from service.pipeline.pipeline import Pipeline
from service.settings import DAY
from service.store import removals
from service.store.store import Store

log = logging.getLogger(__name__)

SPLIT_SECONDS = 900.0

SPLITTING = 2
"""Tables that are read at once: each may take a core, and gigabytes of memory. Others wait."""

MOST_OPEN = 100
"""Jobs of one key that have not ended: what they keep on the disk is bounded."""

TIDY_SECONDS = 10.0

REST_SECONDS = 5.0
"""After a bug."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What was handed in, its files in a folder of this machine."""

    key: str
    idempotency_key: str | None
    fingerprint: str
    table: Path
    images: Path | None
    columns: dict[str, str]
    named: list[str]
    callback_url: str | None = None


class Jobs:
    """All that routes and the life cycle need of jobs."""

    def __init__(self, store: Store, pipeline: Pipeline, metrics: JobMetrics, tracing: Tracing | None) -> None:
        """tracing: makes the spans of shards; None: they are not traced"""
        self.store, self._pipeline, self._metrics = store, pipeline, metrics
        self.worker = Worker(store, pipeline, metrics, Leases(), tracing)
        self._splitting = asyncio.Semaphore(SPLITTING)
        secret = pipeline.settings.callback_secret
        self._callbacks = Callbacks(store, pipeline, secret.get_secret_value()) if secret else None

    async def run(self) -> None:
        """Compute and tidy up until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_again_and_again(self.worker.run))
            group.create_task(_again_and_again(self._tidy))
            if self._callbacks is not None:
                group.create_task(_again_and_again(self._callbacks.run))

    async def _tidy(self) -> None:
        """Count jobs, delete those whose time is up, and remove files that nothing needs any more."""
        keep = self._pipeline.settings.keep_days * DAY
        while True:
            try:
                self._metrics.counted(await self.store.database.run(queue.counts))
                await self.store.database.run(queue.purge, older_than=keep)
                await self.store.database.in_thread(partial(removals.sweep, self.store.database, self.store.files))
                await asyncio.to_thread(self.store.files.sweep_scratch)
            except Unavailable as error:
                log.warning("the store is not tidied: %s", error.detail)
            except OSError as error:
                log.warning("files of the store cannot be removed: %s", error)
            await asyncio.sleep(TIDY_SECONDS)

    # ── handing in ──────────────────────────────────────────────────────────────────────────────────────────

    async def submit(self, sent: Submission, options: CheckedOptions) -> Job:
        """Accept a job: once this returns, it is in the store, whole. Returns the earlier job of an idempotency key.

        Raises `InvalidRequest`, `PayloadTooLarge`, `RateLimited` or `StoreUnavailable`.
        """
        if (earlier := await self._earlier(sent)) is not None:
            return earlier
        await self._check_callback(sent.callback_url)
        if await self.store.database.run(queue.count_open, sent.key) >= MOST_OPEN:
            raise RateLimited(f"{MOST_OPEN} jobs of this key have not ended", retry_after=60)
        job = uuid4().hex
        await self.store.database.run(removals.announce, queue.folder_of(job))
        try:
            outcome = await self._split(sent, job)
            accepted = await self.store.database.run(
                queue.accept, self._values(job, sent, options, outcome), self.worker.pin, outcome.shards
            )
        except ServiceError:
            with suppress(Unavailable):
                await self.store.database.run(removals.remove, queue.folder_of(job))
            raise
        if not accepted and (earlier := await self._earlier(sent)) is not None:
            return earlier
        self.worker.wake.set()
        return await self.get(sent.key, job)

    async def _earlier(self, sent: Submission) -> Job | None:
        if sent.idempotency_key is None:
            return None
        found = await self.store.database.run(queue.find, sent.key, idempotency_key=sent.idempotency_key)
        if found is not None and found["fingerprint"] != sent.fingerprint:
            raise InvalidRequest("this Idempotency-Key came with another job; take a new one for each job")
        return found

    async def _check_callback(self, url: str | None) -> None:
        """Raise `InvalidRequest` for a URL that may not be called, as far as can be told now."""
        if url is None:
            return
        if self._callbacks is None:
            raise InvalidRequest("callback_url: this service has no secret to sign with (CMA_CLIP_CALLBACK_SECRET)")
        try:
            await self._pipeline.check_url(url)
        except InvalidRequest as error:
            raise InvalidRequest(f"callback_url, which must be as image URLs are: {error.detail}") from None

    async def _split(self, sent: Submission, job: str) -> Outcome:
        settings = self._pipeline.settings
        task = Task(
            table=str(sent.table),
            images=str(sent.images) if sent.images else None,
            columns=sent.columns,
            named=sent.named,
            files=settings.files_of_store,
            folder=queue.shards_of(job),
            max_bytes=settings.max_job_bytes,
            max_image_bytes=settings.max_image_bytes,
        )
        async with self._splitting:
            outcome = await _in_process(task)
        if outcome.too_large:
            raise PayloadTooLarge(f"{outcome.error} (CMA_CLIP_MAX_JOB_BYTES)")
        if outcome.error is not None:
            raise InvalidRequest(outcome.error)
        return outcome

    def _values(self, job: str, sent: Submission, options: CheckedOptions, outcome: Outcome) -> dict[str, Any]:
        predictor = self._pipeline.predictor
        separators = {task.name: task.separator for task in predictor.tasks if task.separator is not None}
        return {
            "id": job,
            "key": sent.key,
            "idempotency_key": sent.idempotency_key,
            "fingerprint": sent.fingerprint,
            "batch": self.worker.batch,
            "model": predictor.info.name,
            "attributes": list(options.attributes),
            "separators": {name: each for name, each in separators.items() if name in options.attributes},
            "target_precision": options.target_precision,
            "callback_url": sent.callback_url,
            "report": {"form": outcome.form, "invalid": outcome.invalid, "problems": outcome.problems},
        }

    # ── looking and ending ──────────────────────────────────────────────────────────────────────────────────

    async def get(self, key: str, job: str) -> Job:
        """Return a key's own job. Raises `NotFound`."""
        found = await self.store.database.run(queue.find, key, job=job)
        if found is None:
            raise NotFound("there is no such job")
        return found

    async def page(self, key: str, limit: int) -> list[Job]:
        """Return a key's newest jobs."""
        return await self.store.database.run(queue.page, key, limit=limit)

    async def end(self, key: str, job: str) -> None:
        """Cancel a job that has not ended, delete one that has. Raises `NotFound`."""
        if not await self.store.database.run(queue.cancel_or_delete, key, job):
            raise NotFound("there is no such job")

    async def write_results(self, job: Job, form: str, out: Path) -> None:
        """Write the rows of a job that is done. Raises `ConfigError`."""
        paths = await self.store.database.run(queue.results, job["id"])
        files, attributes, separators = self.store.files, job["attributes"], job["separators"]
        await asyncio.to_thread(results.write, files, paths, out, form, attributes=attributes, separators=separators)


async def _again_and_again(work: Callable[[], Awaitable[None]]) -> None:
    """Do what never ends, and begin anew where a bug ended it: one job's trouble must not stop the others."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("jobs go on after an error")
            await asyncio.sleep(REST_SECONDS)


async def _in_process(task: Task) -> Outcome:
    """Split in a process whose memory and time are bounded."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.jobs.split"),
        executable=interpreter(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SPLIT_SECONDS):
            answer, _ = await process.communicate(json.dumps(asdict(task)).encode())
    except TimeoutError:
        return Outcome(error=f"reading the table takes more than {SPLIT_SECONDS:g} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        return Outcome(error="the table cannot be read within the memory that is set aside for it")
    return Outcome(**json.loads(answer))
