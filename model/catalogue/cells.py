"""Cells of any table to text: what every reader yields, and what `Row` makes of it."""

from __future__ import annotations

import base64
import binascii
import datetime
import decimal
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.errors import CatalogueError
from model.stores import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is read of a table: `columns`, among them `id` and `title`; the others are passed over.

    Cells of the columns `lists` may hold several values, and cells of `image` the bytes of an image. in_place: where
    images lie as they are inside a file, the row says where (`ImageAt`), and they are not read.
    `delimiter` and `encoding` are those of text; None: recognised.
    """

    columns: tuple[str, ...]
    id: str
    title: str | None = None
    lists: frozenset[str] = frozenset()
    image: str | None = None
    in_place: bool = False
    delimiter: str | None = None
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class ImageAt:
    """Where an image lies in the table: in the file of this number, at a byte; `name` is for people."""

    name: str
    file: int
    begin: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """A row as its reader found it: the cells of the columns wanted, of any type. `error`: it is unusable."""

    line: int
    cells: Mapping[str, Any]
    repaired: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row as text: a stripped value (empty where missing) for each column wanted.

    A cell that holds a list is a JSON list. `embedded` is the image file that the row itself holds, or where it lies.
    Where `error` is set the row is unusable, and `values` holds what could be read of it.
    """

    line: int
    values: Mapping[str, str]
    repaired: bool = False
    error: str | None = None
    embedded: bytes | ImageAt | None = None


# --- columns -----------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """Return a column's name as it is compared: without byte-order mark, and with single spaces for white space."""
    return " ".join(name.replace("\ufeff", "").replace("\u200b", "").split())


def find_columns(table: Place, wanted: Iterable[str], present: Sequence[str]) -> dict[str, int]:
    """Return the position of each column wanted among those present; others may be unnamed or named twice.

    Raises `CatalogueError` for a column that is missing or there twice.
    """
    names = [plain_name(name) for name in present]
    counts = Counter(names)
    found = {}
    for column in wanted:
        name = plain_name(column)
        if not counts[name]:
            shown = ", ".join(repr(each) for each in names if each)
            raise CatalogueError(f"{table} has no column {column!r}; it has {shown or 'no named columns'}")
        if counts[name] > 1:
            raise CatalogueError(f"{table} has two columns called {column!r}")
        found[column] = names.index(name)
    return found


# --- rows --------------------------------------------------------------------------------------------------


def make_row(record: Record, wanted: Wanted) -> Row:
    """Return the record as text; a cell that cannot be text makes it an unusable row."""
    values = {}
    error, embedded = record.error, None
    for column in wanted.columns:
        value = record.cells.get(column)
        try:
            if column == wanted.image:
                values[column], embedded = image_cell(value)
            else:
                values[column] = to_text(value, lists=column in wanted.lists)
        except ValueError as problem:
            values[column] = ""
            error = error or f"column {column!r} {problem}"
    return Row(record.line, values, record.repaired and not error, error, embedded)


def to_text(value: Any, *, lists: bool = False) -> str:
    """Return a cell as stripped text, empty for a missing one. Booleans are `true` and `false`, whole numbers `3`.

    With `lists`, a list becomes a JSON list of texts, or the text of its only value. Raises `ValueError` for what is
    no text, such as a list or a dictionary.
    """
    match value:
        case None:
            return ""
        case str():
            text = value.strip()
        case bytes():
            text = _decoded(value).strip()
        case bool():
            text = str(value).lower()
        case int():
            text = str(value)
        case float() | decimal.Decimal():  # a column of ids or years with gaps comes as floats
            if not math.isfinite(value):
                return ""
            text = str(int(value)) if value == int(value) else str(value)
        case datetime.date() | datetime.time():
            text = value.isoformat()
        case list() | tuple() if lists:
            texts = [text for text in map(to_text, value) if text]
            text = json.dumps(texts, ensure_ascii=False) if len(texts) > 1 else "".join(texts)
        case _:
            raise ValueError(f"holds a {type(value).__name__}")
    return _checked(text)


def _checked(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
    return text


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError("is not valid UTF-8") from None


# --- images inside a table ---------------------------------------------------------------------------------

_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def image_cell(value: Any) -> tuple[str, bytes | ImageAt | None]:
    """Return what a cell says of an image: its name (or several, as a JSON list), and its bytes where they are there,
    or their place.

    Hugging Face datasets write `{"bytes": …, "path": …}`; others bare bytes, or a `data:` URL.
    """
    name: Any = value
    data: bytes | ImageAt | None = None
    match value:
        case ImageAt():
            name, data = None, value
        case {"bytes": bytes(held), **rest} if held:
            name, data = rest.get("path"), held
        case {"path": str(text)} | {"url": str(text)}:
            name = text
        case {"bytes": None, **_rest}:
            name = None
        case bytes() if value.startswith(_IMAGE_STARTS) or value[4:8] == b"ftyp":
            name, data = None, value
        case str() if value.lstrip()[:5].lower() == "data:":
            name, data = None, _data_url(value)
        case list() | tuple() if value:
            cells = [image_cell(each) for each in value]
            name, data = [each for each, _ in cells], next((each for _, each in cells if each), None)
    return to_text(name, lists=True), data


def _data_url(text: str) -> bytes:
    head, _, data = text.partition(",")
    if not head.rstrip().endswith(";base64"):
        raise ValueError("holds a data: URL that is not base64")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("holds a data: URL that is not valid base64") from None
