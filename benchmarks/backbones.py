"""Which of open_clip's model configurations we read, and whether as open_clip itself does.

    python -m benchmarks.backbones [--only ViT-B-32,…]

Each configuration is built with random weights, and both towers are given noise: the pooled image and the pooled title,
projected as open_clip projects them, must equal what open_clip's own model returns. Each pretrained tag's preprocessing
is compared on an image of noise. Two blocks of each tower stand for all of them, and other vocabularies than CLIP's are
cut (`--whole`: nothing is cut): the largest would not fit a small machine otherwise, and blocks are alike.

Not compared here, since they need files of a hub: the published weights and tokenizers.

Writes `benchmarks/results/backbones.json`; what it says of an earlier release stays.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import Tensor, nn

from model.config import CLIP_END, PreprocessConfig, TokenizerConfig
from model.errors import ConfigError
from model.inputs.normalise import TensorTransform
from model.network.towers import Backbone, backbone_config, build_backbone
from model.training.pretrained import built_in, preprocessing

RESULTS = Path(__file__).parent / "results" / "backbones.json"

TOLERANCE = 1e-5
"""The largest difference of an embedding from open_clip's that counts as none, of embeddings about 1 in size."""

BLOCKS, VOCABULARY = 2, 20_480

LARGE = 10_000_000
"""Parameters of so many numbers are matrices, and random as they are made."""

ENDS: Mapping[str, tuple[int, int]] = {
    "timm/ViT-B-16-SigLIP": (1, 1),
    "timm/ViT-B-16-SigLIP-i18n-256": (1, 1),
    "facebook/xlm-v-base": (2, 1),
    "google/mt5-base": (1, 0),
    "bert-base-uncased": (0, 0),
}
"""The end and the padding of titles by published tokenizers; of others, SigLIP 2's: 1 and 0."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="configurations by name, separated by commas")
    parser.add_argument("--whole", action="store_true", help="all blocks and the whole vocabulary")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip says of each model that it is random
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"configurations": {}}
    rows: dict[str, Any] = results["configurations"]
    for name in options.only.split(",") if options.only else open_clip.list_models():
        rows[name] = {**rows.get(name, {}), "now": examine(name, whole=options.whole)}
        print(name, json.dumps(rows[name]["now"]), flush=True)
        results |= {"open_clip": open_clip.__version__, "timm": timm.__version__, "now": totals(rows, "now")}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        gc.collect()


def totals(rows: Mapping[str, Any], when: str) -> dict[str, int]:
    """Count the configurations by verdict."""
    verdicts = [row[when]["verdict"] for row in rows.values() if when in row]
    return {verdict: verdicts.count(verdict) for verdict in ("same", "different", "refused")}


def examine(name: str, *, whole: bool) -> dict[str, Any]:
    """Compare a configuration with open_clip's own model."""
    config = backbone_config(name)
    text = config["text_cfg"]
    end, padding = ENDS.get(text.get("hf_tokenizer_name"), (1, 0)) if "hf_tokenizer_name" in text else (CLIP_END, 0)
    tokenizer = TokenizerConfig(definition="", end=end, padding=padding) if "hf_tokenizer_name" in text else None
    try:
        preprocess = preprocessing(config, {}, tokenizer)
        with cut(config, whole=whole):
            torch.manual_seed(0)
            ours = build_backbone(config, preprocess).eval()
            reference = own_model(config)
    except ConfigError as error:
        return {"verdict": "refused", "why": str(error)}
    share(reference, ours)
    try:
        return compare(name, ours, reference, preprocess)
    except AssertionError as error:
        return {"verdict": "different", "why": f"open_clip's own model cannot be run: {error}"}


def compare(name: str, ours: Backbone, reference: Any, preprocess: PreprocessConfig) -> dict[str, Any]:
    """Compare pooled images and titles of the same weights, and the pixels of each tag."""
    pixels = [pixels_apart(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    apart = {
        "image": images_apart(ours, reference),
        "title": titles_apart(ours, reference, preprocess),
        "pixels": max(pixels, default=0.0),
    }
    same = max(apart.values()) <= TOLERANCE
    return {
        "verdict": "same" if same else "different",
        "largest_difference": {what: float(f"{value:.2g}") for what, value in apart.items()},
        "tags": len(pixels),
        "grid": list(ours.image.grid),
        "parameters_compared": sum(each.numel() for each in ours.parameters()),
    }


@contextmanager
def cut(config: dict[str, Any], *, whole: bool) -> Iterator[None]:
    """Leave two blocks of each tower, and some of the vocabulary; timm's convolutional towers stay as they are."""
    image, text = config["vision_cfg"], config["text_cfg"]
    create = timm.create_model

    def shallow(name: str, **options: Any) -> nn.Module:
        if name.startswith(("vit", "eva")):
            return create(name, **options, depth=BLOCKS)
        if name.startswith(("convnext", "swin")):
            return create(name, **options, depths=(1, 1, 1, 1))
        return create(name, **options)

    if whole:
        yield
        return
    if isinstance(image.get("layers"), int):
        image["layers"] = min(BLOCKS, image["layers"])
    if "hf_model_name" not in text:
        text["layers"] = min(BLOCKS, text.get("layers", 12))
        if "hf_tokenizer_name" in text:
            text["vocab_size"] = min(VOCABULARY, text["vocab_size"])
    with mock.patch("open_clip.timm_model.timm.create_model", shallow):
        yield


def own_model(config: Mapping[str, Any]) -> Any:
    """Return open_clip's own model of a configuration."""
    known = {key: value for key, value in config.items() if key != "custom_text"}
    model = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return model(**known).eval()


@torch.no_grad()
def share(reference: Any, ours: Backbone) -> None:
    """Give both the same random weights, norms and scales among them: what is left out must show."""
    for parameter in reference.parameters():
        if parameter.numel() < LARGE:
            parameter.add_(0.02 * torch.randn_like(parameter))
    theirs = reference.state_dict()
    for tower, prefixes in ((ours.image, ("visual.trunk.", "visual.")), (ours.text, ("text.", ""))):
        inner = next(tower.children())
        prefix = next(each for each in prefixes if f"{each}{next(iter(inner.state_dict()))}" in theirs)
        inner.load_state_dict({name: theirs[prefix + name] for name in inner.state_dict()})


@torch.inference_mode()
def images_apart(ours: Backbone, reference: Any) -> float:
    """Return the largest difference of a pooled image, projected."""
    visual = reference.visual
    size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    pooled = ours.encode_image(images).embeddings[:, 0]
    if hasattr(visual, "trunk"):
        found = visual.head(visual.trunk.get_classifier()(pooled))
    else:
        found = projected(pooled, visual.proj)
    return relative(found, reference.encode_image(images))


@torch.inference_mode()
def titles_apart(ours: Backbone, reference: Any, preprocess: PreprocessConfig) -> float:
    """Return the largest difference of a pooled title, projected: of titles of several lengths."""
    text, context = getattr(reference, "text", reference), preprocess.context_length
    rows = torch.full((3, context), preprocess.padding)
    for row, length in zip(rows, (2, context // 2, context), strict=True):
        row[: length - 1] = torch.randint(5, 20_000, (length - 1,))
        row[length - 1] = preprocess.end
    found = ours.encode_text(rows)
    pooled = found.embeddings[torch.arange(len(rows)), found.pooled]
    return relative(projected(pooled, text.text_projection), reference.encode_text(rows))


def projected(pooled: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return pooled
    result: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return result


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the expected values' size."""
    return float((found - expected).abs().max() / expected.abs().mean())


def pixels_apart(name: str, tag: str) -> float:
    """Return the largest difference of an image's pixels by a tag's preprocessing."""
    config, resizing = built_in(name, tag)
    transform = TensorTransform(preprocessing(config, resizing, None))
    cfg = merge_preprocess_dict(PreprocessCfg(size=config["vision_cfg"].get("image_size", 224)), dict(resizing))
    noise = np.random.default_rng(0).integers(0, 256, (401, 300, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = transform.normalise(torch.from_numpy(transform(image))[None])[0]
    return float((ours - image_transform_v2(PreprocessCfg(**cfg), is_train=False)(image)).abs().max())


if __name__ == "__main__":
    main()
