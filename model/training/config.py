"""How a network is trained: frozen keyword-only dataclasses, and named presets that return whole ones.

A preset is a function of the number of training examples: it chooses the batch size and the epochs by the optimiser
steps that they come to.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from pydantic import with_config

from model.config import STRICT, FusionConfig
from model.errors import ConfigError
from model.inputs.augment import CORRUPTION_SHARES, AugmentConfig


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to zero, in optimiser steps of `batch_size` listings.

    batch_size counts the listings of all processes that train together.
    backbone_rate: learning rate of the towers, as a share of `learning_rate`. embedding_rate: that of the text tower's
    token embeddings, as a multiple of the towers'. layer_decay: the rate of each layer of a tower, as a share of that
    of the layer above it (BEiT, arXiv:2106.08254, appendix); the top one has `backbone_rate`.
    tolerance: how far below the best validation score a later epoch may be and still replace it: a small validation
    part cannot tell such epochs apart, and the later one has seen a lower rate.
    patience: the share of `epochs` that may pass without a better validation score; then training ends early. With 1,
    it never does. A share, since the score rises slowly at first where the rate decays over many epochs.

    What saves memory or time, and is not meant to change what is learned:
    micro_batch: how many listings at most a process puts through the network at once; the gradients of such parts of a
    batch add up. 0: all of its share. activation_checkpointing: keep nothing of a tower's blocks but their inputs, and
    compute each block a second time in the backward pass. compile: compile the towers (`torch.compile`). workers:
    processes that load listings, for each process that trains; None: as many as pay
    (`model.inputs.dataset.loader_workers`).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    backbone_rate: float = 1.0
    embedding_rate: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    clip_norm: float = 5.0
    tolerance: float = 0.0
    patience: float = 0.5
    seed: int = 0
    micro_batch: int = 0
    activation_checkpointing: bool = False
    compile: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, it is {getattr(self, name)}")
        for name in ("backbone_rate", "embedding_rate", "weight_decay", "tolerance"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} cannot be negative, it is {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be at least 0 and below 2**32, it is {self.seed}")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError("warmup_share must be at least 0 and below 1")
        if not 0 < self.patience <= 1:
            raise ConfigError(f"patience must be above 0 and at most 1, it is {self.patience:g}")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay must be above 0 and at most 1, it is {self.layer_decay:g}")
        for name in ("micro_batch", "workers"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} cannot be negative, it is {getattr(self, name)}")

    @property
    def patient_epochs(self) -> int:
        """How many epochs may pass without a better validation score."""
        return math.ceil(self.patience * self.epochs)


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class SituationWeights:
    """Weights of the losses of one batch: with both modalities, with the image alone and with the title alone.

    The two unimodal losses train each tower even where the other modality says it all, which keeps the image tower
    learning beside titles. A situation of weight 0 is not computed at all: `image` alone makes a supervised start for
    the image tower at half the cost.
    """

    image_and_title: float = 1.0
    image: float = 1.0
    title: float = 0.5

    def __post_init__(self) -> None:
        if min(self.image_and_title, self.image, self.title) < 0 or not any(
            (self.image_and_title, self.image, self.title)
        ):
            raise ConfigError("situation weights cannot be negative, and one at least must be positive")


MODALITY_SHARES = ("modality_dropout", "mismatched_titles", "mismatched_images")
"""The shares of `TrainConfig`: of listings with an absent modality, or with one of another listing."""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Multi-task fine-tuning.

    modality_dropout: chance that a listing with both modalities loses one of them, either as likely, in the loss of
    both. mismatched_titles, mismatched_images: the share of that loss that is of images with the title of another
    listing, labelled as the image's listing, or as the title's: the network learns to see when the two do not belong
    together, and which to believe. lock_image: the image tower stays as it was given, which saves its backward pass
    and keeps a tower that has learned enough from overfitting its images. freeze: so many of the lowest blocks of each
    tower, and what comes before them, stay as they were given. keep_heads: everything is kept of the
    checkpoint that training starts from, its heads too, for which it must know the very same labels. ema_decay: decay
    of the exponential moving average of the weights, which is what is validated and saved. label_prior: new heads start
    from the frequencies of their labels.
    anneal: how far the corruption shares (`MODALITY_SHARES`, and `CORRUPTION_SHARES` of `augment`) fall in training.
    They begin at 1 + anneal times the configured value and end at 1 - anneal times, linearly: a network first learns
    to handle corrupted listings and ends on clean ones, which it meets most.
    """

    optimiser: OptimiserConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    weights: SituationWeights = field(default_factory=SituationWeights)
    modality_dropout: float = 0.02
    mismatched_titles: float = 0.12
    mismatched_images: float = 0.02
    label_smoothing: float = 0.02
    lock_image: bool = False
    freeze: int = 0
    keep_heads: bool = False
    label_prior: bool = False
    ema_decay: float = 0.998
    anneal: float = 1.0

    def __post_init__(self) -> None:
        for name in (*MODALITY_SHARES, "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1")
        if self.mismatched_titles + self.mismatched_images >= 1:
            raise ConfigError("mismatched_titles and mismatched_images must be below 1 together")
        if self.freeze < 0:
            raise ConfigError(f"freeze cannot be negative, it is {self.freeze}")
        if self.optimiser.micro_batch == 1 and self.mismatched_titles + self.mismatched_images:
            raise ConfigError("mismatched pairs are made within a micro-batch: micro_batch must be 2 at least, or 0")
        if not 0 <= self.anneal <= 1:
            raise ConfigError("anneal must be from 0 to 1")
        if self.anneal:
            try:
                self.at(0.0)
            except ConfigError as error:
                raise ConfigError(f"with anneal {self.anneal:g}, at the start of training: {error}") from error

    def at(self, progress: float) -> TrainConfig:
        """Return what holds when a share `progress` of the training is done, with constant shares (`anneal` 0)."""
        factor = 1 + self.anneal * (1 - 2 * progress)
        return dataclasses.replace(
            self,
            anneal=0.0,
            augment=dataclasses.replace(
                self.augment, **{name: factor * getattr(self.augment, name) for name in CORRUPTION_SHARES}
            ),
            **{name: factor * getattr(self, name) for name in MODALITY_SHARES},
        )


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Contrastive pre-training of both towers on image-title pairs; `embed_dim` is the shared space's width."""

    optimiser: OptimiserConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    embed_dim: int = 256


# --- presets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many passes over the training examples, in batches of which size."""

    epochs: int
    batch_size: int


def schedule(examples: int, *, large: Schedule, smallest_batch: int, epoch_steps: int, steps: int) -> Schedule:
    """Choose batch size and epochs for a number of training examples.

    The batch size is halved, from that of a `large` catalogue down to `smallest_batch`, until an epoch has
    `epoch_steps` optimiser steps. Then epochs are added to those of a `large` catalogue until there are `steps` steps.
    """
    batch_size = large.batch_size
    while batch_size > smallest_batch and examples // batch_size < epoch_steps:
        batch_size //= 2
    per_epoch = max(1, examples // batch_size)
    return Schedule(epochs=max(large.epochs, math.ceil(steps / per_epoch)), batch_size=batch_size)


def small_schedule(listings: int) -> Schedule:
    """Choose the schedule of `small_training`: 12 epochs of batches of 128 from 16,000 listings up."""
    return schedule(listings, large=Schedule(epochs=12, batch_size=128), smallest_batch=32, epoch_steps=48, steps=1_500)


def clip_schedule(listings: int) -> Schedule:
    """Choose the schedule of `clip_training`: 10 epochs of batches of 128 from 12,800 listings up."""
    return schedule(listings, large=Schedule(epochs=10, batch_size=128), smallest_batch=32, epoch_steps=48, steps=1_000)


def pretraining_schedule(pairs: int) -> Schedule:
    """Choose the schedule of `small_pretraining`: 2 epochs of batches of 256 from 25,600 pairs up.

    Its batches are larger, since each title is contrasted with the others of its batch.
    """
    return schedule(pairs, large=Schedule(epochs=2, batch_size=256), smallest_batch=64, epoch_steps=24, steps=200)


def small_training(listings: int) -> TrainConfig:
    """What trains a small backbone, from random weights or after a contrastive pre-training on the catalogue itself."""
    chosen = small_schedule(listings)
    return TrainConfig(
        optimiser=OptimiserConfig(
            epochs=chosen.epochs, batch_size=chosen.batch_size, learning_rate=2e-3, backbone_rate=0.8
        )
    )


FEW_LISTINGS = 8_000
"""Below so many training listings, a training starts from ImageNet by default, with `few_listings_training`."""


FEW_LISTINGS_FUSION = FusionConfig(depth=0, dropout=0.5)
"""The fusion that `few_listings_training` trains: without sequence-wise attention, and with much dropout in the heads.

A block of it is not learned from 1,500 listings. With one, of the same dropout, predictions from image and title were
2 points worse in baseColour and articleType, and 1 in season (one draw, on the validation part of the whole table).
"""


def few_listings_schedule(listings: int) -> Schedule:
    """Choose the schedule of `few_listings_training`: about 500 steps of batches of 32, in 12 to 200 epochs."""
    batch_size = max(1, min(32, listings))
    epochs = round(500 / max(1, listings // batch_size))
    return Schedule(epochs=min(200, max(12, epochs)), batch_size=batch_size)


def few_listings_training(listings: int) -> TrainConfig:
    """What trains `cma-lite` from ImageNet weights on a few thousand listings (`benchmarks/small_catalogue.py`).

    Its values were chosen on 1,500 training listings.
    """
    chosen = few_listings_schedule(listings)
    return TrainConfig(
        optimiser=OptimiserConfig(
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            learning_rate=5e-3,  # of token embeddings, fusion and heads
            backbone_rate=0.05,  # at a higher one, residual branches seem to outgrow the embeddings under AdamW
            embedding_rate=20.0,
            tolerance=0.01,  # about the standard error of a validation part of a hundred listings
        ),
        # A title that loses words teaches less of the words that are left.
        augment=AugmentConfig(title_dropout=0.0, label_word_dropout=0.0),
        # These weights and no mismatched pairs were chosen together: with the usual ones, predictions from image and
        # title were 5 points worse.
        weights=SituationWeights(image_and_title=1.0, image=0.3, title=1.0),
        mismatched_titles=0.0,
        mismatched_images=0.0,
        label_smoothing=0.2,  # few listings, noisy labels
        lock_image=True,
        label_prior=True,
    )


def clip_training(listings: int) -> TrainConfig:
    """Fine-tuning of a pretrained CLIP model, whose towers are moved gently."""
    chosen = clip_schedule(listings)
    return TrainConfig(
        optimiser=OptimiserConfig(
            epochs=chosen.epochs, batch_size=chosen.batch_size, learning_rate=5e-4, backbone_rate=0.02
        ),
        ema_decay=0.999,
    )


def small_pretraining(pairs: int) -> PretrainConfig:
    """Contrastive pre-training of a small backbone from scratch on the catalogue's own pairs.

    Half of the titles lose words: an image is to find what is left of its title, not one telling word.
    """
    chosen = pretraining_schedule(pairs)
    return PretrainConfig(
        optimiser=OptimiserConfig(epochs=chosen.epochs, batch_size=chosen.batch_size, learning_rate=1.5e-3),
        augment=AugmentConfig(blank_images=0, title_dropout=0.5, label_word_dropout=0.1),
    )


def describe_schedule(examples: int, what: str, optimiser: OptimiserConfig, default: OptimiserConfig) -> str:
    """Say, for the start of a run, which schedule was chosen and why: `what` names the `examples`."""
    chosen, usual = (Schedule(epochs=each.epochs, batch_size=each.batch_size) for each in (optimiser, default))
    per_epoch = examples // chosen.batch_size
    why = (
        f"the default for this number of {what}"
        if chosen == usual
        else f"as set; the default here is {usual.epochs} epochs of batches of {usual.batch_size}"
    )
    return (
        f"{examples:,} {what}: {chosen.epochs} epochs of {per_epoch:,} batches of {chosen.batch_size}, "
        f"{chosen.epochs * per_epoch:,} optimiser steps ({why})"
    )
