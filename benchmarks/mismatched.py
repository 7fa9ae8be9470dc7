"""What is accepted of listings whose title belongs to another product, or says nothing that the model can read.

    python -m benchmarks.mismatched --checkpoint weights/fashion --out benchmarks/results/mismatched.json

Every image of a sample of the test part is sent beside its own title, beside that of a listing of another article
type, beside that of another listing of the same type, and beside made-up titles: in German, which the gate was fitted
on, in languages that it was not fitted on, and placeholders or codes. An accepted label counts as right for one of the
owners where it is the label of the image's listing or of the title's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import FASHION
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ModelError
from model.inference.predictions import AttributePrediction, Prediction
from model.inference.predictor import Predictor
from model.inference.stream import prepare_listing, stream
from model.inputs import outlier_titles
from model.situations import ListingWarning

console = Console()

PRODUCT_TYPE = "articleType"

TARGET = 0.95

LEVELS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Conflict levels of the curve: the checkpoint's own is 0.01."""

OTHER_LANGUAGES = ("French", "Italian", "Turkish", "Japanese", "Arabic")
CODES = ("keyboard", "invented words", "digests", "punctuation", "other placeholders")

Pair = tuple[Listing, str, Listing | None]
"""A listing whose image is sent, a title, and the listing that the title is of, if any."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was accepted at a target of 0.95; shares of the listings, or of the accepted labels."""

    listings: int
    nothing_accepted: float
    """Share of listings."""
    title_ignored: float
    """Share of listings that were answered from the image alone, since the title is unfamiliar."""
    disagree: Mapping[str, float]
    """By conflict level: the share of listings that would be refused since image and title contradict each other."""
    attributes: Mapping[str, Mapping[str, float | None]]
    """Per attribute: `accepted`, the share of listings; and of those how many are right for the image's listing
    (`image`), the title's (`title`), or `either`: None where nothing is accepted."""


def pairs(listings: Sequence[Listing], *, same_type: bool, seed: int) -> list[Pair]:
    """Pair the image of each listing with the title of another, of the same product type or of another one."""
    generator = np.random.default_rng(seed)
    found: list[Pair] = []
    for listing in listings:
        others = [
            other
            for other in listings
            if (other.labels.get(PRODUCT_TYPE) == listing.labels.get(PRODUCT_TYPE)) is same_type
            and other.group != listing.group
            and other.title != listing.title
        ]
        if others:
            owner = others[int(generator.integers(len(others)))]
            found.append((listing, owner.title or "", owner))
    return found


def made_up(listings: Sequence[Listing], makers: Sequence[Callable[[random.Random], str]], *, seed: int) -> list[Pair]:
    """Pair the image of each listing with a made-up title; the makers take turns."""
    rng = random.Random(seed)  # noqa: S311 - a sample, no secret
    return [(listing, makers[row % len(makers)](rng), None) for row, listing in enumerate(listings)]


def figures(predictor: Predictor, catalogue: Catalogue, given: Sequence[Pair]) -> Figures:
    """Answer the image of each pair beside its title."""

    def prepare(pair: Pair) -> Any:
        image, title, _ = pair
        return prepare_listing(predictor, catalogue.images, title, image.image)

    def compute(prepared: list[Any]) -> Sequence[Prediction]:
        return predictor.predict(predictor.collate(prepared))

    rows = [row for batch in stream(given, prepare, compute, batch_size=32) for row in batch.output or ()]
    names = [task.name for task in predictor.tasks]
    answers = {name: [row.attribute(name, target_precision=TARGET, top_k=1) for row in rows] for name in names}
    accepted = np.array([[each.accepted for each in answers[name]] for name in names])
    agreement = np.array([1.0 if row.scope.agreement is None else row.scope.agreement for row in rows])
    return Figures(
        listings=len(given),
        nothing_accepted=float((~accepted.any(axis=0)).mean()),
        title_ignored=float(np.mean([ListingWarning.TITLE_IGNORED in row.warnings for row in rows])),
        disagree={f"{level:g}": float((agreement < level).mean()) for level in LEVELS},
        attributes={name: _attribute(name, answers[name], given) for name in names},
    )


def _attribute(name: str, answers: Sequence[AttributePrediction], given: Sequence[Pair]) -> dict[str, float | None]:
    accepted = np.array([answer.accepted for answer in answers])
    of_image, of_title = (
        np.array(
            [
                owner is not None and answer.label == owner.labels.get(name)
                for answer, owner in zip(answers, owners, strict=True)
            ]
        )
        for owners in ([image for image, _, _ in given], [owner for _, _, owner in given])
    )

    def share(right: NDArray[np.bool_]) -> float | None:
        return float(right[accepted].mean()) if accepted.any() else None

    return {
        "accepted": float(accepted.mean()),
        "image": share(of_image),
        "title": share(of_title),
        "either": share(of_image | of_title),
    }


def table(found: Mapping[str, Figures]) -> Table:
    """Return the figures for the terminal: what is accepted, and of that the share right for either owner, in %."""
    shown = Table(title="accepted, and of that right for either owner, in %")
    shown.add_column("title of")
    shown.add_column("nothing accepted", justify="right")
    names = list(next(iter(found.values())).attributes)
    for name in names:
        shown.add_column(name, justify="right")
    for kind, each in found.items():
        cells = [
            f"{_percent(figure['accepted'])} / {_percent(figure['either'])}" for figure in each.attributes.values()
        ]
        shown.add_row(kind.replace("_", " "), f"{100 * each.nothing_accepted:.1f}", *cells)
    return shown


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def main(
    checkpoint: Path = Path("weights/fashion"),
    catalogue: Path = FASHION,
    listings: Annotated[int, typer.Option(help="Test listings to use.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON to this file.")] = None,
) -> None:
    """Measure what is accepted where image and title belong together, and where they don't."""
    try:
        predictor, shop = Predictor.load(checkpoint), Catalogue.open(catalogue)
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(2) from None
    complete = [each for each in shop.part(Part.TEST) if each.image and each.title and PRODUCT_TYPE in each.labels]
    order = np.random.default_rng(0).permutation(len(complete))[:listings]
    chosen = [complete[row] for row in order]
    kinds = {**outlier_titles.FITTING, **outlier_titles.JUDGING}
    given = {
        "itself": [(each, each.title or "", each) for each in chosen],
        "another_type": pairs(chosen, same_type=False, seed=1),
        "the_same_type": pairs(chosen, same_type=True, seed=2),
        "german": made_up(chosen, [kinds["German"]], seed=3),
        "other_languages": made_up(chosen, [kinds[name] for name in OTHER_LANGUAGES], seed=4),
        "codes": made_up(chosen, [kinds[name] for name in CODES], seed=5),
    }
    found = {kind: figures(predictor, shop, each) for kind, each in given.items()}
    console.print(table(found))
    if out:
        content: dict[str, Any] = {"checkpoint": predictor.info.version, "calibration": predictor.info.calibration}
        content |= {kind: asdict(each) for kind, each in found.items()}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
