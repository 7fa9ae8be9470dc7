"""What the database knows of jobs: functions of one transaction each, for `Database.run`.

Transactions that touch a shard and its job lock them in this order, so that none waits for another in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, case, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.store import removals
from service.store.database import now
from service.store.tables import jobs, shards

QUEUED, RUNNING, DONE, FAILED, CANCELLED = STATUSES = ("queued", "running", "done", "failed", "cancelled")

OPEN = (QUEUED, RUNNING)

MOST_LEASES = 100
"""A shard that so many replicas have died of, or failed on, ends its job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a job is computed by, from its first row to its last."""

    version: str
    engine: str
    dtype: str
    calibration: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A shard that this replica computes for a while; `token` tells its lease from all others."""

    job: str
    place: int
    token: int
    rows: int
    batch: int
    attributes: tuple[str, ...]
    separators: Mapping[str, str]
    target_precision: float


SETTLED_SECONDS = 60.0
"""After that long nobody computes a job any more that has ended: a replica learns of it when it extends its lease."""

Job = dict[str, Any]
"""A row of the table of jobs, and the time at which it was read (`now`)."""


def folder_of(job: str) -> str:
    """Return the folder of a job's files."""
    return f"jobs/{job}"


def shards_of(job: str) -> str:
    """Return the folder of what was handed in, removed when the job ends."""
    return f"jobs/{job}/shards"


# --- handing in, looking, ending ---------------------------------------------------------------------------


def find(connection: Connection, key: str, *, job: str | None = None, idempotency_key: str | None = None) -> Job | None:
    """Return a job of a key's own, by its id or the key it was handed in with; None where there is none."""
    wanted = jobs.c.id == job if job is not None else jobs.c.idempotency_key == idempotency_key
    query = select(jobs, now().label("now")).where(jobs.c.key == key, wanted)
    found = connection.execute(query).mappings().one_or_none()
    return None if found is None else dict(found)


def page(connection: Connection, key: str, *, limit: int) -> list[Job]:
    """Return a key's newest jobs."""
    query = select(jobs, now().label("now")).where(jobs.c.key == key).order_by(jobs.c.created.desc()).limit(limit)
    return [dict(found) for found in connection.execute(query).mappings()]


def count_open(connection: Connection, key: str) -> int:
    """Return how many jobs of a key have not ended."""
    query = select(func.count()).select_from(jobs).where(jobs.c.key == key, jobs.c.status.in_(OPEN))
    return connection.scalar(query) or 0


def counts(connection: Connection) -> dict[str, int]:
    """Return the number of jobs of each status."""
    found = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
    return dict.fromkeys(STATUSES, 0) | {str(row[0]): int(row[1]) for row in found}


def accept(connection: Connection, values: Mapping[str, Any], pin: Pin, rows: Sequence[int]) -> bool:
    """Accept a job whose files are written; `rows`: of each shard.

    Returns False where its idempotency key is taken, or its files were given up meanwhile; then nothing is changed.
    """
    if not removals.keep(connection, folder_of(values["id"])):
        return False
    zero = dict.fromkeys(("rows_done", "rows_failed", "shards_done", "callback_attempts"), 0)
    row = {**values, **asdict(pin), **zero, "status": QUEUED, "created": now(), "served": 0.0, "rows": sum(rows)}
    savepoint = connection.begin_nested()
    try:
        connection.execute(insert(jobs).values(**row, shards=len(rows)))
    except IntegrityError:
        savepoint.rollback()
        removals.remove(connection, folder_of(values["id"]))
        return False
    parts = [
        {"job": values["id"], "place": place, "rows": count, "token": 0, "leased_until": 0.0}
        for place, count in enumerate(rows)
    ]
    connection.execute(insert(shards), parts)
    return True


def cancel_or_delete(connection: Connection, key: str, job: str) -> bool:
    """Cancel a job that has not ended, and delete one that has; False where the key has no such job."""
    if (found := find(connection, key, job=job)) is None:
        return False
    connection.execute(delete(shards).where(shards.c.job == job))
    ended = update(jobs).where(jobs.c.id == job, jobs.c.status.in_(OPEN))
    if connection.execute(ended.values(status=CANCELLED, **_end())).rowcount == 0:
        connection.execute(delete(jobs).where(jobs.c.id == found["id"]))
    removals.remove(connection, folder_of(job), after=SETTLED_SECONDS)
    return True


def purge(connection: Connection, *, older_than: float) -> int:
    """Delete the jobs that ended longer ago than these seconds, and return their number."""
    old = select(jobs.c.id).where(jobs.c.finished < now() - older_than)
    found = connection.scalars(old).all()
    for job in found:
        delete_any(connection, job)
    return len(found)


def delete_any(connection: Connection, job: str) -> bool:
    """Delete a job of any key, ended or not; False where there is none."""
    connection.execute(delete(shards).where(shards.c.job == job))
    ended = connection.scalar(select(jobs.c.finished < now() - SETTLED_SECONDS).where(jobs.c.id == job))
    if connection.execute(delete(jobs).where(jobs.c.id == job)).rowcount == 0:
        return False
    removals.remove(connection, folder_of(job), after=0.0 if ended else SETTLED_SECONDS)
    return True


def all_ids(connection: Connection) -> Sequence[str]:
    """Return the ids of all jobs."""
    return connection.scalars(select(jobs.c.id)).all()


def results(connection: Connection, job: str) -> Sequence[str]:
    """Return the files of a job's results, in order."""
    return connection.scalars(select(shards.c.result).where(shards.c.job == job).order_by(shards.c.place)).all()


# --- computing ---------------------------------------------------------------------------------------------


def lease(connection: Connection, pin: Pin, *, seconds: float) -> Lease | None:
    """Take a shard that nobody computes, of the job that has waited longest since one of it was taken."""
    query = (
        select(shards, jobs.c.batch, jobs.c.attributes, jobs.c.separators, jobs.c.target_precision)
        .join(jobs, jobs.c.id == shards.c.job)
        .where(*(jobs.c[name] == value for name, value in asdict(pin).items()))
        .where(jobs.c.status.in_(OPEN), shards.c.result.is_(None), shards.c.leased_until < now())
        .order_by(jobs.c.served, jobs.c.created, shards.c.place)
        .limit(1)
        .with_for_update(of=shards, skip_locked=True)
    )
    found = connection.execute(query).mappings().one_or_none()
    if found is None:
        return None
    if found["token"] >= MOST_LEASES:
        earlier = select(func.coalesce(func.sum(shards.c.rows), 0)).where(
            shards.c.job == found["job"], shards.c.place < found["place"]
        )
        before = connection.execute(earlier).scalar_one()
        reason = f"rows {before + 1:,} to {before + found['rows']:,} could not be computed"
        _fail(connection, found["job"], reason)
        return None
    token = found["token"] + 1
    own = (shards.c.job == found["job"], shards.c.place == found["place"])
    connection.execute(update(shards).where(*own).values(token=token, leased_until=now() + seconds))
    started = update(jobs).where(jobs.c.id == found["job"], jobs.c.status.in_(OPEN))
    connection.execute(started.values(status=RUNNING, served=now(), started=func.coalesce(jobs.c.started, now())))
    return Lease(
        job=found["job"],
        place=found["place"],
        token=token,
        rows=found["rows"],
        batch=found["batch"],
        attributes=tuple(found["attributes"]),
        separators=found["separators"],
        target_precision=found["target_precision"],
    )


def extend(connection: Connection, lease: Lease, *, seconds: float) -> bool:
    """Say that a replica still computes; False where its lease is over: another has it, or the job was cancelled."""
    return _change(connection, lease, leased_until=now() + seconds)


def give_back(connection: Connection, lease: Lease, *, after: float = 0.0) -> None:
    """Let another replica compute the shard, after some seconds."""
    _change(connection, lease, leased_until=now() + after)


def finish(connection: Connection, lease: Lease, *, result: str, failed: int) -> bool:
    """Record a shard's result, and with the last one the end of the job; False where the lease is over.

    True as well where it is recorded already: the database may have gone after it had committed, and before it said so.
    """
    if not _change(connection, lease, result=result):
        recorded = select(shards.c.result).where(shards.c.job == lease.job, shards.c.place == lease.place)
        return connection.scalar(recorded) == result
    job = update(jobs).where(jobs.c.id == lease.job)
    connection.execute(
        job.values(
            rows_done=jobs.c.rows_done + lease.rows,
            rows_failed=jobs.c.rows_failed + failed,
            shards_done=jobs.c.shards_done + 1,
        )
    )
    last = job.where(jobs.c.shards_done == jobs.c.shards)
    if connection.execute(last.values(status=DONE, **_end())).rowcount:
        removals.remove(connection, shards_of(lease.job), after=SETTLED_SECONDS)
    return True


def _change(connection: Connection, lease: Lease, **values: Any) -> bool:
    """Change a shard while its lease is the newest and it has no result."""
    own = (shards.c.job == lease.job, shards.c.place == lease.place, shards.c.token == lease.token)
    return connection.execute(update(shards).where(*own, shards.c.result.is_(None)).values(**values)).rowcount == 1


def _fail(connection: Connection, job: str, reason: str) -> None:
    connection.execute(delete(shards).where(shards.c.job == job))
    ended = update(jobs).where(jobs.c.id == job)
    connection.execute(ended.values(status=FAILED, error=reason, **_end()))
    removals.remove(connection, folder_of(job), after=SETTLED_SECONDS)


def _end() -> dict[str, Any]:
    """What changes at the end of each job, however it ends: its callback is due, where one is wanted."""
    return {"finished": now(), "callback_due": case((jobs.c.callback_url.is_not(None), now()), else_=None)}
