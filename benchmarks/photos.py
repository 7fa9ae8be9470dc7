"""The same test listings with their photos in other formats: what becomes of labels, and of what is accepted.

    python -m benchmarks.photos --checkpoint weights/fashion --out photos.json

Each listing is asked for with the image alone, and with its title too. Prints a Markdown table; the JSON holds each
attribute's figures.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import FASHION
from benchmarks.bag_of_words import console
from benchmarks.photo_formats import FORMATS, Format
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import CatalogueError, ModelError
from model.inference.predictions import AttributePrediction
from model.inference.predictor import Predictor
from model.inputs.decode import decode_image
from model.progress import progress_bar
from model.situations import Situation

ORIGINAL = "as the data has it"

SITUATIONS = (Situation.IMAGE, Situation.IMAGE_AND_TITLE)

TARGET = 0.95
"""The target precision at which labels count as accepted."""

BATCH = 32

Answers = Sequence[Mapping[str, AttributePrediction]]
"""Of each listing, by attribute."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """An attribute's, or all attributes' together, over the listings that are labelled; shares from 0 to 1."""

    labelled: int
    accuracy: float
    coverage: float
    """Accepted."""
    precision: float | None
    """Right among the accepted; None where nothing is."""
    changed: float
    """Given another label than the original photo is."""


def figures(pairs: Sequence[tuple[str, AttributePrediction, AttributePrediction]]) -> Figures:
    """Measure answers: (true label, answer, answer to the original photo) of each labelled listing, one at least."""
    accepted = [label == answer.label for label, answer, _ in pairs if answer.accepted]
    return Figures(
        labelled=len(pairs),
        accuracy=_share([label == answer.label for label, answer, _ in pairs]),
        coverage=len(accepted) / len(pairs),
        precision=_share(accepted) if accepted else None,
        changed=_share([answer.label != original.label for _, answer, original in pairs]),
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def measure(listings: Sequence[Listing], answers: Answers, originals: Answers) -> dict[str, Figures]:
    """Return each attribute's figures, and those of all of them under `all`, in which each label counts once."""
    pairs: dict[str, list[tuple[str, AttributePrediction, AttributePrediction]]] = {}
    for listing, answer, original in zip(listings, answers, originals, strict=True):
        for name, predicted in answer.items():
            if label := listing.labels.get(name):
                pairs.setdefault(name, []).append((label, predicted, original[name]))
    pairs["all"] = [pair for each in pairs.values() for pair in each]
    return {name: figures(each) for name, each in pairs.items()}


def draw_listings(catalogue: Catalogue, number: int) -> list[Listing]:
    """Return test listings with image and title, drawn by a hash of their ids: the same ones each time."""
    listings = [each for each in catalogue.part(Part.TEST) if each.image is not None and each.title is not None]
    if not listings:
        raise CatalogueError("the test part holds no listing with both a title and an image")
    return sorted(listings, key=lambda each: hashlib.sha256(f"photos/{each.id}".encode()).digest())[:number]


def photo(catalogue: Catalogue, listing: Listing, convert: Format | None) -> bytes:
    """Return a listing's image file, as it is or converted; the same one each time."""
    assert listing.image is not None
    data = catalogue.image_bytes(listing.image)
    if convert is None:
        return data
    return convert(decode_image(data).image, random.Random(listing.id))  # noqa: S311 - grounds, no secret


def run(predictor: Predictor, catalogue: Catalogue, listings: Sequence[Listing]) -> dict[str, Any]:
    """Measure all formats: `{format: {situation: {attribute: figures}}}`."""
    originals: dict[Situation, Answers] = {}
    found: dict[str, Any] = {}
    with progress_bar(console) as bar:
        for name, convert in bar.track({ORIGINAL: None, **FORMATS}.items(), description="formats"):
            photos = [photo(catalogue, listing, convert) for listing in listings]
            found[name] = {}
            for situation in SITUATIONS:
                titles = [each.title if situation is Situation.IMAGE_AND_TITLE else None for each in listings]
                pairs = zip(titles, photos, strict=True)
                answers = list(predictor.classify(pairs, target_precision=TARGET, top_k=1, batch_size=BATCH))
                measured = measure(listings, answers, originals.setdefault(situation, answers))
                found[name][str(situation)] = {attribute: asdict(each) for attribute, each in measured.items()}
    return found


def table(found: Mapping[str, Any], attribute: str) -> str:
    """Return a Markdown table of what `run` found: one attribute's accuracy, and what is accepted of all of them."""
    headings = [
        f"{heading} ({which})"
        for which in ("image", "both")
        for heading in (f"{attribute} right", "coverage", "precision", "labels changed")
    ]
    lines = ["| photo | " + " | ".join(headings) + " |", "| --- |" + " ---: |" * len(headings)]
    for name, situations in found.items():
        cells = [name]
        for measured in situations.values():
            one, every = measured[attribute], measured["all"]
            cells += map(_percent, (one["accuracy"], every["coverage"], every["precision"], every["changed"]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def main(
    checkpoint: Annotated[Path, typer.Option(help="Folder of the checkpoint.")] = Path("weights/fashion"),
    catalogue: Annotated[Path, typer.Option(help="The TOML file that describes the catalogue.")] = FASHION,
    out: Annotated[Path | None, typer.Option(help="Write all figures as JSON to this file.")] = None,
    listings: Annotated[int, typer.Option(min=1, help="Test listings, drawn at random.")] = 500,
    attribute: Annotated[str, typer.Option(help="The attribute of the table.")] = "articleType",
) -> None:
    """Measure a checkpoint on other formats of the same photos."""
    try:
        opened = Catalogue.open(catalogue)
        predictor = Predictor.load(checkpoint)
        if attribute not in [task.name for task in predictor.tasks]:
            raise CatalogueError(f"the checkpoint has no attribute {attribute}")
        chosen = draw_listings(opened, listings)
        found = run(predictor, opened, chosen)
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(2) from None
    print(table(found, attribute))
    if out is not None:
        info = predictor.info
        document = {
            "model": {"name": info.name, "version": info.version, "calibration": info.calibration},
            "listings": len(chosen),
            "target_precision": TARGET,
            "formats": _rounded(found),
        }
        text = json.dumps(document, indent=1, ensure_ascii=False)
        text = re.sub(r"\{[^{}]*\}", lambda inner: " ".join(inner[0].split()), text)  # an attribute's figures on a line
        out.write_text(text + "\n", encoding="utf-8")


def _rounded(found: Any) -> Any:
    """Return nested figures with four decimals."""
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    return round(found, 4) if isinstance(found, float) else found


if __name__ == "__main__":
    typer.run(main)
