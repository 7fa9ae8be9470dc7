from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from model.trust.binomial import binomial_tail, clopper_pearson, design_effects, lower_bound


@given(trials=st.integers(0, 5_000), share=st.floats(0, 1), probability=st.floats(0.01, 0.999))
def test_tail_sums_the_probabilities(trials: int, share: float, probability: float) -> None:
    successes = round(share * trials)
    expected = stats.binom.pmf(np.arange(successes, trials + 1), trials, probability).sum()
    assert binomial_tail(successes, trials, probability) == pytest.approx(expected, rel=1e-6, abs=1e-200)


def test_tail_takes_arrays_and_counts_that_are_no_whole_numbers() -> None:
    tails = binomial_tail(np.array([0.0, 19, 19.5, 20]), np.array([0.0, 20, 20, 20]), 0.9)
    assert tails[0] == 1.0
    assert tails[1] > tails[2] > tails[3] == pytest.approx(0.9**20)


@given(trials=st.integers(1, 5_000), share=st.floats(0, 1), alpha=st.sampled_from([0.05, 0.01]))
def test_as_many_successes_are_rare_below_the_bound(trials: int, share: float, alpha: float) -> None:
    successes = round(share * trials)
    bound = lower_bound(successes, trials, alpha)
    if successes == 0:
        assert bound == 0.0
    else:
        assert binomial_tail(successes, trials, bound) == pytest.approx(alpha)


def test_interval_equals_scipy_and_is_everything_without_trials() -> None:
    expected = stats.binomtest(188, 200).proportion_ci(0.95, method="exact")
    assert clopper_pearson(188, 200) == pytest.approx((expected.low, expected.high))
    assert clopper_pearson(0, 0) == (0.0, 1.0)


ROWS = st.lists(st.tuples(st.sampled_from([0.3, 0.6, 0.9]), st.booleans(), st.integers(0, 5)), min_size=1, max_size=30)


def columns(rows: list[tuple[float, bool, int]]) -> tuple[Any, Any, Any]:
    confidence, correct, group = zip(*rows, strict=True)
    return np.array(confidence), np.array(correct), np.array(group)


@given(ROWS)
def test_design_effects_equal_their_definition(rows: list[tuple[float, bool, int]]) -> None:
    thresholds = [0.9, 0.5, 0.0]
    effects = design_effects(*columns(rows), thresholds)
    for threshold, effect in zip(thresholds, effects, strict=True):
        accepted = [(not right, group) for confidence, right, group in rows if confidence >= threshold]
        n, groups = len(accepted), {group for _, group in accepted}
        share = sum(wrong for wrong, _ in accepted) / max(n, 1)
        if 0 < share < 1:
            sums = [sum(wrong - share for wrong, of in accepted if of == group) for group in groups]
            expected = sum(total**2 for total in sums) / (n * share * (1 - share))
        else:
            expected = sum(sum(of == group for _, of in accepted) ** 2 for group in groups) / max(n, 1)
        assert effect == pytest.approx(max(1.0, expected))


@given(ROWS)
def test_independent_listings_have_no_design_effect(rows: list[tuple[float, bool, int]]) -> None:
    confidence, correct, _ = columns(rows)
    assert design_effects(confidence, correct, np.arange(len(rows)), [0.9, 0.5, 0.0]) == pytest.approx(1.0)


def test_listings_that_all_come_twice_are_worth_half() -> None:
    generator = np.random.default_rng(0)
    confidence, correct = generator.random(2_000), generator.random(2_000) < 0.8
    twice = (np.tile(confidence, 2), np.tile(correct, 2), np.tile(np.arange(2_000), 2))
    assert design_effects(*twice, [0.9, 0.0]) == pytest.approx(2.0)
