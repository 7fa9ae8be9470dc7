from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.errors import CheckpointError
from model.situations import Situation
from model.trust.conformal import one_per_group, usable_level
from model.trust.scope import (
    LENGTH,
    MEASURES,
    REFERENCES,
    Features,
    KnownWords,
    ScopeGate,
    ScopeGates,
    distances,
    doubt,
    fit_direction,
    fit_scope,
    fit_weights,
    normalised_words,
    quantised,
)

WIDTH = 16


def listings(n: int, generator: np.random.Generator, *, typical: bool = True, modalities: int = 2) -> Features:
    """Typical listings lie around a few directions, with a label spoken for; others lie anywhere, with none."""
    directions = np.eye(WIDTH)[generator.integers(0, 3, (n, modalities))]
    noise = generator.normal(0, 0.1 if typical else 1.0, (n, modalities, WIDTH))
    logits = generator.normal(0, 1, (n, 5))
    if typical:
        logits[np.arange(n), generator.integers(0, 5, n)] += 8
    return Features(
        embeddings=(typical * directions + noise).astype(np.float32),
        logits=(logits.astype(np.float32), np.zeros((n, 2), np.float32)),
        unseen=generator.random(n) * (0.2 if typical else 1.0),
    )


def gate(seed: int = 0, *, validation: int = 300, level: float = 0.01, modalities: int = 2) -> ScopeGate:
    generator = np.random.default_rng(seed)
    return fit_scope(
        listings(240, generator, modalities=modalities),
        listings(80, generator, typical=False, modalities=modalities),
        listings(validation, generator, modalities=modalities),
        level=level,
    )


def joined(*parts: Features) -> Features:
    return Features(
        embeddings=np.concatenate([each.embeddings for each in parts]),
        logits=tuple(np.concatenate(columns) for columns in zip(*(each.logits for each in parts), strict=True)),
        unseen=np.concatenate([each.unseen for each in parts]),
    )


# --- p-values ----------------------------------------------------------------------------------------------


def test_p_values_of_exchangeable_listings_are_valid() -> None:
    # P(p <= a) <= a for every a, over draws of the validation listings too; within four standard errors.
    generator = np.random.default_rng(1)
    fitted, small = gate(validation=300), []
    for _ in range(400):
        scores = np.sort(fitted.score(listings(30, generator)))
        small.append(replace(fitted, scores=scores).p_values(listings(5, generator)))
    found = np.concatenate(small)
    for level in (1 / 31, 0.1, 0.3, 0.5, 0.9):
        assert (found <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / 400)


def test_the_p_value_counts_references_that_are_as_typical_or_less() -> None:
    fitted = replace(gate(), scores=np.array([1.0, 2.0, 2.0, 3.0]))
    some = listings(1, np.random.default_rng(0))

    def p_value(score: float) -> float:
        shifted = replace(fitted, weights=np.zeros(len(MEASURES)))
        at = replace(shifted, scores=fitted.scores - score)  # every listing scores 0
        return float(at.p_values(some)[0])

    assert [p_value(score) for score in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)] == [1, 1, 0.8, 0.8, 0.4, 0.4, 0.2]


def test_outliers_are_unfamiliar_and_in_scope_listings_are_not() -> None:
    generator = np.random.default_rng(2)
    fitted = gate()
    assert (fitted.p_values(listings(200, generator, typical=False)) < fitted.level).mean() > 0.98
    assert (fitted.p_values(listings(2_000, generator)) < fitted.level).mean() < 0.03


def test_a_listing_that_is_less_typical_in_any_respect_is_no_more_familiar() -> None:
    fitted = gate()
    some = listings(50, np.random.default_rng(3))
    for worse in (
        replace(some, unseen=some.unseen + 0.5),
        replace(some, logits=tuple(0.5 * each for each in some.logits)),
        replace(some, embeddings=some.embeddings + np.float32(2.0)),
    ):
        assert (fitted.p_values(worse) <= fitted.p_values(some)).all()


@pytest.mark.parametrize(
    ("level", "references", "expected"),
    [
        (0.01, 1_000, 0.01),
        (0.01, 100, 0.01),
        (0.01, 99, 2 / 100),
        (0.01, 20, 2 / 21),
        (0.05, 20, 0.05),
        (0.05, 19, 0.1),
    ],
)
def test_few_references_raise_the_limit(level: float, references: int, expected: float) -> None:
    assert usable_level(level, references) == pytest.approx(expected)


@given(st.integers(1, 400), st.floats(0.001, 0.5))
def test_a_listing_beyond_all_references_is_unfamiliar_however_few_they_are(references: int, level: float) -> None:
    assert 1 / (references + 1) < usable_level(level, references)


def test_a_gate_on_few_validation_listings_refuses_outliers() -> None:
    fitted = gate(validation=12)
    assert fitted.level == pytest.approx(2 / 13)
    assert (fitted.p_values(listings(50, np.random.default_rng(4), typical=False)) < fitted.level).all()


# --- the same in any batch, after a round trip -------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_scores_are_the_same_alone_and_in_any_batch(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    fitted = gate()
    batch = joined(listings(n // 2, generator), listings(n - n // 2, generator, typical=False))
    expected = fitted.score(batch)
    alone = [fitted.score(batch[np.array([row])])[0] for row in range(n)]
    assert expected.tolist() == alone
    order = generator.permutation(n)
    assert fitted.score(batch[order]).tolist() == expected[order].tolist()


def test_the_layout_in_memory_does_not_matter() -> None:
    fitted = gate()
    batch = listings(33, np.random.default_rng(5))
    turned = Features(
        embeddings=np.asfortranarray(batch.embeddings),
        logits=tuple(map(np.asfortranarray, batch.logits)),
        unseen=batch.unseen[::-1].copy()[::-1],
    )
    assert fitted.score(turned).tolist() == fitted.score(batch).tolist()


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 700))
def test_products_of_embeddings_are_exact(seed: int, n: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    # Some with one large number, where rounding leaves the longest vectors.
    rows, references = (
        quantised((generator.standard_t(1.2, (count, 1, width)) + 1e-6).astype(np.float32)) for count in (n, 20)
    )
    exact = np.sort(rows.astype(np.int64) @ references.astype(np.int64).T, axis=1)[:, -10:].sum(axis=1)
    found = distances(rows, references.astype(np.float32), 10)
    assert found.tolist() == (1.0 - exact / (10 * LENGTH * LENGTH)).tolist()


def test_the_distance_of_a_reference_to_itself_is_none() -> None:
    some = quantised(listings(20, np.random.default_rng(6)).embeddings)
    assert distances(some, some.astype(np.float32), 1) == pytest.approx(np.zeros(20), abs=1e-3)
    opposite = distances(-some, some[:1].astype(np.float32), 1)
    assert opposite[0] == pytest.approx(2, abs=1e-3)


def saved_and_loaded(gates: ScopeGates) -> ScopeGates:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **gates.arrays)
    file.seek(0)
    return ScopeGates.load(dict(np.load(file)), json.loads(json.dumps(gates.options)))


def all_gates() -> ScopeGates:
    return ScopeGates(
        words=KnownWords.of(["blue shirt", "red shirt", "blue jeans"]),
        gates={each: gate(modalities=2 if each is Situation.IMAGE_AND_TITLE else 1) for each in Situation},
    )


def test_save_then_load_gives_the_same_scores() -> None:
    gates = all_gates()
    loaded = saved_and_loaded(gates)
    for situation in Situation:
        some = listings(20, np.random.default_rng(7), modalities=2 if situation is Situation.IMAGE_AND_TITLE else 1)
        assert loaded.gates[situation].score(some).tolist() == gates.gates[situation].score(some).tolist()
        assert loaded.gates[situation].level == gates.gates[situation].level
    assert loaded.words.unseen(["blue shirt", "green shirt"]).tolist() == [0, 0.5]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"words": None}, "words"),
        ({"image.references": np.zeros((3, 4), np.float32)}, "image.references"),
        ({"title.weights": np.array([1.0, -1.0, 0.0, 0.0])}, "title.weights"),
        ({"title.weights": np.ones(3)}, "title.weights"),
        ({"title.scores": np.array([2.0, 1.0])}, "title"),
        ({"title.scores": np.array([np.nan])}, "title.scores"),
        ({"image.references": np.zeros((0, 16), np.int16)}, "image"),
        ({"image.direction": np.zeros(5)}, "image.direction"),
    ],
)
def test_what_is_wrong_in_saved_gates_is_named(change: dict[str, Any], named: str) -> None:
    gates = all_gates()
    arrays = {name: array for name, array in (gates.arrays | change).items() if array is not None}
    with pytest.raises(CheckpointError, match=named):
        ScopeGates.load(arrays, gates.options)


@pytest.mark.parametrize("change", [{"format": 2}, {"measures": ["distance"]}, {"levels": None}])
def test_options_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    gates = all_gates()
    with pytest.raises(CheckpointError, match="scope"):
        ScopeGates.load(gates.arrays, gates.options | change)


# --- fitting -----------------------------------------------------------------------------------------------


def test_weights_are_never_negative_and_follow_what_tells_outliers() -> None:
    generator = np.random.default_rng(9)
    columns: list[NDArray[np.float64]] = [generator.normal(0, 1, 500) for _ in range(3)]
    outliers = [generator.normal(2, 1, 200), generator.normal(0, 1, 200), generator.normal(-2, 1, 200)]
    weights = fit_weights([*columns, np.zeros(500)], [*outliers, np.zeros(200)])
    assert weights[0] > 0.5
    assert weights[1] < 0.5
    assert weights[2:].tolist() == [0, 0]


def test_the_direction_points_from_typical_embeddings_to_outliers() -> None:
    generator = np.random.default_rng(12)
    inside = generator.normal(0, 100, (300, 8)).astype(np.int16)
    outside = (generator.normal(0, 100, (60, 8)) + 300 * np.sign([1, -1, 0, 0, 0, 0, 0, 0])).astype(np.int16)
    direction = fit_direction(inside, outside)
    assert direction[0] > 0 > direction[1]
    assert (np.abs(direction[2:]) < 0.3 * np.abs(direction[:2]).min()).all()


def test_perfectly_separable_listings_get_finite_weights() -> None:
    weights = fit_weights([np.zeros(10) + 0.01 * np.arange(10)], [np.full(10, 5.0)])
    assert np.isfinite(weights).all()
    assert weights[0] > 0


def test_references_are_bounded_and_leave_listings_to_weigh_with() -> None:
    generator = np.random.default_rng(10)
    few = fit_scope(listings(2, generator), listings(3, generator, typical=False), listings(3, generator))
    assert len(few.references) == 1
    many = fit_scope(listings(2 * REFERENCES, generator), listings(3, generator, typical=False), listings(3, generator))
    assert len(many.references) == REFERENCES


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 0, 1), (2, 1, 0)])
def test_too_few_listings_are_refused(sizes: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(11)
    with pytest.raises(ValueError, match="at least"):
        fit_scope(*(listings(n, generator) for n in sizes))


def test_a_level_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        gate(level=1.0)


def test_one_listing_for_each_group_whatever_the_order() -> None:
    ids, groups = [f"id-{n}" for n in range(60)], [f"group-{n % 7}" for n in range(60)]
    drawn = one_per_group(ids, groups)
    assert sorted(groups[row] for row in drawn) == sorted(set(groups))
    backwards = one_per_group(ids[::-1], groups[::-1])
    assert [ids[::-1][row] for row in backwards] == [ids[row] for row in drawn]


# --- words -------------------------------------------------------------------------------------------------


def test_words_are_known_that_two_titles_repeat() -> None:
    words = KnownWords.of(["Blue Shirt, blue", "ＢＬＵＥ jeans", "shirt!", "once"])
    assert words.unseen(["blue SHIRT", "blue jeans", "once upon", "", "?!", None]).tolist() == [0, 0.5, 1, 1, 1, 0]


def test_without_known_words_every_word_is_unseen() -> None:
    assert KnownWords.of([]).unseen(["blue", None]).tolist() == [1, 0]


@given(st.text())
def test_any_text_has_a_share_of_unseen_words(text: str) -> None:
    assert 0 <= KnownWords.of(["blue shirt", "blue jeans"]).unseen([text])[0] <= 1
    assert normalised_words(text) == normalised_words(text.strip())


def test_the_doubt_of_a_multi_valued_attribute_is_that_of_its_likeliest_label_set() -> None:
    logits = np.array([[2.0, -1.0, 0.3], [-300.0, -300.0, -300.0]], np.float32)
    chances = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
    best = np.maximum(chances, 1 - chances).prod()
    np.testing.assert_allclose(doubt([logits], {0}), [1 - best, 0.0], atol=1e-12)
