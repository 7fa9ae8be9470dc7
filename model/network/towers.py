"""open_clip towers as token sequences: every patch and every title token, not the pooled vectors alone.

Supported: open_clip's ViT image towers, timm image towers (convolutional or ViT), and open_clip's causal text
Transformer. Any other tower raises a `ConfigError` that names it. May import torch, open_clip and timm; knows
nothing about attributes.

Shapes: B listings, N image patches, L text tokens, d width of a tower.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.models import register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

from model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token embeddings of one modality for a batch.

    embeddings: `[B, S, d]` float.
    mask: `[B, S]` bool, False at padding, and False all along a row whose modality is absent.
    pooled: `[B]` int64, the position of the token that represents the whole sequence (class token, EOT).
    """

    embeddings: Tensor
    mask: Tensor
    pooled: Tensor

    @classmethod
    def pooled_first(cls, embeddings: Tensor) -> TokenSequence:
        """Wrap an image's tokens, `[B, 1+N, d]`: no padding, and the first one represents the whole image."""
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return cls(embeddings, mask, mask.new_zeros(mask.shape[0], dtype=torch.long))

    @property
    def present(self) -> Tensor:
        """`[B]` bool: the rows that have this modality."""
        return self.mask.any(dim=1)

    def keep(self, rows: Tensor) -> TokenSequence:
        """Return the same sequence with the modality made absent where `rows` (`[B]` bool) is False."""
        return TokenSequence(self.embeddings, self.mask & rows[:, None], self.pooled)

    def select(self, rows: Tensor) -> TokenSequence:
        """Return the listings at `rows`: `[B]` bool where they are True, or int64 positions."""
        return TokenSequence(self.embeddings[rows], self.mask[rows], self.pooled[rows])


@register_model
def cma_resnet_small(
    pretrained: bool = False, *, num_classes: int = 0, drop_path_rate: float = 0.0, **_: Any
) -> ByobNet:
    """A residual convnet for images of 64 to 80 pixels, as a timm tower: 20 patches at 80 x 64, 2.7 M parameters.

    Plain 3 x 3 convolutions with widths in powers of two, since they run closest to a CPU's peak throughput. From tens
    of thousands of images a convolutional tower learns what a plain ViT of this size does not.
    """
    return _resnet([(1, 64, 2), (2, 128, 2), (2, 256, 2)], pretrained, num_classes, drop_path_rate)


@register_model
def cma_resnet_medium(
    pretrained: bool = False, *, num_classes: int = 0, drop_path_rate: float = 0.0, **_: Any
) -> ByobNet:
    """As `cma_resnet_small` with a fourth stage at half the image's resolution: 20 patches, 4.9 M parameters."""
    return _resnet([(1, 48, 1), (2, 96, 2), (2, 192, 2), (2, 320, 2)], pretrained, num_classes, drop_path_rate)


def _resnet(stages: list[tuple[int, int, int]], pretrained: bool, num_classes: int, drop_path_rate: float) -> ByobNet:
    """Build a residual convnet of `stages`: blocks, channels and stride of each."""
    if pretrained:
        raise ConfigError("this project's towers have no pretrained weights; start from a checkpoint instead")
    blocks = tuple(
        ByoBlockCfg(type="basic", d=depth, c=width, s=stride, gs=0, br=1.0) for depth, width, stride in stages
    )
    config = ByoModelCfg(blocks=blocks, stem_type="3x3", stem_pool="", stem_chs=32)
    # open_clip's adapter reads `default_cfg` to see whether features are maps (`pool_size`) or tokens.
    network = ByobNet(config, num_classes=num_classes, drop_path_rate=drop_path_rate)
    network.default_cfg = {"pool_size": (5, 4)}  # type: ignore[assignment]
    return network


def _small(tower: str, image_size: tuple[int, int] = (80, 64)) -> dict[str, Any]:
    return {
        "embed_dim": 256,
        "vision_cfg": {"timm_model_name": tower, "timm_proj": "none", "image_size": list(image_size)},
        "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 3},
    }


BAG_OF_WORDS = "bag_of_words"
"""The key of a configuration, besides open_clip's own, that makes a text tower start as a bag of words."""

BACKBONES: Mapping[str, Mapping[str, Any]] = {
    # The towers of `weights/fashion`: 16 M parameters, 9.5 M of them word embeddings.
    "cma-small": _small("cma_resnet_medium"),
    "cma-tiny": _small("cma_resnet_small"),
    # For a few thousand listings: an image tower that starts from ImageNet, and a text tower that starts as a bag of
    # words.
    "cma-lite": {**_small("tf_efficientnet_lite0", (128, 96)), BAG_OF_WORDS: True},
}
"""This project's open_clip configurations by name, in addition to those that open_clip ships."""


def backbone_config(name: str) -> dict[str, Any]:
    """Return the open_clip configuration called `name`: one of `BACKBONES` or one that open_clip ships.

    Raises `ConfigError` for an unknown name.
    """
    config = BACKBONES.get(name) or open_clip.get_model_config(name)
    if config is None:
        known = ", ".join([*BACKBONES, "ViT-B-32", "ViT-B-16", "ViT-L-14"])
        raise ConfigError(f"unknown backbone {name!r}; known are {known} and open_clip's other ViT CLIP models")
    return copy.deepcopy(dict(config))


class ImageTower(nn.Module):
    """Images `[B, 3, H, W]` -> tokens `[B, 1+N, d_img]`: the class (or pooled) token, then the patches row by row.

    width: d_img. grid: rows and columns of patches, N = rows x columns.
    """

    width: int
    grid: tuple[int, int]

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class VitTower(ImageTower):
    """open_clip's VisionTransformer without its pooling and projection."""

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        if visual.attn_pool is not None or visual.final_ln_after_pool:
            raise ConfigError("image towers with attentional pooling are not supported: patches lose their positions")
        visual.proj = None  # the contrastive projection is not used here
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.grid = visual.grid_size

    def forward(self, images: Tensor) -> Tensor:
        last: dict[str, list[Tensor]] = self.visual.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        # [B, 1, d] and [B, N, d] -> [B, 1+N, d]
        return torch.cat([*last["image_intermediates_prefix"], *last["image_intermediates"]], dim=1)


class TimmTower(ImageTower):
    """A timm tower; where it has no class token, the mean of the patches is the first token."""

    def __init__(self, visual: TimmModel) -> None:
        super().__init__()
        self.trunk = visual.trunk
        self.trunk.reset_classifier(0)
        self.prefix = int(getattr(self.trunk, "num_prefix_tokens", 0))
        height, width = visual.image_size
        with torch.no_grad():
            was_training = self.trunk.training
            features = self.trunk.eval().forward_features(torch.zeros(1, 3, height, width))
            self.trunk.train(was_training)
        if features.ndim == 4:
            self.grid = (features.shape[2], features.shape[3])
            self.width = features.shape[1]
        elif features.ndim == 3 and hasattr(self.trunk, "patch_embed"):
            self.grid = tuple(self.trunk.patch_embed.grid_size)
            self.width = features.shape[2]
        else:
            raise ConfigError(
                f"timm tower {type(self.trunk).__name__} returns features of shape {list(features.shape)}, "
                "neither maps [B, C, H, W] nor patch tokens [B, N, C]"
            )

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk.forward_features(images)
        if features.ndim == 4:
            patches = features.flatten(2).transpose(1, 2)  # [B, d, h, w] -> [B, N, d]
            return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        patches = features[:, self.prefix :]
        first = features[:, :1] if self.prefix else patches.mean(dim=1, keepdim=True)
        return torch.cat([first, patches], dim=1)


class TextTower(nn.Module):
    """Token ids `[B, L]` -> tokens `[B, L, d_txt]`, for any L up to the context length.

    The tower is causal, so tokens after EOT cannot influence it: padding to the longest title of the batch gives the
    same result as padding to the full context.

    bag_of_words: the tower starts as a bag of words and learns to be more. To each token the Transformer's output and
    the sum of the words before it are added (as in wide and deep networks, arXiv:1606.07792), and the weights at the
    end of its residual branches start at zero: a few thousand titles teach a bag of words far more than attention.
    """

    def __init__(self, text: nn.Module, *, bag_of_words: bool = False) -> None:
        super().__init__()
        if not isinstance(text, TextTransformer):
            raise ConfigError(f"text tower {type(text).__name__} is not supported; open_clip's own text Transformer is")
        if text.attn_mask is None or text.cls_emb is not None or text.pool_type != "argmax":
            raise ConfigError("only causal text towers pooled at the EOT token (CLIP's) are supported")
        # Built in `forward` for the batch's length; as a buffer, its infinities would enter the average of weights.
        text.attn_mask = None
        text.text_projection = None  # the contrastive projection is not used here
        self.text = text
        self.width = int(text.token_embedding.embedding_dim)
        self.bag_of_words = bag_of_words
        if bag_of_words:
            nn.init.normal_(text.token_embedding.weight, std=0.1)
            for block in text.transformer.resblocks:
                nn.init.zeros_(block.attn.out_proj.weight)
                nn.init.zeros_(block.mlp.c_proj.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        text, length = self.text, tokens.shape[1]
        words = text.token_embedding(tokens)
        embeddings = words + text.positional_embedding[:length]
        future = torch.full((length, length), float("-inf"), device=tokens.device, dtype=embeddings.dtype).triu(1)
        hidden: Tensor = text.ln_final(text.transformer(embeddings, attn_mask=future))
        return hidden + sum_of_words(words) if self.bag_of_words else hidden


def sum_of_words(words: Tensor) -> Tensor:
    """Return for each token of `words`, `[B, L, d]`, the layer-normalised sum of the words before it.

    The start token is not one of them.
    """
    before = words.cumsum(dim=1) - words - words[:, :1]
    before = torch.cat([torch.zeros_like(before[:, :1]), before[:, 1:]], dim=1)
    return F.layer_norm(before, before.shape[-1:])


class Backbone(nn.Module):
    """Both towers of a CLIP model."""

    def __init__(self, image: ImageTower, text: TextTower) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.image_locked = False

    def lock_image(self) -> None:
        """Freeze the image tower, including its batch statistics (LiT, arXiv:2111.07991)."""
        self.image.requires_grad_(False)
        self.image_locked = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation mode; a locked image tower stays in evaluation mode."""
        super().train(mode)
        if self.image_locked:
            self.image.eval()
        return self

    def encode_image(self, images: Tensor) -> TokenSequence:
        """Encode `images`, `[B, 3, H, W]` normalised floats, to `[B, 1+N, d_img]`, pooled at the first token."""
        return TokenSequence.pooled_first(self.image(images))

    def encode_text(self, tokens: Tensor) -> TokenSequence:
        """Encode `tokens`, `[B, L]` int64 padded with zeros, to `[B, L, d_txt]`, pooled at EOT, the highest id."""
        pooled = tokens.argmax(dim=1)
        mask = torch.arange(tokens.shape[1], device=tokens.device) <= pooled[:, None]
        return TokenSequence(self.text(tokens), mask, pooled)


def build_backbone(config: Mapping[str, Any], *, image_size: tuple[int, int], context_length: int) -> Backbone:
    """Build both towers with random weights from an open_clip configuration.

    Raises `ConfigError` for towers that cannot be built or are not supported.
    """
    config = copy.deepcopy(dict(config))
    bag_of_words = bool(config.get(BAG_OF_WORDS))
    if missing := [key for key in ("vision_cfg", "text_cfg") if not isinstance(config.get(key), dict)]:
        raise ConfigError(f"the backbone has no {missing[0]}")
    wanted = {key: config[key] for key in ("embed_dim", "quick_gelu") if key in config} | {
        "vision_cfg": _image_settings(config["vision_cfg"]) | {"image_size": list(image_size)},
        "text_cfg": _text_settings(config["text_cfg"]) | {"context_length": context_length},
    }
    try:
        clip = CustomTextCLIP(**wanted)
    except Exception as error:  # open_clip and timm check few of their settings
        raise ConfigError(f"the towers cannot be built: {_first_line(error)}") from error
    return _from_clip(clip, bag_of_words=bag_of_words)


_TIMM = frozenset({"timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"})

_BLOCKS = frozenset(
    [
        "width",
        "layers",
        "mlp_ratio",
        "ls_init_value",
        "pool_type",
        "final_ln_after_pool",
        "output_tokens",
        "act_kwargs",
        "norm_kwargs",
        "block_type",
        "qk_norm",
        "scaled_cosine_attn",
        "scale_heads",
        "scale_attn_inner",
        "scale_attn",
        "scale_fc",
    ]
)

_IMAGE_SETTINGS = (
    frozenset(
        [
            "head_width",
            "patch_size",
            "image_size",
            "patch_dropout",
            "attentional_pool",
            "attn_pooler_queries",
            "attn_pooler_heads",
            "no_ln_pre",
            "pos_embed_type",
        ]
    )
    | _BLOCKS
    | _TIMM
)

_TEXT_SETTINGS = _BLOCKS | frozenset(
    [
        "context_length",
        "vocab_size",
        "heads",
        "embed_cls",
        "pad_id",
        "eos_id",
        "no_causal_mask",
        "proj_bias",
        "proj_type",
    ]
)

_OF_TOKENIZERS = frozenset({"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"})
"""Settings of a text tower that building it doesn't need."""


def _image_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an image tower that open_clip is handed: sizes, and the name of a tower in this program.

    A checkpoint's configuration may be anybody's. open_clip and timm also take settings that make them download a
    network or its weights, so they get the settings listed above and no others. Raises `ConfigError`.
    """
    settings = dict(settings)
    if settings.pop("timm_model_pretrained", False):
        raise ConfigError("timm_model_pretrained would download weights; a checkpoint has its own")
    _check_known("vision_cfg", settings, _IMAGE_SETTINGS)
    if isinstance(settings.get("layers"), list):
        raise ConfigError("image tower ModifiedResNet is not supported; ViT and timm towers are")
    name = settings.get("timm_model_name")
    if name is not None and not (isinstance(name, str) and ":" not in name and timm.is_model(name)):
        raise ConfigError(f"timm has no tower {name!r}; those of a hub or a folder are not built from a checkpoint")
    return settings


def _text_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a text tower as `_image_settings` does."""
    if "hf_model_name" in settings:
        raise ConfigError("Hugging Face text towers are not supported; open_clip's own text Transformer is")
    settings = {name: value for name, value in settings.items() if name not in _OF_TOKENIZERS}
    _check_known("text_cfg", settings, _TEXT_SETTINGS)
    return settings


def _check_known(part: str, settings: Mapping[str, Any], known: frozenset[str]) -> None:
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"{part} cannot have {unknown[0]!r}: not a setting that towers are built from")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def pretrained_backbone(name: str, weights: str) -> Backbone:
    """Build open_clip's `name` with pretrained `weights`: one of its tags (downloaded) or a local file.

    Raises `ConfigError` for an unknown tag or weights that do not fit the model.
    """
    if not Path(weights).is_file() and weights not in open_clip.list_pretrained_tags_by_model(name):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ConfigError(f"{weights!r} is neither a file nor a pretrained tag of {name} (tags: {tags})")
    try:
        clip = open_clip.create_model(name, pretrained=weights, force_custom_text=True)
    except Exception as error:  # a file that holds no weights can fail in any way
        raise ConfigError(f"{weights} does not fit {name}: {_first_line(error)}") from error
    return _from_clip(clip)


def _from_clip(clip: CustomTextCLIP, *, bag_of_words: bool = False) -> Backbone:
    visual: nn.Module = clip.visual
    text: nn.Module = clip.text
    if isinstance(visual, VisionTransformer):
        image: ImageTower = VitTower(visual)
    elif isinstance(visual, TimmModel):
        image = TimmTower(visual)
    else:
        raise ConfigError(f"image tower {type(visual).__name__} is not supported; ViT and timm towers are")
    return Backbone(image, TextTower(text, bag_of_words=bag_of_words))
