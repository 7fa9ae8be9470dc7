"""Reviews of one process: captures what is answered, hands out, takes decisions, and keeps live precision in metrics.

What it knows of the store is as old as the last look at it, a few seconds at most: other replicas write there too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from model.inference.predictions import AttributePrediction, ModelInfo, Prediction
from model.tasks import Task
from model.trust.confidence_sequences import ERROR
from service.errors import InvalidRequest, NotReady
from service.observability.metrics import ReviewMetrics
from service.reviews.capture import Answered, Capture
from service.reviews.messages import (
    NextReply,
    PrecisionReply,
    PromiseReply,
    ReviewItem,
    ReviewReply,
    ReviewRequest,
    Waiting,
)
from service.reviews.pairs import Kind, Model, Promise, Verdict, monday
from service.reviews.precision import LivePrecision, broken_promises, live_precision, promises
from service.reviews.sampling import Draw
from service.reviews.withdrawn import Given
from service.schemas import ListingInput, ModelName
from service.settings import DAY

if TYPE_CHECKING:
    from service.reviews.records import Records

LOOK_SECONDS = 10.0
"""How often the store is looked at."""

PURGE_SECONDS = 3600.0
"""How often what is old is deleted."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Serving:
    """The loaded model, as reviews see it."""

    info: ModelInfo
    model: Model
    tasks: Mapping[str, Task]
    """The attributes, by name."""
    promises: Sequence[Promise]
    capture: Capture


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The state of the store at the last look."""

    start: int
    week: str
    found: Sequence[LivePrecision]
    waiting: Mapping[Kind, int]


class Reviews:
    """One per process, where a store is configured."""

    def __init__(
        self,
        records: Records,
        metrics: ReviewMetrics,
        draw: Draw,
        *,
        auto_abstain: bool,
        keep_days: float,
        decode: Callable[[str], bytes],
    ) -> None:
        """
        draw: which pairs people are asked about
        auto_abstain: whether what was promised and found broken is not accepted any more
        keep_days: after how many days what was captured and decided is deleted
        decode: from an image in base64 to its bytes
        """
        self._records, self._metrics, self._draw = records, metrics, draw
        self._auto_abstain, self._keep_days, self._decode = auto_abstain, keep_days, decode
        self._serving: _Serving | None = None
        self._opened = asyncio.Event()
        self.withdrawn: frozenset[Promise] = frozenset()

    # ── while listings are answered ─────────────────────────────────────────────────────────────────────────

    def open(self, info: ModelInfo, tasks: Sequence[Task]) -> None:
        """Review the answers of this model from now on."""
        model = Model(info.version, info.engine, info.calibration)
        by_name = {task.name: task for task in tasks}
        made = promises(tuple(by_name), info.target_precisions)
        capture = Capture(
            self._records,
            self._draw,
            model=model,
            targets=info.target_precisions,
            decode=self._decode,
            dropped=self._metrics.dropped,
        )
        self._metrics.model_loaded([(str(p.attribute), str(p.situation), p.target) for p in made], map(str, Verdict))
        self._serving = _Serving(info=info, model=model, tasks=by_name, promises=made, capture=capture)
        capture.start()
        self._opened.set()

    def given(self, prediction: Prediction) -> Prediction:
        """Return an answer as whoever sent the listing gets it: not accepted where a promise is withdrawn."""
        return Given(prediction, self.withdrawn) if self.withdrawn else prediction

    def offer(
        self,
        listing: ListingInput,
        fetched: bytes | None,
        prediction: Prediction,
        answers: Mapping[str, AttributePrediction],
    ) -> None:
        """Capture an answered listing, or drop it where there is no room: never slow, never an error.

        fetched: the image behind the listing's URL, if it names one; answers: as the caller gets them
        """
        if self._serving is None or not answers:
            return
        answered = Answered(
            id=listing.id,
            title=listing.title,
            image=listing.image if fetched is None else fetched,
            prediction=prediction,
            separators={name: self._serving.tasks[name].separator for name in answers},
            target_precision=next(iter(answers.values())).target_precision,
            accepted={name: answer for name, answer in answers.items() if answer.accepted},
        )
        self._serving.capture.offer(answered)

    async def flush(self) -> None:
        """Wait until what was offered is in the store."""
        await asyncio.to_thread(self.serving.capture.flush)

    async def close(self) -> None:
        if self._serving is not None:
            await asyncio.to_thread(self._serving.capture.close)

    # ── while people judge ──────────────────────────────────────────────────────────────────────────────────

    @property
    def serving(self) -> _Serving:
        """Raises `NotReady` while there is no model."""
        if self._serving is None:
            raise NotReady("the model is being loaded", retry_after=5)
        return self._serving

    async def next(self, reviewer: str, *, kind: Kind | None, count: int) -> NextReply:
        """Hand out pairs, a reviewer's alone for a while."""
        now = time.time()
        found = await self._records.in_thread(partial(self._records.lease, reviewer, now, kind=kind, count=count))
        waiting = await self._records.in_thread(partial(self._records.waiting, now))
        return NextReply(reviewer=reviewer, items=[ReviewItem.of(each) for each in found], waiting=Waiting.of(waiting))

    async def take(self, request: ReviewRequest, reviewer: str) -> ReviewReply:
        """Take a decision, or take it back. Raises `NotFound`, `AlreadyReviewed`, or `InvalidRequest` for a label."""
        now = time.time()
        if request.decision == "undo":
            undone = await self._records.in_thread(partial(self._records.undo, request.item, reviewer, now))
            return ReviewReply(item=request.item, undone=ReviewItem.of(undone))
        labels = None if request.decision == "skip" else request.chosen
        if labels:
            attribute = await self._records.in_thread(partial(self._records.attribute, request.item))
            labels = _checked(labels, attribute, self.serving.tasks.get(attribute))
        decide = partial(self._records.decide, request.item, reviewer, now, labels)
        judged = await self._records.in_thread(decide)
        if judged.is_new and judged.kind is Kind.RANDOM:
            for target in self.serving.info.target_precisions:
                for accepted_at, verdict in judged.found:
                    if target <= accepted_at:
                        self._metrics.reviewed((judged.attribute, judged.situation, target), verdict)
        return ReviewReply(item=request.item, undone=None)

    async def precision(self) -> PrecisionReply:
        """Return what was found of each promise, as the store has it now."""
        seen, serving = await self.look(), self.serving
        return PrecisionReply(
            model=ModelName.of(serving.info),
            start=seen.start,
            week=seen.week,
            confidence_level=1 - ERROR,
            promises=[PromiseReply.of(each, self.withdrawn) for each in seen.found],
            waiting=Waiting.of(dict(seen.waiting)),
        )

    # ── looking at the store ────────────────────────────────────────────────────────────────────────────────

    async def watch(self) -> None:
        """Look at the store again and again, and now and then delete what is old, for as long as the task runs.

        The first look is as soon as the model is loaded: promises that were withdrawn are not to be given again.
        """
        await self._opened.wait()
        purged = -math.inf
        while True:
            try:
                await self.look()
                if time.monotonic() - purged >= PURGE_SECONDS:
                    await self._records.in_thread(partial(self._records.purge, time.time() - self._keep_days * DAY))
                    purged = time.monotonic()
            except Exception:
                log.exception("reviews: the store cannot be read")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> _Seen:
        """Read the store, bring the metrics up to date, and withdraw broken promises where that is configured."""
        seen = await self._records.in_thread(partial(self._look, self.serving))
        for each in seen.found:
            promise = each.promise
            self._metrics.found(
                (promise.attribute, promise.situation, promise.target),
                precision=each.precision,
                bounds=(each.lower_bound, each.upper_bound),
            )
        for kind, count in seen.waiting.items():
            self._metrics.waiting.labels(kind).set(count)
        return seen

    def _look(self, serving: _Serving) -> _Seen:
        now = time.time()
        start = self._records.start(serving.model, now)
        most = {name: len(task.labels) if task.multi_valued else 1 for name, task in serving.tasks.items()}
        found = live_precision(serving.promises, self._records.counts(start), start, most)
        if self._auto_abstain:
            broken = broken_promises(found, serving.info.target_precisions)
            known = self._records.withdrawn(serving.model)
            if fresh := broken - known:
                self._records.withdraw(fresh, serving.model, now)
                for each in sorted(fresh):
                    log.warning(
                        "reviews: a promise is broken and withdrawn",
                        extra={"fields": {"attribute": each.attribute, "situation": each.situation, "at": each.target}},
                    )
            self.withdrawn = known | broken
        return _Seen(start=start, week=monday(now), found=found, waiting=self._records.waiting(now))


def _checked(chosen: Sequence[str], attribute: str, task: Task | None) -> tuple[str, ...]:
    """Return labels that a reviewer chose, each once, in the attribute's order. Raises `InvalidRequest`."""
    known = () if task is None else task.labels
    if not known or not {*chosen} <= {*known}:
        raise InvalidRequest(f"label: {attribute} has no such label; GET /v1/attributes lists those that it has")
    found = tuple(label for label in known if label in chosen)
    if len(found) > 1 and task is not None and not task.multi_valued:
        raise InvalidRequest(f"labels: a listing has one {attribute}")
    return found
