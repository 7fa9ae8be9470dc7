"""The random share: as large as it should be, the same everywhere, and beyond anybody's choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.inference.predictions import Abstention, AttributePrediction, Candidate, LabelPrediction
from service.reviews.sampling import Draw, lesson

SECRET = b"s" * 32
ATTRIBUTES = ("baseColour", "season")
titles = st.none() | st.text()
images = st.none() | st.binary()


def answer(*confidences: float, abstention: Abstention | None = Abstention.LOW_CONFIDENCE) -> AttributePrediction:
    candidates = tuple(Candidate(f"label {n}", confidence) for n, confidence in enumerate(confidences))
    return AttributePrediction(
        label=candidates[0].label,
        confidence=candidates[0].confidence,
        abstention=abstention,
        threshold=0.9,
        target_precision=0.95,
        candidates=candidates,
        modality_attention={"image": 1.0, "text": 0.0},
        explanation=None,
    )


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_the_share_of_all_pairs_is_drawn(share: float) -> None:
    draw = Draw(SECRET, share)
    drawn = [
        draw.draws(draw.position(draw.listing(f"Shirt {number}", None), attribute))
        for number in range(4_000)
        for attribute in ATTRIBUTES
    ]
    assert sum(drawn) / len(drawn) == pytest.approx(share, abs=0.015)


def test_the_attributes_of_a_listing_are_drawn_apart() -> None:
    draw = Draw(SECRET, 0.5)
    listings = [draw.listing(f"Shirt {number}", None) for number in range(2_000)]
    colour, season = ([draw.draws(draw.position(each, name)) for each in listings] for name in ATTRIBUTES)
    both = sum(a and b for a, b in zip(colour, season, strict=True)) / len(listings)
    assert both == pytest.approx(0.25, abs=0.05)


@given(titles, images)
def test_the_same_listing_is_drawn_alike_everywhere_and_by_another_secret_otherwise(
    title: str | None, image: bytes | None
) -> None:
    one, same, other = Draw(SECRET, 0.1), Draw(SECRET, 0.9), Draw(b"t" * 32, 0.1)
    listing = one.listing(title, image)
    assert listing == same.listing(title, image) != other.listing(title, image)
    assert one.position(listing, "season") == same.position(listing, "season") != other.position(listing, "season")


@given(titles, images, titles, images)
def test_different_listings_are_never_taken_for_each_other(
    title: str | None, image: bytes | None, other_title: str | None, other_image: bytes | None
) -> None:
    draw = Draw(SECRET, 0.1)
    same = (title, image or None) == (other_title, other_image or None)
    assert (draw.listing(title, image) == draw.listing(other_title, other_image)) is same


def test_text_that_is_no_unicode_is_drawn_too() -> None:
    assert len(Draw(SECRET, 0.1).listing("half a pair: \ud83d", None)) == 64


def test_what_the_model_hardly_decides_teaches_most() -> None:
    scores = [lesson(answer(*confidences)) for confidences in ((0.9, 0.05), (0.5, 0.3), (0.4, 0.4))]
    assert scores == pytest.approx([0.15, 0.8, 1.0])


def test_what_is_accepted_or_not_applicable_is_not_asked_for_teaching() -> None:
    assert lesson(answer(0.9, 0.1, abstention=None)) is None
    assert lesson(answer(0.9, 0.1, abstention=Abstention.NOT_APPLICABLE)) is None
    assert lesson(answer(0.9, abstention=Abstention.UNFAMILIAR_LISTING)) == pytest.approx(0.1)


def test_of_several_labels_the_one_between_yes_and_no_teaches_most_unless_one_is_accepted() -> None:
    found = answer(0.9, 0.45, 0.1)
    label = LabelPrediction(label="label 0", confidence=0.9, abstention=Abstention.LOW_CONFIDENCE, threshold=0.95)
    assert lesson(replace(found, labels=(label,))) == pytest.approx(0.9)
    assert lesson(replace(found, labels=(label,), abstention=None)) is None
