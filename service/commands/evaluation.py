"""`cma-clip calibrate`, `cma-clip evaluate` and `cma-clip compile`, each running its module of `model/evaluation/`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from model.errors import ConfigError
from service.commands.arguments import CatalogueFile, CheckpointFolder, CorrectionsFile, Device, MeasuredEngine

if TYPE_CHECKING:
    from model.catalogue.listings import Catalogue

MAX_TABLE_WIDTH = 160


def calibrate(
    checkpoint: CheckpointFolder,
    catalogue: Annotated[
        Path | None,
        typer.Argument(help="the catalogue's TOML file; with --reviews the one it was trained on", show_default=False),
    ] = None,
    *,
    reviews: Annotated[
        str | None,
        typer.Option(help="certify on what people judged in this store, a database's URL", show_default=False),
    ] = None,
    target_precision: Annotated[
        list[float] | None, typer.Option(help="each to certify", show_default="0.9, 0.95, 0.99")
    ] = None,
    per_label: Annotated[
        bool, typer.Option("--per-label", help="certify each label by itself, where it has enough examples")
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="keep the promises of all attributes at once, not each by itself")
    ] = False,
    scope_level: Annotated[
        float, typer.Option(help="share of listings like the catalogue's that may be taken for unfamiliar ones")
    ] = 0.01,
    corrections: CorrectionsFile = None,
    device: Device = "auto",
    engine: MeasuredEngine = "torch",
) -> None:
    """Fit the gate and temperatures and certify thresholds, for each situation.

    Writes scope.safetensors and calibration.json into the checkpoint. With --reviews the temperatures stay, and
    listings that CATALOGUE trains on are left out.
    """
    from model.evaluation.calibrate import calibrate as run  # noqa: PLC0415
    from model.evaluation.calibrate import calibration_table  # noqa: PLC0415
    from model.trust.certificates import TARGET_PRECISIONS  # noqa: PLC0415

    targets = tuple(target_precision or TARGET_PRECISIONS)
    with _calibrated_on(checkpoint, catalogue, corrections=corrections, store=reviews, targets=targets) as listings:
        calibration = run(
            checkpoint,
            listings,
            target_precisions=targets,
            per_label=per_label,
            together=together,
            scope_level=scope_level,
            keep_temperatures=reviews is not None,
            device=device,
            engine=engine,
        )
    tables_console().print(calibration_table(calibration))


@contextmanager
def _calibrated_on(
    checkpoint: Path, catalogue: Path | None, *, corrections: Path | None, store: str | None, targets: Sequence[float]
) -> Iterator[Catalogue]:
    """Open the catalogue, or the reviews of a store, and say beforehand what these can certify."""
    if store is None:
        if catalogue is None:
            raise ConfigError("name the catalogue's TOML file, or a store with --reviews")
        yield open_corrected(catalogue, corrections)
        return
    if corrections:
        raise ConfigError("--corrections are of a catalogue, and --reviews certify on listings that were sent")
    from model.catalogue.listings import Catalogue  # noqa: PLC0415
    from model.checkpoint.folder import load_checkpoint  # noqa: PLC0415
    from model.evaluation.reviewed import prospects  # noqa: PLC0415
    from service.commands.reviews import opened, reviewed  # noqa: PLC0415

    tasks = load_checkpoint(checkpoint).tasks
    with opened(store) as records:
        trained_on = Catalogue.open(catalogue) if catalogue else None
        found = reviewed(records, [task.name for task in tasks], trained_on)
        print(found.report, file=sys.stderr)
        tables_console().print(prospects(found, tasks, targets))
        yield found


def evaluate(
    checkpoint: CheckpointFolder,
    catalogue: CatalogueFile,
    *,
    plots: Annotated[Path | None, typer.Option(help="folder for the plots", show_default=False)] = None,
    scores: Annotated[
        Path | None, typer.Option(help="save scores of the calibration and test parts (.npz)", show_default=False)
    ] = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="also how answers change when listings change unnoticeably")
    ] = False,
    stability_listings: Annotated[int, typer.Option(min=1, help="test listings to change for --stability")] = 1_000,
    corrections: CorrectionsFile = None,
    device: Device = "auto",
    engine: MeasuredEngine = "torch",
) -> None:
    """Measure a calibrated checkpoint on the test part, in each situation.

    Writes metrics.json and the results of README.md (the model card) into the checkpoint.
    """
    from model.evaluation.evaluate import evaluate as run  # noqa: PLC0415
    from model.evaluation.evaluate import evaluation_tables  # noqa: PLC0415
    from model.evaluation.plots import save_plots  # noqa: PLC0415

    if plots and plots.exists() and not plots.is_dir():
        raise ConfigError(f"{plots} is a file; plots need a folder")
    if scores and not scores.parent.is_dir():
        raise ConfigError(f"there is no folder {scores.parent} for the scores")
    evaluation = run(
        checkpoint,
        open_corrected(catalogue, corrections),
        scores_file=scores,
        stability=stability_listings if stability else 0,
        device=device,
        engine=engine,
    )
    for table in evaluation_tables(evaluation.metrics):
        tables_console().print(table)
    if plots:
        for path in save_plots(evaluation, plots):
            print(path)


def compile(
    checkpoint: CheckpointFolder,
    catalogue: CatalogueFile,
    *,
    engine: Annotated[str, typer.Option(help="openvino-int8, openvino-bf16 or openvino-f32")] = "openvino-int8",
    corrections: CorrectionsFile = None,
) -> None:
    """Compile a calibrated checkpoint for CPUs: engines/NAME, with certificates and measurements of its own.

    Prints how its labels, verdicts and confidences differ from PyTorch's on the validation part.
    """
    from model.evaluation.calibrate import calibration_table  # noqa: PLC0415
    from model.evaluation.compile import compile_engine  # noqa: PLC0415
    from model.evaluation.differences import differences_table  # noqa: PLC0415

    compiled = compile_engine(checkpoint, open_corrected(catalogue, corrections), engine=engine)
    tables_console().print(differences_table(compiled.differences))
    tables_console().print(calibration_table(compiled.calibration))
    print(compiled.folder)


def open_corrected(catalogue: Path, corrections: Path | None) -> Catalogue:
    """Return the catalogue, with the labels that people have corrected; says what they have changed."""
    from model.catalogue.corrections import correct  # noqa: PLC0415
    from model.catalogue.listings import Catalogue  # noqa: PLC0415

    found = correct(Catalogue.open(catalogue), corrections)
    if found.corrections:
        print(found.corrections, file=sys.stderr)
    return found


def tables_console() -> Console:
    """Return where tables go: to a file or a pipe in their full width."""
    console = Console()
    return console if console.is_terminal else Console(width=MAX_TABLE_WIDTH)
