from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize

from model.calibration import (
    GRID,
    AttributeCalibration,
    Calibration,
    Certificate,
    certify,
    fit_temperature,
    softmax,
)
from model.errors import CheckpointError
from model.readings import Situation
from model.scores import oracle_point
from model.tasks import OUT_OF_VOCABULARY, UNLABELLED

TARGETS = (0.9, 0.95, 0.99)
LOGITS = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(-50, 50, width=32))


# --- temperature -------------------------------------------------------------------------------------------


@given(LOGITS, st.floats(0.05, 20))
def test_softmax_sums_to_one(logits: Any, temperature: float) -> None:
    probabilities = softmax(logits, temperature)
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    assert (probabilities >= 0).all()


@given(LOGITS, st.floats(0.05, 20))
def test_temperature_leaves_the_best_label_as_it_is(logits: Any, temperature: float) -> None:
    probabilities = softmax(logits, temperature)
    best = logits.argmax(axis=1)
    # Two labels that differ by less than a float can tell may tie in probability, but never swap.
    assert (probabilities[np.arange(len(best)), best] == probabilities.max(axis=1)).all()


def drawn_labels(logits: Any, seed: int = 0) -> Any:
    """Labels drawn from the softmax of `logits`: those logits are calibrated."""
    cumulative = softmax(logits, 1.0).cumsum(axis=1)
    return (np.random.default_rng(seed).random((len(logits), 1)) > cumulative).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fit_recovers_the_temperature_and_equals_scipy(temperature: float) -> None:
    logits = np.random.default_rng(1).normal(0, 2, (5_000, 8))
    labels = drawn_labels(logits)
    fitted = fit_temperature(logits * temperature, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)

    def negative_log_likelihood(log_temperature: float) -> float:
        probabilities = softmax(logits * temperature, math.exp(log_temperature))
        return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())

    reference = optimize.minimize_scalar(negative_log_likelihood, bounds=(-2, 2), method="bounded")
    assert fitted == pytest.approx(math.exp(reference.x), rel=1e-3)


def test_rows_without_a_known_label_do_not_enter_the_fit() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (500, 8))
    labels = drawn_labels(logits)
    more = np.concatenate([logits, logits[:200] * 30])
    unknown = np.repeat([UNLABELLED, OUT_OF_VOCABULARY], 100)
    assert fit_temperature(more, np.concatenate([labels, unknown])) == fit_temperature(logits, labels)
    assert fit_temperature(logits[:200], unknown) == 1.0


def test_fit_stays_within_its_limits_when_every_answer_is_right_or_wrong() -> None:
    logits = np.array([[3.0, 0.0]] * 50)
    assert fit_temperature(logits, np.zeros(50, dtype=int)) == pytest.approx(1 / 20)
    assert fit_temperature(logits, np.ones(50, dtype=int)) == pytest.approx(20)


# --- certified thresholds ----------------------------------------------------------------------------------


def draw(n: int, slope: float, generator: np.random.Generator) -> tuple[Any, Any]:
    """A model whose confidence is 1 - u³, u uniform, and which is wrong with probability slope × u³."""
    doubt = generator.random(n) ** 3
    return 1 - doubt, generator.random(n) >= slope * doubt


def true_precision(threshold: float, slope: float) -> float:
    """The mean of u³ over the accepted u < a = (1 - threshold)^(1/3) is a³/4."""
    return 1 - slope * (1 - threshold) / 4


def oracle_coverage(target: float, slope: float) -> float:
    return ((1 - target) * 4 / slope) ** (1 / 3)


# A calibrated, an over- and an underconfident model.
@pytest.mark.parametrize("slope", [1.0, 1.6, 0.5])
def test_certified_thresholds_keep_the_promise(slope: float) -> None:
    generator = np.random.default_rng(7)
    runs, broken, broken_as_measured, certified = 120, 0, 0, 0
    for _ in range(runs):
        certificate = certify(*draw(2_000, slope, generator), [0.9])[0.9]
        if certificate is None:
            continue
        certified += 1
        broken += true_precision(certificate.threshold, slope) < 0.9
        confidence, correct = draw(2_000, slope, generator)
        broken_as_measured += correct[confidence >= certificate.threshold].mean() < 0.9
    assert certified > 0.95 * runs
    assert broken <= 0.05 * runs
    # At most 5 % too; three standard errors of the runs aside.
    assert broken_as_measured <= (0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)) * runs


def test_naive_thresholds_break_the_promise() -> None:
    generator = np.random.default_rng(7)
    broken = 0
    for _ in range(200):
        point = oracle_point(*draw(2_000, 1.0, generator), 0.9)
        broken += point is not None and true_precision(point.threshold, 1.0) < 0.9
    assert broken > 0.3 * 200


def test_precision_that_is_not_monotone_keeps_the_promise() -> None:
    # The surest tenth is wrong half of the time (mislabelled look-alikes, say): precision peaks below it.
    generator = np.random.default_rng(3)
    broken = 0
    for _ in range(200):
        confidence = generator.random(2_000)
        correct = generator.random(2_000) < np.where(confidence > 0.9, 0.5, 0.97)
        certificate = certify(confidence, correct, [0.9])[0.9]
        if certificate is not None:
            t = certificate.threshold
            wrong = 0.5 * min(0.1, 1 - t) + 0.03 * max(0.0, 0.9 - t)
            broken += 1 - wrong / (1 - t) < 0.9
    assert broken <= 0.05 * 200


def test_the_certificate_costs_little_coverage() -> None:
    generator = np.random.default_rng(5)
    lost = []
    for _ in range(20):
        certificate = certify(*draw(4_000, 1.0, generator), [0.95])[0.95]
        assert certificate is not None
        lost.append(oracle_coverage(0.95, 1.0) - certificate.coverage)
    assert np.mean(lost) < 0.06


@settings(max_examples=40)
@given(n=st.integers(0, 3_000), slope=st.floats(0, 2), seed=st.integers(0, 100))
def test_thresholds_are_on_the_grid_and_grow_with_the_target(n: int, slope: float, seed: int) -> None:
    confidence, correct = draw(n, slope, np.random.default_rng(seed))
    certificates = certify(confidence, correct, TARGETS)
    floors = [math.inf if c is None else c.threshold for c in certificates.values()]
    assert list(certificates) == list(TARGETS)
    assert floors == sorted(floors)
    for target, certificate in certificates.items():
        if certificate is None:
            continue
        accepted = confidence >= certificate.threshold
        assert certificate.threshold in GRID
        assert certificate.support == accepted.sum()
        assert certificate.coverage == accepted.mean()
        assert target < certificate.bound <= correct[accepted].mean()


@settings(max_examples=25)
@given(n=st.integers(0, 500))
def test_too_few_listings_certify_nothing(n: int) -> None:
    # All right, all sure: even so, 0.9^n, 0.95^n and 0.99^n must fall under the budget.
    certificates = certify(np.full(n, 0.9999), np.ones(n, dtype=np.bool_), TARGETS)
    for target, certificate in certificates.items():
        if certificate is not None:
            assert target**n < 0.01


def test_a_perfect_model_accepts_everything() -> None:
    certificates = certify(np.full(1_000, 0.9999), np.ones(1_000, dtype=np.bool_), TARGETS)
    assert [c.threshold for c in certificates.values() if c is not None] == [0.0, 0.0, 0.0]


def test_a_hopeless_model_abstains() -> None:
    generator = np.random.default_rng(0)
    confidence, correct = generator.random(4_000), generator.random(4_000) < 0.5
    assert certify(confidence, correct, TARGETS) == dict.fromkeys(TARGETS)


def test_the_confidence_that_equals_a_threshold_is_accepted() -> None:
    threshold = GRID[20]
    certificate = certify(np.full(2_000, threshold), np.ones(2_000, dtype=np.bool_), [0.9])[0.9]
    below = certify(np.full(2_000, np.nextafter(threshold, 0)), np.ones(2_000, dtype=np.bool_), [0.9])[0.9]
    assert certificate is not None
    assert certificate.support == 2_000
    assert below is not None  # another start, further down, finds it


def test_rows_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        certify(np.array([0.5, np.nan]), np.array([True, True]), [0.9])
    with pytest.raises(ValueError, match="one length"):
        certify(np.array([0.5]), np.array([True, True]), [0.9])


# --- calibration.json --------------------------------------------------------------------------------------


def calibration() -> Calibration:
    certified = Certificate(threshold=0.62011, coverage=0.8, support=3_200, bound=0.951)
    return Calibration(
        version="3f0c00112233",
        method="a method",
        confidence_level=0.95,
        target_precisions=TARGETS,
        situations={
            situation: {
                "baseColour": AttributeCalibration(
                    temperature=1.3, thresholds={0.9: certified, 0.95: certified, 0.99: None}
                )
            }
            for situation in Situation
        },
    )


def test_a_calibration_survives_json() -> None:
    written = json.dumps(calibration().to_json())
    assert Calibration.from_json(json.loads(written)) == calibration()


COLOUR = ("situations", "image", "baseColour")
THRESHOLD = (*COLOUR, "thresholds", "0.9")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "format must be 1, not 2"),
        (("version",), None, "version is missing"),
        (("method",), 3, "method must be a text"),
        (("confidence_level",), "0.95", "confidence_level must be a number"),
        (("target_precisions",), [], "target_precisions must be a list of numbers"),
        (("target_precisions",), [0.95, 0.9, 0.99], "target_precisions must be ascending"),
        (("target_precisions",), [0.9, 0.95], "baseColour.thresholds must be for 0.9, 0.95"),
        (("situations",), None, "situations is missing"),
        (("situations", "title"), None, "situations.title is missing"),
        (("situations", "image"), {}, r"situations.image differs from image_and_title in \['baseColour'\]"),
        (COLOUR, [], "situations.image.baseColour must be an object"),
        ((*COLOUR, "temperature"), 0, "baseColour.temperature must be above 0"),
        ((*COLOUR, "temperature"), float("nan"), "baseColour.temperature must be a number"),
        ((*COLOUR, "temperature"), float("inf"), "baseColour.temperature must be a number"),
        (THRESHOLD, None, "baseColour.thresholds must grow with the target precision"),
        ((*THRESHOLD, "threshold"), 1.5, "thresholds.0.9.threshold must be a number from 0 to 1, not 1.5"),
        ((*THRESHOLD, "support"), 1.5, "thresholds.0.9.support must be a whole number"),
    ],
)
def test_a_wrong_calibration_is_named(path: tuple[str, ...], value: object, message: str) -> None:
    document = json.loads(json.dumps(calibration().to_json()))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        Calibration.from_json(document)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the document must be an object"):
        Calibration.from_json([])
