"""Tables to rows of text: CSV, JSON Lines and Parquet, streamed; rows that can be repaired are.

Real tables are dirty. A row that cannot be used is yielded as well, with its line number and what is wrong.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from model.catalogue.cells import from_cell
from model.errors import CatalogueError, ConfigError

SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet", ".pq")

_MAX_RECORD_LINES = 100
"""A CSV record may span this many lines; a quote that stays open longer is taken for a stray one."""

_COLUMN_SAMPLE = 1000
"""JSON Lines has no header: its columns are the keys of this many first objects."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as text: a stripped value (empty where missing) for each column wanted.

    Where `error` is set the row is unusable, and `values` holds what could be read of it.
    """

    line: int
    values: Mapping[str, str]
    repaired: bool = False
    error: str | None = None


def read_rows(table: Path, columns: Sequence[str], *, title: str | None) -> Iterator[Row]:
    """Yield every row of the table in constant memory; only `columns` are kept.

    A CSV row with more cells than the header is repaired where its last column is `title`: commas that nobody
    quoted. Raises `ConfigError` for an unknown suffix, `CatalogueError` for a missing column or file.
    """
    suffix = table.suffix.lower()
    try:
        if suffix == ".csv":
            yield from _csv_rows(table, columns, title)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _json_rows(table, columns)
        elif suffix in (".parquet", ".pq"):
            yield from _parquet_rows(table, columns)
        else:
            raise ConfigError(f"{table} must end in {', '.join(SUFFIXES)}, not {suffix!r}")
    except OSError as error:
        raise CatalogueError(f"cannot read {table}: {error.strerror or error}") from error


def estimate_rows(table: Path) -> int:
    """Return how many rows the table has: exactly for Parquet, else its number of lines."""
    try:
        if table.suffix.lower() in (".parquet", ".pq"):
            with import_pyarrow().parquet.ParquetFile(table) as file:
                return int(file.metadata.num_rows)
        with table.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError as error:
        raise CatalogueError(f"cannot read {table}: {error.strerror or error}") from error


def import_pyarrow() -> Any:
    """Return `pyarrow` with its `parquet`, which only Parquet needs; `ConfigError` where it isn't installed."""
    try:
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'cma-clip[train]'") from error
    return pyarrow


def _check_columns(table: Path, wanted: Iterable[str], present: Iterable[str]) -> None:
    present = list(present)
    for column in wanted:
        if column not in present:
            raise CatalogueError(f"{table} has no column {column!r}; it has {', '.join(map(repr, present))}")


def _make_row(line: int, record: Mapping[str, Any], columns: Sequence[str], *, repaired: bool = False) -> Row:
    values = {}
    error = None
    for column in columns:
        try:
            values[column] = _to_text(record.get(column))
        except ValueError as problem:
            values[column] = ""
            error = error or f"column {column!r} {problem}"
    return Row(line, values, repaired, error)


def _to_text(value: Any) -> str:
    """Return a cell as stripped text, empty for a missing one; `ValueError` for a list and the like."""
    match value:
        case None:
            return ""
        case str():
            text = value.strip()
        case bool():
            text = str(value).lower()
        case int():
            text = str(value)
        case float():  # a column of ids or years with gaps comes as floats
            if math.isnan(value):
                return ""
            text = str(int(value)) if value.is_integer() else str(value)
        case _:
            raise ValueError(f"holds a {type(value).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
    return text


def _text_lines(path: Path) -> Iterator[str]:
    # Bytes that are not UTF-8 become lone surrogates, which _to_text refuses: only that row is left out.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from file


def _csv_rows(table: Path, columns: Sequence[str], title: str | None) -> Iterator[Row]:
    lines = _text_lines(table)
    header = [from_cell(name.strip()) for name in _parse_csv([next(lines, "")])[0]]
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise CatalogueError(f"{table} has two columns called {twice[0]!r}")
    _check_columns(table, columns, header)
    last = len(header) - 1
    for line, cells, quote_repaired in _csv_records(lines, width=len(header)):
        repaired = quote_repaired
        if len(cells) > len(header) and header[last] == title:
            cells[last:] = [",".join(cells[last:])]
            repaired = True
        record = dict(zip(header, map(from_cell, cells), strict=False))
        row = _make_row(line, record, columns, repaired=repaired)
        if len(cells) != len(header):
            trouble = "too few fields" if len(cells) < len(header) else "too many fields"
            row = replace(row, repaired=False, error=trouble)
        yield row


def _csv_records(lines: Iterator[str], *, width: int) -> Iterator[tuple[int, list[str], bool]]:
    """Yield (first line's number, cells, repaired) of each record after the header line.

    A quote that never closes would swallow the rest of the file: where the record that it makes has not
    `width` cells or too many lines, the quote is taken literally.
    """
    pending: deque[str] = deque()
    number = 1
    while line := pending.popleft() if pending else next(lines, ""):
        number += 1
        if line.isspace():
            continue
        record = [line]
        cells, is_open = _parse_csv(record)
        while is_open and len(record) < _MAX_RECORD_LINES:
            following = pending.popleft() if pending else next(lines, "")
            if not following:
                break
            record.append(following)
            cells, is_open = _parse_csv(record)
        stray = is_open or (len(record) > 1 and len(cells) != width)
        if stray:
            pending.extendleft(reversed(record[1:]))
            del record[1:]
            cells = line.rstrip("\r\n").split(",")
        yield number, cells, stray
        number += len(record) - 1


def _parse_csv(record: list[str]) -> tuple[list[str], bool]:
    """Return the cells of the record and whether a quote is still open at its end."""
    try:
        # The empty line is a row of its own unless a quote is open. Over several lines only faultless quoting
        # counts: two stray quotes, lines apart, would else make one row of all between them.
        rows = list(csv.reader([*record, ""], strict=len(record) > 1))
    except csv.Error:
        return [], True
    return (rows[0] if rows else []), len(rows) < 2


def _json_rows(table: Path, columns: Sequence[str]) -> Iterator[Row]:
    records = _json_records(_text_lines(table))
    sample = list(islice(records, _COLUMN_SAMPLE))
    _check_columns(table, columns, dict.fromkeys(key for _, record in sample if record for key in record))
    for part in (sample, records):
        for line, record in part:
            if record is None:
                yield Row(line, {}, error="not a JSON object")
            else:
                yield _make_row(line, record, columns)


def _json_records(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield number, record if isinstance(record, dict) else None


def _parquet_rows(table: Path, columns: Sequence[str]) -> Iterator[Row]:
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            _check_columns(table, columns, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=list(columns)):
                for record in batch.to_pylist():
                    number += 1
                    yield _make_row(number, record, columns)
    except pyarrow.ArrowException as error:
        raise CatalogueError(f"{table} is not a readable Parquet file: {error}") from error
