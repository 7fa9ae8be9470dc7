"""The chances of an alarm are added up right, and the committed figures keep the promise."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.live_precision import LOOKS, clopper_pearson_upper, fewest_wrong, first_alarms
from model.trust.binomial import lower_bound
from model.trust.confidence_sequences import ERROR, upper_bound

RESULTS = Path(__file__).parents[2] / "benchmarks/results/live_precision.json"


def test_the_fewest_wrong_ones_are_where_the_bound_falls_under_the_target() -> None:
    fewest = fewest_wrong(0.9, 0.05, looks=60)
    for judged, least in enumerate(fewest.tolist(), start=1):
        wrong = np.arange(judged + 1)
        assert ((upper_bound(judged - wrong, wrong, 0.05) < 0.9) == (wrong >= least)).all()


def test_chances_are_those_of_all_paths() -> None:
    fewest = fewest_wrong(0.7, 0.3, looks=10)
    expected = np.zeros(10)
    for path in itertools.product((0, 1), repeat=10):
        wrong = np.cumsum(path)
        alarms = wrong >= fewest
        if alarms.any():
            expected[alarms.argmax()] += 0.3 ** wrong[-1] * 0.7 ** (10 - wrong[-1])
    assert first_alarms(0.7, fewest) == pytest.approx(expected)
    assert expected.sum() > 0


def test_the_bound_of_a_single_look_is_that_of_clopper_and_pearson() -> None:
    bounds = clopper_pearson_upper(np.array([9.0, 10.0]), np.array([3.0, 0.0]), 0.05)
    assert bounds == pytest.approx([1 - lower_bound(3, 12, 0.05), 1.0])


def test_the_committed_figures_keep_the_promise() -> None:
    report = json.loads(RESULTS.read_text())
    assert report["looks"] == LOOKS
    for each in report["false_alarms"]:
        assert 0 < each["one_sequence"] <= ERROR < each["one_sequence_clopper_pearson"]
        assert 0 < each["all_sequences"] <= ERROR
    assert [each["start"] for each in report["noticed"]] == [1, 1, 4, 52]
