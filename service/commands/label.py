"""`cma-clip label`: a whole catalogue at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.arguments import Attributes, CatalogueFile, split_names
from service.settings import load_settings

if TYPE_CHECKING:
    from model.inference.label import LabellingInterrupted


def label(
    catalogue: CatalogueFile,
    *,
    out: Annotated[Path, typer.Option(help="file to write, .csv or .parquet", show_default=False)],
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint folder", show_default=False)] = None,
    target_precision: Annotated[float | None, typer.Option(help="0.90, 0.95, …", show_default=False)] = None,
    attributes: Attributes = None,
    batch_size: Annotated[int, typer.Option(min=1, help="listings in one forward pass")] = 32,
    allow_missing_images: Annotated[
        bool, typer.Option("--allow-missing-images", help="label by the title alone where an image is not there")
    ] = False,
) -> None:
    """Label a whole catalogue; an interrupted run continues where it stopped."""
    from model.inference.label import LabellingInterrupted  # noqa: PLC0415
    from model.inference.label import label as run  # noqa: PLC0415
    from service.commands.image_urls import url_fetcher  # noqa: PLC0415

    settings = load_settings(checkpoint=checkpoint, target_precision=target_precision)
    try:
        with url_fetcher(settings) as fetch:
            done = run(
                settings.checkpoint,
                catalogue,
                out,
                target_precision=settings.target_precision,
                batch_size=batch_size,
                attributes=split_names(attributes),
                fetch=fetch,
                allow_missing_images=allow_missing_images,
                device=settings.device,
                dtype=settings.dtype,
            )
    except LabellingInterrupted as stopped:
        print(f"cma-clip: interrupted: {stopped}; {_how_to_go_on(stopped)}", file=sys.stderr)
        raise typer.Exit(130) from None  # as a shell has it for Ctrl-C
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
    return f"they are kept in {stopped.folder}, and the same command goes on from there"
