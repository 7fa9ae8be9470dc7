"""The study's commands: `run`, `trial`, `shipped` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.device import pick_device
from research.command_line import run_app
from research.study.cells import write_cells
from research.study.report import write_report
from research.study.results import SHIPPED, TRIALS
from research.study.results import Results as Figures
from research.study.runs import EPOCHS, Run
from research.study.shipped import measure_shipped
from research.study.study import Study, all_names, repeat_names
from service.commands.training import split_settings

ROOT = Path(__file__).parents[2]
FASHION = ROOT / "benchmarks" / "fashion.toml"
RESULTS = ROOT / "research" / "results" / "study"
PAGE = ROOT / "docs" / "results.md"

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Init = Annotated[Path, typer.Option(help="checkpoint folder whose towers all runs start from", show_default=False)]
Runs = Annotated[Path, typer.Option(help="folder of the runs; interrupted ones are resumed", show_default=False)]
Epochs = Annotated[int, typer.Option(min=1, help="epochs of each run")]
CatalogueFile = Annotated[Path, typer.Option(help="the catalogue's TOML file")]
Results = Annotated[Path, typer.Option(help="folder of the figures, one JSON file per run")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]


@app.command()
def run(
    *,
    init: Init,
    runs: Runs,
    only: Annotated[
        str | None, typer.Option(help="run only these names, separated by commas", show_default="all")
    ] = None,
    epochs: Epochs = EPOCHS,
    catalogue: CatalogueFile = FASHION,
    results: Results = RESULTS,
    device: Device = "auto",
) -> None:
    """Train and measure every run that is not finished; finished ones are left unchanged."""
    study = Study(
        catalogue=Catalogue.open(catalogue),
        initial=init,
        runs=runs,
        results=results,
        epochs=epochs,
        device=pick_device(device),
    )
    study.run(only.split(",") if only else [*all_names(), *repeat_names()])


@app.command()
def trial(
    name: Annotated[str, typer.Argument(help="name of the recipe", show_default=False)],
    *,
    init: Init,
    runs: Runs,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="name=value of the training, or of fusion. as in cma-clip train", show_default=False
        ),
    ] = None,
    epochs: Epochs = EPOCHS,
    catalogue: CatalogueFile = FASHION,
    results: Annotated[Path, typer.Option(help="folder of the figures, one JSON file per recipe")] = RESULTS / TRIALS,
    device: Device = "auto",
) -> None:
    """Train CMA-CLIP with another recipe and measure it on the validation part, on which recipes are chosen."""
    fusion, training = split_settings(set_, epochs=None)
    study = Study(
        catalogue=Catalogue.open(catalogue),
        initial=init,
        runs=runs,
        results=results,
        epochs=epochs,
        measured=Part.VALIDATION,
        device=pick_device(device),
    )
    study.complete(Run(name=name, title=name, fusion=fusion, training=training, corrupted=True))


@app.command()
def shipped(
    checkpoint: Annotated[Path, typer.Argument(help="a calibrated checkpoint folder", show_default=False)],
    *,
    catalogue: CatalogueFile = FASHION,
    results: Results = RESULTS,
    device: Device = "auto",
) -> None:
    """Measure a checkpoint's confidences and certified thresholds on corrupted listings."""
    cells = measure_shipped(checkpoint, Catalogue.open(catalogue), device)
    write_cells(results / SHIPPED, cells)
    print(results / SHIPPED)


@app.command()
def report(*, results: Results = RESULTS, out: Annotated[Path, typer.Option(help="the page to write")] = PAGE) -> None:
    """Write the results page and its plots from the JSON files, and list what has not been run."""
    found = Figures(results)
    for path in write_report(found, out):
        print(path)
    if found.missing:
        print(f"not run yet: {', '.join(found.missing)}", file=sys.stderr)


def main() -> None:
    """Run the command line."""
    run_app(app)


if __name__ == "__main__":
    main()
