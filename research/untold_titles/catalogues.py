"""Catalogues that are written for the comparison: titles without telling words, images with less detail, and a made-up
attribute that needs both modalities.

Each is a folder with a table, a TOML file and, where images change, a zip file of them. Deterministic: what becomes of
a listing depends on its id, and on the train part of the catalogue that it is from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ConfigError, ModelError
from model.inputs.decode import decode_image
from model.stores import Place
from research.untold_titles.words import Strength, TellingWords

CATALOGUE, TABLE, IMAGES = "catalogue.toml", "table.csv", "images.zip"

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (245, 225, 40),
    "green": (40, 165, 60),
    "turquoise": (50, 205, 205),
    "blue": (40, 70, 215),
    "purple": (130, 50, 170),
    "pink": (250, 130, 190),
}
"""Colours that images of the made-up catalogue are lit in, and their RGB."""

MATCHES, IMAGE_COLOUR, TITLE_COLOUR = "matches", "image colour", "title colour"
"""The made-up attributes: whether the title names the image's colour, and both colours."""


def write_untold(catalogue: Catalogue, out: Path, strength: Strength, *, detail: int | None = None) -> Path:
    """Write `catalogue` with titles that don't tell into the folder `out`; return its TOML file.

    detail: how many rows of pixels are left of an image before it is enlarged again; None leaves images as they are.
    The parts are those of `catalogue`. Raises `ConfigError` where `out` holds something else.
    """
    untold = TellingWords(catalogue.part(Part.TRAIN)).untold(strength)
    listings = [replace(listing, title=untold(listing)) for listing in catalogue.listings]
    _new_folder(out)
    if detail is not None:
        there = _write_images(out, catalogue, listings, lambda _, image: with_detail(image, detail))
        listings = [listing if listing.image in there else replace(listing, image=None) for listing in listings]
    _write_table(out, listings, catalogue.config.attributes)
    return _write_toml(
        out,
        catalogue.config.attributes,
        images=None if detail is not None else catalogue.config.images,
        min_label_count=catalogue.config.min_label_count,
    )


def write_matching(
    catalogue: Catalogue, out: Path, strength: Strength, *, train: int, attributes: Sequence[str] = (MATCHES,)
) -> Path:
    """Write a catalogue with a made-up attribute: does the title name the colour of the image?

    The images are those of `catalogue`, grey, lit in one of `COLOURS`; the titles are theirs without telling words,
    with a colour word somewhere, that of the image every other time: neither alone tells anything. train: how many
    listings of the train part are taken; of validation and test, all are. attributes: what is to be learned. Raises
    `ConfigError` where `out` holds something else.
    """
    untold = TellingWords(catalogue.part(Part.TRAIN)).untold(strength)
    made = [_matching(replace(listing, title=untold(listing))) for listing in _sample(catalogue, train)]
    _new_folder(out)
    there = _write_images(out, catalogue, made, lambda each, image: lit(image, COLOURS[each.labels[IMAGE_COLOUR]]))
    _write_table(out, [listing for listing in made if listing.image in there], (MATCHES, IMAGE_COLOUR, TITLE_COLOUR))
    return _write_toml(out, attributes, images=None, min_label_count=1)


def _sample(catalogue: Catalogue, train: int) -> list[Listing]:
    """Return the listings with title and image: all of validation and test, and `train` of the train part."""
    usable = [listing for listing in catalogue.listings if listing.title and listing.image]
    ordered = sorted(
        (listing for listing in usable if listing.part is Part.TRAIN),
        key=lambda listing: hashlib.sha256(f"matching/{listing.id}".encode()).digest(),
    )
    kept = {listing.id for listing in ordered[:train]}
    parts = (Part.VALIDATION, Part.TEST)
    return [listing for listing in usable if listing.part in parts or listing.id in kept]


def _matching(listing: Listing) -> Listing:
    """Return a listing with a colour word in its title, and labels that say whether it is the image's."""
    rng = random.Random(f"matching/{listing.id}")  # noqa: S311 - no secret
    names = list(COLOURS)
    image, matches = rng.choice(names), rng.random() < 0.5
    title = image if matches else rng.choice([name for name in names if name != image])
    words = (listing.title or "").split()
    words.insert(rng.randrange(len(words) + 1), title)
    labels = {MATCHES: "yes" if matches else "no", IMAGE_COLOUR: image, TITLE_COLOUR: title}
    return replace(listing, title=" ".join(words), labels=labels)


# --- images ------------------------------------------------------------------------------------------------


def with_detail(image: Image.Image, rows: int) -> Image.Image:
    """Return an image with no more detail than `rows` rows of pixels have, as large as it was."""
    if rows >= image.height:
        return image
    columns = max(1, round(image.width * rows / image.height))
    return image.resize((columns, rows), Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)


def lit(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Return an image in grey, in light of one colour; black parts keep a third of it, so that all of it shows it."""
    grey = np.asarray(image.convert("L"), dtype=np.float64)[:, :, None] / 255
    return Image.fromarray(((1 + 2 * grey) / 3 * np.array(colour)).round().astype(np.uint8))


# --- files -------------------------------------------------------------------------------------------------


def _new_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {CATALOGUE, TABLE, IMAGES}):
        raise ConfigError(f"{out} holds something else than a catalogue of this command; choose another folder")
    out.mkdir(parents=True, exist_ok=True)


def _write_table(out: Path, listings: Iterable[Listing], attributes: Sequence[str]) -> None:
    with (out / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "group", "title", *attributes])
        for each in listings:
            labels = (each.labels.get(attribute, "") for attribute in attributes)
            writer.writerow([each.id, each.image or "", each.group, each.title or "", *labels])


def _write_images(
    out: Path,
    catalogue: Catalogue,
    listings: Sequence[Listing],
    change: Callable[[Listing, Image.Image], Image.Image],
) -> set[str | None]:
    """Write each listing's image, changed; return the names of those that could be read."""
    there: set[str | None] = set()
    with zipfile.ZipFile(out / IMAGES, "w", zipfile.ZIP_STORED) as file:
        for listing in listings:
            if listing.image is None:
                continue
            try:
                image = decode_image(catalogue.image_bytes(listing.image)).image
            except ModelError:
                continue
            there.add(listing.image)
            stream = io.BytesIO()
            change(listing, image).save(stream, "JPEG", quality=95, subsampling=0)
            # A fixed time, so that the same catalogue is the same file.
            file.writestr(zipfile.ZipInfo(listing.image), stream.getvalue())
    return there


def _write_toml(out: Path, attributes: Sequence[str], *, images: Place | None, min_label_count: int) -> Path:
    """Write the catalogue's TOML file; images: where they are, None for those of the folder itself."""
    # The same name, whatever folder `out` is.
    where = IMAGES if images is None else images.resolve() if isinstance(images, Path) else images
    names = ", ".join(f'"{attribute}"' for attribute in attributes)
    text = (
        f'[catalogue]\ntable = "{TABLE}"\nimages = "{where}"\nimage = "{{image}}"\nid = "id"\ntitle = "title"\n'
        f'group = "group"\nattributes = [{names}]\nmin_label_count = {min_label_count}\n'
    )
    (out / CATALOGUE).write_text(text, encoding="utf-8")
    return out / CATALOGUE
