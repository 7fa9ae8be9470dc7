"""Files that are to be removed: noted in the database with what no longer needs them, removed afterwards.

A database's transaction and a disk cannot change together. So files are written only under a folder that is noted here
beforehand, to be removed some time later; what is accepted takes the note away in its own transaction (`keep`). And
what lets go of files notes them for now (`remove`). Whatever is killed in between, no file is lost that is needed, and
none stays that isn't.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from service.store.database import Database, now
from service.store.files import Files
from service.store.tables import removals

ABANDONED_SECONDS = 24 * 3600.0
"""After that long, what has been written and not been accepted is given up."""


def announce(connection: Connection, folder: str) -> None:
    """Note a folder that is about to be written, until it is kept."""
    connection.execute(removals.insert().values(path=folder, due=now() + ABANDONED_SECONDS))


def keep(connection: Connection, folder: str) -> bool:
    """Keep an announced folder; False where its time is up, for then it may be being removed."""
    noted = delete(removals).where(removals.c.path == folder, removals.c.due > now())
    return connection.execute(noted).rowcount == 1


def remove(connection: Connection, folder: str, *, after: float = 0.0) -> None:
    """Have a folder removed so many seconds after this transaction has been committed; twice does no harm."""
    connection.execute(delete(removals).where(removals.c.path == folder))
    connection.execute(removals.insert().values(path=folder, due=now() + after))


def sweep(database: Database, files: Files) -> int:
    """Remove what is due, and return the number of folders. Raises `StoreUnavailable` or `OSError`."""
    with database.snapshot() as connection:
        due = connection.scalars(select(removals.c.path).where(removals.c.due <= now())).all()
    for folder in due:
        files.remove(folder)
        with database.transaction() as connection:
            connection.execute(delete(removals).where(removals.c.path == folder))
    return len(due)
