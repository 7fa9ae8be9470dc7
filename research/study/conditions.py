"""The conditions under which networks are measured, and inference on a test part under all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.catalogue.listings import Listing
from model.network.towers import TokenSequence
from model.situations import Situation
from research.study.answers import Answers, Inference, TestPart
from research.study.corruptions import CORRUPTIONS, IMAGES, TITLES, Corruption, another

UNCORRUPTED = "uncorrupted"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A situation, and the corruption of the subset's listings; None: the whole part, clean."""

    situation: Situation
    corruption: str | None = None
    strength: float = 0.0

    @property
    def key(self) -> str:
        """The condition as one string, for files."""
        return f"{self.situation}/{self.corruption or 'clean'}/{self.strength:g}"


def clean(situation: Situation) -> str:
    """Return the key of a situation's condition on the whole test part."""
    return Condition(situation=situation).key


def predict_clean(
    inference: Inference, part: TestPart, supported: Sequence[Situation]
) -> Iterator[tuple[str, Answers]]:
    """Yield the answers on the whole part, clean, in each of the network's `supported` situations, by condition."""
    image = inference.cached_images("clean", part, part.listings) if Situation.IMAGE in supported else None
    text = inference.encode_titles([x.title for x in part.listings]) if Situation.TITLE in supported else None
    for situation in supported:
        yield clean(situation), _predict(inference, image, text, situation)


def predict_corrupted(
    inference: Inference,
    part: TestPart,
    rows: NDArray[np.int64],
    *,
    supported: Sequence[Situation],
    situations: Sequence[Situation] = (Situation.IMAGE_AND_TITLE,),
    corruptions: Sequence[Corruption[Any]] = CORRUPTIONS,
) -> Iterator[tuple[str, Answers]]:
    """Yield the answers on the listings at `rows` in `situations`, uncorrupted and under `corruptions`, by condition.

    supported: the situations that the network can predict in. Without the image's, say, it predicts from titles alone,
    and is not measured under corruptions of images.
    """
    listings = [part.listings[row] for row in rows]
    others = {listing.id: another(listing, part.listings) for listing in listings}
    uses_image, uses_title = Situation.IMAGE in supported, Situation.TITLE in supported
    image = inference.cached_images(UNCORRUPTED, part, listings) if uses_image else None
    text = inference.encode_titles([listing.title for listing in listings]) if uses_title else None
    for situation in situations:
        key = Condition(situation=situation, corruption=UNCORRUPTED).key
        yield key, _predict(inference, image, text, situation)
    for titles in [each for each in TITLES if each in corruptions] if uses_title else ():
        for strength in titles.strengths:
            given = [corrupt_title(titles, x, others[x.id], strength) for x in listings]
            empty = inference.encode_titles(given)  # a title without words, where there is no image either
            # Beside an image, such a title counts as absent, as it does in the service.
            absent = inference.encode_titles([title or None for title in given]) if uses_image else empty
            for situation in situations:
                if situation is not Situation.IMAGE:
                    key = Condition(situation=situation, corruption=titles.name, strength=strength).key
                    corrupted = absent if situation is Situation.IMAGE_AND_TITLE else empty
                    yield key, _predict(inference, image, corrupted, situation)
    for images in [each for each in IMAGES if each in corruptions] if uses_image else ():
        for strength in images.strengths:

            def corrupt(
                listing: Listing, image: Image.Image, how: Corruption[Image.Image] = images, by: float = strength
            ) -> Image.Image:
                return how(image, listing, part.image(others[listing.id]), by)

            encoded = inference.cached_images(f"{images.name} {strength:g}", part, listings, corrupt)
            for situation in situations:
                if situation is not Situation.TITLE:
                    key = Condition(situation=situation, corruption=images.name, strength=strength).key
                    yield key, _predict(inference, encoded, text, situation)


def _predict(
    inference: Inference, image: TokenSequence | None, text: TokenSequence | None, situation: Situation
) -> Answers:
    return inference.predict(
        None if situation is Situation.TITLE else image, None if situation is Situation.IMAGE else text
    )


def corrupt_title(corruption: Corruption[str], listing: Listing, other: Listing, strength: float) -> str:
    """Return the title of a listing, corrupted; it may be empty."""
    return corruption(listing.title or "", listing, other.title or "", strength)
