"""A loaded checkpoint behind its micro-batcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from model.inference.predictions import ListingPredictor, Prediction, Prepared
from service.scheduling.batcher import MicroBatcher


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
        self.batcher = MicroBatcher[Prepared, Any, Prediction](
            collate=predictor.collate,
            compute=predictor.predict,
            probe=lambda: predictor.predict(predictor.collate([example_listing(predictor)])),
            max_batch_size=max_batch_size,
            max_wait=max_wait,
            work=lambda prepared: prepared.work,
            on_batch=on_batch,
        )
        for size, seconds in batch_seconds.items():
            self.batcher.cost.observe(size, seconds)


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
