"""The playground reads tables as the library does: the same cases, `tests.table_cases`, run through both."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from random import Random
from typing import Any

import pytest
from playwright.sync_api import expect

from model.catalogue.tables import open_table
from tests.browser.conftest import Playground
from tests.browser.test_many import download, expect_done, read_many, write
from tests.model.test_table_cases import WANTED
from tests.model.test_tables import as_feed
from tests.table_cases import CASES, IMAGE_CASES, Case

READ = """async ([name, data]) => {
    const { readTable } = await import("/static/playground/tables.js");
    const { WANTED } = await import("/static/playground/files.js");
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    try {
        return await readTable(new File([bytes], name), WANTED);
    } catch (error) {
        return { refusal: error.message };
    }
}"""


def read(playground: Playground, name: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = playground.page.evaluate(READ, [name, base64.b64encode(data).decode()])
    return found


def test_a_table_means_the_same_to_the_playground(playground: Playground) -> None:
    for case in CASES:
        check(read(playground, case.file, case.data), case)


def check(found: dict[str, Any], case: Case) -> None:
    if case.refusal:
        assert case.refusal in found.get("refusal", ""), case.name
        return
    assert "refusal" not in found, (case.name, found)
    values = [tuple(row[key] for key in ("line", "id", "title", "image", "error", "repaired")) for row in found["rows"]]
    assert len(values) == len(case.rows), (case.name, values)
    for value, wanted in zip(values, case.rows, strict=True):
        image = value[3].replace('","', '", "')  # white space of a JSON list
        assert (value[0] if wanted[0] else 0, *value[1:3], image, *value[4:]) == wanted, case.name
    assert found["form"].startswith(case.form), case.name


def test_a_row_has_the_image_that_it_names_or_fails(playground: Playground) -> None:
    script = """async ([table, names]) => {
        const { listingsOf } = await import("/static/playground/files.js");
        const given = [["t.csv", table], ...names.map((name) => [name, name])];
        const files = given.map(([path, text]) => ({ path, file: new File([text], path.split("/").at(-1)) }));
        const { listings } = await listingsOf(files);
        return Promise.all(listings.map(async ({ image, error }) => (error ? null : image ? image.text() : "")));
    }"""
    for case in IMAGE_CASES:
        assert playground.page.evaluate(script, [case.text, case.images]) == list(case.found), case.name


HEADERS = (
    "id,title,image", "id,image,title", "id,image,kind,title", "title,image,id", "x,id,image,title",
    "id;image;title", "id\timage\ttitle", 'id,"of\nuse",title,image',
)  # fmt: skip
CELLS = (
    "Red", "Blue", "Set", "A", "B1", "a b", "1", "22", "", " Tie", "é", "'=1", "a;b", "a|b", '5"', '"q"', '"a,b"',
    '"a\nb"', '"a ""b"""', '"open', 'x"y', '"z" tail',
)  # fmt: skip


def random_table(random: Random) -> str:
    """A table with rows that are too long or too short, stray quotes, and ids that look alike."""
    header = random.choice(HEADERS)
    delimiter = next(each for each in ";\t," if each in header)
    names = header.replace("\n", " ").split(delimiter)
    lines = [header]
    for row in range(random.randrange(1, 30)):
        width = len(names) if random.random() < 0.8 else random.randrange(1, len(names) + 3)
        cells = [random.choice(CELLS if random.random() < 0.4 else CELLS[:5]) for _ in range(width)]
        if (at := names.index("id")) < width and random.random() < 0.9:
            cells[at] = str(row)
        lines.append(delimiter.join(cells))
        if random.random() < 0.05:
            lines.append(random.choice(["", " ", "a line of its own", '"']))
    return random.choice(["\n", "\n", "\r\n"]).join(lines) + random.choice(["", "\n"])


def test_any_csv_means_the_same_to_both(playground: Playground, tmp_path: Path) -> None:
    random, path = Random(1), tmp_path / "t.csv"
    for _ in range(200):
        path.write_bytes(random_table(random).encode())
        table = open_table(path, WANTED)
        rows = tuple(
            (row.line, row.values["id"], row.values["title"], row.values["image"], row.error, row.repaired)
            for row in table.rows
        )
        check(read(playground, path.name, path.read_bytes()), Case(path.read_text(), path.name, b"", rows, table.form))


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("t.parquet", b"PAR1" + bytes(100) + b"PAR1", "a Parquet file, which this page cannot read. Save it as CSV"),
        ("t.xlsx", b"PK\3\4" + bytes(100), "an Excel workbook, which this page cannot read. Save it as CSV"),
        ("feed.xml", as_feed().encode(), "an XML feed, which this page cannot read. Save it as CSV"),
        ("t.csv.gz", gzip.compress(b"id,title\n1,a\n")[:-9], "a gzip file that is damaged"),
        ("t.csv", "id,title\n1,a\n".encode("utf-32"), "in UTF-32. Save it as UTF-8"),
    ],
)
def test_what_a_browser_cannot_read_is_refused_with_what_to_do(
    playground: Playground, tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(data)
    read_many(playground, tmp_path / name)
    expect(playground["#many-problem"]).to_contain_text(told)


def test_rows_that_cannot_be_read_fail_alone(playground: Playground, tmp_path: Path) -> None:
    read_many(playground, write(tmp_path / "shop", "id,title,colour", "1,Red, soft,x", "2,Blue,y") / "styles.csv")
    expect_done(playground, 2)
    labels = download(playground)
    assert [row["error"] for row in labels] == ["invalid_request: line 2: too many fields", ""]


def test_a_cell_that_a_spreadsheet_would_run_is_written_as_text(playground: Playground, tmp_path: Path) -> None:
    read_many(playground, write(tmp_path / "shop", "id,title", "=1+1,Red", "-5,Blue") / "styles.csv")
    expect_done(playground, 2)
    assert [row["id"] for row in download(playground)] == ["'=1+1", "-5"]


@pytest.mark.parametrize("cell", ['"a.png|b.png"', "a.png", "nan"])
def test_the_first_image_of_a_cell_is_taken(playground: Playground, tmp_path: Path, cell: str) -> None:
    rows = (f"1,One,{cell}", "2,Two,")
    read_many(playground, write(tmp_path / "shop", "id,title,image", *rows, images=("a.png", "b.png")))
    expect_done(playground, 2)
    expect(playground["td img"]).to_have_count(0 if cell == "nan" else 1)
    expect(playground["#notes"]).not_to_contain_text("missing or ambiguous")
