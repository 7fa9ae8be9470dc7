"""Are explanations faithful? The deletion test, for the service's explanations and for alternatives to them.

    python -m research.faithfulness [--checkpoint weights/fashion] [--listings 300] [--json FILE]

On test listings, the words (the parts of the image) to which an explanation gives the greatest weight are removed, and,
for comparison, as many random ones: if an explanation is faithful, the confidence of the predicted label falls further.
A word is removed from the title. A part of the image is covered with the colour that images are padded with, here
white, since that is the background of products; a grey square would look like an object. Since the service computes its
weights by covering with white, grey is measured too.

The explanations to compare are in `research/saliency.py`. Shapes: T attributes, N parts of the image, W words.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from model.catalogue.listings import Catalogue
from model.catalogue.listings import Listing as Row
from model.catalogue.splits import Part
from model.errors import ModelError
from model.inference.predictor import Predictor
from model.inputs.decode import decode_image
from model.progress import progress_bar
from research.saliency import METHODS, Listing, Method, Question, Weights, questions, torch_engine

FASHION = Path(__file__).parents[1] / "benchmarks" / "fashion.toml"
SHARES = (0.1, 0.25)
"""Shares of the words or parts that are removed: at least one, never all. Without half of an image any label is
uncertain, whichever half it is."""
RANDOM_DRAWS = 5
GREY = 128
PANELS: Mapping[str, tuple[str, str, int | None]] = {
    "words, both": ("both", "words", None),
    "words, title alone": ("title alone", "words", None),
    "parts, both": ("both", "parts", None),
    "parts, image alone": ("image alone", "parts", None),
    "parts, grey, image alone": ("image alone", "parts", GREY),
}
"""Situation, what is removed, and the grey level that covers it, None for the padding's."""
TIMED = 10
"""Number of listings on which the methods are timed, each without cached results."""
Z = 1.96
"""Intervals are at 95 %, by the normal approximation over listings."""

Drops = dict[tuple[str, float, str], list[NDArray[np.float64]]]
"""By panel, share and method: the loss of confidence of each listing, `[T]`."""
Choice = tuple[float, str, int, tuple[int, ...]]
"""Share, method, attribute, and the words or parts to remove."""


@dataclass
class DeletionTest:
    """Removes the words and parts with the greatest weights by each method, and random ones, listing by listing."""

    methods: Mapping[str, Method]
    generator: np.random.Generator
    drops: Drops = field(default_factory=lambda: defaultdict(list))

    def ask(self, situations: Mapping[str, Question]) -> None:
        """Record the confidence that a listing's labels lose in each panel, with the same random draws in all."""
        weights_of = {
            name: {each: method(question) for each, method in self.methods.items()}
            for name, question in situations.items()
        }
        sizes = {what: size for question in situations.values() for what, size in question.size.items() if size > 1}
        draws = {what: [self.generator.permutation(size) for _ in range(RANDOM_DRAWS)] for what, size in sizes.items()}
        for panel, (situation, what, cover) in PANELS.items():
            if situation in situations and what in draws:
                weights = {name: _of(each, what) for name, each in weights_of[situation].items()}
                self._delete(panel, situations[situation], list(_choices(weights, draws[what])), what, cover)

    def _delete(self, panel: str, question: Question, choices: Sequence[Choice], what: str, cover: int | None) -> None:
        kinds = sorted({gone for *_, gone in choices})
        asked = question.confidences([question.whole, *(question.without(what, gone, cover) for gone in kinds)])
        loss = dict(zip(kinds, asked[0] - asked[1:], strict=True))
        found: dict[tuple[float, str], list[list[float]]] = defaultdict(lambda: [[] for _ in question.labels])
        for share, name, t, gone in choices:
            found[share, name][t].append(loss[gone][t])
        for (share, name), each in found.items():
            self.drops[panel, share, name].append(np.array([np.mean(values) for values in each]))


def _of(weights: Weights, what: str) -> NDArray[np.float64]:
    found = weights.parts if what == "parts" else weights.words
    assert found is not None
    return found


def _choices(weights_of: Mapping[str, NDArray[np.float64]], draws: Sequence[NDArray[np.int64]]) -> Iterator[Choice]:
    """Yield what to remove for each share, method (its weights `[T, size]`) and attribute, and for each random draw."""
    for share in SHARES:
        size = len(draws[0])
        count = min(max(1, round(share * size)), size - 1)
        for name, weights in weights_of.items():
            for t, each in enumerate(weights):
                # Equal weights, as of everything at or below zero, are taken in random order.
                order = np.lexsort((draws[0], -each.clip(min=0)))
                yield share, name, t, tuple(sorted(order[:count].tolist()))
        for draw in draws:
            gone = tuple(sorted(draw[:count].tolist()))
            yield from ((share, "random", t, gone) for t in range(len(weights)))


def milliseconds(predictor: Predictor, listings: Sequence[tuple[str, Image.Image]]) -> dict[str, float]:
    """Return the median time of a plain answer, and of each method's weights, from a title and a decoded image.

    Nothing is cached from one to the next: it is the cost of a single listing. On a CPU it is the processor's time of
    all threads together, so that it does not depend on what else the machine does.
    """
    clock = time.process_time if torch_engine(predictor).device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = defaultdict(list)
    for title, image in listings:
        began = clock()
        predictor.predict(predictor.collate([predictor.prepare(title, image)]))
        seconds["plain answer"].append(clock() - began)
        for name, method in METHODS.items():
            began = clock()
            method(Question(Listing(predictor, title, image), image=True, title=True))
            seconds[name].append(clock() - began)
    return {name: round(1000 * statistics.median(each), 1) for name, each in seconds.items()}


@dataclass(frozen=True)
class Interval:
    """A mean in points of confidence, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Interval:
        """Return the interval of the mean of independent values `[n]`, shares of 1."""
        mean, margin = 100 * values.mean(), 100 * Z * values.std(ddof=1) / np.sqrt(len(values))
        return cls(*(round(float(value), 2) for value in (mean, mean - margin, mean + margin)))


def summary(drops: Drops, attributes: Sequence[str]) -> dict[str, Any]:
    """Return the loss of confidence by panel, method and share, and its difference from random removal."""
    panels: dict[str, Any] = {}
    for (panel, share, method), found in drops.items():
        losses, random = np.stack(found), np.stack(drops[panel, share, "random"])
        by_attribute = {name: vars(Interval.of(losses[:, t])) for t, name in enumerate(attributes)}
        entry = {"drop": vars(Interval.of(losses.mean(axis=1))), "by_attribute": by_attribute}
        if method != "random":
            more = losses - random
            entry["more_than_random"] = vars(Interval.of(more.mean(axis=1)))
            entry["more_than_random_by_attribute"] = {
                name: vars(Interval.of(more[:, t])) for t, name in enumerate(attributes)
            }
        methods = panels.setdefault(panel, {"listings": len(found), "methods": {}})["methods"]
        methods.setdefault(method, {})[f"{share:g}"] = entry
    return panels


def tables(panels: Mapping[str, Any], milliseconds: Mapping[str, float]) -> Iterator[Table]:
    """Yield a table per panel: the mean drop over the attributes, in points, by method and share."""
    for panel, found in panels.items():
        table = Table(title=f"{panel}: points of confidence lost, {found['listings']} listings", title_justify="left")
        table.add_column("removed by")
        for share in SHARES:
            table.add_column(f"{100 * share:g} %", justify="right")
            table.add_column("more than random", justify="right")
        table.add_column("ms per listing", justify="right")
        rows = found["methods"].items()
        for method, shares in sorted(rows, key=lambda row: -sum(each["drop"]["mean"] for each in row[1].values())):
            cells = [_cell(each.get(key)) for each in shares.values() for key in ("drop", "more_than_random")]
            table.add_row(method, *cells, f"{milliseconds[method]:.0f}" if method in milliseconds else "")
        yield table


def _cell(interval: Mapping[str, float] | None) -> str:
    return f"{interval['mean']:.1f} ± {interval['high'] - interval['mean']:.1f}" if interval else ""


def measure(
    predictor: Predictor, catalogue: Catalogue, *, listings: int, seed: int, console: Console
) -> dict[str, Any]:
    """Run the test on `listings` listings of the test part, chosen at random; return the document."""
    torch_engine(predictor).network.requires_grad_(False)
    generator = np.random.default_rng(seed)
    whole = [each for each in catalogue.part(Part.TEST) if each.title and each.image]
    chosen = [whole[at] for at in generator.permutation(len(whole))[:listings]]
    test = DeletionTest(METHODS, generator)
    times = milliseconds(predictor, [_opened(catalogue, each) for each in chosen[:TIMED]])
    with progress_bar(console) as progress:
        for listing in progress.track(chosen, description="deleting"):
            test.ask(questions(predictor, *_opened(catalogue, listing)))
    return {
        "data": f"the test part of {catalogue.report.table}",
        "model": {"name": predictor.info.name, "version": predictor.info.version},
        "listings": len(chosen),
        "seed": seed,
        "random_draws": RANDOM_DRAWS,
        "unit": "points of calibrated confidence of the predicted label; intervals of 95 % over listings",
        "milliseconds": times,
        "timed": min(TIMED, len(chosen)),
        "panels": summary(test.drops, [task.name for task in predictor.tasks]),
    }


def _opened(catalogue: Catalogue, listing: Row) -> tuple[str, Image.Image]:
    assert listing.title is not None
    assert listing.image is not None
    return listing.title, decode_image(catalogue.image_bytes(listing.image)).image


def _document(found: Mapping[str, Any]) -> str:
    """Return JSON with each interval on one line."""
    return re.sub(r"\{[^{}]*\}", lambda inner: " ".join(inner[0].split()), json.dumps(found, indent=1)) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test and print it; exit status 2 if the checkpoint or the catalogue cannot be used."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/fashion"))
    parser.add_argument("--catalogue", type=Path, default=FASHION)
    parser.add_argument("--listings", type=int, default=300, help="number of listings of the test part, at least two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    if options.listings < 2:
        parser.error("an interval needs at least two listings")
    console = Console()
    try:
        predictor = Predictor.load(options.checkpoint, dtype="float32", engine="torch")
        catalogue = Catalogue.open(options.catalogue)
        found = measure(
            predictor, catalogue, listings=options.listings, seed=options.seed, console=Console(stderr=True)
        )
    except ModelError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    for table in tables(found["panels"], found["milliseconds"]):
        console.print(table)
    console.print(f"a plain answer takes {found['milliseconds']['plain answer']:.0f} ms", highlight=False)
    if options.json:
        options.json.write_text(_document(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
