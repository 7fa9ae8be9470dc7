"""How many processes load listings."""

from __future__ import annotations

import pytest
import torch

from model.inputs import dataset
from model.inputs.dataset import loader_workers


@pytest.mark.parametrize(
    ("gpu", "cores", "processes", "workers"),
    [(False, 8, "1", 1), (True, 8, "1", 7), (True, 8, "2", 3), (True, 2, "4", 1), (True, 96, "2", 16)],
)
def test_as_many_load_listings_as_pay(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, cores: int, processes: str, workers: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(dataset, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert loader_workers(None) == workers
    assert [loader_workers(wanted) for wanted in (0, 3)] == [0, 3]
