"""What a training row costs to load: decoding at reduced scale or at full, from the shop's files or from packed ones.

    python -m benchmarks.loading [--images 100] [--out benchmarks/results/loading.json]

Images of the fashion set, enlarged so that their longer side has so many pixels, as photos of a shop have (0: as they
are, thumbnails). CPU time on one core, in milliseconds an image, of each step; and by how much the model's pixels (of
255) differ where an image is decoded at full size, or comes from a packed copy, from those that serving makes. A packed
copy is the image at the size down to which a JPEG is decoded, `DRAFT_MARGIN` times the model's input, as JPEG of
quality 95.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bulk import CATALOGUE, CHECKPOINT, enlarged
from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import open_images
from model.catalogue.listings import Listing, ReadReport, iter_listings
from model.checkpoint.folder import load_checkpoint
from model.inputs.augment import AugmentConfig, vary_photo, vary_pixels
from model.inputs.decode import DRAFT_MARGIN, decode_image
from model.inputs.preprocess import ImageTransform

Given = TypeVar("Given")

Made = TypeVar("Made")

SIDES = (0, 300, 600, 1200, 2400)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Costs of images of one size: milliseconds of CPU time an image. `bytes`: of a file, on average."""

    side: int
    images: int
    bytes: int
    packed_bytes: int
    decode_ms: float
    decode_in_full_ms: float
    decode_packed_ms: float
    transform_ms: float
    augment_ms: float
    in_full_mean_difference: float
    in_full_largest_difference: int
    packed_mean_difference: float
    packed_largest_difference: int


def measure(files: Sequence[bytes], side: int, transform: ImageTransform) -> Loading:
    """Load each file in every way."""
    size = transform.config.image_size
    packed = [pack(data, size) for data in files]
    scaled, scaled_ms = timed(lambda data: decode_image(data, size).image, files)
    full, full_ms = timed(lambda data: decode_image(data, None).image, files)
    copies, packed_ms = timed(lambda data: decode_image(data, size).image, packed)
    pixels, transform_ms = timed(transform, scaled)
    rng, augment = random.Random(0), AugmentConfig()  # noqa: S311 - augmentation, no secret
    _, augment_ms = timed(lambda image: vary_pixels(transform(vary_photo(image, augment, rng)), augment, rng), scaled)
    in_full = differences(pixels, [transform(image) for image in full])
    from_packed = differences(pixels, [transform(image) for image in copies])
    return Loading(
        side=side,
        images=len(files),
        bytes=sum(map(len, files)) // len(files),
        packed_bytes=sum(map(len, packed)) // len(files),
        decode_ms=scaled_ms,
        decode_in_full_ms=full_ms,
        decode_packed_ms=packed_ms,
        transform_ms=transform_ms,
        augment_ms=round(augment_ms - transform_ms, 3),
        in_full_mean_difference=in_full[0],
        in_full_largest_difference=in_full[1],
        packed_mean_difference=from_packed[0],
        packed_largest_difference=from_packed[1],
    )


def pack(data: bytes, size: tuple[int, int]) -> bytes:
    """Return a copy of an image no larger than what is decoded of it."""
    height, width = size
    image = decode_image(data, size).image
    image.thumbnail((DRAFT_MARGIN * width, DRAFT_MARGIN * height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def timed(make: Callable[[Given], Made], inputs: Sequence[Given]) -> tuple[list[Made], float]:
    """Return what is made of the inputs, and the milliseconds of CPU time of each."""
    make(inputs[0])
    began = time.process_time()
    made = [make(each) for each in inputs]
    return made, round(1000 * (time.process_time() - began) / len(inputs), 3)


def differences(some: Sequence[NDArray[np.uint8]], others: Sequence[NDArray[np.uint8]]) -> tuple[float, int]:
    """Return by how much pixels differ on average, and at most."""
    apart = [np.abs(one.astype(int) - other.astype(int)) for one, other in zip(some, others, strict=True)]
    return round(float(np.mean([each.mean() for each in apart])), 3), int(max(each.max() for each in apart))


def main(
    images: Annotated[int, typer.Option(min=1, help="images of each size")] = 100,
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
) -> None:
    """Measure what loading a training row costs."""
    config = CatalogueConfig.load(CATALOGUE).without_labels()
    store = open_images(config.images)
    listings = iter_listings(config, store, ReadReport("fashion"))
    names = (item.image for item in listings if isinstance(item, Listing) and item.image)
    files = [store.read(name) for name in islice(names, images)]
    transform = ImageTransform(load_checkpoint(Path(CHECKPOINT)).config.preprocess)
    found = []
    for side in SIDES:
        found.append(asdict(measure([enlarged(data, side) for data in files], side, transform)))
        print(json.dumps(found[-1]), flush=True)
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
