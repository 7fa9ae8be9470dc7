"""Temperatures and certified thresholds: the maths that fits them, and what calibration.json holds; no I/O.

Imports numpy alone: serving only reads thresholds, and needs nothing heavier to do so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.binomial import binomial_tail, lower_bound
from model.errors import CheckpointError
from model.readings import Situation

FORMAT = 1
METHOD = "learn-then-test: exact binomial tails, fallback procedure over a fixed grid of confidences"

_LOG_TEMPERATURE = math.log(20.0)
"""Temperatures are sought in [1/20, 20]: beyond lies a degenerate fit, not a calibration."""

_GRID_TOP, _GRID_BOTTOM, _GRID_STEP = 6.9, -3.0, 0.05
_GRID_LOGITS = np.arange(round((_GRID_TOP - _GRID_BOTTOM) / _GRID_STEP) + 1) * -_GRID_STEP + _GRID_TOP

GRID: tuple[float, ...] = (*(round(1 / (1 + math.exp(-x)), 5) for x in _GRID_LOGITS), 0.0)
"""The thresholds that may be certified, descending from 0.999 evenly in logits; the last accepts everything.

Fixed once and for all: a grid that looked at the calibration listings would void the certificate.
"""

_START_WEIGHTS = {
    round((_GRID_TOP - logit) / _GRID_STEP): weight
    for logit, weight in ((6.9, 0.1), (4.6, 0.4), (2.95, 0.4), (2.2, 0.1))  # 0.999, 0.99, 0.95, 0.90
}
"""Where in the grid testing starts, and each start's share of the error budget.

Most of it sits where a calibrated model already exceeds the target with many listings accepted; the rest
covers an overconfident model (above) and one that is seldom sure (below).
"""


# --- temperature -------------------------------------------------------------------------------------------


def softmax(logits: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float64]:
    """Return the softmax of `logits / temperature` over the last axis, in double precision.

    For calibration and serving alike, so that a confidence is on the same side of its threshold in both.
    """
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Return the temperature that minimises the negative log-likelihood (Guo et al., arXiv:1706.04599).

    `logits` is [n, C], `labels` [n]; rows without a label that the model knows (negative) are left out, and
    with no row left the temperature is 1. The likelihood is log-concave in 1/T, so its slope changes sign
    once: bisection on log T cannot miss it, and ends at a limit of [1/20, 20] when it lies beyond.
    """
    known = labels >= 0
    if not known.any():
        return 1.0
    scores = logits[known].astype(np.float64)
    mean_target_score = scores[np.arange(len(scores)), labels[known]].mean()
    low, high = -_LOG_TEMPERATURE, _LOG_TEMPERATURE
    for _ in range(40):
        middle = (low + high) / 2
        probabilities = softmax(scores, math.exp(middle))
        too_sharp = (probabilities * scores).sum(axis=1).mean() > mean_target_score
        low, high = (middle, high) if too_sharp else (low, middle)
    return math.exp((low + high) / 2)


# --- certified thresholds ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Certificate:
    """A threshold that was certified, and what it did on the calibration listings."""

    threshold: float
    """Accept a label whose confidence is at least this."""
    coverage: float
    """The share of labelled calibration listings that it accepts."""
    support: int
    """The number of calibration listings that it accepts."""
    bound: float
    """Clopper-Pearson lower bound, at the confidence level, of the precision at this one threshold."""


def certify(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    targets: Sequence[float],
    delta: float = 0.05,
) -> dict[float, Certificate | None]:
    """Return, per target precision, the smallest threshold that can be certified, or None.

    `confidence` [n] in [0, 1] and `correct` [n] are those of the labelled calibration listings, a label
    outside the vocabulary counted as wrong. Raises `ValueError` when they differ in length or hold a NaN.

    **The promise**, per target, for independent listings: with probability at least 1 - `delta`, the
    precision of accepted labels is at least the target: surely the true precision, and, as far as a normal
    approximation goes, also the one that will be measured on a fresh sample as large as this one. It is for
    the latter that the test level is `alpha` < `delta` (0.01 for 0.05): the fresh sample's noise adds to
    this sample's, so the margin must be sqrt(2) times as wide as the true precision alone would need.

    **The method** is Learn-then-Test (Angelopoulos et al., arXiv:2110.01052). Per threshold of the fixed
    `GRID` the hypothesis is "the precision here is below the target". Given how many listings are accepted,
    the number of correct ones is binomial, so its exact tail at the target is a valid p-value.

    The family-wise correction is the fallback procedure (Wiens and Dmitrienko, 2005), one of the graphical
    procedures that the paper admits. Thresholds are tested from the highest down; each start adds its share
    of `alpha` to the budget; a threshold whose p-value is within the budget is certified and hands the
    budget on to the next one; one that fails loses it. This needs no monotone precision: let i be the first
    threshold that is certified falsely. The false one before it was not certified, so the budget at i is at
    most c_i, the shares of the starts between the two. The c_i are fixed beforehand and sum to at most
    `alpha`, so P(any false certificate) ≤ Σ P(p_i ≤ c_i) ≤ Σ c_i ≤ `alpha`. Hence any certified threshold
    may be picked, and the smallest covers most. (To pick the smallest threshold whose own p-value passes,
    without the stop at a failure, would break the promise.)

    **Thresholds grow with the target**: all targets have the same starts and shares, and p-values grow with
    the target, so what is certified for one target is certified for every lower one.
    """
    if confidence.shape != correct.shape or np.isnan(confidence).any():
        raise ValueError("confidence and correct must be of one length, and confidence must hold no NaN")
    accepted, right = _counts_on_grid(confidence, correct)
    alpha = 1 - NormalDist().cdf(math.sqrt(2) * NormalDist().inv_cdf(1 - delta))
    certificates: dict[float, Certificate | None] = {}
    for target in targets:
        position = _smallest_certified(accepted, right, target, alpha)
        certificates[target] = (
            None
            if position is None
            else Certificate(
                threshold=GRID[position],
                coverage=accepted[position] / len(confidence),
                support=accepted[position],
                bound=lower_bound(right[position], accepted[position], delta),
            )
        )
    return certificates


def _counts_on_grid(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Return how many listings each threshold of the grid accepts, and how many of those are correct."""
    order = np.argsort(-confidence)
    right_of_first = np.concatenate([[0], np.cumsum(correct[order])])
    accepted = np.searchsorted(-confidence[order], -np.asarray(GRID), side="right")
    return accepted.tolist(), right_of_first[accepted].tolist()


def _smallest_certified(accepted: Sequence[int], right: Sequence[int], target: float, alpha: float) -> int | None:
    """Run the fallback procedure down the grid; return the last position certified."""
    certified, budget = None, 0.0
    for position, (n, k) in enumerate(zip(accepted, right, strict=True)):
        budget += alpha * _START_WEIGHTS.get(position, 0.0)
        if budget > 0 and binomial_tail(k, n, target) <= budget:
            certified = position
        else:
            budget = 0.0
    return certified


# --- calibration.json --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AttributeCalibration:
    """One attribute in one situation."""

    temperature: float
    thresholds: Mapping[float, Certificate | None]
    """Per target precision; None where nothing could be certified, and nothing is accepted."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration.json holds: how confidences are scaled, and from where on they are accepted."""

    version: str
    """That of the weights it was fitted for: a calibration means nothing for others."""
    method: str
    confidence_level: float
    target_precisions: tuple[float, ...]
    """Ascending."""
    situations: Mapping[Situation, Mapping[str, AttributeCalibration]]
    """All three situations, each with every attribute."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` reads back as an equal calibration."""
        return {
            "format": FORMAT,
            "version": self.version,
            "method": self.method,
            "confidence_level": self.confidence_level,
            "target_precisions": list(self.target_precisions),
            "situations": {
                situation: {
                    attribute: {
                        "temperature": calibrated.temperature,
                        "thresholds": {
                            str(target): None if certificate is None else asdict(certificate)
                            for target, certificate in calibrated.thresholds.items()
                        },
                    }
                    for attribute, calibrated in attributes.items()
                }
                for situation, attributes in self.situations.items()
            },
        }

    @classmethod
    def from_json(cls, document: object) -> Calibration:
        """Check and read a decoded calibration.json; raise `CheckpointError` naming what is wrong in it."""
        top = _mapping(document, "the document")
        if top.get("format") != FORMAT:
            raise _wrong("format", f"must be {FORMAT}, not {top.get('format')!r}")
        listed = top.get("target_precisions")
        if not isinstance(listed, list) or not listed:
            raise _wrong("target_precisions", "must be a list of numbers")
        targets = tuple(_number(target, "target_precisions", 0, 1) for target in listed)
        if any(low >= high for low, high in itertools.pairwise(targets)):
            raise _wrong("target_precisions", "must be ascending")
        situations = _mapping(top.get("situations"), "situations")
        return cls(
            version=_text(top.get("version"), "version"),
            method=_text(top.get("method"), "method"),
            confidence_level=_number(top.get("confidence_level"), "confidence_level", 0, 1),
            target_precisions=targets,
            situations=_same_attributes(
                {
                    situation: {
                        attribute: _attribute(value, targets, f"situations.{situation}.{attribute}")
                        for attribute, value in _mapping(situations.get(situation), f"situations.{situation}").items()
                    }
                    for situation in Situation
                }
            ),
        )


def _attribute(value: object, targets: tuple[float, ...], where: str) -> AttributeCalibration:
    fields = _mapping(value, where)
    thresholds = _mapping(fields.get("thresholds"), f"{where}.thresholds")
    if set(thresholds) != {str(target) for target in targets}:
        raise _wrong(f"{where}.thresholds", f"must be for {', '.join(map(str, targets))}, each once")
    certificates = {target: _certificate(thresholds[str(target)], f"{where}.thresholds.{target}") for target in targets}
    floors = [math.inf if certificate is None else certificate.threshold for certificate in certificates.values()]
    if floors != sorted(floors):
        raise _wrong(f"{where}.thresholds", "must grow with the target precision")
    temperature = _number(fields.get("temperature"), f"{where}.temperature", 0, math.inf)
    if temperature == 0:
        raise _wrong(f"{where}.temperature", "must be above 0")
    return AttributeCalibration(temperature=temperature, thresholds=certificates)


def _certificate(value: object, where: str) -> Certificate | None:
    if value is None:
        return None
    fields = _mapping(value, where)
    support = fields.get("support")
    if not isinstance(support, int) or isinstance(support, bool) or support < 0:
        raise _wrong(f"{where}.support", f"must be a whole number, not {support!r}")
    return Certificate(
        threshold=_number(fields.get("threshold"), f"{where}.threshold", 0, 1),
        coverage=_number(fields.get("coverage"), f"{where}.coverage", 0, 1),
        support=support,
        bound=_number(fields.get("bound"), f"{where}.bound", 0, 1),
    )


def _same_attributes(
    situations: Mapping[Situation, Mapping[str, AttributeCalibration]],
) -> Mapping[Situation, Mapping[str, AttributeCalibration]]:
    attributes = set(situations[Situation.BOTH])
    for situation, calibrated in situations.items():
        if difference := attributes.symmetric_difference(calibrated):
            raise _wrong(f"situations.{situation}", f"differs from {Situation.BOTH} in {sorted(difference)}")
    return situations


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "is missing" if value is None else "must be an object")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, "is missing" if value is None else "must be a text")
    return value


def _number(value: Any, where: str, low: float, high: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        raise _wrong(where, f"must be a number from {low} to {high}, not {value!r}")
    return float(value)


def _wrong(where: str, problem: str) -> CheckpointError:
    return CheckpointError(f"calibration.json: {where} {problem}")
