"""The benchmark of tables measures what it says, on tables that are read whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.tables import WRITERS, Measured, make, measure


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_is_read_whole(tmp_path: Path, form: str) -> None:
    toml = make(tmp_path, form, 50)
    assert tables.read(toml) == 50
    assert tables.check(toml) == 50


def test_labelling_writes_a_row_for_each(tmp_path: Path) -> None:
    assert tables.label(make(tmp_path, "csv", 50)) == 50
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 51


def test_a_task_is_measured_in_a_process_of_its_own() -> None:
    (found,) = measure("csv", ["read"], 5000)
    assert (found.form, found.task, found.rows) == ("csv", "read", 5000)
    assert 0 < found.start_mebibytes <= found.peak_mebibytes
    assert found.rows_per_second > 0


def test_a_result_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "tables.json"
    for rate in (1, 2):
        for form in ("csv", "xml"):
            tables._add(
                out,
                Measured(
                    form=form, task="read", rows=9, file_mebibytes=1.0, cpu_seconds=1.0, rows_per_second=rate,
                    start_mebibytes=1, peak_mebibytes=2,
                ),
            )  # fmt: skip
    assert [(each["form"], each["rows_per_second"]) for each in json.loads(out.read_text())] == [("csv", 2), ("xml", 2)]
