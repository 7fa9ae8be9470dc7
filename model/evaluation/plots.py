"""Plots of an evaluation: coverage against precision, reliability and, where it was measured, stability."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.evaluation import scores
from model.evaluation.evaluate import HEADINGS, Evaluation
from model.situations import Situation

COLOURS = {Situation.IMAGE_AND_TITLE: "#1b6ca8", Situation.IMAGE: "#d9822b", Situation.TITLE: "#4b8b3b"}

MARKERS = ("o", "s", "D", "^", "v")

_COLUMNS = 4

_FEWEST_ACCEPTED = 20
"""Left of so few rows, precision is noise."""


def save_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write `coverage_precision.png` and `reliability.png` into `folder`, and return their paths.

    Also `stability.png`, where the evaluation measured it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "coverage_precision.png": _small_multiples(
            evaluation,
            _coverage_against_precision,
            "coverage (share accepted)",
            "precision of accepted labels",
        ),
        "reliability.png": _small_multiples(evaluation, _reliability, "confidence", "share that is right"),
    }
    if "stability" in evaluation.metrics:
        figures["stability.png"] = _stability(evaluation.metrics["stability"])
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in figures]


def _stability(stability: Mapping[str, Any]) -> Figure:
    """Draw a panel per situation: the labels that each change flips, a dot per attribute."""
    figure = Figure(figsize=(4.2 * len(stability["situations"]), 5.0), layout="constrained")
    panels = figure.subplots(1, len(stability["situations"]), squeeze=False).flat
    for panel, (situation, found) in zip(panels, stability["situations"].items(), strict=True):
        changes = list(reversed(found["changes"]))
        for attribute in found["attributes"]:
            cells = [found["changes"][change][attribute] for change in changes]
            flipped = [math.nan if cell is None else 100 * cell["labels"] for cell in cells]
            panel.plot(flipped, changes, "o", markersize=4, alpha=0.8, label=attribute)
        panel.set_title(HEADINGS[situation], fontsize=10)
        panel.set_xlabel("labels that flip, %", fontsize=9)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=8)
    return figure


def _small_multiples(
    evaluation: Evaluation, draw: Callable[[Axes, Evaluation, str], None], x_label: str, y_label: str
) -> Figure:
    """Draw a panel per attribute, with the legend in the first free place of the grid."""
    attributes = list(evaluation.answers[Situation.IMAGE_AND_TITLE])
    rows = math.ceil((len(attributes) + 1) / _COLUMNS)
    figure = Figure(figsize=(3.4 * _COLUMNS, 3.0 * rows), layout="constrained")
    panels: Iterable[Axes] = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    used, free = list(panels)[: len(attributes)], figure.axes[len(attributes) :]
    for panel, attribute in zip(used, attributes, strict=True):
        draw(panel, evaluation, attribute)
        panel.set_title(attribute, fontsize=10)
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    for panel in free:
        panel.axis("off")
    handles = {label: handle for p in used for handle, label in zip(*p.get_legend_handles_labels(), strict=True)}
    free[0].legend(handles.values(), handles.keys(), loc="center", frameon=False, fontsize=9)
    return figure


def _coverage_against_precision(panel: Axes, evaluation: Evaluation, attribute: str) -> None:
    lowest = 1.0
    for situation, by_attribute in evaluation.answers.items():
        answers = by_attribute[attribute]
        _, accepted, right = scores.operating_points(answers.confidence, answers.correct)
        shown = accepted >= _FEWEST_ACCEPTED
        if shown.any():
            precision = right[shown] / accepted[shown]
            lowest = min(lowest, float(precision.min()))
            panel.plot(
                accepted[shown] / len(answers.labels),
                precision,
                color=COLOURS[situation],
                label=HEADINGS[situation],
                linewidth=1.4,
            )
    for marker, target in zip(MARKERS, evaluation.calibration.target_precisions, strict=False):
        panel.axhline(target, color="#999999", linewidth=0.8, linestyle=":")
        panel.plot([], [], marker, color="#555555", label=f"certified at {100 * target:g} %")  # for the legend
        _mark_certified(panel, evaluation, attribute, target, marker)
    panel.set_xlim(0, 1.03)
    panel.set_ylim(max(0.0, lowest - 0.03), 1.005)


def _mark_certified(panel: Axes, evaluation: Evaluation, attribute: str, target: float, marker: str) -> None:
    for situation, by_attribute in evaluation.answers.items():
        answers = by_attribute[attribute]
        certificate = evaluation.calibration.situations[situation][attribute].thresholds[target]
        if certificate is None or not len(answers.labels):
            continue
        point = scores.operating_point(answers.confidence, answers.correct, certificate.threshold)
        if point.precision is not None:
            colour = COLOURS[situation]
            panel.plot(point.coverage, point.precision, marker, color=colour, markeredgecolor="white", zorder=3)


def _reliability(panel: Axes, evaluation: Evaluation, attribute: str) -> None:
    panel.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":", label="perfectly calibrated")
    for situation, by_attribute in evaluation.answers.items():
        answers = by_attribute[attribute]
        if not len(answers.labels):
            continue
        bins = scores.reliability(answers.confidence, answers.correct)
        error = scores.expected_calibration_error(answers.confidence, answers.correct)
        colour, label = COLOURS[situation], HEADINGS[situation]
        panel.plot(bins[:, 0], bins[:, 1], "o-", color=colour, label=label, markersize=3, linewidth=1)
        text, height = f"ECE {100 * error:.1f} %", 0.21 - 0.08 * list(Situation).index(situation)
        panel.text(0.97, height, text, color=colour, fontsize=8, ha="right", transform=panel.transAxes)
    panel.set_xlim(0, 1.02)
    panel.set_ylim(0, 1.02)
