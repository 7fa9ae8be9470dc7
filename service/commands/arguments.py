"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CatalogueFile = Annotated[Path, typer.Argument(help="the catalogue's TOML file", show_default=False)]

CheckpointFolder = Annotated[Path, typer.Argument(help="checkpoint folder", show_default=False)]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
