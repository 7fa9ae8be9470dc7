"""`cma-clip purge`: what it deletes, and what it leaves."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from model.errors import ConfigError
from service.cli import app
from service.store import tables
from service.store.files import ABANDONED_SECONDS, Files
from service.store.store import Store
from tests.service.test_jobs import accepted

DAY = 86_400.0


@pytest.fixture
def purge(store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command on the store, which has jobs that ended 1 and 40 days ago, and one that runs."""
    for name, days in (("new", 1.0), ("old", 40.0), ("running", None)):
        accepted(store, name)
        store.files.write_bytes(f"jobs/{name}/results/x", b"")
        if days is not None:
            with store.database.transaction() as connection:
                ended = update(tables.jobs).where(tables.jobs.c.id == name)
                connection.execute(ended.values(status="done", finished=time.time() - days * DAY))
    monkeypatch.setenv("CMA_CLIP_STORE", store_url)
    monkeypatch.setenv("CMA_CLIP_STORE_FILES", str(tmp_path / "files"))

    def run(*arguments: str) -> tuple[str, set[str], set[str]]:
        """Return what is printed, and which jobs, and files of which jobs, are left."""
        result = CliRunner().invoke(app, ["purge", *arguments], catch_exceptions=False, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        with store.database.snapshot() as connection:
            left = set(connection.scalars(select(tables.jobs.c.id)))
        return result.output, left, {path.name for path in (tmp_path / "files" / "jobs").iterdir()}

    return run


def test_without_options_what_the_settings_no_longer_keep_is_deleted(purge: Any) -> None:
    said, jobs, files = purge()
    assert said.startswith("deleted: 1 jobs, ")
    assert jobs == files == {"new", "running"}


def test_days_override_the_settings_and_what_runs_is_left(purge: Any) -> None:
    _, jobs, files = purge("--days", "0.5")
    assert jobs == files == {"running"}


def test_jobs_are_deleted_by_their_id(purge: Any) -> None:
    said, jobs, files = purge("--job", "new")
    assert said == "deleted: 1 jobs; 1 folders of files\n"
    assert jobs == files == {"old", "running"}


def test_an_unknown_id_deletes_nothing(purge: Any) -> None:
    with pytest.raises(ConfigError, match="there is no job nosuch; nothing was deleted"):
        purge("--job", "new", "--job", "nosuch")
    assert purge("--days", "99")[1] == {"new", "old", "running"}


def test_all_is_all_but_files_that_a_replica_may_still_be_writing(purge: Any, store: Store) -> None:
    said, jobs, files = purge("--all")
    assert said.startswith("deleted: 3 jobs, ")
    assert (jobs, files) == (set(), {"running"})
    with store.database.snapshot() as connection:
        noted = connection.scalars(select(tables.removals.c.path)).all()
    assert noted == ["jobs/running"]


def test_options_that_contradict_each_other_and_no_store_are_mistakes(
    purge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        purge("--all", "--days", "1")
    monkeypatch.delenv("CMA_CLIP_STORE")
    with pytest.raises(ConfigError, match="CMA_CLIP_STORE"):
        purge()


def test_scratch_of_a_process_that_was_killed_is_removed_in_the_end(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    long_ago = time.time() - ABANDONED_SECONDS - 60
    for name in ("scratch-old", "scratch-slow", "scratch-new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table").touch()
    for path in ("scratch-old", "scratch-old/table", "scratch-slow"):
        os.utime(tmp_path / path, (long_ago, long_ago))
    assert files.sweep_scratch() == 1
    assert {path.name for path in tmp_path.iterdir()} == {"scratch-slow", "scratch-new"}
