from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize

from model.errors import CheckpointError
from model.situations import Situation
from model.tasks import OUT_OF_VOCABULARY, UNLABELLED
from model.trust.calibration import (
    AttributeCalibration,
    Calibration,
    Certificate,
    confidences_of,
    fit_temperature,
    sigmoid,
    softmax,
)

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


def test_softmax_is_of_double_precision() -> None:
    """A confidence close to its threshold is on the same side of it wherever it is computed."""
    logits = np.array([[1.1, 2.2, -0.3]], dtype=np.float32)
    exact = [math.exp(float(value) / 1.3) for value in logits[0]]
    assert softmax(logits, 1.3)[0] == pytest.approx([each / sum(exact) for each in exact], rel=1e-14)


def test_fit_stays_within_its_limits_when_every_answer_is_right_or_wrong() -> None:
    logits = np.array([[3.0, 0.0]] * 50)
    assert fit_temperature(logits, np.zeros(50, dtype=int)) == pytest.approx(1 / 20)
    assert fit_temperature(logits, np.ones(50, dtype=int)) == pytest.approx(20)


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
        ((*COLOUR, "temperature"), 0, "baseColour.temperature must be a number from 0.001"),
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


def own(threshold: float) -> Certificate:
    return Certificate(threshold=threshold, coverage=0.5, support=100, bound=0.96)


def with_labels() -> Calibration:
    """Navy Blue passes at the two lower targets, Red at none that it has examples for, Teal is too rare."""
    attribute = AttributeCalibration(
        temperature=1.3,
        thresholds={0.9: own(0.5), 0.95: own(0.6), 0.99: own(0.7)},
        labels={"Navy Blue": {0.9: own(0.4), 0.95: own(0.8)}, "Red": {0.9: None}},
    )
    return dataclasses.replace(calibration(), situations={each: {"baseColour": attribute} for each in Situation})


def test_labels_survive_json_and_are_left_out_where_there_are_none() -> None:
    written = json.dumps(with_labels().to_json())
    assert Calibration.from_json(json.loads(written)) == with_labels()
    assert "labels" not in json.dumps(calibration().to_json())
    assert with_labels().digest == Calibration.from_json(json.loads(written)).digest != calibration().digest


def test_a_label_is_judged_by_its_own_threshold_or_falls_back() -> None:
    attribute = with_labels().situations[Situation.IMAGE]["baseColour"]
    labels = ["Navy Blue", "Red", "Teal"]
    found = np.array([attribute.minimum_confidence(target, labels) for target in TARGETS])
    assert found.dtype == np.float64
    assert found.T.tolist() == [[0.4, 0.8, 0.8], [np.inf, np.inf, np.inf], [0.5, 0.6, 0.7]]
    alone = dataclasses.replace(attribute, thresholds=dict.fromkeys(TARGETS))
    assert [alone.minimum_confidence(target, ["Navy Blue"]).tolist() for target in TARGETS] == [[0.4], [0.8], [np.inf]]


@given(LOGITS, st.data())
def test_a_row_is_the_same_alone_and_beside_others_of_other_temperatures(logits: Any, data: st.DataObject) -> None:
    temperatures = data.draw(st.lists(st.floats(0.05, 20), min_size=len(logits), max_size=len(logits)))
    together = softmax(logits, np.array(temperatures)[:, None])
    for row, temperature in enumerate(temperatures):
        assert (together[row] == softmax(logits[row : row + 1], temperature)[0]).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels must be an object"),
        ({"Red": {"0.8": None}}, "labels.Red must be for 0.9, 0.95, 0.99, not for 0.8"),
        ({"Red": {"0.9": None, "0.95": {"threshold": 0.5}}}, "labels.Red.0.95"),
        ({"Red": 1}, "labels.Red must be an object"),
    ],
)
def test_wrong_thresholds_of_labels_are_named(labels: object, message: str) -> None:
    document = with_labels().to_json()
    document["situations"]["image"]["baseColour"]["labels"] = labels
    with pytest.raises(CheckpointError, match=message):
        Calibration.from_json(document)


def test_thresholds_of_a_label_must_grow() -> None:
    document = json.loads(json.dumps(with_labels().to_json()))
    document["situations"]["image"]["baseColour"]["labels"]["Navy Blue"]["0.9"] = None
    with pytest.raises(CheckpointError, match="Navy Blue must grow with the target precision"):
        Calibration.from_json(document)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the document must be an object"):
        Calibration.from_json([])


# --- multi-valued attributes -------------------------------------------------------------------------------


def test_the_confidences_of_a_multi_valued_attribute_are_independent() -> None:
    logits = np.array([[0.0, 2.0, -900.0, 900.0]], np.float32)
    found = confidences_of(logits, 2.0, multi_valued=True)
    np.testing.assert_allclose(found, [[0.5, 1 / (1 + np.exp(-1.0)), 0.0, 1.0]], atol=1e-12)
    assert confidences_of(logits, 2.0, multi_valued=False).sum() == pytest.approx(1)


def test_the_temperature_of_label_sets_has_the_best_likelihood() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(0, 3, (4_000, 3)).astype(np.float32)
    labels = (generator.random(logits.shape) < sigmoid(logits, 2.0)).astype(np.int64)
    labels[::5] = -100  # unlabelled
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(2.0, rel=0.06)

    def loss(temperature: float) -> float:
        p, y = sigmoid(logits, temperature)[labels[:, 0] >= 0], labels[labels[:, 0] >= 0]
        return float(-np.where(y == 1, np.log(p), np.log1p(-p)).sum(axis=1).mean())

    assert loss(found) <= min(loss(found * 1.02), loss(found / 1.02))
    assert fit_temperature(logits[:0], labels[:0]) == 1.0
