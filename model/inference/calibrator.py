"""From a batch's logits to its predictions: confidences, candidates and verdicts of all listings at once, with numpy.

What is left to do for one listing is to slice its row out of the arrays (`BatchRow.attribute`). A row comes out the
same alone, in any batch and next to any other row, bit for bit.

Shapes: B listings, S situations, K target precisions, T attributes, C_t labels of attribute t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.inference.predictions import (
    Abstention,
    AttributePrediction,
    Candidate,
    Explanation,
    ListingWarning,
    RawOutputs,
    Scope,
)
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import Calibration, softmax

_INDEX = {situation: index for index, situation in enumerate(Situation)}


@dataclass(frozen=True, slots=True)
class AttributeBatch:
    """One attribute of every listing of a batch, predicted; candidates stand best first."""

    labels: tuple[str, ...]
    order: NDArray[np.intp]
    """Class indices of the candidates, `[B, C_t]`."""
    confidences: NDArray[np.float64]
    """Of the candidates, `[B, C_t]`."""
    minimum: NDArray[np.float64]
    """The confidence at which the best candidate is accepted, `[B, K]`; infinity for never."""
    accepted: NDArray[np.bool_]
    """Whether the best candidate is, `[B, K]`."""
    attention: NDArray[np.float32]
    """Weights of image and text, `[B, 2]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One listing's predictions: a row of its batch. Implements `model.inference.predictions.Prediction`."""

    row: int
    scope: Scope
    warnings: tuple[ListingWarning, ...]
    attributes: Mapping[str, AttributeBatch]
    targets: Mapping[float, int]
    """Target precisions, and their place among K."""
    explanations: Mapping[str, Explanation] | None

    def attribute(self, name: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        """Return the prediction of one attribute; at a target that was not calibrated, nothing is accepted."""
        batch, row, target = self.attributes[name], self.row, self.targets.get(target_precision)
        shown = max(1, top_k)
        order, confidences = batch.order[row, :shown].tolist(), batch.confidences[row, :shown].tolist()
        minimum = math.inf if target is None else float(batch.minimum[row, target])
        image, text = batch.attention[row].tolist()
        return AttributePrediction(
            label=batch.labels[order[0]],
            confidence=confidences[0],
            abstention=self._abstention(batch, target),
            threshold=None if math.isinf(minimum) else minimum,
            target_precision=target_precision,
            candidates=tuple(
                Candidate(batch.labels[index], confidence)
                for index, confidence in zip(order[:top_k], confidences[:top_k], strict=True)
            ),
            modality_attention={"image": image, "text": text},
            explanation=self.explanations[name] if self.explanations else None,
        )

    def _abstention(self, batch: AttributeBatch, target: int | None) -> Abstention | None:
        if target is None or math.isinf(batch.minimum[self.row, target]):
            return Abstention.NOT_CERTIFIED
        return None if batch.accepted[self.row, target] else Abstention.LOW_CONFIDENCE


@dataclass(frozen=True, slots=True)
class _Rules:
    """What turns one attribute's logits into predictions."""

    task: Task
    temperature: NDArray[np.float64]
    """`[S]`."""
    minimum: NDArray[np.float64]
    """Minimum confidence of each label, `[S, K, C_t]`."""


class Calibrator:
    """A checkpoint's temperatures and minimum confidences, ready for batches.

    Without a calibration the temperature is 1, and nothing is accepted.
    """

    def __init__(self, tasks: Sequence[Task], calibration: Calibration | None) -> None:
        targets = calibration.target_precisions if calibration else ()
        self._targets = {target: place for place, target in enumerate(targets)}
        self._rules = tuple(_rules(task, calibration) for task in tasks)

    def predictions(
        self,
        raw: RawOutputs,
        situations: Sequence[Situation],
        warnings: Sequence[tuple[ListingWarning, ...]],
        explanations: Sequence[Mapping[str, Explanation] | None],
    ) -> list[BatchRow]:
        """Return each listing's predictions, in the order of the batch, from its outputs.

        situations, warnings: each listing's. explanations: each listing's, by attribute; None for a listing without any.
        """
        situation = np.array([_INDEX[each] for each in situations], dtype=np.intp)
        attributes = {
            rules.task.name: _predict(rules, logits, raw.attention[:, t], situation)
            for t, (rules, logits) in enumerate(zip(self._rules, raw.logits, strict=True))
        }
        return [
            BatchRow(
                row=row,
                scope=Scope(situation=each, familiarity=None, in_scope=None, agreement=None),
                warnings=warned,
                attributes=attributes,
                targets=self._targets,
                explanations=found,
            )
            for row, (each, warned, found) in enumerate(zip(situations, warnings, explanations, strict=True))
        ]


def _rules(task: Task, calibration: Calibration | None) -> _Rules:
    if calibration is None:
        return _Rules(task, np.ones(len(_INDEX)), np.empty((len(_INDEX), 0, len(task.labels))))
    attributes = [calibration.situations[situation][task.name] for situation in Situation]
    return _Rules(
        task,
        np.array([attribute.temperature for attribute in attributes]),
        np.array(
            [
                [attribute.minimum_confidence(target, task.labels) for target in calibration.target_precisions]
                for attribute in attributes
            ]
        ),
    )


def _predict(
    rules: _Rules, logits: NDArray[np.float32], attention: NDArray[np.float32], situation: NDArray[np.intp]
) -> AttributeBatch:
    """Predict one attribute of a batch from its logits `[B, C_t]`; situation: index of each listing's, `[B]`."""
    # Rows that are contiguous in memory are summed in the same order whatever the size of the batch.
    confidences = softmax(np.ascontiguousarray(logits), rules.temperature[situation, None])
    # Stable, so that equal confidences are listed in the order of the labels.
    order = np.argsort(-confidences, axis=1, kind="stable")
    ranked = np.take_along_axis(confidences, order, axis=1)
    minimum = rules.minimum[situation, :, order[:, 0]]  # [B, K]
    return AttributeBatch(
        labels=rules.task.labels,
        order=order,
        confidences=ranked,
        minimum=minimum,
        accepted=ranked[:, :1] >= minimum,
        attention=attention,
    )
