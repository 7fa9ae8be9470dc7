"""Conflict: what tells an image from another product's title, and how often it takes a clean listing for one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from model.trust.calibration import softmax
from model.trust.conflict import LEAST, fit_conflict, log_similarity

Floats = NDArray[np.float64]

LABELS = (5, 3)


def drawn(n: int, *, seed: int, matched: bool = True) -> Floats:
    """Log similarities of readings that are right nine times of ten; only the first attribute tells products apart."""
    generator = np.random.default_rng(seed)

    def read(labels: NDArray[np.int64], count: int) -> Floats:
        seen = np.where(generator.random(len(labels)) < 0.9, labels, generator.integers(0, count, len(labels)))
        return softmax(4 * np.eye(count)[seen] + generator.normal(0, 0.5, (len(labels), count)), 1.0)

    labels = [generator.integers(0, LABELS[0], n), np.zeros(n, np.int64)]
    others = labels if matched else [(labels[0] + 1) % LABELS[0], labels[1]]
    image, title = (
        [read(each, count) for each, count in zip(which, LABELS, strict=True)] for which in (labels, others)
    )
    return log_similarity(image, title)


MATCHED, MISMATCHED, REFERENCE = drawn(2000, seed=0), drawn(2000, seed=1, matched=False), drawn(1500, seed=2)


def test_similarity_is_that_of_the_angle() -> None:
    image = np.array([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    title = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = log_similarity([image, image], [title, image])
    assert found[:, 0] == pytest.approx([0.0, math.log(1 / math.sqrt(2)), math.log(LEAST)])
    assert found[:, 1] == pytest.approx([0.0, 0.0, 0.0])


def test_an_attribute_counts_as_much_as_it_tells() -> None:
    conflict = fit_conflict(MATCHED, MISMATCHED, REFERENCE, 0.01)
    assert conflict.weights[0] > 0
    assert conflict.weights[1] < 0.2 * conflict.weights[0]


def test_clean_listings_are_stopped_no_more_often_than_the_level() -> None:
    conflict = fit_conflict(MATCHED, MISMATCHED, REFERENCE, 0.05)
    clean, other = drawn(20_000, seed=3), drawn(20_000, seed=4, matched=False)
    whole = conflict.agreement(clean) < conflict.level
    assert whole.mean() == pytest.approx(0.05, abs=0.02)
    assert conflict.contradicts(clean)[~whole].mean(axis=0).max() < 0.07
    assert conflict.contradicts(other).all(axis=1).mean() > 5 * whole.mean()


def test_p_values_of_clean_listings_are_valid() -> None:
    """A clean listing has an agreement of at most u with a probability of at most u: over references and listing."""
    found = [
        fit_conflict(MATCHED, MISMATCHED, drawn(19, seed=s), 0.05).agreement(drawn(1, seed=s + 5000))[0]
        for s in range(400)
    ]
    for u in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(np.array(found) <= u) < u + 0.05


def test_a_contradiction_as_a_whole_is_one_on_every_attribute() -> None:
    conflict = fit_conflict(MATCHED, MISMATCHED, REFERENCE, 0.01)
    worst = np.full((1, 2), math.log(LEAST))
    assert conflict.contradicts(worst).tolist() == [[True, True]]
    one = np.array([[0.0, math.log(LEAST)]])
    assert conflict.contradicts(one).tolist()[0][1] is True
    assert conflict.contradicts(np.zeros((1, 2))).tolist() == [[False, False]]


@pytest.mark.parametrize("n", [1, 5, 98])
def test_few_references_stop_only_what_is_below_all_of_them(n: int) -> None:
    conflict = fit_conflict(MATCHED, MISMATCHED, drawn(n, seed=9), 0.01)
    assert conflict.level == 2 / (n + 1)
    assert np.isneginf(conflict.limits).all()
    below = np.full((1, 2), math.log(LEAST))
    assert conflict.agreement(below)[0] == 1 / (n + 1)
    assert conflict.contradicts(below).all()


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(2)), elements=st.floats(math.log(LEAST), 0.0)))
def test_a_listing_is_judged_the_same_in_any_company(similar: Floats) -> None:
    conflict = fit_conflict(MATCHED, MISMATCHED, REFERENCE, 0.01)
    alone = [conflict.agreement(similar[row : row + 1])[0] for row in range(len(similar))]
    assert conflict.agreement(similar).tolist() == alone


def test_label_sets_are_compared_as_a_whole() -> None:
    """The cosine is that of both modalities' chances of every possible set of labels."""
    generator = np.random.default_rng(3)
    p, q = generator.random((2, 5, 4))

    def chances(of: NDArray[np.float64]) -> NDArray[np.float64]:
        sets = np.array(list(itertools.product([False, True], repeat=4)))
        return np.asarray(np.where(sets, of[:, None], 1 - of[:, None]).prod(axis=2))

    a, b = chances(p), chances(q)
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(log_similarity([p], [q], {0})[:, 0], np.log(cosine))
    # Two modalities that are both sure of no label agree.
    none = np.full((1, 4), 1e-6)
    assert log_similarity([none], [none[:, ::-1] / 2], {0})[0, 0] == pytest.approx(0, abs=1e-9)
