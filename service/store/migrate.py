"""Brings the schema up to date when a replica starts; of several that start at once, one does and the others wait."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from model.errors import ConfigError
from service.store.database import Database

LOCK = 0x636D615F636C6970
"""PostgreSQL's advisory locks are numbers; this one spells `cma_clip`."""


def migrate(database: Database) -> None:
    """Run the migrations that the database lacks, all in one transaction.

    Raises `ConfigError` where it is of a newer release, `StoreUnavailable` where it cannot be reached.
    """
    with database.transaction() as connection:  # which on SQLite is the only one that writes
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        config = configuration(connection)
        try:
            command.upgrade(config, "head")
        except CommandError:
            known = ScriptDirectory.from_config(config).get_current_head()
            found = MigrationContext.configure(connection).get_current_revision()
            raise ConfigError(
                f"CMA_CLIP_STORE: the database has schema {found}, and this release knows {known} at most; "
                "run the newer release"
            ) from None


def configuration(connection: Connection) -> Config:
    """Return alembic's configuration; it has no file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    return config
