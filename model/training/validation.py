"""Accuracy on the validation part during training: it chooses the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.errors import CatalogueError
from model.inputs.dataset import ListingDataset, TrainingBatch, load_batches
from model.network.cma_clip import CMAClip
from model.tasks import UNLABELLED
from model.training.config import SituationWeights

VALIDATION_BATCH = 128


class Validation:
    """Mean accuracy over attributes in each situation; `score`, their mean over the situations that are trained,
    chooses the checkpoint.

    Labels out of the vocabulary count as errors, as they do in every measure.
    """

    def __init__(
        self, dataset: ListingDataset, weights: SituationWeights, *, device: torch.device, workers: int
    ) -> None:
        if not any(listing.labels for listing in dataset.listings):
            raise CatalogueError("the validation part holds no labelled listing: there are too few listings, or groups")
        self.device = device
        self.trained = [situation for situation, weight in vars(weights).items() if weight]
        self.transform = dataset.transform
        self.loader = load_batches(dataset, batch_size=VALIDATION_BATCH, workers=workers)

    @torch.inference_mode()
    def __call__(self, network: CMAClip) -> dict[str, float]:
        predicted: dict[str, list[NDArray[np.int64]]] = {"image_and_title": [], "image": [], "title": []}
        present: dict[str, list[NDArray[np.bool_]]] = {"image_and_title": [], "image": [], "title": []}
        labels = []
        for batch in self._batches():
            image = network.backbone.encode_image(self.transform.normalise(batch.pixels)).keep(batch.has_image)
            text = network.backbone.encode_text(batch.tokens).keep(batch.has_title)
            labels.append(batch.labels.cpu().numpy())
            for situation, output, rows in (
                ("image_and_title", network(image, text), batch.has_image & batch.has_title),
                ("image", network(image, None), batch.has_image),
                ("title", network(None, text), batch.has_title),
            ):
                best = torch.stack([scores.argmax(dim=1) for scores in output.logits], dim=1)
                predicted[situation].append(best.cpu().numpy())
                present[situation].append(rows.cpu().numpy())
        scores = _mean_accuracies(predicted, present, np.concatenate(labels))
        counted = [scores[situation] for situation in self.trained if situation in scores]
        if not counted:
            raise CatalogueError("the validation part holds no labelled listing; the catalogue is too small")
        return scores | {"score": float(np.mean(counted))}

    def _batches(self) -> Iterator[TrainingBatch]:
        for batch in self.loader:
            yield batch.to(self.device)


def _mean_accuracies(
    predicted: Mapping[str, Sequence[NDArray[np.int64]]],
    present: Mapping[str, Sequence[NDArray[np.bool_]]],
    labels: NDArray[np.int64],
) -> dict[str, float]:
    """Accuracy per situation that occurs, the mean over attributes."""
    scores = {}
    for situation, batches in predicted.items():
        counted = (labels != UNLABELLED) & np.concatenate(present[situation])[:, None]  # [n, T]
        correct = counted & (np.concatenate(batches) == labels)
        occurring = counted.any(axis=0)
        if occurring.any():
            scores[situation] = float(np.mean(correct.sum(axis=0)[occurring] / counted.sum(axis=0)[occurring]))
    return scores
