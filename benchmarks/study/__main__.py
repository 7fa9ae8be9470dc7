"""The study's commands: `run`, `shipped` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.study.cells import write_cells
from benchmarks.study.report import write_report
from benchmarks.study.results import SHIPPED
from benchmarks.study.results import Results as Figures
from benchmarks.study.runs import EPOCHS
from benchmarks.study.shipped import measure_shipped
from benchmarks.study.study import Study, all_names
from model.catalogue import Catalogue
from model.device import pick_device
from model.errors import ModelError

BENCHMARKS = Path(__file__).parents[1]
FASHION = BENCHMARKS / "fashion.toml"
RESULTS = BENCHMARKS / "results" / "study"
PAGE = BENCHMARKS.parent / "docs" / "results.md"

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

CatalogueFile = Annotated[Path, typer.Option(help="the catalogue's TOML file")]
Results = Annotated[Path, typer.Option(help="folder of the figures, one JSON file a run")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]


@app.command()
def run(
    *,
    init: Annotated[Path, typer.Option(help="checkpoint folder whose towers all runs start from", show_default=False)],
    runs: Annotated[Path, typer.Option(help="folder of the runs; interrupted ones go on", show_default=False)],
    only: Annotated[str | None, typer.Option(help="these alone, by name, with commas", show_default="all")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the train part, for each run")] = EPOCHS,
    catalogue: CatalogueFile = FASHION,
    results: Results = RESULTS,
    device: Device = "auto",
) -> None:
    """Train and measure what is not finished yet; runs whose figures are there are left as they are."""
    study = Study(
        catalogue=Catalogue.open(catalogue),
        initial=init,
        runs=runs,
        results=results,
        epochs=epochs,
        device=pick_device(device),
        console=Console(stderr=True),
    )
    study.run(only.split(",") if only else all_names())


@app.command()
def shipped(
    checkpoint: Annotated[Path, typer.Argument(help="a calibrated checkpoint folder", show_default=False)],
    *,
    catalogue: CatalogueFile = FASHION,
    results: Results = RESULTS,
    device: Device = "auto",
) -> None:
    """Measure a checkpoint's confidences and certified thresholds on spoilt listings."""
    cells = measure_shipped(checkpoint, Catalogue.open(catalogue), pick_device(device))
    write_cells(results / SHIPPED, cells)
    print(results / SHIPPED)


@app.command()
def report(*, results: Results = RESULTS, out: Annotated[Path, typer.Option(help="the page to write")] = PAGE) -> None:
    """Write the results page and its plots from the JSON alone, and say what is missing."""
    found = Figures(results)
    for path in write_report(found, out):
        print(path)
    if found.missing:
        print(f"not run yet: {', '.join(found.missing)}", file=sys.stderr)


def main() -> None:
    """Run the command line; a user's mistake is one line, and exit status 2."""
    try:
        app()
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
