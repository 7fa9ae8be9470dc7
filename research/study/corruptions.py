"""Spoilt listings: what goes wrong with titles and pictures in a feed, at several strengths.

Deterministic: what becomes of a listing depends on the seed, the corruption and the listing's id alone. The draws
are the same at every strength, so a stronger corruption spoils all that a milder one does, and more.

May import numpy, Pillow and `model.augment`; knows nothing of networks.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from model.catalogue.listings import Listing
from model.inputs import corruptions
from model.inputs.corruptions import without_label_words

Picture = Image.Image
Input = TypeVar("Input", str, Picture)

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Corruption(Generic[Input]):
    """One way in which a title (words separated by white space) or an RGB picture is spoilt.

    strengths: from mild to severe, in the unit that `axis` names. spoil: (own input, the listing, another listing's
    input, strength, generator) -> the spoilt input. A spoilt title may be empty.
    """

    name: str
    axis: str
    strengths: tuple[float, ...]
    spoil: Callable[[Input, Listing, Input, float, random.Random], Input]
    seed: int = field(default=SEED)

    def __call__(self, given: Input, listing: Listing, other: Input, strength: float) -> Input:
        """Return `given`, the input of `listing`, spoilt; `other` is another listing's."""
        return self.spoil(given, listing, other, strength, self._generator(listing))

    def _generator(self, listing: Listing) -> random.Random:
        return random.Random(f"{self.seed}/{self.name}/{listing.id}")  # noqa: S311 - corruption, no secret


def another(listing: Listing, listings: Sequence[Listing], *, seed: int = SEED) -> Listing:
    """Return another one of `listings`, of another title where there is one: always the same for this listing."""
    generator = random.Random(f"{seed}/another/{listing.id}")  # noqa: S311
    for _ in range(100):
        drawn = listings[generator.randrange(len(listings))]
        if (drawn.title or "").casefold() != (listing.title or "").casefold():
            return drawn
    return listings[0]


# --- titles ------------------------------------------------------------------------------------------------


def drop_tokens(title: str, _listing: Listing, _other: str, share: float, rng: random.Random) -> str:
    """Leave out a share of the words, never all."""
    words = title.split()
    drawn = [rng.random() for _ in words]
    last = max(range(len(words)), key=drawn.__getitem__, default=0)  # stays at any strength
    return " ".join(word for i, word in enumerate(words) if drawn[i] >= share or i == last)


def misspell(title: str, _listing: Listing, _other: str, share: float, rng: random.Random) -> str:
    """Make one typing mistake in a share of the words."""
    drawn = [(rng.random(), _typo(word, rng)) for word in title.split()]
    return " ".join(typo if u < share else word for word, (u, typo) in zip(title.split(), drawn, strict=True))


def _typo(word: str, rng: random.Random) -> str:
    """Leave out, double, replace or swap one letter."""
    at, letter = rng.randrange(len(word)), rng.choice(string.ascii_lowercase)
    match rng.randrange(4):
        case 0 if len(word) > 1:
            return word[:at] + word[at + 1 :]
        case 1:
            return word[:at] + word[at] + word[at:]
        case 2 if at + 1 < len(word):
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case _:
            return word[:at] + letter + word[at + 1 :]


def mix_in(title: str, _listing: Listing, other: str, share: float, rng: random.Random) -> str:
    """Put words of another title between the own ones: so many of them, relative to the own words."""
    words, foreign = title.split(), other.split()
    wanted = round(share * len(words))
    for k in range(wanted):
        words.insert(rng.randrange(len(words) + 1), foreign[k % len(foreign)])
    return " ".join(words)


def remove_label_words(title: str, listing: Listing, _other: str, share: float, rng: random.Random) -> str:
    """Leave out a share of the words that name the listing's own labels."""
    labels = tuple(listing.labels.values())
    return " ".join(word for word in title.split() if rng.random() >= share or without_label_words(word, labels))


def no_title(title: str, _listing: Listing, _other: str, share: float, rng: random.Random) -> str:
    """Leave a share of the listings without a title."""
    return "" if rng.random() < share else title


def _exchange(given: Input, _listing: Listing, other: Input, share: float, rng: random.Random) -> Input:
    return other if rng.random() < share else given


# --- pictures ----------------------------------------------------------------------------------------------


def compress(picture: Picture, _listing: Listing, _other: Picture, quality: float, _rng: random.Random) -> Picture:
    """Compress by JPEG."""
    return corruptions.compress(picture, round(quality))


def blur(picture: Picture, _listing: Listing, _other: Picture, share: float, _rng: random.Random) -> Picture:
    """Blur by a Gaussian whose deviation is that share of the picture's shorter side."""
    return corruptions.blur(picture, share * min(picture.size))


def add_noise(picture: Picture, _listing: Listing, _other: Picture, deviation: float, rng: random.Random) -> Picture:
    """Add white noise of that deviation, of 255."""
    return Image.fromarray(corruptions.add_noise(np.asarray(picture), deviation, rng.getrandbits(32)))


def crop(picture: Picture, _listing: Listing, _other: Picture, share: float, rng: random.Random) -> Picture:
    """Cut out that share of the area, anywhere, in the picture's own shape."""
    (width, height), scale = picture.size, share**0.5
    left, top = rng.random() * (1 - scale) * width, rng.random() * (1 - scale) * height
    right, bottom = max(left + scale * width, left + 1), max(top + scale * height, top + 1)
    return picture.crop(
        (round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1))
    )


def occlude(picture: Picture, _listing: Listing, _other: Picture, share: float, rng: random.Random) -> Picture:
    """Cover that share of the area by a rectangle of one colour, in the picture's own shape."""
    (width, height), scale = picture.size, share**0.5
    size = (round(scale * width), round(scale * height))
    corner = (round(rng.random() * (width - size[0])), round(rng.random() * (height - size[1])))
    colour = rng.randrange(256), rng.randrange(256), rng.randrange(256)
    return corruptions.cover(picture, corner, size, colour)


def tint(picture: Picture, _listing: Listing, _other: Picture, share: float, rng: random.Random) -> Picture:
    """Light the picture by a colour: that share of the light is a saturated one, the rest white."""
    weakened = [1 - share * x for x in rng.choice(((0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)))]
    return Image.fromarray((np.asarray(picture, dtype=np.float64) * weakened).astype(np.uint8))


def blank(picture: Picture, _listing: Listing, _other: Picture, share: float, rng: random.Random) -> Picture:
    """Give a share of the listings a white picture."""
    return Image.new("RGB", picture.size, "white") if rng.random() < share else picture


# --- all of them -------------------------------------------------------------------------------------------

SHARES = (0.25, 0.5, 0.75, 1.0)
LISTINGS = "share of the listings"
NO_TITLE = "no title"

TITLES: tuple[Corruption[str], ...] = (
    Corruption(name="words dropped", axis="share of the words", strengths=SHARES, spoil=drop_tokens),
    Corruption(name="typos", axis="share of the words", strengths=SHARES, spoil=misspell),
    Corruption(name="foreign words", axis="per own word", strengths=(0.25, 0.5, 1.0, 2.0), spoil=mix_in),
    Corruption(name="label words removed", axis="share of these words", strengths=SHARES, spoil=remove_label_words),
    Corruption(name=NO_TITLE, axis=LISTINGS, strengths=SHARES, spoil=no_title),
    Corruption(name="another's title", axis=LISTINGS, strengths=SHARES, spoil=_exchange),
)

IMAGES: tuple[Corruption[Picture], ...] = (
    Corruption(name="JPEG", axis="quality", strengths=(50, 25, 10, 5), spoil=compress),
    Corruption(name="blur", axis="deviation by shorter side", strengths=(0.01, 0.025, 0.05, 0.1), spoil=blur),
    Corruption(name="noise", axis="deviation, of 255", strengths=(10, 25, 50, 100), spoil=add_noise),
    Corruption(name="crop", axis="share of the area left", strengths=(0.75, 0.5, 0.25, 0.1), spoil=crop),
    Corruption(name="occlusion", axis="share of the area", strengths=(0.1, 0.25, 0.5, 0.75), spoil=occlude),
    Corruption(name="colour cast", axis="share of the light", strengths=SHARES, spoil=tint),
    Corruption(name="blank picture", axis=LISTINGS, strengths=SHARES, spoil=blank),
    Corruption(name="another's picture", axis=LISTINGS, strengths=SHARES, spoil=_exchange),
)

CORRUPTIONS: tuple[Corruption[Any], ...] = (*TITLES, *IMAGES)
"""All of them, those of titles first."""
