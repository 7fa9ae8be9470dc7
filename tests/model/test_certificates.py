from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.evaluation.scores import oracle_point
from model.trust.binomial import binomial_tail, lower_bound
from model.trust.certificates import (
    GRID,
    START_SHARES,
    _smallest_certified,
    certify,
    certify_labels,
    effective_counts,
    fewest_right,
    most_wrong,
    significance_level,
)

TARGETS = (0.9, 0.95, 0.99)


def draw(n: int, slope: float, generator: np.random.Generator) -> tuple[Any, Any]:
    """A model whose confidence is 1 - u³, u uniform, and which is wrong with probability slope × u³."""
    doubt = generator.random(n) ** 3
    return 1 - doubt, generator.random(n) >= slope * doubt


def true_precision(threshold: float, slope: float) -> float:
    """The mean of u³ over the accepted u < a = (1 - threshold)^(1/3) is a³/4."""
    return 1 - slope * (1 - threshold) / 4


def oracle_coverage(target: float, slope: float) -> float:
    return float(((1 - target) * 4 / slope) ** (1 / 3))


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


def test_listings_that_share_a_title_keep_the_promise_only_as_groups() -> None:
    # Four listings a title, right or wrong together: worth as much as the titles alone.
    generator = np.random.default_rng(11)
    group = np.repeat(np.arange(1_000), 4)
    broken = {"grouped": 0, "taken for independent": 0}
    for _ in range(100):
        confidence, correct = (column[group] for column in draw(1_000, 1.0, generator))
        for name, known in (("grouped", group), ("taken for independent", None)):
            certificate = certify(confidence, correct, [0.9], group=known)[0.9]
            assert certificate is not None
            broken[name] += true_precision(certificate.threshold, 1.0) < 0.9
    assert broken["grouped"] <= 5
    assert broken["taken for independent"] > 5


def test_the_error_budget_is_spent_once_and_on_the_grid() -> None:
    assert sum(START_SHARES.values()) == pytest.approx(1.0)
    assert all(0 <= position < len(GRID) for position in START_SHARES)
    assert list(GRID) == sorted(set(GRID), reverse=True)


def test_a_budget_is_lost_with_the_first_failure() -> None:
    """Without that, the smallest of many thresholds that pass by themselves would be picked, and the promise broken."""
    assert _smallest_certified(np.array([1.0, 1e-6]), 0.01) is None
    assert _smallest_certified(np.array([1e-6, 1e-6, 1.0]), 0.01) == 1


def test_the_bound_counts_a_repeated_title_once() -> None:
    confidence, correct = np.full(2_000, 0.9995), np.ones(2_000, dtype=np.bool_)
    certificate = certify(confidence, correct, [0.9], group=np.repeat(np.arange(500), 4))[0.9]
    assert certificate is not None
    assert certificate.bound == pytest.approx(lower_bound(500, 500, 0.05))


@pytest.mark.parametrize(("target", "needed"), [(0.9, 57), (0.95, 117), (0.99, 597)])
def test_so_much_evidence_is_needed_at_least(target: float, needed: int) -> None:
    """The figures of docs/calibration.md: right answers throughout, all of them as sure as can be."""
    for count, enough in ((needed - 1, False), (needed, True)):
        certificate = certify(np.full(count, 0.9995), np.ones(count, dtype=np.bool_), [target])[target]
        assert (certificate is not None) == enough


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
    assert [c.threshold for c in certificates.values() if c is not None] == [0.5, 0.5, 0.5]


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
    right, accepted = effective_counts(np.full(9, threshold), np.ones(9, dtype=np.bool_), np.arange(9))
    assert (right[20], accepted[20]) == (9, 9)
    assert accepted[19] == 0


def test_rows_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        certify(np.array([0.5, np.nan]), np.array([True, True]), [0.9])
    with pytest.raises(ValueError, match="one length"):
        certify(np.array([0.5]), np.array([True, True]), [0.9])
    with pytest.raises(ValueError, match="one length"):
        certify(np.array([0.5]), np.array([True]), [0.9], group=np.array([1, 2]))


# --- label by label ----------------------------------------------------------------------------------------


def drawn_labels(n: int, generator: np.random.Generator) -> tuple[Any, Any, Any]:
    """Label 0 is common and a calibrated model reads it well, label 1 badly, and label 2 is rare."""
    predicted = generator.choice(3, n, p=(0.6, 0.395, 0.005))
    confidence, correct = draw(n, 1.0, generator)
    badly = generator.random(n) < 0.7
    return confidence, np.where(predicted == 1, correct & badly, correct), predicted


def test_each_label_keeps_the_promise_that_the_attribute_breaks_for_it() -> None:
    generator = np.random.default_rng(7)
    runs, certified, broken, broken_by_attribute = 60, 0, 0, 0
    for _ in range(runs):
        confidence, correct, predicted = drawn_labels(4_000, generator)
        group = np.arange(len(confidence))
        labels = certify_labels(confidence, correct, predicted, [0.9], group=group)
        common = labels[0][0.9]
        assert labels[1] == {0.9: None}  # it has examples enough, and fails
        assert 2 not in labels  # too rare
        if common is not None:
            certified += 1
            broken += true_precision(common.threshold, 1.0) < 0.9
        attribute = certify(confidence, correct, [0.8])[0.8]
        if attribute is not None:
            broken_by_attribute += 0.7 * true_precision(attribute.threshold, 1.0) < 0.8
    assert certified > 0.95 * runs
    assert broken <= 0.05 * runs
    assert broken_by_attribute > 0.9 * runs


def test_a_label_too_rare_for_a_target_is_left_out_there_whatever_its_answers() -> None:
    n = 300  # 0.95^300 can be certified, 0.99^300 cannot
    confidence, predicted, group = np.full(n, 0.9999), np.zeros(n, np.int64), np.arange(n)
    for correct in (np.ones(n, np.bool_), np.arange(n) % 2 == 0):
        labels = certify_labels(confidence, correct, predicted, TARGETS, group=group)
        assert list(labels[0]) == [0.9, 0.95]
    assert labels[0] == {0.9: None, 0.95: None}
    assert certify_labels(confidence[:5], correct[:5], predicted[:5], TARGETS, group=group[:5]) == {}


def test_a_label_is_certified_by_its_own_answers_alone() -> None:
    confidence, correct, predicted = drawn_labels(4_000, np.random.default_rng(1))
    group = np.arange(len(confidence))
    alone = certify(confidence[predicted == 0], correct[predicted == 0], [0.9])
    assert certify_labels(confidence, correct, predicted, [0.9], group=group)[0] == alone


@pytest.mark.parametrize(
    ("answers", "target", "wrong"), [(300, 0.95, 6), (300, 0.9, 18), (300, 0.99, None), (89, 0.95, None), (90, 0.95, 0)]
)
def test_how_many_of_some_reviews_may_be_wrong(answers: int, target: float, wrong: int | None) -> None:
    assert most_wrong(answers, target) == wrong
    level = significance_level(0.05)
    allowed = -1 if wrong is None else wrong
    assert binomial_tail(answers - allowed - 1, answers, target) > level
    assert wrong is None or binomial_tail(answers - wrong, answers, target) <= level


@pytest.mark.parametrize(("target", "count"), [(0.9, 57), (0.95, 117), (0.99, 597)])
def test_fewest_right_answers_are_what_a_certificate_takes(target: float, count: int) -> None:
    assert fewest_right(target) == count
    for answers, possible in ((count - 1, False), (count, True)):
        found = certify(np.ones(answers), np.ones(answers, np.bool_), [target])
        assert (found[target] is not None) is possible


# --- (listing, label) pairs --------------------------------------------------------------------------------


def draw_pairs(
    n: int, slope: float, generator: np.random.Generator, *, unevenly: bool
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Up to six labels a listing, all right or all wrong together; `unevenly`: the more labels, the oftener wrong."""
    doubt, size = generator.random(n) ** 3, generator.integers(1, 7, n)
    wrong = generator.random(n) < slope * doubt * (size / 3.5 if unevenly else 1)
    listing = np.repeat(np.arange(n), size)
    return (1 - doubt)[listing], ~wrong[listing], listing


def true_pair_precision(threshold: float, slope: float, *, unevenly: bool) -> float:
    """As `true_precision`; where errors follow the number k of labels, Σ k² / (3.5 Σ k) = 91 / 73.5 as often."""
    return 1 - slope * (91 / 73.5 if unevenly else 1) * (1 - threshold) / 4


@pytest.mark.parametrize("unevenly", [False, True])
@pytest.mark.parametrize("target", [0.9, 0.95])
def test_labels_of_a_listing_that_are_right_or_wrong_together_keep_the_promise(target: float, unevenly: bool) -> None:
    generator = np.random.default_rng(17)
    broken, certified, runs = 0, 0, 80
    for _ in range(runs):
        confidence, correct, listing = draw_pairs(900, 0.5, generator, unevenly=unevenly)
        certificate = certify(confidence, correct, [target], group=listing, in_step=True)[target]
        if certificate is not None:
            certified += 1
            broken += true_pair_precision(certificate.threshold, 0.5, unevenly=unevenly) < target
    assert certified > 0.8 * runs
    assert broken <= 0.05 * runs


def test_a_design_effect_estimated_from_few_errors_is_no_certificate_for_pairs() -> None:
    """One listing in ten has 30 labels; the model is as often wrong as makes the promise just untrue."""
    generator = np.random.default_rng(19)
    broken, runs = {True: 0, False: 0}, 150
    for _ in range(runs):
        size = generator.choice([1] * 9 + [30], 300)
        listing = np.repeat(np.arange(300), size)
        correct = (generator.random(300) >= 0.0501)[listing]
        for in_step in broken:
            found = certify(np.full(len(listing), 0.9995), correct, [0.95], group=listing, in_step=in_step)
            broken[in_step] += found[0.95] is not None
    assert broken[True] <= 0.05 * runs
    assert broken[False] > 0.1 * runs


def test_pairs_of_one_listing_count_as_one_where_all_are_right() -> None:
    confidence, correct, listing = np.full(228, 0.9995), np.ones(228, np.bool_), np.repeat(np.arange(57), 4)
    assert certify(confidence, correct, [0.9], group=listing, in_step=True)[0.9] is not None
    assert certify(confidence[:-4], correct[:-4], [0.9], group=listing[:-4], in_step=True)[0.9] is None
