"""The store's own: its secret, and files that are to be removed."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create them."""
    table = op.create_table(
        "secrets",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
    op.bulk_insert(table, [{"name": "store", "value": secrets.token_hex(32)}])
    op.create_table(
        "removals",
        sa.Column("path", sa.String(256), nullable=False),
        sa.Column("due", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("path", name="pk_removals"),
    )
    op.create_index("ix_removals_due", "removals", ["due"])
