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

BAR = 20


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
    """Print a table: label, confidence as a bar, verdict, and how much image and text weighed."""
    table = Table(title=f"{reply.model.name} {reply.model.version}", title_justify="left")
    for heading in ("attribute", "label", "confidence", "", "image ◂▸ text", "otherwise"):
        table.add_column(heading)
    for name, attribute in reply.attributes.items():
        verdict = Text("accepted", "green") if attribute.accepted else Text("abstained", "yellow")
        others = ", ".join(f"{other.label} {other.confidence:.0%}" for other in attribute.candidates[1:])
        table.add_row(
            name,
            Text(attribute.label, "bold" if attribute.accepted else "dim"),
            Text(_bar(attribute.confidence), "green" if attribute.accepted else "yellow")
            + f" {attribute.confidence:.1%}",
            verdict,
            _balance(attribute.modality_attention.image),
            Text(others, "dim"),
        )
    Console().print(table)


def _bar(share: float) -> str:
    filled = round(share * BAR)
    return "█" * filled + "░" * (BAR - filled)


def _balance(image: float) -> Text:
    """A bar of two parts: what the image weighed, then what the text did."""
    left = round(image * BAR)
    return Text("█" * left, "cyan") + Text("█" * (BAR - left), "magenta") + f" {image:.0%} / {1 - image:.0%}"
