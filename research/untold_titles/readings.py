"""What each modality alone reads: a bag of words of titles by strength, a linear probe of images by detail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from benchmarks.bag_of_words import TitleModel, encode, score
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.inputs.decode import decode_image
from model.inputs.normalise import TensorTransform
from model.network.towers import Backbone
from model.tasks import Task, build_tasks
from research.study.cells import figure
from research.untold_titles.catalogues import with_detail
from research.untold_titles.words import Strength, TellingWords

BATCH = 128
PROBED = 8_000
"""Training listings of a linear probe."""

Accuracies = dict[str, float | None]


def tasks_of(catalogue: Catalogue, attributes: Sequence[str] | None = None) -> tuple[Task, ...]:
    """Return the attributes, or those of the names given, with every label of the train part, however rare."""
    labels = (listing.labels for listing in catalogue.part(Part.TRAIN))
    return build_tasks(labels, attributes or catalogue.config.attributes, min_label_count=1)[0]


def read_titles(catalogue: Catalogue, part: Part, strength: Strength | None, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return what a bag of words reads of `part`, trained and measured on titles without their telling words.

    strength: None leaves titles as they are. Also returns the mean number of words that are left, as `words`.
    """
    train, measured = catalogue.part(Part.TRAIN), catalogue.part(part)
    untold = TellingWords(train).untold(strength) if strength else _title
    left = [untold(listing) for listing in train]
    model = TitleModel(left, encode(train, tasks), tasks)
    given = [untold(listing) for listing in measured]
    predicted = np.stack([logits.argmax(axis=1) for logits in model.logits(given)], axis=1)
    scores = score(predicted, encode(measured, tasks), tasks)
    words = [len(title.split()) for title in given if title]
    return {
        "words": figure(float(np.mean(words))),
        "accuracy": {name: figure(each.accuracy) for name, each in scores.items()},
    }


def _title(listing: Listing) -> str | None:
    return listing.title


# --- images ------------------------------------------------------------------------------------------------


def read_images(
    catalogue: Catalogue,
    part: Part,
    backbone: Backbone,
    transform: TensorTransform,
    tasks: Sequence[Task],
    *,
    detail: int | None,
    probed: int = PROBED,
) -> Accuracies:
    """Return what linear probes of the locked tower's pooled vectors read of `part`, from images of `detail` rows."""
    train = [listing for listing in catalogue.part(Part.TRAIN) if listing.image]
    chosen = np.random.default_rng(0).permutation(len(train))[:probed]
    probe = [train[row] for row in sorted(chosen)]
    measured = [listing for listing in catalogue.part(part) if listing.image]
    given, asked = (pooled(catalogue, each, backbone, transform, detail) for each in (probe, measured))
    mean, deviation = given.mean(dim=0), given.std(dim=0).clamp(min=1e-6)
    given, asked = (given - mean) / deviation, (asked - mean) / deviation
    labels = torch.from_numpy(encode(probe, tasks))
    logits = [linear_probe(given, labels[:, t], len(task.labels))(asked) for t, task in enumerate(tasks)]
    predicted: NDArray[np.int64] = torch.stack([each.argmax(dim=1) for each in logits], dim=1).numpy()
    scores = score(predicted, encode(measured, tasks), tasks)
    return {name: figure(each.accuracy) for name, each in scores.items()}


@torch.inference_mode()
def pooled(
    catalogue: Catalogue,
    listings: Sequence[Listing],
    backbone: Backbone,
    transform: TensorTransform,
    detail: int | None,
) -> torch.Tensor:
    """Return the tower's pooled vectors, `[n, d]`, of images of `detail` rows."""
    vectors = []
    for batch in _batches(listings):
        images = [decode_image(catalogue.image_bytes(listing.image or "")).image for listing in batch]
        pixels = [transform(image if detail is None else with_detail(image, detail)) for image in images]
        sequence = backbone.encode_image(transform.normalise(torch.from_numpy(np.stack(pixels))))
        vectors.append(sequence.embeddings[:, 0])
    return torch.cat(vectors)


def linear_probe(given: torch.Tensor, labels: torch.Tensor, classes: int, *, steps: int = 600) -> nn.Linear:
    """Return a linear classifier of `given`, `[n, d]`, trained on `labels`, `[n]`; negative ones are left out."""
    rows = labels >= 0
    given, labels = given[rows].clone(), labels[rows]
    torch.manual_seed(0)
    probe = nn.Linear(given.shape[1], classes)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        batch = torch.randint(len(given), (min(256, len(given)),))
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(probe(given[batch]), labels[batch], label_smoothing=0.05))
        optimiser.step()
        schedule.step()
    return probe.requires_grad_(False)


def _batches(listings: Sequence[Listing]) -> Iterable[Sequence[Listing]]:
    return (listings[first : first + BATCH] for first in range(0, len(listings), BATCH))
