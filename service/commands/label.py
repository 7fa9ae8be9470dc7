"""`cma-clip label`: a whole catalogue at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import ConfigError
from service.commands.arguments import Attributes, CatalogueFile, EngineSetting, split_names
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model.inference.bulk import Labelling, LabellingInterrupted


class PartFormat(StrEnum):
    """What parts in a folder can be."""

    CSV = "csv"
    PARQUET = "parquet"


def label(
    catalogue: CatalogueFile,
    *,
    out: Annotated[
        str,
        typer.Option(
            help="file to write, .csv or .parquet, or a folder for parts (ends in /), here or in an object store (s3://…)",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint folder", show_default=False)] = None,
    target_precision: Annotated[float | None, typer.Option(help="0.90, 0.95, …", show_default=False)] = None,
    attributes: Attributes = None,
    engine: EngineSetting = None,
    batch_size: Annotated[int, typer.Option(min=1, help="listings in one forward pass")] = 32,
    allow_missing_images: Annotated[
        bool, typer.Option("--allow-missing-images", help="label by the title alone where an image is not there")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="threads that compute; with --ray, of each worker", show_default="as many as cores"),
    ] = None,
    part_format: Annotated[
        PartFormat | None, typer.Option("--format", help="of the parts in a folder", show_default="parquet")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="address of a Ray cluster to run on: auto, HOST:PORT, or local to start one here"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="with --ray: actors that predict", show_default="GPUs, or half the CPUs")
    ] = None,
    decoders: Annotated[
        int | None, typer.Option(min=1, help="with --ray: actors that decode images", show_default="the other CPUs")
    ] = None,
) -> None:
    """Label a whole catalogue; an interrupted run continues where it stopped."""
    from model.inference.bulk import LabellingInterrupted  # noqa: PLC0415

    settings = load_settings(checkpoint=checkpoint, target_precision=target_precision, engine=engine, threads=threads)
    if ray is None and (workers or decoders):
        raise ConfigError("--workers and --decoders are for --ray; on one machine --threads says how many compute")
    options: dict[str, Any] = {
        "target_precision": settings.target_precision,
        "batch_size": batch_size,
        "attributes": split_names(attributes),
        "allow_missing_images": allow_missing_images,
        "part_format": part_format,
        "device": settings.device,
        "dtype": settings.dtype,
        "engine": settings.engine,
    }
    try:
        if ray is None:
            done = _label_here(settings, catalogue, out, options)
        else:
            done = _label_on_cluster(settings, catalogue, out, options, address=ray, workers=workers, decoders=decoders)
    except LabellingInterrupted as stopped:
        print(f"cma-clip: interrupted: {stopped}; {_how_to_go_on(stopped)}", file=sys.stderr)
        raise typer.Exit(130) from None  # as a shell has it for Ctrl-C
    _show(done, out)


def _label_here(settings: Settings, catalogue: Path, out: str, options: Mapping[str, Any]) -> Labelling:
    from model.inference.label import label as run  # noqa: PLC0415
    from service.commands.image_urls import url_fetcher  # noqa: PLC0415

    with url_fetcher(settings) as fetch:
        return run(settings.checkpoint, catalogue, out, fetch=fetch, threads=settings.threads, **options)


def _label_on_cluster(
    settings: Settings,
    catalogue: Path,
    out: str,
    options: Mapping[str, Any],
    *,
    address: str,
    workers: int | None,
    decoders: int | None,
) -> Labelling:
    from model.inference.cluster import Cluster, label_on_cluster  # noqa: PLC0415
    from service.commands.image_urls import url_fetcher  # noqa: PLC0415

    cluster = Cluster(address=address, workers=workers, decoders=decoders, threads=settings.threads or 1)
    fetching = partial(url_fetcher, settings)
    return label_on_cluster(settings.checkpoint, catalogue, out, cluster, open_fetch=fetching, **options)


def _show(done: Labelling, out: str) -> None:
    """Print what became of the rows; exits with 1 where none could be labelled."""
    print(done.report, file=sys.stderr)
    if warning := done.report.images.warning:
        print(f"cma-clip: warning: {warning}", file=sys.stderr)
    print(f"{out}: {done.rows:,} rows, {done.failed:,} of them with an error", file=sys.stderr)
    if done.rows and done.failed == done.rows:
        images, why = done.report.images, "the column 'error' says why"
        if images.named and not images.found:
            why = f"not one image is there, such as {images.missing[0]}; --allow-missing-images labels by titles alone"
        print(f"cma-clip: no listing could be labelled: {why}", file=sys.stderr)
        raise typer.Exit(1)


def _how_to_go_on(stopped: LabellingInterrupted) -> str:
    if not stopped.rows:
        return "nothing is kept"
    return f"they are kept in {stopped.place}, and the same command goes on from there"
