"""From a batch's outputs to its predictions: confidences, candidates and verdicts of all listings at once, with numpy.

What is left to do for one listing is to slice its row out of the arrays (`BatchRow.attribute`). A row comes out the
same alone, in any batch and next to any other row, bit for bit.

Shapes: B listings of a batch, n of them with the same modalities, S situations, K target precisions, T attributes, C_t
labels of attribute t.
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
    LabelPrediction,
    ListingWarning,
    Scope,
    SituationOutputs,
)
from model.situations import Situation
from model.tasks import Task, multi_valued_places
from model.trust.applicability import Applicability
from model.trust.calibration import Calibration
from model.trust.gate import OPEN_GATE, Evidence, Gate, Judgement

_INDEX = {situation: index for index, situation in enumerate(Situation)}

LIKELY = 0.5
"""From this confidence on, a label of a multi-valued attribute is likelier than not."""


@dataclass(frozen=True, slots=True)
class AttributeBatch:
    """One attribute of n listings that have the same modalities, predicted; candidates stand best first."""

    labels: tuple[str, ...]
    order: NDArray[np.intp]
    """Class indices of the candidates, `[n, C_t]`."""
    confidences: NDArray[np.float64]
    """Of the candidates, `[n, C_t]`."""
    minimum: NDArray[np.float64]
    """The confidence at which candidates are accepted, infinity for never: that of the best one, `[n, K, 1]`; of all,
    `[n, K, C_t]`, where the attribute is multi-valued."""
    multi_valued: bool
    not_applicable: NDArray[np.bool_]
    """Whether listings of this product type never bear it, `[n]`."""
    disagree: NDArray[np.bool_]
    """Whether image and title contradict each other on it, `[n]`."""
    attention: NDArray[np.float32]
    """Weights of image and text, `[n, 2]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One listing's predictions: a row of its batch. Implements `model.inference.predictions.Prediction`."""

    row: int
    scope: Scope
    warnings: tuple[ListingWarning, ...]
    attributes: Mapping[str, AttributeBatch]
    targets: Mapping[float, int]
    """Target precisions, and their place among K."""
    explanations: Mapping[str, Explanation] | None = None

    def best(self, name: str) -> int:
        """Return the class index of an attribute's label."""
        return int(self.attributes[name].order[self.row, 0])

    def confidence_of(self, name: str, label: int) -> float:
        """Return an attribute's confidence in one of its labels, by class index."""
        batch = self.attributes[name]
        return float(batch.confidences[self.row, np.nonzero(batch.order[self.row] == label)[0][0]])

    def attribute(self, name: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        """Return the prediction of one attribute; at a target that was not calibrated, nothing is accepted."""
        batch, row, target = self.attributes[name], self.row, self.targets.get(target_precision)
        labels = [self._label(batch, place, target) for place in self._shown(batch, target, max(1, top_k))]
        image, text = batch.attention[row].tolist()
        order, confidences = batch.order[row, :top_k].tolist(), batch.confidences[row, :top_k].tolist()
        return AttributePrediction(
            label=labels[0].label,
            confidence=labels[0].confidence,
            abstention=labels[0].abstention,
            threshold=labels[0].threshold,
            target_precision=target_precision,
            candidates=tuple(
                Candidate(batch.labels[index], confidence) for index, confidence in zip(order, confidences, strict=True)
            ),
            modality_attention={"image": image, "text": text},
            explanation=self.explanations[name] if self.explanations else None,
            labels=tuple(labels) if batch.multi_valued else (),
            likely=self._likely(batch) if batch.multi_valued else (),
        )

    def _shown(self, batch: AttributeBatch, target: int | None, shown: int) -> list[int]:
        """Return the places among the candidates of the labels that are answered: the best one; of a multi-valued
        attribute all that are accepted, then further ones up to `shown` in all.
        """
        if not batch.multi_valued:
            return [0]
        accepted: list[int] = []
        if target is not None and self._blocked(batch) is None and not batch.disagree[self.row]:
            accepted = np.flatnonzero(batch.confidences[self.row] >= batch.minimum[self.row, target]).tolist()
        further = np.setdiff1d(np.arange(len(batch.labels)), accepted)[: max(0, shown - len(accepted))]
        return [*accepted, *further.tolist()]

    def _label(self, batch: AttributeBatch, place: int, target: int | None) -> LabelPrediction:
        confidence = float(batch.confidences[self.row, place])
        minimum = math.inf if target is None else float(batch.minimum[self.row, target, place])
        return LabelPrediction(
            label=batch.labels[int(batch.order[self.row, place])],
            confidence=confidence,
            abstention=self._abstention(batch, confidence, minimum),
            threshold=None if math.isinf(minimum) else minimum,
        )

    def _likely(self, batch: AttributeBatch) -> tuple[str, ...]:
        """Return the labels that are likelier than not, or the likeliest."""
        count = max(1, int((batch.confidences[self.row] >= LIKELY).sum()))
        return tuple(batch.labels[index] for index in batch.order[self.row, :count].tolist())

    def _blocked(self, batch: AttributeBatch) -> Abstention | None:
        """Return why none of the attribute's labels is accepted whatever its confidence and threshold, if so."""
        if self.scope.in_scope is False:
            return Abstention.UNFAMILIAR_LISTING
        return Abstention.NOT_APPLICABLE if batch.not_applicable[self.row] else None

    def _abstention(self, batch: AttributeBatch, confidence: float, minimum: float) -> Abstention | None:
        """Return the first reason that holds, in the order of `Abstention`."""
        if (blocked := self._blocked(batch)) is not None:
            return blocked
        if math.isinf(minimum):
            return Abstention.NOT_CERTIFIED
        if batch.disagree[self.row]:
            return Abstention.MODALITIES_DISAGREE
        return None if confidence >= minimum else Abstention.LOW_CONFIDENCE


@dataclass(frozen=True, slots=True)
class _Rules:
    """What turns one attribute's logits into predictions."""

    task: Task
    temperature: NDArray[np.float64]
    """`[S]`."""
    minimum: NDArray[np.float64]
    """Minimum confidence of each label, `[S, K, C_t]`."""


class Calibrator:
    """A checkpoint's temperatures, gate and minimum confidences, ready for batches.

    Without a calibration the temperature is 1, and nothing is accepted. Without a gate every listing passes it.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        calibration: Calibration | None,
        gate: Gate | None,
        applicability: Applicability | None = None,
    ) -> None:
        targets = calibration.target_precisions if calibration else ()
        self._tasks, self._multi_valued = tuple(tasks), multi_valued_places(tasks)
        self._applicability = applicability if calibration else None
        self._product_types = _product_types(tasks, calibration, applicability)
        self._targets = {target: place for place, target in enumerate(targets)}
        self._rules = tuple(_rules(task, calibration) for task in tasks)
        self._gate = gate or OPEN_GATE

    def predictions(
        self,
        situations: Sequence[Situation],
        outputs: Mapping[Situation, SituationOutputs],
        warnings: Sequence[tuple[ListingWarning, ...]],
    ) -> list[BatchRow]:
        """Return each listing's predictions, in the order of the batch.

        situations, warnings: each listing's. outputs: of the batch, in every situation that its listings can be
        answered in.
        """
        evidence = {situation: self._evidence(situation, each) for situation, each in outputs.items()}
        answers: dict[int, BatchRow] = {}
        for given in Situation:
            rows = [row for row, situation in enumerate(situations) if situation is given]
            if rows:
                parts = {
                    situation: _select(evidence[situation], outputs[situation], rows) for situation in given.within
                }
                found = self._answer(given, parts, [warnings[row] for row in rows])
                answers.update(zip(rows, found, strict=True))
        return [answers[row] for row in range(len(situations))]

    def _evidence(self, situation: Situation, outputs: SituationOutputs) -> Evidence:
        raw, temperatures = outputs.raw, [rules.temperature[_INDEX[situation]] for rules in self._rules]
        return Evidence.of(raw.embeddings, raw.logits, temperatures, outputs.titles, self._multi_valued)

    def _answer(
        self, given: Situation, parts: Mapping[Situation, _Part], warnings: Sequence[tuple[ListingWarning, ...]]
    ) -> list[BatchRow]:
        """Answer n listings that have the modalities of `given`, from their outputs in each situation."""
        judged = self._gate.judge(given, {situation: part.evidence for situation, part in parts.items()})
        excluded = self._excluded(given, parts, judged)
        attributes = {
            rules.task.name: _predict(rules, t, given, parts, judged, not_applicable=excluded[:, t])
            for t, rules in enumerate(self._rules)
        }
        ignored = judged.title_ignored.tolist()
        return [
            BatchRow(
                row=row,
                scope=_scope(given, judged, row),
                warnings=(*warned, ListingWarning.TITLE_IGNORED) if ignored[row] else warned,
                attributes=attributes,
                targets=self._targets,
            )
            for row, warned in enumerate(warnings)
        ]

    def _excluded(self, given: Situation, parts: Mapping[Situation, _Part], judged: Judgement) -> NDArray[np.bool_]:
        """Return which attributes are not applicable to n listings, `[n, T]`."""
        if self._applicability is None:
            return np.zeros_like(judged.disagree)
        t = self._tasks.index(self._applicability.task(self._tasks))
        confidences, _, situation = _read(t, given, parts, judged)
        return self._applicability.excludes(
            self._tasks, confidences, self._product_types[situation], judged.passed[:, t]
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """n listings in one situation."""

    evidence: Evidence
    attention: NDArray[np.float32]
    """`[n, T, 2]`."""


def _select(evidence: Evidence, outputs: SituationOutputs, rows: Sequence[int]) -> _Part:
    """Return the listings at `rows` of the batch: all of them have what the situation needs."""
    places = np.searchsorted(outputs.rows, rows)
    if len(places) == len(outputs.rows):
        return _Part(evidence, outputs.raw.attention)
    return _Part(evidence[places], outputs.raw.attention[places])


def _scope(given: Situation, judged: Judgement, row: int) -> Scope:
    familiarity, agreement = float(judged.familiarity[row]), float(judged.agreement[row])
    return Scope(
        situation=Situation.IMAGE if judged.title_ignored[row] else given,
        familiarity=None if math.isnan(familiarity) else familiarity,
        in_scope=None if math.isnan(familiarity) else bool(judged.in_scope[row]),
        agreement=None if math.isnan(agreement) else agreement,
    )


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


def _product_types(
    tasks: Sequence[Task], calibration: Calibration | None, applicability: Applicability | None
) -> NDArray[np.float64]:
    """Return the confidence from which each product type is accepted when applicability is judged, `[S, P]`."""
    if calibration is None or applicability is None:
        return np.empty((len(_INDEX), 0))
    name = applicability.product_type
    return np.stack(
        [applicability.minimum_confidence(tasks, calibration.situations[situation][name]) for situation in Situation]
    )


def _read(
    t: int, given: Situation, parts: Mapping[Situation, _Part], judged: Judgement
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.intp]]:
    """Return attribute `t`'s confidences `[n, C_t]` and attention `[n, 2]`, and the situation that each is from `[n]`.

    The listings have the modalities of `given`; where a title is ignored, they are read by the image alone.
    """
    confidences, attention = parts[given].evidence.confidences[t], parts[given].attention[:, t]
    situation = np.full(len(confidences), _INDEX[given])
    if judged.title_ignored.any():
        ignored, image = judged.title_ignored[:, None], parts[Situation.IMAGE]
        confidences = np.where(ignored, image.evidence.confidences[t], confidences)
        attention = np.where(ignored, image.attention[:, t], attention)
        situation[judged.title_ignored] = _INDEX[Situation.IMAGE]
    return confidences, attention, situation


def _predict(
    rules: _Rules,
    t: int,
    given: Situation,
    parts: Mapping[Situation, _Part],
    judged: Judgement,
    *,
    not_applicable: NDArray[np.bool_],
) -> AttributeBatch:
    """Predict attribute `t` of n listings that have the modalities of `given`."""
    confidences, attention, situation = _read(t, given, parts, judged)
    # Stable, so that equal confidences are listed in the order of the labels.
    order = np.argsort(-confidences, axis=1, kind="stable")
    judged_labels = order if rules.task.multi_valued else order[:, :1]
    return AttributeBatch(
        labels=rules.task.labels,
        order=order,
        confidences=np.take_along_axis(confidences, order, axis=1),
        minimum=np.take_along_axis(rules.minimum[situation], judged_labels[:, None, :], axis=2),
        multi_valued=rules.task.multi_valued,
        not_applicable=not_applicable,
        disagree=judged.disagree[:, t],
        attention=attention,
    )
