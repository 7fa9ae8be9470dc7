"""A name appears once what it names is on the disk, and is on the disk itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.checkpoint.folder import write_json
from model.files import replace_durably


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was synced and renamed, in order."""
    happened: list[str] = []
    sync, replace = os.fsync, Path.replace

    def recorded_sync(descriptor: int) -> None:
        happened.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).relative_to(tmp_path)}")
        sync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        happened.append(f"name {target.relative_to(tmp_path)}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    return happened


def test_a_files_content_goes_before_its_name_and_that_before_the_return(tmp_path: Path, events: list[str]) -> None:
    (tmp_path / "new").write_text("content")
    (tmp_path / "old").write_text("before")
    assert replace_durably(tmp_path / "new", tmp_path / "old").read_text() == "content"
    assert events == ["sync new", "name old", "sync ."]


def test_a_folders_files_go_before_its_name(tmp_path: Path, events: list[str]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "weights").write_text("content")
    replace_durably(tmp_path / "new", tmp_path / "checkpoint")
    assert events == ["sync new/weights", "sync new", "name checkpoint", "sync ."]


def test_parts_of_a_checkpoint_are_written_so(tmp_path: Path, events: list[str]) -> None:
    write_json(tmp_path / "metrics.json", {"a": 1})
    assert [event.partition(" ")[0] for event in events] == ["sync", "name", "sync"]
    assert events[1:] == ["name metrics.json", "sync ."]
