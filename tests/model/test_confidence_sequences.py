"""Confidence sequences: monotone, tight enough, shared soundly, and wrong no more often than they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.trust.binomial import lower_bound as clopper_pearson_lower
from model.trust.confidence_sequences import (
    BETS,
    ERROR,
    Judgements,
    bound_error,
    lower_bound,
    upper_bound,
)

counts = st.integers(0, 2_000)
levels = st.floats(1e-9, 0.5)


def one(bound: np.ndarray) -> float:
    return float(bound.item())


@given(counts, counts, levels)
def test_the_bounds_enclose_what_was_found(right: int, wrong: int, alpha: float) -> None:
    low, high = one(lower_bound(right, wrong, alpha)), one(upper_bound(right, wrong, alpha))
    assert 0 <= low <= high <= 1
    if right + wrong:
        assert low <= right / (right + wrong) <= high
    else:
        assert (low, high) == pytest.approx((0, 1))


@given(counts, counts, levels)
def test_a_right_outcome_never_lowers_a_bound_and_a_wrong_one_never_raises_it(
    right: int, wrong: int, alpha: float
) -> None:
    for bound in (lower_bound, upper_bound):
        before, better, worse = bound([right, right + 1, right], [wrong, wrong, wrong + 1], alpha)
        assert worse - 1e-12 <= before <= better + 1e-12


@given(counts, counts, levels)
def test_less_error_takes_wider_bounds(right: int, wrong: int, alpha: float) -> None:
    assert one(lower_bound(right, wrong, alpha / 10)) <= one(lower_bound(right, wrong, alpha)) + 1e-12
    assert one(upper_bound(right, wrong, alpha / 10)) >= one(upper_bound(right, wrong, alpha)) - 1e-12


@given(counts, counts, levels)
def test_they_are_no_narrower_than_for_a_single_look(right: int, wrong: int, alpha: float) -> None:
    assert one(lower_bound(right, wrong, alpha)) <= clopper_pearson_lower(right, right + wrong, alpha) + 1e-9


@pytest.mark.parametrize(("right", "wrong", "low", "high"), [(0, 0, 0, 1), (1000, 0, 0.99, 1), (900, 100, 0.85, 0.94)])
def test_examples(right: int, wrong: int, low: float, high: float) -> None:
    assert one(lower_bound(right, wrong, 0.01)) == pytest.approx(low, abs=0.02)
    assert one(upper_bound(right, wrong, 0.01)) == pytest.approx(high, abs=0.02)


@pytest.mark.parametrize("mean", [0.5, 0.9, 0.99])
def test_a_bet_is_fair_at_the_claimed_mean_and_loses_above_it(mean: float) -> None:
    right, wrong = 1 - BETS, 1 + BETS * mean / (1 - mean)
    assert mean * right + (1 - mean) * wrong == pytest.approx(np.ones(len(BETS)))
    better = (1 + mean) / 2
    assert (better * right + (1 - better) * wrong < 1).all()


@pytest.mark.parametrize("mean", [0.3, 0.95])
def test_looking_after_every_outcome_errs_no_more_often_than_promised(mean: float) -> None:
    """The exact chance of ever being wrong within 300 outcomes, over all paths; not a simulation."""
    n, alpha = 300, 0.05
    right, wrong = counts_up_to(n)
    wrong_bound = (upper_bound(right, wrong, alpha) < mean) | (lower_bound(right, wrong, alpha) > mean)
    assert 0 < ever_wrong(wrong_bound, n, mean) <= 2 * alpha


def counts_up_to(n: int) -> tuple[np.ndarray, np.ndarray]:
    """How many are right and how many wrong, in all combinations, `[(n + 1)²]` each."""
    right, wrong = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    return right.ravel(), wrong.ravel()


def ever_wrong(wrong_bound: np.ndarray, n: int, mean: float) -> float:
    """The exact chance that a bound is wrong after any of n outcomes, each right with the chance `mean`.

    wrong_bound: whether it is, by `counts_up_to`
    """
    stops = wrong_bound.reshape(n + 1, n + 1)
    reached = np.zeros(n + 1)  # by the number of right outcomes; the paths that have never been wrong
    reached[0], wrong = 1.0, 0.0
    for outcomes in range(1, n + 1):
        reached = reached * (1 - mean) + np.concatenate([[0.0], reached[:-1] * mean])
        stopped = stops[np.arange(outcomes + 1), outcomes - np.arange(outcomes + 1)]
        wrong += reached[: outcomes + 1][stopped].sum()
        reached[: outcomes + 1][stopped] = 0.0
    return wrong


def together(right: np.ndarray, wrong: np.ndarray, labels: int) -> Judgements:
    """Listings whose labels are all right, or all wrong."""
    return Judgements(
        listings=np.stack([right, wrong], axis=1),
        labels=np.array([labels, labels]),
        right=np.array([labels, 0]),
        skipped=np.array([False, False]),
        most=np.full(len(right), labels),
    )


def test_labels_that_are_right_or_wrong_together_raise_no_more_false_alarms_than_promised() -> None:
    n, alpha, mean, labels = 150, 0.05, 0.9, 4
    right, wrong = counts_up_to(n)
    assert 0 < ever_wrong(together(right, wrong, labels).upper(alpha) < mean, n, mean) <= alpha
    as_if_independent = upper_bound(labels * right, labels * wrong, alpha)
    assert ever_wrong(as_if_independent < mean, n, mean) > alpha


@given(st.integers(0, 300), st.integers(0, 300), levels, st.integers(1, 6))
def test_labels_of_a_listing_that_agree_say_no_more_than_one_and_no_less_where_none_can_have_more(
    right: int, wrong: int, alpha: float, labels: int
) -> None:
    found = together(np.array([right]), np.array([wrong]), labels)
    assert one(found.upper(alpha)) == pytest.approx(one(upper_bound(right, wrong, alpha)))
    assert one(found.lower(alpha)) == pytest.approx(one(lower_bound(right, wrong, alpha)))


def test_labels_are_counted_one_by_one_and_those_of_a_skipped_listing_against_each_bound() -> None:
    outcomes = {"labels": np.array([3, 2, 1]), "right": np.array([2, 2, 0]), "skipped": np.array([False, False, True])}
    found, certain = (
        Judgements(listings=np.array([[10, 20, skipped]]), most=np.array([5]), **outcomes) for skipped in (6, 0)
    )
    assert (one(found.labels_right), one(found.labels_wrong), one(found.labels_skipped)) == (60, 10, 6)
    assert one(found.precision) == pytest.approx(60 / 70)
    assert (
        one(found.lower(0.01)) < one(certain.lower(0.01)) < 60 / 70 < one(certain.upper(0.01)) < one(found.upper(0.01))
    )


def test_the_width_shrinks_with_the_number_of_outcomes() -> None:
    outcomes = np.array([10, 100, 1_000, 10_000, 100_000])
    right = outcomes * 9 // 10
    width = upper_bound(right, outcomes - right, 1e-4) - lower_bound(right, outcomes - right, 1e-4)
    assert (np.diff(width) < 0).all()
    assert width[-1] < 0.02


def test_all_bounds_of_all_starts_share_the_error() -> None:
    together = sum(2 * 63 * bound_error(63, start) for start in range(1, 200_000))
    assert together <= ERROR
    assert together == pytest.approx(ERROR, rel=1e-4)
    assert all(a > b for a, b in itertools.pairwise(bound_error(9, start) for start in range(1, 9)))


def test_a_skipped_judgement_counts_against_each_bound() -> None:
    judged, skipped = Judgements.of([90, 90], [2, 2], [0, 8]), slice(1, 2)
    assert judged.precision == pytest.approx([90 / 92] * 2)
    assert judged.lower(0.01)[skipped] == pytest.approx(lower_bound(90, 10, 0.01))
    assert judged.upper(0.01)[skipped] == pytest.approx(upper_bound(98, 2, 0.01))
    assert judged.lower(0.01)[1] < judged.lower(0.01)[0]
    assert judged.upper(0.01)[1] > judged.upper(0.01)[0]


def test_nothing_judged_is_no_precision() -> None:
    assert math.isnan(one(Judgements.of(0, 0, 3).precision))


@pytest.mark.parametrize("counts", [(1, 2, -1), ([1, 2], [1], [1])])
def test_wrong_counts_are_refused(counts: tuple[int | list[int], ...]) -> None:
    with pytest.raises(ValueError, match="right, wrong and skipped"):
        Judgements.of(*counts)


def test_a_level_or_a_number_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        upper_bound(1, 1, 0)
    with pytest.raises(ValueError, match="at least one"):
        bound_error(0, 1)
