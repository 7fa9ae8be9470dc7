"""The multi-task loss of CMA-CLIP (arXiv:2112.03562, section 3.4).

Shapes: B listings, T attributes, C_t labels of attribute t.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def multi_task_loss(logits: Sequence[Tensor], labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum over attributes of the mean cross-entropy on the rows where that attribute is labelled (section 3.4).

    logits: per attribute `[B, C_t]`; labels: `[B, T]` int64, negative where there is nothing to learn from
    (`UNLABELLED`, `OUT_OF_VOCABULARY`). An attribute without a labelled row in the batch adds exactly 0.
    """
    total = logits[0].new_zeros(())
    for t, scores in enumerate(logits):
        target = labels[:, t].clamp(min=-1)
        known = (target >= 0).sum().clamp(min=1)
        summed = F.cross_entropy(
            scores.float(), target, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
        )
        total = total + summed / known
    return total
