"""The folder: what is saved is what is loaded, and a part that does not belong is named."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import weights as weights_of
from model.checkpoint.folder import (
    CALIBRATION,
    CONFIG,
    METRICS,
    WEIGHTS,
    load_checkpoint,
    weights_version,
    write_part,
    write_text,
)
from model.checkpoint.weights import load_weights, read_tensors, save_checkpoint, stored_tensors
from model.config import ModelConfig
from model.errors import CheckpointError
from model.inference.predictor import Predictor
from model.network.cma_clip import CMAClip, build_cma_clip
from model.tasks import Task
from tests.model.test_network import encode


@torch.inference_mode()
def test_save_then_load_gives_the_same_outputs_bit_for_bit(
    tmp_path: Path, network: CMAClip, model_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    version = save_checkpoint(tmp_path / "c", network, name="n", config=model_config, tasks=tasks, training={"a": 1})
    network.load_state_dict(stored_tensors(network))
    before = network(*encode(network))
    loaded = load_checkpoint(tmp_path / "c")
    assert (loaded.name, loaded.version, loaded.config, loaded.tasks) == ("n", version, model_config, tasks)
    assert loaded.training == {"a": 1}
    assert (loaded.calibration, loaded.metrics) == (None, None)
    other = build_cma_clip(loaded.config, loaded.tasks).eval()
    load_weights(other, loaded)
    after = other(*encode(other))
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))
    assert torch.equal(before.modality_attention, after.modality_attention)
    again = save_checkpoint(tmp_path / "d", other, name="n", config=model_config, tasks=tasks, training={"a": 1})
    assert again == version


def test_saving_leaves_the_network_as_it_is_and_rounds_matrices_alone(
    tmp_path: Path, network: CMAClip, model_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    save_checkpoint(tmp_path / "c", network, name="n", config=model_config, tasks=tasks, training={})
    stored = read_tensors(tmp_path / "c" / WEIGHTS)
    assert stored.keys() == before.keys()
    rounded = 0
    for key, value in network.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])
        if value.ndim < 2:
            assert torch.equal(stored[key], value)
        else:
            assert torch.equal(stored[key], value.half())
            rounded += not torch.equal(stored[key].float(), value)
    assert rounded > 10


def test_the_version_is_the_hash_of_the_weights(checkpoint_folder: Path) -> None:
    assert load_checkpoint(checkpoint_folder).version == weights_version(checkpoint_folder / WEIGHTS)
    assert len(weights_version(checkpoint_folder / WEIGHTS)) == 12


def test_no_part_is_pickled(checkpoint_folder: Path) -> None:
    assert {path.name for path in checkpoint_folder.iterdir()} == {CONFIG, WEIGHTS}


@pytest.mark.parametrize("part", [CONFIG, CALIBRATION, METRICS])
def test_a_part_of_other_weights_is_named(checkpoint_folder: Path, part: str) -> None:
    path = checkpoint_folder / part
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {"version": "000000000000"}))
    with pytest.raises(CheckpointError, match=rf"{part} belongs to weights 000000000000"):
        load_checkpoint(checkpoint_folder)


@pytest.mark.parametrize("part", [CONFIG, WEIGHTS])
def test_a_missing_part_is_named(checkpoint_folder: Path, part: str) -> None:
    (checkpoint_folder / part).unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{part} is missing")):
        load_checkpoint(checkpoint_folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("part", [CONFIG, METRICS])
@pytest.mark.parametrize("text", ["", "{", "[]", "nul\0l", '"\ud800"'])
def test_a_damaged_part_is_named(checkpoint_folder: Path, part: str, text: str) -> None:
    (checkpoint_folder / part).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=part):
        load_checkpoint(checkpoint_folder)


def test_damaged_weights_are_named(
    checkpoint_folder: Path, network: CMAClip, model_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    path = checkpoint_folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    config = json.loads((checkpoint_folder / CONFIG).read_text())
    (checkpoint_folder / CONFIG).write_text(json.dumps(config | {"version": weights_version(path)}))
    with pytest.raises(CheckpointError, match=re.escape(f"{WEIGHTS} is damaged")):
        load_weights(network, load_checkpoint(checkpoint_folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": [{"name": "colour", "labels": ["only"]}]}, "at least two labels"),
        ({"attributes": [{"labels": ["a", "b"]}]}, "name"),
        ({"preprocess": {"image_size": [24]}}, "image_size"),
        ({"fusion": {"width": 30, "heads": 4}}, "cannot be split into 4 heads"),
        ({"fusion": {"wdith": 32}}, "wdith"),
        ({"format": 99}, "format must be 1 or 2"),
        ({"extra": 1}, "extra"),
        ({"attributes": [{"name": "a", "labels": ["x", "y"]}] * 2}, "listed twice"),
        ({"attributes": [{"name": "a", "labels": "xyz"}]}, "not a list"),
        ({"fusion": {"mlp_ratio": -1.0}}, "mlp_ratio"),
        ({"preprocess": {"image_size": [24, 16], "context_length": 16, "std": [1.0, 0.0, 1.0]}}, "std"),
        ({"preprocess": {"image_size": [24, 16], "context_length": 16, "mean": [0.0, 0.0, float("nan")]}}, "finite"),
    ],
)
def test_a_wrong_configuration_is_named(checkpoint_folder: Path, change: dict[str, object], message: str) -> None:
    path = checkpoint_folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint_folder)


@pytest.mark.parametrize("backbone", [{}, {"vision_cfg": {}, "text_cfg": 3}, {"vision_cfg": {}, "text_cfg": {}}])
def test_towers_that_cannot_be_built_are_named(checkpoint_folder: Path, backbone: dict[str, object]) -> None:
    path = checkpoint_folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": backbone}))
    with pytest.raises(CheckpointError, match=re.escape(CONFIG)):
        Predictor.load(checkpoint_folder)


def test_weights_that_were_replaced_meanwhile_are_not_served_under_the_old_name(
    checkpoint_folder: Path, network: CMAClip
) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    tensors = {key: value + 1 for key, value in read_tensors(checkpoint_folder / WEIGHTS).items()}
    save_file(tensors, checkpoint_folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="has been replaced"):
        load_weights(network, checkpoint)


def test_a_card_that_cannot_be_written_is_still_the_old_one(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = checkpoint_folder / "README.md"
    write_text(card, "the old one")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(CheckpointError, match="No space left"):
            write_text(card, "the new one")
    assert card.read_text() == "the old one"
    assert not list(checkpoint_folder.glob(".README*"))


def test_weights_of_another_network_are_refused(checkpoint_folder: Path, tasks: tuple[Task, ...]) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    with pytest.raises(CheckpointError, match=r"does not belong to config\.json"):
        load_weights(build_cma_clip(checkpoint.config, tasks[:1]), checkpoint)


def test_an_interrupted_save_leaves_the_old_checkpoint(
    checkpoint_folder: Path,
    network: CMAClip,
    model_config: ModelConfig,
    tasks: tuple[Task, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = load_checkpoint(checkpoint_folder)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(weights_of, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(checkpoint_folder, network, name="new", config=model_config, tasks=tasks, training={})
    assert load_checkpoint(checkpoint_folder) == before
    assert os.listdir(checkpoint_folder.parent) == [checkpoint_folder.name]


def test_a_new_checkpoint_drops_the_parts_of_the_old(
    checkpoint_folder: Path, network: CMAClip, model_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    write_part(load_checkpoint(checkpoint_folder), METRICS, {"accuracy": 1})
    assert load_checkpoint(checkpoint_folder).metrics is not None
    torch.nn.init.ones_(network.modality_attention.weight)  # type: ignore[arg-type]
    save_checkpoint(checkpoint_folder, network, name="new", config=model_config, tasks=tasks, training={})
    assert load_checkpoint(checkpoint_folder).metrics is None
    assert os.listdir(checkpoint_folder.parent) == [checkpoint_folder.name]


def test_weights_that_half_precision_cannot_hold_are_not_saved(
    tmp_path: Path, network: CMAClip, model_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    torch.nn.init.constant_(network.heads[0][0].weight, 1e6)  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"heads\.0\.0\.weight is not finite"):
        save_checkpoint(tmp_path / "c", network, name="n", config=model_config, tasks=tasks, training={})
