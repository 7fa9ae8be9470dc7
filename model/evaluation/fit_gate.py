"""Fits the gate of a checkpoint: what is familiar on the train part, and its limits on the validation part.

Nothing is taken from the calibration part: a certificate that is computed on listings which chose the gate means
nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.evaluation.heldout import HeldOut, Ints, Temperatures, collect, evidence
from model.inference.predictions import RawPredictor
from model.inputs.decode import decode_image
from model.inputs.outliers import Family, draw_outliers
from model.situations import Situation
from model.tasks import multi_valued_places
from model.trust.conflict import Conflict, fit_conflict, log_similarity
from model.trust.conformal import one_per_group
from model.trust.gate import Gate
from model.trust.scope import Features, KnownWords, ScopeGates, features_of, fit_scope, joined_features

CONFLICT_LEVEL = 0.01
"""The share of listings whose image and title may be taken to contradict each other, and once more for each attribute.
"""

TRAINING_SAMPLE = 6_000
"""How many training listings are looked at, one of each group, at most."""

OUTLIERS = 2_000
"""How many listings are made up, at most: no more than there are training listings to tell them from."""

PHOTOS = 50
"""Some kinds of made-up images are made from so many of the catalogue's own."""

BATCH = 64
"""Made-up listings that are computed together."""

FEWEST = 20
"""A situation has a scope where so many groups of training listings, and of validation listings, have it."""


def fit_gate(
    predictor: RawPredictor,
    catalogue: Catalogue,
    validation: Mapping[Situation, HeldOut],
    temperatures: Temperatures,
    *,
    level: float,
    console: Console,
) -> Gate:
    """Fit scope and conflict; validation: the validation part's listings, computed in every situation.

    A situation with too few listings (`FEWEST`) has no scope, and `console` says so.
    """
    listings = catalogue.part(Part.TRAIN)
    chosen = [listings[row] for row in one_per_group([each.id for each in listings], [each.group for each in listings])]
    training = collect(predictor, catalogue, chosen[:TRAINING_SAMPLE], console=console, what="training listings")
    words = KnownWords.of(listing.title for listing in chosen if listing.title)
    made_up = _made_up(predictor, catalogue, training, words)
    gates = {}
    for situation in Situation:
        known, held_out = _features(training[situation], situation, words), validation[situation]
        references = _references(held_out)
        if min(len(known), len(references)) < FEWEST:
            console.print(
                f"{situation}: too few listings to tell unfamiliar ones by ({len(known)} of the train part, "
                f"{len(references)} of the validation part, one for each group; {FEWEST} are needed)"
            )
            continue
        clean = _features(held_out, situation, words)[references]
        gates[situation] = fit_scope(known, made_up[situation], clean, level=level)
    return Gate(scopes=ScopeGates(words=words, gates=gates), conflict=_fit_conflict(training, validation, temperatures))


def _references(held_out: HeldOut) -> NDArray[np.intp]:
    """Return the positions of one listing of each group, ascending."""
    return np.sort(one_per_group([listing.id for listing in held_out.listings], held_out.group.tolist()))


def _features(held_out: HeldOut, situation: Situation, words: KnownWords) -> Features:
    unseen, multi_valued = words.unseen(held_out.titles), multi_valued_places(held_out.tasks)
    return features_of(situation, held_out.embeddings, held_out.logits, unseen, multi_valued)


def _made_up(
    predictor: RawPredictor, catalogue: Catalogue, training: Mapping[Situation, HeldOut], words: KnownWords
) -> Mapping[Situation, Features]:
    """Return the features of made-up listings, unlike any of a catalogue, in every situation."""
    rng = random.Random(0)  # noqa: S311 - a sample, no secret
    n = min(OUTLIERS, max(FEWEST, *(len(each.listings) for each in training.values())))
    names = [listing.image for listing in training[Situation.IMAGE].listings[:PHOTOS] if listing.image]
    photos = [decode_image(catalogue.image_bytes(name), predictor.info.image_size).image for name in names]
    plain = [Image.new("RGB", (60, 80), "white")]
    drawn = draw_outliers(Family.FITTING, n, rng, photos or plain)
    return features_of_pairs(predictor, words, ((each.title, each.image) for each in drawn))


def features_of_pairs(
    predictor: RawPredictor, words: KnownWords, pairs: Iterable[tuple[str, Image.Image]]
) -> dict[Situation, Features]:
    """Return the features of titles and RGB images, one pair at least, in every situation."""
    parts: dict[Situation, list[Features]] = {situation: [] for situation in Situation}
    remaining, multi_valued = iter(pairs), multi_valued_places(predictor.tasks)
    while batch := [predictor.prepare(*pair) for pair in islice(remaining, BATCH)]:
        for situation, outputs in predictor.outputs(predictor.collate(batch)).items():
            raw, unseen = outputs.raw, words.unseen(outputs.titles)
            parts[situation].append(features_of(situation, raw.embeddings, raw.logits, unseen, multi_valued))
    return {situation: joined_features(each) for situation, each in parts.items()}


def _fit_conflict(
    training: Mapping[Situation, HeldOut], validation: Mapping[Situation, HeldOut], temperatures: Temperatures
) -> Conflict | None:
    """Fit what tells contradictions; None where no listing has both modalities."""
    if not all(part[Situation.IMAGE_AND_TITLE].listings for part in (training, validation)):
        return None
    references = _references(validation[Situation.IMAGE_AND_TITLE])
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
    of_titles = title if titles is None else [confidences[titles] for confidences in title]
    return log_similarity(image, of_titles, of_listings[Situation.IMAGE].multi_valued)


def _other_titles(group: Ints) -> Ints:
    """Return a listing of another group for each, `[n]`; -1 where there is none."""
    n = len(group)
    order = np.random.default_rng(0).permutation(n)
    others = np.empty(n, np.int64)
    others[order] = np.roll(order, 1)
    return np.where(group[others] == group, -1, others)
