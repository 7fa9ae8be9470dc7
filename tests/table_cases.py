"""Tables as shops have them, and what each means: read by the library in one test, by the playground in another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.test_tables import FORMS, ROWS

Read = tuple[int, str, str, str, str | None, bool]
"""Line, id, title, image, error and whether the row was repaired."""


@dataclass(frozen=True)
class Case:
    """A table file. `rows`: what its rows are; `refusal`: words of the error where it can't be read."""

    name: str
    file: str
    data: bytes
    rows: tuple[Read, ...] = ()
    form: str = "CSV with commas, in UTF-8"
    refusal: str = ""


@dataclass(frozen=True)
class ImageCase:
    """A table with a column of images, and the images beside it.

    `found`: each row's image; empty: it has none, and is a listing all the same; None: it is an error of its row.
    """

    name: str
    rows: tuple[str, ...]
    images: tuple[str, ...]
    found: tuple[str | None, ...]

    @property
    def text(self) -> str:
        return "\n".join(("id,title,image", *self.rows, ""))


IMAGE_CASES: tuple[ImageCase, ...] = (
    ImageCase("all there", ("1,A,a.png", "2,B,sub/b.png"), ("a.png", "sub/b.png"), ("a.png", "sub/b.png")),
    ImageCase("one named and not there", ("1,A,a.png", "2,B,b.png"), ("a.png",), ("a.png", None)),
    ImageCase("rows that name none", ("1,A,", "2,B,nan", "3,C,a.png"), ("a.png",), ("", "", "a.png")),
    ImageCase("the first of several", ("1,A,a.png|b.png",), ("a.png", "b.png"), ("a.png",)),
    ImageCase("backslashes", ("1,A,sub\\a.png",), ("sub/a.png",), ("sub/a.png",)),
)


def good(line: int, id: str, title: str, image: str = "", *, repaired: bool = False) -> Read:
    return (line, id, title, image, None, repaired)


def _texts() -> Iterator[Case]:
    for name, text, rows in TEXTS:
        yield Case(name, "t.csv", text.encode(), tuple(rows))


LONG = "\n".join(f"<li>line {n}, soft, washable</li>" for n in range(130))
OPEN = "".join(f"<li>line {n}, soft, washable</li>\n" for n in range(130))

TEXTS: list[tuple[str, str, list[Read]]] = [
    (
        "a quoted description of 130 lines",
        f'id,description,image,title\n1,"{LONG}",a.jpg,Red dress\n2,short,b.jpg,Blue shirt\n',
        [good(2, "1", "Red dress", "a.jpg"), good(132, "2", "Blue shirt", "b.jpg")],
    ),
    ("doubled quotes", 'id,title,image\r\n1,"a ""b"", c\nd",x\r\n', [good(2, "1", 'a "b", c\nd', "x")]),
    ("a quote inside a cell", 'id,title,image\n1,5" heel,x\n', [good(2, "1", '5" heel', "x")]),
    ("text after a quoted cell", 'id,title,image\n1,"Quoted" start,x\n', [good(2, "1", "Quoted start", "x")]),
    ("no line end at the end", "id,title,image\n1,Red,x", [good(2, "1", "Red", "x")]),
    (
        "blank lines between rows",
        "id,title,image\n\n1,Red,x\n  \n2,Blue,y\n\n",
        [good(3, "1", "Red", "x"), good(5, "2", "Blue", "y")],
    ),
    ("white space around cells", "id,title,image\n 1 , Red dress ,x \n", [good(2, "1", "Red dress", "x")]),
    ("cells kept from being formulas", "id,title,image\n'=1,'-5,'x\n", [good(2, "=1", "-5", "'x")]),
    (
        "commas that nobody quoted in the last column",
        "id,image,title\n9,c.jpg,Tie, Cufflink, Square\n1,a.jpg,A\n2,b.jpg,B\n",
        [
            (2, "9", "Tie", "c.jpg", "too many fields", False),
            good(3, "1", "A", "a.jpg"),
            good(4, "2", "B", "b.jpg"),
        ],
    ),
    (
        "commas behind columns that are known",
        "id,image,kind,title\n9,,Set,Tie, Cufflink\n1,,Set,A\n2,,Shirt,B\n3,,Dark,red,Set,C\n",
        [
            good(2, "9", "Tie, Cufflink", repaired=True),
            good(3, "1", "A"),
            good(4, "2", "B"),
            (5, "3", "red", "", "too many fields", False),
        ],
    ),
    (
        "a comma in a middle column",
        "id,title,image\n1,Red, soft,a.jpg\n2,Blue,b.jpg\n",
        [(2, "1", "Red", "soft", "too many fields", False), good(3, "2", "Blue", "b.jpg")],
    ),
    (
        "a row that ends early",
        "id,title,image\n1,Red\n2,Blue,y\n",
        [(2, "1", "Red", "", "too few fields", False), good(3, "2", "Blue", "y")],
    ),
    (
        "a stray quote before rows",
        'id,image,title\n1,a,Red\n2,a,"Blue\n3,a,Green\n4,a,Black\n',
        [
            good(2, "1", "Red", "a"),
            good(3, "2", '"Blue', "a", repaired=True),
            good(4, "3", "Green", "a"),
            good(5, "4", "Black", "a"),
        ],
    ),
    (
        "quotes inside quotes",
        f'id,image,description,title\n1,,a,b\n2,,x,"<div class="wide">\n{OPEN}</div>",y\n3,,c,d\n4,,e,f\n',
        [
            good(2, "1", "b"),
            (3, "2", '"<div class="wide">', "", "a quote is never closed", False),
            good(135, "3", "d"),
            good(136, "4", "f"),
        ],
    ),
]

OBJECTS = [
    {"id": 1, "title": "Red", "image": ["a.jpg", "b.jpg"]},
    {"id": "2", "title": {"de": "Blau"}, "image": None},
    {"id": 3.0, "title": True, "image": {"path": "c.jpg"}},
    {"id": 4, "image": ["d.jpg"], "more": {"title": "x"}},
]
OBJECT_ROWS = [
    ("1", "Red", '["a.jpg", "b.jpg"]', None),
    ("2", "", "", "column 'title' holds a dict"),
    ("3", "true", "c.jpg", None),
    ("4", "", "d.jpg", None),
]

CASES: tuple[Case, ...] = (
    *(
        Case(name, file, data, tuple(good(0, *row) for row in ROWS), told)
        for name, (file, data, told) in FORMS.items()
        if told != "an XML feed"
    ),
    *_texts(),
    Case(
        "values of JSON",
        "t.jsonl",
        "\n\n".join(map(json.dumps, OBJECTS)).encode() + b'\n{"id": 5, "ti\n[1]\n',
        (
            *((1 + 2 * at, *row, False) for at, row in enumerate(OBJECT_ROWS)),
            (8, "", "", "", "not a JSON object", False),
            (9, "", "", "", "not a JSON object", False),
        ),
        "JSON Lines in UTF-8",
    ),
    Case(
        "values of a printed JSON list",
        "t.json",
        json.dumps(OBJECTS[:1] * 2, indent=1).encode(),
        ((2, *OBJECT_ROWS[0], False), (10, *OBJECT_ROWS[0], False)),
        "a JSON list in UTF-8",
    ),
    Case(
        "a few bad bytes in UTF-8",
        "t.csv",
        "id,title,image\n1,Robe d'été,x\n2,Bl\udcffue,y\n".encode("utf-8", "surrogateescape"),
        (good(2, "1", "Robe d'été", "x"), (3, "2", "", "y", "column 'title' is not valid UTF-8", False)),
    ),
    Case("the title twice", "t.csv", b"id,title,title,image\n1,a,b,c\n", refusal="two columns called"),
    Case(
        "Cyrillic without a name",
        "t.csv",
        "id,title,image\n1,Платье красное,a.jpg\n".encode("cp1251"),
        refusal="is not recognised: it is not UTF-8, and makes no sense as Windows-1252",
    ),
    Case("a web page", "t.csv", b"<!DOCTYPE html><title>x</title>", refusal="is a web page"),
    Case("an old workbook", "t.csv", b"\xd0\xcf\x11\xe0" + bytes(100), refusal="of the old kind (.xls)"),
    Case(
        "a torn JSON list",
        "t.json",
        b'[{"id": 1, "title": "a", "image": "b"},\n{"id": 2',
        refusal="not valid JSON at line 2",
    ),
)
