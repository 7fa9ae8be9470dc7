"""The steps of a request, in order: admission, options, and for each listing fetch, prepare, answer.

`service.http.routes` calls them one after the other. The pipeline is closed until the model is loaded: admission and
fetching work before that, and what needs the model raises `NotReady`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from model.inference.predictions import AttributePrediction, ListingPredictor, Prediction, Prepared
from model.inputs.pool import DecodePool, memory_for, worker_count
from model.threads import thread_count
from service.errors import NotReady
from service.observability.metrics import Metrics
from service.pipeline.admission import Admission
from service.pipeline.call import Call
from service.pipeline.fetch import configured_fetcher
from service.pipeline.gate import Gate
from service.pipeline.inference import Inference
from service.pipeline.options import CheckedOptions, check_options
from service.pipeline.prepare import ImageLimits, Preparer
from service.pipeline.quota import Quota
from service.reviews.reviews import Reviews
from service.schemas import ListingInput, Options
from service.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A listing's answer, as whoever sent it gets it."""

    prediction: Prediction
    attributes: dict[str, AttributePrediction]
    """Those that were asked for, by name."""
    computed: float
    """When it was, on the monotonic clock."""


class Pipeline:
    """What a request passes through; one per process."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        reviews: Reviews | None = None,
        gate: Gate | None = None,
        decoding: DecodePool | None = None,
    ) -> None:
        """
        reviews: what captures answers for people to judge; None: no store is configured
        gate: which addresses images may be fetched from; None: as the settings say
        decoding: the decode workers, for tests, which share some; None: workers of its own, which end with it
        """
        self.settings, self.metrics, self.reviews = settings, metrics, reviews
        self._inference: Inference | None = None
        self.admission = Admission(
            max_listings=settings.max_queue,
            max_bytes=settings.max_inflight_bytes,
            expected_seconds=self._expected_seconds,
            estimate_age=self._estimate_age,
        )
        places = max(1, int(settings.max_queue * settings.key_queue_share))
        names = {key.name for key in settings.api_keys}
        self._quotas = {name: Quota(rate=settings.key_rate, places=places) for name in names}
        self._fetcher = configured_fetcher(settings, gate)
        self.decoding = decoding or DecodePool(
            worker_count(thread_count(settings.threads)),
            memory=memory_for(settings.max_image_pixels, settings.max_image_bytes),
            on_kill=metrics.decoding.killed,
            on_restart=metrics.decoding.restarted,
        )
        self._ends_decoding = decoding is None
        self._preparer = Preparer(
            ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels), self.decoding
        )
        metrics.decoding.resident.set_function(lambda: self.decoding.resident_bytes)
        metrics.batches.in_flight.set_function(lambda: self.admission.listings)
        metrics.batches.queue_depth.set_function(lambda: self._inference.batcher.waiting if self._inference else 0)

    def _expected_seconds(self, listings: int) -> float:
        return self.inference.batcher.expected_seconds(listings)

    def _estimate_age(self, listings: int) -> float:
        return self.inference.batcher.cost.age(min(listings, self.settings.max_batch_size))

    def quota(self, key: str | None) -> Quota | None:
        """What the API key of that name may take; None where no keys are configured."""
        return None if key is None else self._quotas[key]

    def open(self, inference: Inference) -> None:
        """Compute with this model from now on."""
        info, tasks = inference.predictor.info, inference.predictor.tasks
        self.metrics.predictions.model_loaded(info, tasks)
        if self.reviews is not None:
            self.reviews.open(info, tasks)
        self._inference = inference

    async def close(self) -> None:
        """End what prepares and captures listings: threads, workers, connections; the life cycle ends the batcher."""
        if self.reviews is not None:
            await self.reviews.close()
        self._preparer.close()
        if self._ends_decoding:
            await asyncio.to_thread(self.decoding.close)
        await self._fetcher.aclose()

    @property
    def inference(self) -> Inference:
        """The loaded model. Raises `NotReady` while there is none."""
        if self._inference is None:
            raise NotReady("the model is being loaded", retry_after=5)
        return self._inference

    @property
    def predictor(self) -> ListingPredictor:
        """The loaded predictor. Raises `NotReady` while there is none."""
        return self.inference.predictor

    def check_options(self, options: Options) -> CheckedOptions:
        """Fill in the defaults. Raises `UnknownAttribute`, or `InvalidRequest` for an uncalibrated precision."""
        return check_options(
            options, self.predictor.info, self.predictor.tasks, target_precision=self.settings.target_precision
        )

    async def fetch(self, url: str, call: Call) -> bytes:
        """Fetch an image; its bytes take room in the request's ticket as they arrive. Failing takes time as well."""
        started = time.monotonic()
        try:
            async with call.fetches:
                return await self._fetcher.fetch(url, on_bytes=call.ticket.add_bytes)
        finally:
            self.record_stage("fetch", time.monotonic() - started, call)

    async def check_url(self, url: str) -> None:
        """Raise `InvalidRequest` for a URL that nothing may be fetched from or sent to."""
        await self._fetcher.check(url)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send a body under the rules of image URLs; return the status. Raises as fetching does."""
        return await self._fetcher.post(url, body, headers)

    async def prepare(self, listing: ListingInput, fetched: bytes | None, *, explain: bool, call: Call) -> Prepared:
        """Decode and tokenize; `fetched` is the image behind the listing's URL, if it names one."""
        prepared, seconds = await self._preparer.prepare(
            self.predictor, listing, fetched, explain=explain, ticket=call.ticket
        )
        self.record_stage("decode", seconds, call)
        return prepared

    async def answer(
        self, listing: ListingInput, fetched: bytes | None, prepared: Prepared, options: CheckedOptions, call: Call
    ) -> Answer:
        """Compute a prepared listing and answer it; requests and jobs get what the model says by this way alone.

        So promises that reviewers found broken are kept from all of them, and people review what all of them got.
        An explanation is refused here if it cannot be ready in time.
        """
        prediction = await self._infer(prepared, call)
        computed = time.monotonic()
        if self.reviews is not None:
            prediction = self.reviews.given(prediction)
        found = {
            name: prediction.attribute(name, target_precision=options.target_precision, top_k=options.top_k)
            for name in options.attributes
        }
        self.metrics.predictions.answered(prediction.scope, found)
        if self.reviews is not None:
            self.reviews.offer(listing, fetched, prediction, found)
        return Answer(prediction=prediction, attributes=found, computed=computed)

    async def _infer(self, prepared: Prepared, call: Call) -> Prediction:
        """Wait for the device and compute."""
        if prepared.work > 1:  # on arrival it was counted as 1
            self.admission.check_deadline(call.deadline, listings=prepared.work - 1, own=call.ticket.listings)
        if call.place is not None:
            answer = await call.place.infer(prepared)
        else:
            answer = await self.inference.infer(prepared, deadline=call.deadline.at)
        self.record_stage("queue", answer.queue_seconds, call, ago=answer.inference_seconds)
        self.record_stage("inference", answer.inference_seconds, call)
        return answer.result

    def record_stage(self, stage: str, seconds: float, call: Call, *, ago: float = 0.0) -> None:
        """Count a listing's time in a stage that ended `ago` seconds before now: in the metrics, for the request's log
        line, and as a span where requests are traced.

        Not that of a job: it waits long on purpose, and would hide how long callers do.
        """
        if call.place is not None:
            return
        self.metrics.requests.stage(stage, seconds)
        call.record.stage(stage, seconds, ago=ago)
