"""The store, opened: the database with its schema up to date, the files, and the secret that all replicas share."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from sqlalchemy import select

from service.store.database import Database
from service.store.files import Files
from service.store.migrate import migrate
from service.store.tables import secrets


@dataclass(frozen=True)
class Store:
    """What outlives a process."""

    database: Database
    files: Files
    _secret: bytes

    @classmethod
    def open(cls, url: str, files: str) -> Store:
        """Connect, and run the migrations that are missing; blocks.

        url: of the database; files: a folder, or a URL that fsspec knows
        Raises `ConfigError`, or `StoreUnavailable` where the database cannot be reached.
        """
        database = Database(url)
        try:
            migrate(database)
            return cls(database, Files(files), _secret(database))
        except BaseException:
            database.close()
            raise

    def secret(self, purpose: str) -> bytes:
        """Return 32 bytes that every replica knows and nobody else, others for each purpose."""
        return hmac.digest(self._secret, purpose.encode(), hashlib.sha256)

    def close(self) -> None:
        """Let go of the database; blocks until its threads have finished."""
        self.database.close()


def _secret(database: Database) -> bytes:
    with database.snapshot() as connection:
        return bytes.fromhex(connection.execute(select(secrets.c.value).where(secrets.c.name == "store")).scalar_one())
