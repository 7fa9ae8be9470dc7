"""Training without a share of the listings, share by share: models that have not seen what they are to judge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ConfigError
from model.training.recipe import Recipe, TrainingStage, run_recipe
from model.training.train import train


@dataclass(frozen=True)
class Fold:
    """A checkpoint that was trained without some listings."""

    checkpoint: Path
    unseen: tuple[Listing, ...]
    validation: tuple[Listing, ...]


def train_folds(
    catalogue: Catalogue,
    groups: Sequence[int],
    count: int,
    out: Path,
    *,
    recipe: Recipe | None = None,
    device: str = "auto",
    console: Console,
) -> Iterator[Fold]:
    """Train `count` checkpoints, each without its share of the listings, and yield them one by one.

    groups: of each listing; listings of one number stay in one share. Trains by the defaults, or by the training stages
    of `recipe`; a checkpoint is chosen on those listings of the validation part that are not in the share. What is done
    already in the folder `out` is not done again. Raises `ConfigError` for fewer than two shares.
    """
    if count < 2:
        raise ConfigError(f"{count} folds are too few: with 2 or more, no model judges what it was trained on")
    shares = _shares(catalogue.listings, groups, count)
    for number in range(count):
        console.rule(f"fold {number + 1} of {count}")
        listings = tuple(
            replace(each, part=_part(each, left_out=share == number))
            for each, share in zip(catalogue.listings, shares, strict=True)
        )
        without, folder = replace(catalogue, listings=listings), out / f"{count}-folds" / str(number + 1)
        if recipe is None:
            checkpoint = train(without, folder, device=device, console=console)
        else:
            training = replace(recipe, stages=tuple(s for s in recipe.stages if isinstance(s, TrainingStage)))
            checkpoint = run_recipe(training, folder, catalogue=without, device=device, console=console)
        yield Fold(checkpoint, tuple(without.part(Part.TEST)), tuple(without.part(Part.VALIDATION)))


def _part(listing: Listing, *, left_out: bool) -> Part:
    if left_out:
        return Part.TEST
    return Part.VALIDATION if listing.part is Part.VALIDATION else Part.TRAIN


def _shares(listings: Sequence[Listing], groups: Sequence[int], count: int) -> list[int]:
    """Return the share of each listing: that of its group, by a hash of the group's first id."""
    first: dict[int, str] = {}
    for listing, group in zip(listings, groups, strict=True):
        first[group] = min(first.get(group, listing.id), listing.id)
    digests = {group: hashlib.sha256(f"fold/{name}".encode()).digest() for group, name in first.items()}
    return [int.from_bytes(digests[group][:8]) % count for group in groups]
