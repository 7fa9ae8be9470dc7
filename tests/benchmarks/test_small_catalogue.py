"""The benchmark of small catalogues: fair draws, the same test listings for both, a table that shows who is ahead."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import small_catalogue
from benchmarks.small_catalogue import Draw, draw_rows, draws_table, measure_draw
from model import train
from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.config import ModelConfig
from model.training.config import TrainConfig


def test_a_draw_keeps_each_listing_in_its_part_and_every_label(catalogue: Catalogue) -> None:
    sample = draw_rows(catalogue, 100, seed=0)
    parts = {listing.id: listing.part for listing in catalogue.listings}
    assert len({listing.id for listing in sample.listings}) == 100
    assert all(listing.part == parts[listing.id] for listing in sample.listings)
    assert sample.config.min_label_count == 1
    assert draw_rows(catalogue, 100, seed=0).listings == sample.listings
    assert draw_rows(catalogue, 100, seed=1).listings != sample.listings


def test_both_are_measured_on_the_whole_test_part(
    catalogue: Catalogue,
    tmp_path: Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network that learns nothing is behind a bag of words that can read this catalogue's titles."""
    config = dataclasses.replace(train_config, optimiser=dataclasses.replace(train_config.optimiser, epochs=1))

    def small(*arguments: Any, **options: Any) -> Path:
        return train(*arguments, model=model_config, config=config, **options)

    monkeypatch.setattr(small_catalogue, "train", small)
    console = Console(file=io.StringIO())
    draw = measure_draw(catalogue, tmp_path, rows=150, seed=0, console=console)
    assert draw.test_listings == len(catalogue.part(Part.TEST))
    assert draw.train_listings == len(draw_rows(catalogue, 150, 0).part(Part.TRAIN))
    assert draw.bag_of_words == {"colour": 1.0, "shape": 1.0}
    assert draw.network["colour"] < 1.0


def test_the_table_says_who_is_ahead() -> None:
    draws = [
        Draw(
            seed=seed,
            train_listings=1500,
            test_listings=3000,
            training_seconds=1.0,
            bag_of_words={"colour": 0.8},
            network={"colour": ours},
        )
        for seed, ours in enumerate((0.85, 0.79))
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(draws_table(draws))
    assert isinstance(console.file, io.StringIO)
    (row,) = [line for line in console.file.getvalue().splitlines() if "colour" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["colour", "80.00", "82.00", "+2.00", "+5.0  -1.0"]
