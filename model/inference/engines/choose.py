"""Which engine answers: what was asked for, or the fastest that this machine and the checkpoint allow."""

from __future__ import annotations

from pathlib import Path

from model.checkpoint.folder import Checkpoint, load_checkpoint
from model.errors import CheckpointError
from model.inference.engines.engine import Engine


def load_engine(folder: Path, *, engine: str, device: str, dtype: str) -> tuple[Checkpoint, Engine]:
    """Load a checkpoint with the calibration of its engine, and that engine."""
    from model.inference.engines.torch_engine import TorchEngine  # noqa: PLC0415 - takes seconds

    checkpoint = load_checkpoint(folder)
    if not checkpoint.tasks:
        raise CheckpointError(f"{folder} holds pre-trained towers without attributes; train on it first")
    return checkpoint, TorchEngine.load(checkpoint, device=device, dtype=dtype)
