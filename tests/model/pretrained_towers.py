"""Pretrained towers as they are published, small and with random weights: folders in open_clip's format.

A folder holds what a repository on a hub does: `open_clip_config.json`, the weights, and the files of a tokenizer. The
configurations are open_clip's own of each family, with fewer and narrower layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

TITLES = (
    "men navy blue check shirt puma",
    "women red printed dress cotton summer",
    "boys green solid t-shirt casual nike",
    "girls formal shoes leather winter",
    "adidas running shoes sports trousers",
    "leather strap watch belt bag sunglasses",
)
CORPUS = [f"{first} {second}" for first in TITLES for second in TITLES] * 4

UNIT = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Towers of one kind: the parts of `open_clip_config.json`, and what writes the tokenizer's files, if any."""

    image: Mapping[str, Any]
    text: Mapping[str, Any]
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Callable[[Path], None] | None = None


def write_towers(folder: Path, family: Family) -> Any:
    """Write a folder of the family, and return open_clip's own model of it."""
    folder.mkdir(parents=True, exist_ok=True)
    if family.tokenizer:
        family.tokenizer(folder)
    model = {"embed_dim": 24, "custom_text": True, **family.whole, "vision_cfg": family.image, "text_cfg": family.text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": family.preprocess}))
    torch.manual_seed(0)
    reference = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for parameter in reference.parameters():  # norms and scales too: what is left out must show
        parameter.data += 0.05 * torch.randn_like(parameter)
    torch.save(reference.state_dict(), folder / "open_clip_pytorch_model.bin")
    return reference.eval()


# --- tokenizers --------------------------------------------------------------------------------------------


def t5_tokenizer(folder: Path) -> None:
    """SigLIP's: pieces of sentences by a unigram model, an end and no start; padded with the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(CORPUS, _unigram(special))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    _save(tokenizer, folder, {"pad_token": "</s>", "eos_token": {"content": "</s>"}})


def gemma_tokenizer(folder: Path) -> None:
    """SigLIP2's: byte pairs over whole titles; that it adds an end stands in its settings alone."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    settings = {"add_bos_token": False, "add_eos_token": True, "bos_token": "<bos>", "eos_token": "<eos>"}
    _save(tokenizer, folder, {**settings, "pad_token": "<pad>"})


def xlm_tokenizer(folder: Path) -> None:
    """MetaCLIP 2's: a unigram model with start and end; padded with a token of its own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(CORPUS, _unigram(special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    _save(tokenizer, folder, {"pad_token": "<pad>"})


def bert_tokenizer(folder: Path) -> None:
    """CLIPA's: word pieces between a start and a separator, which open_clip strips."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    _save(tokenizer, folder, {"pad_token": "[PAD]", "sep_token": "[SEP]"})


def _unigram(special: list[str]) -> trainers.UnigramTrainer:
    return trainers.UnigramTrainer(
        vocab_size=80,
        special_tokens=special,
        unk_token="<unk>",  # noqa: S106 - no password
        show_progress=False,
    )


def _save(tokenizer: Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# --- families ----------------------------------------------------------------------------------------------

VIT = {"width": 32, "layers": 2, "head_width": 16, "patch_size": 8, "image_size": 32}
SMALL_TEXT = {"width": 16, "heads": 2, "layers": 2}
CLIP_TEXT = {**SMALL_TEXT, "context_length": 24, "vocab_size": 49408}
SIGLIP_TEXT = {
    **SMALL_TEXT,
    "context_length": 16,
    "vocab_size": 90,
    "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
SIGLIP: Mapping[str, Any] = {"whole": {"init_logit_bias": -10}, "preprocess": {**UNIT, "resize_mode": "squash"}}


@register_model
def vit_siglip_cut(**options: Any) -> nn.Module:
    """SigLIP's image tower, small: `vit_base_patch16_siglip_224` is a `VisionTransformer` like it."""
    options = {name: value for name, value in options.items() if name in {"num_classes", "global_pool"}}
    tower = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, **{**options, "class_token": False}
    )
    tower.default_cfg = {}  # type: ignore[assignment]
    return tower


@register_model
def swin_cut(**options: Any) -> nn.Module:
    """A Swin Transformer, small: its features have their channels last."""
    options = {name: value for name, value in options.items() if name in {"num_classes", "global_pool"}}
    tower = SwinTransformer(
        img_size=56, patch_size=4, window_size=7, embed_dim=16, depths=(2, 2), num_heads=(2, 4), **options
    )
    tower.default_cfg = {"pool_size": (7, 7)}  # type: ignore[assignment]
    return tower


def timm(name: str, size: int, **settings: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_model_pretrained": False, "image_size": size, **settings}


FAMILIES: Mapping[str, Family] = {
    "CLIP": Family(image=VIT, text=CLIP_TEXT),
    "CLIP of OpenAI": Family(image=VIT, text=CLIP_TEXT, whole={"quick_gelu": True}),
    "SigLIP, Marqo": Family(
        image=timm("vit_siglip_cut", 32, timm_pool="map", timm_proj="none"),
        text=SIGLIP_TEXT,
        tokenizer=t5_tokenizer,
        **SIGLIP,
    ),
    "SigLIP 2": Family(
        image=timm("vit_siglip_cut", 32, timm_pool="map", timm_proj="none"),
        text=SIGLIP_TEXT | {"vocab_size": 120, "act_kwargs": {"approximate": "tanh"}},
        tokenizer=gemma_tokenizer,
        **SIGLIP,
    ),
    "SigLIP, multilingual": Family(
        image=timm("vit_siglip_cut", 32, timm_pool="map", timm_proj="none"),
        text={key: value for key, value in SIGLIP_TEXT.items() if key != "proj_bias"} | {"proj_type": "none"},
        tokenizer=t5_tokenizer,
        **{**SIGLIP, "whole": {"init_logit_bias": -10, "embed_dim": 16}},
    ),
    "CLIPA": Family(
        image={**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        text={
            **SMALL_TEXT,
            "context_length": 12,
            "vocab_size": 120,
            "hf_tokenizer_name": "bert-base-uncased",
            "tokenizer_kwargs": {"strip_sep_token": True},
            "pool_type": "last",
            "no_causal_mask": True,
        },
        preprocess={**IMAGENET, "interpolation": "bilinear", "resize_mode": "squash"},
        tokenizer=bert_tokenizer,
    ),
    "MetaCLIP 2": Family(
        image=VIT,
        text={
            **SMALL_TEXT,
            "context_length": 20,
            "vocab_size": 90,
            "hf_tokenizer_name": "facebook/xlm-v-base",
            "pool_type": "eos",
            "eos_id": 2,
        },
        tokenizer=xlm_tokenizer,
    ),
    "MobileCLIP-S": Family(
        image=timm("fastvit_t8", 64, timm_pool="avg", timm_proj=None),
        text={**CLIP_TEXT, "no_causal_mask": True},
        preprocess={"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "shortest"},
    ),
    "MobileCLIP-B": Family(
        image=timm("test_vit", 160, timm_pool="token", timm_proj=None),
        text={**CLIP_TEXT, "no_causal_mask": False},
        preprocess={"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "shortest"},
    ),
    "PE-Core": Family(
        image=timm("vit_pe_core_tiny_patch16_384", 384, timm_pool="map", timm_proj=None),
        text={**CLIP_TEXT, "context_length": 12},
        preprocess={**UNIT, "interpolation": "bilinear", "resize_mode": "squash"},
    ),
    "EVA02": Family(image=timm("eva02_tiny_patch14_224", 224, timm_pool="token", timm_proj=None), text=CLIP_TEXT),
    "ConvNeXt": Family(image=timm("test_convnext", 64, timm_pool="", timm_proj="linear"), text=CLIP_TEXT),
    "ConvNeXt, MLP": Family(image=timm("test_convnext", 64, timm_pool="", timm_proj="mlp"), text=CLIP_TEXT),
    "Swin": Family(image=timm("swin_cut", 56, timm_pool="", timm_proj="linear"), text=CLIP_TEXT),
    "ViT without a class token": Family(image=timm("test_vit2", 160, timm_pool="", timm_proj="linear"), text=CLIP_TEXT),
    "padded": Family(image=VIT, text=CLIP_TEXT, preprocess={**IMAGENET, "resize_mode": "longest", "fill_color": 114}),
}
