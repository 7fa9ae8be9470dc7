"""A loaded checkpoint behind its micro-batcher."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from model.inference.predictions import ListingPredictor, Prediction, Prepared
from service.scheduling.batcher import Answer, Lane, MicroBatcher

Together = Sequence[Prepared]
"""Listings that are computed in one batch: of callers one, of jobs as many as that job's batches have."""


class Inference:
    """What computes predictions: the predictor, and the batcher that all listings pass through."""

    def __init__(
        self,
        predictor: ListingPredictor,
        *,
        max_batch_size: int,
        max_wait: float,
        batch_seconds: Mapping[int, float],
        on_batch: Callable[[int], None],
    ) -> None:
        """
        max_batch_size: listings in one forward pass
        max_wait: seconds that an idle device waits for more listings
        batch_seconds: how long batches of some sizes take, as measured at warm-up
        on_batch: called with the size of each batch computed
        """
        self.predictor = predictor
        self.batcher = MicroBatcher[Together, Any, Sequence[Prediction]](
            collate=self._collate,
            compute=self._compute,
            probe=lambda: predictor.predict(predictor.collate([example_listing(predictor)])),
            max_batch_size=max_batch_size,
            max_wait=max_wait,
            work=lambda listings: sum(prepared.work for prepared in listings),
            on_batch=lambda items: on_batch(sum(map(len, items))),
        )
        for size, seconds in batch_seconds.items():
            self.batcher.cost.observe(size, seconds)

    async def infer(self, prepared: Prepared, *, deadline: float) -> Answer[Prediction]:
        """Answer a caller's listing. Raises what `MicroBatcher.submit` does."""
        found = await self.batcher.submit((prepared,), deadline=deadline)
        return Answer(found.result[0], found.queue_seconds, found.inference_seconds)

    async def infer_together(self, listings: Together) -> Answer[Sequence[Prediction]]:
        """Answer a job's listings in one batch of their own. Raises what `MicroBatcher.submit` does."""
        return await self.batcher.submit(listings, deadline=math.inf, lane=Lane.JOBS)

    def _collate(self, items: Sequence[Together]) -> tuple[list[int], Any]:
        sizes = [len(listings) for listings in items]
        return sizes, self.predictor.collate([prepared for listings in items for prepared in listings])

    def _compute(self, batch: tuple[list[int], Any]) -> list[Sequence[Prediction]]:
        sizes, collated = batch
        found = self.predictor.predict(collated)
        if len(found) != sum(sizes):
            raise RuntimeError(f"the model answered {len(found)} of {sum(sizes)} listings")
        ends = itertools.accumulate(sizes)
        return [found[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def warm_up(predictor: ListingPredictor, max_batch_size: int) -> dict[int, float]:
    """Run each padded shape once; return the seconds that the smallest and the largest batch take."""
    predictor.warm_up(max_batch_size)
    example, seconds = example_listing(predictor), {}
    for size in (1, max_batch_size):
        started = time.monotonic()
        predictor.predict(predictor.collate([example] * size))
        seconds[size] = time.monotonic() - started
    return seconds


def example_listing(predictor: ListingPredictor) -> Prepared:
    """Return a listing known to be good, with both modalities."""
    height, width = predictor.info.image_size
    example: Prepared = predictor.prepare("warm-up", Image.new("RGB", (width, height), "grey"))
    return example
