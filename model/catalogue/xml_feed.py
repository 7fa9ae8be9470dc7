"""Product feeds in XML to records, in constant memory: RSS 2.0 and Atom as Google Merchant Center takes them.

A column is an element's name without its namespace: `g:id` and `id` are one, and of both the prefixed one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from model.catalogue.cells import Record, Wanted
from model.catalogue.files import open_bytes, open_text
from model.catalogue.json_table import json_records
from model.errors import CatalogueError
from model.stores import Place

_ROWS = frozenset({"item", "entry", "product", "offer", "row"})

_HEAD = 1 << 16


def read_xml(path: Place, wanted: Wanted) -> Iterator[Record]:
    """Return the records, lazily; their numbers count elements. Raises `CatalogueError` for a missing column."""
    with open_bytes(path) as file:
        # Entities that refer to one another can grow without bound, and no feed needs a definition of its own.
        if b"<!DOCTYPE" in (head := file.read(_HEAD)) or b"<!ENTITY" in head:
            raise CatalogueError(f"{path} holds a document type definition, which is not read")
    columns = [column.removeprefix("g:") for column in wanted.columns]
    renamed = dict(zip(columns, wanted.columns, strict=True))
    rows = (
        (number, {renamed.get(k, k): v for k, v in cells.items()}) for number, cells in _rows(path, wanted.encoding)
    )
    return json_records(path, rows, wanted)


def _rows(path: Place, encoding: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    number, depth = 0, 0
    parents: list[ElementTree.Element] = []
    for event, element in _events(path, encoding):
        if event == "start":
            parents.append(element)
            depth += _local(element.tag) in _ROWS
            continue
        parents.pop()
        if _local(element.tag) in _ROWS:
            depth -= 1
            if not depth:
                number += 1
                yield number, _cells(element)
        if not depth and parents:
            parents[-1].remove(element)  # else the whole feed would stay in memory


def _events(path: Place, encoding: str | None) -> Iterator[tuple[str, ElementTree.Element]]:
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("start", "end"))
    try:
        # Bytes name their own encoding in the first line; text overrides it.
        with open_text(path, encoding) if encoding else open_bytes(path) as file:
            while data := file.read(_HEAD):
                parser.feed(data)
                yield from parser.read_events()  # type: ignore[misc]
            parser.close()
    except ElementTree.ParseError as error:
        raise CatalogueError(f"{path} is not valid XML: {error}") from None


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _cells(row: ElementTree.Element) -> dict[str, Any]:
    found: dict[str, list[str | None]] = {}
    prefixed = {_local(child.tag) for child in row if "base.google.com" in child.tag}
    for child in row:
        name = _local(child.tag)
        if len(child) or (name in prefixed and "base.google.com" not in child.tag):
            continue
        text = child.text if child.text and child.text.strip() else child.get("href")
        found.setdefault(name, []).append(text)
    return {name: texts if len(texts) > 1 else texts[0] for name, texts in found.items()}
