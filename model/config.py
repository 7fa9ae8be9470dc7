"""The model's configuration: frozen keyword-only dataclasses that travel with the weights, and how they are read.

Does not import torch, so that reading a configuration is cheap.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from model.errors import ConfigError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""How every configuration is read: no field but its own, no value of another type, no number but a finite one."""

CLIP_END = 49_407
"""The token that ends a title in CLIP's vocabulary."""

# OpenAI CLIP's channel statistics; open_clip's towers expect them, and ours are trained with them too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# The channel statistics that image classifiers trained on ImageNet expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer that towers bring along: all but CLIP's.

    definition: in the JSON format of the library `tokenizers`; in a checkpoint it is a file of its own,
    `tokenizer.json`. clean: what is done to a title first (`model/inputs/cleaning.py`). end: the token that ends every
    title, whatever the definition puts there. padding: the token behind it, for towers that read their padding.
    """

    definition: str = field(repr=False)
    clean: Literal["canonicalize", "lower", "whitespace"] = "whitespace"
    end: int
    padding: int


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How an image and a title become tensors; it travels with the weights.

    image_size: (height, width) in pixels. resize: `longest` fits the whole image inside and pads with
    `fill` (white, as product images have it), `shortest` fills the frame and crops the centre, `squash`
    ignores the aspect ratio. framing: `product` trims uniform borders first and pads with their colour
    (`model/inputs/framing.py`), `whole` shows every image as it is. context_length: tokens a title may have, start and
    end tokens included. tokenizer: None for CLIP's byte pairs, which are part of the program.
    """

    image_size: tuple[int, int]
    context_length: int
    resize: Literal["longest", "shortest", "squash"] = "longest"
    fill: int = 255
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    framing: Literal["product", "whole"] = "whole"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    tokenizer: TokenizerConfig | None = None

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ConfigError(f"image_size must be positive, it is {self.image_size}")
        if not all(0 < deviation < math.inf for deviation in self.std):
            raise ConfigError(f"std must be positive, it is {self.std}")
        if self.context_length < 3:
            raise ConfigError("context_length must leave room for start, one token and end: 3 at least")

    @property
    def end(self) -> int:
        """The token that ends every title."""
        return CLIP_END if self.tokenizer is None else self.tokenizer.end

    @property
    def padding(self) -> int:
        """The token behind the end of a title, for towers that read their padding."""
        return 0 if self.tokenizer is None else self.tokenizer.padding


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Sizes of what is built on the towers; depth 0 and `modality_attention=False` are the paper's ablations."""

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


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build the network, except for its attributes. `backbone` is an open_clip configuration."""

    backbone_name: str
    backbone: Mapping[str, Any]
    preprocess: PreprocessConfig
    fusion: FusionConfig = field(default_factory=FusionConfig)


Config = TypeVar("Config")

SHOWN = 60
"""How many characters of a wrong value a message shows."""


def to_json(config: Any) -> Any:
    """Turn a configuration into plain JSON types, which `from_json` reads back as an equal one."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: type[Config], value: Any) -> Config:
    """Read `value` (plain JSON types) as a `kind`: a dataclass or pydantic model that is configured by `STRICT`.

    Raises `ConfigError` that names the first field at fault by its dotted path.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise ConfigError(_in_one_line(error, kind.__name__)) from error


def update(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return `config` with fields replaced; `settings` is nested as the fields are: `{"optimiser": {"epochs": 4}}`.

    Raises `ConfigError` for an unknown field or an impossible value.
    """
    return from_json(type(config), _merge(to_json(config), settings))


def override(config: Config, settings: Mapping[str, str]) -> Config:
    """Return `config` with fields replaced, named by dotted path: `{"optimiser.epochs": "4"}`.

    A value is JSON, or else plain text. Raises as `update` does.
    """
    tree: dict[str, Any] = {}
    for path, text in settings.items():
        *tables, name = path.split(".")
        table = tree
        for each in tables:
            table = table.setdefault(each, {})
            if not isinstance(table, dict):
                raise ConfigError(f"setting {path!r} is inside {each!r}, which is set to a value")
        table[name] = _value(text)
    return update(config, tree)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _merge(document: Mapping[str, Any], settings: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    merged = dict(document)
    for name, value in settings.items():
        path = f"{inside}{name}"
        if name not in document:
            raise ConfigError(f"unknown setting {path!r}; known here: {', '.join(document)}")
        if isinstance(value, Mapping):
            if not isinstance(document[name], Mapping):
                raise ConfigError(f"unknown setting '{path}.{next(iter(value), '')}': {name} has no fields")
            merged[name] = _merge(document[name], value, f"{path}.")
        else:
            merged[name] = value
    return merged


def _in_one_line(error: ValidationError, kind: str) -> str:
    """Say what is wrong with the first field at fault."""
    fault = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(map(str, fault["loc"]))
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{kind} has no field {path!r}"
    if fault["type"].startswith("missing"):
        return f"{path} is missing"
    given = json.dumps(fault["input"], default=str)
    given = given if len(given) <= SHOWN else f"{given[:SHOWN]} …"
    return f"{path or kind} cannot be {given}: {fault['msg'].replace('Input should', 'it should')}"
