"""A lag counts as the loop's own only beyond what waiting for a core explains."""

from __future__ import annotations

import math

import pytest

from benchmarks.event_loop import Seen

LAGS = {0.05: 5, 0.1: 6, 0.2: 7, 0.5: 9, 1.0: 9, math.inf: 10}
"""One look found the loop between 0.1 and 0.2 s late, two up to 0.5 s, and one more than a second."""


@pytest.mark.parametrize(("waited", "late"), [(0.0, 4), (0.05, 3), (0.1, 3), (0.3, 1), (0.8, 1), (5.0, 0)])
def test_a_lag_counts_beyond_what_waiting_for_a_core_explains(waited: float, late: int) -> None:
    assert Seen("anything", "200", LAGS, waited).late == late
