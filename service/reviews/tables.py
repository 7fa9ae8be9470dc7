"""The tables of reviews. Times are in seconds since 1970."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

ROW_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in a column of this type alone

secrets = Table(
    "review_secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("secret", LargeBinary, nullable=False),
)
"""One row: the secret that the random share is drawn with."""

starts = Table(
    "review_starts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("version", String(12), nullable=False),
    Column("engine", String(32), nullable=False),
    Column("calibration", String(12), nullable=False),
    Column("week", String(10), nullable=False),
    UniqueConstraint("version", "engine", "calibration", "week"),
)
"""Where sequences of judgements start anew: with model, engine or calibration, and each week, named by its Monday."""

listings = Table(
    "review_listings",
    metadata,
    Column("listing", String(64), primary_key=True),
    Column("id", String(256)),
    Column("title", Text),
    Column("image", LargeBinary),
    Column("captured", Float, nullable=False),
)
"""What is judged: as `service.reviews.sampling.Draw.listing` calls it, the caller's own id, and what was sent."""

items = Table(
    "review_items",
    metadata,
    Column("item", ROW_ID, primary_key=True, autoincrement=True),
    Column("listing", String(64), ForeignKey("review_listings.listing"), nullable=False),
    Column("attribute", String(256), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("start", Integer, ForeignKey("review_starts.number"), nullable=False),
    Column("model", String(64), nullable=False),
    Column("place", Float, nullable=False),
    Column("situation", String(16), nullable=False),
    Column("label", Text, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("abstention", String(32)),
    Column("accepted_at", Float),
    Column("candidates", JSON, nullable=False),
    Column("captured", Float, nullable=False),
    Column("leased_to", String(128)),
    Column("leased_until", Float),
    Column("verdict", String(16)),
    Column("decision", Text),
    Column("decided", Float),
    Column("decided_by", String(128)),
    UniqueConstraint("listing", "attribute", "kind", "model"),
    Index("review_items_waiting", "verdict", "kind", "start", "place"),
)
"""(listing, attribute) pairs. `place` orders those of a kind, the least first; `model` is version, engine and
calibration in one, by which a pair is asked once; `accepted_at` is the highest target that the label was accepted at;
`decision` is the label that people chose, null where none fits or they skipped it."""

decisions = Table(
    "review_decisions",
    metadata,
    Column("number", ROW_ID, primary_key=True, autoincrement=True),
    Column("item", ROW_ID, ForeignKey("review_items.item"), nullable=False),
    Column("decided", Float, nullable=False),
    Column("decided_by", String(128), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("decision", Text),
)
"""All that was ever decided, undone decisions among them: who, when, what."""

withdrawals = Table(
    "review_withdrawals",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("attribute", String(256), primary_key=True),
    Column("situation", String(16), primary_key=True),
    Column("target", Float, primary_key=True),
    Column("at", Float, nullable=False),
)
"""Promises that were found broken, and are not given any more by that model: version, engine and calibration."""

accepted = Table(
    "review_accepted",
    metadata,
    Column("number", ROW_ID, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("id", String(256)),
    Column("listing", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("situation", String(16), nullable=False),
    Column("target", Float, nullable=False),
    Column("labels", JSON, nullable=False),
    Index("review_accepted_at", "at"),
)
"""What was accepted, a row for each listing: `labels` maps attributes to pairs of label and confidence."""
