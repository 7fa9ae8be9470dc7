"""Confidence sequences: bounds of a precision that hold at every moment, however often one looks at them.

A Clopper-Pearson bound holds for a sample whose size was fixed beforehand. Who looks after every judgement, and raises
the alarm the first time that it falls under the target, raises a false one sooner or later. These don't.

Maths on numpy; no torch, no files. Shapes: Q sequences, J bets.
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
    """How many accepted labels people found right and wrong, and how many they skipped: of each sequence, `[Q]`."""

    right: NDArray[np.int64]
    wrong: NDArray[np.int64]
    skipped: NDArray[np.int64]

    @classmethod
    def of(cls, right: ArrayLike, wrong: ArrayLike, skipped: ArrayLike) -> Judgements:
        """Raises `ValueError` for counts of different shapes, or negative ones."""
        counts = [np.atleast_1d(np.asarray(each, np.int64)) for each in (right, wrong, skipped)]
        if not counts[0].shape == counts[1].shape == counts[2].shape or any((each < 0).any() for each in counts):
            raise ValueError("right, wrong and skipped must be of one shape, and none may be negative")
        return cls(*counts)

    @property
    def precision(self) -> Floats:
        """The share of right ones among those that were judged, `[Q]`; NaN where none was."""
        judged = self.right + self.wrong
        return np.where(judged > 0, self.right / np.maximum(judged, 1), np.nan)

    def lower(self, alpha: float) -> Floats:
        """The bounds that the precisions are not below, `[Q]`: a skipped judgement counts as wrong."""
        return lower_bound(self.right, self.wrong + self.skipped, alpha)

    def upper(self, alpha: float) -> Floats:
        """The bounds that the precisions are not above, `[Q]`: a skipped judgement counts as right."""
        return upper_bound(self.right + self.skipped, self.wrong, alpha)


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

    Raises `ValueError` unless `alpha` lies between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, it is {alpha}")
    right, wrong = (np.atleast_1d(np.asarray(each, np.float64))[:, None] for each in (right, wrong))
    low, high = np.zeros(len(right)), np.ones(len(right))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        refuted = _log_capital(right, wrong, middle[:, None]) >= -math.log(alpha)
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return high


def lower_bound(right: ArrayLike, wrong: ArrayLike, alpha: float) -> Floats:
    """Return a bound that the mean is not below, of each sequence `[Q]`: `upper_bound`, of the errors."""
    return 1 - upper_bound(wrong, right, alpha)


def _log_capital(right: NDArray[Any], wrong: NDArray[Any], mean: Floats) -> Floats:
    """Return the logarithm of the mean capital of all bets against each claim, `[Q]`, from `[Q, 1]` each."""
    logs = right * np.log1p(-BETS) + wrong * np.log1p(BETS * mean / (1 - mean))
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
