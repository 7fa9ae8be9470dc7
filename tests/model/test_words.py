"""Titles that say nothing, and labels spelt in several ways."""

from __future__ import annotations

import pytest

from model.catalogue.words import Placeholders, SpellingCounts, as_list, plain_label
from model.tasks import OUT_OF_VOCABULARY, UNLABELLED, Task


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "N/A", "n/a", "-", " - ", "\u200b-", "NULL", "<NA>", "#N/A"])
def test_placeholders(text: str) -> None:
    assert text in Placeholders()
    assert text not in Placeholders([])
    assert text in Placeholders(["k. A."])


def test_further_placeholders() -> None:
    assert "K. a." in Placeholders(["k. A."])
    assert "K. a." not in Placeholders()


@pytest.mark.parametrize(
    "title", ["nan", "N/A", "-", "\u200b", "\u00a0", "Untitled", "12345678", "!!!", "SKU-1", "sku-1 ", "🔥"]
)
def test_titles_that_say_nothing(title: str) -> None:
    assert not Placeholders().is_title(title, "SKU-1")


@pytest.mark.parametrize("title", ["Nana dress", "None of your business tee", "501 Jeans", "赤い服", "SKU-1 dress"])
def test_titles_that_say_something(title: str) -> None:
    assert Placeholders().is_title(title, "SKU-1")


@pytest.mark.parametrize(
    ("text", "label"),
    [("True", "true"), ("FALSE", "false"), ("3.0", "3"), ("3", "3"), ("7.50", "7.5"), ("-2.00", "-2"), ("v1.0", "v1.0"),
     ("Jet  Black", "Jet Black"), ("Jet\u00a0Black", "Jet Black"), ("Red\u200b", "Red"), ("007", "007")],
)  # fmt: skip
def test_booleans_and_numbers_are_written_one_way(text: str, label: str) -> None:
    assert plain_label(text) == label


def test_lists() -> None:
    assert as_list("['Red', 'White']") == as_list('["Red", "White"]') == ["Red", "White"]
    assert as_list("['Red']") == ["Red"]
    for text in ("Red", "[Red]", "[", "[[1]]", "[" * 10_000 + "]"):
        assert as_list(text) is None


def test_the_most_frequent_spelling_is_kept() -> None:
    counts = SpellingCounts()
    for each in ("Red", "red", "RED", "Ｒed", "Blue", "Grün", "GRÜN"):
        counts.add({"colour": each}, {})
    counts.add({}, {"colour": ["Red", "Blue"]})
    assert counts.joined() == {"colour": {"RED": "Red", "red": "Red", "Ｒed": "Red", "Grün": "GRÜN"}}


def test_a_task_knows_other_spellings_of_its_labels() -> None:
    task = Task(name="colour", labels=("Navy Blue", "Red"))
    assert [task.encode(label) for label in ("Red", "RED", "navy  blue")] == [1, 1, 0]
    assert (task.encode("Green"), task.encode(None)) == (OUT_OF_VOCABULARY, UNLABELLED)


def test_labels_that_differ_in_spelling_alone_stay_apart() -> None:
    task = Task(name="size", labels=("M", "m"))
    assert [task.encode(label) for label in ("M", "m", "ｍ")] == [0, 1, OUT_OF_VOCABULARY]
