"""The two attentions of CMA-CLIP (arXiv:2112.03562, section 3): sequence-wise and modality-wise.

May import torch alone.

Shapes: B listings, S tokens (L of the title, then 1+N of the image), D fusion width, H heads,
T attributes, M = 2 modalities in the order image, text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EncoderBlock(nn.Module):
    """A pre-norm Transformer encoder block over masked sequences."""

    def __init__(self, width: int, *, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        hidden = int(width * mlp_ratio)
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        # On the residual branches only: dropout inside attention is costly on CPUs.
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map tokens `x`, `[B, S, D]`, attending where `mask`, `[B, S]` bool, is True.

        positions: `[B, P]` int64, the tokens to compute; None stands for all of them, P = S.
        Returns the new tokens, `[B, P, D]`.
        """
        normed = self.norm_attention(x)
        asking = normed if positions is None else tokens_at(normed, positions)
        attended = self._attend(asking, normed, mask)
        x = x if positions is None else tokens_at(x, positions)
        x = x + self.dropout(self.output(attended))
        x = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return x

    def _attend(self, asking: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        width, weight, bias = x.shape[-1], self.query_key_value.weight, self.query_key_value.bias
        query = self._split_heads(F.linear(asking, weight[:width], bias[:width]))  # [B, H, P, D/H]
        key, value = map(self._split_heads, F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        return attended.transpose(1, 2).flatten(2)  # [B, H, P, D/H] -> [B, P, D]

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # [B, S, D] -> [B, H, S, D/H]


def tokens_at(x: Tensor, positions: Tensor) -> Tensor:
    """Return the tokens of `x`, `[B, S, D]`, at `positions`, `[B, P]` int64: `[B, P, D]`."""
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[-1]))


class SequenceAttention(nn.Module):
    """Cross-modal self-attention over title tokens and image patches together (section 3.2).

    Each tower is normalised and projected to D and given a learned modality embedding; the concatenation
    passes `depth` encoder blocks. With depth 0 the projected pooled tokens are returned unchanged: the ablation
    "without sequence-wise attention".
    """

    def __init__(
        self, *, image_width: int, text_width: int, width: int, depth: int, heads: int, mlp_ratio: float, dropout: float
    ) -> None:
        super().__init__()
        self.project_image = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, width))
        self.project_text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.modality = nn.Parameter(0.02 * torch.randn(2, width))
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def project(self, image: Tensor | None, text: Tensor | None) -> Tensor:
        """Project tower outputs (`[B, 1+N, d_img]`, `[B, L, d_txt]`, not both None) to `[B, S, D]`, text first."""
        parts = []
        if text is not None:
            parts.append(self.project_text(text) + self.modality[1])
        if image is not None:
            parts.append(self.project_image(image) + self.modality[0])
        return torch.cat(parts, dim=1)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Encode projected tokens `[B, S, D]` under `mask`, `[B, S]` bool, and return those at `positions`.

        positions: `[B, P]` int64. Returns `[B, P, D]`; the last block computes nothing else, which makes it several
        times cheaper.
        """
        # Whatever value a masked position holds must not matter, not even as 0 x NaN.
        x = torch.where(mask[:, :, None], x, 0.0)
        if not self.blocks:
            x = tokens_at(x, positions)
        for block in self.blocks:
            x = block(x, mask, positions if block is self.blocks[-1] else None)
        normed: Tensor = self.norm(x)
        return normed


class ModalityAttention(nn.Module):
    """Keyless attention over the modalities, one per attribute (section 3.3).

    Scores `e[t, m] = w[t, m] . h[m]`, weights `a[t] = softmax(e[t])` over the modalities that are present.
    With `learned` False, the plain average of those present: the ablation "without modality-wise attention".
    """

    def __init__(self, *, tasks: int, width: int, learned: bool) -> None:
        super().__init__()
        self.tasks = tasks
        # Zero scores weigh both modalities the same at the start of training.
        self.weight = nn.Parameter(torch.zeros(tasks, 2, width)) if learned else None

    def forward(self, h: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the aggregated embeddings `h`, `[B, M, D]`, of the modalities that are `present`, `[B, M]` bool.

        Returns the fused embeddings `[B, T, D]` and the weights `[B, T, M]`, which sum to 1 over M and are
        exactly 0 for an absent modality. A row with no modality at all is the caller's error.
        """
        if self.weight is None:
            scores = h.new_zeros(h.shape[0], self.tasks, h.shape[1])
        else:
            scores = torch.einsum("tmd,bmd->btm", self.weight, h)
        weights = scores.masked_fill(~present[:, None, :], float("-inf")).softmax(dim=-1)
        return weights @ h, weights
