"""Noise put into labels: which of them become wrong, and what they become.

Shapes: n listings, C labels. Labels are class indices `[n]`, negative where a listing has none that is known: those
stay as they are. `chances`, `[n, C]`, are the probabilities that a model gives listings it has not been trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

BLOCKS = 60
"""Ids in order are cut into so many blocks: each is what one supplier, or one person, has labelled."""

BAD_BLOCK = 0.5
"""The share of wrong labels in a bad block."""


def uniform(labels: Ints, chances: Floats, rate: float, rng: np.random.Generator) -> Ints:
    """Replace a share of the labels by any other, each as likely."""
    found, rows = labels.copy(), _drawn(labels, rate, rng)
    shift = rng.integers(1, chances.shape[1], size=len(rows))
    found[rows] = (labels[rows] + shift) % chances.shape[1]
    return found


def similar(labels: Ints, chances: Floats, rate: float, rng: np.random.Generator) -> Ints:
    """Replace a share of the labels by those that a model confuses them with."""
    found, confusion = labels.copy(), _confusion(labels, chances)
    for row in _drawn(labels, rate, rng):
        found[row] = rng.choice(chances.shape[1], p=confusion[labels[row]])
    return found


def by_annotator(labels: Ints, chances: Floats, rate: float, rng: np.random.Generator) -> Ints:
    """Let some blocks of ids have half of their labels wrong: each label always the same similar one there.

    Listings are expected in the order of their ids.
    """
    found, confusion = labels.copy(), _confusion(labels, chances)
    blocks = np.array_split(np.arange(len(labels)), BLOCKS)
    bad = rng.permutation(BLOCKS)[: round(rate / BAD_BLOCK * BLOCKS)]
    for block in bad:
        habit = np.array([rng.choice(len(row), p=row) for row in confusion])
        rows = blocks[block][_drawn(labels[blocks[block]], BAD_BLOCK, rng)]
        found[rows] = habit[labels[rows]]
    return found


def by_listing(labels: Ints, chances: Floats, rate: float, rng: np.random.Generator) -> Ints:
    """Replace the labels of hard listings first, by what a model would say instead."""
    found, known = labels.copy(), np.flatnonzero(labels >= 0)
    own = chances[known, labels[known]].astype(np.float64)
    hardness = (1 - own) + 1e-3
    count = round(rate * len(known))
    rows = known[rng.choice(len(known), size=count, replace=False, p=hardness / hardness.sum())]
    others = chances[rows].astype(np.float64)
    others[np.arange(len(rows)), labels[rows]] = -1
    found[rows] = others.argmax(axis=1)
    return found


KINDS: Mapping[str, Callable[[Ints, Floats, float, np.random.Generator], Ints]] = {
    "uniform": uniform,
    "similar": similar,
    "annotator": by_annotator,
    "listing": by_listing,
}


def _drawn(labels: Ints, rate: float, rng: np.random.Generator) -> Ints:
    known = np.flatnonzero(labels >= 0)
    return rng.permutation(known)[: round(rate * len(known))]


def _confusion(labels: Ints, chances: Floats) -> Floats:
    """Return for each label how likely it is taken for each other one, `[C, C]`; rows sum to 1."""
    size = chances.shape[1]
    found = np.full((size, size), 1e-9)
    for label in range(size):
        rows = labels == label
        if rows.any():
            found[label] += chances[rows].mean(axis=0)
    np.fill_diagonal(found, 0)
    return np.asarray(found / found.sum(axis=1, keepdims=True))
