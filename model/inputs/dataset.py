"""Listings to training tensors, with masks for absent modalities and missing labels.

Shapes: B listings, L tokens of the longest title in the batch, T attributes, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model.catalogue.listings import Catalogue, Listing
from model.config import PreprocessConfig
from model.errors import ModelError
from model.inputs.augment import AugmentConfig, random_box, vary_photo, vary_pixels, vary_title
from model.inputs.decode import decode_image
from model.inputs.normalise import TensorTransform
from model.inputs.tokenizer import TitleTokenizer, pad_tokens
from model.tasks import UNLABELLED, Task, encode_row
from model.threads import available_cores

MOST_WORKERS = 16
"""Processes that load listings by default, at most: each holds its batches in memory."""


@dataclass(frozen=True, slots=True)
class Example:
    """One listing: pixels uint8 `[3, H, W]`, zeros where it has no image; tokens `[l]` or None; labels `[columns]`
    int64, as `model.tasks.encode_row` has them.
    """

    pixels: NDArray[Any]
    tokens: NDArray[np.int64] | None
    labels: NDArray[np.int64]
    has_image: bool


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """pixels `[B, 3, H, W]` uint8, tokens `[B, L]` int64, labels `[B, columns]` int64; has_*: `[B]` bool."""

    pixels: Tensor
    tokens: Tensor
    labels: Tensor
    has_image: Tensor
    has_title: Tensor

    def to(self, device: torch.device) -> TrainingBatch:
        parts = (self.pixels, self.tokens, self.labels, self.has_image, self.has_title)
        return TrainingBatch(*(part.to(device, non_blocking=True) for part in parts))


class ListingDataset(Dataset[Example]):
    """Loads, decodes and (with `augment`, one for each epoch) augments listings.

    An image that cannot be decoded counts as absent, and is reported on standard error.

    What an index gives depends only on (seed, epoch, index), not on the worker that loads it: call
    `set_epoch` before iterating, and a resumed training gets what an uninterrupted one would have got. Images and
    titles are augmented by separate generators.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        listings: Sequence[Listing],
        tasks: Sequence[Task],
        preprocess: PreprocessConfig,
        *,
        augment: Sequence[AugmentConfig] | None = None,
        seed: int = 0,
    ) -> None:
        self.catalogue = catalogue
        self.listings = listings
        self.tasks = tasks
        self.transform = TensorTransform(preprocess)
        self.tokenize = TitleTokenizer(preprocess)
        self.augment = augment
        self.seed = seed
        self.epoch = 0
        self._reported: set[str] = set()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.listings)

    def __getitem__(self, index: int) -> Example:
        listing = self.listings[index]
        labels = encode_row(self.tasks, listing.labels, listing.label_sets)
        pixels = tokens = None
        if listing.title:
            tokens = self._tokens(listing.title, listing.every_label, self._generator("title", index))
        if listing.image:
            try:
                pixels = self.load_image(listing.image, self._generator("image", index))
            except ModelError as error:
                self._report(listing.image, error)
        has_image = pixels is not None
        if not has_image and tokens is None:  # nothing to learn from, and no reason to stop
            has_image, labels = True, [UNLABELLED] * len(labels)
        return Example(
            self.no_image() if pixels is None else pixels, tokens, np.array(labels, dtype=np.int64), has_image
        )

    def load_image(self, name: str, rng: random.Random) -> NDArray[Any]:
        """Return the image `name` as it goes into a batch: uint8 `[3, H, W]`. Raises `ModelError`."""
        image = decode_image(self.catalogue.image_bytes(name), self.transform.config.image_size).image
        if self.augment is None:
            return self.transform(image)
        augment = self.augment[self.epoch]
        image = vary_photo(image, augment, rng)
        framing = self.transform.find(image)
        crop = dataclasses.replace(framing, box=random_box(framing.box, augment, rng))
        return vary_pixels(self.transform(image, crop), augment, rng)

    def no_image(self) -> NDArray[Any]:
        """Return what takes the place of an absent image in a batch: zeros."""
        return np.zeros((3, *self.transform.config.image_size), dtype=np.uint8)

    def _report(self, image: str, error: ModelError) -> None:
        """Report once, from each worker, an image that cannot be used."""
        if image not in self._reported:
            self._reported.add(image)
            print(f"{image}: {error}; its listing is used without it", file=sys.stderr, flush=True)

    def _generator(self, what: str, index: int) -> random.Random:
        return random.Random(f"{self.seed}/{self.epoch}/{index}/{what}")  # noqa: S311 - augmentation, no secret

    def _tokens(self, title: str, labels: Iterable[str], rng: random.Random) -> NDArray[np.int64]:
        return self.tokenize(vary_title(title, labels, self.augment[self.epoch], rng) if self.augment else title).tokens


class ShuffledSampler(Sampler[int]):
    """A permutation per (seed, epoch) in whole batches, from batch `start` on: where an interrupted epoch resumes.

    Of each batch it yields the rows of `share`: those of one of several processes.
    """

    def __init__(self, length: int, *, batch_size: int, seed: int, share: slice) -> None:
        self.length, self.batch_size, self.seed, self.share = length, batch_size, seed, share
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        batches = order[: self.length - self.length % self.batch_size].reshape(-1, self.batch_size)
        return iter(batches[self.start :, self.share].ravel().tolist())

    def __len__(self) -> int:
        return (self.length // self.batch_size - self.start) * len(range(self.batch_size)[self.share])


def loader_workers(wanted: int | None) -> int:
    """Return how many processes load listings: `wanted`, or (None) as many as pay.

    A GPU computes faster than one core loads: all cores that this process has to itself, but for one. On a CPU
    computing takes the cores, and one process keeps ahead of it.
    """
    if wanted is not None:
        return wanted
    if not torch.cuda.is_available():
        return 1
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that torchrun has started on this machine
    return min(MOST_WORKERS, max(1, available_cores() // together - 1))


def load_batches(
    dataset: ListingDataset, *, batch_size: int, workers: int | None, **options: Any
) -> DataLoader[TrainingBatch]:
    """Return a loader of batches of a data set; `options` are further ones of `DataLoader`."""
    workers = loader_workers(workers)
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        # A module imported once in a fork server, not a copy of a process that already runs threads.
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_leave_signals_to_the_parent,
        **options,
    )


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Let a worker continue when a terminal or systemd tells the whole process group to end: training saves first.

    The trainer ends its workers itself, by the end of their queue.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def collate(examples: Sequence[Example]) -> TrainingBatch:
    """Stack examples; titles are padded to the longest with zeros."""
    longest = max((len(example.tokens) for example in examples if example.tokens is not None), default=1)
    return TrainingBatch(
        pixels=torch.from_numpy(np.stack([example.pixels for example in examples])),
        tokens=torch.from_numpy(pad_tokens([example.tokens for example in examples], longest)),
        labels=torch.from_numpy(np.stack([example.labels for example in examples])),
        has_image=torch.tensor([example.has_image for example in examples]),
        has_title=torch.tensor([example.tokens is not None for example in examples]),
    )


class TrainingBatches:
    """Shuffled, augmented batches of a dataset, epoch by epoch; the incomplete last batch is left out.

    share: the rows of each batch that are loaded here, where several processes share them.
    """

    def __init__(
        self,
        dataset: ListingDataset,
        *,
        batch_size: int,
        workers: int | None,
        seed: int,
        share: slice = slice(None),
    ) -> None:
        self.dataset, self.batch_size, self.workers = dataset, batch_size, loader_workers(workers)
        self.loaded = len(range(batch_size)[share])
        self.sampler = ShuffledSampler(len(dataset), batch_size=batch_size, seed=seed, share=share)

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size

    def epoch(self, epoch: int, *, first_step: int = 0) -> Iterator[TrainingBatch]:
        """Iterate over the batches of `epoch` from `first_step` on."""
        self.dataset.set_epoch(epoch)
        self.sampler.set_epoch(epoch, start=first_step)
        return iter(
            load_batches(
                self.dataset,
                batch_size=self.loaded,
                workers=self.workers,
                sampler=self.sampler,
                drop_last=True,
                pin_memory=torch.cuda.is_available(),
                prefetch_factor=4 if self.workers else None,
            )
        )
