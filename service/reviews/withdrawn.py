"""Promises that are not given any more: such an attribute is `not_certified` until it is calibrated anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from model.inference.predictions import (
    Abstention,
    AttributePrediction,
    LabelPrediction,
    ListingWarning,
    Prediction,
    Scope,
)
from model.situations import Situation
from service.reviews.pairs import Promise

Answer = TypeVar("Answer", AttributePrediction, LabelPrediction)

BEFORE = (Abstention.UNFAMILIAR_LISTING, Abstention.NOT_APPLICABLE)
"""Reasons that are named rather than this one, where they hold too."""


@dataclass(frozen=True, slots=True)
class Given:
    """A prediction as whoever sent the listing gets it: not accepted where a promise is withdrawn."""

    computed: Prediction
    withdrawn: frozenset[Promise]

    @property
    def scope(self) -> Scope:
        return self.computed.scope

    @property
    def warnings(self) -> tuple[ListingWarning, ...]:
        return self.computed.warnings

    def attribute(self, name: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        """Return the prediction of one attribute, as `Prediction.attribute` does."""
        found = self.computed.attribute(name, target_precision=target_precision, top_k=top_k)
        return without(self.withdrawn, name, self.scope.situation, found)


def without(
    withdrawn: frozenset[Promise], attribute: str, situation: Situation, prediction: AttributePrediction
) -> AttributePrediction:
    """Return an answer as it is given: not accepted where its promise is withdrawn."""
    if Promise(attribute, situation, prediction.target_precision) not in withdrawn:
        return prediction
    prediction = replace(prediction, labels=tuple(map(_not_certified, prediction.labels)))
    return _not_certified(prediction)


def _not_certified(answer: Answer) -> Answer:
    abstention = answer.abstention if answer.abstention in BEFORE else Abstention.NOT_CERTIFIED
    return replace(answer, abstention=abstention, threshold=None)
