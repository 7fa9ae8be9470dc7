"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CatalogueFile = Annotated[Path, typer.Argument(help="the catalogue's TOML file", show_default=False)]

CheckpointFolder = Annotated[Path, typer.Argument(help="checkpoint folder", show_default=False)]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]

Attributes = Annotated[
    list[str] | None,
    typer.Option(
        "--attributes",
        "--attribute",
        help="only these, with commas between them, or again for each",
        show_default="all",
    ),
]


def split_names(given: list[str] | None) -> list[str] | None:
    """Return the names of `--attributes gender,season --attributes usage`, each once; None where none is given."""
    if not given:
        return None
    names = [name.strip() for text in given for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))
