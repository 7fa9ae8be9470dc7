"""How the answers of an engine differ from those of the reference, PyTorch in float32, on the same listings.

Both are calibrated: what is compared is what callers get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from model.evaluation import scores
from model.evaluation.heldout import HeldOut, judgements
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import Calibration, softmax
from model.trust.gate import Gate


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an engine computed on some listings, and what turns that into answers."""

    held_out: Mapping[Situation, HeldOut]
    calibration: Calibration
    gate: Gate | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One attribute in one situation, over n listings; shares are of 1."""

    listings: int
    accuracy: float
    """The engine's, on labelled listings."""
    reference_accuracy: float
    labels: float
    """The share whose label is another."""
    verdicts: float
    """The share that one accepts and the other doesn't, at the target precision."""
    confidence: float
    """The mean absolute difference of the confidence in the reference's label."""
    largest: float
    """The largest one."""


Differences = Mapping[Situation, Mapping[str, Difference]]


def differences(engine: Measured, reference: Measured, target: float) -> Differences:
    """Compare both on the same listings, at a target precision; situations without listings are left out."""
    passed = {each: _passed(measured) for each, measured in (("engine", engine), ("reference", reference))}
    return {
        situation: {
            task.name: _difference(
                task,
                held_out.labels(task),
                _answers(engine, situation, task, target, passed["engine"][situation][:, t]),
                _answers(reference, situation, task, target, passed["reference"][situation][:, t]),
            )
            for t, task in enumerate(held_out.tasks)
        }
        for situation, held_out in engine.held_out.items()
        if held_out.listings
    }


def labels_changed(engine: Mapping[Situation, HeldOut], reference: Mapping[Situation, HeldOut]) -> float:
    """Return the largest share of listings that get another label of an attribute, over attributes and situations.

    Calibration changes no label. A few thousand listings say more by this than by accuracy, which goes both ways.
    """
    return max(
        float((own.argmax(axis=1) != other.argmax(axis=1)).mean())
        for situation, held_out in engine.items()
        if held_out.listings
        for own, other in zip(held_out.logits, reference[situation].logits, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Answered:
    """One attribute of n listings: all confidences `[n, C]`, and whether the best is accepted `[n]`."""

    confidences: NDArray[np.float64]
    accepted: NDArray[np.bool_]


def _passed(measured: Measured) -> Mapping[Situation, NDArray[np.bool_]]:
    temperatures = {
        situation: {name: attribute.temperature for name, attribute in attributes.items()}
        for situation, attributes in measured.calibration.situations.items()
    }
    judged = judgements(measured.gate, measured.held_out, temperatures)
    return {situation: each.passed & ~each.title_ignored[:, None] for situation, each in judged.items()}


def _answers(
    measured: Measured, situation: Situation, task: Task, target: float, passed: NDArray[np.bool_]
) -> _Answered:
    calibrated = measured.calibration.situations[situation][task.name]
    confidences = softmax(measured.held_out[situation].logits_of(task), calibrated.temperature)
    minimum = calibrated.minimum_confidence(target, task.labels)[confidences.argmax(axis=1)]
    return _Answered(confidences, passed & (confidences.max(axis=1) >= minimum))


def _difference(task: Task, labels: NDArray[np.int64], engine: _Answered, reference: _Answered) -> Difference:
    counted = scores.labelled(labels)
    predicted, expected = (each.confidences.argmax(axis=1) for each in (engine, reference))
    rows = np.arange(len(labels))
    apart = np.abs(engine.confidences[rows, expected] - reference.confidences[rows, expected])
    return Difference(
        listings=len(labels),
        accuracy=scores.accuracy(predicted[counted], labels[counted]),
        reference_accuracy=scores.accuracy(expected[counted], labels[counted]),
        labels=float((predicted != expected).mean()),
        verdicts=float((engine.accepted != reference.accepted).mean()),
        confidence=float(apart.mean()),
        largest=float(apart.max()),
    )


def differences_json(found: Differences) -> dict[str, Any]:
    """Return what metrics.json of an engine holds of it."""
    return {
        situation: {name: asdict(difference) for name, difference in attributes.items()}
        for situation, attributes in found.items()
    }


def differences_table(found: Differences) -> Table:
    """Return the comparison, for the terminal, in percent."""
    table = Table(title="Beside PyTorch in float32, on the validation part, in %")
    table.add_column("situation")
    table.add_column("attribute")
    for heading in ("accuracy", "PyTorch's", "other label", "other verdict", "confidence apart", "at most"):
        table.add_column(heading, justify="right")
    for situation, attributes in found.items():
        for name, each in attributes.items():
            figures = (
                each.accuracy, each.reference_accuracy, each.labels, each.verdicts, each.confidence, each.largest
            )  # fmt: skip
            table.add_row(situation, name, *(f"{100 * figure:.2f}" for figure in figures))
        table.add_section()
    return table
