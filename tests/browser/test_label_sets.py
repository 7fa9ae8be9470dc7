"""Attributes with several labels, labels by their names for people, and what does not apply, in the playground."""

from __future__ import annotations

import csv
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPlayground, PointedPredictor, Site, serving
from tests.service.fake_predictor import FakePrediction, FakePrepared
from tests.service.test_label_sets import NOWHERE, SetPrediction, SetPredictor


class PointedSets(PointedPredictor):
    tasks = SetPredictor.tasks
    info = SetPredictor.info

    def predict(self, batch: list[FakePrepared]) -> list[FakePrediction]:
        super().predict(batch)
        return [SetPrediction(listing) for listing in batch]


@pytest.fixture(scope="module")
def sets() -> Iterator[Site]:
    with serving(PointedSets()) as site:
        yield site


@pytest.mark.parametrize(("language", "wool"), [("de-AT", "Wolle"), ("fr", "Wool")])
def test_all_accepted_labels_are_shown_in_the_browsers_language(
    open_playground: OpenPlayground, sets: Site, language: str, wool: str
) -> None:
    playground = open_playground(sets, locale=language)
    playground["#title"].fill("Wool and cotton")
    row = playground["[data-attribute=material]"]
    expect(row.locator(".label")).to_have_text(f"{wool}, Cotton")
    expect(row.locator(".label")).to_have_attribute("title", "of sheep")
    expect(row.locator(".verdict")).to_have_text("Accepted")
    expect(row.locator(".why")).to_have_text("Confidence 70.0 % (minimum 60.0 %)")
    expect(row.locator(".other")).to_have_text(["Linen 10.0 %"])


def test_an_attribute_that_does_not_apply_says_so(open_playground: OpenPlayground, sets: Site) -> None:
    playground = open_playground(sets)
    playground["#title"].fill(f"Wool {NOWHERE}")
    row = playground["[data-attribute=material]"]
    expect(row.locator(".verdict")).to_have_text("Not accepted")
    expect(row.locator(".why")).to_contain_text("Products of this type don’t have this attribute. Confidence")


def test_the_download_joins_the_cells_of_several_labels(open_playground: OpenPlayground, sets: Site) -> None:
    playground = open_playground(sets, locale="de")
    playground.page.get_by_role("tab", name="Many listings").click()
    table = {"name": "t.csv", "mimeType": "text/csv", "buffer": b"id,title\n1,Wool and cotton\n"}
    playground["#files"].set_input_files(table)  # type: ignore[arg-type]
    expect(playground["#table tbody"]).to_contain_text("Wolle, Cotton")
    with playground.page.expect_download() as download:
        playground["#download"].click()
    with download.value.path().open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["material"] == "Wool|Cotton"  # labels, whatever people call them
    assert [row[f"material_{each}"] for each in ("suggestion", "confidence", "abstention", "image_weight")] == [
        "Linen", "0.99|0.7|0.1", "low_confidence", "0"
    ]  # fmt: skip
