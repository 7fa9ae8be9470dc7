"""`cma-clip train`: multi-task fine-tuning of CMA-CLIP on a catalogue."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from model.backbone import Backbone, TokenSequence, backbone_config, pretrained_backbone
from model.catalogue import Catalogue, Listing, Part
from model.checkpoint import WEIGHTS, load_checkpoint, load_weights, provenance, read_tensors, save_checkpoint
from model.cma_clip import AttributeNetwork, CMAClip, Output, build_cma_clip, multi_task_loss
from model.config import FusionConfig, ModelConfig, PreprocessConfig, SituationWeights, TrainConfig, to_json
from model.dataset import ListingDataset, TrainingBatch, TrainingBatches, load_batches
from model.device import pick_device
from model.errors import CatalogueError, ConfigError
from model.loop import Loop, finished_checkpoint
from model.preprocess import ImageTransform
from model.tasks import UNLABELLED, Task, build_tasks

VALIDATION_BATCH = 128
DEFAULT_BACKBONE = "cma-small"

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
    return bool((weights.image and image) or (weights.title and title) or (weights.both and image and title))


def initial_model(
    backbone: str | None,
    initial: str | None,
    *,
    image_size: tuple[int, int] | None = None,
    fusion: FusionConfig | None = None,
) -> ModelConfig:
    """Return the model configuration for a start from `initial`, or for a new network on `backbone`.

    A start from a checkpoint of ours keeps its towers, preprocessing and (unless `fusion` is given) its fusion.
    `backbone` is `cma-small` where nothing says otherwise. Raises `ConfigError` where `initial` has another one.
    """
    if initial and Path(initial).is_dir():
        config = load_checkpoint(Path(initial)).config
        if backbone not in (None, config.backbone_name):
            raise ConfigError(f"{initial} has the backbone {config.backbone_name}, not {backbone}")
        return ModelConfig(
            backbone_name=config.backbone_name,
            backbone=config.backbone,
            preprocess=config.preprocess,
            fusion=fusion or config.fusion,
        )
    backbone = backbone or DEFAULT_BACKBONE
    clip = backbone_config(backbone)
    size = image_size or _size(clip["vision_cfg"]["image_size"])
    ours = "timm_model_name" in clip["vision_cfg"]
    return ModelConfig(
        backbone_name=backbone,
        backbone=clip,
        preprocess=PreprocessConfig(
            image_size=size,
            context_length=clip["text_cfg"].get("context_length", 77),
            resize="longest" if ours else "shortest",
        ),
        fusion=fusion or FusionConfig(),
    )


def initial_network(model: ModelConfig, tasks: Sequence[Task], initial: str | None) -> CMAClip:
    """Build the network and fill it from `initial` (see `train`)."""
    if not initial:
        return build_cma_clip(model, tasks)
    if not Path(initial).is_dir():
        return build_cma_clip(model, tasks, backbone=_pretrained(model, initial))
    network = build_cma_clip(model, tasks)
    kept = {
        key: value
        for key, value in read_tensors(Path(initial) / WEIGHTS).items()
        if key.startswith(("backbone.", "sequence_attention."))
    }
    try:
        _, unexpected = network.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{initial} has other sizes than this configuration") from error
    if unexpected:
        raise ConfigError(f"{initial} has other towers or another fusion than this configuration: {unexpected[0]}")
    return network


def keep_heads(network: AttributeNetwork, tasks: Sequence[Task], initial: str | None) -> None:
    """Fill the whole network from the checkpoint folder `initial`.

    Raises `ConfigError` where it is no such folder, or has other attributes or labels.
    """
    if not initial or not Path(initial).is_dir():
        raise ConfigError("keep_heads needs a checkpoint folder of ours to start from")
    checkpoint = load_checkpoint(Path(initial))
    if checkpoint.tasks != tuple(tasks):
        raise ConfigError(f"{initial} knows other attributes or labels than this catalogue; its heads cannot be kept")
    load_weights(network, checkpoint)


def _pretrained(model: ModelConfig, weights: str) -> Backbone:
    backbone = pretrained_backbone(model.backbone_name, weights)
    expected = _size(model.backbone["vision_cfg"]["image_size"])
    if expected != model.preprocess.image_size:
        raise ConfigError(f"{model.backbone_name} pretrained needs image size {expected}")
    return backbone


def _size(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


@dataclass(frozen=True)
class TrainingLoss:
    """The multi-task loss of a batch, encoded once and read in each situation that has a weight."""

    config: TrainConfig
    transform: ImageTransform

    def __call__(self, network: nn.Module, batch: TrainingBatch, progress: float) -> dict[str, Tensor]:
        """Return the losses of the readings that weigh, and their weighted sum `total`: scalars, in nats summed over
        attributes.

        `both`, `image`, `title`: each listing as it is, or one modality of it. `foreign`: each image with another
        listing's title, whose labels are the image's (`foreign_titles`) or the title's (`foreign_images`); all are
        read so and count little, instead of a few drawn ones that count fully, to the same expected loss.
        `progress` is the share of the training that is done.
        """
        assert isinstance(network, AttributeNetwork)
        config, weights = self.config.at(progress), self.config.weights
        image = text = None
        if weights.both or weights.image:
            image = network.backbone.encode_image(self.transform.normalise(batch.pixels)).keep(batch.has_image)
        if weights.both or weights.title:
            text = network.backbone.encode_text(batch.tokens).keep(batch.has_title)
        losses: dict[str, Tensor] = {}
        total = batch.pixels.new_zeros((), dtype=torch.float32)
        if image and text and weights.both:
            kept = drop_modalities(batch.has_image, batch.has_title, config.modality_dropout)
            losses["both"] = self._loss(network(image.keep(kept[0]), text.keep(kept[1])), batch.labels)
            foreign = config.foreign_titles + config.foreign_images
            total = total + weights.both * (1 - foreign) * losses["both"]
            if foreign:
                losses["foreign"] = self._foreign(network, image, text, batch, config)
                total = total + weights.both * losses["foreign"]
        # Alone, a modality is read on the rows that have it: elsewhere there is nothing to read.
        if image and weights.image and batch.has_image.any():
            rows = batch.has_image
            losses["image"] = self._loss(network(image.select(rows), None), batch.labels[rows])
            total = total + weights.image * losses["image"]
        if text and weights.title and batch.has_title.any():
            rows = batch.has_title
            losses["title"] = self._loss(network(None, text.select(rows)), batch.labels[rows])
            total = total + weights.title * losses["title"]
        return losses | {"total": total}

    def _foreign(
        self,
        network: AttributeNetwork,
        image: TokenSequence,
        text: TokenSequence,
        batch: TrainingBatch,
        config: TrainConfig,
    ) -> Tensor:
        images, titles = mismatched(batch.has_image, batch.has_title)
        if not len(images):
            return batch.pixels.new_zeros((), dtype=torch.float32)
        output = network(image.select(images), text.select(titles))
        seen, told = (self._loss(output, batch.labels[rows]) for rows in (images, titles))
        return config.foreign_titles * seen + config.foreign_images * told

    def _loss(self, output: Output, labels: Tensor) -> Tensor:
        return multi_task_loss(output.logits, labels, label_smoothing=self.config.label_smoothing)


def drop_modalities(has_image: Tensor, has_title: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """Drop one modality, either as likely, from a share `chance` of the rows that have both; `[B]` bool masks."""
    drawn = torch.rand(has_image.shape, device=has_image.device)
    both = has_image & has_title
    return has_image & ~(both & (drawn < chance / 2)), has_title & ~(both & (drawn > 1 - chance / 2))


def mismatched(has_image: Tensor, has_title: Tensor) -> tuple[Tensor, Tensor]:
    """Pair each listing's image with the title of the listing before it, where there are both.

    Takes `[B]` bool masks; returns the rows of the images and those of their titles, `[P]` int64 both.
    """
    images = (has_image & has_title.roll(1)).nonzero().flatten()
    titles = (images - 1) % len(has_image)
    apart = images != titles  # in a batch of one, a listing is its own neighbour
    return images[apart], titles[apart]


class Validation:
    """Mean accuracy over attributes in each situation; `score`, their mean over the situations that are trained,
    chooses the checkpoint.

    Labels out of the vocabulary count as errors, as they do in every measure.
    """

    def __init__(
        self, dataset: ListingDataset, weights: SituationWeights, *, device: torch.device, workers: int
    ) -> None:
        if not any(listing.labels for listing in dataset.listings):
            raise CatalogueError("the validation part holds no labelled listing: there are too few listings, or groups")
        self.device = device
        self.trained = [situation for situation, weight in vars(weights).items() if weight]
        self.transform = dataset.transform
        self.loader = load_batches(dataset, batch_size=VALIDATION_BATCH, workers=workers)

    @torch.inference_mode()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, AttributeNetwork)
        predicted: dict[str, list[NDArray[np.int64]]] = {"both": [], "image": [], "title": []}
        present: dict[str, list[NDArray[np.bool_]]] = {"both": [], "image": [], "title": []}
        labels = []
        for batch in self._batches():
            image = network.backbone.encode_image(self.transform.normalise(batch.pixels)).keep(batch.has_image)
            text = network.backbone.encode_text(batch.tokens).keep(batch.has_title)
            labels.append(batch.labels.cpu().numpy())
            for situation, output, rows in (
                ("both", network(image, text), batch.has_image & batch.has_title),
                ("image", network(image, None), batch.has_image),
                ("title", network(None, text), batch.has_title),
            ):
                best = torch.stack([scores.argmax(dim=1) for scores in output.logits], dim=1)
                predicted[situation].append(best.cpu().numpy())
                present[situation].append(rows.cpu().numpy())
        scores = _mean_accuracies(predicted, present, np.concatenate(labels))
        counted = [scores[situation] for situation in self.trained if situation in scores]
        if not counted:
            raise CatalogueError("the validation part holds no labelled listing; the catalogue is too small")
        return scores | {"score": float(np.mean(counted))}

    def _batches(self) -> Iterator[TrainingBatch]:
        for batch in self.loader:
            yield batch.to(self.device)


def _mean_accuracies(
    predicted: Mapping[str, Sequence[NDArray[np.int64]]],
    present: Mapping[str, Sequence[NDArray[np.bool_]]],
    labels: NDArray[np.int64],
) -> dict[str, float]:
    """Accuracy per situation that occurs, the mean over attributes."""
    scores = {}
    for situation, batches in predicted.items():
        counted = (labels != UNLABELLED) & np.concatenate(present[situation])[:, None]  # [n, T]
        correct = counted & (np.concatenate(batches) == labels)
        occurring = counted.any(axis=0)
        if occurring.any():
            scores[situation] = float(np.mean(correct.sum(axis=0)[occurring] / counted.sum(axis=0)[occurring]))
    return scores


def _report_tasks(tasks: Sequence[Task], rare: Mapping[str, Mapping[str, int]], console: Console) -> None:
    for task in tasks:
        left_out = rare[task.name]
        names = ", ".join(f"{label} ({count})" for label, count in left_out.items())
        console.print(
            f"{task.name}: {len(task.labels)} labels"
            + (f"; {len(left_out)} rare ones left out: {names}" if left_out else "")
        )
