"""The default training on a small catalogue, against a bag of words: `python -m benchmarks.baselines small`.

Random rows of a catalogue are drawn. Their train part trains both, their validation part chooses the checkpoint, and
both are measured on the test part of the whole catalogue, on the listings that have an image and a title. A label that
does not occur in the draw's train part counts as an error for both. Finished draws are not trained again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.bag_of_words import TitleModel, encode, score
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.evaluation.heldout import collect
from model.inference.predictor import Predictor
from model.situations import Situation
from model.tasks import Task, build_tasks
from model.training.train import train


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The figures of one draw: accuracies per attribute on the whole test part."""

    seed: int
    train_listings: int
    test_listings: int
    training_seconds: float
    bag_of_words: Mapping[str, float]
    network: Mapping[str, float]


def measure_draw(catalogue: Catalogue, folder: Path, *, rows: int, seed: int, console: Console) -> Draw:
    """Train the network, by its defaults, and the bag of words on one draw; score both on the same test listings."""
    sample = draw_rows(catalogue, rows, seed)
    began = time.perf_counter()
    checkpoint = train(sample, folder, name="small", console=console)
    seconds = time.perf_counter() - began
    train_part = sample.part(Part.TRAIN)
    tasks, _ = build_tasks([each.labels for each in train_part], sample.config.attributes, min_label_count=1)
    test, by_network = predict(checkpoint, catalogue, console)
    words = TitleModel([each.title for each in train_part], encode(train_part, tasks), tasks)
    by_words = np.stack([each.argmax(axis=1) for each in words.logits([each.title for each in test])], axis=1)
    return Draw(
        seed=seed,
        train_listings=len(train_part),
        test_listings=len(test),
        training_seconds=round(seconds, 1),
        bag_of_words=accuracies(by_words, test, tasks),
        network=accuracies(by_network, test, tasks),
    )


def draw_rows(catalogue: Catalogue, rows: int, seed: int) -> Catalogue:
    """Return a catalogue of `rows` random listings; each stays in the part that it was in."""
    listings = random.Random(seed).sample(catalogue.listings, rows)  # noqa: S311 - a sample, no secret
    # Every label that occurs is known, as it is to the bag of words.
    return replace(catalogue, listings=tuple(listings), config=replace(catalogue.config, min_label_count=1))


def predict(checkpoint: Path, catalogue: Catalogue, console: Console) -> tuple[Sequence[Listing], NDArray[np.int64]]:
    """Return the test listings with both modalities, and the network's class indices `[n, T]`."""
    predictor = Predictor.load(checkpoint)
    held_out = collect(predictor, catalogue, catalogue.part(Part.TEST), console=console, what="test")[
        Situation.IMAGE_AND_TITLE
    ]
    return held_out.listings, np.stack([logits.argmax(axis=1) for logits in held_out.logits], axis=1)


def accuracies(predicted: NDArray[np.int64], test: Sequence[Listing], tasks: Sequence[Task]) -> dict[str, float]:
    """Return the accuracy of each attribute, of class indices `[n, T]`."""
    return {name: each.accuracy for name, each in score(predicted, encode(test, tasks), tasks).items()}


def draws_table(draws: Sequence[Draw]) -> Table:
    """Return the means over draws, and how far the network is ahead."""
    table = Table(title=f"{draws[0].train_listings:,} training listings, accuracy in %, mean of {len(draws)} draws")
    for column in ("attribute", "bag of words", "network", "difference", "by draw"):
        table.add_column(column, justify="left" if column == "attribute" else "right")
    for name in draws[0].network:
        words = 100 * np.array([draw.bag_of_words[name] for draw in draws])
        network = 100 * np.array([draw.network[name] for draw in draws])
        by_draw = "  ".join(f"{each:+.1f}" for each in network - words)
        difference = f"{(network - words).mean():+.2f}"
        table.add_row(name, f"{words.mean():.2f}", f"{network.mean():.2f}", difference, by_draw)
    return table
