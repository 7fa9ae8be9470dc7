"""A catalogue's image files are bounded, whatever a zip's directory says and whatever comes out."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from model.catalogue import image_store
from model.catalogue.image_store import open_images
from model.errors import CatalogueError


def zip_of(
    path: Path, data: bytes, *, says: int | None = None, packed: int | None = None, stored: bool = False
) -> Path:
    """Write a zip whose member `a.jpg` is `data`; says, packed: its sizes in the directory, where they lie."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", data)
    content = bytearray(buffer.getvalue())
    entry = content.index(b"PK\x01\x02")
    for offset, value in ((20, packed), (24, says)):
        if value is not None:
            struct.pack_into("<L", content, entry + offset, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("says", [100, 30 * 2**20 - 1, 30 * 2**20 + 1, 0])
def test_a_member_whose_size_lies_is_damaged_and_takes_no_more_than_it_says(tmp_path: Path, says: int) -> None:
    images = open_images(zip_of(tmp_path / "a.zip", bytes(30 * 2**20), says=says))
    tracemalloc.start()
    with pytest.raises(CatalogueError, match=r"image a\.jpg of .* is damaged"):
        images.read("a.jpg")
    assert tracemalloc.get_traced_memory()[1] < 2 * says + 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(("says", "packed"), [(2**32 - 2, None), (None, 2**32 - 2)])
def test_a_bomb_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: int | None, packed: int | None, *, stored: bool
) -> None:
    images = open_images(zip_of(tmp_path / "a.zip", bytes(100_000), says=says, packed=packed, stored=stored))
    for module in ("os", "zlib"):  # the data are not even looked at
        monkeypatch.setattr(image_store, module, None)
    with pytest.raises(CatalogueError, match=r"image a\.jpg of .* has more than \d+ bytes"):
        images.read("a.jpg")


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_an_image_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(bytes(1000))
    images = open_images(zip_of(tmp_path / "a.zip", bytes(1000)) if kind == "zip" else tmp_path / "photos")
    monkeypatch.setattr(image_store, "MAX_IMAGE_BYTES", 1000)
    assert images.read("a.jpg") == bytes(1000)
    monkeypatch.setattr(image_store, "MAX_IMAGE_BYTES", 999)
    with pytest.raises(CatalogueError, match="more than 999 bytes"):
        images.read("a.jpg")


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").symlink_to("/dev/zero")
    monkeypatch.setattr(image_store, "MAX_IMAGE_BYTES", 1000)
    with pytest.raises(CatalogueError, match="more than 1000 bytes"):
        open_images(tmp_path).read("a.jpg")


def test_a_member_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    images = open_images(zip_of(tmp_path / "a.zip", bytes(range(256)) * 100, packed=20))
    with pytest.raises(CatalogueError, match=r"a\.jpg of .* is damaged"):
        images.read("a.jpg")
