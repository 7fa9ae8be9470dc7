"""The sizing benchmark runs on a real server, and gives what docs/operations.md is written from."""

from __future__ import annotations

from pathlib import Path

from benchmarks.capacity import PICTURES, Setting, machine, measure, settings, write_picture
from docs.capacity import plan, sizing
from tests.deployment.tools import ROOT


def test_every_number_of_cores_is_measured_with_every_picture() -> None:
    rows = {(setting.cores, setting.picture) for setting in settings(cores=2) if setting.dtype == "float32"}
    assert rows == {(cores, picture) for cores in (1, 2) for picture in PICTURES}


def test_a_short_measurement_gives_what_the_page_needs(tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    write_picture(picture, (60, 80))
    row = measure(Setting(1, "float32", "60 × 80"), picture, checkpoint=ROOT / "weights/fashion", seconds=1)
    assert all(set(row[load]["statuses"]) == {"200"} for load in ("single", "batches", "half_load"))
    assert row["single"]["listings_per_second"] > 0
    memory = row["memory_mib"]
    # The kernel counts the two apart, to some pages.
    assert 0 < memory["warm"] <= memory["loaded"] <= memory["peak"] + 1
    found = {"machine": machine(), "model": "x", "seconds": 1, "rows": [row]}
    assert "1 core, float32" in sizing(found)
    assert "replicas of 1 core" in plan(found)
