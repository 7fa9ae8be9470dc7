"""WebDataset shards to records, in constant memory: tar files in which the files of a sample follow one another.

The files of a sample share a name up to the first dot, its `__key__`; what follows the dot names its column. `json`
holds further columns, as an object. Images stay bytes: `image = "{jpg}"` names their column.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from model.catalogue.cells import Record, Wanted, find_columns
from model.catalogue.files import open_bytes
from model.catalogue.image_store import MAX_IMAGE_BYTES
from model.errors import CatalogueError

KEY = "__key__"

_COLUMN_SAMPLE = 20
"""Samples in whose files columns are looked for; they are in memory until then."""


@dataclass
class _Sample:
    cells: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, wanted: Wanted) -> None:
        """Take what a file says; one that nobody asked for is passed over."""
        column = _split(member.name)[1]
        self.cells.setdefault(column)
        if column != "json" and column not in wanted.columns:
            return
        if member.size > MAX_IMAGE_BYTES:
            self.error = f"{member.name} has more than {MAX_IMAGE_BYTES} bytes"
            return
        file = tar.extractfile(member)
        data = b"" if file is None else file.read()
        if column != "json":
            self.cells[column] = data
            return
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            self.cells |= values
        else:
            self.error = f"{member.name} is not a JSON object"


def read_webdataset(path: Path, wanted: Wanted) -> Iterator[Record]:
    """Yield the records; their numbers count samples. Raises `CatalogueError` for a missing column or another file."""
    try:
        with open_bytes(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            samples = _samples(tar, wanted)
            first = list(islice(samples, _COLUMN_SAMPLE))
            present = list(dict.fromkeys(name for sample in first for name in sample.cells))
            names = {column: present[at] for column, at in find_columns(path, wanted.columns, present).items()}
            for number, sample in enumerate(chain(first, samples), 1):
                yield Record(number, {c: sample.cells.get(name) for c, name in names.items()}, error=sample.error)
    except tarfile.TarError as error:
        raise CatalogueError(f"{path} is not a readable tar file: {error}") from error


def _samples(tar: tarfile.TarFile, wanted: Wanted) -> Iterator[_Sample]:
    members = (member for member in tar if member.isfile())
    for key, files in groupby(members, lambda member: _split(member.name)[0]):
        sample = _Sample({KEY: key})
        for member in files:
            sample.add(tar, member, wanted)
        yield sample


def _split(name: str) -> tuple[str, str]:
    """Return a sample's key and the column of a file of it: `a/b.seg.png` is the column `seg.png` of `a/b`."""
    folder, slash, file = name.rpartition("/")
    key, _, column = file.partition(".")
    return f"{folder}{slash}{key}", column.lower()
