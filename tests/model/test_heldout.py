from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ConfigError, ModelError
from model.evaluation.calibrate import fit_calibration
from model.evaluation.heldout import HeldOut, collect, evidence_groups, load_scores, save_scores
from model.situations import Situation
from model.tasks import OUT_OF_VOCABULARY, UNLABELLED
from tests.model.held_out_catalogue import BROKEN, TASKS, ColourReader, catalogue, noisy_listings

COLOUR, SEASON = TASKS
CONSOLE = Console(file=io.StringIO())


def listing(number: int, title: str | None, image: str | None, colour: str | None = None) -> Listing:
    labels = {} if colour is None else {"colour": colour}
    return Listing(id=str(number), title=title, image=image, labels=labels, group=str(number), part=Part.TEST)


LISTINGS = (
    listing(0, "a red shirt", "blue", "red"),
    listing(1, None, "green", "green"),
    listing(2, "a blue shirt", None, "blue"),
    listing(3, "A  Red Shirt", BROKEN, "mauve"),
    listing(4, "a green shirt", "green"),
    replace(listing(5, "a red shirt", "red", "red"), part=Part.TRAIN),
)


def collected(predictor: ColourReader, shop: Catalogue, **options: int) -> dict[Situation, HeldOut]:
    return collect(predictor, shop, shop.part(Part.TEST), console=CONSOLE, what="test", **options)


@pytest.mark.parametrize(
    ("situation", "ids", "unreadable", "colours", "attention"),
    [
        (Situation.IMAGE_AND_TITLE, ["0", "4"], 1, ["red", "green"], [0.5, 0.5]),
        (Situation.IMAGE, ["0", "1", "4"], 1, ["blue", "green", "green"], [1, 0]),
        (Situation.TITLE, ["0", "2", "4"], 0, ["red", "blue", "green"], [0, 1]),
    ],
)
def test_each_situation_has_its_listings_and_withholds_the_rest(
    situation: Situation, ids: list[str], unreadable: int, colours: list[str], attention: list[float]
) -> None:
    held_out = collected(ColourReader(), catalogue(*LISTINGS), batch_size=2)[situation]
    expected = [*ids, "3"] if situation is Situation.TITLE else ids
    assert sorted(answered.id for answered in held_out.listings) == sorted(expected)
    assert held_out.unreadable == unreadable
    read = {
        answered.id: COLOUR.labels[logits.argmax()]
        for answered, logits in zip(held_out.listings, held_out.logits_of(COLOUR), strict=True)
    }
    assert [read[i] for i in ids] == colours
    assert held_out.attention.shape == (len(expected), 2, 2)
    assert (held_out.attention == attention).all()


def test_batches_are_full_and_rows_stay_with_their_listings() -> None:
    listings = noisy_listings(Part.TEST, 70)
    predictor = ColourReader()
    held_out = collected(predictor, catalogue(*listings), batch_size=32)[Situation.TITLE]
    assert predictor.batches == [32, 32, 6]
    assert held_out.listings == tuple(listings)
    read = [COLOUR.labels[i] for i in held_out.logits_of(COLOUR).argmax(axis=1)]
    assert read == [str(listing.title).split()[0] for listing in listings]


def test_a_part_without_such_listings_is_empty() -> None:
    held_out = collected(ColourReader(), catalogue(LISTINGS[1]))[Situation.TITLE]
    assert held_out.listings == ()
    assert held_out.logits_of(COLOUR).shape == (0, 3)
    assert held_out.attention.shape == (0, 2, 2)
    assert len(held_out.answers(COLOUR, 1.0, np.ones(0, np.bool_)).labels) == 0


def test_answers_leave_out_the_unlabelled_and_keep_the_unknown_as_errors() -> None:
    held_out = collected(ColourReader(), catalogue(*LISTINGS))[Situation.TITLE]
    assert held_out.labels(COLOUR).tolist() == [2, 0, OUT_OF_VOCABULARY, UNLABELLED]
    answers = held_out.answers(COLOUR, 2.0, np.array([True, False, True, True]))
    assert answers.labels.tolist() == [2, 0, OUT_OF_VOCABULARY]
    # "A  Red Shirt" says "Red", which the reader does not know: no evidence, a third for each colour.
    assert answers.confidence == pytest.approx([np.exp(3) / (np.exp(3) + 2)] * 2 + [1 / 3])
    assert answers.correct.tolist() == [True, True, False]
    assert answers.passed.tolist() == [True, False, True]
    # Titles alike but for case and white space are one group.
    assert answers.group[0] == answers.group[2] != answers.group[1]


def test_listings_that_share_a_title_or_a_group_are_one_piece_of_evidence() -> None:
    """Size by size a style has a title of its own, and a title stands for several styles: linked, they count as one."""
    shared = [("s1", "shirt S"), ("s1", "shirt M"), ("s2", "Shirt  m"), ("s2", "coat"), ("s3", "hat"), ("s4", None)]
    listings = [
        Listing(id=str(number), title=title, image="red", labels={}, group=group, part=Part.TEST)
        for number, (group, title) in enumerate(shared)
    ]
    groups = evidence_groups(listings)
    assert groups[0] == groups[1] == groups[2] == groups[3]
    assert len({groups[0], groups[4], groups[5]}) == 3
    assert len(evidence_groups([])) == 0


def test_an_attribute_that_the_catalogue_does_not_name_is_named() -> None:
    shop = catalogue(*LISTINGS)
    without = replace(shop, config=replace(shop.config, attributes=("colour",)))
    with pytest.raises(ConfigError, match="does not name season"):
        fit_calibration(ColourReader(), without, console=CONSOLE)


def test_scores_survive_the_disk(tmp_path: Path) -> None:
    held_out = collected(ColourReader(), catalogue(*LISTINGS))[Situation.IMAGE_AND_TITLE]
    answers = {Situation.IMAGE_AND_TITLE: {"a/strange name": held_out.answers(COLOUR, 1.0, np.ones(2, np.bool_))}}
    path = tmp_path / "scores.npz"
    save_scores(path, answers)
    read = load_scores(path)
    assert list(read) == [Situation.IMAGE_AND_TITLE]
    assert list(read[Situation.IMAGE_AND_TITLE]) == ["a/strange name"]
    for column, values in vars(answers[Situation.IMAGE_AND_TITLE]["a/strange name"]).items():
        np.testing.assert_array_equal(vars(read[Situation.IMAGE_AND_TITLE]["a/strange name"])[column], values)


@pytest.mark.parametrize("content", [{"x": np.ones(2)}, {"title/colour/confidence": np.ones(2)}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, allow_pickle=False, **content)
    with pytest.raises(ModelError, match="no held-out scores"):
        load_scores(path)
    path.write_bytes(b"text")
    with pytest.raises(ModelError, match="no held-out scores"):
        load_scores(path)
