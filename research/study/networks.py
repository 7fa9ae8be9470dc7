"""What CMA-CLIP is compared with: the same towers, fine-tuned, without attention between or over the modalities.

Shapes: B listings, D fusion width, T attributes, M = 2 modalities in the order image, text, C_t labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from model.config import FusionConfig, ModelConfig
from model.network.cma_clip import CMAClip, Output
from model.network.towers import Backbone, TokenSequence, build_backbone
from model.tasks import Task
from model.training.initialise import initial_network


class PooledClip(nn.Module):
    """CLIP, fine-tuned: both pooled embeddings side by side, and one MLP per attribute on top.

    An absent modality is exact: a learned vector takes its place, whatever placeholder was encoded. It starts at
    zero, so that training which never withholds a modality leaves zeros there, not noise.
    """

    joint = 2
    """Fusion widths that `join` returns."""

    def __init__(self, backbone: Backbone, tasks: Sequence[Task], config: FusionConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.project_image = _projection(backbone.image.width, config.width)
        self.project_text = _projection(backbone.text.width, config.width)
        self.absent = nn.Parameter(torch.zeros(2, config.width))
        self.heads = nn.ModuleList(_head(self.joint * config.width, config, len(task.labels)) for task in tasks)

    def forward(self, image: TokenSequence | None, text: TokenSequence | None) -> Output:
        """Predict from encoded modalities, one of which may be None.

        The modality attention of the output is the plain average of what is present: nothing is learned there.
        """
        given = image or text
        assert given is not None
        rows = len(given.pooled)
        pooled, present = [], []
        for sequence, project, absent in (
            (image, self.project_image, self.absent[0]),
            (text, self.project_text, self.absent[1]),
        ):
            if sequence is None:
                pooled.append(absent.expand(rows, -1))
                present.append(given.present.new_zeros(rows))
            else:
                here = sequence.present
                tokens = self.pool(sequence)
                # Before the projection too: 0 x NaN would reach its gradient.
                projected = project(torch.where(here[:, None], tokens, 0.0))
                pooled.append(torch.where(here[:, None], projected, absent))  # [B, D]
                present.append(here)
        stacked = torch.stack(pooled, dim=1)  # [B, M, D]
        weights = torch.stack(present, dim=1).float()  # [B, M]
        weights = weights / weights.sum(dim=1, keepdim=True)
        joint = self.join(stacked, weights)
        return Output(
            tuple(head(joint) for head in self.heads), weights[:, None, :].expand(-1, len(self.heads), -1), stacked
        )

    def pool(self, sequence: TokenSequence) -> torch.Tensor:
        """Return the token that represents each listing, `[B, d]`."""
        return sequence.embeddings[torch.arange(len(sequence.pooled), device=sequence.pooled.device), sequence.pooled]

    def join(self, pooled: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return what the heads read, `[B, joint * D]`, of both modalities' `pooled`, `[B, M, D]`: them side by side.

        weights: `[B, M]`, the plain average over the modalities that are present.
        """
        del weights  # what takes an absent modality's place is in `pooled` already
        return pooled.flatten(1)


def _projection(tower: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(tower), nn.Linear(tower, width))


def _head(inputs: int, config: FusionConfig, labels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, config.width),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.width, labels),
    )


AttributeNetwork = CMAClip | PooledClip
"""What a study trains and measures: two towers, run apart, and what is made of their outputs."""

BuildNetwork = Callable[[ModelConfig, Sequence[Task], str | None], AttributeNetwork]
"""Configuration, attributes and start (see `model.training.train.train`) -> the network to train."""


def pooled_clip(model: ModelConfig, tasks: Sequence[Task], initial: str | None) -> PooledClip:
    """Build a `PooledClip` on the towers that CMA-CLIP would start from."""
    return PooledClip(initial_network(model, tasks, initial).backbone, tasks, model.fusion)


def with_random_text(build: BuildNetwork) -> BuildNetwork:
    """Return a function that builds the same network with a text tower of random weights."""

    def built(model: ModelConfig, tasks: Sequence[Task], initial: str | None) -> AttributeNetwork:
        network = build(model, tasks, initial)
        network.backbone.text = build_backbone(model.backbone, model.preprocess).text
        return network

    return built


def parameters(network: nn.Module) -> int:
    """Return how many parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters())
