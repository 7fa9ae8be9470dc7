"""The CMA-CLIP network (arXiv:2112.03562): towers -> sequence-wise attention -> modality-wise attention -> heads.

May import torch, `towers`, `attention`, `config` and `tasks`.

Shapes: B listings, N image patches, L text tokens, S = L + 1 + N, D fusion width, T attributes, M = 2 modalities in
the order image, text, C_t labels of attribute t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import FusionConfig, ModelConfig
from model.network.attention import ModalityAttention, SequenceAttention
from model.network.towers import Backbone, TokenSequence, build_backbone
from model.tasks import Task


@dataclass(frozen=True, slots=True)
class Output:
    """The network's output for a batch.

    logits: per attribute `[B, C_t]`.
    modality_attention: `[B, T, M]`, sums to 1 over M, exactly 0 for an absent modality.
    aggregated: what the sequence attention makes of each modality, `[B, M, D]`; zeros for an absent one.
    """

    logits: tuple[Tensor, ...]
    modality_attention: Tensor
    aggregated: Tensor


class CMAClip(nn.Module):
    """Predicts every attribute of a listing from its image, its title, or both."""

    def __init__(self, backbone: Backbone, tasks: Sequence[Task], config: FusionConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.sequence_attention = SequenceAttention(
            image_width=backbone.image.width,
            text_width=backbone.text.width,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            dropout=config.dropout,
        )
        self.modality_attention = ModalityAttention(
            tasks=len(tasks), width=config.width, learned=config.modality_attention
        )
        self.heads = nn.ModuleList(_head(config.width, len(task.labels), config.dropout) for task in tasks)

    def forward(self, image: TokenSequence | None, text: TokenSequence | None) -> Output:
        """Fuse encoded modalities; a modality that no listing of the batch has may be None.

        The towers are run separately (`self.backbone.encode_image`, `encode_text`), so that one encoding can be
        fused several times, as training does. Every row must have at least one modality.
        """
        present = [s for s in (text, image) if s is not None]
        tokens = self.sequence_attention.project(image.embeddings if image else None, text.embeddings if text else None)
        mask = torch.cat([s.mask for s in present], dim=1)  # [B, S], text first
        offset = text.mask.shape[1] if text else 0
        nowhere = mask.new_zeros(mask.shape[0], dtype=torch.long)  # some token for an absent modality: zeroed below
        pooled = [offset + image.pooled if image else nowhere, text.pooled if text else nowhere]
        absent = mask.new_zeros(mask.shape[0])
        here = torch.stack([image.present if image else absent, text.present if text else absent], dim=1)
        return self.fuse(tokens, mask, torch.stack(pooled, dim=1), here)

    def fuse(self, tokens: Tensor, mask: Tensor, pooled: Tensor, here: Tensor) -> Output:
        """Fuse projected tokens `[B, S, D]`, text first, where `mask`, `[B, S]` bool, is True.

        pooled: `[B, M]` int64, the position of the token that represents each modality; any for one that is absent.
        here: `[B, M]` bool, which modalities are there.
        """
        h = self.sequence_attention(tokens, mask, pooled)  # [B, M, D]
        # An absent modality's aggregate is zeroed, so that weight 0 times its placeholder is 0, never NaN.
        h = torch.where(here[:, :, None], h, 0.0)

        fused, weights = self.modality_attention(h, here)  # [B, T, D], [B, T, M]
        logits = tuple(head(fused[:, t]) for t, head in enumerate(self.heads))
        return Output(logits, weights, h)


def _head(width: int, labels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, labels))


def build_cma_clip(config: ModelConfig, tasks: Sequence[Task], backbone: Backbone | None = None) -> CMAClip:
    """Build the network with random weights, on `backbone` where one is given (pretrained towers)."""
    backbone = backbone or build_backbone(config.backbone, config.preprocess)
    return CMAClip(backbone, tasks, config.fusion)
