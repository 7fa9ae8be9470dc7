from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from model.inputs import outlier_titles
from model.inputs.outliers import IMAGES, TITLES, Family, draw_outliers
from model.trust.scope import normalised_words

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8))

IMAGE_KINDS = [pytest.param(family, kind, id=f"{family}-{kind}") for family in Family for kind in IMAGES[family]]
TITLE_KINDS = [pytest.param(family, kind, id=f"{family}-{kind}") for family in Family for kind in TITLES[family]]


@pytest.mark.parametrize(("family", "kind"), IMAGE_KINDS)
def test_images_are_drawn_from_the_generator_alone(family: Family, kind: str) -> None:
    make, before = IMAGES[family][kind], PHOTO.tobytes()
    for seed in range(5):
        image = make(random.Random(seed), PHOTO)
        assert image.mode == "RGB"
        assert min(image.size) >= 32
        assert image.tobytes() == make(random.Random(seed), PHOTO).tobytes()
    assert len({make(random.Random(seed), PHOTO).tobytes() for seed in range(8)}) > 1
    assert PHOTO.tobytes() == before


@pytest.mark.parametrize(("family", "kind"), TITLE_KINDS)
def test_titles_are_drawn_from_the_generator_alone(family: Family, kind: str) -> None:
    make = TITLES[family][kind]
    titles = [make(random.Random(seed)) for seed in range(20)]
    assert titles == [make(random.Random(seed)) for seed in range(20)]
    assert all(title == title.strip() and 0 < len(title) <= 256 for title in titles)
    assert len(set(titles)) > 1


def test_the_families_share_no_kind_and_no_product() -> None:
    fitting, judging = Family.FITTING, Family.JUDGING
    assert not TITLES[fitting].keys() & TITLES[judging].keys()
    assert not IMAGES[fitting].keys() & IMAGES[judging].keys()
    assert not set(IMAGES[fitting].values()) & set(IMAGES[judging].values())

    def products(family: Family) -> set[str]:
        fields = [each for each in TITLES[family].values() if isinstance(each, outlier_titles.Field)]
        return {product.strip() for field in fields for product in field.products.split(",")}

    assert len(products(fitting)) > 100
    assert len(products(judging)) > 100
    assert not products(fitting) & products(judging)


@pytest.mark.parametrize("family", Family)
def test_all_kinds_are_drawn(family: Family) -> None:
    drawn = list(draw_outliers(family, 200, random.Random(1), [PHOTO]))
    assert {each.title_kind for each in drawn} == set(TITLES[family])
    assert {each.image_kind for each in drawn} == set(IMAGES[family])
    again = list(draw_outliers(family, 200, random.Random(1), [PHOTO]))
    assert [(each.title, each.image.tobytes()) for each in again] == [
        (each.title, each.image.tobytes()) for each in drawn
    ]


def test_a_field_always_names_a_product() -> None:
    rng, products = random.Random(2), {each.strip() for each in outlier_titles.PETS.products.split(",")}
    for _ in range(100):
        title = outlier_titles.PETS(rng)
        assert any(product in title for product in products)
        words = normalised_words(title)
        assert len(words) >= 2
