"""How often answers change where nobody would expect it: under unnoticeable changes, and from model to model.

After Xiang et al. (arXiv:2007.15269), who measure how far predicted landmarks move between images that a person cannot
tell apart; carried over to labels, verdicts and confidences. Maths on numpy; no torch, no files.

Shapes: n listings, V changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One attribute's answers to n listings."""

    labels: Ints
    """Class indices, `[n]`."""
    accepted: Bools
    """`[n]`."""
    confidence: Floats
    """Of the label that the listing has without any change, `[n]`."""

    def __getitem__(self, rows: Bools | Ints) -> Answered:
        """Return the listings at `rows`."""
        return Answered(labels=self.labels[rows], accepted=self.accepted[rows], confidence=self.confidence[rows])


@dataclass(frozen=True, kw_only=True)
class Flips:
    """How n answers to one attribute differ from those to the same listings after a change."""

    listings: int
    labels: float
    """The share of listings with another label."""
    verdicts: float
    """The share of listings that are accepted once and not the other time."""
    accepted: float | None
    """The share of accepted labels that become another label, accepted or not; None where nothing was accepted."""
    confidence: float
    """Mean absolute change of the confidence of the first label."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures in JSON types."""
        return dict(vars(self))


def flips(before: Answered, after: Answered) -> Flips | None:
    """Compare the answers to the same n listings; None where there is no listing."""
    if len(before.labels) == 0:
        return None
    other = before.labels != after.labels
    return Flips(
        listings=len(other),
        labels=float(other.mean()),
        verdicts=float((before.accepted != after.accepted).mean()),
        accepted=float(other[before.accepted].mean()) if before.accepted.any() else None,
        confidence=float(np.abs(before.confidence - after.confidence).mean()),
    )


def spread(confidence: Floats, given: Bools) -> float | None:
    """Return the mean over listings of the standard deviation of their confidences, `[1 + V, n]`, over all changes.

    given: which changes apply to which listing, of the same shape; the listing as it is, the first row, always does.
    None where no change applies to any listing.
    """
    several = given.sum(axis=0) > 1
    if not several.any():
        return None
    values = np.where(given, confidence, np.nan)[:, several]
    return float(np.nanstd(values, axis=0).mean())


@dataclass(frozen=True, kw_only=True)
class Churn:
    """How the answers of two models to the same n listings differ, on one attribute.

    Two models that are wrong about different listings have to differ in some of them: `expected` is what is left of
    `labels` when that is taken off.
    """

    listings: int
    labels: float
    """The share of listings with another label."""
    verdicts: float
    """The share of listings that one accepts and the other doesn't."""
    accepted: float | None
    """Of the listings that both accept, the share with another label; None where there is none."""
    improved: float | None
    """The share of labelled listings that only the second model has right."""
    worsened: float | None
    """The share that only the first one has right."""

    @property
    def unexplained(self) -> float | None:
        """The churn that the difference in accuracy does not explain: what moved without moving the accuracy."""
        if self.improved is None or self.worsened is None:
            return None
        return self.labels - abs(self.improved - self.worsened)

    def to_json(self) -> dict[str, Any]:
        """Return the figures in JSON types."""
        return {**vars(self), "unexplained": self.unexplained}


def churn(before: Answered, after: Answered, truth: Ints) -> Churn | None:
    """Compare two models' answers; truth: class indices `[n]`, negative where unknown. None without listings.

    Labels of both are indices into one list of labels.
    """
    n = len(truth)
    if n == 0:
        return None
    other, both, known = before.labels != after.labels, before.accepted & after.accepted, truth >= 0
    right = [each.labels[known] == truth[known] for each in (before, after)]
    return Churn(
        listings=n,
        labels=float(other.mean()),
        verdicts=float((before.accepted != after.accepted).mean()),
        accepted=float(other[both].mean()) if both.any() else None,
        improved=float((right[1] & ~right[0]).mean()) if known.any() else None,
        worsened=float((right[0] & ~right[1]).mean()) if known.any() else None,
    )
