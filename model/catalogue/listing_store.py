"""Listings of a catalogue as a sequence: in memory while there are few, in a temporary file from `IN_MEMORY` on.

A listing as an object takes half a kilobyte and more, so a machine can hold some millions. In the file it takes what
it says, and in memory nothing; where it is, 8 bytes each, is in a second file. A part of the listings takes 4 bytes
each in memory. All of it may be pickled, which sends places and the file's name, and read by several at once.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from model.catalogue.splits import Part
from model.errors import CatalogueError

if TYPE_CHECKING:
    from model.catalogue.listings import Listing

IN_MEMORY = 100_000
"""So many listings are kept as objects: 53 MiB of listings with a title and three labels."""

_PARTS = tuple(Part)

_OFFSET = 8
"""Bytes of the place of a listing in the file."""

_BLOCK = 1024
"""Listings that are read at once where all are."""

Spellings = Mapping[str, Mapping[str, str]]
"""By attribute, the label that each other spelling is replaced by."""


class ListingWriter:
    """Takes listings one by one, and returns them as a sequence. Raises `CatalogueError` where the disk is full."""

    def __init__(self) -> None:
        self._few: list[Listing] = []
        self._file: _Written | None = None
        self._parts = bytearray()

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, listing: Listing) -> None:
        """Take the next listing."""
        self._parts.append(_PARTS.index(listing.part))
        if self._file is None and len(self._few) < IN_MEMORY:
            self._few.append(listing)
            return
        if self._file is None:
            self._file = _Written()
            for each in self._few:
                self._file.add(each)
            self._few.clear()
        self._file.add(listing)

    def finish(self, spellings: Spellings) -> Sequence[Listing]:
        """Return the listings in order, labels spelt as `spellings` has them."""
        if self._file is None:
            return tuple(respelt(listing, spellings) for listing in self._few)
        self._file.close(self._parts)
        return StoredListings(self._file.folder, spellings, len(self._parts))


class _Written:
    """The files while they are written; they are removed with the process that wrote them, or before."""

    def __init__(self) -> None:
        self.folder = TemporaryFolder()
        self._records = self._open("records")
        self._places = self._open("places")
        self._end = 0

    def _open(self, name: str) -> IO[bytes]:
        return (self.folder.path / name).open("wb")

    def add(self, listing: Listing) -> None:
        data = _to_json(listing)
        try:
            self._records.write(data)
            self._places.write(self._end.to_bytes(_OFFSET, "little"))
        except OSError as error:
            raise CatalogueError(f"cannot keep the listings in {self.folder.path}: {error.strerror}") from error
        self._end += len(data)

    def close(self, parts: bytes | bytearray) -> None:
        try:
            self._places.write(self._end.to_bytes(_OFFSET, "little"))
            self._records.close()
            self._places.close()
            (self.folder.path / "parts").write_bytes(parts)
        except OSError as error:
            raise CatalogueError(f"cannot keep the listings in {self.folder.path}: {error.strerror}") from error


class TemporaryFolder:
    """A folder that is removed with the object that made it; copies of that object in other processes only read."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="cma-clip-listings-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class StoredListings(Sequence["Listing"]):
    """Listings in a file: all, or those at some places of it."""

    def __init__(
        self,
        folder: TemporaryFolder,
        spellings: Spellings,
        count: int,
        places: NDArray[np.uint32] | None = None,
        changed: Mapping[str, Listing] | None = None,
    ) -> None:
        """count: how many are in the file; places: of those meant, `[n]`, None: all; changed: as `replaced` has it."""
        self._folder, self._spellings, self._count, self._places = folder, spellings, count, places
        self._changed: Mapping[str, Listing] = changed or {}
        self._files: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None}

    def __len__(self) -> int:
        return self._count if self._places is None else len(self._places)

    @overload
    def __getitem__(self, index: int) -> Listing: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Listing]: ...
    def __getitem__(self, index: int | slice) -> Listing | Sequence[Listing]:
        if isinstance(index, slice):
            return self._at(self._chosen()[index])
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"there are {count} listings, and none is number {index}")
        place = index % count
        return self._read(place if self._places is None else int(self._places[place]), 1)[0]

    def __iter__(self) -> Iterator[Listing]:
        for first in range(0, len(self), _BLOCK):
            last = min(len(self), first + _BLOCK)
            if self._places is None:
                yield from self._read(first, last - first)
            else:
                for place in self._places[first:last].tolist():
                    yield from self._read(place, 1)

    def part(self, part: Part) -> StoredListings:
        """Return the listings of one part."""
        try:
            parts = np.fromfile(self._folder.path / "parts", np.uint8)
        except OSError as error:
            raise CatalogueError(f"cannot read listings of {self._folder.path}: {error.strerror}") from error
        chosen = self._chosen()
        return self._at(chosen[parts[chosen] == _PARTS.index(part)])

    def _chosen(self) -> NDArray[np.uint32]:
        return np.arange(self._count, dtype=np.uint32) if self._places is None else self._places

    def _at(self, places: NDArray[np.uint32]) -> StoredListings:
        return StoredListings(self._folder, self._spellings, self._count, places, self._changed)

    def replaced(self, changed: Mapping[str, Listing]) -> StoredListings:
        """Return these listings with `changed` in the place of those that have their ids, and are in the same parts."""
        return StoredListings(self._folder, self._spellings, self._count, self._places, {**self._changed, **changed})

    def _read(self, first: int, count: int) -> list[Listing]:
        """Read consecutive listings of the file."""
        records, places = self._opened()
        try:
            ends = np.frombuffer(os.pread(places, (count + 1) * _OFFSET, first * _OFFSET), "<u8").tolist()
            data = os.pread(records, ends[-1] - ends[0], ends[0])
        except OSError as error:
            raise CatalogueError(f"cannot read listings of {self._folder.path}: {error.strerror}") from error
        parts = (data[begin - ends[0] : end - ends[0]] for begin, end in pairwise(ends))
        listings = (respelt(_from_json(part), self._spellings) for part in parts)
        return [self._changed.get(listing.id, listing) for listing in listings]

    def _opened(self) -> tuple[int, int]:
        """Return descriptors of both files, opened once in each process."""
        if self._files is None:
            try:
                self._files = (
                    os.open(self._folder.path / "records", os.O_RDONLY | os.O_CLOEXEC),
                    os.open(self._folder.path / "places", os.O_RDONLY | os.O_CLOEXEC),
                )
            except OSError as error:
                raise CatalogueError(f"cannot read listings of {self._folder.path}: {error.strerror}") from error
            weakref.finalize(self, _close, *self._files)
        return self._files


def replaced(listings: Sequence[Listing], changed: Mapping[str, Listing]) -> Sequence[Listing]:
    """Return listings with `changed`, by id, in the place of their own; those in a file stay there."""
    if isinstance(listings, StoredListings):
        return listings.replaced(changed)
    return tuple(changed.get(listing.id, listing) for listing in listings)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _to_json(listing: Listing) -> bytes:
    record = [
        listing.id,
        listing.title,
        listing.image,
        listing.group,
        listing.part,
        listing.labels,
        listing.further_images,
        listing.label_sets,
    ]
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _from_json(data: bytes) -> Listing:
    from model.catalogue.listings import Listing  # noqa: PLC0415 - which builds on this module

    listing_id, title, image, group, part, labels, further, sets = json.loads(data.decode("utf-8", "surrogatepass"))
    return Listing(
        id=listing_id,
        title=title,
        image=image,
        group=group,
        part=Part(part),
        labels=labels,
        further_images=tuple(further),
        label_sets={attribute: tuple(each) for attribute, each in sets.items()},
    )


def respelt(listing: Listing, spellings: Spellings) -> Listing:
    """Return the listing with its labels spelt as `spellings` has them."""
    changed = {a: spellings[a][label] for a, label in listing.labels.items() if label in spellings.get(a, ())}
    sets = {
        a: tuple(dict.fromkeys(spellings[a].get(label, label) for label in labels))
        for a, labels in listing.label_sets.items()
        if a in spellings
    }
    if not changed and not sets:
        return listing
    return replace(listing, labels={**listing.labels, **changed}, label_sets={**listing.label_sets, **sets})
