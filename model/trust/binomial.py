"""Exact binomial tails and Clopper-Pearson bounds, extended to effective counts that are not whole numbers.

Needs scipy, which serving does not have: for calibration and evaluation only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv


def binomial_tail(successes: ArrayLike, trials: ArrayLike, probability: float) -> NDArray[np.float64]:
    """Return P(X ≥ `successes`) for X ~ Binomial(`trials`, `probability`), element by element.

    Counts between whole numbers are interpolated by the incomplete beta function.
    """
    k, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    # The function is not defined at k = 0, where the tail is everything.
    return np.where(k > 0, betainc(np.maximum(k, 1e-9), n - k + 1, probability), 1.0)


def lower_bound(successes: float, trials: float, alpha: float) -> float:
    """Return the one-sided Clopper-Pearson bound: with confidence 1 - `alpha`, no probability is lower."""
    if successes <= 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, alpha))


def clopper_pearson(successes: float, trials: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a probability, (0, 1) where there was no trial."""
    alpha = (1 - confidence) / 2
    return lower_bound(successes, trials, alpha), 1 - lower_bound(trials - successes, trials, alpha)


def design_effects(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    group: NDArray[np.integer[Any]],
    thresholds: ArrayLike,
) -> NDArray[np.float64]:
    """Return, per threshold, how many of the accepted listings are worth one independent listing, at least 1.

    Listings of one `group` (a repeated title, say) tend to be right or wrong together. The design effect is
    the variance of the share of errors by groups over that by listings (Kish, 1965):
    Σ_g (Σ_{i in g} (wrong_i - q))² / (n q (1 - q)), with q the share of errors. Without any error there is
    nothing to estimate it from, and a group counts as one listing of its size.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = (~correct[order]).astype(np.float64)
    members, errors = _before_in_group(group[order], wrong)
    accepted = np.searchsorted(-confidence[order], -np.asarray(thresholds), side="right")

    def total(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([[0.0], np.cumsum(steps)])[accepted]

    # One more member m -> m + 1 and error e -> e + w of a group adds to Σ m², Σ m e and Σ e²:
    squares, products = total(2 * members + 1), total(errors + wrong * (members + 1))
    error_squares = total(wrong * (2 * errors + 1))
    n = np.maximum(accepted, 1)
    share = total(wrong) / n
    between = error_squares - 2 * share * products + share**2 * squares
    within = n * share * (1 - share)
    return np.maximum(1.0, np.where(within > 0, between / np.where(within > 0, within, 1.0), squares / n))


def _before_in_group(
    group: NDArray[np.integer[Any]], wrong: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, for each row, how many earlier rows its group has, and how many of those are wrong."""
    by_group = np.argsort(group, kind="stable")
    _, first, size = np.unique(group[by_group], return_index=True, return_counts=True)
    first_of_row = np.repeat(first, size)
    members, errors = np.empty(len(group)), np.empty(len(group))
    members[by_group] = np.arange(len(group)) - first_of_row
    earlier = np.cumsum(wrong[by_group]) - wrong[by_group]
    errors[by_group] = earlier - earlier[first_of_row]
    return members, errors
