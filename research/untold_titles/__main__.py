"""The commands: `catalogue`, `bounds`, `readings`, `run`, `status`, `diagnose`, `gradients` and `report`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.device import pick_device
from model.errors import ConfigError
from model.inputs.normalise import TensorTransform
from model.training.initialise import initial_model, initial_network
from research.command_line import run_app
from research.untold_titles.catalogues import write_untold
from research.untold_titles.diagnosis import write_diagnosis
from research.untold_titles.plan import STRENGTHS
from research.untold_titles.readings import read_images, read_titles, tasks_of
from research.untold_titles.report import write_section
from research.untold_titles.study import DIAGNOSIS, READINGS, Lane, write_towers
from research.untold_titles.words import Scope, Strength

ROOT = Path(__file__).parents[2]
FASHION = ROOT / "benchmarks" / "fashion.toml"
CHECKPOINT = ROOT / "weights" / "fashion"
RESULTS = ROOT / "research" / "results" / "untold_titles"
PAGE = ROOT / "docs" / "results.md"
DETAILS = (None, 40, 20, 10, 5)
"""Rows of pixels at which images are read; None: as they are."""
NAMED = ("articleType", "baseColour")
"""The attributes by which the bounds were chosen."""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Table = Annotated[Path, typer.Option("--catalogue", help="TOML file of the catalogue that titles are taken from")]
Results = Annotated[Path, typer.Option(help="folder of the figures, one JSON file per run")]
Runs = Annotated[Path, typer.Option(help="folder of catalogues, towers and runs", show_default=False)]


@app.command()
def catalogue(
    table: Annotated[Path, typer.Argument(help="TOML file of the catalogue", show_default=False)],
    *,
    strength: Annotated[str, typer.Option(help=f"how much titles lose: {', '.join(STRENGTHS)}")],
    out: Annotated[Path, typer.Option(help="folder to write the catalogue into", show_default=False)],
    detail: Annotated[
        int | None, typer.Option(min=1, help="rows of pixels that images keep", show_default="all")
    ] = None,
) -> None:
    """Write a catalogue whose titles have lost the words that tell its labels."""
    if strength not in STRENGTHS:
        raise ConfigError(f"there is no strength {strength!r}; known are {', '.join(STRENGTHS)}")
    print(write_untold(Catalogue.open(table), out, STRENGTHS[strength], detail=detail))


@app.command()
def bounds(
    scope: Annotated[Scope, typer.Argument(help="which words are taken out")],
    bound: Annotated[list[float], typer.Argument(help="bounds to try")],
    *,
    colour: Annotated[float, typer.Option(min=0, max=1, help="share of titles that lose their colour")] = 1.0,
    table: Table = FASHION,
) -> None:
    """Print what a bag of words reads of the validation part, for each bound: bounds are chosen by this."""
    whole = Catalogue.open(table)
    tasks = tasks_of(whole, NAMED)
    for each in bound:
        strength = Strength(scope=scope, bound=each, shares={NAMED[1]: colour})
        read = read_titles(whole, Part.VALIDATION, strength, tasks)
        shown = "  ".join(f"{name} {100 * (value or 0):.1f}" for name, value in read["accuracy"].items())
        print(f"{scope} {each:g}: {shown}  words {read['words']:.2f}", flush=True)


@app.command()
def readings(*, runs: Runs, table: Table = FASHION, results: Results = RESULTS) -> None:
    """Measure what each modality alone reads of the test part, at each strength and each detail."""
    whole = Catalogue.open(table)
    tasks = tasks_of(whole)
    titles = {"told": read_titles(whole, Part.TEST, None, tasks)}
    titles |= {name: read_titles(whole, Part.TEST, each, tasks) for name, each in STRENGTHS.items()}
    towers = str(write_towers(CHECKPOINT, runs / "towers"))
    model = initial_model(None, towers)
    backbone = initial_network(model, tasks, towers).backbone.eval()
    transform = TensorTransform(model.preprocess)
    images = {
        "all" if detail is None else str(detail): read_images(
            whole, Part.TEST, backbone, transform, tasks, detail=detail
        )
        for detail in DETAILS
    }
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"titles": titles, "images": images}, indent=1)
    (results / READINGS).write_text(f"{text}\n", encoding="utf-8")
    print(results / READINGS)


@app.command()
def run(*, runs: Runs, table: Table = FASHION, results: Results = RESULTS, device: str = "auto") -> None:
    """Do what has not been done of the comparison; interrupted at any time, it goes on where it was."""
    _lane(runs, table, results, device).run()


@app.command()
def status(*, runs: Runs, table: Table = FASHION, results: Results = RESULTS) -> None:
    """Print how far the comparison has come."""
    for line in _lane(runs, table, results, "cpu").status():
        print(line)


@app.command()
def diagnose(
    name: Annotated[str, typer.Argument(help="a finished run of CMA-CLIP, as CATALOGUE/RUN", show_default=False)],
    *,
    runs: Runs,
    table: Table = FASHION,
    results: Results = RESULTS,
) -> None:
    """Measure what a finished run's modality weights are worth: against constants, and against the best there are."""
    lane = _lane(runs, table, results, "cpu")
    study, run = lane.named(name)
    worth = {"run": name, "weights": study.weights_worth(run)}
    print(write_diagnosis(results / DIAGNOSIS / f"{name.replace('/', '-')}.json", worth))


@app.command()
def gradients(
    name: Annotated[str, typer.Argument(help="a run, as CATALOGUE/RUN", show_default=False)],
    *,
    runs: Runs,
    interval: Annotated[int, typer.Option(min=1, help="optimiser steps of an interval")] = 50,
    table: Table = FASHION,
    results: Results = RESULTS,
) -> None:
    """Train a run once more, and write how large each layer's gradients are, interval by interval."""
    study, run = _lane(runs, table, results, "cpu").named(name)
    tuning = study.tuning(run, interval=interval)
    with tempfile.TemporaryDirectory() as folder:  # never resumed: what was watched before would be missing
        tuning.run(Path(folder), device="cpu")
    flow = {"run": name, "interval": interval, "layers": tuning.flow.table() if tuning.flow else {}}
    print(write_diagnosis(results / DIAGNOSIS / f"{name.replace('/', '-')}-gradients.json", flow))


@app.command()
def report(*, results: Results = RESULTS, out: Annotated[Path, typer.Option(help="the page")] = PAGE) -> None:
    """Write the section of the results page from the JSON files."""
    print(write_section(results, out))


def _lane(runs: Path, table: Path, results: Path, device: str) -> Lane:
    return Lane(table=table, checkpoint=CHECKPOINT, runs=runs, results=results, device=pick_device(device))


def main() -> None:
    """Run the command line."""
    run_app(app)


if __name__ == "__main__":
    main()
