"""Why the fusion helps or does not: which layers learn and when, and what the weights of the modalities are worth.

Shapes: n listings, T attributes, M = 2 modalities in the order image, text, D fusion width, C_t labels, G weights of a
grid.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.evaluation import scores
from model.network.cma_clip import CMAClip
from model.network.towers import TokenSequence
from model.tasks import Task
from research.study.encoded import EncodedFineTuning

GRID = 21
"""Weights of the image that are tried, from 0 to 1."""

BATCH = 256


# --- which layer learns, and when --------------------------------------------------------------------------


LAYERS: Mapping[str, tuple[str, ...]] = {
    "token embeddings": ("backbone.text.text.token_embedding.",),
    "text tower": ("backbone.text.",),
    "projection of images": ("sequence_attention.project_image.", "project_image."),
    "projection of titles": ("sequence_attention.project_text.", "project_text."),
    "sequence-wise attention": ("sequence_attention.",),
    "modality-wise attention": ("modality_attention.",),
    "heads": ("heads.",),
}
"""Groups of parameters by the beginnings of their names; the first that fits counts."""


def layer_of(name: str) -> str:
    """Return the group that a parameter belongs to."""
    return next((layer for layer, starts in LAYERS.items() if name.startswith(starts)), "other")


class GradientFlow:
    """Watches a network's gradients: per layer and interval of steps, their norm against that of the weights.

    Each layer's figure is the root mean square over the steps of an interval: |gradient| / |weights|, the share of
    itself that a layer would change by at a learning rate of 1.
    """

    def __init__(self, network: nn.Module, *, interval: int) -> None:
        self.interval = interval
        self._passes: dict[str, int] = defaultdict(int)
        self._squares: dict[tuple[int, str], float] = defaultdict(float)
        self._weights: dict[tuple[int, str], float] = defaultdict(float)
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                hook = functools.partial(self._note, name)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _note(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = (self._passes[name] // self.interval, layer_of(name))
        self._passes[name] += 1
        self._squares[key] += float(parameter.grad.detach().float().square().sum())
        self._weights[key] += float(parameter.detach().float().square().sum())

    def table(self) -> dict[str, list[float]]:
        """Return each layer's figures, one for each interval."""
        intervals = 1 + max((interval for interval, _ in self._squares), default=-1)
        layers = dict.fromkeys(layer for _, layer in self._squares)
        return {
            layer: [
                round(float(np.sqrt(self._squares[i, layer] / max(self._weights[i, layer], 1e-12))), 6)
                for i in range(intervals)
            ]
            for layer in layers
        }


class WatchedFineTuning(EncodedFineTuning):
    """A fine-tuning whose gradients are watched."""

    def __init__(self, *arguments: Any, interval: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.interval = interval
        self.flow: GradientFlow | None = None

    def _initial_network(self) -> CMAClip:
        network = super()._initial_network()  # locked by now, so that only what learns is watched
        self.flow = GradientFlow(network, interval=self.interval)
        return network


# --- what the weights of the modalities are worth ----------------------------------------------------------


@torch.inference_mode()
def aggregates(network: CMAClip, image: TokenSequence, text: TokenSequence) -> tuple[Tensor, NDArray[np.float64]]:
    """Return what the heads could weigh, `[n, M, D]`, and the modality attention `[n, T, M]`, of encoded listings."""
    embeddings, attention = [], []
    for rows in torch.split(torch.arange(len(text.pooled)), BATCH):
        output = network(image.select(rows), text.select(rows))
        embeddings.append(output.aggregated)
        attention.append(output.modality_attention)
    return torch.cat(embeddings), torch.cat(attention).double().numpy()


@torch.inference_mode()
def weighed(network: CMAClip, aggregated: Tensor, attribute: int, image_weight: Tensor) -> NDArray[np.int64]:
    """Return the labels that an attribute's head predicts where images weigh `image_weight`, `[n]`: class indices."""
    weights = torch.stack([image_weight, 1 - image_weight], dim=1).to(aggregated.dtype)  # [n, M]
    fused = (weights[:, :, None] * aggregated).sum(dim=1)
    predicted: NDArray[np.int64] = network.heads[attribute](fused).argmax(dim=1).numpy()
    return predicted


def weights_worth(
    network: CMAClip,
    tasks: Sequence[Task],
    aggregated: Tensor,
    attention: NDArray[np.float64],
    labels: NDArray[np.int64],
) -> dict[str, dict[str, float]]:
    """Return what the weights of each attribute are worth, in shares of the labelled listings that are right.

    accuracy: with the learned weights. mean, deviation: of the image's weight over listings. constant: with the mean
    weight for every listing: as much as `accuracy` where the attention has collapsed to a constant. best_constant: with
    the best single weight for these very listings. oracle: right for at least one weight, the most that any weights of
    these vectors could reach. labels: class indices `[n, T]`.
    """
    worth = {}
    grid = torch.linspace(0, 1, GRID, dtype=torch.float64)
    for t, task in enumerate(tasks):
        counted, truth = scores.labelled(labels[:, t]), labels[:, t]
        learned = torch.from_numpy(attention[:, t, 0])

        def right(weight: Tensor, t: int = t, truth: NDArray[np.int64] = truth) -> NDArray[np.bool_]:
            return np.equal(weighed(network, aggregated, t, weight), truth)

        tried = np.stack([right(torch.full_like(learned, float(weight)))[counted] for weight in grid])  # [G, n]
        constant = right(torch.full_like(learned, float(learned[torch.from_numpy(counted)].mean())))[counted]
        as_learned = right(learned)[counted]
        shares = {
            "accuracy": as_learned.mean(),
            "mean": learned.mean(),
            "deviation": learned.std(),
            "constant": constant.mean(),
            "best_constant": tried.mean(axis=1).max(),
            "oracle": (tried.any(axis=0) | as_learned).mean(),
        }
        worth[task.name] = {name: round(float(share), 5) for name, share in shares.items()}
    return worth


def write_diagnosis(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a diagnosis as JSON; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
