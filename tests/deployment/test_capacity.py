"""The sizing benchmark runs on a real server, and gives what docs/operations.md is written from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.capacity import GPU_BATCHES, IMAGE_SIZES, Setting, machine, measure, settings, write_image
from docs.capacity import plan, sizing
from model.inference.engines.choose import usable_engines
from tests.deployment.tools import ROOT

CPU = torch.device("cpu")


SHIPPED = ROOT / "weights/fashion"


def test_every_number_of_cores_is_measured_with_every_image_and_the_engine_that_serves_first() -> None:
    found = list(settings(CPU, 2, SHIPPED))
    rows = {(setting.cores, setting.image, setting.engine) for setting in found}
    engines = [*usable_engines(SHIPPED), "torch"]
    assert rows == {(cores, image, engine) for cores in (1, 2) for image in IMAGE_SIZES for engine in engines}
    assert [setting.engine for setting in found[: len(engines)]] == engines
    assert len(engines) > 1


def test_a_gpu_is_measured_in_every_number_format_and_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    rows = {(setting.dtype, setting.batch) for setting in settings(torch.device("cuda"), 16, SHIPPED)}
    assert rows == {(dtype, batch) for dtype in ("float32", "float16", "bfloat16") for batch in GPU_BATCHES}
    assert {setting.cores for setting in settings(torch.device("cuda"), 16, SHIPPED)} == {16}


def test_a_short_measurement_gives_what_the_page_needs(tmp_path: Path) -> None:
    image = tmp_path / "image.jpg"
    write_image(image, (60, 80))
    row = measure(Setting("cpu", 1, "openvino-f32", "auto", 32, "60 × 80"), image, checkpoint=SHIPPED, seconds=1)
    assert all(set(row[load]["statuses"]) == {"200"} for load in ("single", "batches", "half_load"))
    assert row["single"]["listings_per_second"] > 0
    memory = row["memory_mib"]
    # The kernel counts the two apart, to some pages.
    assert 0 < memory["warm"] <= memory["loaded"] <= memory["peak"] + 1
    found = {"machine": machine(CPU), "model": "x", "seconds": 1, "rows": [row]}
    assert "1 core, openvino-f32" in sizing(found)
    assert "replicas of 1 core" in plan(found)
