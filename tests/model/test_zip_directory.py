"""Our reading of a zip file's directory, against the standard library's."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import pytest

from model.catalogue.image_names import ImageFinder
from model.catalogue.image_store import ZipImages, open_images
from model.catalogue.words import Placeholders
from model.catalogue.zip_directory import ZipDirectory
from model.errors import CatalogueError

NAMES = ("a.jpg", "top/b.jpg", "top/Grün.jpg", "top/ö/日本.png", "x" * 300)


def packed(*names: str, method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in names:
            archive.writestr(name, b"" if name.endswith("/") else name.encode() * 3)
        archive.comment = comment
    return buffer.getvalue()


def write(folder: Path, content: bytes) -> Path:
    path = folder / "images.zip"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("before", "method", "comment"),
    [
        (b"", zipfile.ZIP_DEFLATED, b""),
        (b"", zipfile.ZIP_STORED, b"made by a shop, PK\1\2 and all"),
        (b"#!/bin/sh\n" * 50, zipfile.ZIP_DEFLATED, b""),  # an archive that unpacks itself
    ],
)
def test_it_reads_what_the_standard_library_reads(tmp_path: Path, before: bytes, method: int, comment: bytes) -> None:
    path = write(tmp_path, before + packed("top/", *NAMES, method=method, comment=comment))
    directory = ZipDirectory.open(path)
    assert list(directory) == list(NAMES)
    assert len(directory) == len(NAMES)
    with zipfile.ZipFile(path) as archive:
        for name in NAMES:
            info, member = archive.getinfo(name), directory.find(name)
            assert member is not None
            assert name in directory
            assert (member.size, member.packed_size, member.crc) == (info.file_size, info.compress_size, info.CRC)
            assert ZipImages(path, directory).read(name) == archive.read(name)
    assert "top/" not in directory
    assert directory.find("c.jpg") is None


def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 8)
        patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
        path = write(tmp_path, b"before" + packed(*NAMES))
    assert b"PK\6\6" in path.read_bytes()
    images = open_images(path)
    assert [images.read(name) for name in NAMES] == [name.encode() * 3 for name in NAMES]


def test_no_member_at_all(tmp_path: Path) -> None:
    directory = ZipDirectory.open(write(tmp_path, packed()))
    assert (len(directory), list(directory), "a" in directory) == (0, [], False)


def test_of_two_members_of_one_name_the_last_one_counts(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"old")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.jpg", b"new")
    assert open_images(write(tmp_path, buffer.getvalue())).read("a.jpg") == b"new"


def test_names_that_macos_writes_are_understood(tmp_path: Path) -> None:
    """UTF-8 without the flag that says so, decomposed, below a single folder."""
    name = unicodedata.normalize("NFD", "Fotos/Grün Schön.JPG")
    placeholder = "Fotos/" + "x" * (len(name.encode()) - 6)
    content = packed(placeholder, "__MACOSX/._x", method=zipfile.ZIP_DEFLATED)
    path = write(tmp_path, content.replace(placeholder.encode(), name.encode()))
    images = open_images(path)
    finder = ImageFinder(images, "{photo}", {}, Placeholders())
    found = finder.find({"photo": "Grün Schön.jpg"})
    assert found.names == (name,)


def test_names_in_code_page_437_are_understood(tmp_path: Path) -> None:
    path = write(tmp_path, packed("Gr?n.jpg").replace(b"Gr?n.jpg", b"Gr\x81n.jpg"))
    assert list(ZipDirectory.open(path)) == ["Grün.jpg"]


def test_it_may_be_pickled(tmp_path: Path) -> None:
    path = write(tmp_path, packed(*NAMES))
    copy = pickle.loads(pickle.dumps(open_images(path)))  # noqa: S301 - our own bytes
    assert copy == open_images(path)
    assert copy.read("a.jpg") == b"a.jpg" * 3


@pytest.mark.parametrize("cut", [1, 22, 60, 10_000])
def test_a_torn_file_is_refused(tmp_path: Path, cut: int) -> None:
    content = packed(*NAMES)
    with pytest.raises(CatalogueError, match=r"images\.zip is not a readable zip file"):
        ZipDirectory.open(write(tmp_path, content[: max(0, len(content) - cut)]))


def test_what_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    images = open_images(write(tmp_path, packed(*NAMES)))
    write(tmp_path, b"x" * 100)
    with pytest.raises(CatalogueError, match="cannot read the directory"):
        images.read("a.jpg")


def test_a_member_takes_a_few_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, packed(*(f"images/{'long' * 20}-{n}.jpg" for n in range(2000)), method=zipfile.ZIP_STORED))
    ZipDirectory.open(path)
    tracemalloc.start()
    directory = ZipDirectory.open(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(directory) == 2000
    assert kept < 2000 * 20 + 20_000
    assert peak < 2000 * 60 + 100_000
