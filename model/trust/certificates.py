"""Certified thresholds: the minimum confidence at which labels are accepted, so that a target precision is kept.

Pure maths; needs scipy (`model.trust.binomial`), so it is for calibration only: serving uses the `Certificate`s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.trust.binomial import binomial_tail, design_effects, lower_bound
from model.trust.calibration import Certificate

METHOD = (
    "learn-then-test: binomial tails, counts divided by the design effect of repeated titles, "
    "fallback procedure over a fixed grid of confidences"
)

TARGET_PRECISIONS = (0.9, 0.95, 0.99)
"""What is certified unless something else is asked for."""

_GRID_TOP, _GRID_BOTTOM, _GRID_STEP = 6.9, 0.0, 0.05

_GRID_LOGITS = np.arange(round((_GRID_TOP - _GRID_BOTTOM) / _GRID_STEP) + 1) * -_GRID_STEP + _GRID_TOP

GRID: tuple[float, ...] = tuple(round(1 / (1 + math.exp(-x)), 5) for x in _GRID_LOGITS)
"""The thresholds that may be certified, descending from 0.999 evenly in logits down to 0.5.

No label is accepted that is likelier wrong than right, however often such answers were right on calibration listings.

Fixed beforehand: a grid that looked at the calibration listings would void the certificate.
"""

START_SHARES = {
    round((_GRID_TOP - logit) / _GRID_STEP): share
    # confidence:         0.999,       0.996,       0.99,        0.978,      0.95,        0.90
    for logit, share in ((6.9, 0.10), (5.5, 0.15), (4.6, 0.25), (3.8, 0.2), (2.95, 0.2), (2.2, 0.1))
}
"""Where in the grid testing starts, and each start's share of the error budget; together 1.

Most of it sits where a calibrated model already exceeds the target with many listings accepted; the rest
covers an overconfident model (above) and one that is seldom sure (below). One start too few can cost all
coverage, one too many costs a few tenths of a point.
"""


def certify(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    targets: Sequence[float],
    delta: float = 0.05,
    *,
    group: NDArray[np.integer[Any]] | None = None,
    in_step: bool = False,
) -> dict[float, Certificate | None]:
    """Return, per target precision, the smallest threshold that can be certified, or None.

    `confidence` [n] in [0, 1] and `correct` [n] are those of the labelled calibration listings, a label
    outside the vocabulary counted as wrong; listings of one `group` [n] are not independent evidence
    (without it, all are independent). Raises `ValueError` when lengths differ or a confidence is NaN.

    **The promise**, per target: with probability at least 1 - `delta`, the precision of accepted labels is at
    least the target; both their true precision and the one measured on a fresh sample as large as this one.
    The fresh sample's noise adds to this one's, so the margin must be sqrt(2) times as wide as the true
    precision alone would need: tests are made at a level `alpha` < `delta` (0.01 for 0.05). For independent
    listings the true precision's part of the promise is a theorem, at `alpha`; the measured one's rests on
    a normal approximation.

    **The method** is Learn-then-Test (Angelopoulos et al., arXiv:2110.01052). Per threshold of the fixed
    `GRID` the hypothesis is "the precision here is below the target". Given how many listings are accepted,
    the number of correct ones is binomial, so its exact tail at the target is a valid p-value. Where listings
    come in groups, both counts are first divided by the design effect (`design_effects`; Korn and Graubard,
    1998): no longer exact, but right listings that repeat a title no longer count as independent evidence.

    The family-wise correction is the fallback procedure (Wiens and Dmitrienko, 2005), one of the graphical
    procedures that the paper admits. Thresholds are tested from the highest down; each start adds its share
    of `alpha` to the budget; a threshold whose p-value is within the budget is certified and hands the
    budget on to the next one; one that fails loses it. This needs no monotone precision: let i be the first
    threshold that is certified falsely. The false one before it was not certified, so the budget at i is at
    most c_i, the shares of the starts between the two. The c_i are fixed beforehand and sum to at most
    `alpha`, so P(any false certificate) ≤ Σ P(p_i ≤ c_i) ≤ Σ c_i ≤ `alpha`. Hence any certified threshold
    may be picked, and the smallest covers most. (To pick the smallest threshold whose own p-value passes,
    without the stop at a failure, would break the promise.)

    **Multi-valued attributes** are certified on (listing, label) pairs, with `in_step`: the promise is the precision of
    the labels that are accepted, all listings' together. The pairs of a listing are right or wrong together, and their
    number differs from listing to listing. A design effect that is estimated from the errors is then too small by
    chance where there are few of them: none may have hit a group of many pairs. So it is at least Σ m² / Σ m, with m
    the number of accepted pairs in a group: what it is where all pairs of a group are right or wrong together, in step.
    That does not depend on which pairs are right; the estimated one counts where errors are in the larger groups.

    **Thresholds grow with the target**: all targets have the same starts and shares, and p-values grow with
    the target, so what is certified for one target is certified for every lower one.
    """
    group = np.arange(len(confidence)) if group is None else group
    if not confidence.shape == correct.shape == group.shape or np.isnan(confidence).any():
        raise ValueError("confidence, correct and group must be of one length, and no confidence may be NaN")
    right, accepted = effective_counts(confidence, correct, group, in_step=in_step)
    alpha = significance_level(delta)
    certificates: dict[float, Certificate | None] = {}
    for target in targets:
        best = _smallest_certified(binomial_tail(right, accepted, target), alpha)
        if best is None:
            certificates[target] = None
            continue
        support = int((confidence >= GRID[best]).sum())
        certificates[target] = Certificate(
            threshold=GRID[best],
            coverage=support / len(confidence),
            support=support,
            bound=lower_bound(right[best], accepted[best], delta),
        )
    return certificates


def certify_labels(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    predicted: NDArray[np.integer[Any]],
    targets: Sequence[float],
    delta: float = 0.05,
    *,
    group: NDArray[np.integer[Any]],
    in_step: bool = False,
) -> dict[int, dict[float, Certificate | None]]:
    """Return, per predicted label (class index) and target precision, the certificate of its answers alone.

    The rows of a multi-valued attribute are (listing, label) pairs; `predicted` is then the pair's label.

    **The promise** is that of `certify`, for each label by itself: of the listings that are accepted as this label,
    the share that bears it is at least the target. Each of these promises holds with probability 1 - `delta`; not
    all of them at once.

    A target is left out where the label has too few examples: where not even right answers throughout would be
    certified; there it would not be at any higher target either. That depends on the confidences alone, not on which
    answers are right, so it voids no certificate.
    A label that has enough of them, and fails, is None: it is not accepted at that target.
    """
    certificates: dict[int, dict[float, Certificate | None]] = {}
    for label in np.unique(predicted).tolist():
        rows = predicted == label
        options: dict[str, Any] = {"group": group[rows], "in_step": in_step}
        possible = certify(confidence[rows], np.ones(rows.sum(), np.bool_), targets, delta, **options)
        testable = [target for target, best in possible.items() if best is not None]
        if testable:
            certificates[label] = certify(confidence[rows], correct[rows], testable, delta, **options)
    return certificates


def significance_level(delta: float) -> float:
    """Return the level of the tests behind a promise that may be broken with probability `delta` (see `certify`)."""
    return 1 - NormalDist().cdf(math.sqrt(2) * NormalDist().inv_cdf(1 - delta))


def fewest_right(target: float, delta: float = 0.05) -> int:
    """Return how many answers, independent and all of them right, a certificate at the target needs at least.

    It takes as many where the model is as sure of them as the start in the grid with the largest share asks for.
    """
    budget = max(START_SHARES.values()) * significance_level(delta)
    return math.ceil(math.log(budget) / math.log(target))


def most_wrong(answers: int, target: float, delta: float = 0.05) -> int | None:
    """Return how many of some answers may be wrong for a certificate at the target; None: not even none of them may.

    The answers are independent, and what a threshold accepts that is tested with the whole error budget. So it says
    beforehand what that many reviews can certify: 300 allow 6 errors at 0.95.
    """
    wrong = np.arange(answers + 1)
    allowed = binomial_tail(answers - wrong, answers, target) <= significance_level(delta)
    return int(allowed.sum()) - 1 if allowed[0] else None


def effective_counts(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    group: NDArray[np.integer[Any]],
    *,
    in_step: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how many correct answers each threshold of `GRID` accepts, and how many answers in all.

    In independent listings: both are divided by the design effect of the groups. With `in_step` it is at least that of
    groups whose answers are all right or all wrong.
    """
    order = np.argsort(-confidence)
    right_of_first = np.concatenate([[0], np.cumsum(correct[order])])
    accepted = np.searchsorted(-confidence[order], -np.asarray(GRID), side="right")
    effect = design_effects(confidence, correct, group, GRID)
    if in_step:
        effect = np.maximum(effect, design_effects(confidence, np.ones(len(correct), np.bool_), group, GRID))
    return right_of_first[accepted] / effect, accepted / effect


def _smallest_certified(p_values: NDArray[np.float64], alpha: float) -> int | None:
    """Run the fallback procedure down the grid; return the last position certified."""
    certified, budget = None, 0.0
    for position, p_value in enumerate(p_values):
        budget += alpha * START_SHARES.get(position, 0.0)
        if p_value <= budget and budget > 0:
            certified = position
        else:
            budget = 0.0
    return certified
