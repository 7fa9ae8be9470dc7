from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from model.binomial import binomial_tail, clopper_pearson, lower_bound


@given(trials=st.integers(0, 20_000), share=st.floats(0, 1), probability=st.floats(0.01, 0.999))
def test_tail_equals_scipy(trials: int, share: float, probability: float) -> None:
    successes = round(share * trials)
    expected = stats.binom.sf(successes - 1, trials, probability)
    assert binomial_tail(successes, trials, probability) == pytest.approx(expected, rel=1e-7, abs=1e-200)


def test_tail_of_impossible_and_certain_counts() -> None:
    assert binomial_tail(0, 0, 0.9) == 1.0
    assert binomial_tail(4, 3, 0.9) == 0.0


@given(trials=st.integers(1, 5_000), share=st.floats(0, 1), alpha=st.sampled_from([0.05, 0.01]))
def test_lower_bound_is_the_beta_quantile(trials: int, share: float, alpha: float) -> None:
    successes = round(share * trials)
    expected = stats.beta.ppf(alpha, successes, trials - successes + 1) if successes else 0.0
    assert lower_bound(successes, trials, alpha) == pytest.approx(expected, abs=1e-9)


def test_interval_equals_scipy_and_is_everything_without_trials() -> None:
    expected = stats.binomtest(188, 200).proportion_ci(0.95, method="exact")
    assert clopper_pearson(188, 200) == pytest.approx((expected.low, expected.high))
    assert clopper_pearson(0, 0) == (0.0, 1.0)
