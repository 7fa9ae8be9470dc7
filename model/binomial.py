"""Exact binomial tails and Clopper-Pearson bounds; numpy alone, so that serving needs no scipy."""

from __future__ import annotations

import math

import numpy as np

_BISECTIONS = 60
"""Halvings of [0, 1]: the bound is exact to the last digits of a float."""


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Return P(X ≥ `successes`) for X ~ Binomial(`trials`, `probability`), with 0 < `probability` < 1.

    The terms are summed in log space, so nothing under- or overflows.
    """
    if successes <= 0:
        return 1.0
    if successes > trials:
        return 0.0
    # P(X = k), then each following term from the one before: C(n, j + 1) / C(n, j) = (n - j) / (j + 1).
    log_first = (
        math.lgamma(trials + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(trials - successes + 1)
        + successes * math.log(probability)
        + (trials - successes) * math.log1p(-probability)
    )
    j = np.arange(successes, trials)
    log_ratios = np.log((trials - j) / (j + 1)) + math.log(probability) - math.log1p(-probability)
    log_terms = log_first + np.concatenate([[0.0], np.cumsum(log_ratios)])
    largest = log_terms.max()
    return min(1.0, math.exp(largest) * float(np.exp(log_terms - largest).sum()))


def lower_bound(successes: int, trials: int, alpha: float) -> float:
    """Return the one-sided Clopper-Pearson bound: with confidence 1 - `alpha`, no probability is lower."""
    if successes <= 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # Under a probability below the bound, as many successes would be rarer than alpha.
        if binomial_tail(successes, trials, middle) <= alpha:
            low = middle
        else:
            high = middle
    return low


def clopper_pearson(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a probability, (0, 1) where there was no trial."""
    alpha = (1 - confidence) / 2
    return lower_bound(successes, trials, alpha), 1 - lower_bound(trials - successes, trials, alpha)
