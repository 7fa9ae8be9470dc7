"""What the proxy sees of a catalogue: image features that no label has touched, and titles as token numbers.

Shapes: n listings, m test listings that are changed, V changes, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ModelError
from model.inputs.decode import decode_image
from model.inputs.normalise import TensorTransform
from model.inputs.unnoticeable import IMAGE_CHANGES
from model.network.cma_clip import build_cma_clip
from model.progress import progress_bar
from model.tasks import Task
from model.training.initialise import IMAGENET, initial_model, take_imagenet

FEATURES = 256
"""Principal components that are kept of the tower's mean feature."""

CHANGED = 500
"""Test listings that are changed, to measure stability."""

IMAGE_SIZE = (80, 60)
"""Height and width: what the catalogue's images have."""

BATCH = 128

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Images:
    """Image features of a catalogue's listings, in its order; zeros where an image is absent or cannot be read."""

    known: NDArray[np.bool_]
    """`[n]`."""
    plain: Floats
    """`[n, F]`."""
    changed: Floats
    """`[V, m, F]`: of the first m test listings, by `IMAGE_CHANGES`."""


def image_features(catalogue: Catalogue, cache: Path, console: Console) -> Images:
    """Compute the features, or read them from the folder `cache`, where the table is the same."""
    path = cache / f"images-{catalogue.digest[:12]}.npz"
    if path.is_file():
        with np.load(path) as file:
            return Images(**{field.name: file[field.name] for field in fields(Images)})
    tower = _Tower()
    plain, known = tower.run(catalogue, catalogue.listings, console, "images")
    test = catalogue.part(Part.TEST)[:CHANGED]
    changed = [
        tower.run(catalogue, test, console, name, lambda image, change=change: change(image))[0]
        for name, change in IMAGE_CHANGES.items()
    ]
    training = np.array([listing.part is Part.TRAIN for listing in catalogue.listings])
    project = _principal_components(plain[known & training])
    found = Images(known, project(plain), np.stack([project(each) for each in changed]))
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{field.name: getattr(found, field.name) for field in fields(Images)})
    return found


def no_images(catalogue: Catalogue) -> Images:
    """Return what stands for images where titles are studied alone."""
    n = len(catalogue.listings)
    return Images(np.zeros(n, np.bool_), np.zeros((n, 1)), np.zeros((len(IMAGE_CHANGES), CHANGED, 1)))


class _Tower:
    """An EfficientNet-Lite0 as ImageNet left it."""

    def __init__(self) -> None:
        model = initial_model(None, IMAGENET)
        model = replace(model, preprocess=replace(model.preprocess, image_size=IMAGE_SIZE))
        network = build_cma_clip(model, [Task(name="none", labels=("a", "b"))])
        take_imagenet(network.backbone)
        self.image = network.backbone.image.eval().to(memory_format=torch.channels_last)
        self.transform = TensorTransform(model.preprocess)

    def run(
        self, catalogue: Catalogue, listings: Sequence[Listing], console: Console, what: str, change: Any = None
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the mean patch of each image `[n, 1280]`, and which could be read `[n]`."""
        found = np.zeros((len(listings), self.image.width), np.float16)
        known = np.zeros(len(listings), np.bool_)
        with progress_bar(console) as progress, torch.no_grad():
            bar = progress.add_task(what, total=len(listings))
            for first in range(0, len(listings), BATCH):
                rows, pixels = [], []
                for row, image in self._images(catalogue, listings[first : first + BATCH]):
                    rows.append(first + row)
                    pixels.append(self.transform(change(image) if change else image))
                if rows:
                    batch = self.transform.normalise(torch.from_numpy(np.stack(pixels)))
                    tokens: Tensor = self.image(batch.contiguous(memory_format=torch.channels_last))
                    found[rows], known[rows] = tokens[:, 0].numpy(), True
                progress.advance(bar, BATCH)
        return found, known

    def _images(self, catalogue: Catalogue, listings: Sequence[Listing]) -> Iterator[tuple[int, Image.Image]]:
        for row, listing in enumerate(listings):
            if listing.image is not None:
                try:
                    data = catalogue.image_bytes(listing.image)
                    yield row, decode_image(data, self.transform.config.image_size).image
                except ModelError:
                    continue


def _principal_components(features: Floats) -> Any:
    """Return the projection to the first `FEATURES` components of a sample, scaled to a mean variance of 1."""
    sample = features.astype(np.float32)
    mean = sample.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(sample - mean, rowvar=False))
    axes, scale = vectors[:, -FEATURES:].astype(np.float32), np.sqrt(values[-FEATURES:].mean())

    def project(rows: Floats) -> Floats:
        return np.asarray(((rows.astype(np.float32) - mean) @ axes / scale).astype(np.float16))

    return project
