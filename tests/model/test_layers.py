"""The layers of towers: in order, all of them, and what is done with them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from model.config import ModelConfig, PreprocessConfig
from model.errors import ConfigError
from model.inputs.dataset import TrainingBatch
from model.inputs.normalise import TensorTransform
from model.network.cma_clip import CMAClip, build_cma_clip
from model.network.towers import Backbone, ImageTower, TextTower
from model.tasks import Task
from model.training.config import OptimiserConfig, TrainConfig
from model.training.initialise import initial_model
from model.training.layers import freeze_lower, layers_below_top, save_memory
from model.training.objective import TrainingLoss
from model.training.optimiser import parameter_groups

OPTIMISER = OptimiserConfig(epochs=1, batch_size=1, learning_rate=1.0, backbone_rate=0.1, layer_decay=0.5)

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}

TOWERS: dict[str, dict[str, Any]] = {
    "open_clip": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": [24, 16]},
    "timm": {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "none", "image_size": [32, 32]},
}


def backbone(kind: str) -> Backbone:
    config = {"embed_dim": 16, "vision_cfg": TOWERS[kind], "text_cfg": TEXT}
    size = tuple(TOWERS[kind]["image_size"])
    preprocess = PreprocessConfig(image_size=size, context_length=16)
    tasks = (Task(name="colour", labels=("red", "blue")),)
    return build_cma_clip(ModelConfig(backbone_name=kind, backbone=config, preprocess=preprocess), tasks).backbone


def names(tower: ImageTower | TextTower) -> list[list[str]]:
    by_identity = {id(parameter): name for name, parameter in tower.named_parameters()}
    return [[by_identity[id(parameter)] for parameter in layer] for layer in tower.layers()]


@pytest.mark.parametrize(("kind", "blocks"), [("open_clip", 3), ("timm", 12)])
def test_layers_are_all_parameters_from_the_embeddings_up(kind: str, blocks: int) -> None:
    towers = backbone(kind)
    for tower, count in ((towers.image, blocks), (towers.text, 2)):
        found = names(tower)
        assert count + 1 <= len(found) <= count + 2, "timm's may have a layer of their own for pooling"
        assert sorted(name for layer in found for name in layer) == sorted(dict(tower.named_parameters()))
        assert all("blocks." not in name for name in found[0])
        for number, layer in enumerate(found[1 : count + 1]):
            inside = [name for name in layer if "blocks." in name]
            assert inside
            assert all(f"blocks.{number}." in name for name in inside)
        assert any("embed" in name for name in found[0])


def test_a_convolutional_tower_has_layers_too() -> None:
    towers = build_cma_clip(initial_model("cma-lite", None), (Task(name="colour", labels=("red", "blue")),)).backbone
    found = names(towers.image)
    assert len(found) > 10
    assert sorted(name for layer in found for name in layer) == sorted(dict(towers.image.named_parameters()))
    assert "conv_stem" in found[0][0]


def test_each_layer_learns_at_a_share_of_the_rate_of_the_one_above() -> None:
    towers = backbone("open_clip")
    rates = {id(each): group["peak"] for group in parameter_groups(towers, OPTIMISER) for each in group["params"]}
    for tower in (towers.image, towers.text):
        found = tower.layers()
        for below_top, layer in enumerate(reversed(found)):
            assert {rates[id(each)] for each in layer} == {0.1 * 0.5**below_top}
            assert {layers_below_top(towers)[id(each)] for each in layer} == {below_top}


def test_lower_blocks_stay_and_upper_ones_learn() -> None:
    towers = backbone("open_clip")
    freeze_lower(towers, 2)
    image, text = towers.image.layers(), towers.text.layers()
    for layer in (*image[:3], *text):  # the text tower has no more than two
        assert not any(each.requires_grad for each in layer)
    assert all(each.requires_grad for each in image[3])
    trained = {id(each) for group in parameter_groups(towers, OPTIMISER) for each in group["params"]}
    assert trained == {id(each) for each in image[3]}


@pytest.mark.parametrize("setting", ["freeze", "activation_checkpointing"])
def test_batch_normalisation_is_refused_where_its_statistics_would_be_wrong(setting: str) -> None:
    towers = build_cma_clip(initial_model("cma-tiny", None), (Task(name="colour", labels=("red", "blue")),)).backbone
    config = dataclasses.replace(OPTIMISER, activation_checkpointing=True)
    refused = {
        "freeze": lambda: freeze_lower(towers, 1),
        "activation_checkpointing": lambda: save_memory(towers, config),
    }
    with pytest.raises(ConfigError, match=f"{setting} is for Transformers"):
        refused[setting]()


def batch() -> TrainingBatch:
    return TrainingBatch(
        pixels=torch.randint(0, 255, (3, 3, 24, 16), dtype=torch.uint8),
        tokens=torch.tensor([[49406, 320, 49407], [49406, 322, 49407], [49406, 321, 49407]]),
        labels=torch.tensor([[0, 1], [1, 0], [2, 1]]),
        has_image=torch.ones(3, dtype=torch.bool),
        has_title=torch.ones(3, dtype=torch.bool),
    )


def gradients(network: CMAClip, config: TrainConfig, model: ModelConfig) -> tuple[dict[str, Tensor], int]:
    """Return each parameter's gradient, and how many numbers the forward pass kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        total = TrainingLoss(config, TensorTransform(model.preprocess))(network.train(), batch(), 0.5)["total"]
        size = sum(kept.values())
    total.backward()  # type: ignore[no-untyped-call]
    return {name: each.grad for name, each in network.named_parameters() if each.grad is not None}, size


def test_checkpointed_activations_give_the_same_gradients_from_less_memory(
    network: CMAClip, train_config: TrainConfig, model_config: ModelConfig
) -> None:
    other = copy.deepcopy(network)
    save_memory(other.backbone, dataclasses.replace(OPTIMISER, activation_checkpointing=True))
    expected, whole = gradients(network, train_config, model_config)
    actual, small = gradients(other, train_config, model_config)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name)
    assert small < 0.8 * whole


def test_towers_are_compiled_and_their_average_is_not(network: CMAClip) -> None:
    save_memory(network.backbone, dataclasses.replace(OPTIMISER, compile=True))
    average = copy.deepcopy(network)
    for compiled, one in ((True, network), (False, average)):
        for tower in (one.backbone.image, one.backbone.text):
            assert (tower._compiled_call_impl is not None) == compiled
    assert network.state_dict().keys() == average.state_dict().keys()
