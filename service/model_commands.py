"""The commands of the ML engineer and the catalogue team, each a thin skin over its module of `model/`.

Heavy imports stand inside the commands, so that `--help` and `serve` do not pay for them.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from model.errors import ConfigError
from service.settings import load_settings

if TYPE_CHECKING:
    from model.config import ModelConfig

MAX_TABLE_WIDTH = 160

CatalogueFile = Annotated[Path, typer.Argument(help="the catalogue's TOML file", show_default=False)]
RunFolder = Annotated[Path, typer.Option(help="folder of the run; an interrupted one goes on", show_default=False)]
CheckpointFolder = Annotated[Path, typer.Argument(help="checkpoint folder", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Name = Annotated[str, typer.Option(help="the model's name")]
Backbone = Annotated[
    str | None,
    typer.Option(help="cma-small, cma-tiny, or an open_clip ViT such as ViT-B-32", show_default="cma-small, or INIT's"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="another setting, as optimiser.learning_rate=1e-3, modality_dropout=0.3 or fusion.depth=2",
        show_default=False,
    ),
]


def pretrain(
    catalogue: CatalogueFile,
    *,
    out: RunFolder,
    name: Name = "pretrained",
    backbone: Backbone = None,
    init: Annotated[
        Path | None,
        typer.Option(help="keep the image tower of this checkpoint folder, and train a new text tower to match it"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the pairs", show_default=False)] = None,
    device: Device = "auto",
    settings: Overrides = None,
) -> None:
    """Pre-train small towers on a catalogue's own image-title pairs, contrastively.

    For where no pretrained CLIP weights can be had. The result, OUT/checkpoint, is for `train --init`.
    """
    from model.catalogue import Catalogue  # noqa: PLC0415
    from model.config import override, small_pretraining  # noqa: PLC0415
    from model.pretrain import pretrain as run  # noqa: PLC0415

    fusion, own = split_settings(settings, epochs)
    config = override(small_pretraining(), own)
    folder = run(
        Catalogue.open(catalogue),
        out,
        name=name,
        model=_model(backbone, str(init) if init else None, fusion),
        config=config,
        initial=init,
        device=device,
    )
    print(folder)


def train(
    catalogue: CatalogueFile,
    *,
    out: RunFolder,
    name: Name = "cma-clip",
    backbone: Backbone = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="start from a checkpoint folder of ours, an open_clip pretrained tag or a weights file",
            show_default="random weights",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the listings", show_default=False)] = None,
    device: Device = "auto",
    settings: Overrides = None,
) -> None:
    """Train CMA-CLIP on a catalogue. The best checkpoint by validation stands in OUT/checkpoint.

    Calibrate and evaluate it next.
    """
    from model.catalogue import Catalogue  # noqa: PLC0415
    from model.config import clip_training, override, small_training  # noqa: PLC0415
    from model.train import train as run  # noqa: PLC0415

    fusion, own = split_settings(settings, epochs)
    preset = clip_training() if init and not Path(init).is_dir() else small_training()
    folder = run(
        Catalogue.open(catalogue),
        out,
        name=name,
        model=_model(backbone, init, fusion),
        config=override(preset, own),
        initial=init,
        device=device,
    )
    print(folder)


def calibrate(
    checkpoint: CheckpointFolder,
    catalogue: CatalogueFile,
    *,
    target_precision: Annotated[
        list[float] | None, typer.Option(help="each to certify", show_default="0.9, 0.95, 0.99")
    ] = None,
    per_label: Annotated[
        bool, typer.Option("--per-label", help="certify each label by itself, where it has examples enough")
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="keep the promises of all attributes at once, not each by itself")
    ] = False,
    device: Device = "auto",
) -> None:
    """Fit temperatures and certify thresholds, for each situation; writes calibration.json into the checkpoint."""
    from model.calibrate import TARGET_PRECISIONS, calibration_table  # noqa: PLC0415
    from model.calibrate import calibrate as run  # noqa: PLC0415
    from model.catalogue import Catalogue  # noqa: PLC0415
    from model.checkpoint import CALIBRATION, METRICS, write_part  # noqa: PLC0415
    from model.predictor import Predictor  # noqa: PLC0415

    predictor = Predictor.load(checkpoint, device=device)
    calibration = run(
        predictor,
        Catalogue.open(catalogue),
        console=Console(stderr=True),
        target_precisions=tuple(target_precision or TARGET_PRECISIONS),
        per_label=per_label,
        together=together,
    )
    stale = predictor.checkpoint.folder / METRICS
    write_part(predictor.checkpoint, CALIBRATION, calibration.to_json())
    _tables().print(calibration_table(calibration))
    if stale.is_file():
        stale.unlink()
        print(f"{stale} was measured with the old thresholds, and is removed: run `cma-clip evaluate`", file=sys.stderr)


def evaluate(
    checkpoint: CheckpointFolder,
    catalogue: CatalogueFile,
    *,
    plots: Annotated[Path | None, typer.Option(help="folder for the plots", show_default=False)] = None,
    scores: Annotated[
        Path | None, typer.Option(help="save scores of the calibration and test parts (.npz)", show_default=False)
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure a calibrated checkpoint on the test part, in each situation.

    Writes metrics.json and the results of README.md (the model card) into the checkpoint.
    """
    from model.card import update_card  # noqa: PLC0415
    from model.catalogue import Catalogue  # noqa: PLC0415
    from model.checkpoint import METRICS, write_part  # noqa: PLC0415
    from model.evaluate import evaluate as run  # noqa: PLC0415
    from model.evaluate import evaluation_tables, held_out_scores  # noqa: PLC0415
    from model.heldout import save_scores  # noqa: PLC0415
    from model.plots import save_plots  # noqa: PLC0415
    from model.predictor import Predictor  # noqa: PLC0415

    if plots and plots.exists() and not plots.is_dir():
        raise ConfigError(f"{plots} is a file; plots need a folder")
    if scores and not scores.parent.is_dir():
        raise ConfigError(f"there is no folder {scores.parent} for the scores")
    predictor = Predictor.load(checkpoint, device=device)
    calibration = predictor.checkpoint.calibration
    if calibration is None:
        raise ConfigError(f"{checkpoint} is not calibrated yet; run `cma-clip calibrate` on it first")
    console, listings = Console(stderr=True), Catalogue.open(catalogue)
    evaluation = run(predictor, calibration, listings, console=console)
    write_part(predictor.checkpoint, METRICS, evaluation.metrics)
    update_card(predictor.checkpoint, evaluation.metrics)
    for table in evaluation_tables(evaluation.metrics):
        _tables().print(table)
    if plots:
        for path in save_plots(evaluation, plots):
            print(path)
    if scores:
        save_scores(scores, held_out_scores(predictor, evaluation, listings, console=console))


def label(
    catalogue: CatalogueFile,
    *,
    out: Annotated[Path, typer.Option(help="file to write, .csv or .parquet", show_default=False)],
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint folder", show_default=False)] = None,
    target_precision: Annotated[float | None, typer.Option(help="0.90, 0.95, …", show_default=False)] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="only these", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="listings in one forward pass")] = 32,
) -> None:
    """Label a whole catalogue; an interrupted run goes on where it stopped."""
    from model.label import label_catalogue  # noqa: PLC0415
    from model.predictor import Predictor  # noqa: PLC0415

    settings = load_settings(checkpoint=checkpoint, target_precision=target_precision)
    predictor = Predictor.load(settings.checkpoint, device=settings.device, dtype=settings.dtype)
    done = label_catalogue(
        predictor,
        catalogue,
        out,
        target_precision=settings.target_precision,
        batch_size=batch_size,
        attributes=attribute,
    )
    print(done.report, file=sys.stderr)
    print(f"{out}: {done.rows:,} rows, {done.failed:,} of them with an error", file=sys.stderr)


def _tables() -> Console:
    """Where tables go: to a file or a pipe in their full width."""
    console = Console()
    return console if console.is_terminal else Console(width=MAX_TABLE_WIDTH)


def split_settings(texts: list[str] | None, epochs: int | None) -> tuple[dict[str, str], dict[str, str]]:
    """Split `--set` into fusion settings (without their prefix) and the others, `--epochs` among them."""
    fusion: dict[str, str] = {}
    others: dict[str, str] = {"optimiser.epochs": str(epochs)} if epochs else {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value, not {text!r}")
        if name.startswith("fusion."):
            fusion[name.removeprefix("fusion.")] = value
        else:
            others[name] = value
    return fusion, others


def _model(backbone: str | None, init: str | None, fusion: dict[str, str]) -> ModelConfig:
    """The model to train: that of `init` where it is a checkpoint of ours, with fusion settings overridden."""
    from model.config import override  # noqa: PLC0415
    from model.train import initial_model  # noqa: PLC0415

    model = initial_model(backbone, init)
    return dataclasses.replace(model, fusion=override(model.fusion, fusion))
