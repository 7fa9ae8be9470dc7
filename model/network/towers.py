"""open_clip towers as token sequences: every patch and every title token, not the pooled vectors alone.

Supported: open_clip's ViT image towers, timm image towers (convolutional or ViT), and open_clip's text Transformer,
causal (CLIP) or not (SigLIP). Each is pooled as it was trained: an image's first token, and the last one of a title,
are what open_clip's own model would project. Any other tower raises a `ConfigError` that names it. May import torch,
open_clip and timm; knows nothing about attributes.

Shapes: B listings, N image patches, L text tokens, C context length, d width of a tower.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from timm.models import group_parameters, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

from model.config import CLIP_END, PreprocessConfig
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
    """Images `[B, 3, H, W]` -> tokens `[B, 1+N, d_img]`: the pooled token, then the patches row by row.

    The pooled token is what the tower was trained to pool: a class token, a mean, or what attention pooling makes of
    the patches. width: d_img. grid: rows and columns of patches; N = rows x columns, unless the tower itself pools its
    patches to fewer tokens (CoCa). pools_plainly: the pooled token is the class token, or where there is none the mean
    of the patches: what each tower was pooled to before checkpoints of format 2.
    """

    width: int
    grid: tuple[int, int]
    pools_plainly: bool

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def layers(self) -> list[list[nn.Parameter]]:
        """Return all parameters by depth: of the embeddings, then of each block; pooling and the last norm at the end.

        For what changes with depth: learning rates that decay towards the embeddings, lower layers that are frozen.
        """
        raise NotImplementedError

    def checkpoint_activations(self) -> None:
        """Recompute the activations of each block in the backward pass, instead of keeping them."""
        raise NotImplementedError


class VitTower(ImageTower):
    """open_clip's VisionTransformer without its contrastive projection."""

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        if visual.pool_type == "none":
            raise ConfigError("image towers that are not pooled to one token are not supported")
        visual.proj = None
        visual.output_tokens = True
        self.visual = visual
        self.width = visual.ln_post.normalized_shape[0]
        self.grid = visual.grid_size
        self.pools_plainly = visual.pool_type == "tok" and visual.attn_pool is None and not visual.final_ln_after_pool

    def forward(self, images: Tensor) -> Tensor:
        pooled, patches = self.visual(images)
        return torch.cat([pooled[:, None], patches], dim=1)

    def layers(self) -> list[list[nn.Parameter]]:
        pooling = [part for part in (self.visual.ln_post, self.visual.attn_pool) if part is not None]
        return _by_depth(self, self.visual.transformer.resblocks, pooling)

    def checkpoint_activations(self) -> None:
        self.visual.set_grad_checkpointing(True)


class TimmTower(ImageTower):
    """A timm tower without its classifier, which open_clip uses as the contrastive projection."""

    def __init__(self, visual: TimmModel) -> None:
        super().__init__()
        if hasattr(visual.head, "pool"):
            raise ConfigError("timm towers whose pooling is open_clip's own (abs_attn, rot_attn) are not supported")
        self.trunk = visual.trunk
        self.trunk.reset_classifier(0)
        self.prefix = int(getattr(self.trunk, "num_prefix_tokens", 0))
        self.channels_last = getattr(self.trunk, "output_fmt", None) == "NHWC"
        features, pooled = self._of_sample(visual.image_size)
        self.grid = self._grid(features)
        self.width = self._patches(features).shape[2]
        if pooled.shape != (1, self.width):
            name, shape = type(self.trunk).__name__, list(pooled.shape[1:])
            raise ConfigError(f"timm tower {name} pools patches of width {self.width} to {shape}")
        plain = features[:, 0] if self.prefix else self._patches(features).mean(dim=1)
        self.pools_plainly = torch.allclose(pooled, plain, rtol=1e-3, atol=1e-5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk.forward_features(images)
        pooled = self.trunk.forward_head(features, pre_logits=True)
        return torch.cat([pooled[:, None], self._patches(features)], dim=1)

    @torch.no_grad()
    def _of_sample(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return features and pooled features of an image of `size` (height, width), which the trunk is made ready for.

        The image is not blank: of one that is, a trunk with new weights may make zeros, whose pooling says nothing.
        """
        try:
            if getattr(getattr(self.trunk, "patch_embed", None), "img_size", size) != size:
                self.trunk.set_input_size(size)
            was_training = self.trunk.training
            image = torch.linspace(-1, 1, 3 * size[0] * size[1]).reshape(1, 3, *size)
            features = self.trunk.eval().forward_features(image)
            pooled = self.trunk.forward_head(features, pre_logits=True)
            self.trunk.train(was_training)
        except Exception as error:  # timm checks few of its sizes
            name = type(self.trunk).__name__
            raise ConfigError(
                f"timm tower {name} cannot read images of {size[0]} x {size[1]} pixels: {_first_line(error)}"
            ) from error
        return features, pooled

    def _patches(self, features: Tensor) -> Tensor:
        """Return what the trunk makes of an image as `[B, N, d]`."""
        if features.ndim == 4:
            return features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)
        return features[:, self.prefix :]

    def _grid(self, features: Tensor) -> tuple[int, int]:
        if features.ndim == 4:
            rows, columns = features.shape[1:3] if self.channels_last else features.shape[2:]
            return rows, columns
        if features.ndim == 3 and hasattr(self.trunk, "patch_embed"):
            rows, columns = self.trunk.patch_embed.grid_size
            return rows, columns
        raise ConfigError(
            f"timm tower {type(self.trunk).__name__} returns features of shape {list(features.shape)}, "
            "neither maps [B, C, H, W] nor patch tokens [B, N, C]"
        )

    def layers(self) -> list[list[nn.Parameter]]:
        named = dict(self.trunk.named_parameters())
        groups = group_parameters(self.trunk, self.trunk.group_matcher(coarse=False))
        return [[named[name] for name in groups[depth]] for depth in sorted(groups)]

    def checkpoint_activations(self) -> None:
        self.trunk.set_grad_checkpointing(True)


class TextTower(nn.Module):
    """Token ids `[B, L]` -> tokens `[B, L, d_txt]`, for any L up to the context length.

    A title ends with the token `end`; what stands behind it does not matter. In its place stands what the tower was
    trained to pool, wherever that is, so that the token at the end represents the title whatever the tower is.

    A causal tower that is pooled at the end sees nothing behind it: padding to the longest title of the batch gives the
    same result as padding to the full context. Any other tower reads its padding: titles are padded with `padding` to
    the full context, as in its training.

    bag_of_words: the tower starts as a bag of words and learns to be more. To each token the Transformer's output and
    the sum of the words before it are added (as in wide and deep networks, arXiv:1606.07792), and the weights at the
    end of its residual branches start at zero: a few thousand titles teach a bag of words far more than attention.
    """

    def __init__(self, text: nn.Module, *, end: int, padding: int, bag_of_words: bool = False) -> None:
        super().__init__()
        if not isinstance(text, TextTransformer):
            raise ConfigError(f"text tower {type(text).__name__} is not supported; open_clip's own text Transformer is")
        if text.pool_type == "none":
            raise ConfigError("text towers that are not pooled to one token are not supported")
        self.causal = text.attn_mask is not None
        # CLIP's `argmax` takes the highest token: the end.
        self.pooled_at_end = (text.pool_type, end) in (("argmax", CLIP_END), ("eos", text.eos_id))
        self.reads_padding = not (self.causal and self.pooled_at_end)
        # Built in `forward` for the batch's length; as a buffer, its infinities would enter the average of weights.
        text.attn_mask = None
        text.text_projection = None  # the contrastive projection is not used here
        self.text = text
        self.end, self.padding = end, padding
        self.width = int(text.token_embedding.embedding_dim)
        self.bag_of_words = bag_of_words
        if bag_of_words:
            nn.init.normal_(text.token_embedding.weight, std=0.1)
            for block in text.transformer.resblocks:
                nn.init.zeros_(block.attn.out_proj.weight)
                nn.init.zeros_(block.mlp.c_proj.weight)

    def ends(self, tokens: Tensor) -> Tensor:
        """Return where each title of `tokens` `[B, L]` ends, `[B]` int64; 0 for a row that holds no title."""
        return (tokens == self.end).int().argmax(dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        read = self._padded(tokens) if self.reads_padding else tokens
        words = self.text.token_embedding(read)
        hidden = self._transform(words)
        if not self.pooled_at_end:
            pooled = text_global_pool(hidden, read, self.text.pool_type, self.text.eos_id)  # [B, d]
            here = torch.arange(hidden.shape[1], device=tokens.device) == self.ends(tokens)[:, None]
            hidden = torch.where(here[:, :, None], pooled[:, None], hidden)
        if self.bag_of_words:
            hidden = hidden + sum_of_words(words)
        return hidden[:, :length] if self.reads_padding else hidden

    def _padded(self, tokens: Tensor) -> Tensor:
        """Return titles as the tower was trained on them: `[B, C]`, with its padding behind their ends."""
        context = self.text.context_length
        whole = torch.cat([tokens, tokens.new_zeros(tokens.shape[0], context)], dim=1)[:, :context]
        behind = torch.arange(context, device=tokens.device) > self.ends(tokens)[:, None]
        return torch.where(behind, self.padding, whole)

    def _transform(self, words: Tensor) -> Tensor:
        length, mask = words.shape[1], None
        embeddings = words + self.text.positional_embedding[:length]
        if self.causal:
            mask = torch.full((length, length), float("-inf"), device=words.device, dtype=embeddings.dtype).triu(1)
        hidden: Tensor = self.text.ln_final(self.text.transformer(embeddings, attn_mask=mask))
        return hidden

    def layers(self) -> list[list[nn.Parameter]]:
        """Return all parameters by depth, as `ImageTower.layers` does."""
        return _by_depth(self, self.text.transformer.resblocks, [self.text.ln_final])

    def checkpoint_activations(self) -> None:
        """Recompute the activations of each block in the backward pass, instead of keeping them."""
        self.text.set_grad_checkpointing(True)


def _by_depth(tower: nn.Module, blocks: Sequence[nn.Module], last: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """Return the parameters of `tower` by depth: what is neither in a block nor `last` comes first."""
    above = [list(block.parameters()) for block in blocks]
    above[-1] += [parameter for module in last for parameter in module.parameters()]
    known = {id(parameter) for layer in above for parameter in layer}
    return [[parameter for parameter in tower.parameters() if id(parameter) not in known], *above]


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
        """Encode `tokens`, `[B, L]` int64, to `[B, L, d_txt]`, pooled at each title's end; what is behind is masked."""
        pooled = self.text.ends(tokens)
        mask = torch.arange(tokens.shape[1], device=tokens.device) <= pooled[:, None]
        return TokenSequence(self.text(tokens), mask, pooled)


def build_backbone(config: Mapping[str, Any], preprocess: PreprocessConfig, weights: Path | None = None) -> Backbone:
    """Build both towers from an open_clip configuration, with random weights or those of a file in open_clip's format.

    Raises `ConfigError` for towers that cannot be built or are not supported, and for weights that do not fit them.
    """
    config = copy.deepcopy(dict(config))
    image, text = _image_settings(_part(config, "vision_cfg")), _text_settings(_part(config, "text_cfg"))
    wanted = {key: config[key] for key in _WHOLE_SETTINGS if key in config} | {
        "vision_cfg": image | {"image_size": list(preprocess.image_size)},
        "text_cfg": text | {"context_length": preprocess.context_length},
    }
    try:
        clip = CustomTextCLIP(**wanted)
    except Exception as error:  # open_clip and timm check few of their settings
        raise ConfigError(f"the towers cannot be built: {_first_line(error)}") from error
    if weights is not None:
        _load(clip, weights)
    return Backbone(
        _image_tower(clip.visual),
        TextTower(
            clip.text, end=preprocess.end, padding=preprocess.padding, bag_of_words=bool(config.get(BAG_OF_WORDS))
        ),
    )


def _load(clip: CustomTextCLIP, weights: Path) -> None:
    try:
        open_clip.load_checkpoint(clip, str(weights))
    except Exception as error:  # a file that holds no weights can fail in any way
        raise ConfigError(f"{weights} does not fit the towers: {_first_line(error)}") from error


def _image_tower(visual: nn.Module) -> ImageTower:
    if isinstance(visual, VisionTransformer):
        return VitTower(visual)
    if isinstance(visual, TimmModel):
        return TimmTower(visual)
    raise ConfigError(f"image tower {type(visual).__name__} is not supported; ViT and timm towers are")


_WHOLE_SETTINGS = ("embed_dim", "quick_gelu", "init_logit_bias")
"""Settings of the model around the towers: what weights in open_clip's format need to be read."""


def check_towers(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an open_clip configuration of towers that are not supported, as far as it says so."""
    _image_settings(_part(config, "vision_cfg"))
    _text_settings(_part(config, "text_cfg"))


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    if not isinstance(part, dict):
        raise ConfigError(f"the backbone has no {name}")
    return part


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
    if settings.get("embed_cls"):
        raise ConfigError("text towers with a class token behind the title (CoCa's) are not supported")
    settings = {name: value for name, value in settings.items() if name not in _OF_TOKENIZERS}
    _check_known("text_cfg", settings, _TEXT_SETTINGS)
    return settings


def _check_known(part: str, settings: Mapping[str, Any], known: frozenset[str]) -> None:
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"{part} cannot have {unknown[0]!r}: not a setting that towers are built from")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
