"""WebDataset shards as tables, with the images inside: samples to listings, in order."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from model.catalogue import webdataset
from model.catalogue.listings import Catalogue
from model.catalogue.tables import Wanted, open_table
from model.errors import CatalogueError
from tests.model.test_label import label, png, read_csv

WANTED = Wanted(columns=("__key__", "txt", "png", "colour"), id="__key__", title="txt", image="png")


def write_shard(path: Path, files: Mapping[str, bytes], *, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of two samples; one has no title, one a torn JSON file, all have files that nobody asks for."""
    folder = tmp_path / "shards"
    folder.mkdir()
    red = json.dumps({"colour": "Red", "price": 3}).encode()
    write_shard(
        folder / "shop-0.tar",
        {"a/1.png": png("red"), "a/1.txt": "Rot é".encode(), "a/1.json": red, "2.PNG": png("blue"), "2.json": red},
    )
    write_shard(
        folder / "shop-1.tar",
        {
            "3.txt": b"Plain",
            "3.json": b"{torn",
            "3.seg.png": b"",
            "4.txt": b"A red shirt",
            "4.json": red,
            "4.png": png("red"),
        },
    )
    return folder


def test_samples_are_rows(shards: Path) -> None:
    table = open_table(shards / "shop-0.tar", WANTED)
    assert table.form == "a WebDataset shard"
    first, second = table.rows
    assert (first.values["__key__"], first.values["txt"], first.values["colour"]) == ("a/1", "Rot é", "Red")
    assert first.embedded == png("red")
    assert (second.values["__key__"], second.values["txt"], second.embedded) == ("2", "", png("blue"))


def test_what_cannot_be_read_costs_its_row_alone(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(open_table(shards, WANTED).rows)
    assert [(row.line, row.error) for row in rows] == [
        (1, None),
        (2, None),
        (3, "3.json is not a JSON object"),
        (4, None),
    ]
    monkeypatch.setattr(webdataset, "MAX_IMAGE_BYTES", 40)
    assert next(open_table(shards, WANTED).rows).error == "a/1.png has more than 40 bytes"


def test_shards_are_trained_on_and_labelled(shards: Path, tmp_path: Path) -> None:
    toml = tmp_path / "shop.toml"
    toml.write_text(
        '[catalogue]\ntable = "shards/*.tar"\nid = "__key__"\ntitle = "txt"\nimage = "{png}"\nattributes = ["colour"]\n'
    )
    catalogue = Catalogue.open(toml)
    assert [(each.id, each.labels["colour"]) for each in catalogue.listings] == [
        ("a/1", "Red"),
        ("2", "Red"),
        ("4", "Red"),
    ]
    assert catalogue.image_bytes(str(catalogue.listings[1].image)) == png("blue")
    label(toml, tmp_path / "labels.csv")
    rows = read_csv(tmp_path / "labels.csv")
    assert [(row["id"], row["colour"]) for row in rows] == [("a/1", "Red"), ("2", "Blue"), ("3", ""), ("4", "Red")]
    assert rows[2]["error"] == "line 3: 3.json is not a JSON object"


def test_a_missing_column_and_a_torn_file_are_one_line(shards: Path) -> None:
    with pytest.raises(CatalogueError, match=r"shop-0\.tar has no column 'title'; it has '__key__', 'png'"):
        list(open_table(shards / "shop-0.tar", Wanted(columns=("title",), id="title")).rows)
    whole = (shards / "shop-0.tar").read_bytes()
    (shards / "shop-0.tar").write_bytes(whole[:700])
    with pytest.raises(CatalogueError, match="is not a readable tar file"):
        list(open_table(shards / "shop-0.tar", WANTED).rows)


def test_compressed_shards_are_read(shards: Path) -> None:
    write_shard(shards / "more.tar.gz", {"5.txt": b"Five", "5.json": b'{"colour": "Red"}', "5.png": b""}, mode="w:gz")
    assert [row.values["__key__"] for row in open_table(shards / "more.tar.gz", WANTED).rows] == ["5"]
