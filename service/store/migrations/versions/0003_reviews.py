"""Reviews: what is to be judged, what was decided, and what was accepted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "review_starts",
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("version", sa.String(12), nullable=False),
        sa.Column("engine", sa.String(32), nullable=False),
        sa.Column("calibration", sa.String(12), nullable=False),
        sa.Column("week", sa.String(10), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_review_starts"),
        sa.UniqueConstraint("version", "engine", "calibration", "week", name="uq_review_starts_version"),
    )
    op.create_table(
        "review_listings",
        sa.Column("listing", sa.String(64), nullable=False),
        sa.Column("id", sa.String(256)),
        sa.Column("title", sa.Text),
        sa.Column("image", sa.LargeBinary),
        sa.Column("captured", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("listing", name="pk_review_listings"),
    )
    _items()
    op.create_table(
        "review_decisions",
        sa.Column("number", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("item", ROW_ID, nullable=False),
        sa.Column("decided", sa.Double, nullable=False),
        sa.Column("decided_by", sa.String(160), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("decision", sa.JSON),
        sa.PrimaryKeyConstraint("number", name="pk_review_decisions"),
        sa.ForeignKeyConstraint(["item"], ["review_items.item"], name="fk_review_decisions_item"),
    )
    op.create_index("ix_review_decisions_item", "review_decisions", ["item"])
    op.create_table(
        "review_withdrawals",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("attribute", sa.String(256), nullable=False),
        sa.Column("situation", sa.String(16), nullable=False),
        sa.Column("target", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("model", "attribute", "situation", "target", name="pk_review_withdrawals"),
    )
    op.create_table(
        "review_accepted",
        sa.Column("number", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("id", sa.String(256)),
        sa.Column("listing", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("situation", sa.String(16), nullable=False),
        sa.Column("target", sa.Double, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_review_accepted"),
    )
    op.create_index("ix_review_accepted_at", "review_accepted", ["at"])


def _items() -> None:
    op.create_table(
        "review_items",
        sa.Column("item", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("listing", sa.String(64), nullable=False),
        sa.Column("attribute", sa.String(256), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("place", sa.Double, nullable=False),
        sa.Column("situation", sa.String(16), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("abstention", sa.String(32)),
        sa.Column("accepted_at", sa.Double),
        sa.Column("candidates", sa.JSON, nullable=False),
        sa.Column("separator", sa.Text),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("captured", sa.Double, nullable=False),
        sa.Column("leased_to", sa.String(160)),
        sa.Column("leased_until", sa.Double),
        sa.Column("verdict", sa.String(16)),
        sa.Column("decision", sa.JSON),
        sa.Column("decided", sa.Double),
        sa.Column("decided_by", sa.String(160)),
        sa.PrimaryKeyConstraint("item", name="pk_review_items"),
        sa.ForeignKeyConstraint(["listing"], ["review_listings.listing"], name="fk_review_items_listing"),
        sa.ForeignKeyConstraint(["start"], ["review_starts.number"], name="fk_review_items_start"),
        sa.UniqueConstraint("listing", "attribute", "kind", "model", name="uq_review_items_listing"),
    )
    op.create_index("ix_review_items_verdict_kind", "review_items", ["verdict", "kind", "start", "place"])
