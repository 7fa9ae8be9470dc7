"""Corrupted listings: what goes wrong with titles and images in a feed, at several strengths.

Deterministic: how a listing is corrupted depends on the seed, the corruption and the listing's id alone. The draws are
the same at every strength, so a stronger corruption changes everything that a milder one does, and more.

May import numpy, Pillow and `model.inputs.corruptions`; knows nothing of networks.
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

RgbImage = Image.Image
Input = TypeVar("Input", str, RgbImage)

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Corruption(Generic[Input]):
    """One way of corrupting a title (words separated by white space) or an RGB image.

    strengths: from mild to severe, in the unit that `axis` names.
    apply: (own input, the listing, another listing's input, strength, generator) -> the corrupted input. A corrupted
    title may be empty.
    drawn_as: seeds the generator in place of `name`, which has changed since the committed figures were measured.
    """

    name: str
    axis: str
    strengths: tuple[float, ...]
    apply: Callable[[Input, Listing, Input, float, random.Random], Input]
    drawn_as: str | None = None
    seed: int = field(default=SEED)

    def __call__(self, given: Input, listing: Listing, other: Input, strength: float) -> Input:
        """Return `given`, the input of `listing`, corrupted; `other` is another listing's."""
        return self.apply(given, listing, other, strength, self._generator(listing))

    def _generator(self, listing: Listing) -> random.Random:
        return random.Random(f"{self.seed}/{self.drawn_as or self.name}/{listing.id}")  # noqa: S311 - no secret


def another(listing: Listing, listings: Sequence[Listing], *, seed: int = SEED) -> Listing:
    """Return another one of `listings`, with another title if there is one: always the same for this listing."""
    generator = random.Random(f"{seed}/another/{listing.id}")  # noqa: S311
    for _ in range(100):
        drawn = listings[generator.randrange(len(listings))]
        if (drawn.title or "").casefold() != (listing.title or "").casefold():
            return drawn
    return listings[0]


# --- titles ------------------------------------------------------------------------------------------------


def drop_words(title: str, _listing: Listing, _other: str, share: float, rng: random.Random) -> str:
    """Leave out a share of the words, never all."""
    words = title.split()
    drawn = [rng.random() for _ in words]
    last = max(range(len(words)), key=drawn.__getitem__, default=0)  # kept at any strength
    return " ".join(word for i, word in enumerate(words) if drawn[i] >= share or i == last)


def add_words(title: str, _listing: Listing, other: str, share: float, rng: random.Random) -> str:
    """Insert words of another title at random positions, `share` times as many as the title has."""
    words, added = title.split(), other.split()
    wanted = round(share * len(words))
    for k in range(wanted):
        words.insert(rng.randrange(len(words) + 1), added[k % len(added)])
    return " ".join(words)


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


def remove_label_words(title: str, listing: Listing, _other: str, share: float, rng: random.Random) -> str:
    """Leave out a share of the words that name the listing's own labels."""
    labels = tuple(listing.labels.values())
    return " ".join(word for word in title.split() if rng.random() >= share or without_label_words(word, labels))


def no_title(title: str, _listing: Listing, _other: str, share: float, rng: random.Random) -> str:
    """Leave a share of the listings without a title."""
    return "" if rng.random() < share else title


def mismatch(given: Input, _listing: Listing, other: Input, share: float, rng: random.Random) -> Input:
    """Give a share of the listings another listing's title or image."""
    return other if rng.random() < share else given


# --- images ------------------------------------------------------------------------------------------------


def compress(image: RgbImage, _listing: Listing, _other: RgbImage, quality: float, _rng: random.Random) -> RgbImage:
    """Compress by JPEG."""
    return corruptions.compress(image, round(quality))


def blur(image: RgbImage, _listing: Listing, _other: RgbImage, share: float, _rng: random.Random) -> RgbImage:
    """Blur by a Gaussian whose deviation is that share of the image's shorter side."""
    return corruptions.blur(image, share * min(image.size))


def add_noise(image: RgbImage, _listing: Listing, _other: RgbImage, deviation: float, rng: random.Random) -> RgbImage:
    """Add white noise of that deviation, of 255."""
    return Image.fromarray(corruptions.add_noise(np.asarray(image), deviation, rng.getrandbits(32)))


def crop(image: RgbImage, _listing: Listing, _other: RgbImage, share: float, rng: random.Random) -> RgbImage:
    """Cut out that share of the area, anywhere, with the image's aspect ratio."""
    (width, height), scale = image.size, share**0.5
    left, top = rng.random() * (1 - scale) * width, rng.random() * (1 - scale) * height
    right, bottom = max(left + scale * width, left + 1), max(top + scale * height, top + 1)
    return image.crop((round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1)))


def occlude(image: RgbImage, _listing: Listing, _other: RgbImage, share: float, rng: random.Random) -> RgbImage:
    """Cover that share of the area by a rectangle of one colour, with the image's aspect ratio."""
    (width, height), scale = image.size, share**0.5
    size = (round(scale * width), round(scale * height))
    corner = (round(rng.random() * (width - size[0])), round(rng.random() * (height - size[1])))
    colour = rng.randrange(256), rng.randrange(256), rng.randrange(256)
    return corruptions.cover(image, corner, size, colour)


def tint(image: RgbImage, _listing: Listing, _other: RgbImage, share: float, rng: random.Random) -> RgbImage:
    """Light the image in colour: that share of the light is a saturated colour, the rest white."""
    weakened = [1 - share * x for x in rng.choice(((0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)))]
    return Image.fromarray((np.asarray(image, dtype=np.float64) * weakened).astype(np.uint8))


def blank(image: RgbImage, _listing: Listing, _other: RgbImage, share: float, rng: random.Random) -> RgbImage:
    """Give a share of the listings a white image."""
    return Image.new("RGB", image.size, "white") if rng.random() < share else image


# --- all of them -------------------------------------------------------------------------------------------

SHARES = (0.25, 0.5, 0.75, 1.0)
LISTINGS = "share of the listings"
LABEL_WORDS_REMOVED, NO_TITLE = "label words removed", "no title"
MISMATCHED_TITLE, MISMATCHED_IMAGE = "mismatched title", "mismatched image"

TITLES: tuple[Corruption[str], ...] = (
    Corruption(name="words dropped", axis="share of the words", strengths=SHARES, apply=drop_words),
    Corruption(name="typos", axis="share of the words", strengths=SHARES, apply=misspell),
    Corruption(
        name="words added",
        axis="per own word",
        strengths=(0.25, 0.5, 1.0, 2.0),
        apply=add_words,
        drawn_as="foreign words",
    ),
    Corruption(name=LABEL_WORDS_REMOVED, axis="share of these words", strengths=SHARES, apply=remove_label_words),
    Corruption(name=NO_TITLE, axis=LISTINGS, strengths=SHARES, apply=no_title),
    Corruption(name=MISMATCHED_TITLE, axis=LISTINGS, strengths=SHARES, apply=mismatch, drawn_as="another's title"),
)

IMAGES: tuple[Corruption[RgbImage], ...] = (
    Corruption(name="JPEG", axis="quality", strengths=(50, 25, 10, 5), apply=compress),
    Corruption(name="blur", axis="deviation by shorter side", strengths=(0.01, 0.025, 0.05, 0.1), apply=blur),
    Corruption(name="noise", axis="deviation, of 255", strengths=(10, 25, 50, 100), apply=add_noise),
    Corruption(name="crop", axis="share of the area left", strengths=(0.75, 0.5, 0.25, 0.1), apply=crop),
    Corruption(name="occlusion", axis="share of the area", strengths=(0.1, 0.25, 0.5, 0.75), apply=occlude),
    Corruption(name="colour cast", axis="share of the light", strengths=SHARES, apply=tint),
    Corruption(name="blank image", axis=LISTINGS, strengths=SHARES, apply=blank, drawn_as="blank picture"),
    Corruption(name=MISMATCHED_IMAGE, axis=LISTINGS, strengths=SHARES, apply=mismatch, drawn_as="another's picture"),
)

CORRUPTIONS: tuple[Corruption[Any], ...] = (*TITLES, *IMAGES)
"""All of them, those of titles first."""
