"""Reviews as a catalogue: parts that share no title, nothing that was trained on, and certificates from them alone."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.catalogue.reviewed import NONE_FITS, SKIPPED, ReviewedImages, ReviewedListing, reviewed_catalogue
from model.catalogue.splits import Part
from model.errors import CatalogueError
from model.evaluation.calibrate import fit_calibration, temperatures_of
from model.evaluation.reviewed import fewest_pairs, prospects
from model.situations import Situation
from tests.model.held_out_catalogue import COLOURS, TASKS, ColourReader, Squares, noisy_listings

CONSOLE = Console(file=io.StringIO())
ATTRIBUTES = [task.name for task in TASKS]


def reviews(n: int, *, title_right: float = 0.99) -> list[ReviewedListing]:
    return [
        ReviewedListing(name=each.id, id=f"sku-{each.id}", title=each.title, has_image=True, labels=each.labels)
        for each in noisy_listings(Part.TEST, n, title_right=title_right, seed=7)
    ]


def images(found: list[ReviewedListing]) -> ReviewedImages:
    """The image of each shows the first colour of all."""
    colour = next(iter(COLOURS))
    names = {each.name for each in found}
    return ReviewedImages(lambda name: Squares().read(colour) if name in names else None)


def opened(found: list[ReviewedListing]) -> Catalogue:
    return reviewed_catalogue(found, ATTRIBUTES, images(found))


def test_most_certify_and_some_show_what_is_familiar() -> None:
    shares = [len(opened(reviews(1_000)).part(part)) / 1_000 for part in Part]
    assert shares == pytest.approx([0.1, 0.1, 0.8, 0.0], abs=0.04)


def test_listings_that_share_a_title_are_in_one_part() -> None:
    found = [replace(each, title=f"Shirt {number % 40}") for number, each in enumerate(reviews(400))]
    parts: dict[str | None, set[Part]] = {}
    for listing in opened(found).listings:
        parts.setdefault(listing.title, set()).add(listing.part)
    assert len(parts) == 40
    assert all(len(each) == 1 for each in parts.values())


def test_what_the_model_was_trained_on_is_left_out_and_counted() -> None:
    found = reviews(10)
    catalogue = reviewed_catalogue(found, ATTRIBUTES, images(found), seen={"sku-test-3", "sku-test-4"})
    assert len(catalogue.listings) == 8
    assert "the catalogue trains on it: 2" in str(catalogue.report)
    with pytest.raises(CatalogueError, match="no listing of the random share"):
        reviewed_catalogue(found[3:5], ATTRIBUTES, images(found), seen={"sku-test-3", "sku-test-4"})


def test_an_image_that_was_purged_is_named() -> None:
    catalogue = opened(reviews(1))
    assert "test-0" in catalogue.images
    assert "gone" not in catalogue.images
    with pytest.raises(CatalogueError, match="gone"):
        catalogue.image_bytes("gone")


def test_thresholds_are_certified_on_reviews_and_temperatures_kept() -> None:
    base, _ = fit_calibration(ColourReader(), opened(reviews(400, title_right=0.9)), console=CONSOLE)
    kept = temperatures_of(base)
    calibration, _ = fit_calibration(ColourReader(), opened(reviews(400)), console=CONSOLE, temperatures=kept)
    assert temperatures_of(calibration) == kept
    title = calibration.situations[Situation.TITLE]["colour"].thresholds
    assert title[0.95] is not None
    assert title[0.95].support <= 340


@pytest.mark.parametrize("label", [SKIPPED, NONE_FITS])
def test_a_pair_without_a_label_counts_as_wrong(label: str) -> None:
    found = [replace(each, labels={"colour": label}) if n % 8 == 0 else each for n, each in enumerate(reviews(400))]
    kept = temperatures_of(fit_calibration(ColourReader(), opened(reviews(400)), console=CONSOLE)[0])
    calibration, _ = fit_calibration(ColourReader(), opened(found), console=CONSOLE, temperatures=kept)
    thresholds = calibration.situations[Situation.TITLE]["colour"].thresholds
    assert thresholds[0.95] is None  # an eighth of the answers is wrong


def test_an_attribute_of_which_no_label_ever_fits_is_not_certified() -> None:
    found = [replace(each, labels={"colour": NONE_FITS}) for each in reviews(100)]
    kept = temperatures_of(fit_calibration(ColourReader(), opened(reviews(400)), console=CONSOLE)[0])
    calibration, _ = fit_calibration(ColourReader(), opened(found), console=CONSOLE, temperatures=kept)
    assert set(calibration.situations[Situation.TITLE]["colour"].thresholds.values()) == {None}


def test_what_reviews_can_certify_is_said_beforehand() -> None:
    found = [*reviews(370), replace(reviews(1)[0], name="skipped", title="skipped 3", labels={"colour": SKIPPED})]
    catalogue = opened(found)
    certain = len(catalogue.part(Part.CALIBRATION))
    output = io.StringIO()
    Console(file=output, width=160).print(prospects(catalogue, TASKS, (0.95, 0.99)))
    assert "For comparison, 300 pairs allow at 95 % 6, at 99 % none: 459 pairs are needed." in " ".join(
        output.getvalue().split()
    )
    (row,) = [line for line in output.getvalue().splitlines() if "colour" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert 280 < certain < 310
    skipped = sum(listing.labels.get("colour") == SKIPPED for listing in catalogue.part(Part.CALIBRATION))
    assert cells == ["colour", str(371 - certain), str(certain), str(skipped), "6", "none: 459 pairs are needed"]


def test_fewest_pairs_are_those_of_which_none_may_be_wrong() -> None:
    assert (fewest_pairs(0.9), fewest_pairs(0.95), fewest_pairs(0.99)) == (44, 90, 459)
