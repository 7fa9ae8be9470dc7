"""Takes in what is answered, for people to judge: beside the requests, which it neither delays nor fails.

The event loop puts a listing and its answer into a bounded queue, or counts it as dropped. One thread, of a lower
priority than those that answer, does the rest: it draws, and writes to the store what was drawn.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.inference.predictions import AttributePrediction, Prediction
from service.reviews.pairs import (
    MAX_ABSTAINED,
    AcceptedListing,
    Batch,
    CapturedItem,
    CapturedListing,
    Kind,
    Model,
)
from service.reviews.sampling import Draw, lesson

if TYPE_CHECKING:
    from service.reviews.records import Records

log = logging.getLogger(__name__)

MAX_QUEUE = 512
"""Listings that wait for the thread."""

MAX_BYTES = 64 * 2**20
"""Of images that wait for it."""

AT_ONCE = 64
"""Listings that are written in one transaction, at most."""

NICENESS = 10
"""How far the thread stands back for those that answer."""

CANDIDATES = 5
"""Best labels that are shown beside an abstention."""

TEND_SECONDS = 60.0
"""How often the thread lets go of what waits beyond the bounds, and looks how much an abstention must teach."""

RETRY_SECONDS = 5.0
"""How long the thread rests after the store has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A listing and its answer."""

    id: str | None
    title: str | None
    image: bytes | str | None
    """As it was sent: encoded, or in base64."""
    prediction: Prediction
    separators: Mapping[str, str | None]
    """Of the attributes that were asked for; None: a listing has one label."""
    target_precision: float
    accepted: Mapping[str, AttributePrediction]
    """What the caller got that is accepted."""

    @property
    def nbytes(self) -> int:
        return len(self.image or b"")


class Capture:
    """The queue and its thread."""

    def __init__(
        self,
        records: Records,
        draw: Draw,
        *,
        model: Model,
        targets: Sequence[float],
        decode: Callable[[str], bytes],
        dropped: Callable[[int], None],
    ) -> None:
        """
        draw: which pairs people are asked about
        model, targets: what answers, and the target precisions that it is calibrated for
        decode: from an image in base64 to its bytes
        dropped: called with the number of listings that are not looked at
        """
        self._records, self._draw, self._model = records, draw, model
        self._targets, self._decode, self._dropped = sorted(targets), decode, dropped
        self._waiting: deque[Answered] = deque()
        self._nbytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._busy = False
        self._bars: dict[str, float] = {}
        self._fresh, self._tended = 0, -math.inf
        self._thread = threading.Thread(target=self._run, name="reviews", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, answered: Answered) -> None:
        """Take a listing in, or drop it where there is no room; on the event loop, in no time."""
        with self._changed:
            if self._closed or len(self._waiting) >= MAX_QUEUE or self._nbytes + answered.nbytes > MAX_BYTES:
                self._dropped(1)
                return
            self._waiting.append(answered)
            self._nbytes += answered.nbytes
            self._changed.notify_all()

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until what was offered is in the store; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def close(self) -> None:
        """Write what waits, for a few seconds at most, and end."""
        self.flush(5.0)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(5.0)

    # ── the thread ──────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not on every platform
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (taken := self._take()) is not None:
            try:
                self._keep(taken)
            except Exception:
                log.exception("reviews: listings are not captured", extra={"fields": {"listings": len(taken)}})
                self._dropped(len(taken))
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, RETRY_SECONDS)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _take(self) -> list[Answered] | None:
        """Wait for listings; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            taken = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            self._nbytes -= sum(each.nbytes for each in taken)
            self._busy = True
            return taken

    def _keep(self, taken: Sequence[Answered]) -> None:
        if self._fresh >= MAX_ABSTAINED or time.monotonic() - self._tended >= TEND_SECONDS:
            self._records.trim()
            self._bars, self._fresh, self._tended = self._records.bars(), 0, time.monotonic()
        listings, items, accepted = {}, [], []
        for each in taken:
            image = self._decode(each.image) if isinstance(each.image, str) else each.image
            listing = self._draw.listing(each.title, image)
            if drawn := [item for name in each.separators for item in self._drawn(listing, name, each)]:
                listings[listing] = CapturedListing(
                    listing=listing, id=storable(each.id), title=storable(each.title), image=image
                )
                items += drawn
            if each.accepted:
                accepted.append(_accepted(each, listing))
        if items or accepted:
            batch = Batch(listings=listings, items=items, accepted=accepted)
            self._records.add(batch, self._model, time.time())

    def _drawn(self, listing: str, attribute: str, each: Answered) -> Iterator[CapturedItem]:
        """Yield what people are asked about an attribute: nothing, most of the time."""
        position = self._draw.position(listing, attribute)
        answer = each.prediction.attribute(attribute, target_precision=each.target_precision, top_k=CANDIDATES)
        if self._draw.draws(position):
            kind, place = Kind.RANDOM, position
        else:
            teaches = lesson(answer)
            if teaches is None or teaches <= self._bars.get(attribute, -1.0):
                return
            kind, place = Kind.ABSTAINED, 1 - teaches
            self._fresh += 1
        accepted_at = self._accepted_at(attribute, each.prediction)
        separator = each.separators[attribute]
        yield CapturedItem(
            listing=listing,
            attribute=attribute,
            kind=kind,
            place=place,
            situation=each.prediction.scope.situation,
            label=answer.label,
            confidence=answer.confidence,
            abstention=answer.abstention,
            accepted_at=max(accepted_at.values(), default=None),
            candidates=[(candidate.label, candidate.confidence) for candidate in answer.candidates],
            separator=separator,
            labels=[] if separator is None else list(accepted_at.items()),
        )

    def _accepted_at(self, attribute: str, prediction: Prediction) -> dict[str, float]:
        """Return the labels that are accepted at any target, and the highest: they are at every lower one as well."""
        answers = ((at, prediction.attribute(attribute, target_precision=at, top_k=1)) for at in self._targets)
        return {each.label: at for at, answer in answers for each in answer.labels or (answer,) if each.accepted}


def _accepted(each: Answered, listing: str) -> AcceptedListing:
    return AcceptedListing(
        listing=listing,
        id=storable(each.id),
        situation=each.prediction.scope.situation,
        target=each.target_precision,
        labels={
            name: [(label.label, label.confidence) for label in answer.labels or (answer,) if label.accepted]
            for name, answer in each.accepted.items()
        },
    )


def storable(text: str | None) -> str | None:
    """Return a caller's text as every database takes it: without NUL and unpaired surrogates."""
    return text and text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
