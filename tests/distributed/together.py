"""What two processes do together in `test_distributed.py`:
`torchrun --nproc-per-node 2 -m tests.distributed.together DIR`.

All that can be done in one start is done in one, since a start takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import model.device
from model.catalogue.listings import Catalogue
from model.config import FusionConfig, ModelConfig, PreprocessConfig
from model.inputs.augment import AugmentConfig
from model.training.config import OptimiserConfig, PretrainConfig, TrainConfig
from model.training.distributed import rank
from model.training.pretrain import pretrain
from model.training.train import train
from model.training.trainer import Trainer
from tests.conftest import TINY_BACKBONE

MODEL = ModelConfig(
    backbone_name="tiny",
    backbone=TINY_BACKBONE,
    preprocess=PreprocessConfig(image_size=(24, 16), context_length=16),
    fusion=FusionConfig(width=32, depth=2, heads=2, dropout=0.0),
)

OPTIMISER = OptimiserConfig(epochs=2, batch_size=16, learning_rate=1e-3, workers=0)

TRAIN = TrainConfig(
    optimiser=OPTIMISER,
    augment=AugmentConfig(crop=0.9),
    ema_decay=0.5,
    modality_dropout=0.0,  # drawn, and so other ones, in each process
    mismatched_titles=0.0,  # paired within a process
    mismatched_images=0.0,
)

PRETRAIN = PretrainConfig(optimiser=OPTIMISER, embed_dim=16)

INTERRUPTED_AT = 5


def with_micro_batches(config: Any, size: int) -> Any:
    """Return a configuration whose batches go through the network in parts."""
    return dataclasses.replace(config, optimiser=dataclasses.replace(OPTIMISER, micro_batch=size))


def fine_tune(folder: Path, name: str, config: TrainConfig = TRAIN) -> list[dict[str, float]]:
    """Train in `folder/name`; return the losses of each step."""
    return _recorded(lambda shop: train(shop, folder / name, model=MODEL, config=config), folder)


def contrast(folder: Path, name: str, config: PretrainConfig = PRETRAIN) -> list[dict[str, float]]:
    """Pre-train in `folder/name`; return the losses of each step."""
    return _recorded(lambda shop: pretrain(shop, folder / name, model=MODEL, config=config), folder)


def at_step(step: int, happening: Callable[[], None]) -> Any:
    """Patch the trainer so that something happens before it does a step."""
    update = Trainer._update

    def patched(trainer: Any, *given: Any) -> Any:
        if trainer.step == step:
            happening()
        return update(trainer, *given)

    return patch.object(Trainer, "_update", patched)


def interrupt() -> None:
    """Send SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


def _recorded(run: Callable[[Catalogue], Path], folder: Path) -> list[dict[str, float]]:
    steps: list[dict[str, float]] = []
    update = Trainer._update

    def recording(trainer: Any, *given: Any) -> Any:
        losses = update(trainer, *given)
        steps.append({name: value.item() for name, value in losses.items()})
        return losses

    # In bfloat16, which some processors have, sums over other parts differ in the third digit.
    with (
        patch.object(Trainer, "_update", recording),
        patch.object(model.device, "training_dtype", lambda *_: torch.float32),
    ):
        run(Catalogue.open(folder / "shop" / "catalogue.toml"))
    return steps


def _fail() -> None:
    raise RuntimeError("as a bug or a full disk would")


def main(folder: Path) -> None:
    """Train in several ways, write each run's losses, and end by a failure of one process."""
    found = {
        "trained": fine_tune(folder, "trained"),
        "in-parts": fine_tune(folder, "in-parts", with_micro_batches(TRAIN, 3)),
        "pretrained": contrast(folder, "pretrained"),
        "pretrained-in-parts": contrast(folder, "pretrained-in-parts", with_micro_batches(PRETRAIN, 3)),
        "resumed": fine_tune(folder, "interrupted-alone"),
    }
    second = rank() == 1
    try:
        with at_step(INTERRUPTED_AT - 1, interrupt if second else lambda: None):
            fine_tune(folder, "interrupted-together")
    except KeyboardInterrupt:
        (folder / f"losses-{rank()}.json").write_text(json.dumps(found))
    with at_step(3, _fail if second else lambda: None):
        fine_tune(folder, "failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
