"""The multi-task loss of CMA-CLIP (arXiv:2112.03562, section 3.4).

Shapes: B listings, T attributes, C_t labels of attribute t.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def labelled_rows(labels: Tensor) -> Tensor:
    """Return in how many rows of `labels`, `[B, columns]`, each column has something to learn from: `[columns]`."""
    return (labels >= 0).sum(dim=0)


def multi_task_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    multi_valued: Collection[int] = (),
    label_smoothing: float = 0.0,
    counts: Tensor | None = None,
) -> Tensor:
    """Sum over attributes of the mean cross-entropy on the rows where that attribute is labelled (section 3.4).

    logits: per attribute `[B, C_t]`; multi_valued: which of them, by place, are multi-valued. labels: `[B, columns]`
    int64 as `model.tasks.encode_row` has them, negative where there is nothing to learn from (`UNLABELLED`,
    `OUT_OF_VOCABULARY`). An attribute without a labelled row in the batch adds exactly 0.
    counts: `[columns]`, positive: how many `labelled_rows` the means are over, where these rows are a part of a larger
    batch. The losses of its parts then add up to that of the whole.

    A multi-valued attribute is C_t independent questions: its loss is the negative log-likelihood of the row's label
    set, the sum of their binary cross-entropies.
    """
    counts = labelled_rows(labels).clamp(min=1) if counts is None else counts
    total, column = logits[0].new_zeros(()), 0
    for t, scores in enumerate(logits):
        if t in multi_valued:
            width = scores.shape[1]
            summed = _label_sets(scores.float(), labels[:, column : column + width], label_smoothing)
        else:
            width = 1
            summed = F.cross_entropy(
                scores.float(),
                labels[:, column].clamp(min=-1),
                ignore_index=-1,
                reduction="sum",
                label_smoothing=label_smoothing,
            )
        total, column = total + summed / counts[column], column + width
    return total


def _label_sets(scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the summed loss of label sets, 1 or 0 per label `[B, C]`.

    Smoothing mixes each answer with 1 / C, as it does in a softmax. With 1/2, as for two classes, C absent labels would
    be pulled to C times half the smoothing: more labels than a listing has.
    """
    labelled = labels[:, 0] >= 0
    target = labels.clamp(min=0).to(scores.dtype)
    target = target * (1 - label_smoothing) + label_smoothing / scores.shape[1]
    losses = F.binary_cross_entropy_with_logits(scores, target, reduction="none").sum(dim=1)
    return torch.where(labelled, losses, 0.0).sum()
