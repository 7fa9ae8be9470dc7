"""Jobs, and their shards."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.String(256)),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("started", sa.Double),
        sa.Column("finished", sa.Double),
        sa.Column("served", sa.Double, nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("engine", sa.String(32), nullable=False),
        sa.Column("dtype", sa.String(32), nullable=False),
        sa.Column("calibration", sa.String(64), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("separators", sa.JSON, nullable=False),
        sa.Column("target_precision", sa.Double, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("rows_done", sa.Integer, nullable=False),
        sa.Column("rows_failed", sa.Integer, nullable=False),
        sa.Column("shards", sa.Integer, nullable=False),
        sa.Column("shards_done", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("key", "idempotency_key", name="uq_jobs_key"),
    )
    op.create_index("ix_jobs_key_created", "jobs", ["key", "created"])
    op.create_index("ix_jobs_status_served", "jobs", ["status", "served"])
    op.create_table(
        "shards",
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("leased_until", sa.Double, nullable=False),
        sa.Column("result", sa.String(256)),
        sa.PrimaryKeyConstraint("job", "place", name="pk_shards"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_shards_job", ondelete="CASCADE"),
    )
