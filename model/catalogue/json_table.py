"""JSON to records, in constant memory: JSON Lines, a list of objects, or objects one after the other.

A list may be the value of a key, as in `{"products": [ … ]}`. In JSON Lines a torn line costs its own row; in the
other forms nothing can be read after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import IO, Any

from model.catalogue.cells import Record, Wanted, find_columns
from model.errors import CatalogueError
from model.stores import Place

_HEAD = 1 << 18
"""Characters from which the form is recognised."""

_MAX_VALUE = 1 << 26
"""Characters that one object may have where lines don't end it."""

_CHUNK = 1 << 16

_COLUMN_SAMPLE = 1000
"""There is no header: the columns are the keys of this many first objects."""

_BETWEEN = re.compile(r"[ \t\r\n,\ufeff]*")

_Numbered = Iterator[tuple[int, Any]]

_KEY = re.compile(r'\s*,?\s*"(?:[^"\\]|\\.)*"\s*:\s*')


def read_json(path: Place, open_file: Callable[[], IO[str]], wanted: Wanted) -> tuple[str, Iterator[Record]]:
    """Return the form and the records, lazily. Raises `CatalogueError` for a missing column or broken JSON."""
    with open_file() as file:
        head = file.read(_HEAD)
    start = _list_start(head, wanted.columns)
    if _is_lines(head):
        form, numbered = "JSON Lines", _lines(open_file)
    elif start is not None:
        form, numbered = "a JSON list", _values(path, open_file, start)
    elif _value_at(head) is not None:
        form, numbered = "JSON objects", _values(path, open_file, None)
    else:
        form, numbered = "JSON Lines", _lines(open_file)
    return form, json_records(path, numbered, wanted)


def json_records(path: Place, numbered: _Numbered, wanted: Wanted) -> Iterator[Record]:
    """Check that the columns are there, in the first objects, and return the records of numbered values."""
    sample = list(islice(numbered, _COLUMN_SAMPLE))
    keys = list(dict.fromkeys(key for _, value in sample if isinstance(value, dict) for key in value))
    found = find_columns(path, wanted.columns, keys)
    names = {column: keys[at] for column, at in found.items()}
    return (_record(line, value, names) for line, value in chain(sample, numbered))


def _record(line: int, value: Any, names: dict[str, str]) -> Record:
    if not isinstance(value, dict):
        return Record(line, {}, error="not a JSON object")
    return Record(line, {column: value.get(key) for column, key in names.items()})


# --- which form --------------------------------------------------------------------------------------------


def _is_lines(head: str) -> bool:
    """Whether the first line is a value by itself, and more follows."""
    first, ends, rest = head.lstrip("\ufeff \t\r\n").partition("\n")
    if not ends:
        return False
    return _is_json(first) and bool(rest.strip())


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _value_at(text: str) -> Any:
    """Return the JSON value that the text begins with; None where it is broken or torn."""
    try:
        return json.JSONDecoder().raw_decode(text.lstrip("\ufeff \t\r\n"))[0]
    except (ValueError, RecursionError):
        return None


def _list_start(head: str, columns: Sequence[str]) -> int | None:
    """Return where the list of objects begins: at once, or as the value of a key of an object that is no row."""
    text = head.lstrip("\ufeff \t\r\n")
    offset = len(head) - len(text)
    if text.startswith("["):
        return offset
    if not text.startswith("{"):
        return None
    decoder, at = json.JSONDecoder(), 1
    while key := _KEY.match(text, at):
        at = key.end()
        if key[0].strip(' ,:\n\r\t"') in columns:
            return None
        if text[at : at + 1] == "[" and text[at + 1 :].lstrip().startswith("{"):
            return offset + at
        try:
            at = decoder.raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            return None
    return None


# --- values ------------------------------------------------------------------------------------------------


def _lines(open_file: Callable[[], IO[str]]) -> _Numbered:
    with open_file() as file:
        for number, line in enumerate(file, 1):
            text = line.strip("\ufeff \t\r\n")
            if not text:
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            yield number, value


def _values(path: Place, open_file: Callable[[], IO[str]], list_start: int | None) -> _Numbered:
    """Yield values with the lines they begin in: of a list that begins at a character, or one after the other."""
    decoder, line, buffer, at, size = json.JSONDecoder(), 1, "", 0, _CHUNK
    with open_file() as file:
        if list_start is not None:
            line += file.read(list_start + 1).count("\n")
        while True:
            between = _BETWEEN.match(buffer, at)
            begin = between.end() if between else at
            line += buffer.count("\n", at, begin)
            at = begin
            if list_start is not None and buffer.startswith("]", at):
                return
            try:
                value, end = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError):
                more = file.read(size)
                if not more and at == len(buffer) and list_start is None:
                    return
                if not more or len(buffer) - at > _MAX_VALUE:
                    raise CatalogueError(f"{path} is not valid JSON at line {line}") from None
                buffer, at = buffer[at:] + more, 0
                size *= 2  # so that a long value is not begun again and again
                continue
            yield line, value
            line += buffer.count("\n", at, end)
            at, size = end, _CHUNK
