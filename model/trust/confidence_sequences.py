"""Confidence sequences: bounds of a precision that hold at every moment, however often one looks at them.

A Clopper-Pearson bound holds for a sample whose size was fixed beforehand. Who looks after every judgement, and raises
the alarm the first time that it falls under the target, raises a false one sooner or later. These don't.

Maths on numpy; no torch, no files. Shapes: Q sequences, G outcomes of a listing, J bets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ERROR = 0.05
"""The chance that any bound of any sequence is ever wrong."""

BETS: Floats = 1 / (1 + 2.0 ** np.arange(-9, 10))
"""The shares of the capital that are bet, `[J]`: evenly spread in logits from 1/513 to 512/513, with equal capital.

Fixed beforehand. A bet earns most where the true mean is (1 - bet) times the claimed one, and nearly as much around
it: neighbours are a factor of two apart."""

_STEPS = 50
"""Of the bisection: the bounds are exact to 2^-50."""


@dataclass(frozen=True, slots=True)
class Judgements:
    """What people found of the accepted labels of listings: how many listings of each sequence came to which outcome.

    Of a single-valued attribute a listing has one accepted label; of a multi-valued one it may have several, which are
    judged together and depend on each other.
    """

    listings: NDArray[np.int64]
    """How many had an outcome, `[Q, G]`."""
    labels: NDArray[np.int64]
    """The accepted labels of a listing with that outcome, `[G]`."""
    right: NDArray[np.int64]
    """Those found right, `[G]`; 0 where the listing was skipped."""
    skipped: NDArray[np.bool_]
    """Whether it was, `[G]`."""
    most: NDArray[np.int64]
    """The accepted labels that a listing of the sequence can have, at most, `[Q]`."""

    @classmethod
    def of(cls, right: ArrayLike, wrong: ArrayLike, skipped: ArrayLike) -> Judgements:
        """Return those of listings with one accepted label each, from how many were found right, wrong or skipped.

        Each is `[Q]`. Raises `ValueError` for counts of different shapes, or negative ones.
        """
        counts = [np.atleast_1d(np.asarray(each, np.int64)) for each in (right, wrong, skipped)]
        if not counts[0].shape == counts[1].shape == counts[2].shape or any((each < 0).any() for each in counts):
            raise ValueError("right, wrong and skipped must be of one shape, and none may be negative")
        one = np.ones(len(counts[0]), np.int64)
        return cls(np.stack(counts, 1), np.ones(3, np.int64), np.array([1, 0, 0]), np.array([False, False, True]), one)

    @property
    def labels_right(self) -> NDArray[np.int64]:
        """How many labels were found right, `[Q]`."""
        return np.asarray(self.listings @ self.right)

    @property
    def labels_wrong(self) -> NDArray[np.int64]:
        """How many labels were found wrong, `[Q]`."""
        return np.asarray(self.listings @ np.where(self.skipped, 0, self.labels - self.right))

    @property
    def labels_skipped(self) -> NDArray[np.int64]:
        """How many labels nobody could judge, `[Q]`."""
        return np.asarray(self.listings @ np.where(self.skipped, self.labels, 0))

    @property
    def precision(self) -> Floats:
        """The share of right labels among those that were judged, `[Q]`; NaN where none was."""
        right, judged = self.labels_right, self.labels_right + self.labels_wrong
        return np.where(judged > 0, right / np.maximum(judged, 1), np.nan)

    def lower(self, alpha: float) -> Floats:
        """The bounds that the precisions are not below, `[Q]`: a skipped judgement counts as wrong."""
        return 1 - _upper(self.listings, self.labels, self.labels - self.right, self.most, alpha)

    def upper(self, alpha: float) -> Floats:
        """The bounds that the precisions are not above, `[Q]`: a skipped judgement counts as right."""
        right = np.where(self.skipped, self.labels, self.right)
        return _upper(self.listings, self.labels, right, self.most, alpha)


def upper_bound(right: ArrayLike, wrong: ArrayLike, alpha: float) -> Floats:
    """Return a bound that the mean of `right + wrong` yes-or-no outcomes is not above, of each sequence `[Q]`.

    **The promise**: let each outcome be right with a probability of at least m, whatever the earlier ones were. Then
    the chance that the bound, computed anew after each outcome, is ever below m is at most `alpha`.

    **The method** is betting (Waudby-Smith and Ramdas, arXiv:2010.09686, section 4). Somebody who doubts the claim "the
    mean is m" bets the share b of their capital that the next outcome is wrong, at odds that are fair if the claim is
    true: the capital is multiplied by 1 - b where it is right and by 1 + b m / (1 - m) where it is wrong. That is
    1 on average if the mean is m, and less if it is larger. So the capital, and with it the mean over several bets
    that are fixed beforehand (`BETS`), is a non-negative supermartingale that starts at 1. By Ville's inequality
    it ever reaches 1 / alpha with a probability of at most `alpha`. The claims at which it has not are those that are
    not refuted. The capital grows with m, since the odds do: the claims that are refuted are those above a bound,
    which bisection finds. It depends on how many outcomes were right and wrong, not on their order.

    **Several labels of a listing** (`Judgements`) are one bet, since they depend on each other. With n accepted labels,
    of which r are right, and K at most, the capital is multiplied by 1 + (b / K) (n m - r) / (1 - m): never negative,
    and 1 on average if the expected number of right labels is m times that of accepted ones, whatever the earlier
    listings were. With K = n = 1 these are the odds above. So the promise is about (listing, label) pairs, and holds
    however the labels of a listing depend on each other.

    Raises `ValueError` unless `alpha` lies between 0 and 1.
    """
    counts = np.stack([np.atleast_1d(np.asarray(each, np.float64)) for each in (right, wrong)], axis=1)
    return _upper(counts, np.ones(2, np.int64), np.array([1, 0]), np.ones(len(counts), np.int64), alpha)


def lower_bound(right: ArrayLike, wrong: ArrayLike, alpha: float) -> Floats:
    """Return a bound that the mean is not below, of each sequence `[Q]`: `upper_bound`, of the errors."""
    return 1 - upper_bound(wrong, right, alpha)


def _upper(
    listings: NDArray[Any], labels: NDArray[np.int64], right: NDArray[np.int64], most: NDArray[np.int64], alpha: float
) -> Floats:
    """Return the bound of each sequence, `[Q]`; the arguments are those of `Judgements`, of which `right` counts all.

    Raises `ValueError` unless `alpha` lies between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, it is {alpha}")
    low, high = np.zeros(len(listings)), np.ones(len(listings))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        refuted = _log_capital(listings, labels, right, most, middle) >= -math.log(alpha)
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return high


def _log_capital(
    listings: NDArray[Any],
    labels: NDArray[np.int64],
    right: NDArray[np.int64],
    most: NDArray[np.int64],
    mean: Floats,
) -> Floats:
    """Return the logarithm of the mean capital of all bets against each claim, `[Q]`."""
    logs = np.zeros((len(listings), len(BETS)))
    for count, n, r in zip(listings.T, labels.tolist(), right.tolist(), strict=True):
        # [Q], for each share of the capital that is bet; another attribute's listings may have more labels than `most`
        earned = np.where(count > 0, ((n - r) / (1 - mean) - n) / most, 0.0)
        logs += count[:, None] * np.log1p(BETS * earned[:, None])
    largest = logs.max(axis=1)
    return np.asarray(largest + np.log(np.exp(logs - largest[:, None]).mean(axis=1)))


def bound_error(sequences: int, start: int, error: float = ERROR) -> float:
    """Return the error that one bound of a sequence may have, so that all bounds hold together and for ever.

    sequences: how many are shown at a time, each with a lower and an upper bound, that share the error evenly
    start: which start of the sequences it is, counted from 1: they start anew with another model and each week

    The shares of the starts, 6 / (π² k²), sum to 1 over all k: so by the union bound the chance that any bound of
    any start is ever wrong is at most `error`.
    """
    if sequences < 1 or start < 1:
        raise ValueError(f"there is at least one sequence and one start, not {sequences} and {start}")
    return error / (2 * sequences) * 6 / (math.pi * start) ** 2
