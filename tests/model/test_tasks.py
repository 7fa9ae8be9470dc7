"""Label vocabularies, multi-valued attributes, and a listing's labels as a row of numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.errors import CatalogueError, ConfigError
from model.tasks import (
    OUT_OF_VOCABULARY,
    UNLABELLED,
    Task,
    build_tasks,
    encode_row,
    is_label_name,
    label_columns,
    multi_valued_places,
)

KIND = Task(name="kind", labels=("Shirt", "Watch"))
MATERIAL = Task(name="material", labels=("Cotton", "Linen", "Wool"), separator="|")
TASKS = (KIND, MATERIAL, Task(name="sleeve", labels=("Long", "Short")))


def test_a_multi_valued_attribute_has_a_column_for_each_label() -> None:
    assert label_columns(TASKS) == (slice(0, 1), slice(1, 4), slice(4, 5))
    assert multi_valued_places(TASKS) == {1}
    row = encode_row(TASKS, {"kind": "Watch"}, {"material": ("wool", "Cotton")})
    assert row == [1, 1, 0, 1, UNLABELLED]
    assert encode_row(TASKS, {"kind": "Hat"}, {}) == [OUT_OF_VOCABULARY, *[UNLABELLED] * 4]
    # A label that the model does not know: the listing still has none of the others.
    assert encode_row(TASKS, {}, {"material": ("Felt",)})[1:4] == [0, 0, 0]
    assert MATERIAL.encode_set(["Felt", "Wool", "wool", "Wool"]) == (frozenset({2}), 1)


def test_single_valued_attributes_are_encoded_as_ever() -> None:
    assert label_columns((KIND, KIND)) == (slice(0, 1), slice(1, 2))
    assert encode_row((KIND,), {"kind": "shirt"}, {}) == [KIND.encode("shirt")]


@pytest.mark.parametrize("task", [KIND, MATERIAL, Task(name="a", labels=("b", "c"), names={"b": {"de": "B"}})])
def test_a_task_survives_json(task: Task) -> None:
    again = Task.from_json(json.loads(json.dumps(task.to_json())))
    assert (again, again.names) == (task, task.names)
    assert again.multi_valued is task.multi_valued


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "Cotton"}, "are not a list"),
        ({"separator": 1}, "is not a text"),
        ({"separator": "o"}, "its separator 'o' inside"),
        ({"separator": ""}, "separator"),
        ({"names": {"Cotton": {"german!": "Baumwolle"}}}, "no texts by language"),
        ({"names": {"Felt": {"de": "Filz"}}}, "no label 'Felt' to be named"),
    ],
)
def test_a_damaged_task_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task.from_json(MATERIAL.to_json() | change)


def test_what_is_a_label_name() -> None:
    assert is_label_name({"de": "Marineblau", "pt-BR": "azul-marinho", "description": "as of uniforms"})
    assert is_label_name({})
    for wrong in ("Marineblau", {"de": ""}, {"de": 3}, {"colour": {"de": "x"}}, {"in German": "x"}):
        assert not is_label_name(wrong)


def test_labels_of_sets_are_counted_once_a_listing() -> None:
    rows = [{"kind": "Shirt", "material": ("Cotton", "Wool")}, {"kind": "Watch", "material": ("Wool", "Felt")}]
    tasks, rare = build_tasks(
        rows * 2,
        ["kind", "material"],
        min_label_count=2,
        separators={"material": "|", "file": "#"},
        names={"material": {"Wool": {"de": "Wolle"}, "Silk": {"de": "Seide"}}},
    )
    assert tasks == (KIND, Task(name="material", labels=("Cotton", "Felt", "Wool"), separator="|"))
    assert tasks[1].names == {"Wool": {"de": "Wolle"}}
    assert rare == {"kind": {}, "material": {}}
    with pytest.raises(CatalogueError, match="'material' has 1 labels with at least 3"):
        build_tasks(rows * 2, ["material"], min_label_count=3, separators={"material": "|"})
