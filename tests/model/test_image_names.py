"""Which image a row means: what can be meant only one way is found, and the rest is said to be missing."""

from __future__ import annotations

import unicodedata
import zipfile
from pathlib import Path

import pytest

from model.catalogue.image_names import FoundImages, ImageFinder
from model.catalogue.image_store import CopiedImages, FetchedImages, Images, NoImages, open_images
from model.catalogue.words import Placeholders
from model.errors import CatalogueError


@pytest.fixture(params=["folder", "zip"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def store(tmp_path: Path, kind: str, *names: str) -> Images:
    if kind == "folder":
        for name in names:
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / name).write_bytes(name.encode())
        return open_images(tmp_path / "photos")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return open_images(tmp_path / "photos.zip")


def find(images: Images, cell: str, template: str = "{image}", separator: str | None = None) -> FoundImages:
    separators = {"image": separator} if separator else {}
    return ImageFinder(images, template, separators, Placeholders()).find({"image": cell})


@pytest.mark.parametrize(
    ("file", "cell", "template"),
    [
        ("dress.jpg", "dress.jpg", "{image}"),
        ("dress.JPG", "dress", "{image}.jpg"),
        ("dress.jpeg", "dress", "{image}.jpg"),
        ("dress.jpg", "DRESS.JPEG", "{image}"),
        ("Dress.Jpg", "dress.jpg", "{image}"),
        ("a/dress.jpg", "a\\dress.jpg", "{image}"),
        ("a/dress.jpg", "./a//dress.jpg", "{image}"),
        ("a/dress.jpg", ".\\a\\DRESS.jpg", "{image}"),
        ("12.jpg", "12.0", "{image}.jpg"),
        (unicodedata.normalize("NFD", "kléid.jpg"), unicodedata.normalize("NFC", "kléid.jpg"), "{image}"),
        (unicodedata.normalize("NFC", "kléid.jpg"), unicodedata.normalize("NFD", "kléid.jpg"), "{image}"),
    ],
)
def test_what_a_name_can_mean(tmp_path: Path, kind: str, file: str, cell: str, template: str) -> None:
    images = store(tmp_path, kind, file, "other.png")
    (found,) = find(images, cell, template).names
    assert images.read(found) == file.encode()


def test_a_single_folder_at_the_top(tmp_path: Path, kind: str) -> None:
    images = store(tmp_path, kind, "pics/dress.JPG", "__MACOSX/pics/._dress.JPG", ".DS_Store")
    assert find(images, "dress.jpg").names == ("pics/dress.JPG",)
    assert find(images, "shirt.jpg") == FoundImages(missing="shirt.jpg")


def test_two_folders_at_the_top_are_no_single_one(tmp_path: Path, kind: str) -> None:
    images = store(tmp_path, kind, "a/dress.jpg", "b/shirt.jpg")
    assert find(images, "dress.jpg").missing == "dress.jpg"


def test_names_that_differ_in_case_alone_are_not_confused(tmp_path: Path, kind: str) -> None:
    images = store(tmp_path, kind, "dress.jpg", "DRESS.jpg")
    assert find(images, "DRESS.jpg").names == ("DRESS.jpg",)
    assert find(images, "Dress.jpg") == FoundImages(missing="Dress.jpg")


def test_a_path_from_the_root_of_the_disk(tmp_path: Path) -> None:
    images = store(tmp_path, "folder", "a/dress.jpg")
    assert find(images, f"{tmp_path}/photos/a/dress.jpg").names == ("a/dress.jpg",)
    assert find(images, "/etc/passwd").outside
    assert find(images, f"{tmp_path}/photos/../secret.jpg").outside


@pytest.mark.parametrize("cell", ["..\\secret.jpg", "a\\..\\..\\secret.jpg", "../secret.jpg"])
def test_no_reading_leaves_the_folder(tmp_path: Path, cell: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    assert not find(store(tmp_path, "folder", "dress.jpg"), cell).names


@pytest.mark.parametrize(
    "cell", ["a.jpg|b.jpg", "a.jpg; b.jpg", "a.jpg,b.jpg", "a.jpg\nb.jpg", '["a.jpg", "b.jpg"]', "['a.jpg', 'b.jpg']"]
)
def test_several_images_in_a_cell(tmp_path: Path, cell: str) -> None:
    assert find(store(tmp_path, "folder", "a.jpg", "b.jpg"), cell).names == ("a.jpg", "b.jpg")
    assert find(store(tmp_path, "folder", "b.jpg"), "none.jpg|b.jpg").names == ("b.jpg",)


def test_a_separator_can_be_set_and_a_name_may_hold_one(tmp_path: Path) -> None:
    images = store(tmp_path, "folder", "a.jpg", "b.jpg", "red,blue.jpg")
    assert find(images, "a.jpg#b.jpg", separator="#").names == ("a.jpg", "b.jpg")
    assert find(images, "red,blue.jpg").names == ("red,blue.jpg",)


@pytest.mark.parametrize("cell", ["", "nan", "None", "-", "N/A"])
def test_a_placeholder_names_no_image(tmp_path: Path, cell: str) -> None:
    assert find(store(tmp_path, "folder", "a.jpg"), cell) == FoundImages()


# --- elsewhere ---------------------------------------------------------------------------------------------

URL = "https://cdn.example.com/1.jpg?v=3,4"


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (URL, (URL,)),
        ("//cdn.example.com/1.jpg", ("https://cdn.example.com/1.jpg",)),
        (f"{URL}|https://b.example.com/2.jpg", (URL, "https://b.example.com/2.jpg")),
        (f"{URL}, https://b.example.com/2.jpg", (URL, "https://b.example.com/2.jpg")),
    ],
)
def test_urls_are_fetched_where_there_is_a_fetcher(cell: str, names: tuple[str, ...]) -> None:
    images = FetchedImages(NoImages(), str.encode)
    assert find(images, cell).names == names
    assert images.read(names[0]) == names[0].encode()
    assert find(NoImages(), cell).missing is not None
    with pytest.raises(CatalogueError, match="no images"):
        images.read("dress.jpg")


def test_images_inside_a_table_are_read_in_any_order(tmp_path: Path) -> None:
    images = CopiedImages(store(tmp_path, "folder", "a.jpg"))
    names = [images.add(f"sku-{n}", b"x" * n + str(n).encode()) for n in range(3)]
    assert [images.read(names[n]) for n in (2, 0, 1)] == [b"xx2", b"0", b"x1"]
    assert images.read("a.jpg") == b"a.jpg"
    assert names[2] in images
    assert names[2].startswith("sku-2, in the table")
    assert "sku-2" not in images
    path = images.path
    del images
    assert not path.exists()
