"""From answers to figures: each with an interval, per attribute and as their mean; one JSON file per run.

Shapes: n listings, T attributes, R resamples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.evaluation import scores
from model.situations import Situation
from model.trust.calibration import softmax
from research.study.answers import Answers, TestPart
from research.study.conditions import clean

MEASURES = ("accuracy", "macro_f1", "recall_at_90", "recall_at_95")
COMPARED = ("accuracy", "recall_at_90", "recall_at_95")
"""Their resamples are kept, so that two runs can be compared resample by resample."""

Cells = dict[str, Any]


Detail = Literal["values", "comparable", "full"]


def condition_cells(
    part: TestPart, rows: NDArray[np.int64], answers: Answers, *, weighs: bool, detail: Detail
) -> Cells:
    """Return the figures of one condition on the listings at `rows`, each as [value, low, high] at 95 %.

    detail: with `values`, each attribute has its values without intervals; `comparable` adds the resamples of the
    means, in ten-thousandths; `full` has intervals and resamples of each attribute.
    """
    given = [_Attribute(answers, part.labels[rows, t], t) for t in range(len(part.tasks))]
    known = [t for t, attribute in enumerate(given) if attribute.counted.any()]

    def measure(resampled: NDArray[Any]) -> NDArray[np.float64]:
        each = np.array([given[t].measures(resampled) for t in known])  # [T, measures]
        return np.concatenate([each, each.mean(axis=0, keepdims=True)])

    names = [*(part.tasks[t].name for t in known), "mean"]
    values, resamples = measure(np.arange(len(rows))), scores.bootstrap(measure, part.group[rows])
    low, high = np.quantile(resamples, (0.025, 0.975), axis=0)
    attributes: Cells = {}
    for row, name in enumerate(names):
        intervals = zip(MEASURES, values[row], low[row], high[row], strict=True)
        attributes[name] = {
            measure: [figure(x) for x in ((value, low, high) if detail == "full" or name == "mean" else (value,))]
            for measure, value, low, high in intervals
        }
    for t in known:
        attributes[names[known.index(t)]] |= _extras(given[t], answers, t, weighs=weighs)
    cells: Cells = {"listings": len(rows), "attributes": attributes}
    if detail != "values":
        cells["resamples"] = {
            measure: {
                name: _ten_thousandths(resamples[:, row, MEASURES.index(measure)])
                for row, name in enumerate(names)
                if detail == "full" or name == "mean"
            }
            for measure in COMPARED
        }
    return cells


class _Attribute:
    """One attribute's answers on n listings, including those without a label."""

    def __init__(self, answers: Answers, labels: NDArray[np.int64], t: int) -> None:
        probabilities = softmax(answers.logits[t], 1.0)
        self.confidence, self.predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
        self.labels, self.counted = labels, scores.labelled(labels)
        self.correct = self.predicted == labels

    def measures(self, rows: NDArray[Any]) -> tuple[float, ...]:
        """Return the figures of `MEASURES` on `rows`."""
        rows = rows[self.counted[rows]]
        confidence, correct, predicted = self.confidence[rows], self.correct[rows], self.predicted[rows]
        return (
            scores.accuracy(predicted, self.labels[rows]),
            scores.macro_f1(predicted, self.labels[rows]),
            scores.recall_at_precision(confidence, correct, 0.9),
            scores.recall_at_precision(confidence, correct, 0.95),
        )


def _extras(attribute: _Attribute, answers: Answers, t: int, *, weighs: bool) -> Cells:
    counted = attribute.counted
    error = scores.expected_calibration_error(attribute.confidence[counted], attribute.correct[counted])
    extras: Cells = {"rows": int(counted.sum()), "calibration_error": figure(error)}
    if weighs:
        extras["image_weight"] = figure(answers.attention[:, t, 0].mean())
    return extras


def weight_cells(part: TestPart, answers: Mapping[str, Answers]) -> Cells:
    """Return, per attribute, the mean image weight where one modality alone is right and the other alone wrong.

    Weights that follow the evidence are higher where the image alone is right than where the title alone is.
    """
    cells: Cells = {}
    both = answers[clean(Situation.IMAGE_AND_TITLE)]
    for t, task in enumerate(part.tasks):
        right = {
            situation: answers[clean(situation)].logits[t].argmax(axis=1) == part.labels[:, t]
            for situation in (Situation.IMAGE, Situation.TITLE)
        }
        counted, weight = scores.labelled(part.labels[:, t]), both.attention[:, t, 0]
        cells[task.name] = {}
        for situation, other in ((Situation.IMAGE, Situation.TITLE), (Situation.TITLE, Situation.IMAGE)):
            rows = counted & right[situation] & ~right[other]
            mean = figure(weight[rows].mean()) if rows.any() else None
            cells[task.name][f"{situation}_alone_right"] = {"listings": int(rows.sum()), "image_weight": mean}
    return cells


def all_cells(
    part: TestPart, subset: NDArray[np.int64], answers: Mapping[str, Answers], strongest: Sequence[str], *, weighs: bool
) -> Cells:
    """Return the figures of every condition in `answers`, by its key: clean in full, `strongest` comparable."""
    everything = np.arange(len(part.listings))
    cells: Cells = {}
    for key, each in answers.items():
        is_clean = key.split("/")[1] == "clean"
        comparable: Detail = "comparable" if key in strongest else "values"
        rows, detail = (everything, "full") if is_clean else (subset, comparable)
        cells[key] = condition_cells(part, rows, each, weighs=weighs, detail=detail)
    return cells


def figure(value: float) -> float | None:
    """Return a figure as it is written: five digits after the point, and null where no rows contribute to it."""
    return None if math.isnan(value) else round(float(value), 5)


def _ten_thousandths(values: NDArray[np.float64]) -> list[int] | None:
    return None if np.isnan(values).any() else [round(10_000 * float(value)) for value in values]


# --- files -------------------------------------------------------------------------------------------------


def write_cells(path: Path, cells: Cells) -> None:
    """Write a result, one condition per line, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {name: value for name, value in cells.items() if name != "conditions"}
    lines = [f'"{name}": {json.dumps(value, allow_nan=False)}' for name, value in head.items()]
    conditions = ",\n  ".join(
        f'"{key}": {json.dumps(value, separators=(",", ":"), allow_nan=False)}'
        for key, value in cells["conditions"].items()
    )
    text = "{\n " + ",\n ".join([*lines, f'"conditions": {{\n  {conditions}\n }}']) + "\n}\n"
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_cells(path: Path) -> Cells:
    """Read what `write_cells` wrote."""
    cells: Cells = json.loads(path.read_text(encoding="utf-8"))
    return cells
