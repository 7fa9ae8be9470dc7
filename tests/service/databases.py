"""Databases for tests: SQLite in a temporary folder, or a real PostgreSQL, of which `make test-store` asks for one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import sqlalchemy

BACKEND = os.environ.get("TEST_STORE", "sqlite")
"""`sqlite` or `postgresql`: what the fixture `store_url` makes."""


@cache
def programs() -> Path:
    """Where Debian keeps PostgreSQL's programs: the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise RuntimeError("PostgreSQL is not installed; `make test-store` installs it")
    return found[-1]


class PostgreSQL:
    """A server of its own, in a temporary folder; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._data, self._log = folder / "data", folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the files of an empty server."""
        options = ["--username", "cma", "--auth", "trust", "--no-sync"]
        command = [*_as_postgres(), str(programs() / "initdb"), "--pgdata", str(self._data), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own programs

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            command = [*_as_postgres(), str(programs() / "postgres"), "-D", str(self._data), *options]
            self._process = subprocess.Popen(command, stderr=log)  # noqa: S603
        deadline = time.monotonic() + 60
        ready = [str(programs() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:  # noqa: S603
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self._log.read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, as a crash would: what was committed is found in its log."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://cma@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database, and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        engine = sqlalchemy.create_engine(self.url().replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """Run a server for as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="cma-clip-postgresql-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server = PostgreSQL(folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
