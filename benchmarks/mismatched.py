"""What is accepted of listings whose image and title belong to different products.

    python -m benchmarks.mismatched --checkpoint weights/fashion --out benchmarks/results/mismatched.json

Every image of a sample of the test part is sent beside its own title, beside that of a listing of another article
type, and beside that of another listing of the same type. An accepted label counts as right for one of the owners
where it is the label of the image's listing or of the title's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from model.inference.predictions import AttributePrediction
from model.inference.predictor import Predictor

console = Console()

PRODUCT_TYPE = "articleType"

Answers = Sequence[Mapping[str, AttributePrediction]]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was accepted at a target of 0.95; shares of the listings, or of the accepted labels."""

    listings: int
    nothing_accepted: float
    """Share of listings."""
    attributes: Mapping[str, Mapping[str, float | None]]
    """Per attribute: `accepted`, the share of listings; and of those how many are right for the image's listing
    (`image`), the title's (`title`), or `either`: None where nothing is accepted."""


def pairs(listings: Sequence[Listing], *, same_type: bool, seed: int) -> list[tuple[Listing, Listing]]:
    """Pair the image of each listing with the title of another, of the same product type or of another one."""
    generator = np.random.default_rng(seed)
    found = []
    for listing in listings:
        others = [
            other
            for other in listings
            if (other.labels.get(PRODUCT_TYPE) == listing.labels.get(PRODUCT_TYPE)) is same_type
            and other.group != listing.group
            and other.title != listing.title
        ]
        if others:
            found.append((listing, others[int(generator.integers(len(others)))]))
    return found


def figures(predictor: Predictor, catalogue: Catalogue, listings: Sequence[tuple[Listing, Listing]]) -> Figures:
    """Answer the image of the first listing of each pair beside the title of the second."""
    given = ((title.title, catalogue.image_bytes(image.image or "")) for image, title in listings)
    answers = list(predictor.classify(given, target_precision=0.95))
    nothing = [not any(each.accepted for each in answer.values()) for answer in answers]
    return Figures(
        listings=len(listings),
        nothing_accepted=float(np.mean(nothing)),
        attributes={task.name: _attribute(task.name, answers, listings) for task in predictor.tasks},
    )


def _attribute(name: str, answers: Answers, listings: Sequence[tuple[Listing, Listing]]) -> dict[str, float | None]:
    accepted = np.array([answer[name].accepted for answer in answers])
    of_image, of_title = (
        np.array(
            [answer[name].label == pair[side].labels.get(name) for answer, pair in zip(answers, listings, strict=True)]
        )
        for side in (0, 1)
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
    found = {
        "itself": figures(predictor, shop, [(each, each) for each in chosen]),
        "another_type": figures(predictor, shop, pairs(chosen, same_type=False, seed=1)),
        "the_same_type": figures(predictor, shop, pairs(chosen, same_type=True, seed=2)),
    }
    console.print(table(found))
    if out:
        content: dict[str, Any] = {"checkpoint": predictor.info.version, "calibration": predictor.info.calibration}
        content |= {kind: asdict(each) for kind, each in found.items()}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
