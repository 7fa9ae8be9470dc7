"""The schema of the store, in one file; `migrations/versions` creates it, and a test compares the two.

Times are seconds since 1970 in UTC, on the database's clock (`service.store.database.now`), since those of replicas may
differ. What is kept as JSON is read whole and never searched.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
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
    Column("batch", Integer, nullable=False),  # rows that are computed together, which their last digits depend on
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
    Column(
        "callback_due", Double, index=True
    ),  # null: there is none, or the job has not ended, or nothing more is sent
    Column("callback_attempts", Integer, nullable=False),
    Column("callback_delivered", Double),
    Column("callback_error", Text),  # of the last attempt
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

# --- reviews -----------------------------------------------------------------------------------------------

ROW_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself in a column of this type alone."""

review_starts = Table(
    "review_starts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("version", String(12), nullable=False),
    Column("engine", String(32), nullable=False),
    Column("calibration", String(12), nullable=False),
    Column("week", String(10), nullable=False),
    Unique("version", "engine", "calibration", "week"),
)
"""Where sequences of judgements start anew: with model, engine or calibration, and each week, named by its Monday."""

review_listings = Table(
    "review_listings",
    metadata,
    Column("listing", String(64), primary_key=True),
    Column("id", String(256)),
    Column("title", Text),
    Column("image", LargeBinary),
    Column("captured", Double, nullable=False),
)
"""What is judged: as `service.reviews.sampling.Draw.listing` calls it, the caller's own id, and what was sent."""

review_items = Table(
    "review_items",
    metadata,
    Column("item", ROW_ID, primary_key=True, autoincrement=True),
    Column("listing", String(64), ForeignKey("review_listings.listing"), nullable=False),
    Column("attribute", String(256), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("start", Integer, ForeignKey("review_starts.number"), nullable=False),
    Column("model", String(64), nullable=False),
    Column("place", Double, nullable=False),
    Column("situation", String(16), nullable=False),
    Column("label", Text, nullable=False),
    Column("confidence", Double, nullable=False),
    Column("abstention", String(32)),
    Column("accepted_at", Double),
    Column("candidates", JSON, nullable=False),
    Column("separator", Text),
    Column("labels", JSON, nullable=False),
    Column("captured", Double, nullable=False),
    Column("leased_to", String(160)),
    Column("leased_until", Double),
    Column("verdict", String(16)),
    Column("decision", JSON(none_as_null=True)),
    Column("decided", Double),
    Column("decided_by", String(160)),
    Unique("listing", "attribute", "kind", "model"),
    Index("ix_review_items_verdict_kind", "verdict", "kind", "start", "place"),
)
"""(listing, attribute) pairs that people are asked about. Their times are of the replicas' clocks, which need not be
right to the second. `place` orders those of a kind, the least first; `model` is version, engine and calibration in one,
by which a pair is asked once; `accepted_at` is the highest target that the label, or one of them, was accepted at.
Of a multi-valued attribute, `separator` is not null, and `labels` are pairs of an accepted label and the highest target
that it was accepted at. `decision` is the list of labels that people chose, empty where none fits, null where they
skipped it."""

review_decisions = Table(
    "review_decisions",
    metadata,
    Column("number", ROW_ID, primary_key=True, autoincrement=True),
    Column("item", ROW_ID, ForeignKey("review_items.item"), nullable=False, index=True),
    Column("decided", Double, nullable=False),
    Column("decided_by", String(160), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("decision", JSON(none_as_null=True)),
)
"""All that was ever decided, undone decisions among them: who, when, what."""

review_withdrawals = Table(
    "review_withdrawals",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("attribute", String(256), primary_key=True),
    Column("situation", String(16), primary_key=True),
    Column("target", Double, primary_key=True),
    Column("at", Double, nullable=False),
)
"""Promises that were found broken, and are not given any more by that model: version, engine and calibration."""

review_accepted = Table(
    "review_accepted",
    metadata,
    Column("number", ROW_ID, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False, index=True),
    Column("id", String(256)),
    Column("listing", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("situation", String(16), nullable=False),
    Column("target", Double, nullable=False),
    Column("labels", JSON, nullable=False),
)
"""What was accepted, a row for each listing: `labels` maps attributes to pairs of label and confidence."""
