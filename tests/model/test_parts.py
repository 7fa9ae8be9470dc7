"""Folders of parts, and outputs in object stores: the rows and bytes of a file, however often a run was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from model.errors import ConfigError, ModelError
from model.inference import output, parts
from model.inference.parts import RemoteFolder
from model.stores import is_remote
from tests.model.test_label import FakePredictor, interrupt, label, read_csv, write_catalogue

ROWS = 22
LISTINGS = "id,title\n" + "".join(f"{n},{'' if n % 7 == 3 else f'Title {n}'}\n" for n in range(ROWS))

STORE = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(output, "SHARD_ROWS", 4)
    monkeypatch.setattr(output, "MERGED_SHARDS", 2)
    monkeypatch.setattr(parts, "SHARD_ROWS", 4)
    monkeypatch.setattr(parts, "PART_ROWS", 8)
    yield
    STORE.store.clear()
    STORE.pseudo_dirs[:] = [""]


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return write_catalogue(tmp_path, LISTINGS, {})


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.name != "_lock")


PARTS = ["part-0000000000-8-1", "part-0000000008-8-1", "part-0000000016-6-1"]


@pytest.mark.parametrize("part_format", ["csv", "parquet", None])
def test_a_folder_holds_parts_that_are_the_file(toml: Path, tmp_path: Path, part_format: str | None) -> None:
    result = label(toml, f"{tmp_path}/labels/", part_format=part_format)
    assert (result.rows, result.failed, result.resumed) == (ROWS, 3, 0)
    folder, suffix = tmp_path / "labels", f".{part_format or 'parquet'}"
    assert names(folder) == ["_SUCCESS", "_settings.json", *(f"{each}{suffix}" for each in PARTS)]
    assert json.loads((folder / "_SUCCESS").read_text()) == {"rows": ROWS, "failed": 3}
    file = tmp_path / f"labels{suffix}"
    label(toml, file)
    if suffix == ".csv":
        rows = [row for each in PARTS for row in read_csv(folder / f"{each}.csv")]
        assert rows == read_csv(file)
    else:
        assert pq.read_table(folder) == pq.read_table(file), "a folder is read as one table"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_in_an_object_store_is_that_of_a_disk(toml: Path, tmp_path: Path, suffix: str) -> None:
    label(toml, tmp_path / f"labels{suffix}")
    with pytest.raises(KeyboardInterrupt):
        label(toml, f"memory://shop/labels{suffix}", FakePredictor(dies_after=9))
    kept = STORE.ls(f"/shop/labels{suffix}.partial", detail=False)
    assert [Path(each).name for each in kept] == ["_settings.json", f"{PARTS[0]}{suffix}"]
    assert label(toml, f"memory://shop/labels{suffix}").resumed == 8
    assert STORE.cat_file(f"/shop/labels{suffix}") == (tmp_path / f"labels{suffix}").read_bytes()
    assert STORE.find("/shop") == [f"/shop/labels{suffix}"]


def test_a_folder_in_an_object_store_is_that_of_a_disk(toml: Path, tmp_path: Path) -> None:
    label(toml, f"{tmp_path}/labels/")
    label(toml, "memory://shop/labels/")
    for name in names(tmp_path / "labels"):
        assert STORE.cat_file(f"/shop/labels/{name}") == (tmp_path / "labels" / name).read_bytes()


@pytest.mark.parametrize("place", ["{}/labels/", "memory://shop/labels/"])
def test_an_interrupted_folder_goes_on_after_its_last_part(toml: Path, tmp_path: Path, place: str) -> None:
    out = place.format(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="8 of about 23 rows are finished"):
        label(toml, out, FakePredictor(dies_after=12))
    predictor = FakePredictor()
    assert label(toml, out, predictor).resumed == 8
    assert sum(predictor.batches) == ROWS - 8 - 2  # two of these have neither title nor image


def test_an_empty_table_gives_a_part_with_the_columns(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, "id,title\n", {})
    label(toml, f"{tmp_path}/labels/")
    assert names(tmp_path / "labels") == ["_SUCCESS", "part-0000000000-0-0.parquet"]
    assert "colour" in pq.read_table(tmp_path / "labels" / "part-0000000000-0-0.parquet").schema.names


def test_a_table_in_several_files_is_labelled_as_one(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, "", {})
    (tmp_path / "rows").mkdir()
    lines = LISTINGS.splitlines(keepends=True)
    for number, first in enumerate(range(1, ROWS, 8)):
        (tmp_path / "rows" / f"{number}.csv").write_text("".join([lines[0], *lines[first : first + 8]]))
    toml.write_text(toml.read_text().replace("table.csv", "rows"))
    (tmp_path / "one").mkdir()
    label(write_catalogue(tmp_path / "one", LISTINGS, {}), tmp_path / "one.csv", batch_size=4)
    label(toml, tmp_path / "several.csv", batch_size=4)
    one, several = (read_csv(tmp_path / f"{name}.csv") for name in ("one", "several"))
    for row in (*one, *several):
        row["error"] = row["error"].partition(": ")[2]  # its line is another one, after another header
    assert several == one


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["{}/labels/", "memory://shop/labels/"])
def test_a_complete_folder_is_not_written_again(toml: Path, tmp_path: Path, place: str) -> None:
    out = place.format(tmp_path)
    label(toml, out)
    with pytest.raises(ConfigError, match="is complete already"):
        label(toml, out)


def test_a_file_in_an_object_store_is_not_overwritten(toml: Path) -> None:
    STORE.pipe_file("/shop/labels.csv", b"another run's")
    with pytest.raises(ConfigError, match=r"memory://shop/labels\.csv exists already"):
        label(toml, "memory://shop/labels.csv")
    assert STORE.find("/shop") == ["/shop/labels.csv"]


@pytest.mark.parametrize("place", ["{}/labels/", "memory://shop/labels/"])
def test_other_settings_are_refused(toml: Path, tmp_path: Path, place: str) -> None:
    out = place.format(tmp_path)
    interrupt(toml, out, 9)
    with pytest.raises(ConfigError, match="was begun with another target precision"):
        label(toml, out, target_precision=0.95)
    if is_remote(out):
        STORE.rm("/shop/labels/_settings.json")
    else:
        (tmp_path / "labels" / "_settings.json").write_text("torn")
    with pytest.raises(ConfigError, match=r"has no readable _settings\.json"):
        label(toml, out)


def test_a_lost_part_is_noticed(toml: Path, tmp_path: Path) -> None:
    interrupt(toml, f"{tmp_path}/labels/", 18)
    (tmp_path / "labels" / f"{PARTS[0]}.parquet").unlink()
    with pytest.raises(ConfigError, match=f"lacks rows before {PARTS[1]}"):
        label(toml, f"{tmp_path}/labels/")


def test_a_folder_of_something_else_is_left_alone(toml: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "photo.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds photo\.jpg, which is no part of this output"):
        label(toml, f"{tmp_path}/labels/")
    assert names(tmp_path / "labels") == ["photo.jpg"]


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("out.csv", {"part_format": "csv"}, "only parts in a folder have a format of their own"),
        ("table.csv/", {}, "is no folder"),
        ("nowhere/labels/", {}, "cannot write to the folder"),
        ("labels/", {"attributes": ["shape"]}, "unknown attribute"),
        ("labels/", {"part_format": "xlsx"}, r"must end in \.csv or \.parquet"),
    ],
)
def test_mistakes_leave_nothing_behind(
    toml: Path, tmp_path: Path, out: str, options: dict[str, Any], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        label(toml, f"{tmp_path}/{out}", **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_fails_at_once_leaves_no_folder(toml: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(toml, f"{tmp_path}/labels/", FakePredictor(dies_after=0))
    assert not (tmp_path / "labels").exists()


def test_a_store_that_nobody_knows_is_named() -> None:
    with pytest.raises(ConfigError, match="Protocol not known: nowhere"):
        RemoteFolder.open("nowhere://shop/labels/")


def test_what_a_store_raises_is_one_line(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(type(STORE), "pipe_file", refuse)
    with pytest.raises(ModelError, match="cannot write memory://shop/labels/: no credentials"):
        label(toml, "memory://shop/labels/")


@pytest.mark.parametrize(
    ("out", "remote"), [("s3://b/x", True), ("labels.csv", False), ("/a/b/", False), ("abfs://c@a/x/", True)]
)
def test_urls_are_told_from_paths(out: str, remote: bool) -> None:
    assert is_remote(out) is remote
