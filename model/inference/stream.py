"""The stream of inference: items in, prepared by threads one batch ahead of the device, computed, answered in order.

Lazy and in constant memory: at most two batches have been taken from the items but not computed yet. Bulk labelling
and evaluation both run on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from model.catalogue.image_store import Images
from model.inference.predictions import BatchingPredictor
from model.inputs.decode import decode_image
from model.inputs.pool import DecodedImage, worker_count
from model.threads import thread_count

Item = TypeVar("Item")

Prepared = TypeVar("Prepared")

Output = TypeVar("Output")

Output_co = TypeVar("Output_co", covariant=True)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class StreamedBatch(Generic[Item, Output_co]):
    """Some consecutive items, and what was computed from those that could be prepared."""

    items: Sequence[Item]
    failures: Sequence[Failure | None]
    """One for each item; None where it could be prepared."""
    output: Output_co | None
    """Of the items that could be prepared, in order; None where there is none."""

    @property
    def computed(self) -> list[Item]:
        """The items that could be prepared: those which `output` is of."""
        return [item for item, failure in zip(self.items, self.failures, strict=True) if failure is None]

    def answers(self: StreamedBatch[Item, Sequence[Answer]]) -> Iterator[tuple[Item, Answer | Failure]]:
        """Yield every item with its answer or its failure, where the output is a sequence of answers."""
        computed = iter(() if self.output is None else self.output)
        for item, failure in zip(self.items, self.failures, strict=True):
            yield item, next(computed) if failure is None else failure


def stream(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared | Failure],
    compute: Callable[[list[Prepared]], Output],
    *,
    batch_size: int,
) -> Iterator[StreamedBatch[Item, Output]]:
    """Compute the items in batches, in order; while a batch computes, threads prepare the next one.

    `prepare` returns what `compute` takes a list of, or a `Failure`, which leaves the item out of the computation.
    An exception of either ends the stream.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(worker_count(thread_count()), thread_name_prefix="decode") as pool:
        ahead: deque[tuple[list[Item], Iterator[Prepared | Failure]]] = deque()
        while batch := list(islice(remaining, batch_size)):
            ahead.append((batch, pool.map(prepare, batch)))  # submits the whole batch at once
            if len(ahead) == 2:
                yield _computed(*ahead.popleft(), compute)
        while ahead:
            yield _computed(*ahead.popleft(), compute)


def _computed(
    items: list[Item], results: Iterator[Prepared | Failure], compute: Callable[[list[Prepared]], Output]
) -> StreamedBatch[Item, Output]:
    found = list(results)
    prepared = [each for each in found if not isinstance(each, Failure)]
    return StreamedBatch(
        items=items,
        failures=[each if isinstance(each, Failure) else None for each in found],
        output=compute(prepared) if prepared else None,
    )


def prepare_listing(
    predictor: BatchingPredictor,
    images: Images,
    title: str | None,
    image: str | None,
    *,
    decode: Callable[[bytes], DecodedImage] | None = None,
) -> Any:
    """Prepare a listing from its title and the name of its image among `images`, each None where it is absent.

    decode: makes the model's pixels of an image file; None: in this process, for files that are trusted. Raises
    `ModelError` where the image cannot be read or decoded.
    """
    if image is None:
        return predictor.prepare(title, None)
    if decode is None:
        decoded = decode_image(images.read(image), predictor.info.image_size)
        return predictor.prepare(title, decoded.image, warnings=decoded.warnings)
    shown = decode(images.read(image))
    return predictor.prepare(title, shown.image, warnings=shown.warnings)
