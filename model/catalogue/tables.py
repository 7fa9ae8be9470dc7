"""Tables to rows of text, streamed: CSV of any separator, JSON, Parquet, XML feeds, Excel workbooks, WebDataset shards.

A table's form is recognised by its content, then by its name, and told: `Table.form`. Real tables are dirty. A row
that cannot be used is yielded as well, with its line number and what is wrong.

A table may be several files, of one form or another: all of a folder, or all that match a pattern (`part-*.parquet`).
They are read one after the other, in the order of their names, as if they were one: line numbers count on.
"""

from __future__ import annotations

import glob
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from model.catalogue.cells import Record, Row, Wanted, make_row
from model.catalogue.csv_table import read_csv
from model.catalogue.files import detect_encoding, open_bytes, open_text
from model.catalogue.json_table import read_json
from model.catalogue.parquet_table import count_parquet, import_pyarrow, read_parquet
from model.catalogue.webdataset import read_webdataset
from model.catalogue.workbook import read_workbook
from model.catalogue.xml_feed import read_xml
from model.errors import CatalogueError

__all__ = [
    "SUFFIXES",
    "Row",
    "Table",
    "Wanted",
    "estimate_rows",
    "hash_table",
    "import_pyarrow",
    "is_table_name",
    "open_table",
    "suffix_of",
    "table_files",
]

_SUFFIXES = {
    "CSV": (".csv", ".tsv", ".tab", ".txt"),
    "JSON": (".jsonl", ".ndjson", ".json"),
    "Parquet": (".parquet", ".pq"),
    "XML": (".xml",),
    "Excel": (".xlsx", ".xlsm"),
    "WebDataset": (".tar",),
}

SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)

_SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Table:
    """An opened table: how it is read, in words, and its rows, which may be iterated over once."""

    form: str
    rows: Iterator[Row]


def is_table_name(path: Path) -> bool:
    """Whether a table may be called so: its suffix tells a form, or it is a folder."""
    return suffix_of(path) in SUFFIXES or path.is_dir()


def table_files(path: Path) -> list[Path]:
    """Return the files that make a table: itself, those of a folder, or those that match a pattern, by name.

    In a folder, and below it, files count whose suffix tells a form; names that begin with a dot or an underscore are
    passed over, as other programs do. Raises `CatalogueError` where there is none.
    """
    if path.is_dir():
        found = (each for each in path.rglob("*") if suffix_of(each) in SUFFIXES and each.is_file())
        files = [each for each in found if not any(part[0] in "._" for part in each.relative_to(path).parts)]
    elif glob.has_magic(path.name) and not path.exists():
        files = [Path(each) for each in glob.glob(str(path))]
    else:
        return [path]
    if not files:
        raise CatalogueError(f"{path} holds no table" if path.is_dir() else f"no file matches {path}")
    return sorted(files)


def open_table(path: Path, wanted: Wanted) -> Table:
    """Open a table; its rows are read in constant memory as they are iterated over.

    Raises `CatalogueError` for a missing column, or a file that cannot be read as what it is; `ConfigError` where the
    library that reads it is not installed. The rows raise the same.
    """
    first, *others = table_files(path)
    with _errors(first):
        form, records = _open(first, wanted)
    rows = _rows(first, records, wanted)
    return Table(f"{form}; {len(others) + 1} files" if others else form, _joined(rows, others, wanted))


def _joined(rows: Iterator[Row], others: list[Path], wanted: Wanted) -> Iterator[Row]:
    """Yield these rows, and then those of other files, each opened when it is its turn."""
    line = 0
    for row in rows:
        line = row.line
        yield row
    for path in others:
        before = line
        with _errors(path):
            _, records = _open(path, wanted)
        for row in _rows(path, records, wanted):
            line = before + row.line
            yield replace(row, line=line)


def _rows(path: Path, records: Iterator[Record], wanted: Wanted) -> Iterator[Row]:
    with _errors(path):
        for record in records:
            yield make_row(record, wanted)


def _open(path: Path, wanted: Wanted) -> tuple[str, Iterator[Record]]:
    with open_bytes(path) as file:
        kind = _kind(path, file.read(4096))
    if kind == "Parquet":
        return kind, read_parquet(path, wanted)
    if kind == "Excel":
        sheet, records = read_workbook(path, wanted)
        return f"an Excel workbook, sheet {sheet!r}", records
    if kind == "XML":
        return "an XML feed", read_xml(path, wanted)
    if kind == "WebDataset":
        return "a WebDataset shard", read_webdataset(path, wanted)
    encoding = wanted.encoding or detect_encoding(path)

    def open_file() -> IO[str]:
        return open_text(path, encoding)

    if kind == "JSON":
        form, records = read_json(path, open_file, wanted)
        return f"{form} in {_encoding_name(encoding)}", records
    delimiter, records = read_csv(path, open_file, wanted)
    separator = _SEPARATOR_NAMES.get(delimiter, repr(delimiter))
    return f"CSV with {separator}, in {_encoding_name(encoding)}", records


def _kind(path: Path, head: bytes) -> str:
    """Return the table's form, a key of `_SUFFIXES`."""
    if head.startswith(b"PAR1"):
        return "Parquet"
    if head.startswith(b"PK\3\4"):
        return "Excel"
    if head[257:262] == b"ustar":
        return "WebDataset"
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise CatalogueError(f"{path} is an Excel workbook of the old kind (.xls); save it as .xlsx or CSV")
    start = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    if start[:5].lower() == b"<html" or start[:14].lower() == b"<!doctype html":
        raise CatalogueError(f"{path} is a web page, not a table")
    if start.startswith(b"<"):
        return "XML"
    if start.startswith((b'{"', b"[{", b"[\n", b"[\r")):
        return "JSON"
    return next(kind for kind, suffixes in _SUFFIXES.items() if suffix_of(path) in suffixes)


def suffix_of(path: Path) -> str:
    """Return the suffix that tells the table's form, in lower case: that before `.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def _encoding_name(encoding: str) -> str:
    return {"utf-8-sig": "UTF-8", "cp1252": "Windows-1252"}.get(encoding, encoding.upper())


def estimate_rows(path: Path) -> int:
    """Return how many rows the table has: exactly for Parquet, else its number of lines."""
    return sum(map(_estimate_rows_of_file, table_files(path)))


def _estimate_rows_of_file(path: Path) -> int:
    with _errors(path), open_bytes(path) as file:
        if suffix_of(path) in _SUFFIXES["Parquet"]:
            return count_parquet(path)
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def hash_table(path: Path) -> str:
    """Return a hash of the bytes of all of the table's files, in order. Raises `CatalogueError`."""
    found = hashlib.sha256()
    for each in table_files(path):
        with _errors(each), each.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise CatalogueError(f"{path} is not valid text in its encoding: {error}; name it by 'encoding'") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CatalogueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
