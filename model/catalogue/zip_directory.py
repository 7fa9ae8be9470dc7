"""The directory of a zip file, however many members it has: 16 bytes for each in memory; names stay on the disk.

`zipfile` keeps about a kilobyte for each member, gigabytes for a catalogue of millions of images. The format is that of
APPNOTE.TXT (PKWARE, 6.3.10), sections 4.3.12 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct
import zipfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from model.catalogue.hashes import Hashes, hash64
from model.errors import CatalogueError

_END = struct.Struct("<4s4H2LH")
_END_MARK = b"PK\5\6"
_LOCATOR = struct.Struct("<4sLQL")
_LOCATOR_MARK = b"PK\6\7"
_END_64 = struct.Struct("<4sQ2H2L4Q")
_END_64_MARK = b"PK\6\6"
_RECORD = struct.Struct("<4s6H3L5H2L")
_RECORD_MARK = b"PK\1\2"

_LONGEST_COMMENT = 0xFFFF
_IN_EXTRA = 0xFFFFFFFF
_ENCRYPTED, _UTF_8 = 1, 1 << 11


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a zip. `offset` is where its local header begins."""

    name: str
    offset: int
    packed_size: int
    size: int
    deflated: bool
    crc: int


class _Index:
    """Where the records of some keys are: `places` of the sorted `hashes` of the keys, [n] each."""

    def __init__(self, keys: Iterator[tuple[int, int]]) -> None:
        hashes, places = array("Q"), array("Q")
        for key, place in keys:
            hashes.append(key)
            places.append(place)
        unsorted = np.frombuffer(hashes, np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self.hashes: Hashes = unsorted[order]
        self.places: Hashes = np.frombuffer(places, np.uint64)[order]

    def __contains__(self, key: str) -> bool:
        return bool(len(self._range(key)))

    def find(self, key: str) -> list[int]:
        """Return the places of the records with this key's hash, in the directory's order."""
        return [int(self.places[at]) for at in self._range(key)]

    def _range(self, key: str) -> range:
        wanted = np.uint64(_hash(key))
        begin = int(np.searchsorted(self.hashes, wanted, side="left"))
        return range(begin, int(np.searchsorted(self.hashes, wanted, side="right")))


def _hash(name: str) -> int:
    return hash64(name.encode(errors="surrogatepass"))


@dataclass(frozen=True)
class ZipDirectory:
    """The members of a zip file by name, without directories. Has no open file: may be shared, forked and pickled."""

    path: Path
    begin: int
    end: int
    shift: int
    """Bytes before the zip file proper, which offsets do not count."""
    _names: _Index = field(repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> ZipDirectory:
        """Read the directory once.

        Raises `CatalogueError` for a file that is not a zip file, or that has a member of a form not known here.
        """
        try:
            with path.open("rb") as file:
                begin, end, shift = _find_directory(file)
                names = _Index((_hash(member.name), place) for place, member in _members(file, path, begin, end, shift))
        except (OSError, ValueError, struct.error) as error:
            raise CatalogueError(f"{path} is not a readable zip file: {error}") from error
        return cls(path, begin, end, shift, names)

    def __len__(self) -> int:
        return len(self._names.hashes)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """Yield all names, read from the disk."""
        with self.path.open("rb") as file:
            for _, member in _members(file, self.path, self.begin, self.end, self.shift):
                yield member.name

    def find(self, name: str) -> Member | None:
        """Return the member of this name, the last one where several have it."""
        return next((each for each in reversed(self.read(self._names.find(name))) if each.name == name), None)

    def by(self, fold: Callable[[str], str]) -> FoldedNames:
        """Return an index by what `fold` makes of a name; reads the directory once more."""
        with self.path.open("rb") as file:
            members = _members(file, self.path, self.begin, self.end, self.shift)
            return FoldedNames(self, fold, _Index((_hash(fold(member.name)), place) for place, member in members))

    def read(self, places: list[int]) -> list[Member]:
        """Return the members whose records are at these places. Raises `CatalogueError` where the file has changed."""
        if not places:
            return []
        try:
            with self.path.open("rb") as file:
                return [_read_record(file, place, self.shift)[0] for place in places]
        except (OSError, ValueError, struct.error) as error:
            raise CatalogueError(f"cannot read the directory of {self.path}: {error}") from error


@dataclass(frozen=True)
class FoldedNames:
    """The names of a directory by something that several of them may share, such as their spelling in lower case."""

    _directory: ZipDirectory
    _fold: Callable[[str], str]
    _index: _Index = field(repr=False)

    def get(self, folded: str) -> str | None:
        """Return the only name that folds to this; None where there is none, or several."""
        found = self._directory.read(self._index.find(folded))
        names = [member.name for member in found if self._fold(member.name) == folded]
        return names[0] if len(names) == 1 else None


# --- the format --------------------------------------------------------------------------------------------


def _find_directory(file: IO[bytes]) -> tuple[int, int, int]:
    """Return where the directory begins and ends, and how many bytes stand before the zip file proper."""
    size = file.seek(0, 2)
    start = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END_MARK)
    if at < 0 or len(tail) - at < _END.size:
        raise ValueError("it has no directory at its end")
    length, offset = _END.unpack_from(tail, at)[5:7]
    end = start + at
    if end >= _LOCATOR.size:
        file.seek(end - _LOCATOR.size)
        mark, _, _, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
        if mark == _LOCATOR_MARK:
            file.seek(end - _LOCATOR.size - _END_64.size)
            record = _END_64.unpack(file.read(_END_64.size))
            if record[0] == _END_64_MARK:
                end, (length, offset) = end - _LOCATOR.size - _END_64.size, record[8:10]
    begin = end - length
    if begin < 0 or begin < offset:
        raise ValueError("its directory is torn")
    return begin, end, begin - offset


def _members(file: IO[bytes], path: Path, begin: int, end: int, shift: int) -> Iterator[tuple[int, Member]]:
    """Yield the place of each record with its member; raises `CatalogueError` for one that we cannot read."""
    place = begin
    file.seek(begin)
    while place < end:
        member, flags, method, length = _next_record(file, shift)
        if not member.name.endswith("/"):
            if flags & _ENCRYPTED or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CatalogueError(f"{path}: {member.name} is encrypted or not stored or deflated")
            yield place, member
        place += length


def _read_record(file: IO[bytes], place: int, shift: int) -> tuple[Member, int, int, int]:
    file.seek(place)
    return _next_record(file, shift)


def _next_record(file: IO[bytes], shift: int) -> tuple[Member, int, int, int]:
    """Return the record that begins here: its member, flags, compression method and length."""
    header = file.read(_RECORD.size)
    mark, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, offset = _RECORD.unpack(header)
    if mark != _RECORD_MARK:
        raise ValueError("its directory is torn")
    name, extra, _ = (file.read(length) for length in lengths)
    if _IN_EXTRA in (size, packed, offset):
        size, packed, offset = _from_extra(extra, size, packed, offset)
    member = Member(_decoded(name, flags), offset + shift, packed, size, method == zipfile.ZIP_DEFLATED, crc)
    return member, flags, method, _RECORD.size + sum(lengths)


def _from_extra(extra: bytes, *values: int) -> list[int]:
    """Replace values that do not fit into 32 bits by those of the ZIP64 field, in its fixed order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            large = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(large, value) if value == _IN_EXTRA else value for value in values]
        at += 4 + length
    return list(values)


def _decoded(name: bytes, flags: int) -> str:
    """Return a name as text: macOS writes UTF-8 without the flag that says so, and old tools code page 437."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("utf-8", "surrogateescape") if flags & _UTF_8 else name.decode("cp437")
