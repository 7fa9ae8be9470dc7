"""Submitted listings to what the model takes: decoded by worker processes, tokenized by a bounded pool of threads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from model.errors import DecodingStoppedError, ImageError
from model.inference.predictions import ListingPredictor, Prepared
from model.inputs.limits import Limits, TooLargeForNowError
from model.inputs.pool import (
    SMALL_BYTES,
    DecodedImage,
    DecodePool,
    MemoryBudget,
    Reservation,
)
from service.errors import ImageFetchFailed, UndecodableImage, UnsupportedMediaType
from service.pipeline.admission import Ticket
from service.pipeline.base64_image import check_image_bytes, decode_base64
from service.pipeline.decode import as_service_error
from service.schemas import ListingInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Bounds of one image: its bytes encoded, its pixels decoded."""

    max_bytes: int
    max_pixels: int


class Preparer:
    """Decodes in other processes and tokenizes off the event loop, so that a bad listing fails alone.

    A thread waits for each worker. One more is left to listings without an image, which no image holds up.
    """

    def __init__(self, limits: ImageLimits, decoding: DecodePool) -> None:
        self._limits, self._decoding = limits, decoding
        self._threads = ThreadPoolExecutor(decoding.workers + 1, thread_name_prefix="prepare")
        # Who waits for a thread waits here, never in the pool's queue: that would keep what it was given until a thread
        # came to it, though its caller had been answered long before.
        self._free_for_images = asyncio.Semaphore(decoding.workers)
        self._free_for_titles = asyncio.Semaphore(1)

    async def prepare(
        self,
        predictor: ListingPredictor,
        listing: ListingInput,
        fetched: bytes | None,
        *,
        explain: bool,
        ticket: Ticket,
    ) -> tuple[Prepared, float]:
        """Return the listing, ready to be batched, and the seconds that it took a thread.

        fetched: the image's bytes, where the listing names a URL
        ticket: counts the listing's bytes for as long as a thread works on them, whoever still waits for it

        Raises `InvalidRequest` (not base64), `PayloadTooLarge`, `UnsupportedMediaType`, `UndecodableImage`, `NotReady`,
        or `ImageFetchFailed` where the image's host sent something that cannot be used.
        """
        work = partial(self._prepare, predictor, listing, fetched, explain)
        free = self._free_for_titles if fetched is None and listing.image is None else self._free_for_images
        try:
            await free.acquire()
            return await self._submit(work, SMALL_BYTES, free, ticket)
        except TooLargeForNowError as error:
            needed = error.nbytes
        # It waits here without a thread or a worker, while smaller images go ahead.
        reservation = await _taken(self._decoding.memory, needed)
        try:
            await free.acquire()
        except BaseException:
            reservation.release()
            raise
        return await self._submit(work, needed, free, ticket, reservation)

    def _submit(
        self,
        work: Callable[[int], tuple[Prepared, float]],
        memory: int,
        free: asyncio.Semaphore,
        ticket: Ticket,
        reservation: Reservation | None = None,
    ) -> asyncio.Future[tuple[Prepared, float]]:
        job = self._threads.submit(work, memory)
        ticket.hold()
        loop = asyncio.get_running_loop()

        def let_go() -> None:
            ticket.let_go()
            free.release()

        def ended(_: Future[tuple[Prepared, float]]) -> None:
            if reservation is not None:
                reservation.release()
            with contextlib.suppress(RuntimeError):  # the loop is closed: the service has stopped
                loop.call_soon_threadsafe(let_go)

        job.add_done_callback(ended)
        return asyncio.wrap_future(job)

    def _prepare(
        self, predictor: ListingPredictor, listing: ListingInput, fetched: bytes | None, explain: bool, memory: int
    ) -> tuple[Prepared, float]:
        started = time.monotonic()

        def read(encoded: bytes) -> DecodedImage:
            check_image_bytes(len(encoded), self._limits.max_bytes)
            limits = Limits(max_pixels=self._limits.max_pixels)
            try:
                return self._decoding.attempt(encoded, limits, predictor.resizing, memory=memory)
            except (ImageError, DecodingStoppedError) as error:
                raise as_service_error(error) from error

        decoded = image_of(listing, fetched, self._limits, read)
        image, warnings = (decoded.image, decoded.warnings) if decoded else (None, ())
        warnings = (*listing.warnings, *warnings)
        prepared: Prepared = predictor.prepare(listing.title, image, explain=explain, warnings=warnings)
        return prepared, time.monotonic() - started

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _taken(memory: MemoryBudget, nbytes: int) -> Reservation:
    """Wait for memory; whoever is cancelled meanwhile holds none."""
    taking = memory.take(nbytes)
    try:
        return await asyncio.wrap_future(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(_release)
        raise


def _release(taking: Future[Reservation]) -> None:
    if not taking.cancelled():
        taking.result().release()


def image_of(
    listing: ListingInput, fetched: bytes | None, limits: ImageLimits, read: Callable[[bytes], DecodedImage]
) -> DecodedImage | None:
    """Read a listing's image; None if it has none. `fetched` and errors are those of `Preparer.prepare`."""
    if fetched is not None:
        try:
            return read(fetched)
        except (UnsupportedMediaType, UndecodableImage) as error:
            raise ImageFetchFailed(f"what the image's host sent cannot be used: {error.detail}") from error
    if listing.image is None:
        return None
    encoded = listing.image
    if isinstance(encoded, str):
        encoded = decode_base64(encoded, max_bytes=limits.max_bytes)
    return read(encoded)
