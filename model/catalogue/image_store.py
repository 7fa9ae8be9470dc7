"""The images of a catalogue by name, read in place: a folder, here or in an object store, a zip file or shards."""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from model.catalogue.cells import ImageAt
from model.catalogue.zip_directory import Member, ZipDirectory
from model.errors import CatalogueError
from model.stores import Place, RemotePath

MAX_IMAGE_BYTES = 64 * 2**20
"""No image file is larger; what is, isn't read, so that one file cannot take the machine's memory."""


class Images(Protocol):
    """The images of a catalogue by name; without an open file, so it may be shared by threads, forked and pickled."""

    def __contains__(self, name: str) -> bool:
        """Return whether there is such an image."""
        ...

    def read(self, name: str) -> bytes:
        """Return the bytes of an image file; raises `CatalogueError` where that fails."""
        ...


def open_images(path: Place | None) -> Images:
    """Return the images at `path` (None: there are none); raises `CatalogueError` unless a folder or a zip."""
    if path is None:
        return NoImages()
    if isinstance(path, RemotePath):
        if path.suffix.lower() == ".zip":
            raise CatalogueError(
                f"{path}: a zip file in an object store cannot be read in place; name a folder of images there, or "
                "write WebDataset shards"
            )
        return RemoteImages(path)
    if path.is_dir():
        return FolderImages(path)
    if not path.is_file():
        raise CatalogueError(f"{path}: no such folder or zip file of images")
    return ZipImages.open(path)


@dataclass(frozen=True)
class NoImages:
    """The images of a catalogue that is titles alone."""

    def __contains__(self, name: str) -> bool:
        return False

    def read(self, name: str) -> bytes:
        """Raise `CatalogueError`."""
        raise CatalogueError(f"the catalogue has no images, so none called {name}")


@dataclass(frozen=True)
class FolderImages:
    """Images in a folder."""

    folder: Path

    def __contains__(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.folder, name))  # Path is 5 times slower

    def read(self, name: str) -> bytes:
        """Return the file's bytes."""
        try:
            with (self.folder / name).open("rb") as file:
                return _read_bounded(file, name, self.folder)
        except (OSError, ValueError) as error:
            raise CatalogueError(f"cannot read image {name} of {self.folder}: {error}") from error


@dataclass(frozen=True)
class ZipImages:
    """Images in a zip file, read in place.

    `zipfile.ZipFile` shares one file position, which forked workers would move under each other's feet, and keeps a
    kilobyte for each member. So the directory is our own; a read opens the file, which costs microseconds.
    """

    path: Path
    directory: ZipDirectory = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> ZipImages:
        """Read the directory of the zip file at `path`."""
        return cls(path, ZipDirectory.open(path))

    def __contains__(self, name: str) -> bool:
        return name in self.directory

    def member(self, name: str) -> Member:
        """Return what the directory says of an image. Raises `CatalogueError` where it holds none of this name."""
        found = self.directory.find(name)
        if found is None:
            raise CatalogueError(f"{self.path} holds no image {name}")
        return found

    def read(self, name: str) -> bytes:
        """Return the member's bytes, as many as the directory says, checked against its CRC."""
        member = self.member(name)
        if max(member.size, member.packed_size) > MAX_IMAGE_BYTES:
            raise _too_large(name, self.path)
        try:
            with self.path.open("rb") as file:
                file.seek(member.offset)
                # The data follow the local header's name and extra field; the directory's may differ in size.
                name_size, extra_size = struct.unpack("<26xHH", file.read(30))
                file.seek(name_size + extra_size, os.SEEK_CUR)
                data = file.read(member.packed_size)
            if member.deflated:
                # One byte more than there should be, to see whether there is more: the directory may lie.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
        except (OSError, struct.error, zlib.error) as error:
            raise CatalogueError(f"cannot read image {name} of {self.path}: {error}") from error
        if len(data) != member.size:
            raise CatalogueError(f"image {name} of {self.path} is damaged: it has not the size in the zip's directory")
        if zlib.crc32(data) != member.crc:
            raise CatalogueError(f"image {name} of {self.path} is damaged: its checksum is wrong")
        return data


LOOKED_FOR = 50
"""Images of an object store that are looked for, a request each, before the others are taken to be there, or not."""


class RemoteImages:
    """Images in a folder of an object store, a request for each that is read.

    To look for each of millions before it is read would take hours. So the first `LOOKED_FOR` that are asked for are,
    which finds a wrong folder; if any of them is there, all others are taken to be, and are an error when they are read
    and are not.
    """

    def __init__(self, folder: RemotePath) -> None:
        self.folder = folder
        self._looked: dict[str, bool] = {}

    def is_taken_to_be_there(self, name: str) -> bool:
        """Whether an image has not been looked for, and is taken to be there all the same."""
        return name not in self._looked and name in self

    def __contains__(self, name: str) -> bool:
        if name not in self._looked:
            if len(self._looked) >= LOOKED_FOR:
                return any(self._looked.values())
            try:
                self._looked[name] = (self.folder / name).exists()
            except OSError as error:
                raise CatalogueError(f"cannot read the images of {self.folder}: {error}") from error
        return self._looked[name]

    def read(self, name: str) -> bytes:
        """Return the object's bytes."""
        try:
            data = (self.folder / name).read_bytes(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            raise CatalogueError(f"cannot read image {name} of {self.folder}: {error.strerror or error}") from error
        if len(data) > MAX_IMAGE_BYTES:
            raise _too_large(name, self.folder)
        return data


def _read_bounded(file: IO[bytes], name: str, store: Path) -> bytes:
    data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise _too_large(name, store)
    return data


def _too_large(name: str, store: Place) -> CatalogueError:
    return CatalogueError(f"image {name} of {store} has more than {MAX_IMAGE_BYTES} bytes")


# --- images that are elsewhere -----------------------------------------------------------------------------


def is_url(name: str) -> bool:
    """Whether an image's name is an address on the web, with or without its scheme."""
    return name[:8].lower().startswith(("http://", "https://", "//"))


@dataclass(frozen=True)
class FetchedImages:
    """Images by URL, fetched each time they are read, and those of `local` by name."""

    local: Images
    fetch: Callable[[str], bytes]
    """Returns the bytes behind a URL; raises `CatalogueError`. Called by several threads."""

    def __contains__(self, name: str) -> bool:
        return is_url(name) or name in self.local

    def read(self, name: str) -> bytes:
        """Return the bytes of an image file; raises `CatalogueError` where that fails."""
        return self.fetch(name) if is_url(name) else self.local.read(name)


class CopiedImages:
    """Images that a table holds inside, copied to a temporary file so that they can be read in any order.

    The file is removed with the object that made it; copies of that object in other processes only read.
    """

    def __init__(self, others: Images) -> None:
        """others: the images that are not inside the table."""
        self._others = others
        folder = tempfile.mkdtemp(prefix="cma-clip-images-")
        self.path, self.size = Path(folder, "images"), 0
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def add(self, listing_id: str, data: bytes) -> str:
        """Copy an image, and return its name. Raises `CatalogueError` where the disk is full."""
        try:
            with self.path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise CatalogueError(f"cannot copy the table's images to {self.path}: {error.strerror}") from error
        # Its place is in its name, since a table of names in memory would grow with the catalogue. No name of a table
        # has a NUL (`model.catalogue.image_names`), so none can mean another row's image.
        name = f"{listing_id}, in the table\0{self.size}+{len(data)}"
        self.size += len(data)
        return name

    def __contains__(self, name: str) -> bool:
        return _COPIED.fullmatch(name) is not None or name in self._others

    def read(self, name: str) -> bytes:
        """Return the bytes of an image file; raises `CatalogueError` where that fails."""
        place = _COPIED.fullmatch(name)
        if place is None:
            return self._others.read(name)
        try:
            return _range_of(self.path, int(place[1]), int(place[2]))
        except OSError as error:
            raise CatalogueError(f"cannot read image {name}: {error.strerror}") from error


_COPIED = re.compile(r".*\0(\d+)\+(\d+)", re.DOTALL)


class ShardImages:
    """Images that lie as they are in the files of a table, read in place; all others are those of `others`."""

    def __init__(self, files: Sequence[Place], others: Images) -> None:
        self._files, self._others = tuple(files), others

    @staticmethod
    def name_of(image: ImageAt) -> str:
        """Return the name of an image; its place is in it, as in `CopiedImages`."""
        return f"{image.name}\0{image.file}:{image.begin}+{image.size}"

    def __contains__(self, name: str) -> bool:
        return _IN_SHARD.fullmatch(name) is not None or name in self._others

    def read(self, name: str) -> bytes:
        """Return the bytes of an image file; raises `CatalogueError` where that fails."""
        place = _IN_SHARD.fullmatch(name)
        if place is None:
            return self._others.read(name)
        path, begin, size = self._files[int(place[2])], int(place[3]), int(place[4])
        try:
            data = _range_of(path, begin, size)
        except OSError as error:
            raise CatalogueError(f"cannot read image {place[1]} of {path}: {error.strerror or error}") from error
        if len(data) < size:
            raise CatalogueError(f"cannot read image {place[1]} of {path}: the file has become shorter")
        return data


def _range_of(path: Place, begin: int, size: int) -> bytes:
    if isinstance(path, RemotePath):
        return path.read_range(begin, size)
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(size)


_IN_SHARD = re.compile(r"(.*)\0(\d+):(\d+)\+(\d+)", re.DOTALL)
