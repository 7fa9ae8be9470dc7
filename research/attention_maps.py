"""The sequence-wise attention maps of a network, which production code never computes.

`plain_block` is an encoder block written out as in the paper's formulas, softmax and all. Production runs the same
weights through PyTorch's fused attention, and computes in the last block only the tokens that are used.

Shapes: B listings, S tokens (text first), H heads, D fusion width, P positions, T attributes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from model.network.attention import EncoderBlock, tokens_at
from model.network.cma_clip import CMAClip, Output
from model.network.towers import TokenSequence


def plain_block(block: EncoderBlock, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Run `block` on all tokens `x`, `[B, S, D]`, under `mask`, `[B, S]` bool.

    Returns the new tokens `[B, S, D]` and the attention `[B, H, S, S]` (head, query, key), both differentiable.
    """
    heads = block.query_key_value(block.norm_attention(x)).unflatten(-1, (3, block.heads, -1))  # [B, S, 3, H, D/H]
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, H, S, D/H]
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    attention = scores.masked_fill(~mask[:, None, None, :], float("-inf")).softmax(dim=-1)
    attended = (attention @ value).transpose(1, 2).flatten(2)  # [B, H, S, D/H] -> [B, S, D]
    x = x + block.dropout(block.output(attended))
    return x + block.dropout(block.mlp(block.norm_mlp(x))), attention


def forward_with_attention(
    network: CMAClip, image: TokenSequence | None, text: TokenSequence | None
) -> tuple[Output, list[Tensor]]:
    """Run the network with `plain_block` in place of each fusion block's own computation.

    Returns its output, equal to `network(image, text)` except for rounding, and the attention `[B, H, S, S]` of each
    fusion block, through which gradients of the output flow.
    """
    attentions: list[Tensor] = []

    def replace_output(module: nn.Module, inputs: tuple[Any, ...], _: Tensor) -> Tensor:
        assert isinstance(module, EncoderBlock)
        x, mask, positions = inputs
        tokens, attention = plain_block(module, x, mask)
        attentions.append(attention)
        return tokens if positions is None else tokens_at(tokens, positions)

    handles = [block.register_forward_hook(replace_output) for block in network.sequence_attention.blocks]
    try:
        return network(image, text), attentions
    finally:
        for handle in handles:
            handle.remove()
