"""Noise in the calibration part alone: what becomes of thresholds, of coverage and of the promise.

Shapes: n calibration listings, m test listings, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.catalogue.listings import Listing
from model.evaluation.heldout import evidence_groups
from model.tasks import UNLABELLED, Task
from model.trust.certificates import certify
from research.noise.kinds import KINDS

TARGET = 0.95

RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)

DRAWS = 10
"""Of the noise; the network is one."""

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Answered:
    """What a network says of listings about one attribute, and the table's labels."""

    listings: tuple[Listing, ...]
    chances: Floats
    """`[n, C]`, calibrated."""
    labels: Ints
    """`[n]`."""

    @classmethod
    def of(cls, task: Task, listings: tuple[Listing, ...], chances: Floats) -> Answered:
        """Keep the listings that have a label, in the order of their ids."""
        labels = np.array([task.encode(each.labels.get(task.name)) for each in listings])
        order = sorted(np.flatnonzero(labels != UNLABELLED).tolist(), key=lambda row: by_id(listings[row]))
        return cls(tuple(listings[row] for row in order), chances[order], labels[order])


def by_id(listing: Listing) -> tuple[int, str]:
    """Order ids as numbers where they are: who labelled one listing labelled its neighbours too."""
    return len(listing.id), listing.id


def threshold(chances: Floats, labels: Ints, group: Ints) -> float:
    """Return the confidence that is certified at `TARGET`; infinite where none is."""
    found = certify(chances.max(axis=1), chances.argmax(axis=1) == labels, [TARGET], group=group)[TARGET]
    return float("inf") if found is None else found.threshold


def calibration_noise(task: Task, calibration: Answered, test: Answered) -> list[dict[str, Any]]:
    """Certify on noisy calibration labels, and measure coverage and precision on the test part as it is.

    By kind and rate: the mean over draws of coverage and precision, and the share of draws in which the precision on
    the test part is below the target. Similar labels and hard listings are the network's own: where it is wrong, the
    noise may agree with it.
    """
    group, rows = evidence_groups(calibration.listings), []
    right, confidence = test.chances.argmax(axis=1) == test.labels, test.chances.max(axis=1)
    for kind, put_noise in KINDS.items():
        for rate in RATES:
            figures = []
            for draw in range(DRAWS if rate else 1):
                rng = np.random.default_rng((draw, round(1000 * rate)))
                noisy = put_noise(calibration.labels, calibration.chances, rate, rng) if rate else calibration.labels
                taken = confidence >= threshold(calibration.chances, noisy, group)
                figures.append((float(taken.mean()), float(right[taken].mean()) if taken.any() else None))
            precisions = [precision for _, precision in figures if precision is not None]
            rows.append(
                {
                    "kind": kind,
                    "rate": rate,
                    "attribute": task.name,
                    "coverage": float(np.mean([coverage for coverage, _ in figures])),
                    "precision": float(np.mean(precisions)) if precisions else None,
                    "below_target": sum(precision < TARGET for precision in precisions) / len(figures),
                }
            )
    return rows
