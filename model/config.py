"""Model and training configuration: frozen keyword-only dataclasses, and named presets that return whole ones.

Imports nothing of torch, so that reading a configuration is cheap.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from model.errors import ConfigError

# OpenAI CLIP's channel statistics; open_clip's towers expect them, and ours are trained with them too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How a picture and a title become tensors; it travels with the weights.

    image_size: (height, width) in pixels. resize: `longest` fits the whole picture inside and pads with
    `fill` (white, as product pictures have it), `shortest` fills the frame and crops the centre, `squash`
    ignores the aspect ratio. context_length: tokens a title may have, start and end tokens included.
    """

    image_size: tuple[int, int]
    context_length: int
    resize: Literal["longest", "shortest", "squash"] = "longest"
    fill: int = 255
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ConfigError(f"image_size must be positive, it is {self.image_size}")
        if not all(0 < deviation < math.inf for deviation in self.std):
            raise ConfigError(f"std must be positive, it is {self.std}")
        if self.context_length < 3:
            raise ConfigError("context_length must leave room for start, one token and end: 3 at least")


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Sizes of what stands on the towers; depth 0 and `modality_attention=False` are the paper's ablations."""

    width: int = 256
    depth: int = 1
    heads: int = 4
    mlp_ratio: float = 2.0
    dropout: float = 0.1
    modality_attention: bool = True

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"fusion width {self.width} cannot be split into {self.heads} heads")
        if self.depth < 0:
            raise ConfigError("fusion depth cannot be negative")
        if self.mlp_ratio <= 0:
            raise ConfigError("fusion mlp_ratio must be positive")
        if not 0 <= self.dropout < 1:
            raise ConfigError("fusion dropout must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build the network but its attributes. `backbone` is an open_clip configuration."""

    backbone_name: str
    backbone: Mapping[str, Any]
    preprocess: PreprocessConfig
    fusion: FusionConfig = field(default_factory=FusionConfig)


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


SPOILT_SHARES = ("spoiled_images", "blank_images", "title_dropout", "label_word_dropout")
"""What `AugmentConfig` says of how many listings are spoilt; the rest is about how."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation that respects colour (`model/augment.py`).

    crop: smallest share of the picture's area that a random crop keeps. stretch: largest relative change of
    its aspect ratio. spoiled_images: share of pictures compressed, blurred, made noisy, partly covered or
    reduced to a detail.
    blank_images: share of pictures that become one colour, so that a title is believed beside a picture that shows
    nothing, even by a network that has learned to distrust titles (`TrainConfig.foreign_titles`).
    title_dropout: share of titles that lose words; word_dropout: chance of each of theirs.
    label_word_dropout: share of titles that lose the words that name the listing's own labels.
    """

    crop: float = 0.7
    stretch: float = 0.1
    flip: bool = True
    spoiled_images: float = 0.1
    blank_images: float = 0.02
    title_dropout: float = 0.06
    word_dropout: float = 0.2
    label_word_dropout: float = 0.03

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ConfigError("crop must be above 0 and at most 1")
        for name in ("stretch", "word_dropout", *SPOILT_SHARES):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class SituationWeights:
    """Weights of the losses of one batch read with both modalities, as image alone and as title alone.

    The two unimodal readings feed each tower even where the other modality says it all, which is what keeps the
    image tower from starving beside titles. A situation of weight 0 is not computed at all: `image` alone makes
    a supervised start for the image tower at half the cost.
    """

    both: float = 1.0
    image: float = 1.0
    title: float = 0.5

    def __post_init__(self) -> None:
        if min(self.both, self.image, self.title) < 0 or not any((self.both, self.image, self.title)):
            raise ConfigError("situation weights cannot be negative, and one at least must be positive")


SPOILT_READINGS = ("modality_dropout", "foreign_titles", "foreign_images")
"""What `TrainConfig` says of how many listings are read with a modality that is absent, or another listing's."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Multi-task fine-tuning.

    modality_dropout: chance that a listing with both modalities loses one of them, either as likely, in the
    reading of both. foreign_titles, foreign_images: the share of that reading's loss that is of pictures with the
    title of another listing, and asks for the labels of the picture's listing, or of the title's: so the network
    learns to see when the two do not belong together, and which to believe. lock_image: the image tower stays as it
    was given, which saves its backward pass and keeps a tower that has learned enough from learning its pictures by
    heart. keep_heads: everything is kept of the checkpoint that training starts from, its heads too, for which it
    must know the very same labels. ema_decay: decay of the exponential moving average of the weights,
    which is what is validated and saved.
    anneal: how far the spoilt shares (`SPOILT_READINGS`, and `SPOILT_SHARES` of `augment`) fall during training. They
    begin at 1 + anneal times what is given here and end at 1 - anneal times, along a straight line. At first a network
    learns what to do with spoilt listings, at last what to read off clean ones, which are what it mostly meets.
    """

    optimiser: OptimiserConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    weights: SituationWeights = field(default_factory=SituationWeights)
    modality_dropout: float = 0.02
    foreign_titles: float = 0.12
    foreign_images: float = 0.02
    label_smoothing: float = 0.02
    lock_image: bool = False
    keep_heads: bool = False
    ema_decay: float = 0.998
    anneal: float = 1.0

    def __post_init__(self) -> None:
        for name in (*SPOILT_READINGS, "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1")
        if self.foreign_titles + self.foreign_images >= 1:
            raise ConfigError("foreign_titles and foreign_images must be below 1 together")
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
                self.augment, **{name: factor * getattr(self.augment, name) for name in SPOILT_SHARES}
            ),
            **{name: factor * getattr(self, name) for name in SPOILT_READINGS},
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


Config = TypeVar("Config")


def override(config: Config, settings: Mapping[str, str]) -> Config:
    """Return `config` with fields replaced, named by dotted path: `{"optimiser.epochs": "4"}`.

    Raises `ConfigError` for an unknown field or a value of another type.
    """
    for path, text in settings.items():
        config = _override(config, path.split("."), text, path)
    return config


def _override(config: Any, path: list[str], text: str, full: str) -> Any:
    known = typing.get_type_hints(type(config))
    if path[0] not in known:
        raise ConfigError(f"unknown setting {full!r}; known here: {', '.join(known)}")
    if len(path) > 1:
        if not dataclasses.is_dataclass(known[path[0]]):
            raise ConfigError(f"unknown setting {full!r}: {path[0]} has no fields")
        value = _override(getattr(config, path[0]), path[1:], text, full)
    else:
        try:
            value = from_json(known[path[0]], json.loads(text))
        except (json.JSONDecodeError, ConfigError) as error:
            raise ConfigError(f"setting {full!r} cannot be {text!r}") from error
    return dataclasses.replace(config, **{path[0]: value})


def to_json(config: Any) -> Any:
    """Turn a configuration into plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: Any, value: Any) -> Any:
    """Read `value` (plain JSON types) as `kind`: a dataclass of this module or the type of one of its fields.

    Raises `ConfigError` that names the field at fault.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(typing.cast(type, kind), value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise ConfigError(f"{value!r} is not a list of {len(arguments)}")
        return tuple(from_json(each, item) for each, item in zip(arguments, value, strict=True))
    if origin in (Mapping, types.MappingProxyType) or typing.get_origin(kind) is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{value!r} is not an object")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value} is not a finite number")
    if type(value) is not kind:
        raise ConfigError(f"{value!r} is not of type {kind.__name__}")
    return value


def _dataclass_from_json(kind: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{kind.__name__} must be an object")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise ConfigError(f"{kind.__name__} has unknown fields: {', '.join(unknown)}")
    fields = {}
    for name, item in value.items():
        try:
            fields[name] = from_json(hints[name], item)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    try:
        return kind(**fields)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}: {str(error).partition(') ')[2] or error}") from error
