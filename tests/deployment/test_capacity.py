"""The sizing benchmark runs on a real server, and gives what docs/operations.md is written from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.capacity import GPU_BATCHES, IMAGE_SIZES, Setting, machine, measure, settings, write_image
from docs.capacity import plan, sizing
from tests.deployment.tools import ROOT

CPU = torch.device("cpu")


def test_every_number_of_cores_is_measured_with_every_image() -> None:
    rows = {(setting.cores, setting.image) for setting in settings(CPU, cores=2) if setting.dtype == "float32"}
    assert rows == {(cores, image) for cores in (1, 2) for image in IMAGE_SIZES}


def test_a_gpu_is_measured_in_every_number_format_and_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    rows = {(setting.dtype, setting.batch) for setting in settings(torch.device("cuda"), cores=16)}
    assert rows == {(dtype, batch) for dtype in ("float32", "float16", "bfloat16") for batch in GPU_BATCHES}
    assert {setting.cores for setting in settings(torch.device("cuda"), cores=16)} == {16}


def test_a_short_measurement_gives_what_the_page_needs(tmp_path: Path) -> None:
    image = tmp_path / "image.jpg"
    write_image(image, (60, 80))
    row = measure(Setting("cpu", 1, "float32", 32, "60 × 80"), image, checkpoint=ROOT / "weights/fashion", seconds=1)
    assert all(set(row[load]["statuses"]) == {"200"} for load in ("single", "batches", "half_load"))
    assert row["single"]["listings_per_second"] > 0
    memory = row["memory_mib"]
    # The kernel counts the two apart, to some pages.
    assert 0 < memory["warm"] <= memory["loaded"] <= memory["peak"] + 1
    found = {"machine": machine(CPU), "model": "x", "seconds": 1, "rows": [row]}
    assert "1 core, float32" in sizing(found)
    assert "replicas of 1 core" in plan(found)
