"""How a network is trained: frozen keyword-only dataclasses, and named presets that return whole ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from model.errors import ConfigError
from model.inputs.augment import CORRUPTION_SHARES, AugmentConfig


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to zero, in optimiser steps of `batch_size` listings."""

    epochs: int
    batch_size: int
    learning_rate: float
    backbone_rate: float = 1.0
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    clip_norm: float = 5.0
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, it is {getattr(self, name)}")
        for name in ("backbone_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} cannot be negative, it is {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be at least 0 and below 2**32, it is {self.seed}")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError("warmup_share must be at least 0 and below 1")
        if self.workers < 0:
            raise ConfigError("workers cannot be negative")


@dataclass(frozen=True, kw_only=True)
class SituationWeights:
    """Weights of the losses of one batch read with both modalities, as image alone and as title alone.

    The two unimodal readings feed each tower even where the other modality says it all, which is what keeps the
    image tower from starving beside titles. A situation of weight 0 is not computed at all: `image` alone makes
    a supervised start for the image tower at half the cost.
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
"""What `TrainConfig` says of how many listings are read with a modality that is absent, or another listing's."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Multi-task fine-tuning.

    modality_dropout: chance that a listing with both modalities loses one of them, either as likely, in the
    reading of both. mismatched_titles, mismatched_images: the share of that reading's loss that is of pictures with the
    title of another listing, and asks for the labels of the picture's listing, or of the title's: so the network
    learns to see when the two do not belong together, and which to believe. lock_image: the image tower stays as it
    was given, which saves its backward pass and keeps a tower that has learned enough from learning its pictures by
    heart. keep_heads: everything is kept of the checkpoint that training starts from, its heads too, for which it
    must know the very same labels. ema_decay: decay of the exponential moving average of the weights,
    which is what is validated and saved.
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
    keep_heads: bool = False
    ema_decay: float = 0.998
    anneal: float = 1.0

    def __post_init__(self) -> None:
        for name in (*MODALITY_SHARES, "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1")
        if self.mismatched_titles + self.mismatched_images >= 1:
            raise ConfigError("mismatched_titles and mismatched_images must be below 1 together")
        if not 0 <= self.anneal <= 1:
            raise ConfigError("anneal must be from 0 to 1")
        if self.anneal:
            try:
                self.at(0.0)
            except ConfigError as error:
                raise ConfigError(f"with anneal {self.anneal:g}, at the start of training: {error}") from error

    def at(self, progress: float) -> TrainConfig:
        """Return what holds when a share `progress` of the training is done: constant, its shares those of then."""
        factor = 1 + self.anneal * (1 - 2 * progress)
        return dataclasses.replace(
            self,
            anneal=0.0,
            augment=dataclasses.replace(
                self.augment, **{name: factor * getattr(self.augment, name) for name in CORRUPTION_SHARES}
            ),
            **{name: factor * getattr(self, name) for name in MODALITY_SHARES},
        )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Contrastive pre-training of both towers on image-title pairs; `embed_dim` is the shared space's width."""

    optimiser: OptimiserConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    embed_dim: int = 256


def small_training() -> TrainConfig:
    """What trains `weights/fashion`: a small backbone after a short contrastive pre-training of our own."""
    return TrainConfig(optimiser=OptimiserConfig(epochs=12, batch_size=128, learning_rate=2e-3, backbone_rate=0.8))


def clip_training() -> TrainConfig:
    """Fine-tuning of a pretrained CLIP model, whose towers are moved gently."""
    return TrainConfig(
        optimiser=OptimiserConfig(epochs=10, batch_size=128, learning_rate=5e-4, backbone_rate=0.02),
        ema_decay=0.999,
    )


def small_pretraining() -> PretrainConfig:
    """Contrastive pre-training of a small backbone from scratch on the catalogue's own pairs.

    Half of the titles lose words: a picture is to find what is left of its title, not one telling word.
    """
    return PretrainConfig(
        optimiser=OptimiserConfig(epochs=2, batch_size=256, learning_rate=1.5e-3),
        augment=AugmentConfig(blank_images=0, title_dropout=0.5, label_word_dropout=0.1),
    )
