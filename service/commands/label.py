"""`cma-clip label`: a whole catalogue at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from service.commands.arguments import CatalogueFile
from service.settings import load_settings


def label(
    catalogue: CatalogueFile,
    *,
    out: Annotated[Path, typer.Option(help="file to write, .csv or .parquet", show_default=False)],
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint folder", show_default=False)] = None,
    target_precision: Annotated[float | None, typer.Option(help="0.90, 0.95, …", show_default=False)] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="only these", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="listings in one forward pass")] = 32,
    threads: Annotated[
        int | None, typer.Option(min=1, help="threads that compute", show_default="as many as cores")
    ] = None,
) -> None:
    """Label a whole catalogue; an interrupted run continues where it stopped."""
    from model.inference.label import label as run  # noqa: PLC0415
    from service.commands.image_urls import url_fetcher  # noqa: PLC0415

    settings = load_settings(checkpoint=checkpoint, target_precision=target_precision, threads=threads)
    with url_fetcher(settings) as fetch:
        done = run(
            settings.checkpoint,
            catalogue,
            out,
            target_precision=settings.target_precision,
            batch_size=batch_size,
            attributes=attribute,
            fetch=fetch,
            device=settings.device,
            dtype=settings.dtype,
            threads=settings.threads,
        )
    print(done.report, file=sys.stderr)
    print(f"{out}: {done.rows:,} rows, {done.failed:,} of them with an error", file=sys.stderr)
    if done.rows and done.failed == done.rows:
        print("cma-clip: no listing could be labelled; the column 'error' says why", file=sys.stderr)
        raise typer.Exit(1)
