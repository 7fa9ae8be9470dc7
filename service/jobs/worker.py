"""Computes shards of jobs, a few at a time, behind the callers: one for each replica.

A shard's listings pass through the same pipeline as a caller's, in the batcher's second lane. While they do, the lease
is extended; where it is lost, the work is dropped. The result is written under a name of this lease's own, and counts
once the database has recorded it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from model.catalogue.image_store import is_url
from model.inference.bulk import RowMaker
from model.inference.output import OutputRow
from model.inference.predictions import Prediction
from model.inference.stream import Failure
from service.errors import ServiceError, Unavailable
from service.jobs import queue
from service.jobs.queue import Lease, Pin
from service.jobs.results import packed
from service.jobs.shards import ShardReader, ShardRow
from service.observability.metrics import JobMetrics
from service.observability.request_log import RequestRecord
from service.pipeline.admission import Admission, Deadline
from service.pipeline.call import Call
from service.pipeline.options import CheckedOptions
from service.pipeline.pipeline import Pipeline
from service.scheduling.batcher import Lane
from service.schemas import ListingInput
from service.store.store import Store

log = logging.getLogger(__name__)

SHARDS = 2
"""Shards computed at once: while one is being read or written, the other keeps the device busy."""

LOADING = 16
"""Listings whose images are fetched or decoded at once."""

KEPT_BYTES = 64 * 2**20
"""Of images as they came, for as long as their listings wait for the device: people may be asked about them."""

POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Leases:
    """How long a lease lasts, and how long a shard that failed is left alone, in seconds."""

    seconds: float = 30.0
    rest: float = 5.0


class Room:
    """Bytes that listings hold; a listing waits for as long as there are too few."""

    def __init__(self, nbytes: int) -> None:
        self._free = self._all = nbytes
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def held(self, nbytes: int) -> AsyncIterator[None]:
        """Hold so many, or all of them where they are fewer."""
        taken = min(nbytes, self._all)
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            self._free += taken
            async with self._changed:
                self._changed.notify_all()


class Worker:
    """Takes leases and computes shards until it is cancelled."""

    def __init__(self, store: Store, pipeline: Pipeline, metrics: JobMetrics, leases: Leases) -> None:
        self._store, self._pipeline, self._metrics, self._leases = store, pipeline, metrics, leases
        self.wake = asyncio.Event()
        """Set when there may be something to do."""
        settings = pipeline.settings
        self._loading = asyncio.Semaphore(LOADING)
        self._kept = Room(KEPT_BYTES)
        self._in_flight = asyncio.Semaphore(2 * settings.max_batch_size + LOADING)
        # A worker less than there are: callers' images find one.
        self._decoding = asyncio.Semaphore(max(1, pipeline.decoding.workers - 1))
        self._room = Admission(  # never refuses: the semaphores above are what bounds jobs
            max_listings=2**60,
            max_bytes=2**60,
            expected_seconds=lambda listings: 0.0,
            estimate_age=lambda listings: 0.0,
        )

    @property
    def pin(self) -> Pin:
        """What this replica computes with."""
        info = self._pipeline.predictor.info
        return Pin(version=info.version, engine=info.engine, dtype=info.dtype, calibration=info.calibration)

    async def run(self) -> None:
        """Compute shards as they come, `SHARDS` at a time; when cancelled, leave them to others at once."""
        async with asyncio.TaskGroup() as group:
            for _ in range(SHARDS):
                group.create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                lease = await self._store.database.run(queue.lease, self.pin, seconds=self._leases.seconds)
                if lease is not None:
                    await self._work(lease)
                    continue
            except Unavailable as error:
                log.warning("jobs wait: %s", error.detail)
            self.wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), POLL_SECONDS)

    async def _work(self, lease: Lease) -> None:
        """Compute a shard for as long as the lease can be extended; give it back where that fails."""
        computing = asyncio.create_task(self._compute(lease))
        try:
            while not computing.done():
                await asyncio.wait([computing], timeout=self._leases.seconds / 3)
                if not computing.done() and not await self._extend(lease):
                    return
            computing.result()
        except asyncio.CancelledError:
            await self._give_back(lease, after=0.0)
            raise
        except Exception:
            log.exception("a shard has failed", extra={"fields": {"job": lease.job, "shard": lease.place}})
            await self._give_back(lease, after=self._leases.rest)
        finally:
            computing.cancel()
            await asyncio.gather(computing, return_exceptions=True)

    async def _extend(self, lease: Lease) -> bool:
        try:
            return await self._store.database.run(queue.extend, lease, seconds=self._leases.seconds)
        except Unavailable:
            return True  # nobody else can take it meanwhile; if somebody has, the result will not be recorded

    async def _give_back(self, lease: Lease, *, after: float) -> None:
        with suppress(Unavailable):  # then it is taken over once the lease has run out
            await self._store.database.run(queue.give_back, lease, after=after)

    async def _compute(self, lease: Lease) -> None:
        files = self._store.files
        data = await asyncio.to_thread(files.read_bytes, f"{queue.shards_of(lease.job)}/{lease.place:06}.zip")
        shard = await asyncio.to_thread(ShardReader, data)
        names = RowMaker(names=lease.attributes, separators=lease.separators, target_precision=lease.target_precision)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._row(row, shard, names, lease)) for row in shard.rows()]
        rows = [task.result() for task in tasks]
        failed = sum(bool(row[-1]) for row in rows)
        path = f"{queue.folder_of(lease.job)}/results/{lease.place:06}-{lease.token}.jsonl"
        await asyncio.to_thread(files.write_bytes, path, packed(rows))
        if await self._until_reached(lambda: self._store.database.run(queue.finish, lease, result=path, failed=failed)):
            self._metrics.computed(done=len(rows) - failed, failed=failed)

    async def _until_reached(self, step: Callable[[], Awaitable[bool]]) -> bool:
        """Try until the database answers: the work is done, and only has to be recorded."""
        while True:
            try:
                return await step()
            except Unavailable:
                await asyncio.sleep(POLL_SECONDS)

    async def _row(self, row: ShardRow, shard: ShardReader, maker: RowMaker, lease: Lease) -> OutputRow:
        if row.error is not None:
            return maker.row(row.id, Failure(row.error))
        async with self._in_flight:
            while True:
                try:
                    prediction = await self._predict(row, shard, lease)
                except Unavailable as error:  # no fault of this listing's
                    await asyncio.sleep(min(1.0, error.retry_after or 1.0))
                except ServiceError as error:
                    return maker.row(row.id, Failure(error.detail))
                else:
                    return maker.row(row.id, prediction)

    async def _predict(self, row: ShardRow, shard: ShardReader, lease: Lease) -> Prediction:
        """Answer from the first image that can be read. Raises the first one's `ServiceError`."""
        failure: ServiceError | None = None
        with self._room.admit(Deadline(math.inf)) as ticket:
            call = Call(Deadline(math.inf), ticket, RequestRecord(lease.job), lane=Lane.JOBS)
            for name in row.images or (None,):
                found = await self._answer(row, name, shard, lease, call)
                if not isinstance(found, ServiceError):
                    return found
                failure = failure or found
        raise failure or AssertionError("a row has an image, or none is wanted")

    async def _answer(
        self, row: ShardRow, name: str | None, shard: ShardReader, lease: Lease, call: Call
    ) -> Prediction | ServiceError:
        """Answer from an image, or return what is wrong with it."""
        async with AsyncExitStack() as stack:
            try:
                async with self._loading:
                    fetched = await self._pipeline.fetch(name, call) if name is not None and is_url(name) else None
                    image = shard.image(name) if name is not None and fetched is None else None
                    await stack.enter_async_context(self._kept.held(len(fetched or image or b"")))
                    listing = ListingInput(id=row.id, title=row.title, image=image, url=None)
                    async with self._decoding:
                        prepared = await self._pipeline.prepare(listing, fetched, explain=False, call=call)
            except Unavailable:
                raise
            except ServiceError as error:
                return error
            options = CheckedOptions(
                attributes=lease.attributes, target_precision=lease.target_precision, top_k=1, explain=False
            )
            return (await self._pipeline.answer(listing, fetched, prepared, options, call)).prediction
