"""Accuracy on the validation part during training: it chooses the checkpoint.

Shapes: n listings, T attributes, C labels of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import CatalogueError
from model.inputs.dataset import ListingDataset, TrainingBatch, load_batches
from model.network.cma_clip import CMAClip, Output
from model.tasks import UNLABELLED, label_columns
from model.training import distributed
from model.training.config import SituationWeights

VALIDATION_BATCH = 128


class Validation:
    """Mean accuracy over attributes in each situation; `score`, their mean over the situations that are trained,
    chooses the checkpoint.

    Labels out of the vocabulary count as errors, as they do in every measure. The accuracy of a multi-valued attribute
    is its R-precision: of a listing with k known labels, the share that is among its k best. With one label that is the
    accuracy. Processes that train together each judge a part of the listings, and all return the scores of all.
    """

    def __init__(
        self, dataset: ListingDataset, weights: SituationWeights, *, device: torch.device, workers: int | None
    ) -> None:
        if not any(listing.labels or listing.label_sets for listing in dataset.listings):
            raise CatalogueError("the validation part holds no labelled listing: there are too few listings, or groups")
        self.device = device
        self.trained = [situation for situation, weight in vars(weights).items() if weight]
        self.transform = dataset.transform
        self.tasks = dataset.tasks
        share = distributed.part_of(len(dataset))
        self.loader = load_batches(dataset, batch_size=VALIDATION_BATCH, workers=workers, sampler=share)

    @torch.inference_mode()
    def __call__(self, network: CMAClip) -> dict[str, float]:
        right: dict[str, list[NDArray[np.float64]]] = {"image_and_title": [], "image": [], "title": []}
        for batch in self._batches():
            image = network.backbone.encode_image(self.transform.normalise(batch.pixels)).keep(batch.has_image)
            text = network.backbone.encode_text(batch.tokens).keep(batch.has_title)
            for situation, output, rows in (
                ("image_and_title", network(image, text), batch.has_image & batch.has_title),
                ("image", network(image, None), batch.has_image),
                ("title", network(None, text), batch.has_title),
            ):
                right[situation].append(self._right(output, batch.labels)[rows].cpu().numpy())
        found = distributed.gathered(right)
        scores = _mean_accuracies(
            {name: np.concatenate([rows for each in found for rows in each[name]]) for name in right}
        )
        counted = [scores[situation] for situation in self.trained if situation in scores]
        if not counted:
            raise CatalogueError("the validation part holds no labelled listing; the catalogue is too small")
        return scores | {"score": float(np.mean(counted))}

    def _right(self, output: Output, labels: Tensor) -> Tensor:
        """Return how right each answer is, from 0 to 1, `[n, T]` float64; NaN without a label."""
        columns = [
            _r_precision(scores, labels[:, place]) if task.multi_valued else _accuracy(scores, labels[:, place.start])
            for task, place, scores in zip(self.tasks, label_columns(self.tasks), output.logits, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def _batches(self) -> Iterator[TrainingBatch]:
        for batch in self.loader:
            yield batch.to(self.device)


def _accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the best of `scores` `[n, C]` is the label `[n]`, else 0; NaN without a label."""
    right = (scores.argmax(dim=1) == labels).double()
    return torch.where(labels == UNLABELLED, torch.nan, right)


def _r_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the share of a listing's k labels, 1 or 0 each `[n, C]`, that is among its k best; NaN where k is 0."""
    count = (labels > 0).sum(dim=1)
    best_first = labels.gather(1, scores.argsort(dim=1, descending=True, stable=True)) > 0
    among = torch.arange(labels.shape[1], device=labels.device) < count[:, None]
    return (best_first & among).sum(dim=1).double() / torch.where(count > 0, count.double(), torch.nan)


def _mean_accuracies(right: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Accuracy per situation that occurs, the mean over attributes; right: `[n, T]`, NaN where nothing is counted."""
    scores = {}
    for situation, answers in right.items():
        counted = ~np.isnan(answers)
        occurring = counted.any(axis=0)
        if occurring.any():
            total = np.where(counted, answers, 0.0).sum(axis=0)
            scores[situation] = float(np.mean(total[occurring] / counted.sum(axis=0)[occurring]))
    return scores
