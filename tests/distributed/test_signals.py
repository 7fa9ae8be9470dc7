"""What a terminal's Ctrl-C, or an orchestrator's SIGTERM, does to a training whose loader has processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from model.training.trainer import STATE
from tests.conftest import write_catalogue

TRAIN = """
import sys
from service.cli import main
sys.argv = ["cma-clip", "train", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_too(tmp_path: Path, number: int) -> None:
    """As Ctrl-C in a terminal sends it: to the workers as well, who must not die of it before the run is saved."""
    toml = write_catalogue(tmp_path / "shop", 400)
    settings = ["optimiser.batch_size=16", "optimiser.workers=1", "augment.crop=0.9"]
    command = [str(toml), "--out", str(tmp_path / "run"), "--backbone", "cma-tiny", "--epochs", "500"]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", TRAIN, *command, *(part for each in settings for part in ("--set", each))],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoint").is_dir():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in said
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert state["step"] > 0
    assert process.returncode == 130, said
