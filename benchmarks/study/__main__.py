"""The study's commands: `run`, `shipped` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.study.runs import EPOCHS
from benchmarks.study.study import Study, all_names
from model.catalogue import Catalogue
from model.device import pick_device
from model.errors import ModelError

BENCHMARKS = Path(__file__).parents[1]
FASHION = BENCHMARKS / "fashion.toml"
RESULTS = BENCHMARKS / "results" / "study"

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


def main() -> None:
    """Run the command line; a user's mistake is one line, and exit status 2."""
    try:
        app()
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
