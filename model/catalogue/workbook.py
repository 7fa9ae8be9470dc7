"""Excel workbooks (.xlsx) to records, row by row: the first sheet whose first row names the columns."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.catalogue.cells import Record, Wanted, find_columns
from model.errors import CatalogueError, ConfigError
from model.stores import Place


def read_workbook(path: Place, wanted: Wanted) -> tuple[str, Iterator[Record]]:
    """Return the sheet's name and the records, lazily, numbered as in the sheet.

    Raises `ConfigError` where openpyxl isn't installed, `CatalogueError` for another file or a missing column.
    """
    try:
        import openpyxl  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("Excel workbooks need openpyxl: pip install 'cma-clip[excel]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validation rules, which are not read
            source = path if isinstance(path, Path) else path.open()
            workbook = openpyxl.load_workbook(source, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CatalogueError(f"{path} is not a readable Excel workbook: {error}") from None
    missing = None
    for sheet in workbook.worksheets:
        rows = sheet.iter_rows(values_only=True)
        header = ["" if cell is None else str(cell) for cell in next(rows, ())]
        try:
            positions = find_columns(path, wanted.columns, header)
        except CatalogueError as error:
            missing = missing or error
            continue
        return str(sheet.title), _records(workbook, rows, positions)
    raise missing or CatalogueError(f"{path} has no sheet")


def _records(workbook: Any, rows: Iterator[tuple[Any, ...]], positions: dict[str, int]) -> Iterator[Record]:
    try:
        for number, cells in enumerate(rows, 2):
            if any(cell is not None for cell in cells):
                named = {column: cells[at] if at < len(cells) else None for column, at in positions.items()}
                yield Record(number, named)
    finally:
        workbook.close()
