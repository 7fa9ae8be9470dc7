"""`cma-clip train`: multi-task fine-tuning of CMA-CLIP on a catalogue."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.checkpoint.folder import provenance, save_checkpoint
from model.config import ModelConfig, to_json
from model.device import pick_device
from model.errors import ConfigError
from model.inputs.dataset import ListingDataset, TrainingBatches
from model.network.cma_clip import AttributeNetwork
from model.tasks import Task, build_tasks
from model.training.config import SituationWeights, TrainConfig
from model.training.initialise import initial_network, keep_heads
from model.training.objective import TrainingLoss
from model.training.trainer import Loop, finished_checkpoint
from model.training.validation import Validation

BuildNetwork = Callable[[ModelConfig, Sequence[Task], str | None], AttributeNetwork]
"""Configuration, attributes and start (see `train`) -> the network to train."""

ReadListings = Callable[..., ListingDataset]
"""Makes the data sets, called as `ListingDataset` is."""


def train(
    catalogue: Catalogue,
    out: Path,
    *,
    name: str,
    model: ModelConfig,
    config: TrainConfig,
    initial: str | None = None,
    build: BuildNetwork | None = None,
    read: ReadListings = ListingDataset,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Train on the catalogue's train part, choose on its validation part; return the checkpoint folder.

    Writes the run to `out` and its best checkpoint to `out/checkpoint`; called again with the same arguments,
    it goes on where it was interrupted. `initial` is another checkpoint of ours (towers and fusion are kept,
    heads are new), an open_clip pretrained tag or a local weights file; None starts from random weights.
    `build` makes another network than CMA-CLIP (`initial_network`), for comparisons, and `read` other data sets.
    Raises `CatalogueError`, `ConfigError`, `CheckpointError` or `TrainingError`.
    """
    console = console or Console(stderr=True)
    console.print(str(catalogue.report))
    listings = catalogue.part(Part.TRAIN)
    if not any(_can_be_read(listing, config.weights) for listing in listings):
        raise ConfigError("no listing of the train part can be read in a situation whose weight is not 0")
    tasks = _tasks(catalogue, listings, console)
    network = _started(build or initial_network, model, tasks, initial, config)
    target = pick_device(device)
    training = {
        "catalogue": catalogue.config.table.name,
        "listings": len(listings),
        "initial": provenance(initial),
        "config": to_json(config),
    }

    def save(best: nn.Module, scores: Mapping[str, float]) -> None:
        save_checkpoint(
            out / "checkpoint",
            copy.deepcopy(best),  # rounding to what is stored must not touch the running average
            name=name,
            config=model,
            tasks=tasks,
            training=training | {"validation": dict(scores)},
        )

    dataset = partial(read, catalogue, tasks=tasks, preprocess=model.preprocess)
    seed = config.optimiser.seed
    epochs = config.optimiser.epochs
    augment = [config.at((epoch + 0.5) / epochs).augment for epoch in range(epochs)]
    examples = dataset(listings, augment=augment, seed=seed)
    Loop(
        network=network,
        loss=TrainingLoss(config, examples.transform),
        batches=TrainingBatches(
            examples,
            batch_size=config.optimiser.batch_size,
            workers=config.optimiser.workers,
            seed=seed,
        ),
        optimiser=config.optimiser,
        folder=out,
        device=target,
        validate=Validation(
            dataset(catalogue.part(Part.VALIDATION)),
            config.weights,
            device=target,
            workers=config.optimiser.workers,
        ),
        save_best=save,
        fingerprint={
            "name": name,
            "model": to_json(model),
            "tasks": [[t.name, *t.labels] for t in tasks],
            "digest": catalogue.digest,
            **training,
        },
        ema_decay=config.ema_decay,
        console=console,
    ).run()
    return finished_checkpoint(out)


def _tasks(catalogue: Catalogue, listings: Sequence[Listing], console: Console) -> tuple[Task, ...]:
    config = catalogue.config
    if not config.attributes:
        raise ConfigError("the catalogue names no attributes to train on")
    labels = (listing.labels for listing in listings)
    tasks, rare = build_tasks(labels, config.attributes, min_label_count=config.min_label_count)
    _report_tasks(tasks, rare, console)
    return tasks


def _started(
    build: BuildNetwork, model: ModelConfig, tasks: Sequence[Task], initial: str | None, config: TrainConfig
) -> AttributeNetwork:
    torch.manual_seed(config.optimiser.seed)
    network = build(model, tasks, initial)
    if config.keep_heads:
        keep_heads(network, tasks, initial)
    if config.lock_image:
        network.backbone.lock_image()
    return network


def _can_be_read(listing: Listing, weights: SituationWeights) -> bool:
    image, title = bool(listing.image), bool(listing.title)
    return bool((weights.image and image) or (weights.title and title) or (weights.image_and_title and image and title))


def _report_tasks(tasks: Sequence[Task], rare: Mapping[str, Mapping[str, int]], console: Console) -> None:
    for task in tasks:
        left_out = rare[task.name]
        names = ", ".join(f"{label} ({count})" for label, count in left_out.items())
        console.print(
            f"{task.name}: {len(task.labels)} labels"
            + (f"; {len(left_out)} rare ones left out: {names}" if left_out else "")
        )
