"""The store: schema, transactions, files and what is to be removed; on SQLite, or PostgreSQL (`make test-store`)."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert, select, text, update

from model.errors import ConfigError
from service.store import removals, tables
from service.store.database import Database, StoreUnavailable, now
from service.store.files import Files
from service.store.store import Store
from tests.store_files import check_whole_or_not_at_all


def due_at_once(store: Store, folder: str) -> None:
    with store.database.transaction() as connection:
        connection.execute(update(tables.removals).where(tables.removals.c.path == folder).values(due=0))


# --- the database ------------------------------------------------------------------------------------------


def test_the_migrations_make_the_schema_that_the_tables_say(store: Store) -> None:
    with store.database.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_replicas_that_start_at_once_migrate_once_and_share_the_secret(store_url: str, tmp_path: Path) -> None:
    ready = threading.Barrier(4)

    def start() -> bytes:
        ready.wait()
        store = Store.open(store_url, str(tmp_path / "files"))
        store.close()
        return store.secret("reviews")

    with ThreadPoolExecutor(4) as pool:
        secrets = {each.result() for each in [pool.submit(start) for _ in range(4)]}
    assert len(secrets) == 1


def test_each_purpose_has_a_secret_of_its_own(store: Store) -> None:
    assert len(store.secret("a")) == 32
    assert store.secret("a") != store.secret("b")


def test_a_database_of_a_newer_release_is_refused(store: Store, store_url: str, tmp_path: Path) -> None:
    with store.database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="has schema 9999, and this release knows"):
        Store.open(store_url, str(tmp_path / "files"))


def test_an_exception_undoes_the_whole_transaction(store: Store) -> None:
    def fail() -> None:
        with store.database.transaction() as connection:
            removals.announce(connection, "a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with store.database.snapshot() as connection:
        assert connection.execute(select(tables.removals)).all() == []


async def test_writers_wait_for_each_other_and_lose_nothing(store: Store) -> None:
    def add_one(connection: Connection) -> None:
        found = connection.execute(select(tables.secrets.c.value).where(tables.secrets.c.name == "n").with_for_update())
        changed = update(tables.secrets).where(tables.secrets.c.name == "n")
        connection.execute(changed.values(value=str(int(found.scalar_one()) + 1)))

    with store.database.transaction() as connection:
        connection.execute(insert(tables.secrets).values(name="n", value="0"))
    await asyncio.gather(*(store.database.run(add_one) for _ in range(40)))
    with store.database.snapshot() as connection:
        assert connection.scalar(select(tables.secrets.c.value).where(tables.secrets.c.name == "n")) == "40"


async def test_a_function_runs_in_a_thread_while_the_event_loop_goes_on(store: Store) -> None:
    goes_on = threading.Event()

    def wait(connection: Connection) -> bool:
        return goes_on.wait(10)

    waiting = asyncio.ensure_future(store.database.run(wait))
    await asyncio.sleep(0)
    goes_on.set()
    assert await waiting


def test_the_clock_is_the_database_s_and_goes_forward(store: Store) -> None:
    with store.database.snapshot() as connection:
        first, second = (connection.scalar(select(now())) for _ in range(2))
    assert first is not None
    assert second is not None
    assert 1.7e9 < first <= second


def test_a_database_that_cannot_be_reached_is_no_programming_error(tmp_path: Path) -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(StoreUnavailable), database.transaction():
        pass
    database.close()


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite://", "not a url"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="CMA_CLIP_STORE"):
        Database(url)


# --- files -------------------------------------------------------------------------------------------------


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    root = tmp_path / "files"
    check_whole_or_not_at_all(
        Files(str(root)), lambda: [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    )


def test_removing_a_folder_takes_all_that_is_below_it_and_twice_does_no_harm(tmp_path: Path) -> None:
    files = Files(str(tmp_path / "files"))
    files.write_bytes("a/b/c", b"")
    files.write_bytes("other", b"")
    files.remove("a")
    files.remove("a")
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["other"]


def test_scratch_lies_beside_the_files_and_goes(tmp_path: Path) -> None:
    with Files(str(tmp_path / "files")).scratch() as folder:
        (folder / "x").write_bytes(b"x")
        assert folder.is_relative_to(tmp_path)
    assert not folder.exists()


def test_an_unknown_kind_of_file_store_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(ConfigError, match="CMA_CLIP_STORE_FILES"):
        Files("nosuch://bucket")


# --- removals ----------------------------------------------------------------------------------------------


def test_what_was_written_and_never_accepted_is_removed_in_the_end(store: Store) -> None:
    with store.database.transaction() as connection:
        removals.announce(connection, "job")
    store.files.write_bytes("job/x", b"")
    assert removals.sweep(store.database, store.files) == 0
    due_at_once(store, "job")
    assert removals.sweep(store.database, store.files) == 1
    with pytest.raises(FileNotFoundError):
        store.files.read_bytes("job/x")


def test_what_is_kept_stays_until_it_is_let_go(store: Store) -> None:
    with store.database.transaction() as connection:
        removals.announce(connection, "job")
    store.files.write_bytes("job/x", b"x")
    with store.database.transaction() as connection:
        assert removals.keep(connection, "job")
    assert removals.sweep(store.database, store.files) == 0
    assert store.files.read_bytes("job/x") == b"x"
    with store.database.transaction() as connection:
        removals.remove(connection, "job")
    assert removals.sweep(store.database, store.files) == 1


def test_what_may_be_being_removed_cannot_be_kept(store: Store) -> None:
    with store.database.transaction() as connection:
        removals.announce(connection, "job")
    due_at_once(store, "job")
    with store.database.transaction() as connection:
        assert not removals.keep(connection, "job")
