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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import IO

from model.catalogue.cells import Record, Row, Wanted, make_row
from model.catalogue.csv_table import read_csv
from model.catalogue.files import detect_encoding, open_bytes, open_text
from model.catalogue.json_table import read_json
from model.catalogue.parquet_table import count_parquet, import_pyarrow, read_parquet
from model.catalogue.webdataset import estimate_samples, read_webdataset
from model.catalogue.workbook import read_workbook
from model.catalogue.xml_feed import read_xml
from model.errors import CatalogueError, ModelError
from model.stores import AHEAD, Place, RemotePath

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
    """An opened table: how it is read, in words; its rows, which may be iterated over once; and its files, in order."""

    form: str
    rows: Iterator[Row]
    files: Sequence[Place]


def is_table_name(path: Place) -> bool:
    """Whether a table may be called so: its suffix tells a form, or it is a folder.

    In an object store, what has no suffix is taken for a folder; none is asked.
    """
    return suffix_of(path) in SUFFIXES or (not path.suffix if isinstance(path, RemotePath) else path.is_dir())


def table_files(path: Place) -> list[Place]:
    """Return the files that make a table: itself, those of a folder, or those that match a pattern, by name.

    In a folder, and below it, files count whose suffix tells a form; names that begin with a dot or an underscore are
    passed over, as other programs do. Raises `CatalogueError` where there is none.
    """
    if isinstance(path, RemotePath):
        with _errors(path):
            return _remote_files(path)
    if path.is_dir():
        found = (each for each in path.rglob("*") if suffix_of(each) in SUFFIXES and each.is_file())
        files = [each for each in found if not any(part[0] in "._" for part in each.relative_to(path).parts)]
    elif glob.has_magic(path.name) and not path.exists():
        files = [Path(each) for each in glob.glob(str(path))]
    else:
        return [path]
    if not files:
        raise CatalogueError(f"{path} holds no table" if path.is_dir() else f"no file matches {path}")
    return [*sorted(files)]


def _remote_files(path: RemotePath) -> list[Place]:
    if glob.has_magic(path.name) and not path.exists():
        files = path.matching()
    elif suffix_of(path) in SUFFIXES:
        return [path]
    else:
        shown = (name for name in path.names() if not any(part[:1] in "._" for part in name.split("/")))
        files = [each for name in shown if suffix_of(each := path / name) in SUFFIXES]
    if not files:
        raise CatalogueError(f"{path} holds no table, or is not there")
    return sorted(files, key=str)


def open_table(path: Place, wanted: Wanted) -> Table:
    """Open a table; its rows are read in constant memory as they are iterated over.

    Raises `CatalogueError` for a missing column, or a file that cannot be read as what it is; `ConfigError` where the
    library that reads it is not installed. The rows raise the same.
    """
    files = table_files(path)
    first, *others = files
    with _errors(first):
        form, records = _open(first, wanted, 0)
    rows = _rows(first, records, wanted)
    return Table(f"{form}; {len(files)} files" if others else form, _joined(rows, others, wanted), files)


def _joined(rows: Iterator[Row], others: list[Place], wanted: Wanted) -> Iterator[Row]:
    """Yield these rows, and then those of other files, each opened when it is its turn."""
    line = 0
    for row in rows:
        line = row.line
        yield row
    for number, path in enumerate(others, 1):
        before = line
        with _errors(path):
            _, records = _open(path, wanted, number)
        for row in _rows(path, records, wanted):
            line = before + row.line
            yield replace(row, line=line)


def _rows(path: Place, records: Iterator[Record], wanted: Wanted) -> Iterator[Row]:
    with _errors(path):
        for record in records:
            yield make_row(record, wanted)


def _open(path: Place, wanted: Wanted, number: int) -> tuple[str, Iterator[Record]]:
    """Open the file of this number of a table; return its form and its records."""
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
        return "a WebDataset shard", read_webdataset(path, wanted, number)
    encoding = wanted.encoding or detect_encoding(path)

    def open_file() -> IO[str]:
        return open_text(path, encoding)

    if kind == "JSON":
        form, records = read_json(path, open_file, wanted)
        return f"{form} in {_encoding_name(encoding)}", records
    delimiter, records = read_csv(path, open_file, wanted)
    separator = _SEPARATOR_NAMES.get(delimiter, repr(delimiter))
    return f"CSV with {separator}, in {_encoding_name(encoding)}", records


def _kind(path: Place, head: bytes) -> str:
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


def suffix_of(path: Place) -> str:
    """Return the suffix that tells the table's form, in lower case: that before `.gz`."""
    suffix = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if suffix == ".gz" else suffix


def _encoding_name(encoding: str) -> str:
    return {"utf-8-sig": "UTF-8", "cp1252": "Windows-1252"}.get(encoding, encoding.upper())


def estimate_rows(path: Place) -> int:
    """Return about how many rows the table has: exactly for Parquet, else by its lines, or a shard's first samples.

    Of a file in an object store, the begin alone is read.
    """
    return sum(map(_estimate_rows_of_file, table_files(path)))


def _estimate_rows_of_file(path: Place) -> int:
    with _errors(path):
        if suffix_of(path) in _SUFFIXES["Parquet"]:
            return count_parquet(path)
        if suffix_of(path) in _SUFFIXES["WebDataset"]:
            return estimate_samples(path)
        with open_bytes(path) as file:
            if isinstance(path, RemotePath):
                head = file.read(AHEAD)
                return round(head.count(b"\n") * max(1.0, path.size() / max(1, len(head))))
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def hash_table(path: Place) -> str:
    """Return a hash of the bytes of all of the table's files, in order. Raises `CatalogueError`.

    Of objects in a store it is made of what the store says of them: their bytes would be downloaded for it.
    """
    found = hashlib.sha256()
    for each in table_files(path):
        if isinstance(each, RemotePath):
            with _errors(each):
                found.update(f"{each} {each.fingerprint()}\n".encode())
            continue
        with _errors(each), each.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


@contextmanager
def _errors(path: Place) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise CatalogueError(f"{path} is not valid text in its encoding: {error}; name it by 'encoding'") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CatalogueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except ModelError:
        raise
    except Exception as error:
        if isinstance(path, RemotePath):  # whatever its library raises when it cannot read on
            raise CatalogueError(f"cannot read {path}: {error or type(error).__name__}") from error
        raise
