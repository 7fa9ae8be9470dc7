"""Parquet to records, in constant memory; also with images inside, as Hugging Face datasets write them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from model.catalogue.cells import Record, Wanted, find_columns
from model.errors import CatalogueError, ConfigError
from model.stores import Place

_BATCH = 4096

_BATCH_OF_IMAGES = 64
"""Rows read at once where they hold images: at 100 kB each, 4,096 would take 400 MB."""

_BUFFER = 1 << 20


def import_pyarrow() -> Any:
    """Return `pyarrow` with its `parquet`, which only Parquet needs; `ConfigError` where it isn't installed."""
    try:
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'cma-clip[parquet]'") from error
    return pyarrow


def read_parquet(path: Place, wanted: Wanted) -> Iterator[Record]:
    """Yield the records, numbered from 1. Raises `CatalogueError` for another file or a missing column."""
    pyarrow = import_pyarrow()
    try:
        with _opened(path) as source, pyarrow.parquet.ParquetFile(source, buffer_size=_BUFFER) as file:
            schema = file.schema_arrow
            found = find_columns(path, wanted.columns, schema.names)
            names = {column: schema.names[at] for column, at in found.items()}
            has_images = wanted.image is not None and not _is_plain(pyarrow, schema.field(found[wanted.image]).type)
            number = 0
            columns = list(names.values())
            for batch in file.iter_batches(_BATCH_OF_IMAGES if has_images else _BATCH, columns=columns):
                for cells in batch.to_pylist():
                    number += 1
                    yield Record(number, {column: cells[name] for column, name in names.items()})
    except pyarrow.ArrowException as error:
        raise CatalogueError(f"{path} is not a readable Parquet file: {error}") from error


def count_parquet(path: Place) -> int:
    """Return the number of rows."""
    pyarrow = import_pyarrow()
    try:
        with _opened(path) as source, pyarrow.parquet.ParquetFile(source) as file:
            return int(file.metadata.num_rows)
    except pyarrow.ArrowException as error:
        raise CatalogueError(f"{path} is not a readable Parquet file: {error}") from error


def _opened(path: Place) -> AbstractContextManager[Any]:
    """Return what Arrow reads a file from: of an object no more than it asks for, a buffer of each column at a time."""
    return nullcontext(path) if isinstance(path, Path) else path.open(ahead=0)


def _is_plain(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))
