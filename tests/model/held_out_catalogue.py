"""A catalogue of coloured squares in memory, and a predictor of their colours: what measuring is tested on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.catalogue.config import CatalogueConfig
from model.catalogue.listings import Catalogue, Listing, ReadReport
from model.catalogue.splits import Part
from model.config import PreprocessConfig
from model.inference.predictions import ListingWarning, ModelInfo, RawOutputs, SituationOutputs
from model.situations import Situation
from model.tasks import Task

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
TASKS = (
    Task(name="colour", labels=tuple(COLOURS)),
    Task(name="season", labels=("summer", "winter")),
)
BROKEN = "broken.png"


@dataclass(frozen=True)
class Squares:
    """One square for each colour, and a file that is not an image."""

    def __contains__(self, name: str) -> bool:
        return name == BROKEN or name in COLOURS

    def read(self, name: str) -> bytes:
        if name == BROKEN:
            return b"not an image"
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), COLOURS[name]).save(buffer, "PNG")
        return buffer.getvalue()


def catalogue(*listings: Listing) -> Catalogue:
    config = CatalogueConfig(
        path=Path("squares.toml"),
        table=Path("squares.csv"),
        id="id",
        title="title",
        group=(),
        images=None,
        image=None,
        attributes=tuple(task.name for task in TASKS),
    )
    return Catalogue(config, listings, ReadReport("squares.csv"), Squares())


def noisy_listings(
    part: Part, n: int, *, title_right: float = 0.97, image_right: float = 0.7, seed: int = 0
) -> list[Listing]:
    """Listings whose title and image each show the labelled colour only that often, independently."""
    generator = np.random.default_rng(seed)

    def shown(label: str, right: float) -> str:
        return label if generator.random() < right else str(generator.choice(list(COLOURS)))

    listings = []
    for number in range(n):
        label = str(generator.choice(list(COLOURS)))
        listings.append(
            Listing(
                id=f"{part}-{number}",
                title=f"{shown(label, title_right)} shirt no {number}",
                image=shown(label, image_right),
                labels={"colour": label},
                group=f"{part}-{number}",
                part=part,
            )
        )
    return listings


@dataclass
class ColourReader:
    """Predicts the colour from the title (surely) and the image (less so); knows nothing of seasons."""

    tasks: tuple[Task, ...] = TASKS
    info: ModelInfo = field(
        default_factory=lambda: ModelInfo(
            name="squares",
            version="0123456789ab",
            backbone="none",
            parameters=0,
            device="cpu",
            dtype="float32",
            image_size=(4, 4),
            target_precisions=(),
        )
    )
    batches: list[int] = field(default_factory=list)
    resizing: PreprocessConfig = field(default=PreprocessConfig(image_size=(4, 4), context_length=8))

    def prepare(
        self, title: str | None, image: Any, *, warnings: Sequence[ListingWarning] = ()
    ) -> tuple[str | None, Any]:
        if title is None and image is None:
            raise ValueError("nothing to read")
        return title, image

    def collate(self, items: Sequence[tuple[str | None, Any]]) -> Sequence[tuple[str | None, Any]]:
        self.batches.append(len(items))
        return items

    def outputs(self, batch: Sequence[tuple[str | None, Any]]) -> dict[Situation, SituationOutputs]:
        found = {}
        for situation in Situation:
            uses_image, uses_title = situation is not Situation.TITLE, situation is not Situation.IMAGE
            rows = [
                row
                for row, (title, image) in enumerate(batch)
                if (image is not None or not uses_image) and (title is not None or not uses_title)
            ]
            chosen = [(batch[row][0] if uses_title else None, batch[row][1] if uses_image else None) for row in rows]
            titles = tuple(title for title, _ in chosen)
            found[situation] = SituationOutputs(np.array(rows, dtype=np.intp), self._raw(chosen), titles)
        return found

    def _raw(self, batch: Sequence[tuple[str | None, Any]]) -> RawOutputs:
        colour = np.zeros((len(batch), 3), np.float32)
        attention = np.zeros((len(batch), 2, 2), np.float32)
        for row, (title, image) in enumerate(batch):
            if title is not None:
                colour[row] += [6.0 * (name in title.split()) for name in COLOURS]
            if image is not None:
                colour[row] += [1.5 * (image.getpixel((0, 0)) == rgb) for rgb in COLOURS.values()]
            weights = np.array([image is not None, title is not None], np.float32)
            attention[row] = weights / weights.sum()
        embeddings = np.stack([colour, colour], axis=1) * (attention.mean(axis=1) > 0)[:, :, None]
        return RawOutputs((colour, np.zeros((len(batch), 2), np.float32)), attention, embeddings.astype(np.float32))
