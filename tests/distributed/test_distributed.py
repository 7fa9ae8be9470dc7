"""Two processes train what one would, resume what another number of them began, and end together.

Run by `make test-distributed`: starting processes takes a minute.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.training.trainer import STATE
from tests.conftest import write_catalogue
from tests.distributed import together

ROOT = Path(__file__).parents[2]

SECONDS = 240
"""Long enough on a busy machine; a hang would be longer."""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@contextmanager
def started(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in two processes, whose messages go to `log`; none is left behind."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen([*TORCHRUN, *command], cwd=ROOT, env=environment, stderr=file)  # noqa: S603 - ours
    try:
        yield process
    finally:
        for pid in workers(process).values():
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def workers(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Return the processes that a `torchrun` has started, by their rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            variables = folder.joinpath("environ").read_text().split("\0")
        except OSError:  # it has ended
            continue
        if parent == process.pid and (rank := next((each for each in variables if each.startswith("RANK=")), None)):
            found[int(rank.removeprefix("RANK="))] = int(folder.name)
    return found


def write_gaps(toml: Path) -> None:
    """Take labels, titles and images away, so that every process and every part has its own share of what is there."""
    table = toml.parent / "table.csv"
    with table.open(newline="") as file:
        header, *rows = csv.reader(file)
    for number, row in enumerate(rows):
        if number % 3 == 0 or number < 60:
            row[header.index("colour")] = ""
        if number % 5 == 0:
            row[header.index("title")] = ""
        elif number % 7 == 0:
            (toml.parent / "images" / f"{row[0]}.png").unlink()
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalogue, and runs of one process and of two."""
    folder = tmp_path_factory.mktemp("together")
    write_gaps(write_catalogue(folder / "shop", 240))
    with together.at_step(together.INTERRUPTED_AT - 1, together.interrupt), pytest.raises(KeyboardInterrupt):
        together.fine_tune(folder, "interrupted-alone")
    with started("-m", "tests.distributed.together", str(folder), log=folder / "log") as process:
        assert process.wait(timeout=SECONDS) > 0, "a process that fails does not leave the other one waiting"
    assert "as a bug or a full disk would" in (folder / "log").read_text()
    return folder


def losses(folder: Path, name: str) -> list[dict[str, float]]:
    """Return the losses of each step, which have to be the same in both processes."""
    first, second = (json.loads((folder / f"losses-{rank}.json").read_text())[name] for rank in range(2))
    assert first == second
    return list(first)


def state(folder: Path, name: str) -> dict[str, Any]:
    return dict(torch.load(folder / name / STATE, weights_only=True))


def assert_alike(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    """Weights are the same to float tolerance."""
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert torch.allclose(actual[name], value, rtol=1e-3, atol=1e-3), name


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, float]]:
    return together.fine_tune(folder, "alone")


@pytest.mark.parametrize("name", ["trained", "in-parts"])
def test_two_processes_have_the_losses_of_one_with_the_whole_batch(
    folder: Path, alone: list[dict[str, float]], name: str
) -> None:
    found = losses(folder, name)
    assert len(found) == len(alone) > 2 * together.INTERRUPTED_AT
    for expected, actual in zip(alone, found, strict=True):
        assert actual == pytest.approx(expected, rel=1e-4)
    assert_alike(state(folder, "alone")["network"], state(folder, name)["network"])
    assert state(folder, name)["best"] == state(folder, "alone")["best"]


@pytest.mark.parametrize("name", ["pretrained", "pretrained-in-parts"])
def test_the_contrastive_loss_is_over_the_whole_batch(folder: Path, name: str) -> None:
    """Half a batch has half as many titles to be mistaken for: its loss is about log 2 smaller."""
    alone, found = together.contrast(folder, f"{name}-alone"), losses(folder, name)
    assert len(found) == len(alone) > together.INTERRUPTED_AT
    for expected, actual in zip(alone, found, strict=True):
        assert actual == pytest.approx(expected, rel=1e-3)
    assert state(folder, name)["best"] == state(folder, f"{name}-alone")["best"]


def test_two_processes_resume_what_one_began(folder: Path, alone: list[dict[str, float]]) -> None:
    found = losses(folder, "resumed")
    assert len(found) == len(alone) - together.INTERRUPTED_AT
    for expected, actual in zip(alone[together.INTERRUPTED_AT :], found, strict=True):
        assert actual == pytest.approx(expected, rel=1e-4)
    assert_alike(state(folder, "alone")["average"], state(folder, "interrupted-alone")["average"])


def test_one_process_resumes_what_two_began_and_one_of_them_was_told_to_end(
    folder: Path, alone: list[dict[str, float]]
) -> None:
    assert state(folder, "interrupted-together")["step"] == together.INTERRUPTED_AT, "both stopped after the same step"
    found = together.fine_tune(folder, "interrupted-together")
    assert len(found) == len(alone) - together.INTERRUPTED_AT
    for expected, actual in zip(alone[together.INTERRUPTED_AT :], found, strict=True):
        assert actual == pytest.approx(expected, rel=1e-4)
    assert_alike(state(folder, "alone")["average"], state(folder, "interrupted-together")["average"])


def test_a_process_that_fails_ends_the_other_and_nothing_was_written(folder: Path) -> None:
    """That it ends in time is asserted where both are started."""
    assert not (folder / "failed" / STATE).exists()
    assert not (folder / "failed" / "checkpoint").exists()


def test_the_command_is_ended_by_a_signal_to_one_of_its_processes(tmp_path: Path) -> None:
    """Once what it has learned is saved, and no process is left."""
    toml = write_catalogue(tmp_path / "shop", 400)
    settings = ("optimiser.batch_size=16", "optimiser.workers=1", "augment.crop=0.9")
    command = ["train", str(toml), "--out", str(tmp_path / "run"), "--backbone", "cma-tiny", "--epochs", "500"]
    command += [part for each in settings for part in ("--set", each)]
    script, log = tmp_path / "cma-clip", tmp_path / "log"
    script.write_text("from service.cli import main\nif __name__ == '__main__':\n    main()\n")
    with started(str(script), *command, log=log) as process:
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "run" / "checkpoint").is_dir():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        os.kill(workers(process)[1], signal.SIGTERM)
        assert process.wait(timeout=SECONDS) > 0
    assert "exitcode  : 130" in log.read_text()
    assert state(tmp_path, "run")["step"] > 0
    assert not workers(process)
