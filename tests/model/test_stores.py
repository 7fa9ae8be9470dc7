"""Catalogues in an object store: tables and images by URL, read in place. The store is fsspec's in memory.

`tests/ray/test_ray.py` reads them from a server that speaks S3.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model import stores
from model.catalogue import image_store
from model.catalogue.check import check_catalogue
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.tables import estimate_rows, hash_table, table_files
from model.errors import CatalogueError, ConfigError
from model.stores import RemotePath, is_remote
from tests.model.test_label import label, png, read_csv
from tests.model.test_webdataset import write_shard

STORE = fsspec.filesystem("memory")
COLOURS = ("red", "blue")


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    yield
    STORE.rm("/", recursive=True)


@pytest.fixture
def describe(tmp_path: Path) -> Callable[..., Path]:
    """Write a TOML file that describes a catalogue."""

    def write(table: str, *, image: str | None = None, images: str | None = None, title: str | None = "title") -> Path:
        values = {"table": table, "id": "id", "title": title, "image": image, "images": images}
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
        path = tmp_path / "shop.toml"
        path.write_text("\n".join(["[catalogue]", 'attributes = ["colour"]', *lines]) + "\n")
        return path

    return write


def parquet(columns: Mapping[str, list[Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), file)
    return file.getvalue()


def rows(begin: int, end: int, **others: Callable[[int], Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {
        "id": [f"sku-{n}" for n in range(begin, end)],
        "title": [f"Title {n}" for n in range(begin, end)],
        "colour": [COLOURS[n % 2] for n in range(begin, end)],
    }
    return found | {name: [value(n) for n in range(begin, end)] for name, value in others.items()}


def image_of(listing: Listing, catalogue: Catalogue) -> bytes:
    assert listing.image is not None
    return catalogue.image_bytes(listing.image)


def labels_of(toml: Path, out: Path) -> list[dict[str, str]]:
    label(toml, out)
    return list(csv.DictReader(out.read_text().splitlines()))


# --- tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["memory://shop/export", "memory://shop/export/", "memory://shop/export/part-*"])
def test_several_parquet_files_are_one_table(describe: Callable[..., Path], table: str) -> None:
    STORE.pipe_file("/shop/export/part-0.parquet", parquet(rows(0, 3)))
    STORE.pipe_file("/shop/export/part-1.parquet", parquet(rows(3, 5)))
    STORE.pipe_file("/shop/export/_SUCCESS", b"")
    STORE.pipe_file("/shop/export/_old/part-9.parquet", parquet(rows(9, 10)))
    catalogue = Catalogue.open(describe(table))
    assert [each.id for each in catalogue.listings] == [f"sku-{n}" for n in range(5)]
    assert catalogue.report.form == "Parquet; 2 files"
    assert estimate_rows(RemotePath(table)) == 5


def test_other_forms_are_read_as_on_a_disk(describe: Callable[..., Path], tmp_path: Path) -> None:
    text = "id;title;colour\r\n1;Größe 1;Red\r\n2;Plain;Blue\r\n".encode("cp1252")
    STORE.pipe_file("/shop/table.csv", text)
    (tmp_path / "table.csv").write_bytes(text)
    here, there = (Catalogue.open(describe(each)) for each in ("table.csv", "memory://shop/table.csv"))
    assert there.listings == here.listings
    assert there.report.form == here.report.form == "CSV with semicolons, in Windows-1252"
    assert estimate_rows(RemotePath("memory://shop/table.csv")) == 3


def test_only_what_is_asked_for_is_downloaded_of_parquet(
    describe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    STORE.pipe_file("/shop/table.parquet", parquet(rows(0, 100, photo=lambda n: bytes([n]) * 100_000)))
    fetched = 0
    read = fsspec.implementations.memory.MemoryFile.read

    def counting(self: Any, *size: int) -> bytes:
        nonlocal fetched
        data: bytes = read(self, *size)
        fetched += len(data)
        return data

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", counting)
    assert len(Catalogue.open(describe("memory://shop/table.parquet")).listings) == 100
    assert fetched < 200_000, "of 10 MB"


def test_a_table_that_changes_is_another_one_though_it_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    table = RemotePath("memory://shop/export")
    STORE.pipe_file("/shop/export/part-0.parquet", parquet(rows(0, 3)))
    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "open", None)
        before = hash_table(table)
        assert hash_table(table) == before
    STORE.pipe_file("/shop/export/part-0.parquet", parquet(rows(0, 2)))
    assert hash_table(table) != before


# --- images ------------------------------------------------------------------------------------------------


def test_images_by_name_are_read_from_a_folder_of_the_store(describe: Callable[..., Path], tmp_path: Path) -> None:
    STORE.pipe_file("/shop/table.parquet", parquet(rows(0, 4)))
    for n in range(4):
        STORE.pipe_file(f"/shop/photos/sku-{n}.png", png(COLOURS[n % 2]))
    toml = describe("memory://shop/table.parquet", image="{id}.png", images="memory://shop/photos", title=None)
    catalogue = Catalogue.open(toml)
    assert [image_of(each, catalogue) for each in catalogue.listings] == [png(COLOURS[n % 2]) for n in range(4)]
    assert image_of(catalogue.listings[1], pickle.loads(pickle.dumps(catalogue))) == png("blue")  # noqa: S301 - its own
    assert [row["colour"] for row in labels_of(toml, tmp_path / "labels.csv")] == ["Red", "Blue", "Red", "Blue"]
    assert check_catalogue(toml).report.images.found == 4


def test_images_by_url_are_read_from_that_folder_alone(describe: Callable[..., Path]) -> None:
    cells = ["memory://shop/photos/a.png", "b.png | a.png", "memory://secrets/c.png", "../secrets/c.png"]
    STORE.pipe_file("/shop/table.parquet", parquet(rows(0, 4, photo=lambda n: cells[n])))
    for path in ("/shop/photos/a.png", "/shop/photos/b.png", "/secrets/c.png"):
        STORE.pipe_file(path, path.encode())
    catalogue = Catalogue.open(describe("memory://shop/table.parquet", image="{photo}", images="memory://shop/photos/"))
    assert [(each.image, each.further_images) for each in catalogue.listings] == [("a.png", ()), ("b.png", ("a.png",))]
    assert image_of(catalogue.listings[0], catalogue) == b"/shop/photos/a.png"
    assert catalogue.report.left_out == {"image path leaves the folder": 2}


def test_urls_without_the_folder_say_how_they_are_read(describe: Callable[..., Path]) -> None:
    STORE.pipe_file("/shop/table.parquet", parquet(rows(0, 2, photo=lambda n: f"memory://shop/photos/{n}.png")))
    with pytest.raises(CatalogueError, match=r"images = 'memory://shop/photos/' reads that folder"):
        Catalogue.open(describe("memory://shop/table.parquet", image="{photo}"))


def test_the_first_images_are_looked_for_and_no_more(
    describe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(image_store, "LOOKED_FOR", 3)
    asked: list[str] = []
    exists = RemotePath.exists

    def noting(self: RemotePath) -> bool:
        asked.append(str(self))
        return exists(self)

    monkeypatch.setattr(RemotePath, "exists", noting)
    STORE.pipe_file("/shop/table.parquet", parquet(rows(0, 6, photo=lambda n: f"{n}.png")))
    toml = describe("memory://shop/table.parquet", image="{photo}", images="memory://shop/photos")
    with pytest.raises(CatalogueError, match=r"none of the 6 images .* is in memory://shop/photos"):
        Catalogue.open(toml)
    assert len(asked) == 3
    STORE.pipe_file("/shop/photos/1.png", png("red"))
    catalogue = Catalogue.open(toml)
    assert [each.id for each in catalogue.listings] == ["sku-1", "sku-3", "sku-4", "sku-5"]
    said = "images taken to be there, looked for when they are read: 3, such as 3.png (line 4, 5, 6)"
    assert said in str(catalogue.report)
    errors = [row["error"] for row in labels_of(toml, tmp_path / "labels.csv")]
    assert [bool(each) for each in errors] == [True, False, True, True, True, True]
    assert "cannot read image 3.png of memory://shop/photos: there is no such object" in errors[3]


def test_images_inside_parquet_are_labelled_and_trained_on(describe: Callable[..., Path], tmp_path: Path) -> None:
    for part in range(2):
        held = rows(2 * part, 2 * part + 2, photo=lambda n: {"bytes": png(COLOURS[n % 2]), "path": None})
        STORE.pipe_file(f"/shop/part-{part}.parquet", parquet(held))
    toml = describe("memory://shop/part-*.parquet", image="{photo}", title=None)
    catalogue = Catalogue.open(toml)
    assert [image_of(each, catalogue) for each in catalogue.listings] == [png(COLOURS[n % 2]) for n in range(4)]
    assert "were copied to" in str(catalogue.report), "it is said"
    assert [row["colour"] for row in labels_of(toml, tmp_path / "labels.csv")] == ["Red", "Blue", "Red", "Blue"]


# --- shards ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "there"])
def test_shards_are_read_in_place(
    describe: Callable[..., Path], tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(2):
        files: dict[str, bytes] = {}
        for n in range(3 * shard, 3 * shard + 3):
            files[f"{n}.json"] = json.dumps({"id": f"sku-{n}", "colour": COLOURS[n % 2]}).encode()
            files[f"{n}.txt"] = f"Title {n}".encode()
            files[f"{n}.png"] = png(COLOURS[n % 2])
        write_shard(tmp_path / f"shop-{shard}.tar", files)
        if where == "there":
            STORE.pipe_file(f"/shop/shop-{shard}.tar", (tmp_path / f"shop-{shard}.tar").read_bytes())
    table = "shop-*.tar" if where == "here" else "memory://shop/shop-*.tar"
    toml = describe(table, image="{png}", title="txt")
    with monkeypatch.context() as patch:
        patch.setattr(image_store.CopiedImages, "add", None)
        catalogue = Catalogue.open(toml)
    assert [each.title for each in catalogue.listings] == [f"Title {n}" for n in range(6)]
    assert [image_of(each, catalogue) for each in catalogue.listings] == [png(COLOURS[n % 2]) for n in range(6)]
    label(toml, tmp_path / "labels.csv")
    assert [row["colour"] for row in read_csv(tmp_path / "labels.csv")] == ["Red", "Blue"] * 3
    assert check_catalogue(toml).report.images.found == 6
    samples = estimate_rows(tmp_path / "shop-*.tar" if where == "here" else RemotePath(table))
    assert 4 <= samples <= 12


def test_a_shard_that_was_cut_meanwhile_is_an_error_of_its_images(
    describe: Callable[..., Path], tmp_path: Path
) -> None:
    write_shard(tmp_path / "shop.tar", {"1.json": b'{"id": "1", "colour": "red"}', "1.png": png("red")})
    catalogue = Catalogue.open(describe("shop.tar", image="{png}", title=None))
    (tmp_path / "shop.tar").write_bytes((tmp_path / "shop.tar").read_bytes()[:1100])
    with pytest.raises(CatalogueError, match=r"cannot read image 1\.png of .*shop\.tar: the file has become shorter"):
        image_of(catalogue.listings[0], catalogue)


# --- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (
            "memory://shop/none.parquet",
            CatalogueError,
            "cannot read memory://shop/none.parquet: there is no such object",
        ),
        ("memory://shop/none-*.csv", CatalogueError, r"memory://shop/none-\*.csv holds no table, or is not there"),
        ("memory://nowhere/", CatalogueError, "memory://nowhere/ holds no table, or is not there"),
        ("nosuch://shop/table.csv", ConfigError, "nosuch://shop/table.csv: Protocol not known: nosuch"),
        ("memory://shop/table.docx", ConfigError, "'table' must end in"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(
    describe: Callable[..., Path], table: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Catalogue.open(describe(table))


def test_a_zip_in_a_store_says_what_to_do(describe: Callable[..., Path]) -> None:
    toml = describe("memory://shop/table.parquet", image="{id}.png", images="memory://shop/photos.zip")
    with pytest.raises(CatalogueError, match="cannot be read in place; name a folder of images there, or write Web"):
        Catalogue.open(toml)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"needs a library: Install s3fs to access S3; pip install 'cma-clip\[s3\]'"):
        table_files(RemotePath("s3://bucket/folder/"))


def test_what_a_stores_library_raises_is_one_line(
    describe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentialsError(Exception):
        """As botocore's: no `OSError`."""

    def raising(*_: Any, **__: Any) -> Any:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(STORE, "open", raising)
    with pytest.raises(CatalogueError, match=r"cannot read memory://shop/table\.csv: Unable to locate credentials"):
        Catalogue.open(describe("memory://shop/table.csv"))


@pytest.mark.parametrize(
    ("text", "remote"),
    [("s3://bucket/a.csv", True), ("gs://bucket/folder/", True), ("export/a.csv", False), ("/data/a.csv", False)],
)
def test_what_is_a_url(text: str, remote: bool, tmp_path: Path) -> None:
    assert is_remote(text) is remote
    assert isinstance(stores.place_of(tmp_path, text), RemotePath) is remote
