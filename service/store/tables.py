"""The schema of the store, in one file; `migrations/versions` creates it, and a test compares the two.

Times are seconds since 1970 in UTC, on the database's clock (`service.store.database.now`), since those of replicas may
differ. What is kept as JSON is read whole and never searched.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

# Names for all constraints, so that a migration can drop any of them on either database.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(column_0_label)s",
    }
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(64), nullable=False),  # hexadecimal
)
"""Made once by the store, shared by its replicas, and never shown."""

removals = Table(
    "removals",
    metadata,
    Column("path", String(256), primary_key=True),
    Column("due", Double, nullable=False, index=True),
)
"""Folders of files that are to be removed, and when: `service.store.removals`."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("key", String(64), nullable=False),  # the API key's name; empty where there are no keys
    Column("idempotency_key", String(256)),
    Column("fingerprint", String(64), nullable=False),  # of all that was sent
    Column("status", String(16), nullable=False),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("served", Double, nullable=False),  # when a shard of it was last taken: the job that waited longest is next
    Column("version", String(64), nullable=False),  # the pin: version, engine, dtype and calibration
    Column("engine", String(32), nullable=False),
    Column("dtype", String(32), nullable=False),
    Column("calibration", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("attributes", JSON, nullable=False),
    Column("separators", JSON, nullable=False),  # of the multi-valued ones among them
    Column("target_precision", Double, nullable=False),
    Column("report", JSON, nullable=False),  # how the table was read, and what is wrong with which rows
    Column("rows", Integer, nullable=False),
    Column("rows_done", Integer, nullable=False),
    Column("rows_failed", Integer, nullable=False),
    Column("shards", Integer, nullable=False),
    Column("shards_done", Integer, nullable=False),
    Column("error", Text),
    Column("callback_url", Text),
    Column("callback_attempts", Integer, nullable=False),
    Column("callback_due", Double, index=True),  # null: nothing more is to be sent
    Column("callback_outcome", Text),
    Unique("key", "idempotency_key"),
    Index("ix_jobs_key_created", "key", "created"),
    Index("ix_jobs_status_served", "status", "served"),
)

shards = Table(
    "shards",
    metadata,
    Column("job", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("token", Integer, nullable=False),  # grows with each lease: only the newest may record a result
    Column("leased_until", Double, nullable=False),
    Column("result", String(256)),  # the file with its rows; null until it is done
)
