"""`cma-clip check`: what is in a catalogue, on one page, before anything is trained on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from model.errors import ConfigError
from model.progress import progress_bar
from service.commands.arguments import CatalogueFile

if TYPE_CHECKING:
    from model.catalogue.check import CatalogueCheck
    from model.catalogue.listings import Catalogue
    from model.training.advice import Advice

WARNINGS_SHOWN = 5
"""Warnings that `train` repeats before it starts."""


def check(
    catalogue: CatalogueFile,
    *,
    html: Annotated[Path | None, typer.Option(help="write the page to this file, too", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the facts as JSON instead")] = False,
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="time a few training steps, to say how long training takes here")
    ] = True,
) -> None:
    """Read a catalogue as training would, and say what is in it and what to mend first.

    Exits with 1 where training would refuse the catalogue.
    """
    from model.catalogue.check import check_catalogue  # noqa: PLC0415
    from model.catalogue.config import CatalogueConfig  # noqa: PLC0415
    from model.catalogue.tables import estimate_rows  # noqa: PLC0415
    from service.commands import check_page  # noqa: PLC0415

    if html is not None and not html.parent.is_dir():
        raise ConfigError(f"there is no folder {html.parent} for the page")
    rows = estimate_rows(CatalogueConfig.load(catalogue).table)
    with progress_bar(Console(stderr=True), unit="rows") as bar:
        step = bar.add_task("reading", total=rows)
        found = check_catalogue(catalogue, advance=lambda read: bar.advance(step, read))
    advice = _advice(found, timed=timed)
    if as_json:
        print(json.dumps(check_page.as_json(found, advice), ensure_ascii=False, indent=2))
    else:
        check_page.draw(found, advice)
    if html is not None:
        _write(html, check_page.as_html(found, advice))
        print(html, file=sys.stderr)
    if found.errors:
        raise typer.Exit(1)


def _advice(found: CatalogueCheck, *, timed: bool) -> Advice | None:
    try:
        from model.training.advice import advise  # noqa: PLC0415
    except ModuleNotFoundError:  # without the packages that training needs there is nothing to time
        return None
    return advise(found, timed=timed)


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def print_warnings(catalogue: Catalogue, toml: Path) -> None:
    """Print what a check of a catalogue that was read warns of, in a few lines; nothing where it doesn't."""
    from model.catalogue.check import check_listings  # noqa: PLC0415

    warnings = check_listings(catalogue).warnings
    for warning in warnings[:WARNINGS_SHOWN]:
        print(f"warning: {warning.text}", file=sys.stderr)
    if warnings:
        further = f"{len(warnings) - WARNINGS_SHOWN} more, and " if len(warnings) > WARNINGS_SHOWN else ""
        print(f"{further}what to do: cma-clip check {toml}", file=sys.stderr)
