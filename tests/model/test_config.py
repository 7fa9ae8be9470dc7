"""Configurations: read strictly, named exactly where they are wrong, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import with_config

from model.config import STRICT, FusionConfig, ModelConfig, PreprocessConfig, from_json, override, to_json, update
from model.errors import ConfigError
from model.training.config import TrainConfig, small_training

SHIPPED = Path(__file__).parents[2] / "weights" / "fashion" / "config.json"


@pytest.fixture
def config() -> TrainConfig:
    return small_training(30_000)


def test_configurations_survive_json_and_can_be_overridden(config: TrainConfig) -> None:
    assert from_json(TrainConfig, to_json(config)) == config
    changed = override(config, {"optimiser.epochs": "3", "augment.flip": "false", "ema_decay": "0.5"})
    assert (changed.optimiser.epochs, changed.augment.flip, changed.ema_decay) == (3, False, 0.5)
    assert update(config, {"optimiser": {"epochs": 3}, "augment": {"flip": False}, "ema_decay": 0.5}) == changed
    assert override(config, {"weights": '{"image": 0.3}'}).weights == dataclasses.replace(config.weights, image=0.3)


def test_the_shipped_checkpoints_configuration_is_read_exactly() -> None:
    content = json.loads(SHIPPED.read_text(encoding="utf-8"))
    fields = {each.name: content[each.name] for each in dataclasses.fields(ModelConfig)}
    model = from_json(ModelConfig, fields)
    # Settings of preprocessing that did not exist yet have the values that it was trained with.
    later = {"interpolation": "bicubic", "tokenizer": None}
    assert to_json(model) == {**fields, "preprocess": {**fields["preprocess"], **later}}
    assert model.preprocess.image_size == (128, 96)
    assert model.preprocess.mean == tuple(content["preprocess"]["mean"])


def test_values_that_only_count_together_are_set_together(config: TrainConfig) -> None:
    """Either alone would be more than there is."""
    config = update(config, {"anneal": 0, "mismatched_titles": 0.9, "mismatched_images": 0.05})
    changed = override(config, {"mismatched_images": "0.9", "mismatched_titles": "0.05"})
    assert (changed.mismatched_titles, changed.mismatched_images) == (0.05, 0.9)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer.epochs": "3"}, "unknown setting 'optimizer'; known here: optimiser, augment"),
        ({"optimiser.epoch": "3"}, "unknown setting 'optimiser.epoch'; known here: epochs, batch_size"),
        ({"optimiser.epochs": "three"}, 'optimiser.epochs cannot be "three": it should be a valid integer'),
        ({"optimiser.epochs": "2.5"}, "optimiser.epochs cannot be 2.5: it should be a valid integer"),
        ({"optimiser.epochs": "true"}, "optimiser.epochs cannot be true: it should be a valid integer"),
        ({"optimiser.epochs": "0"}, "epochs must be positive"),
        ({"optimiser.learning_rate": "NaN"}, "optimiser.learning_rate cannot be NaN: it should be a finite number"),
        ({"optimiser.learning_rate": "1e999"}, "optimiser.learning_rate cannot be Infinity"),
        ({"optimiser": "3"}, "optimiser cannot be 3: it should be an object"),
        ({"ema_decay.x": "1"}, "unknown setting 'ema_decay.x': ema_decay has no fields"),
        ({"augment.flip": "1"}, "augment.flip cannot be 1: it should be a valid boolean"),
        ({"lock_image": "null"}, "lock_image cannot be null: it should be a valid boolean"),
        ({"optimiser": "3", "optimiser.epochs": "3"}, "'optimiser.epochs' is inside 'optimiser'"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(config: TrainConfig, setting: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        override(config, setting)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


PREPROCESS: dict[str, Any] = {"image_size": [24, 16], "context_length": 16}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (3, "PreprocessConfig cannot be 3: it should be an object"),
        ({"image_size": [24, 16]}, "context_length is missing"),
        (PREPROCESS | {"size": 3}, "PreprocessConfig has no field 'size'"),
        (PREPROCESS | {"resize": "crop"}, "resize cannot be \"crop\": it should be 'longest', 'shortest' or 'squash'"),
        (PREPROCESS | {"image_size": [24]}, "image_size.1 is missing"),
        (PREPROCESS | {"image_size": [24.5, 16]}, "image_size.0 cannot be 24.5"),
        (PREPROCESS | {"image_size": 24}, "image_size cannot be 24"),
        (PREPROCESS | {"mean": [0.0, 0.0, math.nan]}, "mean.2 cannot be NaN: it should be a finite number"),
        (PREPROCESS | {"fill": "x" * 1000}, f'fill cannot be "{"x" * 59} …: it should be a valid integer'),
    ],
)
def test_a_wrong_document_is_named_in_one_line(document: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_json(PreprocessConfig, document)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_whole_numbers_stand_for_fractions_but_nothing_else_is_converted() -> None:
    assert from_json(FusionConfig, {"mlp_ratio": 3}).mlp_ratio == 3.0
    for wrong in ("3", True, None):
        with pytest.raises(ConfigError, match="mlp_ratio"):
            from_json(FusionConfig, {"mlp_ratio": wrong})


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Optional:
    limit: int | None = None
    inner: FusionConfig = field(default_factory=FusionConfig)


def test_an_optional_field_takes_a_value_or_none() -> None:
    assert from_json(Optional, {"limit": 3}) == Optional(limit=3)
    assert from_json(Optional, {"limit": None}) == from_json(Optional, {}) == Optional()
    assert override(Optional(limit=3), {"limit": "null"}) == Optional()
    assert override(Optional(), {"limit": "4", "inner.depth": "2"}) == Optional(limit=4, inner=FusionConfig(depth=2))
    with pytest.raises(ConfigError, match=r"limit cannot be 3\.5: it should be a valid integer"):
        from_json(Optional, {"limit": 3.5})
