"""What `cma-clip check` recommends: how to train on a catalogue of this size, and about how long it takes here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.catalogue.check import CatalogueCheck
from model.catalogue.splits import Part
from model.config import ModelConfig
from model.device import pick_device, training_precision
from model.inputs.dataset import TrainingBatch
from model.inputs.preprocess import ImageTransform
from model.inputs.tokenizer import TitleTokenizer, pad_tokens
from model.network.cma_clip import build_cma_clip
from model.tasks import Task
from model.training.config import TrainConfig
from model.training.initialise import IMAGENET
from model.training.objective import TrainingLoss
from model.training.train import config_for, initial_for, model_for

TIMED_STEPS = 3

_TITLE = "Men Navy Blue Checked Regular Fit Casual Shirt"
"""A title of usual length; what it says does not matter to the time."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """How to train on a catalogue. `minutes` is what the optimiser steps take; None where they were not timed."""

    start: str
    epochs: int
    batch_size: int
    steps: int
    pretrain: bool
    device: str
    minutes: float | None

    @property
    def basis(self) -> str:
        """How `minutes` were found, in words."""
        return (
            f"{TIMED_STEPS} optimiser steps on made-up listings were timed on the {self.device}, with what else runs "
            "here now; reading images where no core is free for it, and validation after each epoch, come on top"
        )


def advise(check: CatalogueCheck, *, timed: bool = True) -> Advice | None:
    """Return the recommendation for a catalogue, or None where training would refuse it."""
    tasks = [Task(name=facts.name, labels=facts.learned) for facts in check.attributes if len(facts.learned) > 1]
    listings = check.parts[Part.TRAIN]
    if check.errors or not tasks:
        return None
    initial = initial_for(listings)
    config, model = config_for(listings, initial), model_for(listings, None, initial)
    steps = config.optimiser.epochs * (listings // config.optimiser.batch_size)
    return Advice(
        start="ImageNet weights" if initial == IMAGENET else "random weights",
        epochs=config.optimiser.epochs,
        batch_size=config.optimiser.batch_size,
        steps=steps,
        pretrain=initial is None and bool(check.config.title and check.report.images.found),
        device=str(pick_device("auto")),
        minutes=steps * seconds_per_step(model, config, tasks) / 60 if timed else None,
    )


def seconds_per_step(model: ModelConfig, config: TrainConfig, tasks: Sequence[Task]) -> float:
    """Return the seconds of an optimiser step on this machine: the mean of a few, after one that warms up.

    The network has random weights, and the listings are noise: neither matters to the time.
    """
    device = pick_device("auto")
    network = build_cma_clip(model, tasks).to(device)
    network.to(memory_format=torch.channels_last)
    if config.lock_image:
        network.backbone.lock_image()
    optimiser = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], fused=True)
    loss = TrainingLoss(config, ImageTransform(model.preprocess))
    batch = _noise(model, tasks, config.optimiser.batch_size).to(device)
    began = time.perf_counter()
    for step in range(TIMED_STEPS + 1):
        if step == 1:
            began = time.perf_counter()
        with training_precision(device, network):
            total = loss(network, batch, 0.0)["total"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED_STEPS


def _noise(model: ModelConfig, tasks: Sequence[Task], size: int) -> TrainingBatch:
    tokens = TitleTokenizer(model.preprocess)(_TITLE).tokens
    there = torch.ones(size, dtype=torch.bool)
    return TrainingBatch(
        pixels=torch.randint(0, 256, (size, 3, *model.preprocess.image_size), dtype=torch.uint8),
        tokens=pad_tokens([tokens] * size, len(tokens)),
        labels=torch.stack([torch.randint(0, len(task.labels), (size,)) for task in tasks], dim=1),
        has_image=there,
        has_title=there,
    )
