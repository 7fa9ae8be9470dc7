"""WebDataset shards to records, in constant memory: tar files in which the files of a sample follow one another.

The files of a sample share a name up to the first dot, its `__key__`; what follows the dot names its column. `json`
holds further columns, as an object. Images stay bytes: `image = "{jpg}"` names their column. A tar that is not
compressed can also be read in place: its images are passed over, and where they lie is told.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Any

from model.catalogue.cells import ImageAt, Record, Wanted, find_columns
from model.catalogue.files import open_bytes
from model.catalogue.image_store import MAX_IMAGE_BYTES
from model.errors import CatalogueError
from model.stores import Place, RemotePath

KEY = "__key__"

_COLUMN_SAMPLE = 20
"""Samples in whose files columns are looked for; they are in memory until then."""

_COUNTED = 200
"""Samples by whose size their number is estimated."""


@dataclass(frozen=True, slots=True)
class _Shard:
    """An opened shard, the file of this number; in_place: its images are not read."""

    tar: tarfile.TarFile
    number: int
    in_place: bool
    wanted: Wanted

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield its files; what `tarfile` would remember of them is dropped, since it grows with the shard."""
        while (member := self.tar.next()) is not None:
            self.tar.members.clear()  # type: ignore[attr-defined]
            if member.isfile():
                yield member

    def samples(self) -> Iterator[_Sample]:
        """Yield its samples."""
        for key, files in groupby(self.members(), lambda member: _split(member.name)[0]):
            sample = _Sample({KEY: key})
            for member in files:
                sample.add(self, member)
            yield sample


@dataclass
class _Sample:
    cells: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def add(self, shard: _Shard, member: tarfile.TarInfo) -> None:
        """Take what a file says; one that nobody asked for is passed over."""
        column = _split(member.name)[1]
        self.cells.setdefault(column)
        if column != "json" and column not in shard.wanted.columns:
            return
        if member.size > MAX_IMAGE_BYTES:
            self.error = f"{member.name} has more than {MAX_IMAGE_BYTES} bytes"
            return
        if column == shard.wanted.image and shard.in_place and member.size and not member.issparse():
            self.cells[column] = ImageAt(member.name, shard.number, member.offset_data, member.size)
            return
        file = shard.tar.extractfile(member)
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


def read_webdataset(path: Place, wanted: Wanted, number: int) -> Iterator[Record]:
    """Yield the records of a table's file of this number; theirs count samples.

    Raises `CatalogueError` for a missing column or another file.
    """
    try:
        with open_bytes(path) as file:
            in_place = wanted.in_place and not isinstance(getattr(file, "raw", None), gzip.GzipFile)
            with tarfile.open(fileobj=file, mode="r:" if in_place else "r|") as tar:
                samples = _Shard(tar, number, in_place, wanted).samples()
                first = list(islice(samples, _COLUMN_SAMPLE))
                present = list(dict.fromkeys(name for sample in first for name in sample.cells))
                names = {column: present[at] for column, at in find_columns(path, wanted.columns, present).items()}
                for line, sample in enumerate(chain(first, samples), 1):
                    yield Record(line, {c: sample.cells.get(name) for c, name in names.items()}, error=sample.error)
    except tarfile.TarError as error:
        raise CatalogueError(f"{path} is not a readable tar file: {error}") from error


def estimate_samples(path: Place) -> int:
    """Return about how many samples a shard has, by the size of its first ones. Raises `OSError`."""
    size = path.size() if isinstance(path, RemotePath) else path.stat().st_size
    try:
        with open_bytes(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            shard = _Shard(tar, 0, in_place=False, wanted=Wanted(columns=(), id=KEY))
            keys = {_split(member.name)[0] for member in islice(shard.members(), _COUNTED)}
            return max(len(keys), len(keys) * size // max(1, tar.offset))
    except tarfile.TarError:
        return 0  # who reads it says what is wrong


def _split(name: str) -> tuple[str, str]:
    """Return a sample's key and the column of a file of it: `a/b.seg.png` is the column `seg.png` of `a/b`."""
    folder, slash, file = name.rpartition("/")
    key, _, column = file.partition(".")
    return f"{folder}{slash}{key}", column.lower()
