"""Fits the gate of a checkpoint: what is familiar on the train part, and its limits on the validation part.

Nothing is taken from the calibration part: a certificate that is computed on listings which chose the gate means
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.evaluation.heldout import HeldOut, Ints, Temperatures, collect, evidence
from model.inference.predictions import RawPredictor
from model.situations import Situation
from model.trust.conflict import Conflict, fit_conflict, log_similarity
from model.trust.conformal import one_of_each_group
from model.trust.gate import Gate

SCOPE_LEVEL = 0.01
"""The share of listings like the catalogue's that may be taken for unfamiliar ones."""

CONFLICT_LEVEL = 0.01
"""The share of listings whose image and title may be taken to contradict each other, and once more for each attribute.
"""

TRAINING_SAMPLE = 5_000
"""How many training listings are looked at."""


def fit_gate(
    predictor: RawPredictor,
    catalogue: Catalogue,
    validation: Mapping[Situation, HeldOut],
    temperatures: Temperatures,
    *,
    level: float,
    console: Console,
) -> Gate:
    """Fit scope and conflict; validation: the validation part's listings, computed in every situation."""
    sample = sorted(catalogue.part(Part.TRAIN), key=lambda listing: hashlib.sha256(listing.id.encode()).digest())
    training = collect(predictor, catalogue, sample[:TRAINING_SAMPLE], console=console, what="training listings")
    return Gate(scopes={}, conflict=_fit_conflict(training, validation, temperatures))


def _fit_conflict(
    training: Mapping[Situation, HeldOut], validation: Mapping[Situation, HeldOut], temperatures: Temperatures
) -> Conflict | None:
    """Fit what tells contradictions; None where no listing has both modalities."""
    if not all(part[Situation.IMAGE_AND_TITLE].listings for part in (training, validation)):
        return None
    listings = validation[Situation.IMAGE_AND_TITLE]
    references = one_of_each_group([listing.id for listing in listings.listings], listings.group)
    shifted = _other_titles(training[Situation.IMAGE_AND_TITLE].group)
    return fit_conflict(
        _similarity(training, temperatures),
        _similarity(training, temperatures, titles=shifted)[shifted >= 0],
        _similarity(validation, temperatures)[references],
        CONFLICT_LEVEL,
    )


def _similarity(
    held_out: Mapping[Situation, HeldOut], temperatures: Temperatures, titles: Ints | None = None
) -> NDArray[np.float64]:
    """Return the log similarities `[n, T]` of listings' images and titles, or of their images and `titles` `[n]`."""
    of_listings = evidence(held_out, Situation.IMAGE_AND_TITLE, temperatures)
    image, title = (of_listings[each].confidences for each in (Situation.IMAGE, Situation.TITLE))
    return log_similarity(image, title if titles is None else [confidences[titles] for confidences in title])


def _other_titles(group: Ints) -> Ints:
    """Return a listing of another group for each, `[n]`; -1 where there is none."""
    n = len(group)
    order = np.random.default_rng(0).permutation(n)
    others = np.empty(n, np.int64)
    others[order] = np.roll(order, 1)
    return np.where(group[others] == group, -1, others)
