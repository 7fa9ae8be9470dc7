"""Contrastive pre-training: towers that are taken over, a locked image tower, a warning where nothing is learned."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.checkpoint.folder import WEIGHTS, load_checkpoint
from model.checkpoint.weights import read_tensors
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.inputs.dataset import TrainingBatch
from model.inputs.normalise import TensorTransform
from model.network.towers import build_backbone
from model.tasks import Task
from model.training.config import OptimiserConfig, PretrainConfig
from model.training.initialise import initial_model, initial_network
from model.training.pretrain import ContrastiveLoss, ContrastiveModel, chance_warning, pretrain
from tests.conftest import write_catalogue


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=400)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / WEIGHTS)


def test_pretrained_towers_are_taken_over(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig, tasks: tuple[Task, ...], console: Console
) -> None:
    config = PretrainConfig(
        optimiser=OptimiserConfig(epochs=1, batch_size=16, learning_rate=1e-3, workers=0), embed_dim=16
    )
    folder = pretrain(catalogue, tmp_path, name="towers", model=model_config, config=config, console=console)
    assert load_checkpoint(folder).tasks == ()
    network = initial_network(initial_model(None, str(folder), fusion=model_config.fusion), tasks, str(folder))
    stored = tensors(folder)
    actual = network.state_dict()
    assert stored
    assert all(torch.equal(actual[key], value.float()) for key, value in stored.items())


def test_a_new_text_tower_is_taught_to_match_a_locked_image_tower(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig, checkpoint_folder: Path, console: Console
) -> None:
    config = PretrainConfig(
        optimiser=OptimiserConfig(epochs=1, batch_size=16, learning_rate=1e-3, workers=0), embed_dim=16
    )
    arguments: dict[str, Any] = {"name": "towers", "config": config, "console": console}
    folder = pretrain(catalogue, tmp_path / "run", model=model_config, initial=checkpoint_folder, **arguments)
    before, after = tensors(checkpoint_folder), tensors(folder)
    image = [key for key in after if key.startswith("backbone.image.")]
    assert image
    assert all(torch.equal(after[key], before[key]) for key in image)
    assert not torch.equal(
        after["backbone.text.text.token_embedding.weight"], before["backbone.text.text.token_embedding.weight"]
    )
    assert load_checkpoint(folder).training["initial"]["version"] == load_checkpoint(checkpoint_folder).version
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        pretrain(catalogue, tmp_path / "none", model=model_config, initial=tmp_path / "nothing", **arguments)
    wider = {**model_config.backbone, "vision_cfg": {**model_config.backbone["vision_cfg"], "width": 64}}
    other = dataclasses.replace(model_config, backbone=wider)
    with pytest.raises(ConfigError, match="another image tower"):
        pretrain(catalogue, tmp_path / "other", model=other, initial=checkpoint_folder, **arguments)


def test_micro_batches_have_the_contrastive_loss_and_gradients_of_the_whole_batch(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(model_config.backbone, model_config.preprocess)
    network = ContrastiveModel(backbone, 16)
    batch = TrainingBatch(
        pixels=torch.randint(0, 255, (8, 3, 24, 16), dtype=torch.uint8),
        tokens=torch.tensor([[49406, 320 + row, 49407] for row in range(8)]),
        labels=torch.zeros(8, 0, dtype=torch.long),
        has_image=torch.arange(8) != 3,
        has_title=torch.arange(8) != 5,
    )
    found = []
    for size in (0, 1, 4, 6, 100):
        network.zero_grad()
        losses = ContrastiveLoss(TensorTransform(model_config.preprocess), micro_batch=size)(network, batch, 0.0)
        losses["total"].backward()  # type: ignore[no-untyped-call]
        found.append((losses, [each.grad for each in network.parameters()]))
    (expected, gradients), *others = found
    assert expected["total"] > 0
    for losses, others_gradients in others:
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(others_gradients, gradients)


def test_micro_batches_are_refused_where_statistics_would_see_each_twice(
    catalogue: Catalogue, tmp_path: Path, console: Console
) -> None:
    optimiser = OptimiserConfig(epochs=1, batch_size=16, learning_rate=1e-3, micro_batch=8)
    with pytest.raises(ConfigError, match="micro_batch in pre-training is for Transformers"):
        pretrain(
            catalogue,
            tmp_path,
            model=initial_model("cma-tiny", None),
            config=PretrainConfig(optimiser=optimiser),
            console=console,
        )


@pytest.mark.parametrize(
    ("accuracy", "pairs", "batch_size", "warned"),
    [
        (1 / 64, 1984, 64, True),  # chance
        (0.0, 1984, 64, True),
        (45 / 1984, 1984, 64, True),  # 31 are expected, with a deviation of 5.5
        (52 / 1984, 1984, 64, False),
        (0.3242, 2048, 256, False),  # what the shipped towers reached
        (3 / 64, 64, 64, True),
        (7 / 64, 64, 64, False),
        (1.0, 2, 2, True),  # too few to show anything
        (1.0, 1, 1, True),
    ],
)
def test_a_warning_where_accuracy_is_not_clearly_above_chance(
    accuracy: float, pairs: int, batch_size: int, warned: bool
) -> None:
    warning = chance_warning(accuracy, pairs=pairs, batch_size=batch_size)
    assert (warning is not None) == warned
    if warning:
        assert f"of {pairs} validation images, {round(accuracy * pairs)} found their own title" in warning
        assert f"chance alone would find {pairs / batch_size:.0f}" in warning
        assert "\n" not in warning


def test_pretraining_that_learned_nothing_says_so_and_what_to_do(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig
) -> None:
    said = io.StringIO()
    optimiser = OptimiserConfig(epochs=1, batch_size=16, learning_rate=1e-9, workers=0)
    pretrain(
        catalogue,
        tmp_path,
        model=model_config,
        config=PretrainConfig(optimiser=optimiser, embed_dim=16),
        console=Console(file=said, width=1000),
    )
    assert "warning: pre-training seems to have learned nothing" in said.getvalue()
    assert "train from random weights or pretrained CLIP weights" in said.getvalue()


def test_pretraining_that_learned_something_says_nothing(tmp_path: Path, model_config: ModelConfig) -> None:
    """Titles that name colour and shape: an image finds the kind of its title, eight times better than chance."""
    catalogue = Catalogue.open(write_catalogue(tmp_path / "shop", 1200))
    said = io.StringIO()
    optimiser = OptimiserConfig(epochs=6, batch_size=32, learning_rate=5e-3, workers=0)
    pretrain(
        catalogue,
        tmp_path / "run",
        model=model_config,
        config=PretrainConfig(optimiser=optimiser, embed_dim=16),
        console=Console(file=said, width=1000),
    )
    assert "warning" not in said.getvalue()
