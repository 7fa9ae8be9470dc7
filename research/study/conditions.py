"""The conditions under which networks are read, and the reading of a test part under all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.catalogue.listings import Listing
from model.network.towers import TokenSequence
from model.situations import Situation
from research.study.answers import Answers, Reader, TestPart
from research.study.corruptions import IMAGES, TITLES, Corruption, another

UNSPOILT = "unspoilt"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A situation, and for the listings of the subset what they are spoilt by; None: the whole part, as it is."""

    situation: Situation
    corruption: str | None = None
    strength: float = 0.0

    @property
    def key(self) -> str:
        """The condition in one word, for files."""
        return f"{self.situation}/{self.corruption or 'clean'}/{self.strength:g}"


def clean(situation: Situation) -> str:
    """Return the key of a situation's condition on the whole test part."""
    return Condition(situation=situation).key


def read_clean(reader: Reader, part: TestPart, reads: Sequence[Situation]) -> Iterator[tuple[str, Answers]]:
    """Read the whole part, as it is, in the situations of `reads`."""
    image = reader.see("clean", part, part.listings) if Situation.IMAGE in reads else None
    text = reader.encode_titles([x.title for x in part.listings]) if Situation.TITLE in reads else None
    for situation in reads:
        yield clean(situation), _read(reader, image, text, situation)


def read_spoilt(
    reader: Reader,
    part: TestPart,
    rows: NDArray[np.int64],
    *,
    reads: Sequence[Situation],
    situations: Sequence[Situation] = (Situation.IMAGE_AND_TITLE,),
) -> Iterator[tuple[str, Answers]]:
    """Read the listings at `rows` in `situations`, unspoilt, and spoilt by what touches a modality that is read.

    `reads` are the situations that the network can be read in: without the image's, say, it reads titles alone.
    """
    listings = [part.listings[row] for row in rows]
    others = {listing.id: another(listing, part.listings) for listing in listings}
    reads_image, reads_title = Situation.IMAGE in reads, Situation.TITLE in reads
    image = reader.see(UNSPOILT, part, listings) if reads_image else None
    text = reader.encode_titles([listing.title for listing in listings]) if reads_title else None
    for situation in situations:
        key = Condition(situation=situation, corruption=UNSPOILT).key
        yield key, _read(reader, image, text, situation)
    for titles in TITLES if reads_title else ():
        for strength in titles.strengths:
            given = [spoil_title(titles, x, others[x.id], strength) for x in listings]
            empty = reader.encode_titles(given)  # a title without words, where there is nothing else to read
            # Beside an image, such a title counts as absent, as it does to the service.
            absent = reader.encode_titles([title or None for title in given]) if reads_image else empty
            for situation in situations:
                if situation is not Situation.IMAGE:
                    key = Condition(situation=situation, corruption=titles.name, strength=strength).key
                    spoilt = absent if situation is Situation.IMAGE_AND_TITLE else empty
                    yield key, _read(reader, image, spoilt, situation)
    for images in IMAGES if reads_image else ():
        for strength in images.strengths:

            def spoil(
                listing: Listing, picture: Image.Image, how: Corruption[Image.Image] = images, by: float = strength
            ) -> Image.Image:
                return how(picture, listing, part.picture(others[listing.id]), by)

            pictures = reader.see(f"{images.name} {strength:g}", part, listings, spoil)
            for situation in situations:
                if situation is not Situation.TITLE:
                    key = Condition(situation=situation, corruption=images.name, strength=strength).key
                    yield key, _read(reader, pictures, text, situation)


def _read(reader: Reader, image: TokenSequence | None, text: TokenSequence | None, situation: Situation) -> Answers:
    return reader.read(None if situation is Situation.TITLE else image, None if situation is Situation.IMAGE else text)


def spoil_title(corruption: Corruption[str], listing: Listing, other: Listing, strength: float) -> str:
    """Return the title of a listing, spoilt; it may be empty."""
    return corruption(listing.title or "", listing, other.title or "", strength)
