from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from model.evaluation import scores
from model.tasks import OUT_OF_VOCABULARY, UNLABELLED

# Few distinct confidences, so that ties are common.
ROWS = st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.6, 0.9, 0.95, 1.0]), st.booleans()), max_size=40)
TARGETS = st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0])


def columns(rows: list[tuple[float, bool]]) -> tuple[scores.Floats, scores.Bools]:
    confidence = np.array([c for c, _ in rows], dtype=np.float64)
    return confidence, np.array([right for _, right in rows], dtype=np.bool_)


def test_unlabelled_rows_do_not_count_and_unknown_labels_do() -> None:
    labels = np.array([0, UNLABELLED, OUT_OF_VOCABULARY])
    assert scores.labelled(labels).tolist() == [True, False, True]


def test_accuracy_counts_an_unknown_label_as_an_error() -> None:
    assert scores.accuracy(np.array([0, 1, 2, 0]), np.array([0, 1, OUT_OF_VOCABULARY, 1])) == 0.5
    assert math.isnan(scores.accuracy(np.array([], dtype=int), np.array([], dtype=int)))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), min_size=1, max_size=40))
def test_macro_f1_equals_sklearn_over_the_occurring_labels(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = np.array(pairs).T
    occurring = sorted(set(labels[labels >= 0].tolist()))
    if not occurring:
        assert math.isnan(scores.macro_f1(predicted, labels))
        return
    expected = metrics.f1_score(labels, predicted, labels=occurring, average="macro", zero_division=0)
    assert scores.macro_f1(predicted, labels) == pytest.approx(expected)


@given(ROWS, TARGETS)
def test_recall_at_precision_equals_brute_force(rows: list[tuple[float, bool]], target: float) -> None:
    confidence, correct = columns(rows)
    recalls = [0.0]
    for threshold in {c for c, _ in rows}:
        accepted = [right for c, right in rows if c >= threshold]
        if sum(accepted) / len(accepted) >= target:
            recalls.append(sum(accepted) / len(rows))
    measured = scores.recall_at_precision(confidence, correct, target)
    assert math.isnan(measured) if not rows else measured == max(recalls)


@given(ROWS, TARGETS)
def test_the_oracle_point_is_what_its_threshold_measures(rows: list[tuple[float, bool]], target: float) -> None:
    confidence, correct = columns(rows)
    point = scores.oracle_point(confidence, correct, target)
    if point is None:
        return
    assert point == scores.operating_point(confidence, correct, point.threshold)
    assert point.precision is not None
    assert point.precision >= target
    assert point.recall == pytest.approx(point.coverage * point.precision)


def test_a_threshold_accepts_the_confidence_that_equals_it() -> None:
    confidence, correct = np.array([0.5, 0.9, 0.95]), np.array([True, False, True])
    point = scores.operating_point(confidence, correct, 0.9)
    assert (point.accepted, point.right, point.coverage, point.precision) == (2, 1, 2 / 3, 0.5)
    assert scores.operating_point(confidence, correct, 0.99).precision is None


def test_calibration_error_against_a_hand_count() -> None:
    # 30 rows make 15 bins of two; confidence 0.6 with one of two right is off by 0.1 in each of them.
    confidence, correct = np.full(30, 0.6), np.tile([True, False], 15)
    assert scores.expected_calibration_error(confidence, correct) == pytest.approx(0.1)
    assert scores.reliability(confidence, correct).shape == (15, 3)


def test_calibration_error_vanishes_for_calibrated_confidences_and_is_nan_for_none() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.3, 1.0, 100_000)
    correct = generator.random(100_000) < confidence
    assert scores.expected_calibration_error(confidence, correct) < 0.01
    assert scores.expected_calibration_error(confidence, confidence > 2) == pytest.approx(confidence.mean())
    assert math.isnan(scores.expected_calibration_error(np.array([]), np.array([], dtype=np.bool_)))


@pytest.mark.parametrize("listings_of_a_title", [1, 4])
def test_bootstrap_interval_is_the_normal_one_of_as_many_titles(listings_of_a_title: int) -> None:
    title_is_right = np.arange(1000) < 900
    group = np.repeat(np.arange(1000), listings_of_a_title)

    def share(rows: scores.Ints) -> float:
        return float(title_is_right[group][rows].mean())

    interval = scores.bootstrap_interval(share, group)
    half_width = 1.96 * math.sqrt(0.9 * 0.1 / 1000)
    assert interval == pytest.approx((0.9 - half_width, 0.9 + half_width), abs=0.005)
    assert interval == scores.bootstrap_interval(share, group)
