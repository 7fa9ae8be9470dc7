"""Made-up listings that are unlike any of a fashion catalogue: what a measure of familiarity is fitted and judged on.

Real listings of other fields are not at hand where a model is trained. These are drawn by code (`outlier_images`) and
put together from words (`outlier_titles`). What is fitted on one family is judged on the other: they share no kind of
image, no field, no language. Deterministic: everything is drawn from the generator that is passed in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from model.inputs import outlier_images, outlier_titles


class Family(StrEnum):
    """Two disjoint families of made-up outliers."""

    FITTING = "fitting"
    JUDGING = "judging"


TITLES = {Family.FITTING: outlier_titles.FITTING, Family.JUDGING: outlier_titles.JUDGING}

IMAGES = {Family.FITTING: outlier_images.FITTING, Family.JUDGING: outlier_images.JUDGING}


@dataclass(frozen=True, slots=True)
class Outlier:
    """A made-up listing, and the kinds that its title and its image are of."""

    title: str
    title_kind: str
    image: Image.Image
    image_kind: str


def draw_outliers(family: Family, n: int, rng: random.Random, photos: Sequence[Image.Image]) -> Iterator[Outlier]:
    """Draw `n` outliers, every kind of title and of image about equally often.

    `photos`: RGB images of the catalogue, at least one, which some kinds of images are made from.
    """
    photos = [_enlarged(photo) for photo in photos]
    titles, images = list(TITLES[family].items()), list(IMAGES[family].items())
    for number in range(n):
        # The numbers of kinds have no common divisor to rely on: pairs are drawn, kinds take turns.
        (title_kind, title), (image_kind, image) = titles[number % len(titles)], rng.choice(images)
        yield Outlier(title(rng), title_kind, image(rng, rng.choice(photos)), image_kind)


SMALLEST_PHOTO = 48
"""Cut, squashed and shuffled, a smaller one would leave nothing."""


def _enlarged(photo: Image.Image) -> Image.Image:
    width, height = photo.size
    factor = SMALLEST_PHOTO / min(width, height)
    return photo if factor <= 1 else photo.resize((math.ceil(width * factor), math.ceil(height * factor)))
