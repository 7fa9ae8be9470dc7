"""One process that plays one of several: its share of batches, listings and GPUs, and who prints.

What several processes do together is tested in `tests/distributed/`.
"""

from __future__ import annotations

import pytest
import torch

from model.errors import ConfigError, TrainingError
from model.inputs.dataset import ShuffledSampler
from model.training import distributed


@pytest.fixture
def third_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("third_of_four")
def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    assert distributed.share_of(16) == slice(8, 12)
    with pytest.raises(TrainingError, match=r"18 listings cannot be shared evenly by 4 processes; .*batch_size"):
        distributed.share_of(18)


def test_the_parts_of_all_processes_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for count in (0, 1, 3, 4, 10, 17):
        rows: list[int] = []
        for rank in range(4):
            monkeypatch.setenv("RANK", str(rank))
            rows += distributed.part_of(count)
        assert rows == list(range(count))


def test_each_process_loads_its_own_rows_of_the_same_batches() -> None:
    def order(share: slice, start: int = 0) -> list[int]:
        sampler = ShuffledSampler(27, batch_size=8, seed=3, share=share)
        sampler.set_epoch(2, start)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    whole = order(slice(None))
    assert len(set(whole)) == len(whole) == 24
    halves = order(slice(0, 4)), order(slice(4, 8))
    for batch in range(3):
        rows = [half[4 * batch : 4 * batch + 4] for half in halves]
        assert rows[0] + rows[1] == whole[8 * batch : 8 * batch + 8]
    assert order(slice(4, 8), start=2) == halves[1][8:]


@pytest.mark.usefixtures("third_of_four")
def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert distributed._own_device("auto") == distributed._own_device("cuda") == torch.device("cuda:2")
    assert distributed._own_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="a GPU of its own; use cuda, not cuda:0"):
        distributed._own_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="this machine has 2 GPUs"):
        distributed._own_device("auto")


@pytest.mark.usefixtures("third_of_four")
def test_the_first_process_alone_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    distributed.first_console().print("from the third")
    monkeypatch.setenv("RANK", "0")
    distributed.first_console().print("from the first")
    assert capsys.readouterr().err == "from the first\n"
