"""The default training of a small catalogue: schedule, start, and a text tower that begins as a bag of words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.catalogue.listings import Catalogue
from model.config import CLIP_MEAN, IMAGENET_MEAN, FusionConfig, ModelConfig, PreprocessConfig, from_json, to_json
from model.errors import ConfigError
from model.network.cma_clip import CMAClip, build_cma_clip
from model.network.towers import BACKBONES, TextTower, build_backbone, sum_of_words
from model.tasks import Task
from model.training import train as train_module
from model.training.config import FEW_LISTINGS, FEW_LISTINGS_FUSION, few_listings_schedule, few_listings_training
from model.training.initialise import IMAGENET, initial_model, initial_network, start_from_frequencies
from model.training.train import default_config, default_initial, default_model
from tests.conftest import TINY_BACKBONE

BAG = {**TINY_BACKBONE, "bag_of_words": True}
TOKENS = torch.zeros(2, 9, dtype=torch.long)
TOKENS[0, :6] = torch.tensor([49406, 320, 321, 322, 323, 49407])
TOKENS[1, :4] = torch.tensor([49406, 330, 320, 49407])


def text_tower() -> TextTower:
    torch.manual_seed(0)
    return build_backbone(BAG, PreprocessConfig(image_size=(24, 16), context_length=16)).text.eval()


# --- schedule and start ------------------------------------------------------------------------------------


@given(st.integers(32, FEW_LISTINGS))
def test_few_listings_are_trained_in_about_as_many_steps_whatever_their_number(listings: int) -> None:
    chosen = few_listings_schedule(listings)
    steps = chosen.epochs * (listings // chosen.batch_size)
    assert chosen.batch_size == 32
    assert 12 <= chosen.epochs <= 200
    if listings >= 160:
        assert steps >= 450
    assert few_listings_training(listings).optimiser.epochs == chosen.epochs


def test_fewer_listings_than_a_batch_fill_one() -> None:
    assert few_listings_schedule(20).batch_size == 20


def test_a_small_catalogue_starts_from_imagenet_and_a_large_one_from_random_weights(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_initial(catalogue) == IMAGENET
    assert default_config(catalogue, IMAGENET).lock_image
    monkeypatch.setattr(train_module, "FEW_LISTINGS", 100)
    assert default_initial(catalogue) is None


def test_a_start_from_imagenet_brings_its_backbone_and_its_normalisation() -> None:
    model = initial_model(None, IMAGENET)
    assert (model.backbone_name, model.preprocess.mean) == ("cma-lite", IMAGENET_MEAN)
    assert initial_model("cma-lite", None).preprocess.mean == CLIP_MEAN
    assert from_json(ModelConfig, to_json(model)) == model


def test_few_listings_from_imagenet_have_no_attention_block(
    catalogue: Catalogue, tasks: tuple[Task, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = default_model(catalogue, None, IMAGENET)
    assert model.fusion == FEW_LISTINGS_FUSION
    assert not build_cma_clip(model, tasks).sequence_attention.blocks
    assert default_model(catalogue, "cma-lite", None).fusion == FusionConfig()
    monkeypatch.setattr(train_module, "FEW_LISTINGS", 100)
    assert default_model(catalogue, None, IMAGENET).fusion == FusionConfig()
    assert not default_config(catalogue, IMAGENET).lock_image


def test_imagenet_weights_fill_the_image_tower_alone(tasks: tuple[Task, ...]) -> None:
    model = initial_model(None, IMAGENET)
    torch.manual_seed(0)
    network = initial_network(model, tasks, IMAGENET)
    torch.manual_seed(0)
    random = build_cma_clip(model, tasks)
    image, untrained = (each.backbone.image.state_dict() for each in (network, random))
    assert not any(torch.equal(image[key], untrained[key]) for key in image if key.endswith("conv_pw.weight"))
    text, fresh = (each.backbone.text.state_dict() for each in (network, random))
    assert all(torch.equal(text[key], fresh[key]) for key in text)


def test_imagenet_weights_are_refused_by_another_tower(tasks: tuple[Task, ...]) -> None:
    with pytest.raises(ConfigError, match="EfficientNet-Lite0 image tower only"):
        initial_network(initial_model("cma-small", IMAGENET), tasks, IMAGENET)


def test_without_the_package_the_extra_is_named(tasks: tuple[Task, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Path:
        raise ModuleNotFoundError

    monkeypatch.setattr("importlib.resources.files", missing)
    with pytest.raises(ConfigError, match=r"pip install 'cma-clip\[train\]'"):
        initial_network(initial_model(None, IMAGENET), tasks, IMAGENET)


# --- the heads ---------------------------------------------------------------------------------------------


def test_heads_start_from_the_frequencies_of_their_labels(network: CMAClip, tasks: tuple[Task, ...]) -> None:
    labels = torch.tensor([[0, 1], [0, -1], [0, 1], [3, -100]])
    start_from_frequencies(network, tasks, labels)
    for head, counts in zip(network.heads, ([3, 0, 0, 1], [0, 2]), strict=True):
        bias = head[-1].bias  # type: ignore[index]
        smoothed = torch.tensor(counts) + 0.5
        torch.testing.assert_close(bias.softmax(0), smoothed / smoothed.sum())


# --- the text tower ----------------------------------------------------------------------------------------


@torch.inference_mode()
def test_it_starts_as_the_sum_of_its_words_beside_a_transformer_that_adds_a_constant() -> None:
    tower = text_tower()
    words = tower.text.token_embedding(TOKENS)
    eot = torch.tensor([5, 3])
    expected = torch.stack([words[0, 1:5].sum(0), words[1, 1:3].sum(0)])
    expected = torch.nn.functional.layer_norm(expected, expected.shape[-1:])
    constant = sum(block.attn.out_proj.bias + block.mlp.c_proj.bias for block in tower.text.transformer.resblocks)
    unmoved = tower.text.ln_final(words + tower.text.positional_embedding[: TOKENS.shape[1]] + constant)
    rows = torch.arange(2)
    torch.testing.assert_close(tower(TOKENS)[rows, eot], unmoved[rows, eot] + expected)


@torch.inference_mode()
def test_padding_does_not_matter_to_it() -> None:
    tower = text_tower()
    torch.testing.assert_close(tower(TOKENS[:, :6])[0, :6], tower(TOKENS)[0, :6])
    torch.testing.assert_close(tower(TOKENS[1:, :4])[0], tower(TOKENS)[1, :4])


def test_the_sum_at_a_token_is_of_the_words_before_it() -> None:
    words = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    summed = sum_of_words(words)
    torch.testing.assert_close(summed[:, :2], torch.zeros(1, 2, 8), rtol=0, atol=1e-4)  # rounding, normalised
    for position in range(2, 5):
        plain = torch.nn.functional.layer_norm(words[0, 1:position].sum(0), (8,))
        torch.testing.assert_close(summed[0, position], plain)


def test_other_backbones_have_no_bag_of_words(model_config: ModelConfig, tasks: tuple[Task, ...]) -> None:
    assert [name for name, config in BACKBONES.items() if config.get("bag_of_words")] == ["cma-lite"]
    assert not build_cma_clip(model_config, tasks).backbone.text.bag_of_words
    bag = dataclasses.replace(model_config, backbone=BAG)
    plain, with_bag = (build_cma_clip(each, tasks).state_dict().keys() for each in (model_config, bag))
    assert plain == with_bag
