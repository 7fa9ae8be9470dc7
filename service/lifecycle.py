"""The life of the service: it loads the model and warms it up, says whether it can take requests in, and drains.

loading ──► ready ──► draining ──► stopped
   └──► failed (the checkpoint cannot be used; `failure` says why)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from model.errors import ModelError
from model.inference.predictions import ListingPredictor, check_target_precision
from service.errors import Draining, NotReady
from service.memory import trim_now_and_then
from service.observability.loop_lag import observe_lag
from service.observability.tracing import Tracing
from service.pipeline.inference import Inference, warm_up
from service.pipeline.pipeline import Pipeline
from service.settings import Settings

if TYPE_CHECKING:
    from service.jobs.jobs import Jobs
    from service.store.store import Store

Load = Callable[[Settings], ListingPredictor]

log = logging.getLogger(__name__)

STALL_SECONDS = 60.0
"""A batch that computes this long will never finish: only a restart helps, and /healthz says so."""

TEND_SECONDS = 1.0
"""How often decode workers that have died while idle are looked for."""


class Lifecycle:
    """Opens the pipeline once the model is loaded, and ends it."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        load: Load,
        *,
        store: Store | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.failure: Exception | None = None
        self.draining = False
        self._settings, self._pipeline, self._load = settings, pipeline, load
        self._inference: Inference | None = None
        self._store, self._tracing = store, tracing
        self._jobs: Jobs | None = None
        self._given_up = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.once_warm: Callable[[], None] = lambda: None
        """Called in the loading thread before the service is ready."""

    # ── loading ─────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to load and warm up, in a separate thread: the event loop answers health checks meanwhile."""
        lag = observe_lag(self._pipeline.metrics.event_loop_lag.observe)
        in_background = self._start(), trim_now_and_then(), lag, self._tend_decoding()
        self._tasks = [asyncio.create_task(each) for each in in_background]
        if self._pipeline.reviews is not None:
            self._tasks.append(asyncio.create_task(self._pipeline.reviews.watch()))

    async def _start(self) -> None:
        try:
            inference = await asyncio.to_thread(self._load_and_warm_up)
        except Exception as error:
            if isinstance(error, ModelError):
                log.error("cannot start: %s", error)
            else:
                log.exception("cannot start")
            self.failure = error
            return
        inference.batcher.start()
        self._pipeline.open(inference)
        if self._store is not None:
            self._open_jobs(self._store)
        self._inference = inference
        info = inference.predictor.info
        fields = {"model": info.name, "version": info.version, "engine": info.engine, "scope_gate": info.scope_gate}
        log.info("ready", extra={"fields": fields})

    def _load_and_warm_up(self) -> Inference:
        """Raises `ModelError`, or whatever else keeps the checkpoint from being used."""
        settings, decoding = self._settings, self._pipeline.decoding
        decoding.start(wait=False)  # they start while the model is being loaded
        predictor = self._load(settings)
        if predictor.info.target_precisions:
            check_target_precision(predictor.info, settings.target_precision)
        else:
            log.warning("the checkpoint is not calibrated: it answers, but accepts nothing")
        if not predictor.info.scope_gate:
            log.warning("the checkpoint has no scope gate: unfamiliar listings are not recognised")
        inference = Inference(
            predictor,
            max_batch_size=settings.max_batch_size,
            max_wait=settings.max_wait_ms / 1000,
            batch_seconds=warm_up(predictor, settings.max_batch_size),
            on_batch=self._pipeline.metrics.batches.computed,
        )
        decoding.start()
        self.once_warm()
        return inference

    def _open_jobs(self, store: Store) -> None:
        from service.jobs.jobs import Jobs  # noqa: PLC0415 - SQLAlchemy takes time to import

        self._jobs = Jobs(store, self._pipeline, self._pipeline.metrics.jobs, self._tracing)
        self._tasks.append(asyncio.create_task(self._jobs.run()))

    @property
    def jobs(self) -> Jobs:
        """The jobs of this replica. Raises `NotReady` while the store is not open."""
        if self._jobs is None:
            raise NotReady("the store is being opened", retry_after=5)
        return self._jobs

    async def _tend_decoding(self) -> None:
        """Replace decode workers that have died, though nobody may be sent here to ask for one."""
        while True:
            await asyncio.sleep(TEND_SECONDS)
            await asyncio.to_thread(self._pipeline.decoding.tend)

    @property
    def loading(self) -> bool:
        """Whether the model is not there yet: nothing has been accepted either."""
        return self._inference is None and self.failure is None

    # ── health ──────────────────────────────────────────────────────────────────────────────────────────────

    def check_ready(self) -> None:
        """Raise `NotReady` or `Draining` unless a request can be taken in."""
        self.check_alive()
        if self.draining:
            raise Draining("the service is stopping", retry_after=1)
        if self._inference is None:
            raise NotReady("the model is being loaded", retry_after=5)
        if (trouble := self._pipeline.decoding.trouble) is not None:
            raise NotReady(f"images cannot be decoded: {trouble}", retry_after=5)

    def check_alive(self) -> None:
        """Raise `NotReady` once the process cannot recover by itself."""
        if self.failure is not None:
            raise NotReady("the model could not be loaded", retry_after=30)
        if self._inference is None:
            return
        if not self._inference.batcher.alive:
            raise NotReady("the inference thread has died", retry_after=5)
        if self._inference.batcher.computing_for > STALL_SECONDS:
            raise NotReady("the inference thread hangs", retry_after=5)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """Take no new request in; admitted ones are finished."""
        self.draining = True

    @property
    def idle(self) -> bool:
        """Whether every admitted request has been answered."""
        return not self._pipeline.admission.requests

    def give_up(self) -> None:
        """Answer every request that still waits, for the device or for anything else, with 503: the drain is over."""
        self._given_up.set()
        if self._inference is not None:
            self._inference.batcher.close()

    async def raise_when_given_up(self) -> NoReturn:
        """Wait for that moment, and raise `Draining`."""
        await self._given_up.wait()
        raise Draining("the service has stopped", retry_after=1)

    async def stop(self) -> None:
        """End everything at once."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # leases are given back
        self.give_up()
        await self._pipeline.close()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
