"""CSV as people write it: quoted text of any length is one cell, and no text becomes a row of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.catalogue import csv_table
from model.catalogue.cells import Row
from model.catalogue.tables import Wanted, open_table


def read(tmp_path: Path, text: str, *columns: str, title: str = "title", **options: Any) -> list[Row]:
    (tmp_path / "t.csv").write_text(text, newline="")
    return list(open_table(tmp_path / "t.csv", Wanted(columns=columns, id="id", title=title, **options)).rows)


def titles(rows: list[Row]) -> dict[str, str]:
    return {row.values["id"]: row.error or row.values["title"] for row in rows}


@pytest.mark.parametrize("lines", [2, 130, 5000])
def test_a_quoted_description_of_any_length_is_one_cell(tmp_path: Path, lines: int) -> None:
    text = "\n".join(f"<li>line {n}, soft, washable</li>" for n in range(lines))
    rows = read(tmp_path, f'id,description,title\n1,"{text}",Red dress\n2,short,Blue shirt\n', "id", "title")
    assert titles(rows) == {"1": "Red dress", "2": "Blue shirt"}
    assert [row.line for row in rows] == [2, lines + 2]
    assert not any(row.repaired for row in rows)


def test_a_cell_of_a_million_characters(tmp_path: Path) -> None:
    rows = read(tmp_path, f'id,title\n1,"{"x" * 1_000_000}"\n2,Blue\n', "id", "title")
    assert [len(row.values["title"]) for row in rows] == [1_000_000, 4]


@pytest.mark.parametrize("header", ["id,description,title", "id,title,description"])
@pytest.mark.parametrize("first", ['"<div class="wide">', '"<p class="a">line 0, soft, washable</p>'])
def test_quotes_inside_quotes_never_become_rows(tmp_path: Path, header: str, first: str) -> None:
    inside = "".join(f"<li>line {n}, soft, washable</li>\n" for n in range(130))
    table = f'{header}\n1,a,b\n2,x,{first}\n{inside}</div>",y\n3,c,d\n4,e,f\n'
    rows = read(tmp_path, table, "id", "title")
    assert [(row.values["id"], row.error) for row in rows] == [
        ("1", None),
        ("2", "a quote is never closed"),
        ("3", None),
        ("4", None),
    ]


def test_a_quote_that_is_open_at_the_end_of_the_file_takes_no_rows_with_it(tmp_path: Path) -> None:
    rows = read(tmp_path, 'id,kind,title\n1,a,Red\n2,a,"Blue\n3,a,Green\n4,a,Black\n', "id", "title")
    assert titles(rows) == {"1": "Red", "2": '"Blue', "3": "Green", "4": "Black"}
    assert [row.repaired for row in rows] == [False, True, False, False]


def test_a_quote_that_stays_open_too_long_is_a_stray_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "MAX_RECORD", 1000)
    table = "id,title\n1,Red\n" + '2,"Blue\n' + "".join(f"{n},Green {n}\n" for n in range(3, 500)) + '500,"Black"\n'
    rows = read(tmp_path, table, "id", "title")
    assert [row.values["id"] for row in rows] == [str(n) for n in range(1, 501)]
    assert [row.line for row in rows if row.repaired] == [3]


# --- commas that nobody quoted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "title"),
    [
        ("9,Red,Set,Tie, Cufflink, Square", "Tie, Cufflink, Square"),
        ("9,Red,Set,Liv,Laugh", "Liv,Laugh"),
        ("9,Dark, red,Set,Tie", "too many fields"),  # the space says that the sentence goes on
        ("9,Dark,red,Set,Tie", "too many fields"),  # `red` is no kind
        ("9,Red,New,Set,Tie", "too many fields"),  # nor is `New`
    ],
)
def test_only_commas_that_can_be_nowhere_but_in_the_title_are_repaired(tmp_path: Path, row: str, title: str) -> None:
    rows = read(tmp_path, f"id,colour,kind,title\n{row}\n1,Red,Set,A\n2,Dark,Shirt,B\n", "id", "colour", "title")
    assert titles(rows) == {"9": title, "1": "A", "2": "B"}
    assert rows[0].repaired is (title != "too many fields")


def test_a_free_text_before_the_title_leaves_no_certainty(tmp_path: Path) -> None:
    table = "id,description,title\n1,soft and red,Dress\n2,blue,Shirt\n3,warm,red,Scarf\n"
    assert titles(read(tmp_path, table, "id", "title"))["3"] == "too many fields"


def test_a_new_code_before_the_title_is_like_the_others(tmp_path: Path) -> None:
    table = "id,barcode,title\n1,5012345,Dress\n2,5012346,Shirt\n3,5012347,Scarf, red\n"
    assert titles(read(tmp_path, table, "id", "title"))["3"] == "Scarf, red"


def test_semicolons_are_put_together_by_semicolons(tmp_path: Path) -> None:
    table = "id;kind;title\n1;Set;A\n2;Set;Tie; Square\n"
    assert titles(read(tmp_path, table, "id", "title")) == {"1": "A", "2": "Tie; Square"}
