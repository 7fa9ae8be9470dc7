"""The gate: what it lets pass, what a listing is answered from, and that it survives the disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from model.situations import Situation
from model.trust.conflict import Conflict
from model.trust.gate import FAMILIAR_IMAGE, OPEN_GATE, Evidence, Gate, Judgement
from model.trust.scope import Features, KnownWords, ScopeGate, ScopeGates, fit_scope

ATTRIBUTES = 2
SURE, OTHER = np.array([0.98, 0.01, 0.01]), np.array([0.01, 0.98, 0.01])

CONFLICT = Conflict(
    level=0.05,
    weights=np.ones(ATTRIBUTES),
    reference=np.linspace(0.0, 1.0, 99),  # a clean listing loses at most 1 nat
    limits=np.full(ATTRIBUTES, -0.6),
)


@dataclass(frozen=True)
class Told:
    """A scope whose familiarity is the first number of the first modality's embedding."""

    level: float = 0.01

    def p_values(self, features: Features) -> NDArray[np.float64]:
        return features.embeddings[:, 0, 0].astype(np.float64)


def gate(*, conflict: Conflict | None = CONFLICT, without: Situation | None = None) -> Gate:
    gates = {situation: cast(ScopeGate, Told()) for situation in Situation if situation is not without}
    return Gate(scopes=ScopeGates(words=KnownWords.of([]), gates=gates), conflict=conflict)


def evidence(familiarity: list[float], confidences: NDArray[np.float64]) -> Evidence:
    n = len(familiarity)
    return Evidence(
        embeddings=np.tile(np.array(familiarity, np.float32)[:, None, None], (1, 2, 4)),
        logits=tuple(np.zeros((n, 3), np.float32) for _ in range(ATTRIBUTES)),
        confidences=tuple(np.tile(confidences, (n, 1)) for _ in range(ATTRIBUTES)),
        titles=["a title"] * n,
    )


def judged(
    both: float, image: float, title: float, *, title_says: NDArray[np.float64] = SURE, by: Gate | None = None
) -> Judgement:
    parts = {
        Situation.IMAGE_AND_TITLE: evidence([both], SURE),
        Situation.IMAGE: evidence([image], SURE),
        Situation.TITLE: evidence([title], title_says),
    }
    return (by or gate()).judge(Situation.IMAGE_AND_TITLE, parts)


def test_a_familiar_listing_that_agrees_passes() -> None:
    found = judged(0.5, 0.5, 0.5)
    assert found.passed.tolist() == [[True, True]]
    assert found.familiarity[0] == pytest.approx(0.5)
    assert (found.agreement[0], found.title_ignored[0]) == (1.0, False)


def test_nothing_of_an_unfamiliar_listing_passes() -> None:
    found = judged(0.005, 0.5, 0.5)
    assert not found.passed.any()
    assert found.in_scope.tolist() == [False]


def test_an_unfamiliar_title_is_ignored_beside_a_quite_ordinary_image() -> None:
    found = judged(0.005, FAMILIAR_IMAGE, 0.001, title_says=OTHER)
    assert found.title_ignored.tolist() == [True]
    assert found.passed.all()
    assert found.familiarity[0] == pytest.approx(FAMILIAR_IMAGE)
    assert np.isnan(found.agreement[0])
    less = judged(0.005, FAMILIAR_IMAGE - 0.01, 0.001)
    assert not less.title_ignored[0]
    assert not less.passed.any()


def test_what_contradicts_as_a_whole_passes_nowhere() -> None:
    found = judged(0.5, 0.5, 0.5, title_says=OTHER)
    assert found.in_scope.tolist() == [True]
    assert found.agreement[0] == 0.01
    assert not found.passed.any()


def test_one_attribute_may_contradict_alone() -> None:
    parts = {
        Situation.IMAGE_AND_TITLE: evidence([0.5], SURE),
        Situation.IMAGE: evidence([0.5], SURE),
        Situation.TITLE: evidence([0.5], SURE),
    }
    apart = np.array([[0.5, 0.4, 0.1]])  # a cosine of 0.77 from SURE: -0.26; of 0.49: -0.71
    further = np.array([[0.35, 0.6, 0.05]])
    for title, expected in ((apart, True), (further, False)):
        mixed = Evidence(
            embeddings=parts[Situation.TITLE].embeddings,
            logits=parts[Situation.TITLE].logits,
            confidences=(title, SURE[None]),
            titles=["a title"],
        )
        found = gate().judge(Situation.IMAGE_AND_TITLE, {**parts, Situation.TITLE: mixed})
        assert found.passed.tolist() == [[expected, True]]


@pytest.mark.parametrize("situation", [Situation.IMAGE, Situation.TITLE])
def test_one_modality_alone_has_no_agreement(situation: Situation) -> None:
    found = gate().judge(situation, {situation: evidence([0.5, 0.001], OTHER)})
    assert found.passed.tolist() == [[True, True], [False, False]]
    assert np.isnan(found.agreement).all()


def test_a_situation_without_a_scope_passes_and_says_that_it_knows_nothing() -> None:
    found = judged(0.5, 0.5, 0.001, by=gate(without=Situation.IMAGE_AND_TITLE))
    assert np.isnan(found.familiarity).tolist() == [False]  # its title is ignored: it is answered from the image
    alone = gate(without=Situation.IMAGE).judge(Situation.IMAGE, {Situation.IMAGE: evidence([0.001], SURE)})
    assert np.isnan(alone.familiarity[0])
    assert alone.passed.all()


def test_without_a_gate_everything_passes() -> None:
    parts = {situation: evidence([0.001] * 3, OTHER) for situation in Situation}
    found = OPEN_GATE.judge(Situation.IMAGE_AND_TITLE, parts)
    assert found.passed.all()
    assert np.isnan(found.familiarity).all()
    assert not found.title_ignored.any()


def fitted(width: int = 4) -> Gate:
    generator = np.random.default_rng(0)

    def features(n: int, spread: float, modalities: int) -> Features:
        return Features(
            embeddings=(1 + generator.normal(0, spread, (n, modalities, width))).astype(np.float32),
            logits=(generator.normal(0, 1, (n, 3)).astype(np.float32),) * ATTRIBUTES,
            unseen=generator.random(n),
        )

    gates = {
        situation: fit_scope(features(90, 0.1, size), features(40, 2.0, size), features(60, 0.1, size))
        for situation, size in ((Situation.IMAGE_AND_TITLE, 2), (Situation.TITLE, 1))
    }
    return Gate(scopes=ScopeGates(words=KnownWords.of(["a shirt", "a shoe"]), gates=gates), conflict=CONFLICT)


def test_a_gate_survives_being_written() -> None:
    before = fitted()
    arrays, description = before.to_arrays()
    after = Gate.from_arrays(arrays, json.loads(json.dumps(description)))
    parts = {situation: evidence([1.1, 0.9, -3.0], SURE) for situation in Situation}
    one, other = (each.judge(Situation.IMAGE_AND_TITLE, parts) for each in (before, after))
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, vars(other)[name])
    assert set(after.scopes.gates) == {Situation.IMAGE_AND_TITLE, Situation.TITLE}


def test_a_gate_without_conflict_survives_too() -> None:
    gate = Gate(scopes=fitted().scopes, conflict=None)
    assert Gate.from_arrays(*gate.to_arrays()).conflict is None


@pytest.mark.parametrize("missing", ["conflict.weights", "words", "title.references"])
def test_a_gate_that_lacks_something_is_refused(missing: str) -> None:
    arrays, description = fitted().to_arrays()
    lacking: dict[str, Any] = {name: array for name, array in arrays.items() if name != missing}
    with pytest.raises(Exception, match=missing):
        Gate.from_arrays(lacking, description)
