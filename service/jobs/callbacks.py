"""Tells the ends of jobs to whoever asked for it: signed, at least once, by whichever replica is there.

What ends a job notes in the same transaction that its callback is due. A replica takes it for a while, as it takes
shards; if it dies meanwhile, another one sends it again. So a receiver may be told twice, and never before the end is
recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from service.errors import ServiceError, Unavailable
from service.jobs.queue import Job
from service.pipeline.pipeline import Pipeline
from service.schemas import JobReply
from service.store.database import now
from service.store.store import Store
from service.store.tables import jobs

log = logging.getLogger(__name__)

TIMESTAMP, SIGNATURE = "X-CMA-CLIP-Timestamp", "X-CMA-CLIP-Signature"

AT_ONCE = 4
"""Callbacks that a replica sends at the same time: one receiver that is slow doesn't keep the others waiting."""

POLL_SECONDS = 1.0

TAKEN_SECONDS = 30.0
"""How long a replica has for sending one, which itself takes a few seconds at most."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When a callback that failed is sent again, in seconds: the first wait doubles up to the longest."""

    first: float = 10.0
    longest: float = 3600.0
    give_up: float = 86_400.0
    """Since the job's end."""

    def wait(self, attempts: int) -> float:
        """Return how long to wait after so many attempts."""
        return min(self.longest, self.first * 2.0 ** min(attempts - 1, 32))


# --- in the database ---------------------------------------------------------------------------------------


def take(connection: Connection, *, count: int, seconds: float) -> Sequence[Job]:
    """Take callbacks that are due, for some seconds: after that they are due again, unless one is recorded."""
    query = (
        select(jobs, now().label("now"))
        .where(jobs.c.callback_due <= now())
        .order_by(jobs.c.callback_due)
        .limit(count)
        .with_for_update(skip_locked=True)
    )
    found = [dict(row) for row in connection.execute(query).mappings()]
    for job in found:
        job["callback_attempts"] += 1
        taken = update(jobs).where(jobs.c.id == job["id"])
        connection.execute(taken.values(callback_due=now() + seconds, callback_attempts=job["callback_attempts"]))
    return found


def record(connection: Connection, job: Job, *, error: str | None, patience: Patience) -> None:
    """Record how an attempt went, unless another has begun since; error: what was wrong, None where it was taken in."""
    own = update(jobs).where(jobs.c.id == job["id"], jobs.c.callback_attempts == job["callback_attempts"])
    if error is None:
        connection.execute(own.values(callback_due=None, callback_delivered=now(), callback_error=None))
        return
    over = job["now"] - job["finished"] >= patience.give_up
    due = None if over else now() + patience.wait(job["callback_attempts"])
    connection.execute(own.values(callback_due=due, callback_error=error))


# --- sending -----------------------------------------------------------------------------------------------


def signed(secret: str, body: bytes, timestamp: int) -> dict[str, str]:
    """Return the headers that say when a body was sent and that it is ours.

    The signature is the HMAC-SHA256 of `{timestamp}.{body}`, in hexadecimal digits after `v1=`.
    """
    digest = hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()
    return {TIMESTAMP: str(timestamp), SIGNATURE: f"v1={digest}"}


class Callbacks:
    """Sends callbacks until it is cancelled."""

    def __init__(self, store: Store, pipeline: Pipeline, secret: str, patience: Patience | None = None) -> None:
        self._store, self._pipeline, self._secret = store, pipeline, secret
        self._patience = patience or Patience()

    async def run(self) -> None:
        """Look for callbacks that are due, and send them."""
        while True:
            try:
                due = await self._store.database.run(take, count=AT_ONCE, seconds=TAKEN_SECONDS)
                await asyncio.gather(*map(self._send, due))
            except Unavailable as error:
                log.warning("callbacks wait: %s", error.detail)
                due = []
            if len(due) < AT_ONCE:
                await asyncio.sleep(POLL_SECONDS)

    async def _send(self, job: Job) -> None:
        error = await self._attempt(job)
        if error is not None:
            # The URL may hold what is nobody's business.
            fields = {"job": job["id"], "attempt": job["callback_attempts"]}
            log.warning("a callback was not taken in: %s", error, extra={"fields": fields})
        try:
            await self._store.database.run(record, job, error=error, patience=self._patience)
        except Unavailable as lost:  # then it is due again once its time is over
            log.warning("how a callback went is not recorded: %s", lost.detail)

    async def _attempt(self, job: Job) -> str | None:
        """Send a callback; return what went wrong."""
        body = JobReply.of(job).model_dump_json(exclude={"callback"}).encode()
        headers = signed(self._secret, body, int(time.time())) | {"Content-Type": "application/json"}
        try:
            status = await self._pipeline.post(job["callback_url"], body, headers)
        except ServiceError as error:
            return error.detail
        return None if 200 <= status < 300 else f"the host answered with status {status}"
