"""`python -m research.noise CATALOGUE`: runs what is not measured yet, cell by cell, and writes one JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from scipy.stats import t as student_t

from model.catalogue.listings import Catalogue
from research.noise.cells import SERVED, Cell, Study, churn_between
from research.noise.features import image_features, no_images
from research.noise.folds import audit_table
from research.noise.proxy import Remedy

ROOT = Path(__file__).parents[2]
FASHION = ROOT / "benchmarks" / "fashion.toml"
RESULTS = ROOT / "research" / "results" / "noise.json"

RUNS = Path("runs/noise")

RATES = (0.05, 0.1, 0.2, 0.4)
KINDS = ("similar", "uniform", "annotator", "listing")

REMEDIES: Mapping[str, Remedy] = {
    "base": Remedy(),
    "rewritten": Remedy(rewritten=0.5),
    "consistency": Remedy(rewritten=0.5, consistency=1.0),
    "teacher": Remedy(teacher=0.5),
    "rewritten, teacher": Remedy(rewritten=0.5, teacher=0.5),
    "no averaging": Remedy(averaged=False),
    "no smoothing": Remedy(smoothing=0.0),
    "smoothing 0.2": Remedy(smoothing=0.2),
    "neighbours": Remedy(neighbours=0.3),
    "gce": Remedy(gce=0.5),
    "elr": Remedy(elr=2.0),
    "co-teaching": Remedy(coteaching=True),
    "audit, drop": Remedy(audit="drop"),
    "audit, relabel": Remedy(audit="relabel"),
}

PRIMARY = ("base", "rewritten", "teacher", "rewritten, teacher")
"""Remedies with five seeds; all others have two, and are called exploratory."""


CLEAN = ("", 0.0)
NOISES = (CLEAN, ("similar", 0.2))
"""Remedies are compared without noise and with much."""


def cells() -> Iterator[Cell]:
    """Yield what is trained, what matters most first; a served network comes before its pupils. Some come twice."""
    grid = (CLEAN, *((kind, rate) for kind in KINDS for rate in RATES))
    yield from _each((SERVED, 0, 1), ("base",), NOISES)
    yield from _each((0, 1), PRIMARY, NOISES)
    yield from _each((0,), ("base",), grid)
    yield from _each((0, 1), tuple(REMEDIES), NOISES)
    yield from _each((1,), ("base",), grid)
    yield from _each((2, 3, 4), PRIMARY, NOISES)


def _each(seeds: Sequence[int], remedies: Sequence[str], noises: Sequence[tuple[str, float]]) -> Iterator[Cell]:
    for seed in seeds:
        for remedy in remedies:
            for kind, rate in noises:
                yield Cell(kind=kind, rate=rate, remedy=remedy, seed=seed)


def main(
    catalogue: Annotated[Path, typer.Argument(help="the catalogue's TOML file")] = FASHION,
    *,
    runs: Annotated[Path, typer.Option(help="folder of what is measured; interrupted, it goes on")] = Path(
        "runs/noise"
    ),
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = RESULTS,
    titles: Annotated[bool, typer.Option("--titles", help="leave images out, and a tenth of the time")] = False,
    most: Annotated[int | None, typer.Option(help="train so many cells at most", show_default="all")] = None,
) -> None:
    """Measure what wrong labels do, and what helps."""
    torch.set_num_threads(1)
    console, shop = Console(stderr=True), Catalogue.open(catalogue)
    images = no_images(shop) if titles else image_features(shop, runs, console)
    study = Study(shop, images, runs)
    done: dict[Cell, dict[str, Any]] = {}
    for cell in dict.fromkeys(cells()):
        if most is not None and len(done) >= most:
            break
        done[cell] = study.run(cell, REMEDIES[cell.remedy])
        console.print(f"{len(done)} {cell.name}: {_line(done[cell])}", highlight=False)
        if len(done) % 10 == 0:
            out.write_text(json.dumps(summary(study, done, shop), indent=1) + "\n")
    found = summary(study, done, shop)
    if most is None:
        found["audit"] = audit_table(shop, images, runs)
    out.write_text(json.dumps(found, indent=1) + "\n")


def _line(figures: Mapping[str, Any]) -> str:
    flips = figures["flips"]["image_and_title/titles"]
    said = {"accuracy": figures["accuracy"], "coverage": figures["coverage"], "title flips": flips}
    means = "  ".join(f"{name} {100 * np.mean(list(each.values())):.2f}" for name, each in said.items())
    return f"{means}  ({figures['cpu_seconds']:.0f} s)"


def summary(study: Study, done: Mapping[Cell, Mapping[str, Any]], catalogue: Catalogue) -> dict[str, Any]:
    """Return means and intervals over seeds, and churn between them, by noise and remedy."""
    groups: dict[tuple[str, float, str], list[Cell]] = {}
    for cell in done:
        if cell.seed != SERVED:
            groups.setdefault((cell.kind, cell.rate, cell.remedy), []).append(cell)
    return {
        "data": catalogue.config.path.stem,
        "training_listings": len(study.training),
        "rows": [_row(study, done, key, of) for key, of in groups.items()],
    }


def _row(
    study: Study, done: Mapping[Cell, Mapping[str, Any]], key: tuple[str, float, str], of: Sequence[Cell]
) -> dict[str, Any]:
    kind, rate, remedy = key
    served = Cell(kind=kind, rate=rate, remedy="base", seed=SERVED)
    row: dict[str, Any] = {"kind": kind, "rate": rate, "remedy": remedy, "seeds": len(of)}
    for name in ("accuracy", "coverage", "precision"):
        row[name] = {task.name: over_seeds([done[cell][name][task.name] for cell in of]) for task in study.tasks}
    row["flips"] = {
        changes: {
            task.name: over_seeds([done[cell]["flips"][changes][task.name] for cell in of]) for task in study.tasks
        }
        for changes in done[of[0]]["flips"]
    }
    if len(of) > 1:
        row["churn"] = churn_between(study.folder, of, study.tasks)
    if served in done:
        each = [churn_between(study.folder, [served, cell], study.tasks)["labels"] for cell in of]
        row["churn_from_served"] = {task.name: over_seeds([one[task.name] for one in each]) for task in study.tasks}
    return row


def over_seeds(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return the mean and, from three seeds on, half the width of its 95 % interval; None where a value is missing."""
    if any(value is None for value in values):
        return None
    known = np.array(values, dtype=np.float64)
    found = {"mean": float(known.mean())}
    if len(known) >= 3:
        found["half"] = float(student_t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return found


if __name__ == "__main__":
    typer.run(main)
