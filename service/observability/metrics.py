"""Prometheus collectors. Names and units are a contract with dashboards and alerts; they do not change.

No label takes its values from what a caller sends: routes are templates, unknown paths share one value,
methods, reasons, attributes and labels come from closed lists. Each app has its own registry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from model.inference.predictions import Abstention, AttributePrediction, ModelInfo, Scope
from model.inputs.pool import Kill
from model.situations import Situation
from model.tasks import Task

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

P_VALUES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""For p-values: fine where listings become unfamiliar, the default level (0.01) among them.

In scope they are uniform: the share up to each edge is the edge itself.
"""

BATCH_SIZES = tuple(2**power for power in range(11))  # up to the largest batch that can be set, 1024

STAGES = ("fetch", "decode", "queue", "inference", "respond")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

UNKNOWN = "unknown"


class Remembering(MetricWrapperBase):
    """A collector that looks up each of its series once: an answer touches fifty, and a look-up takes a lock.

    Series are never removed, and there are no more than closed lists of labels have combinations.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._found: dict[object, Self] = {}
        super().__init__(*args, **settings)

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Self:
        """Return the series with these values of the labels, in their order or by name."""
        values = labelvalues or tuple(labelkwargs.items())
        if (series := self._found.get(values)) is None:
            series = self._found[values] = super().labels(*labelvalues, **labelkwargs)
        return series


class Counter(Remembering, prometheus_client.Counter):
    pass


class Histogram(Remembering, prometheus_client.Histogram):
    pass


class Metrics:
    """All collectors of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = RequestMetrics(self.registry)
        self.decoding = DecodeMetrics(self.registry)
        self.batches = BatchMetrics(self.registry)
        self.predictions = PredictionMetrics(self.registry)
        self.reviews = ReviewMetrics(self.registry)
        self.jobs = JobMetrics(self.registry)
        self.event_loop_lag = Histogram(
            "cma_clip_event_loop_lag_seconds",
            "How much later than due the event loop woke up; it is asked ten times a second.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition in the format that the scraper prefers, and its content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the version in the header is not a number
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type


class RequestMetrics:
    """Requests, how long they and their stages take, and what was refused."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "cma_clip_http_requests_total",
            "Requests by answered status; 499: the caller hung up first.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._duration = Histogram(
            "cma_clip_http_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ["method", "route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._key_requests = Counter(
            "cma_clip_key_requests_total",
            "Requests by API key and answered status.",
            ["key", "status"],
            registry=registry,
        )
        self._stage_duration = Histogram(
            "cma_clip_stage_duration_seconds",
            "Time of one listing in one stage; respond: of one request.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._rejected = Counter(
            "cma_clip_rejected_total",
            "Problems answered, for a request or for one listing of a batch, by problem code.",
            ["reason"],
            registry=registry,
        )
        for stage in STAGES:
            self._stage_duration.labels(stage)

    def answered(self, *, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request; `route` is the template that was matched, None for an unknown path."""
        method = method if method in METHODS else UNKNOWN
        route = route or UNKNOWN
        self._requests.labels(method, route, str(status)).inc()
        self._duration.labels(method, route).observe(seconds)

    def answered_key(self, key: str, status: int) -> None:
        """Count a request of a configured API key, by the key's name."""
        self._key_requests.labels(key, str(status)).inc()

    def stage(self, stage: str, seconds: float) -> None:
        self._stage_duration.labels(stage).observe(seconds)

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()


class DecodeMetrics:
    """The workers that decode images."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._kills = Counter(
            "cma_clip_decode_kills_total",
            "Decode workers that ended before their time, by the reason.",
            ["reason"],
            registry=registry,
        )
        self._restarts = Counter(
            "cma_clip_decode_restarts_total", "Decode workers that were started in place of another.", registry=registry
        )
        self.resident = Gauge(
            "cma_clip_decode_resident_memory_bytes", "Resident memory of all decode workers.", registry=registry
        )
        for reason in Kill:
            self._kills.labels(reason)

    def killed(self, reason: Kill) -> None:
        self._kills.labels(reason).inc()

    def restarted(self) -> None:
        self._restarts.inc()


class BatchMetrics:
    """Batches, and the listings on their way into one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._size = Histogram(
            "cma_clip_batch_size", "Listings in one forward pass.", buckets=BATCH_SIZES, registry=registry
        )
        self.queue_depth = Gauge("cma_clip_queue_depth", "Listings that wait for the device.", registry=registry)
        self.in_flight = Gauge("cma_clip_in_flight", "Listings admitted and not yet answered.", registry=registry)

    def computed(self, size: int) -> None:
        self._size.observe(size)


class JobMetrics:
    """Jobs in the store, the same on all replicas, and what this replica computed of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Gauge(
            "cma_clip_jobs", "Jobs in the store by status; each replica tells all.", ["status"], registry=registry
        )
        self._listings = Counter(
            "cma_clip_job_listings_total", "Rows of jobs that this replica finished.", ["outcome"], registry=registry
        )
        for status in ("queued", "running", "done", "failed", "cancelled"):
            self._jobs.labels(status)
        for outcome in ("done", "failed"):
            self._listings.labels(outcome)

    def counted(self, jobs: Mapping[str, int]) -> None:
        """Tell how many jobs there are, by status."""
        for status, count in jobs.items():
            self._jobs.labels(status).set(count)

    def computed(self, *, done: int, failed: int) -> None:
        """Count a finished shard's rows: with an answer, or with an error."""
        self._listings.labels("done").inc(done)
        self._listings.labels("failed").inc(failed)


class PredictionMetrics:
    """The loaded checkpoint, and what it predicts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._predictions = Counter(
            "cma_clip_predictions_total",
            "Attributes answered, by whether the label, or one of them, was accepted.",
            ["attribute", "outcome"],
            registry=registry,
        )
        self._labels = Counter(
            "cma_clip_labels_total",
            "Best labels answered, accepted or not; of a multi-valued attribute, all that are likelier than not.",
            ["attribute", "label"],
            registry=registry,
        )
        self._confidence = Histogram(
            "cma_clip_confidence",
            "Calibrated confidence of the best label.",
            ["attribute"],
            buckets=SHARES,
            registry=registry,
        )
        self._modality_attention = Histogram(
            "cma_clip_modality_attention",
            "Weight of a modality, for listings that have both (with one alone it is 1 by construction).",
            ["attribute", "modality"],
            buckets=SHARES,
            registry=registry,
        )
        self._abstentions = Counter(
            "cma_clip_abstentions_total",
            "Attributes answered and not accepted, by the reason.",
            ["attribute", "reason"],
            registry=registry,
        )
        self._familiarity = Histogram(
            "cma_clip_familiarity",
            "Conformal p-value of each listing; none where the checkpoint has no scope gate.",
            ["situation"],
            buckets=P_VALUES,
            registry=registry,
        )
        self._unfamiliar = Counter(
            "cma_clip_unfamiliar_total",
            "Listings unlike those that the thresholds were certified on.",
            ["situation"],
            registry=registry,
        )
        self._model_info = Gauge(
            "cma_clip_model_info",
            "The loaded checkpoint; always 1.",
            ["name", "version", "backbone", "device", "dtype", "engine"],
            registry=registry,
        )

    def model_loaded(self, info: ModelInfo, tasks: Iterable[Task]) -> None:
        """Name the checkpoint, and start the series of its attributes at zero, so that rates can be computed."""
        self._model_info.labels(info.name, info.version, info.backbone, info.device, info.dtype, info.engine).set(1)
        for situation in Situation:
            self._familiarity.labels(situation)
            self._unfamiliar.labels(situation)
        for task in tasks:
            for outcome in ("accepted", "abstained"):
                self._predictions.labels(task.name, outcome)
            for reason in Abstention:
                self._abstentions.labels(task.name, reason)
            for label in task.labels:
                self._labels.labels(task.name, label)
            self._confidence.labels(task.name)
            for modality in ("image", "text"):
                self._modality_attention.labels(task.name, modality)

    def answered(self, scope: Scope, predictions: Mapping[str, AttributePrediction]) -> None:
        """Count one listing's answer, its attributes by name."""
        if scope.familiarity is not None:
            self._familiarity.labels(scope.situation).observe(scope.familiarity)
        if scope.in_scope is False:
            self._unfamiliar.labels(scope.situation).inc()
        for attribute, prediction in predictions.items():
            self._predictions.labels(attribute, "accepted" if prediction.accepted else "abstained").inc()
            if prediction.abstention is not None:
                self._abstentions.labels(attribute, prediction.abstention).inc()
            for label in prediction.likely or (prediction.label,):
                self._labels.labels(attribute, label).inc()
            self._confidence.labels(attribute).observe(prediction.confidence)
            if scope.situation is Situation.IMAGE_AND_TITLE:
                for modality, weight in prediction.modality_attention.items():
                    self._modality_attention.labels(attribute, modality).observe(weight)


PromiseLabels = tuple[str, str, float]
"""Attribute, situation and target precision."""


class ReviewMetrics:
    """What people find about accepted labels; there are no series of promises unless a store is configured."""

    def __init__(self, registry: CollectorRegistry) -> None:
        promise = ["attribute", "situation", "target"]
        self._reviewed = Counter(
            "cma_clip_reviewed_total",
            "Decisions that this replica took on accepted labels of the random share; one that was undone is counted.",
            [*promise, "verdict"],
            registry=registry,
        )
        self._precision = Gauge(
            "cma_clip_reviewed_precision",
            "Share of right ones among the accepted labels that were judged this week; NaN where none was.",
            promise,
            registry=registry,
        )
        self._lower = Gauge(
            "cma_clip_reviewed_precision_lower_bound",
            "The precision is not below it, at any moment.",
            promise,
            registry=registry,
        )
        self._upper = Gauge(
            "cma_clip_reviewed_precision_upper_bound",
            "The precision is not above it, at any moment.",
            promise,
            registry=registry,
        )
        self._target = Gauge(
            "cma_clip_reviewed_target_precision",
            "What is promised: the label of the same name as a number, for alerts.",
            promise,
            registry=registry,
        )
        self.waiting = Gauge("cma_clip_reviews_waiting", "Pairs that wait for a reviewer.", ["kind"], registry=registry)
        self._dropped = Counter(
            "cma_clip_reviews_dropped_total",
            "Answered listings that were not looked at for reviews, for lack of room or because the store failed.",
            registry=registry,
        )

    def model_loaded(self, promises: Iterable[PromiseLabels], verdicts: Iterable[str]) -> None:
        """Start the series of all promises."""
        verdicts = tuple(verdicts)
        for promise in promises:
            labels = _promise(promise)
            self._target.labels(*labels).set(promise[-1])
            self.found(promise, precision=None, bounds=(0.0, 1.0))
            for verdict in verdicts:
                self._reviewed.labels(*labels, verdict)

    def reviewed(self, promise: PromiseLabels, verdict: str) -> None:
        """Count a decision."""
        self._reviewed.labels(*_promise(promise), verdict).inc()

    def found(self, promise: PromiseLabels, *, precision: float | None, bounds: tuple[float, float]) -> None:
        """Set what was found of a promise."""
        labels = _promise(promise)
        self._precision.labels(*labels).set(math.nan if precision is None else precision)
        for gauge, bound in zip((self._lower, self._upper), bounds, strict=True):
            gauge.labels(*labels).set(bound)

    def dropped(self, listings: int) -> None:
        self._dropped.inc(listings)


def _promise(promise: PromiseLabels) -> tuple[str, str, str]:
    attribute, situation, target = promise
    return attribute, situation, f"{target:g}"
