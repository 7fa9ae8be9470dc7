"""Whatever a cell begins with, a spreadsheet takes it for text, and it is read back as it was."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import client
from model.catalogue.formulas import from_cell, to_cell
from model.catalogue.tables import Wanted, open_table

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-abc-123", "=cmd|' /C calc'!A0", "'=1", "＝1"]

TEXTS = st.one_of(st.text(), st.text("'=+-@\t1a", max_size=6))


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_written_as_text(text: str) -> None:
    assert to_cell(text) == f"'{text}"
    assert from_cell(to_cell(text)) == text


@pytest.mark.parametrize(
    "text", ["", "-5", "+4930123", "-0.25", "1e-5", "-1.5E+3", "a=1", "Blue-Green", "'s", "'", "’=", "0.97"]
)
def test_what_a_spreadsheet_does_not_compute_is_left_alone(text: str) -> None:
    assert to_cell(text) == from_cell(text) == text


@given(TEXTS)
def test_every_text_is_read_back_as_it_was(text: str) -> None:
    cell = to_cell(text)
    assert from_cell(cell) == text
    assert cell[:1] not in {"=", "+", "-", "@", "\t", "\r", "\n"} or float(cell) == float(text)


@given(TEXTS)
def test_the_example_client_has_the_same_cells(text: str) -> None:
    assert client.to_cell(text) == to_cell(text)
    assert client.from_cell(text) == from_cell(text)


def test_tables_are_read_as_they_were_meant(tmp_path: Path) -> None:
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["'=id", "title"], *[[to_cell(text), "T"] for text in FORMULAS]])
    table = open_table(tmp_path / "table.csv", Wanted(columns=("=id", "title"), id="=id", title="title"))
    rows = list(table.rows)
    assert [row.values["=id"] for row in rows] == [text.strip() for text in FORMULAS]
