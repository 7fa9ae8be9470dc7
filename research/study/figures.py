"""The report's plots: small multiples, one panel per corruption or attribute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.evaluation.evaluate import HEADINGS
from model.evaluation.plots import COLOURS
from model.situations import Situation
from research.study.conditions import UNCORRUPTED, Condition, clean
from research.study.corruptions import CORRUPTIONS, LABEL_WORDS_REMOVED, MISMATCHED_IMAGE, MISMATCHED_TITLE
from research.study.findings import mean_image_weight
from research.study.results import Results, both
from research.study.runs import CMA_CLIP
from research.study.study import all_names

COLUMNS = 4
LINES = ("#1b6ca8", "#c0392b", "#7d3c98", "#4fc3f7", "#d9822b", "#4b8b3b", "#5d4037", "#9e9e9e")
CORRUPTED_RELIABILITY = (
    (LABEL_WORDS_REMOVED, 1.0),
    (MISMATCHED_TITLE, 1.0),
    ("blur", 0.1),
    (MISMATCHED_IMAGE, 1.0),
)


def save_figures(results: Results, folder: Path) -> list[Path]:
    """Write each plot that there are figures for into `folder`; return their paths."""
    figures: dict[str, Figure] = {}
    if any(results.cell(name, both(UNCORRUPTED, 0.0)) for name in all_names()):
        figures["curves_accuracy.png"] = _curves(results, "accuracy", "mean accuracy")
        figures["curves_recall.png"] = _curves(results, "recall_at_95", "mean recall at 95 % precision")
    if mean_image_weight(results, both(UNCORRUPTED, 0.0)) is not None:
        figures["weights.png"] = _weight_curves(results)
    if results.shipped is not None:
        figures["reliability.png"] = _reliability(results.shipped, _clean_lines())
        figures["reliability_corrupted.png"] = _reliability(results.shipped, _corrupted_lines())
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=80, metadata={"Software": None})
    return [folder / name for name in figures]


def _panels(titles: Sequence[str], draw: Callable[[Axes, str], None], y_label: str) -> Figure:
    """Draw a panel for each title, and the legend in the first free place."""
    rows = math.ceil((len(titles) + 1) / COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.8 * rows), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for panel, title in zip(panels, titles, strict=False):
        draw(panel, title)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
    for panel in panels[len(titles) :]:
        panel.axis("off")
    used = panels[: len(titles)]
    handles = {label: handle for each in used for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    panels[len(titles)].legend(handles.values(), handles.keys(), loc="center", frameon=False, fontsize=9)
    figure.supylabel(y_label, fontsize=10)
    return figure


def _corruption_panels(draw: Callable[[Axes, str, Sequence[float]], None], y_label: str) -> Figure:
    """Draw a panel for each corruption: uncorrupted listings first, then its strengths from mild to severe."""
    axes = {each.name: (each.axis, (0.0, *each.strengths)) for each in CORRUPTIONS}

    def panel(axis: Axes, name: str) -> None:
        label, strengths = axes[name]
        draw(axis, name, strengths)
        axis.set_xlabel(label, fontsize=8)
        axis.set_xticks(range(len(strengths)), ["none", *(f"{strength:g}" for strength in strengths[1:])])

    return _panels(list(axes), panel, y_label)


def _curves(results: Results, measure: str, y_label: str) -> Figure:
    shown = [name for name in all_names() if results.cell(name, both(UNCORRUPTED, 0.0))]

    def draw(panel: Axes, corruption: str, strengths: Sequence[float]) -> None:
        for name, colour in zip(shown, itertools.cycle(LINES), strict=False):
            values = [results.on_curve(name, corruption, strength, measure) for strength in strengths]
            width = 2.2 if name == CMA_CLIP.name else 1.1
            points = [math.nan if value is None else value for value in values]
            panel.plot(range(len(points)), points, "o-", color=colour, label=name, markersize=3, linewidth=width)
        panel.set_ylim(bottom=0)

    return _corruption_panels(draw, y_label)


def _weight_curves(results: Results) -> Figure:
    def key(corruption: str, strength: float) -> str:
        return both(corruption, strength) if strength else both(UNCORRUPTED, 0.0)

    def draw(panel: Axes, corruption: str, strengths: Sequence[float]) -> None:
        keys = [key(corruption, strength) for strength in strengths]
        for attribute, colour in zip(results.attributes, itertools.cycle(LINES), strict=False):
            weights = [
                (results.cell(CMA_CLIP.name, each, attribute) or {}).get("image_weight", math.nan) for each in keys
            ]
            panel.plot(range(len(keys)), weights, color=colour, label=attribute, linewidth=1.1)
        means = [mean_image_weight(results, each) for each in keys]
        points = [math.nan if mean is None else mean for mean in means]
        panel.plot(range(len(keys)), points, "k--", label="mean", linewidth=1.8)
        panel.set_ylim(0, 1)

    return _corruption_panels(draw, "image weight")


Line = tuple[str, str, str]
"""Label, condition, colour."""


def _clean_lines() -> list[Line]:
    return [(HEADINGS[situation], clean(situation), COLOURS[situation]) for situation in Situation]


def _corrupted_lines() -> list[Line]:
    uncorrupted = Condition(situation=Situation.IMAGE_AND_TITLE, corruption=UNCORRUPTED).key
    corrupted = zip(CORRUPTED_RELIABILITY, LINES[1:], strict=False)
    return [
        (UNCORRUPTED, uncorrupted, LINES[0]),
        *((f"{name}, {strength:g}", both(name, strength), colour) for (name, strength), colour in corrupted),
    ]


def _reliability(shipped: dict[str, Any], lines: Sequence[Line]) -> Figure:
    conditions = shipped["conditions"]

    def draw(panel: Axes, attribute: str) -> None:
        panel.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":", label="perfectly calibrated")
        for label, key, colour in lines:
            cell = conditions.get(key, {}).get("attributes", {}).get(attribute)
            if cell:
                confidence, right = zip(*cell["reliability"], strict=True)
                panel.plot(confidence, right, "o-", color=colour, label=label, markersize=3, linewidth=1)
        panel.set_xlim(0, 1.02)
        panel.set_ylim(0, 1.02)
        panel.set_xlabel("confidence", fontsize=8)

    return _panels(list(next(iter(conditions.values()))["attributes"]), draw, "share that is right")
