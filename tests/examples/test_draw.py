"""The playground's examples: what the shipped checkpoint reads of each, and that it refuses the two that it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from examples.canvas import SIZE, Canvas, polygon
from model.inference.predictions import Abstention, Prediction
from model.inference.predictor import Predictor
from model.situations import Situation

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "examples" / "images"
TARGET = 0.95
READ = {
    "navy-shirt.jpg": ("Men", "Apparel", "Shirts", "Navy Blue"),
    "red-dress.jpg": ("Women", "Apparel", "Dresses", "Red"),
    "black-shoe.jpg": ("Men", "Footwear", "Sports Shoes", "Black"),
    "brown-watch.jpg": ("Men", "Accessories", "Watches", "Brown"),
    "brown-handbag.jpg": ("Women", "Accessories", "Handbags", "Brown"),
    "black-backpack.jpg": ("Unisex", "Accessories", "Backpacks", "Black"),
}
"""What each product is: its gender, masterCategory, articleType and baseColour."""
ATTRIBUTES = ("gender", "masterCategory", "articleType", "baseColour")
UNFAMILIAR = "oak-table.jpg"

EXAMPLES = re.findall(
    r'\["([\w-]+\.jpg)", "(.+?)", "(.+?)"\]', (ROOT / "service/static/playground/single.js").read_text(encoding="utf-8")
)
"""Image, title and name of each button of the playground."""
FAMILIAR = {file: title for file, title, name in EXAMPLES if name not in {"Unfamiliar", "Contradictory"}}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(ROOT / "weights" / "fashion", device="cpu")


def read(predictor: Predictor, title: str | None, file: str) -> Prediction:
    with Image.open(IMAGES / file) as image:
        prepared = predictor.prepare(title, image.convert("RGB"))
    return predictor.predict(predictor.collate([prepared]))[0]


def abstentions(predictor: Predictor, prediction: Prediction) -> set[Abstention | None]:
    names = [task.name for task in predictor.tasks]
    return {prediction.attribute(name, target_precision=TARGET, top_k=1).abstention for name in names}


def test_each_product_has_one_example() -> None:
    assert set(FAMILIAR) == set(READ)
    assert len(EXAMPLES) == len(READ) + 2


@pytest.mark.parametrize("file", READ)
def test_an_example_is_read_correctly_and_accepted(predictor: Predictor, file: str) -> None:
    prediction = read(predictor, FAMILIAR[file], file)
    assert prediction.scope.in_scope
    for attribute, label in zip(ATTRIBUTES, READ[file], strict=True):
        found = prediction.attribute(attribute, target_precision=TARGET, top_k=1)
        assert (found.label, found.abstention) == (label, None), attribute


@pytest.mark.parametrize("file", READ)
def test_its_image_alone_is_read_correctly(predictor: Predictor, file: str) -> None:
    prediction = read(predictor, None, file)
    assert prediction.scope.in_scope
    found = [prediction.attribute(name, target_precision=TARGET, top_k=1) for name in ATTRIBUTES]
    assert tuple(each.label for each in found) == READ[file]


def test_the_unfamiliar_example_is_refused(predictor: Predictor) -> None:
    ((file, title),) = [(file, title) for file, title, name in EXAMPLES if name == "Unfamiliar"]
    assert file == UNFAMILIAR
    for said in (title, None):
        prediction = read(predictor, said, file)
        assert prediction.scope.in_scope is False
        assert abstentions(predictor, prediction) == {Abstention.UNFAMILIAR_LISTING}


def test_image_and_title_of_the_other_example_contradict_each_other(predictor: Predictor) -> None:
    ((file, title),) = [(file, title) for file, title, name in EXAMPLES if name == "Contradictory"]
    assert title in {other for each, other in FAMILIAR.items() if each != file}
    prediction = read(predictor, title, file)
    assert prediction.scope.situation is Situation.IMAGE_AND_TITLE
    assert abstentions(predictor, prediction) == {Abstention.MODALITIES_DISAGREE}


def test_a_shape_is_lit_from_above_on_a_white_ground() -> None:
    canvas = Canvas()
    canvas.body(polygon([(60, 80), (180, 80), (180, 240), (60, 240)]), "#808080", 8)
    image = canvas.finish().convert("L")
    assert image.size == SIZE
    assert image.getpixel((10, 10)) == 255
    upper, middle, lower = (image.getpixel((120, y)) for y in (88, 160, 232))
    assert 120 <= middle <= 136  # type: ignore[operator]
    assert upper > lower + 10  # type: ignore[operator]
