"""The tables that the playground reads too mean to the library what they mean there."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.catalogue.tables import Wanted, open_table
from model.errors import CatalogueError
from tests.table_cases import CASES, Case

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
