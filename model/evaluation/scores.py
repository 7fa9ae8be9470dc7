"""Measures of held-out answers: accuracy, macro F1, recall at precision, calibration error; numpy alone.

Legend: n rows. `labels` and `predicted` are class indices [n]; `confidence` [n] is that of the predicted
label, in [0, 1]; `correct` [n] says whether it is the true one. UNLABELLED rows are left out before
(`labelled`); OUT_OF_VOCABULARY rows are errors in every measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.tasks import UNLABELLED

Floats = NDArray[np.floating[Any]]

Ints = NDArray[np.integer[Any]]

Bools = NDArray[np.bool_]

CALIBRATION_BINS = 15


def labelled(labels: Ints) -> Bools:
    """Return the mask [n] of the rows that count: all but the unlabelled ones."""
    return np.asarray(labels != UNLABELLED)


def accuracy(predicted: Ints, labels: Ints) -> float:
    """Return the share of rows that are right; NaN when there is no row."""
    return float((predicted == labels).mean()) if len(labels) else float("nan")


def macro_f1(predicted: Ints, labels: Ints) -> float:
    """Return the mean F1 over the labels of the vocabulary that occur in the truth; NaN when none does.

    A row whose true label lies outside the vocabulary is a false positive of the label predicted for it.
    """
    size = int(max(predicted.max(initial=-1), labels.max(initial=-1))) + 1
    true_positives = np.bincount(predicted[predicted == labels], minlength=size)
    predictions = np.bincount(predicted, minlength=size)
    occurrences = np.bincount(labels[labels >= 0], minlength=size)
    occurring = occurrences > 0
    if not occurring.any():
        return float("nan")
    f1 = 2 * true_positives[occurring] / (predictions[occurring] + occurrences[occurring])
    return float(f1.mean())


def set_f1(predicted: Bools, true: Bools, label: Ints, unknown: int) -> tuple[float, float]:
    """Return micro and macro F1 of a multi-valued attribute; NaN when no label occurs in the truth.

    The rows are (listing, label) pairs: whether the label is answered, whether it is true, and which it is, `[n]` each.
    unknown: true labels outside the vocabulary, which are missed: they count in micro F1. Macro F1 is the mean over the
    labels of the vocabulary that occur in the truth.
    """
    size = int(label.max(initial=-1)) + 1
    right, answers, occurrences = (
        np.bincount(label[rows], minlength=size) for rows in (predicted & true, predicted, true)
    )
    occurring = occurrences > 0
    if not occurrences.sum() + unknown:
        return float("nan"), float("nan")
    micro = float(2 * right.sum() / (answers.sum() + occurrences.sum() + unknown))
    if not occurring.any():
        return micro, float("nan")
    return micro, float((2 * right[occurring] / (answers[occurring] + occurrences[occurring])).mean())


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The result of accepting, of `n` rows, those whose confidence is at least `threshold`."""

    threshold: float
    accepted: int
    right: int
    n: int

    @property
    def coverage(self) -> float:
        """The share of rows that are accepted."""
        return self.accepted / self.n

    @property
    def precision(self) -> float | None:
        """The share of accepted rows that are right; None when nothing is accepted."""
        return self.right / self.accepted if self.accepted else None

    @property
    def recall(self) -> float:
        """Coverage × precision: the share of rows that are accepted and right."""
        return self.right / self.n


def operating_point(confidence: Floats, correct: Bools, threshold: float) -> OperatingPoint:
    """Measure a threshold that was chosen elsewhere; a confidence that equals it is accepted."""
    accepted = confidence >= threshold
    return OperatingPoint(threshold, int(accepted.sum()), int((correct & accepted).sum()), len(correct))


def operating_points(confidence: Floats, correct: Bools) -> tuple[Floats, Ints, Ints]:
    """Return the distinct confidences, descending; how many rows each accepts; how many of them rightly.

    O(n log n). These are all the thresholds that make a difference.
    """
    order = np.argsort(-confidence)
    thresholds = confidence[order]
    # Rows of one confidence are accepted together: their counts are those at the last of them.
    last_of_ties = np.nonzero(np.diff(thresholds, append=-np.inf))[0]
    return thresholds[last_of_ties], last_of_ties + 1, np.cumsum(correct[order], dtype=np.int64)[last_of_ties]


def oracle_point(confidence: Floats, correct: Bools, target: float) -> OperatingPoint | None:
    """Return the point of largest recall whose precision on these very rows is at least `target`, or None.

    An oracle, since it picks its threshold on the rows that it is measured on. Recall and coverage both grow
    as the threshold falls, so the lowest such threshold has the largest of both.
    """
    thresholds, accepted, right = operating_points(confidence, correct)
    precise = np.nonzero(right / accepted >= target)[0]
    if not len(precise):
        return None
    lowest = precise[-1]
    return OperatingPoint(float(thresholds[lowest]), int(accepted[lowest]), int(right[lowest]), len(correct))


def recall_at_precision(confidence: Floats, correct: Bools, target: float) -> float:
    """Return the largest coverage × precision over the thresholds whose precision is at least `target`.

    0 when no threshold reaches it; NaN when there is no row. The measure of the CMA-CLIP paper
    (arXiv:2112.03562).
    """
    if not len(correct):
        return float("nan")
    point = oracle_point(confidence, correct, target)
    return 0.0 if point is None else point.recall


def reliability(confidence: Floats, correct: Bools) -> NDArray[np.float64]:
    """Return [bins, 3]: mean confidence, accuracy and number of rows in each of 15 bins of equal mass.

    Equal mass (neighbours in confidence share a bin, each bin has as many rows) and not equal width: a good
    model's confidences crowd near 1, where bins of equal width would put nearly all rows into one.
    """
    order = np.argsort(confidence, kind="stable")
    bins = [rows for rows in np.array_split(order, CALIBRATION_BINS) if len(rows)]
    return np.array(
        [(confidence[rows].mean(), correct[rows].mean(), len(rows)) for rows in bins], dtype=np.float64
    ).reshape(-1, 3)


def expected_calibration_error(confidence: Floats, correct: Bools) -> float:
    """Return the mean |confidence - accuracy| of the `reliability` bins, weighted by rows; NaN for no row."""
    bins = reliability(confidence, correct)
    if not len(bins):
        return float("nan")
    return float(np.average(np.abs(bins[:, 0] - bins[:, 1]), weights=bins[:, 2]))


def bootstrap(
    measure: Callable[[Ints], ArrayLike], group: Ints, *, resamples: int = 200, seed: int = 0
) -> NDArray[np.float64]:
    """Return `measure` of resampled rows, `[resamples, ...]`; it maps row numbers to figures.

    Whole groups are drawn, with replacement: rows of one `group` [n] are not independent evidence. The resamples
    depend on the groups and the seed alone, so two measures of the same rows can be compared resample by resample.
    """
    generator = np.random.default_rng(seed)
    number = np.unique(group, return_inverse=True)[1]
    groups = int(number.max()) + 1
    figures = []
    for _ in range(resamples):
        times_drawn = np.bincount(generator.integers(0, groups, size=groups), minlength=groups)
        figures.append(measure(np.repeat(np.arange(len(group)), times_drawn[number])))
    return np.array(figures, dtype=np.float64)


def bootstrap_interval(
    measure: Callable[[Ints], float],
    group: Ints,
    *,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of `measure`, which maps row numbers to a figure (see `bootstrap`)."""
    figures = bootstrap(measure, group, resamples=resamples, seed=seed)
    low, high = np.quantile(figures, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
