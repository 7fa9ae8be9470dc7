"""The images of a catalogue by name, read in place: a folder, or a zip file that is never unpacked."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from model.errors import CatalogueError

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


def open_images(path: Path | None) -> Images:
    """Return the images at `path` (None: there are none); raises `CatalogueError` unless a folder or a zip."""
    if path is None:
        return NoImages()
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


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    packed_size: int
    size: int
    deflated: bool
    crc: int


@dataclass(frozen=True)
class ZipImages:
    """Images in a zip file, read in place.

    `zipfile.ZipFile` shares one file position, which forked workers would move under each other's feet. So
    only the directory is read with it, once; a read then opens the file, which costs microseconds.
    """

    path: Path
    members: Mapping[str, _Member] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> ZipImages:
        """Read the directory of the zip file at `path`."""
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, OSError) as error:
            raise CatalogueError(f"{path} is not a readable zip file: {error}") from error
        for info in infos:
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CatalogueError(f"{path}: {info.filename} is encrypted or not stored or deflated")
        return cls(
            path,
            {
                info.filename: _Member(
                    info.header_offset,
                    info.compress_size,
                    info.file_size,
                    info.compress_type == zipfile.ZIP_DEFLATED,
                    info.CRC,
                )
                for info in infos
            },
        )

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str) -> bytes:
        """Return the member's bytes, as many as the directory says, checked against its CRC."""
        if name not in self.members:
            raise CatalogueError(f"{self.path} holds no image {name}")
        member = self.members[name]
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


def _read_bounded(file: IO[bytes], name: str, store: Path) -> bytes:
    data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise _too_large(name, store)
    return data


def _too_large(name: str, store: Path) -> CatalogueError:
    return CatalogueError(f"image {name} of {store} has more than {MAX_IMAGE_BYTES} bytes")
