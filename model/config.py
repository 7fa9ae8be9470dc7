"""The model's configuration: frozen keyword-only dataclasses that travel with the weights, and how they are read.

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
