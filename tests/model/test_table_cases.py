"""The tables that the playground reads too mean to the library what they mean there."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import open_images
from model.catalogue.listings import BadRow, ReadReport, iter_listings
from model.catalogue.tables import Wanted, open_table
from model.errors import CatalogueError
from tests.table_cases import CASES, IMAGE_CASES, Case, ImageCase

WANTED = Wanted(columns=("id", "title", "image"), id="id", title="title", image="image", lists=frozenset({"image"}))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_table_means_the_same_to_the_library(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.file
    path.write_bytes(case.data)
    if case.refusal:
        with pytest.raises(CatalogueError) as caught:
            list(open_table(path, WANTED).rows)
        assert case.refusal in str(caught.value)
        return
    table = open_table(path, WANTED)
    values = [(row.line, *(row.values[name] for name in WANTED.columns), row.error, row.repaired) for row in table.rows]
    assert [(line if wanted[0] else 0, *row) for (line, *row), wanted in zip(values, case.rows, strict=True)] == list(
        case.rows
    )
    assert table.form.startswith(case.form)


@pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
def test_a_row_has_the_image_that_it_names_or_fails(case: ImageCase, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(case.text)
    for name in case.images:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    config = CatalogueConfig(
        path=tmp_path, table=tmp_path / "t.csv", id="id", title="title", image="{image}", images=tmp_path / "images"
    )
    rows = list(iter_listings(config, open_images(config.images), ReadReport("t.csv")))
    assert [None if isinstance(row, BadRow) else row.image or "" for row in rows] == list(case.found)
