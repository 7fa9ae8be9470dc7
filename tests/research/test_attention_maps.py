"""Attention maps: one for each fusion block, over all tokens, with gradients, and nothing left behind."""

from __future__ import annotations

import torch

from model.network.cma_clip import CMAClip
from research.attention_maps import forward_with_attention

TOKENS = torch.tensor([[49406, 320, 321, 49407], [49406, 320, 49407, 0]])


def test_each_block_has_a_map_over_all_tokens_that_are_there(network: CMAClip) -> None:
    image, text = network.backbone.encode_image(torch.randn(2, 3, 24, 16)), network.backbone.encode_text(TOKENS)
    output, attentions = forward_with_attention(network, image, text)
    assert len(attentions) == len(network.sequence_attention.blocks) == 2
    for attention in attentions:
        assert attention.shape == (2, 2, 4 + 1 + 6, 4 + 1 + 6)
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 2, 11))
        assert not attention[1, :, :, 3].any()  # padding
        assert attention[0].min() > 0
    gradients = torch.autograd.grad(output.logits[0].sum(), attentions)
    assert all(gradient.any() for gradient in gradients)


@torch.inference_mode()
def test_the_network_is_left_as_it_was(network: CMAClip) -> None:
    image = network.backbone.encode_image(torch.randn(2, 3, 24, 16))
    before = network(image, None)
    _, attentions = forward_with_attention(network, image, None)
    after = network(image, None)
    assert len(attentions) == 2
    assert all(torch.equal(old, new) for old, new in zip(before.logits, after.logits, strict=True))
