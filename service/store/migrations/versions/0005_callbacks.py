"""Where a job's end is told, and whether it has been."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add it to jobs; those that are there already have no callback."""
    op.add_column("jobs", sa.Column("callback_url", sa.Text))
    op.add_column("jobs", sa.Column("callback_due", sa.Double))
    op.add_column("jobs", sa.Column("callback_attempts", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("callback_delivered", sa.Double))
    op.add_column("jobs", sa.Column("callback_error", sa.Text))
    op.create_index("ix_jobs_callback_due", "jobs", ["callback_due"])
