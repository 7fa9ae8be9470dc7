"""`cma-clip train`: multi-task fine-tuning of CMA-CLIP on a catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from model.catalogue.applicability import describe_applicability, learn_applicability
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.checkpoint.folder import provenance
from model.checkpoint.weights import save_checkpoint
from model.config import ModelConfig, to_json
from model.device import pick_device
from model.errors import ConfigError
from model.inputs.augment import AugmentConfig
from model.inputs.dataset import ListingDataset, TrainingBatches
from model.network.cma_clip import CMAClip
from model.tasks import Task, build_tasks, encode_row, multi_valued_places
from model.training.config import (
    FEW_LISTINGS,
    FEW_LISTINGS_FUSION,
    SituationWeights,
    TrainConfig,
    clip_training,
    describe_schedule,
    few_listings_training,
    small_training,
)
from model.training.initialise import IMAGENET, initial_model, initial_network, keep_heads, start_from_frequencies
from model.training.objective import TrainingLoss
from model.training.trainer import Trainer, finished_checkpoint
from model.training.validation import Validation
from model.trust.applicability import Applicability

NAME = "cma-clip"
"""What a checkpoint is called where nothing else is said."""


def train(
    catalogue: Catalogue,
    out: str | Path,
    *,
    name: str = NAME,
    model: ModelConfig | None = None,
    config: TrainConfig | None = None,
    initial: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Train on the catalogue's train part, choose on its validation part; return the checkpoint folder.

    Writes the run to `out` and its best checkpoint to `out/checkpoint`; called again with the same arguments,
    it resumes where it was interrupted. `initial` is another checkpoint of ours (towers and fusion are kept,
    heads are new), an open_clip pretrained tag, a local weights file, or `imagenet`. Where neither it nor `model` is
    given, it is `default_initial(catalogue)`; None beside a `model` starts from random weights. `model` is
    `default_model(catalogue, None, initial)` and `config` is `default_config(catalogue, initial)` where they are None.
    Raises `CatalogueError`, `ConfigError`, `CheckpointError` or `TrainingError`.

        train(Catalogue.open("shop.toml"), "runs/shop")
    """
    start = str(initial) if initial else None if model else default_initial(catalogue)
    return FineTuning(
        catalogue,
        name=name,
        model=model or default_model(catalogue, None, start),
        config=config or default_config(catalogue, start),
        initial=start,
        console=console or Console(stderr=True),
    ).run(Path(out), device=device)


def default_config(catalogue: Catalogue, initial: str | None) -> TrainConfig:
    """Return the preset for a start from `initial`, with a schedule for the number of training listings."""
    return config_for(len(catalogue.part(Part.TRAIN)), initial)


def default_model(catalogue: Catalogue, backbone: str | None, initial: str | None) -> ModelConfig:
    """Return the configuration of the network for a start from `initial`, or for a new one on `backbone`.

    A start from ImageNet with few training listings has the fusion of `few_listings_training`. Raises as
    `initial_model` does.
    """
    return model_for(len(catalogue.part(Part.TRAIN)), backbone, initial)


def default_initial(catalogue: Catalogue) -> str | None:
    """Return what a training starts from where nothing is said: ImageNet weights for few listings, else random ones."""
    return initial_for(len(catalogue.part(Part.TRAIN)))


def config_for(listings: int, initial: str | None) -> TrainConfig:
    """Return what `default_config` does for a catalogue with so many training listings."""
    if initial == IMAGENET and listings < FEW_LISTINGS:
        return few_listings_training(listings)
    pretrained_clip = initial not in (None, IMAGENET) and not Path(initial).is_dir()
    return clip_training(listings) if pretrained_clip else small_training(listings)


def model_for(listings: int, backbone: str | None, initial: str | None) -> ModelConfig:
    """Return what `default_model` does for a catalogue with so many training listings."""
    few = initial == IMAGENET and listings < FEW_LISTINGS
    return initial_model(backbone, initial, fusion=FEW_LISTINGS_FUSION if few else None)


def initial_for(listings: int) -> str | None:
    """Return what `default_initial` does for a catalogue with so many training listings."""
    return IMAGENET if listings < FEW_LISTINGS else None


class FineTuning:
    """One fine-tuning, made ready: `run` trains it.

    `build_network` and `dataset` make what is trained and what it is trained on; a subclass that compares networks
    overrides them (`research/study`).
    Raises `ConfigError` where the catalogue has nothing to train on.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        name: str,
        model: ModelConfig,
        config: TrainConfig,
        initial: str | None,
        console: Console,
    ) -> None:
        self.catalogue, self.name, self.model, self.config = catalogue, name, model, config
        self.initial, self.console = initial, console
        console.print(str(catalogue.report))
        self.listings = catalogue.part(Part.TRAIN)
        if not any(_is_trained(listing, config.weights) for listing in self.listings):
            raise ConfigError("no listing of the train part belongs to a situation whose weight is not 0")
        self.tasks = _tasks(catalogue, self.listings, console)
        self.applicability = _applicability(catalogue, self.listings, self.tasks, console)
        self.record = {
            "catalogue": catalogue.config.table.name,
            "listings": len(self.listings),
            "initial": provenance(initial),
            "config": to_json(config),
            **({"corrections": catalogue.corrections.to_json()} if catalogue.corrections else {}),
        }
        """What a checkpoint says of how it was trained."""

    def build_network(self) -> CMAClip:
        """Build the network, filled from `initial`."""
        return initial_network(self.model, self.tasks, self.initial)

    def dataset(self, listings: Sequence[Listing], augment: Sequence[AugmentConfig] | None = None) -> ListingDataset:
        """Return the data set of `listings`, augmented by one of `augment` in each epoch, or not at all."""
        seed = self.config.optimiser.seed
        return ListingDataset(self.catalogue, listings, self.tasks, self.model.preprocess, augment=augment, seed=seed)

    def run(self, out: Path, *, device: str = "auto") -> Path:
        """Train, or resume, in the folder `out`; return the checkpoint folder."""
        config, optimiser, target = self.config, self.config.optimiser, pick_device(device)
        usual = default_config(self.catalogue, self.initial).optimiser
        self.console.print(describe_schedule(len(self.listings), "training listings", optimiser, usual))
        network = self._initial_network()
        examples = self.dataset(self.listings, _augment_by_epoch(config))
        held_out = self.dataset(self.catalogue.part(Part.VALIDATION))
        Trainer(
            network=network,
            loss=TrainingLoss(config, examples.transform, multi_valued_places(self.tasks)),
            batches=TrainingBatches(
                examples, batch_size=optimiser.batch_size, workers=optimiser.workers, seed=optimiser.seed
            ),
            optimiser=optimiser,
            folder=out,
            device=target,
            validate=Validation(held_out, config.weights, device=target, workers=optimiser.workers),
            save_best=lambda best, scores: self._save(out / "checkpoint", best, scores),
            fingerprint=self._fingerprint(),
            ema_decay=config.ema_decay,
            console=self.console,
        ).run()
        return finished_checkpoint(out)

    def _initial_network(self) -> CMAClip:
        torch.manual_seed(self.config.optimiser.seed)
        network = self.build_network()
        if self.config.label_prior or multi_valued_places(self.tasks):
            labels = [encode_row(self.tasks, listing.labels, listing.label_sets) for listing in self.listings]
            start_from_frequencies(network, self.tasks, torch.tensor(labels), every_head=self.config.label_prior)
        if self.config.keep_heads:
            keep_heads(network, self.tasks, self.initial)
        if self.config.lock_image:
            network.backbone.lock_image()
        return network

    def _save(self, folder: Path, network: CMAClip, scores: Mapping[str, float]) -> None:
        save_checkpoint(
            folder,
            network,
            name=self.name,
            config=self.model,
            tasks=self.tasks,
            training=self.record | {"validation": dict(scores)},
            applicability=self.applicability,
        )

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": to_json(self.model),
            "tasks": [[task.name, *task.labels] for task in self.tasks],
            **({"separators": separators} if (separators := _separators(self.tasks)) else {}),
            **({} if self.applicability is None else {"applicability": self.applicability.to_json()}),
            "digest": self.catalogue.digest,
            **self.record,
        }


def _augment_by_epoch(config: TrainConfig) -> list[AugmentConfig]:
    """Return each epoch's augmentation: the corruption shares of its middle."""
    epochs = config.optimiser.epochs
    return [config.at((epoch + 0.5) / epochs).augment for epoch in range(epochs)]


def _tasks(catalogue: Catalogue, listings: Sequence[Listing], console: Console) -> tuple[Task, ...]:
    config = catalogue.config
    if not config.attributes:
        raise ConfigError("the catalogue names no attributes to train on")
    tasks, rare = build_tasks(
        ({**listing.labels, **listing.label_sets} for listing in listings),
        config.attributes,
        min_label_count=config.min_label_count,
        separators=config.separator,
        names=config.label_names,
    )
    _report_tasks(tasks, rare, console)
    return tasks


def _separators(tasks: Sequence[Task]) -> dict[str, str]:
    return {task.name: task.separator for task in tasks if task.separator is not None}


def _applicability(
    catalogue: Catalogue, listings: Sequence[Listing], tasks: Sequence[Task], console: Console
) -> Applicability | None:
    """Learn from the train part which product types never bear an attribute, and say so."""
    config = catalogue.config
    if config.product_type is None:
        return None
    found = learn_applicability(
        listings,
        config.product_type,
        config.attributes,
        known=next(task.labels for task in tasks if task.name == config.product_type),
    )
    console.print(describe_applicability(found), soft_wrap=True, markup=False)
    return found


def _is_trained(listing: Listing, weights: SituationWeights) -> bool:
    image, title = bool(listing.image), bool(listing.title)
    return bool((weights.image and image) or (weights.title and title) or (weights.image_and_title and image and title))


def _report_tasks(tasks: Sequence[Task], rare: Mapping[str, Mapping[str, int]], console: Console) -> None:
    for task in tasks:
        left_out = rare[task.name]
        names = ", ".join(f"{label} ({count})" for label, count in left_out.items())
        console.print(
            f"{task.name}: {len(task.labels)} labels"
            + (", any number of them for each listing" if task.multi_valued else "")
            + (f"; {len(left_out)} rare ones left out: {names}" if left_out else "")
        )
