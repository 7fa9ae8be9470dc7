"""Pretrained towers of every family give the tokens, embeddings and pixels that open_clip's own model gives."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from model.config import ModelConfig
from model.inputs.normalise import TensorTransform
from model.inputs.tokenizer import TitleTokenizer, pad_tokens
from model.network.towers import Backbone, build_backbone
from model.training.initialise import initial_model
from model.training.pretrained import pretrained_weights
from tests.model.pretrained_towers import FAMILIES, write_towers

TITLES = (
    "Puma Men Navy Blue T-Shirt",
    "Women's   RED_dress, 100% cotton &amp; leather (M/L)",
    "watch",
    "sports running shoes " * 12,
    "%%%",
)


class HuggingFace:
    """Stands for a fast tokenizer of transformers, which is not installed: what open_clip asks of one."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.pad_token_id = self.tokenizer.token_to_id(settings["pad_token"])
        self.sep_token_id = self.tokenizer.token_to_id(settings.get("sep_token", ""))
        if settings.get("add_eos_token"):
            end = settings["eos_token"]
            self.tokenizer.post_processor = TemplateProcessing(
                single=f"$A {end}", special_tokens=[(end, self.tokenizer.token_to_id(end))]
            )

    @classmethod
    def from_pretrained(cls, folder: Path, cache_dir: None) -> HuggingFace:
        return cls(Path(folder), json.loads((Path(folder) / "tokenizer_config.json").read_text()))

    def __call__(self, texts: list[str], *, max_length: int, **options: Any) -> Any:
        assert options == {"return_tensors": "pt", "padding": "max_length", "truncation": True}
        self.tokenizer.enable_truncation(max_length)
        self.tokenizer.enable_padding(pad_id=self.pad_token_id, length=max_length)
        return types.SimpleNamespace(input_ids=torch.tensor([each.ids for each in self.tokenizer.encode_batch(texts)]))


@dataclass(frozen=True)
class Pair:
    """Towers as we read them, and open_clip's own model, transform and tokenizer of the same folder."""

    model: ModelConfig
    ours: Backbone
    reference: Any
    transform: Any
    tokenize: Any


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("towers")
    write_towers(folder, FAMILIES[request.param])
    initial = f"local-dir:{folder}"
    model = initial_model(None, initial)
    ours = build_backbone(model.backbone, model.preprocess, pretrained_weights(model.backbone_name, initial)).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoTokenizer=HuggingFace))
        reference, _, transform = open_clip.create_model_and_transforms(initial)
        yield Pair(model, ours, reference.eval(), transform, open_clip.get_tokenizer(initial))


def our_tokens(pair: Pair, length: int | None = None) -> NDArray[np.int64]:
    rows = [TitleTokenizer(pair.model.preprocess)(title).tokens for title in TITLES]
    return pad_tokens(rows, length or max(map(len, rows)))


def images(pair: Pair) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(300, 401), (97, 60), (224, 224), (60, 400)]
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def test_tokens(pair: Pair) -> None:
    expected = pair.tokenize(list(TITLES)).numpy()
    ours = our_tokens(pair)
    assert pair.model.preprocess.context_length == expected.shape[1]
    ends = (ours == pair.model.preprocess.end).argmax(axis=1)
    for row, wanted, end in zip(ours, expected, ends, strict=True):
        assert row[: end + 1].tolist() == wanted[: end + 1].tolist()
        assert set(wanted[end + 1 :].tolist()) <= {pair.model.preprocess.padding}


@torch.inference_mode()
def test_pooled_titles(pair: Pair) -> None:
    expected = pair.reference.encode_text(pair.tokenize(list(TITLES)))
    for length in (None, pair.model.preprocess.context_length):  # however far a batch is padded
        text = pair.ours.encode_text(torch.from_numpy(our_tokens(pair, length)))
        pooled = text.embeddings[torch.arange(len(TITLES)), text.pooled]
        torch.testing.assert_close(projected(pooled, pair.reference.text.text_projection), expected, rtol=0, atol=1e-5)
        assert text.mask.sum(dim=1).tolist() == (text.pooled + 1).tolist()


@torch.inference_mode()
def test_pooled_images(pair: Pair) -> None:
    pixels = torch.stack([pair.transform(image) for image in images(pair)])
    visual, image = pair.reference.visual, pair.ours.encode_image(pixels)
    if hasattr(visual, "trunk"):
        found = visual.head(visual.trunk.get_classifier()(image.embeddings[:, 0]))
    else:
        found = projected(image.embeddings[:, 0], visual.proj)
    torch.testing.assert_close(found, pair.reference.encode_image(pixels), rtol=0, atol=1e-5)
    rows, columns = pair.ours.image.grid
    assert image.embeddings.shape[1:] == (1 + rows * columns, pair.ours.image.width)


def test_pixels(pair: Pair) -> None:
    transform = TensorTransform(pair.model.preprocess)
    ours = transform.normalise(torch.from_numpy(np.stack([transform(image) for image in images(pair)])))
    expected = torch.stack([pair.transform(image) for image in images(pair)])
    torch.testing.assert_close(ours.contiguous(), expected, rtol=0, atol=1e-5)


def test_every_parameter_gets_a_gradient(pair: Pair) -> None:
    height, width = pair.model.preprocess.image_size
    pair.ours.zero_grad()
    image = pair.ours.encode_image(torch.randn(2, 3, height, width))
    text = pair.ours.encode_text(torch.from_numpy(our_tokens(pair)))
    (image.embeddings.pow(3).sum() + text.embeddings[text.mask].pow(3).sum()).backward()  # type: ignore[no-untyped-call]
    assert [name for name, each in pair.ours.named_parameters() if each.grad is None or not each.grad.any()] == []


def projected(pooled: Tensor, projection: nn.Linear | Tensor | None) -> Tensor:
    if projection is None:
        return pooled
    result: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return result
