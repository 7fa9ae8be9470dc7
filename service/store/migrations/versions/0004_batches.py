"""How many rows of a job are computed together."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add it to jobs; those that are there already are computed as on a CPU."""
    op.add_column("jobs", sa.Column("batch", sa.Integer, nullable=False, server_default=sa.text("16")))
