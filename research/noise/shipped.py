"""How well an audit by a checkpoint finds wrong labels: noise is planted into labels of listings that it has not seen.

python -m research.noise.shipped weights/fashion benchmarks/fashion.toml --out research/results/audit.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.evaluation.heldout import collect, evidence_groups
from model.inference.predictor import Predictor
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import softmax
from model.trust.noise import estimate_noise, suspicion
from research.noise.calibration import Answered, calibration_noise
from research.noise.folds import PLANTED, Floats, Ints, ranking
from research.noise.kinds import similar

DRAWS = 5


def main(
    checkpoint: Annotated[Path, typer.Argument(help="a calibrated checkpoint folder")],
    catalogue: Annotated[Path, typer.Argument(help="the catalogue's TOML file")],
    *,
    out: Annotated[Path, typer.Option(help="the JSON file to write", show_default=False)],
) -> None:
    """Plant noise into labels of the calibration and test parts, audit them, and certify on them."""
    shop, console, predictor = Catalogue.open(catalogue), Console(stderr=True), Predictor.load(checkpoint)
    calibration = predictor.checkpoint.calibration
    if calibration is None:
        raise typer.BadParameter(f"{checkpoint} is not calibrated")
    listings = [*shop.part(Part.CALIBRATION), *shop.part(Part.TEST)]
    found = collect(predictor, shop, listings, console=console, what="listings")[Situation.IMAGE_AND_TITLE]
    temperatures = calibration.situations[Situation.IMAGE_AND_TITLE]
    chances = [softmax(found.logits_of(task), temperatures[task.name].temperature) for task in predictor.tasks]
    out.write_text(json.dumps(measured(predictor.tasks, found.listings, chances), indent=1) + "\n")


def measured(tasks: tuple[Task, ...], listings: tuple[Listing, ...], chances: Sequence[Floats]) -> dict[str, Any]:
    """Return the figures of planted noise, and of noise in the calibration part.

    chances: of each attribute what a model says of listings of the calibration and test parts, `[n, C]`.
    """
    rows = []
    for task, own in zip(tasks, chances, strict=True):
        parts = []
        for part in (Part.CALIBRATION, Part.TEST):
            places = [row for row, each in enumerate(listings) if each.part is part]
            parts.append(Answered.of(task, tuple(listings[row] for row in places), own[places]))
        rows += calibration_noise(task, *parts)
    return {"audit": planted(tasks, listings, chances), "calibration": rows}


def planted(tasks: tuple[Task, ...], listings: tuple[Listing, ...], chances: Sequence[Floats]) -> dict[str, Any]:
    """Return by attribute, as means over draws of the noise, how well wrong labels are ranked and counted."""
    group, figures = evidence_groups(listings), {}
    for task, own in zip(tasks, chances, strict=True):
        labels = np.array([task.encode(each.labels.get(task.name)) for each in listings])
        known = labels >= 0
        figures[task.name] = _figures(labels[known], own[known].astype(np.float32), group[known])
    return figures


def _figures(labels: Ints, chances: Floats, group: Ints) -> dict[str, Any]:
    found = []
    before = _share(chances, labels, group)
    for draw in range(DRAWS):
        noisy = similar(labels, chances, PLANTED, np.random.default_rng(draw))
        wrong = noisy != labels
        grown = 100 * (_share(chances, noisy, group) - before - wrong.mean())
        found.append({**ranking(suspicion(chances, noisy), wrong), "points_off": grown})
    means = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
    return {"labels": len(labels), "share_before": before, **means}


def _share(chances: Floats, labels: Ints, group: Ints) -> float:
    estimate = estimate_noise(chances, labels, group)
    assert estimate is not None
    return estimate.share


if __name__ == "__main__":
    typer.run(main)
