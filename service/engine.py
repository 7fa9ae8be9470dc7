"""Everything behind the routes: loads the model, keeps what a request passes through, and knows its own state.

loading ──► ready ──► draining ──► stopped
   └──► failed (the checkpoint cannot be used; `failure` says why)
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import string
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from model.errors import ConfigError, ModelError
from model.inference.predictions import ListingPredictor as Predictor
from model.inference.predictions import Prediction, Prepared
from service.errors import (
    Draining,
    ImageFetchFailed,
    InvalidRequest,
    NotReady,
    PayloadTooLarge,
    UndecodableImage,
    UnknownAttribute,
    UnsupportedMediaType,
)
from service.http.middleware import RequestRecord
from service.memory import trim_now_and_then
from service.observability.metrics import Metrics
from service.pipeline import decode as images
from service.pipeline.admission import Admission, Deadline, Ticket
from service.pipeline.fetch import Fetcher, FetchLimits, Gate
from service.scheduling.batcher import MicroBatcher
from service.schemas import Given, Options
from service.settings import Settings

Load = Callable[[Settings], Predictor]

log = logging.getLogger(__name__)

STALL_SECONDS = 60.0
"""A batch that computes this long never comes back: then only a restart helps, and /healthz says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Options that have been checked against the checkpoint, defaults filled in."""

    attributes: tuple[str, ...]
    target_precision: float
    top_k: int
    explain: bool


@dataclass(slots=True)
class Call:
    """What goes along with a request on its way: its time, its place, and what will be logged about it."""

    deadline: Deadline
    ticket: Ticket
    record: RequestRecord


class Engine:
    """One model on one device, and the way to it."""

    def __init__(self, settings: Settings, load: Load, *, gate: Gate | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.failure: Exception | None = None
        self.draining = False
        self._over = asyncio.Event()
        self._load = load
        self._predictor: Predictor | None = None
        self._batcher: MicroBatcher[Prepared, Any, Prediction] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        # Decoding releases the interpreter's lock: one thread a core.
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
        self._fetcher = Fetcher(
            gate or Gate(allowed_hosts=settings.image_hosts, allow_private=settings.allow_private_image_hosts),
            FetchLimits(max_bytes=settings.max_image_bytes),
        )
        self.admission = Admission(
            max_listings=settings.max_queue,
            max_bytes=settings.max_inflight_bytes,
            expected_seconds=lambda listings: self.batcher.expected_seconds(listings),  # noqa: PLW0108 - not there yet
            estimate_age=lambda listings: self.batcher.cost.age(min(listings, settings.max_batch_size)),
        )
        self.metrics.in_flight.set_function(lambda: self.admission.listings)
        self.metrics.queue_depth.set_function(lambda: self._batcher.waiting if self._batcher else 0)

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to load and warm up, in a thread of its own: the event loop answers health checks meanwhile."""
        self._tasks = [asyncio.create_task(self._start()), asyncio.create_task(trim_now_and_then())]

    async def _start(self) -> None:
        try:
            predictor, costs = await asyncio.to_thread(self._load_and_warm_up)
        except Exception as error:
            if isinstance(error, ModelError):
                log.error("cannot start: %s", error)
            else:
                log.exception("cannot start")
            self.failure = error
            return
        batcher = MicroBatcher[Prepared, Any, Prediction](
            collate=predictor.collate,
            compute=predictor.predict,
            probe=lambda: predictor.predict(predictor.collate([_example(predictor)])),
            max_batch_size=self.settings.max_batch_size,
            max_wait=self.settings.max_wait_ms / 1000,
            work=lambda prepared: prepared.work,
            on_batch=self.metrics.batch,
        )
        for size, seconds in costs.items():
            batcher.cost.observe(size, seconds)
        batcher.start()
        self.metrics.model_loaded(predictor.info, predictor.tasks)
        self._predictor, self._batcher = predictor, batcher
        log.info("ready", extra={"fields": {"model": predictor.info.name, "version": predictor.info.version}})

    def _load_and_warm_up(self) -> tuple[Predictor, dict[int, float]]:
        """Load the checkpoint, run each padded shape once, and time the smallest and the largest batch."""
        predictor = self._load(self.settings)
        calibrated = predictor.info.target_precisions
        if not calibrated:
            log.warning("the checkpoint is not calibrated: it answers, but accepts nothing")
        elif self.settings.target_precision not in calibrated:
            raise ConfigError(
                f"the checkpoint is calibrated for target precisions of {_listed(calibrated)}, "
                f"not for {self.settings.target_precision}"
            )
        predictor.warm_up(self.settings.max_batch_size)
        example, costs = _example(predictor), {}
        for size in (1, self.settings.max_batch_size):
            started = time.monotonic()
            predictor.predict(predictor.collate([example] * size))
            costs[size] = time.monotonic() - started
        return predictor, costs

    def drain(self) -> None:
        """Take no new request in; those inside are finished."""
        self.draining = True

    def give_up(self) -> None:
        """Answer whoever still waits, for the device or for anything else, with 503: the time to drain is over."""
        self._over.set()
        if self._batcher is not None:
            self._batcher.close()

    async def given_up(self) -> None:
        """Wait for that time, and raise `Draining`."""
        await self._over.wait()
        raise Draining("the service has stopped", retry_after=1)

    async def stop(self) -> None:
        self.draining = True
        for task in self._tasks:
            task.cancel()
        self.give_up()
        self._pool.shutdown(wait=False, cancel_futures=True)
        await self._fetcher.aclose()

    def check_ready(self) -> None:
        """Raise `NotReady` or `Draining` unless a request can be taken in."""
        self.check_alive()
        if self.draining:
            raise Draining("the service is stopping", retry_after=1)
        if self._batcher is None:
            raise NotReady("the model is being loaded", retry_after=5)

    def check_alive(self) -> None:
        """Raise `NotReady` once the process cannot recover by itself."""
        if self.failure is not None:
            raise NotReady("the model could not be loaded", retry_after=30)
        if self._batcher is not None and not self._batcher.alive:
            raise NotReady("the inference thread has died", retry_after=5)
        if self._batcher is not None and self._batcher.computing_for > STALL_SECONDS:
            raise NotReady("the inference thread hangs", retry_after=5)

    @property
    def batcher(self) -> MicroBatcher[Prepared, Any, Prediction]:
        if self._batcher is None:
            raise NotReady("the model is being loaded", retry_after=5)
        return self._batcher

    @property
    def predictor(self) -> Predictor:
        if self._predictor is None:
            raise NotReady("the model is being loaded", retry_after=5)
        return self._predictor

    # ── the steps of a request ──────────────────────────────────────────────────────────────────────────────

    def check_options(self, options: Options) -> Wanted:
        """Fill in the defaults. Raises `UnknownAttribute`, or `InvalidRequest` for an uncalibrated precision."""
        known = tuple(task.name for task in self.predictor.tasks)
        if unknown := [name for name in options.attributes or () if name not in known]:
            raise UnknownAttribute(f"unknown attribute {unknown[0][:64]!r}; known are {', '.join(known)}")
        calibrated = self.predictor.info.target_precisions
        precision = options.target_precision
        if precision is not None and precision not in calibrated:
            raise InvalidRequest(f"target_precision {precision} is not calibrated; {_listed(calibrated)} are")
        return Wanted(
            attributes=tuple(dict.fromkeys(options.attributes or known)),
            target_precision=precision or self.settings.target_precision,
            top_k=options.top_k,
            explain=options.explain,
        )

    async def fetch(self, url: str, call: Call) -> bytes:
        """Fetch an image; its bytes are held against the request's room as they come in."""
        started = time.monotonic()
        data = await self._fetcher.fetch(url, on_bytes=call.ticket.add_bytes)
        self.stage("fetch", time.monotonic() - started, call)
        return data

    async def prepare(self, given: Given, fetched: bytes | None, wanted: Wanted, call: Call) -> Prepared:
        """Decode and tokenize in the pool, so that a bad input fails alone and the event loop stays free."""
        prepared, seconds = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._prepare, given, fetched, wanted
        )
        self.stage("decode", seconds, call)
        return prepared

    async def infer(self, prepared: Prepared, call: Call) -> Prediction:
        """Compute, once there is a chance to be in time: on arrival it was counted as a plain listing."""
        if prepared.work > 1:
            self.admission.check_deadline(call.deadline, listings=prepared.work - 1, own=call.ticket.listings)
        answer = await self.batcher.submit(prepared, deadline=call.deadline.at)
        self.stage("queue", answer.queue_seconds, call)
        self.stage("inference", answer.inference_seconds, call)
        return answer.result

    def _prepare(self, given: Given, fetched: bytes | None, wanted: Wanted) -> tuple[Prepared, float]:
        started = time.monotonic()
        limits, image = self.settings, None
        encoded = given.image if fetched is None else fetched
        if isinstance(encoded, str):
            encoded = _from_base64(encoded, limits.max_image_bytes)
        if encoded is not None:
            _check_size(len(encoded), limits.max_image_bytes)
            try:
                image = images.decode(
                    encoded, max_pixels=limits.max_image_pixels, target=self.predictor.info.image_size
                )
            except (UnsupportedMediaType, UndecodableImage) as error:
                if fetched is None:
                    raise
                raise ImageFetchFailed(f"what the image's host sent cannot be used: {error.detail}") from error
        prepared: Prepared = self.predictor.prepare(given.title, image, explain=wanted.explain)
        return prepared, time.monotonic() - started

    def stage(self, stage: str, seconds: float, call: Call) -> None:
        self.metrics.stage(stage, seconds)
        call.record.stage(stage, seconds)


def _check_size(nbytes: int, limit: int) -> None:
    if nbytes > limit:
        raise PayloadTooLarge(f"the image has {nbytes} bytes; at most {limit} are accepted")


def _from_base64(text: str, limit: int) -> bytes:
    """Decode standard base64; line breaks, as the `base64` command writes them, are let pass."""
    try:
        encoded = text.encode("ascii").translate(None, string.whitespace.encode())
        _check_size(len(encoded) // 4 * 3 - 2, limit)
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("image.base64 is not valid base64") from None


def _example(predictor: Predictor) -> Prepared:
    """A listing known to be good, with both modalities."""
    height, width = predictor.info.image_size
    example: Prepared = predictor.prepare("warm-up", Image.new("RGB", (width, height), "grey"))
    return example


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(str(value) for value in values) or "none"
