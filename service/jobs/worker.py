"""Computes shards of jobs, a few at a time, behind the callers: one for each replica.

A shard's listings pass through the same pipeline as a caller's, in the batcher's second lane. While they do, the lease
is extended; where it is lost, the work is dropped. The result is written under a name of this lease's own, and counts
once the database has recorded it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
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
from service.observability.tracing import Tracing
from service.pipeline.admission import Admission, Deadline
from service.pipeline.call import Call
from service.pipeline.options import CheckedOptions
from service.pipeline.pipeline import Pipeline
from service.pipeline.together import Place, Together
from service.schemas import ListingInput
from service.store.store import Store

log = logging.getLogger(__name__)

SHARDS = 2
"""Shards computed at once: while one is being read or written, the other keeps the device busy."""

CPU_BATCH = 16
"""Rows that a CPU computes together, on which it is nearly as fast as with more, and callers wait for no longer."""

BATCHES = 4
"""Under way at once: one that is computed, one that is next, and those that are being loaded."""

LOADING = 16
"""Listings whose images are fetched or decoded at once."""

KEPT_BYTES = 64 * 2**20
"""Of images as they came, for as long as their listings wait for the device: people may be asked about them. Those of
one batch come on top."""

POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Leases:
    """How long a lease lasts, and how long a shard that failed is left alone, in seconds."""

    seconds: float = 30.0
    rest: float = 5.0


class Room:
    """Bytes that listings hold; a listing waits for as long as there are too few.

    Listings of a batch wait for each other. So those of the oldest batch never wait here.
    """

    def __init__(self, nbytes: int) -> None:
        self._free = nbytes
        self._batches: list[int] = []
        self._begun = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[int]:
        """Begin a batch; yields its number."""
        self._begun += 1
        number = self._begun
        self._batches.append(number)
        try:
            yield number
        finally:
            self._batches.remove(number)
            await self.give(0)

    @asynccontextmanager
    async def held(self, nbytes: int, batch: int) -> AsyncIterator[Held]:
        """Hold so many for a listing of a batch."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= nbytes or self._batches[0] == batch)
            self._free -= nbytes
        held = Held(self, nbytes)
        try:
            yield held
        finally:
            await held.shrink(0)

    async def give(self, nbytes: int) -> None:
        """Give some back, and let others look."""
        self._free += nbytes
        async with self._changed:
            self._changed.notify_all()


class Held:
    """What a listing holds."""

    def __init__(self, room: Room, nbytes: int) -> None:
        self._room, self._nbytes = room, nbytes

    async def shrink(self, nbytes: int) -> None:
        """Hold no more than that any longer."""
        more, self._nbytes = self._nbytes - nbytes, nbytes
        await self._room.give(more)


@dataclass(frozen=True, slots=True)
class _Listing:
    """A row that is computed, and where: number of its batch, and its place in that."""

    row: ShardRow
    shard: ShardReader
    lease: Lease
    batch: int
    place: Place


class Worker:
    """Takes leases and computes shards until it is cancelled."""

    def __init__(
        self, store: Store, pipeline: Pipeline, metrics: JobMetrics, leases: Leases, tracing: Tracing | None
    ) -> None:
        self._store, self._pipeline, self._metrics, self._leases = store, pipeline, metrics, leases
        self._tracing = tracing
        self.wake = asyncio.Event()
        """Set when there may be something to do."""
        self._loading = asyncio.Semaphore(LOADING)
        self._kept = Room(KEPT_BYTES)
        self._batches = asyncio.Semaphore(BATCHES)
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

    @property
    def batch(self) -> int:
        """How many rows of a job that is handed in here are computed together."""
        most = self._pipeline.settings.max_batch_size
        return min(most, CPU_BATCH) if self._pipeline.predictor.info.device == "cpu" else most

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
        computing = asyncio.create_task(self._traced(lease))
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

    async def _traced(self, lease: Lease) -> None:
        with self._tracing.shard(lease.job, lease.place, lease.rows) if self._tracing else nullcontext():
            await self._compute(lease)

    async def _compute(self, lease: Lease) -> None:
        files = self._store.files
        data = await asyncio.to_thread(files.read_bytes, f"{queue.shards_of(lease.job)}/{lease.place:06}.zip")
        shard = await asyncio.to_thread(ShardReader, data)
        maker = RowMaker(names=lease.attributes, separators=lease.separators, target_precision=lease.target_precision)
        listed = list(shard.rows())
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._computed(listed[first : first + lease.batch], shard, maker, lease))
                for first in range(0, len(listed), lease.batch)
            ]
        rows = [row for task in tasks for row in task.result()]
        failed = sum(bool(row[-1]) for row in rows)
        path = f"{queue.folder_of(lease.job)}/results/{lease.place:06}-{lease.token}.jsonl"
        await asyncio.to_thread(files.write_bytes, path, packed(rows))
        if await self._until_reached(lambda: self._store.database.run(queue.finish, lease, result=path, failed=failed)):
            self._metrics.computed(done=len(rows) - failed, failed=failed)
        else:  # the folder may be gone already
            await asyncio.to_thread(files.remove, path)

    async def _until_reached(self, step: Callable[[], Awaitable[bool]]) -> bool:
        """Try until the database answers: the work is done, and only has to be recorded."""
        while True:
            try:
                return await step()
            except Unavailable:
                await asyncio.sleep(POLL_SECONDS)

    async def _computed(
        self, rows: Sequence[ShardRow], shard: ShardReader, maker: RowMaker, lease: Lease
    ) -> list[OutputRow]:
        """Compute some rows in one batch, which is the same whichever replica does, and however often."""
        together = Together(len(rows), self._pipeline.inference.infer_together)
        async with self._batches, self._kept.batch() as batch, asyncio.TaskGroup() as group:
            listings = [_Listing(row, shard, lease, batch, together.place(at)) for at, row in enumerate(rows)]
            tasks = [group.create_task(self._row(listing, maker)) for listing in listings]
            group.create_task(together.run())
        return [task.result() for task in tasks]

    async def _row(self, listing: _Listing, maker: RowMaker) -> OutputRow:
        row = listing.row
        try:
            if row.error is not None:
                return maker.row(row.id, Failure(row.error))
            while True:
                try:
                    return maker.row(row.id, await self._predict(listing))
                except Unavailable as error:  # no fault of this listing's
                    await asyncio.sleep(min(1.0, error.retry_after or 1.0))
                except ServiceError as error:
                    return maker.row(row.id, Failure(error.detail))
        finally:
            listing.place.leave()

    async def _predict(self, listing: _Listing) -> Prediction:
        """Answer from the first image that can be read. Raises the first one's `ServiceError`."""
        failure: ServiceError | None = None
        with self._room.admit(Deadline(math.inf)) as ticket:
            call = Call(Deadline(math.inf), ticket, RequestRecord(listing.lease.job), place=listing.place)
            for name in listing.row.images or (None,):
                found = await self._answer(listing, name, call)
                if not isinstance(found, ServiceError):
                    return found
                failure = failure or found
        raise failure or AssertionError("a row has an image, or none is wanted")

    async def _answer(self, listing: _Listing, name: str | None, call: Call) -> Prediction | ServiceError:
        """Answer from an image, or return what is wrong with it."""
        row, lease, shard = listing.row, listing.lease, listing.shard
        remote = name is not None and is_url(name)
        size = self._pipeline.settings.max_image_bytes if remote else 0 if name is None else shard.size_of(name)
        async with self._kept.held(size, listing.batch) as held:
            try:
                async with self._loading:
                    fetched = await self._pipeline.fetch(name, call) if name is not None and remote else None
                    image = shard.image(name) if name is not None and not remote else None
                    await held.shrink(len(fetched or image or b""))
                    sent = ListingInput(id=row.id, title=row.title, image=image, url=None)
                    async with self._decoding:
                        prepared = await self._pipeline.prepare(sent, fetched, explain=False, call=call)
            except Unavailable:
                raise
            except ServiceError as error:
                return error
            options = CheckedOptions(
                attributes=lease.attributes, target_precision=lease.target_precision, top_k=1, explain=False
            )
            return (await self._pipeline.answer(sent, fetched, prepared, options, call)).prediction
