"""`cma-clip predict`: one listing, read in this process and drawn on the terminal."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.errors import ConfigError
from service import images
from service.app import load_predictor
from service.errors import ServiceError
from service.schemas import ClassifyReply
from service.settings import Settings

BAR = 10
WIDE = 110
"""Columns of a terminal from which the other candidates are shown too."""


def read_one(settings: Settings, *, image: Path | None, title: str | None, top_k: int) -> ClassifyReply:
    """Read a listing as the service would. Raises `ModelError` where the input or the checkpoint cannot be used."""
    if image is None and not (title or "").strip():
        raise ConfigError("give an image, a --title, or both")
    predictor = load_predictor(settings)
    calibrated = predictor.info.target_precisions
    if calibrated and settings.target_precision not in calibrated:
        raise ConfigError(f"--target-precision must be one of {', '.join(map(str, calibrated))}")
    picture = None if image is None else _open(image, settings, predictor.info.image_size)
    (prediction,) = predictor.predict(predictor.collate([predictor.prepare(title, picture)]))
    readings = {
        task.name: prediction.read(task.name, target_precision=settings.target_precision, top_k=top_k)
        for task in predictor.tasks
    }
    return ClassifyReply.of(image.name if image else None, predictor.info, readings)


def _open(path: Path, settings: Settings, target: tuple[int, int]) -> Image.Image:
    try:
        return images.decode(path.read_bytes(), max_pixels=settings.max_image_pixels, target=target)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ServiceError as error:
        raise ConfigError(f"cannot read {path}: {error.detail}") from None


def draw(reply: ClassifyReply) -> None:
    """Print a table: label, confidence as a bar, verdict, how much image and text weighed; if wide enough, the rest."""
    console = Console()
    table = Table(title=f"{reply.model.name} {reply.model.version}", title_justify="left")
    headings = ["attribute", "label", "confidence", "verdict", "image : text"]
    for heading in [*headings, "otherwise"] if console.width >= WIDE else headings:
        table.add_column(heading, no_wrap=heading != "label")
    for name, attribute in reply.attributes.items():
        colour = "green" if attribute.accepted else "yellow"
        others = ", ".join(f"{other.label} {other.confidence:.0%}" for other in attribute.candidates[1:])
        cells = [
            Text(name),
            Text(attribute.label, "bold" if attribute.accepted else "dim"),
            Text(_bar(attribute.confidence), colour) + f" {attribute.confidence:.1%}",
            Text("accepted" if attribute.accepted else "abstained", colour),
            _balance(attribute.modality_attention.image),
            Text(others, "dim"),
        ]
        table.add_row(*cells[: len(table.columns)])
    console.print(table)


def _bar(share: float) -> str:
    filled = round(share * BAR)
    return "█" * filled + "░" * (BAR - filled)


def _balance(image: float) -> Text:
    """A bar of two parts: what the image weighed, then what the text did."""
    left, percent = round(image * BAR), round(100 * image)
    return Text("█" * left, "cyan") + Text("█" * (BAR - left), "magenta") + f" {percent}:{100 - percent}"
