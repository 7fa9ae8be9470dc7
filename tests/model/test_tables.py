"""Every form in which shops have their tables gives the same rows; what cannot be read is said in one line."""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.catalogue.cells import Row
from model.catalogue.tables import Table, Wanted, estimate_rows, hash_table, open_table, table_files
from model.errors import CatalogueError, ConfigError

COLUMNS = ("id", "title", "image")
ROWS = [("1", "Robe d'été", "dress.jpg"), ("2", "Navy Blue Shirt", "shirt.jpg")]
HEADER = ",".join(COLUMNS)


def read(path: Path, **options: Any) -> Table:
    return open_table(path, Wanted(columns=COLUMNS, id="id", title="title", image="image", **options))


def cells(rows: list[Row]) -> list[tuple[str, ...]]:
    assert [row.error for row in rows] == [None] * len(rows)
    return [tuple(row.values[column] for column in COLUMNS) for row in rows]


def as_csv(separator: str = ",", *, lines: str = "\n") -> str:
    return "".join(separator.join(row) + lines for row in (COLUMNS, *ROWS))


def as_objects() -> list[dict[str, object]]:
    return [{"id": int(row[0]), "title": row[1], "image": row[2], "sizes": ["S", "M"]} for row in ROWS]


def as_feed(items: str = "item") -> str:
    found = "".join(
        f"<{items}><g:id>{row[0]}</g:id><title>{row[1]}</title><g:image>{row[2]}</g:image>"
        f"<g:shipping><g:price>1</g:price></g:shipping></{items}>"
        for row in ROWS
    )
    return f'<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>{found}</channel></rss>'


def with_header(header: bytes, row: str) -> bytes:
    return b"\n".join([header, *(row.format(*each).encode() for each in ROWS)])


LATIN = b'<?xml version="1.0" encoding="iso-8859-1"?>'

FORMS: dict[str, tuple[str, bytes, str]] = {
    "commas": ("t.csv", as_csv().encode(), "CSV with commas, in UTF-8"),
    "semicolons": ("t.csv", as_csv(";").encode(), "CSV with semicolons, in UTF-8"),
    "tabs": ("feed.tsv", as_csv("\t").encode(), "CSV with tabs, in UTF-8"),
    "tabs in .txt": ("feed.txt", as_csv("\t").encode(), "CSV with tabs, in UTF-8"),
    "bars": ("t.csv", as_csv("|").encode(), "CSV with bars, in UTF-8"),
    "carets": ("t.csv", as_csv("^").encode(), "CSV with '^', in UTF-8"),
    "byte-order mark": ("t.csv", as_csv().encode("utf-8-sig"), "CSV with commas, in UTF-8"),
    "Windows lines": ("t.csv", as_csv(lines="\r\n").encode(), "CSV with commas, in UTF-8"),
    "old Mac lines": ("t.csv", as_csv(lines="\r").encode(), "CSV with commas, in UTF-8"),
    "blank lines first": ("t.csv", b"\n \r\n" + as_csv().encode(), "CSV with commas, in UTF-8"),
    "Excel's hint": ("t.csv", b"sep=,\r\n" + as_csv().encode(), "CSV with commas, in UTF-8"),
    "Excel's hint of semicolons": ("t.csv", b"sep=;\r\n" + as_csv(";").encode(), "CSV with semicolons, in UTF-8"),
    "cp1252": ("t.csv", as_csv().encode("cp1252"), "CSV with commas, in Windows-1252"),
    "UTF-16": ("t.csv", as_csv("\t").encode("utf-16"), "CSV with tabs, in UTF-16"),
    "UTF-16 without mark": ("t.csv", as_csv().encode("utf-16-le"), "CSV with commas, in UTF-16-LE"),
    "UTF-16 the other way round": ("t.csv", as_csv().encode("utf-16-be"), "CSV with commas, in UTF-16-BE"),
    "gzip": ("t.csv.gz", gzip.compress(as_csv().encode()), "CSV with commas, in UTF-8"),
    "gzip without its name": ("t.csv", gzip.compress(as_csv(";").encode()), "CSV with semicolons, in UTF-8"),
    "blank headings": ("t.csv", with_header(b"id,title,image,,", "{},{},{},,"), "CSV"),
    "doubled unused headings": ("t.csv", with_header(b"x,id,x,title,image", "a,{},b,{},{}"), "CSV"),
    "a line break in a heading": ("t.csv", with_header(b'id,"of\nuse",title,image', "{},x,{},{}"), "CSV"),
    "JSON Lines": ("t.jsonl", "\n".join(map(json.dumps, as_objects())).encode(), "JSON Lines in UTF-8"),
    "a JSON list": ("t.json", json.dumps(as_objects()).encode(), "a JSON list in UTF-8"),
    "a list called JSON Lines": ("t.jsonl", json.dumps(as_objects(), indent=1).encode(), "a JSON list in UTF-8"),
    "JSON with a mark": ("t.json", json.dumps(as_objects()).encode("utf-8-sig"), "a JSON list in UTF-8"),
    "printed objects": ("t.json", "\n".join(json.dumps(x, indent=2) for x in as_objects()).encode(), "JSON objects"),
    "a list in a key": ("t.json", json.dumps({"n": 2, "products": as_objects()}).encode(), "a JSON list in UTF-8"),
    "JSON in gzip": ("t.jsonl.gz", gzip.compress(json.dumps(as_objects()).encode()), "a JSON list in UTF-8"),
    "RSS": ("feed.xml", as_feed().encode(), "an XML feed"),
    "Atom": ("feed.xml", as_feed("entry").encode(), "an XML feed"),
    "RSS in gzip": ("feed.xml.gz", gzip.compress(as_feed().encode()), "an XML feed"),
    "RSS in Latin-1": ("feed.xml", LATIN + as_feed().encode("latin-1"), "an XML feed"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised_and_told(tmp_path: Path, form: str) -> None:
    name, data, told = FORMS[form]
    path = tmp_path / name
    path.write_bytes(data)
    table = read(path)
    assert cells(list(table.rows)) == ROWS
    assert table.form.startswith(told)


def test_what_is_recognised_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("id;title;image\n1;Платье, красное;a.jpg\n".encode("cp1251"))
    table = read(path, encoding="cp1251", delimiter=";")
    assert cells(list(table.rows)) == [("1", "Платье, красное", "a.jpg")]


@pytest.mark.parametrize(("text", "encoding"), [("Платье красное", "cp1251"), ("红色连衣裙，夏季新款", "gb18030")])
def test_an_encoding_is_never_guessed_against_sense(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"id,title,image\n1,{text},a.jpg\n".encode(encoding))
    with pytest.raises(CatalogueError, match=r"encoding of .*t\.csv is not recognised.*'encoding'"):
        read(path)


def test_a_heading_is_found_whatever_its_white_space(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,"Product\n  title"\n1,Red\n')
    table = open_table(tmp_path / "t.csv", Wanted(columns=("id", "Product title"), id="id"))
    assert [row.values["Product title"] for row in table.rows] == ["Red"]


def test_a_workbook(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["Notes"])
    products = book.create_sheet("Products")
    for row in [
        ["id", "title", "image", None],
        [1, "Robe d'été", "dress.jpg"],
        [],
        [2.0, "Navy Blue Shirt", "shirt.jpg"],
    ]:
        products.append(row)
    book.save(tmp_path / "t.xlsx")
    table = read(tmp_path / "t.xlsx")
    rows = list(table.rows)
    assert cells(rows) == ROWS
    assert [row.line for row in rows] == [2, 4]
    assert table.form == "an Excel workbook, sheet 'Products'"


# --- Parquet, and images inside a table --------------------------------------------------------------------

JPEG = b"\xff\xd8\xff\xe0 an image"


def write_parquet(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def test_binary_strings_numbers_and_dates(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "t.parquet",
        id=pa.array([b"a-1", b"a-2"], pa.binary()),
        title=pa.array([decimal.Decimal("7.00"), decimal.Decimal("7.50")], pa.decimal128(5, 2)),
        image=pa.array([datetime.date(2026, 11, 26), None], pa.date32()),
    )
    assert cells(list(read(tmp_path / "t.parquet").rows)) == [("a-1", "7", "2026-11-26"), ("a-2", "7.50", "")]


@pytest.mark.parametrize(
    ("cell", "name", "image"),
    [
        ({"bytes": JPEG, "path": "dress.jpg"}, "dress.jpg", JPEG),
        ({"bytes": JPEG, "path": None}, "", JPEG),
        ({"bytes": None, "path": "dress.jpg"}, "dress.jpg", None),
    ],
)
def test_images_as_hugging_face_datasets_write_them(
    tmp_path: Path, cell: dict[str, Any], name: str, image: bytes | None
) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_parquet(tmp_path / "t.parquet", id=[1], title=["Red"], image=pa.array([cell], kind))
    (row,) = read(tmp_path / "t.parquet").rows
    assert (row.values["image"], row.embedded, row.error) == (name, image, None)


def test_bare_bytes_and_data_urls_are_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", id=[1, 2], title=["Red", "Blue"], image=[JPEG, b"dress.jpg"])
    first, second = read(tmp_path / "t.parquet").rows
    assert (first.embedded, second.embedded, second.values["image"]) == (JPEG, None, "dress.jpg")
    url = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
    (tmp_path / "t.csv").write_text(f'{HEADER}\n1,Red,"{url}"\n2,Red,"{url}*"\n')
    first, second = read(tmp_path / "t.csv").rows
    assert first.embedded == JPEG
    assert second.error == "column 'image' holds a data: URL that is not valid base64"


def test_several_images_and_labels_in_a_cell_are_kept_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 1, "title": "Red", "image": ["a.jpg", "b.jpg"]}\n')
    (row,) = read(tmp_path / "t.jsonl").rows
    assert json.loads(row.values["image"]) == ["a.jpg", "b.jpg"]
    (tmp_path / "t.jsonl").write_text('{"id": 1, "title": ["Red"], "image": "a.jpg"}\n')
    (row,) = open_table(tmp_path / "t.jsonl", Wanted(columns=COLUMNS, id="id", lists=frozenset({"title"}))).rows
    assert row.values["title"] == "Red"


# --- mistakes ----------------------------------------------------------------------------------------------


def write_zip(path: Path) -> None:
    path.write_bytes(b"PK\3\4 no workbook")


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "torn gzip": ("t.csv.gz", gzip.compress(as_csv().encode() * 50)[:-20], "cannot read .*t.csv.gz"),
    "torn JSON list": ("t.json", json.dumps(as_objects(), indent=1).encode()[:-20], r"not valid JSON at line \d+"),
    "torn XML": ("t.xml", as_feed().encode()[:-20], "not valid XML"),
    "XML with entities": ("t.xml", b'<!DOCTYPE x [<!ENTITY a "b">]>' + as_feed().encode(), "document type definition"),
    "a web page": ("t.csv", b"<!DOCTYPE html><html>404</html>", "is a web page"),
    "old Excel": ("t.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as .xlsx or CSV"),
    "no workbook": ("t.xlsx", b"PK\3\4 nothing", "not a readable Excel workbook"),
    "UTF-16 cut off": ("t.csv", as_csv().encode("utf-16")[:-1], "not valid text in its encoding"),
    "no header": ("t.csv", b"", "no column 'id'; it has no named columns"),
    "another header": ("t.csv", b"a;b\n1;2\n", "no column 'id'; it has 'a', 'b'"),
    "feed without titles": ("t.xml", as_feed().replace("title>", "name>").encode(), "no column 'title'; it has 'id'"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, mistake: str) -> None:
    name, data, message = BROKEN[mistake]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CatalogueError, match=message) as caught:
        list(read(tmp_path / name).rows)
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "t.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ConfigError, match=r"pip install 'cma-clip\[excel\]'"):
        read(tmp_path / "t.xlsx")


# --- memory ------------------------------------------------------------------------------------------------


LONG = {
    "csv": (f"{HEADER}\n", "{0},Red dress {0},{0}.jpg\n", ""),
    "json": ("[", '{{"id": {0}, "title": "Red", "image": "{0}.jpg"}},\n', "]"),
    "xml": ("<rss>", "<item><id>{0}</id><title>R</title><image>{0}</image></item>", "</rss>"),
}


@pytest.mark.parametrize("form", LONG)
def test_memory_does_not_grow_with_the_table(tmp_path: Path, form: str) -> None:
    begin, row, end = LONG[form]

    def peak(rows: int) -> int:
        (tmp_path / "t.csv").write_text(begin + "".join(map(row.format, range(rows))) + end)
        tracemalloc.start()
        assert sum(1 for _ in read(tmp_path / "t.csv").rows) == rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # what is imported and compiled once
    assert peak(20_000) < peak(6_000) + 500_000


def test_the_number_of_rows_is_estimated(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(as_csv().encode()))
    assert estimate_rows(tmp_path / "t.csv.gz") == 3
    write_parquet(tmp_path / "t.parquet", id=[1, 2], title=["a", "b"])
    assert estimate_rows(tmp_path / "t.parquet") == 2


# --- several files -----------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder with a table in three files, of three forms, and others that are none of it."""
    folder = tmp_path / "parts"
    (folder / "more").mkdir(parents=True)
    (folder / "part-1.csv").write_text("id,title\n1,One\n2\n")
    pq.write_table(pa.table({"title": ["Three", "Four"], "id": [3, 4]}), folder / "part-2.parquet")
    (folder / "more" / "part-0.jsonl").write_text('{"id": 0, "title": "Zero"}\n')
    for other in ("_SUCCESS", ".part-9.csv", "notes.md", "_part-8.csv"):
        (folder / other).write_text("no,table\n")
    return folder


def test_the_files_of_a_folder_are_one_table(parts: Path) -> None:
    table = open_table(parts, Wanted(columns=("id", "title"), id="id", title="title"))
    assert table.form == "JSON objects in UTF-8; 3 files"
    rows = [(row.line, row.values["id"], row.error) for row in table.rows]
    assert rows == [(1, "0", None), (3, "1", None), (4, "2", "too few fields"), (5, "3", None), (6, "4", None)]
    assert estimate_rows(parts) == 1 + 3 + 2


def test_the_files_that_match_a_pattern_are_one_table(parts: Path) -> None:
    assert [each.name for each in table_files(parts / "part-*")] == ["part-1.csv", "part-2.parquet"]
    table = open_table(parts / "part-*", Wanted(columns=("id",), id="id"))
    assert [row.values["id"] for row in table.rows if not row.error] == ["1", "3", "4"]
    with pytest.raises(CatalogueError, match=r"no file matches .*other-\*\.csv"):
        table_files(parts / "other-*.csv")
    (parts / "empty").mkdir()
    with pytest.raises(CatalogueError, match="empty holds no table"):
        table_files(parts / "empty")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "part-[1].csv").write_text("id\n1\n")
    assert table_files(tmp_path / "part-[1].csv") == [tmp_path / "part-[1].csv"]


def test_a_file_that_lacks_a_column_is_named(parts: Path) -> None:
    (parts / "part-3.csv").write_text("sku,title\n5,Five\n")
    table = open_table(parts, Wanted(columns=("id",), id="id"))
    with pytest.raises(CatalogueError, match=r"part-3\.csv has no column 'id'"):
        list(table.rows)


def test_the_hash_of_a_table_is_that_of_its_files(parts: Path) -> None:
    before = hash_table(parts)
    (parts / "notes.md").write_text("changed")
    assert hash_table(parts) == before
    (parts / "part-1.csv").write_text("id,title\n1,One\n2,Two\n")
    assert hash_table(parts) != before
