"""The network: absent modalities are exact, fast paths equal plain ones, sizes can be switched by configuration."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor

from model.config import FusionConfig, ModelConfig, PreprocessConfig
from model.errors import ConfigError
from model.network.attention import EncoderBlock, ModalityAttention, tokens_at
from model.network.cma_clip import CMAClip, Output, build_cma_clip
from model.network.towers import TokenSequence, VitTower, backbone_config, build_backbone
from model.tasks import Task
from model.training.initialise import initial_model
from research.attention_maps import forward_with_attention, plain_block
from tests.conftest import TINY_BACKBONE

PREPROCESS = PreprocessConfig(image_size=(224, 224), context_length=77)

IMAGES = torch.randn(5, 3, 24, 16, generator=torch.Generator().manual_seed(1))
TOKENS = torch.zeros(5, 12, dtype=torch.long)
for row, length in enumerate((3, 12, 7, 5, 4)):
    TOKENS[row, :length] = torch.arange(320, 320 + length)
    TOKENS[row, 0], TOKENS[row, length - 1] = 49406, 49407


def encode(network: CMAClip, images: Tensor = IMAGES, tokens: Tensor = TOKENS) -> tuple[TokenSequence, TokenSequence]:
    return network.backbone.encode_image(images), network.backbone.encode_text(tokens)


def assert_same(left: Output, right: Output, *, rows: slice = slice(None), tolerance: float = 1e-5) -> None:
    for a, b in zip(left.logits, right.logits, strict=True):
        torch.testing.assert_close(a[rows], b[rows], rtol=0, atol=tolerance)
    torch.testing.assert_close(left.modality_attention[rows], right.modality_attention[rows], rtol=0, atol=tolerance)


@torch.inference_mode()
def test_shapes_and_weights(network: CMAClip) -> None:
    output = network(*encode(network))
    assert [tuple(scores.shape) for scores in output.logits] == [(5, 4), (5, 2)]
    assert output.modality_attention.shape == (5, 2, 2)
    torch.testing.assert_close(output.modality_attention.sum(-1), torch.ones(5, 2))


@torch.inference_mode()
@pytest.mark.parametrize("placeholder", [0.0, 1e30, float("inf"), float("nan")])
def test_whatever_stands_in_an_absent_modalitys_place_changes_nothing(network: CMAClip, placeholder: float) -> None:
    image, text = encode(network)
    nobody = torch.zeros(5, dtype=torch.bool)
    other_image = dataclasses.replace(image, embeddings=torch.full_like(image.embeddings, placeholder))
    other_text = dataclasses.replace(text, embeddings=torch.full_like(text.embeddings, placeholder))
    title_alone = network(other_image.keep(nobody), text)
    assert_same(title_alone, network(None, text))
    assert (title_alone.modality_attention == torch.tensor([0.0, 1.0])).all()
    assert (title_alone.aggregated[:, 0] == 0).all()
    assert (title_alone.aggregated[:, 1] != 0).any()
    image_alone = network(image, other_text.keep(nobody))
    assert_same(image_alone, network(image, None))
    assert (image_alone.modality_attention == torch.tensor([1.0, 0.0])).all()
    assert (image_alone.aggregated[:, 1] == 0).all()


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours(network: CMAClip) -> None:
    image, text = encode(network)
    has_image = torch.tensor([True, False, True, True, True])
    has_title = torch.tensor([True, True, False, True, True])
    together = network(image.keep(has_image), text.keep(has_title))
    for row in range(5):
        alone = encode(network, IMAGES[row : row + 1], TOKENS[row : row + 1])
        single = network(alone[0] if has_image[row] else None, alone[1] if has_title[row] else None)
        for scores, expected in zip(single.logits, together.logits, strict=True):
            torch.testing.assert_close(scores[0], expected[row], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_padding_to_the_longest_equals_padding_to_the_context(network: CMAClip) -> None:
    full = torch.nn.functional.pad(TOKENS, (0, 16 - TOKENS.shape[1]))
    assert_same(network(*encode(network)), network(*encode(network, tokens=full)))


def test_the_fused_attention_equals_the_plain_one_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    block = EncoderBlock(32, heads=4, mlp_ratio=2.0, dropout=0.0)
    mask = torch.rand(3, 9) > 0.3
    mask[:, 0] = True
    gradients, values = [], []
    for run in (block, lambda *given: plain_block(block, *given)[0]):
        block.zero_grad()
        x = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
        y = run(x, mask)
        y[mask].square().sum().backward()
        values.append(y[mask])
        gradients.append([x.grad, *(parameter.grad for parameter in block.parameters())])
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_a_block_at_some_positions_equals_the_whole_block_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    block = EncoderBlock(32, heads=4, mlp_ratio=2.0, dropout=0.0)
    mask = torch.rand(3, 9) > 0.3
    positions = torch.tensor([[0, 4], [8, 8], [3, 1]])
    gradients, values = [], []
    for given in (None, positions):
        block.zero_grad()
        x = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
        y = block(x, mask, given)
        y = tokens_at(y, positions) if given is None else y
        y.square().sum().backward()
        values.append(y)
        gradients.append([x.grad, *(parameter.grad for parameter in block.parameters())])
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_network_equals_plain_blocks_in_value_and_gradient(
    model_config: ModelConfig, tasks: tuple[Task, ...], depth: int
) -> None:
    """Plain blocks compute all tokens; the network's last block computes only those that are used."""
    fusion = FusionConfig(width=32, depth=depth, heads=2)
    network = build_cma_clip(dataclasses.replace(model_config, fusion=fusion), tasks).eval()
    image, text = encode(network)
    image, text = (dataclasses.replace(each, embeddings=each.embeddings.detach()) for each in (image, text))
    has_image, has_title = torch.tensor([True, False, True, True, True]), torch.tensor([True, True, False, True, True])
    for given in ((image, text), (image.keep(has_image), text.keep(has_title)), (image, None), (None, text)):
        gradients, outputs = [], []
        for run in (network, lambda *given: forward_with_attention(network, *given)[0]):
            network.zero_grad()
            outputs.append(run(*given))
            torch.autograd.backward([scores.square().sum() for scores in outputs[-1].logits])
            gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
        assert_same(*outputs)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_towers_equal_open_clips_own(network: CMAClip) -> None:
    """Sliced to the titles' length, they give at EOT and at the class token what open_clip gives with full padding."""
    clip = CustomTextCLIP(**TINY_BACKBONE).eval()
    towers = network.backbone
    assert isinstance(towers.image, VitTower)
    towers.image.visual.load_state_dict({k: v for k, v in clip.visual.state_dict().items() if k != "proj"})
    towers.text.text.load_state_dict({k: v for k, v in clip.text.state_dict().items() if k != "text_projection"})
    full = torch.nn.functional.pad(TOKENS, (0, 16 - TOKENS.shape[1]))
    with torch.inference_mode():
        image, text = encode(network)
        pooled = text.embeddings[torch.arange(5), text.pooled]
        torch.testing.assert_close(pooled @ clip.text.text_projection, clip.encode_text(full), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            image.embeddings[:, 0] @ clip.visual.proj, clip.encode_image(IMAGES), rtol=0, atol=1e-5
        )
        clip.visual.output_tokens = True
        torch.testing.assert_close(image.embeddings[:, 1:], clip.visual(IMAGES)[1], rtol=0, atol=1e-5)


def test_vit_b_32_is_wrapped_whole(tasks: tuple[Task, ...]) -> None:
    model = initial_model("ViT-B-32", None)
    assert model.preprocess == PreprocessConfig(image_size=(224, 224), context_length=77, framing="product")
    network = build_cma_clip(model, tasks).eval()
    with torch.inference_mode():
        output = network(
            network.backbone.encode_image(torch.randn(2, 3, 224, 224)),
            network.backbone.encode_text(TOKENS[:2]),
        )
    assert [scores.shape for scores in output.logits] == [(2, 4), (2, 2)]
    assert len(network.sequence_attention.blocks) == model.fusion.depth


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14"])
def test_larger_vits_are_wrapped(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(backbone_config(name), PREPROCESS)
    assert (backbone.image.grid, backbone.image.width) == (((14, 14), 768) if name == "ViT-B-16" else ((16, 16), 1024))


@pytest.mark.parametrize(("name", "width"), [("cma-small", 320), ("cma-tiny", 256)])
def test_our_towers_pool_their_patches(name: str, width: int) -> None:
    model = initial_model(name, None)
    backbone = build_backbone(model.backbone, model.preprocess).eval()
    with torch.inference_mode():
        tokens = backbone.encode_image(torch.randn(2, 3, 80, 64)).embeddings
    assert backbone.image.grid == (5, 4)
    assert tokens.shape == (2, 21, width)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN50", "ModifiedResNet is not supported"),
        ("coca_ViT-B-32", "class token behind the title"),
        ("xlm-roberta-base-ViT-B-32", "Hugging Face text towers"),
        ("no-such", "unknown backbone"),
    ],
)
def test_unsupported_towers_are_refused(name: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_backbone(backbone_config(name), PREPROCESS)


SMALL = PreprocessConfig(image_size=(16, 16), context_length=16)

VIT = {"width": 64, "layers": 1, "head_width": 32, "patch_size": 8}

TEXT = {"vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ({"timm_model_name": "hf-hub:somebody/tower"}, {}, "'hf-hub:somebody/tower'"),
        ({"timm_model_name": "hf_hub:somebody/tower"}, {}, "'hf_hub:somebody/tower'"),
        ({"timm_model_name": "local-dir:/tmp"}, {}, "'local-dir:/tmp'"),
        ({"timm_model_name": "no_such_tower"}, {}, "'no_such_tower'"),
        ({"timm_model_name": ["resnet18"]}, {}, "resnet18"),
        ({"timm_model_name": "resnet18", "timm_model_pretrained": True}, {}, "timm_model_pretrained"),
        ({"pretrained_cfg": {"url": "https://somewhere.invalid/"}}, {}, "'pretrained_cfg'"),
        ({}, {"hf_model_name": "somebody/tower"}, "Hugging Face"),
        ({}, {"hf_model_pretrained": True}, "'hf_model_pretrained'"),
        ({}, {"anything_else": 1}, "'anything_else'"),
    ],
)
def test_a_configuration_cannot_make_a_download(
    monkeypatch: pytest.MonkeyPatch, image: dict[str, Any], text: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("went out to the network"))
    config = {"embed_dim": 64, "vision_cfg": {**VIT, **image}, "text_cfg": {**TEXT, **text}}
    with pytest.raises(ConfigError, match=message):
        build_backbone(config, SMALL)


def test_what_names_a_tokenizer_is_not_handed_on() -> None:
    config = {"embed_dim": 64, "vision_cfg": VIT, "text_cfg": {**TEXT, "hf_tokenizer_name": "somebody/words"}}
    assert build_backbone(config, SMALL).text.width == 64


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("learned", [True, False])
def test_depth_and_modality_attention_are_switched_by_configuration(
    model_config: ModelConfig, tasks: tuple[Task, ...], depth: int, learned: bool
) -> None:
    fusion = FusionConfig(width=32, depth=depth, heads=2, modality_attention=learned)
    network = build_cma_clip(dataclasses.replace(model_config, fusion=fusion), tasks).eval()
    with torch.inference_mode():
        output = network(*encode(network))
    assert len(network.sequence_attention.blocks) == depth
    if not learned:
        assert (output.modality_attention == 0.5).all()


def test_modality_attention_is_the_papers_formula() -> None:
    attention = ModalityAttention(tasks=3, width=8, learned=True)
    assert attention.weight is not None
    torch.nn.init.normal_(attention.weight)
    h = torch.randn(4, 2, 8)
    fused, weights = attention(h, torch.ones(4, 2, dtype=torch.bool))
    for t in range(3):
        scores = torch.stack([h[:, m] @ attention.weight[t, m] for m in range(2)], dim=1)
        expected = scores.softmax(dim=1)
        torch.testing.assert_close(weights[:, t], expected)
        torch.testing.assert_close(fused[:, t], (expected[:, :, None] * h).sum(1))
