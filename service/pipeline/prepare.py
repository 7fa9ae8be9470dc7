"""Submitted listings to what the model takes: decoded and tokenized, in a bounded pool of threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from model.inference.predictions import ListingPredictor, Prepared
from model.inputs.decode import Decoded
from service.errors import ImageFetchFailed, UndecodableImage, UnsupportedMediaType
from service.pipeline.admission import Ticket
from service.pipeline.base64_image import check_image_bytes, decode_base64
from service.pipeline.decode import decode
from service.schemas import ListingInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Bounds of one image: its bytes encoded, its pixels decoded."""

    max_bytes: int
    max_pixels: int


class Preparer:
    """Decodes and tokenizes off the event loop, so that a bad listing fails alone and the loop stays free."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        # Decoding releases the interpreter's lock: one thread per core.
        threads = min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        # Who waits for a thread waits here, never in the pool's queue: that would keep what it was given until a thread
        # came to it, though its caller had been answered long before.
        self._free = asyncio.Semaphore(threads)

    async def prepare(
        self,
        predictor: ListingPredictor,
        listing: ListingInput,
        fetched: bytes | None,
        *,
        explain: bool,
        ticket: Ticket,
    ) -> tuple[Prepared, float]:
        """Return the listing, ready to be batched, and the seconds that it took in the pool.

        fetched: the image's bytes, where the listing names a URL
        ticket: counts the listing's bytes for as long as a thread works on them, whoever still waits for it

        Raises `InvalidRequest` (not base64), `PayloadTooLarge`, `UnsupportedMediaType`, `UndecodableImage`, or
        `ImageFetchFailed` where the image's host sent something that cannot be used.
        """
        await self._free.acquire()
        return await self._submit(ticket, predictor, listing, fetched, explain)

    def _submit(self, ticket: Ticket, *work: Any) -> asyncio.Future[tuple[Prepared, float]]:
        job = self._pool.submit(self._prepare, *work)
        ticket.hold()
        loop = asyncio.get_running_loop()

        def ended(_: Future[tuple[Prepared, float]]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the service has stopped
                loop.call_soon_threadsafe(self._ended, ticket)

        job.add_done_callback(ended)
        return asyncio.wrap_future(job)

    def _ended(self, ticket: Ticket) -> None:
        ticket.let_go()
        self._free.release()

    def _prepare(
        self, predictor: ListingPredictor, listing: ListingInput, fetched: bytes | None, explain: bool
    ) -> tuple[Prepared, float]:
        started = time.monotonic()
        decoded = decode_image_of(listing, fetched, self._limits, target=predictor.info.image_size)
        image, warnings = (decoded.image, decoded.warnings) if decoded else (None, ())
        warnings = (*listing.warnings, *warnings)
        prepared: Prepared = predictor.prepare(listing.title, image, explain=explain, warnings=warnings)
        return prepared, time.monotonic() - started

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def decode_image_of(
    listing: ListingInput, fetched: bytes | None, limits: ImageLimits, *, target: tuple[int, int]
) -> Decoded | None:
    """Decode a listing's image as RGB; None if it has none. `fetched` and errors are those of `Preparer.prepare`."""
    if fetched is not None:
        try:
            return _decode(fetched, limits, target)
        except (UnsupportedMediaType, UndecodableImage) as error:
            raise ImageFetchFailed(f"what the image's host sent cannot be used: {error.detail}") from error
    if listing.image is None:
        return None
    encoded = listing.image
    if isinstance(encoded, str):
        encoded = decode_base64(encoded, max_bytes=limits.max_bytes)
    return _decode(encoded, limits, target)


def _decode(encoded: bytes, limits: ImageLimits, target: tuple[int, int]) -> Decoded:
    check_image_bytes(len(encoded), limits.max_bytes)
    return decode(encoded, max_pixels=limits.max_pixels, target=target)
