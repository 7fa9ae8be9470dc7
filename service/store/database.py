"""A connection to the database, in transactions, from threads.

Drivers of databases block. So nothing here is called on the event loop but `Database.run`, which runs a function in one
of the database's own few threads; that is the one place where the two meet. Functions that take a `Connection` hold all
that is one transaction, and know nothing of threads. They are written in SQLAlchemy's Core, not its ORM: what matters
here are conditional updates and the number of rows that they changed, which objects would hide.

SQLite allows one writer at a time: a transaction that writes takes the lock at its start (`BEGIN IMMEDIATE`), so that
it waits for it there, at most `BUSY_SECONDS`, and never fails half-way. Its log is written ahead (WAL), so that readers
and the writer don't wait for each other, and flushed at each commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from model.errors import ConfigError
from service.errors import NotReady

BUSY_SECONDS = 30.0
"""How long a transaction waits for SQLite's writer."""

THREADS = 4
"""Also the connections that a replica holds to PostgreSQL."""

Arguments = ParamSpec("Arguments")

Result = TypeVar("Result")


class now(FunctionElement[float]):  # noqa: N801 - a function of SQL
    """The time on the database's clock: seconds since 1970."""

    type = sqlalchemy.Double()
    inherit_cache = True


@compiles(now, "postgresql")
def _now_of_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::double precision"


@compiles(now, "sqlite")
def _now_of_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class StoreUnavailable(NotReady):
    """The database cannot be reached, or doesn't answer: nothing has been changed, as far as is known."""


class Database:
    """Where jobs and reviews are kept."""

    def __init__(self, url: str) -> None:
        """url: `sqlite:///…` or `postgresql://…`. Raises `ConfigError`."""
        self.engine = _engine(url)
        self._reading = self.engine.execution_options(reading=True)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction, committed at the end unless something raises. Raises `StoreUnavailable`."""
        with _errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction that only reads: it waits for no writer. Raises `StoreUnavailable`."""
        with _errors(), self._reading.begin() as connection:
            yield connection

    async def run(
        self,
        work: Callable[Concatenate[Connection, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Run `work` in a thread, within a transaction of its own. Raises `StoreUnavailable`."""

        def in_thread() -> Result:
            with self.transaction() as connection:
                return work(connection, *args, **kwargs)

        return await self.in_thread(in_thread)

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Run what has transactions of its own in a thread; `close` waits for it, though its caller may be gone."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End the threads once they have finished, and all connections."""
        self._threads.shutdown()
        self.engine.dispose()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            raise StoreUnavailable("the store cannot be reached", retry_after=5) from error
        raise
    except sqlalchemy.exc.TimeoutError as error:
        raise StoreUnavailable("the store does not answer", retry_after=5) from error


def _engine(text: str) -> Engine:
    try:
        url = sqlalchemy.make_url(text)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError("CMA_CLIP_STORE: not a URL such as sqlite:///store.db or postgresql://host/name") from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite(url)
    if backend in {"postgresql", "postgres"}:
        return _postgresql(url)
    raise ConfigError(f"CMA_CLIP_STORE: must be sqlite:///… or postgresql://…, not {url.drivername}://")


def _sqlite(url: sqlalchemy.URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigError("CMA_CLIP_STORE: must name a file, as sqlite:///store.db does")
    folder = Path(url.database).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"CMA_CLIP_STORE: cannot make the folder {folder}: {error.strerror}") from None
    engine = sqlalchemy.create_engine(
        url.set(drivername="sqlite+pysqlite"), connect_args={"timeout": BUSY_SECONDS, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, record: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    # The driver's own transactions (isolation_level) begin late, and not at all before a table is created.
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _postgresql(url: sqlalchemy.URL) -> Engine:
    return sqlalchemy.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=THREADS,
        pool_timeout=BUSY_SECONDS,
        pool_pre_ping=True,  # after PostgreSQL was restarted, a pooled connection is of no use
        connect_args={"connect_timeout": 5, "application_name": "cma-clip"},
    )
