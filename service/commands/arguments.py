"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CatalogueFile = Annotated[Path, typer.Argument(help="the catalogue's TOML file", show_default=False)]

CheckpointFolder = Annotated[Path, typer.Argument(help="checkpoint folder", show_default=False)]

EngineSetting = Annotated[
    str | None, typer.Option(help="auto, torch, openvino-f32, openvino-bf16 or openvino-int8", show_default=False)
]

MeasuredEngine = Annotated[str, typer.Option(help="torch, or one of the checkpoint's engines")]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]

CorrectionsFile = Annotated[
    Path | None,
    typer.Option("--corrections", help="labels that people have judged (docs/noise.md)", show_default=False),
]

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
