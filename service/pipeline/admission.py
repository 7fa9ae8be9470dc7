"""Admission of requests: bounded by listings, by bytes, by a key's quota, and by whether the deadline can be met.

It is decided before a body is read, so that a refusal costs nothing, and in the same way on every route. Room is taken
for what is there: for bytes as they arrive, for listings once their body has arrived. So a caller who only announces
takes nothing away from the others.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.pipeline.quota import Quota

TIMEOUT_HEADER = "X-Request-Timeout-Ms"


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment after which nobody waits for the answer, on the clock of `time.monotonic`."""

    at: float

    @classmethod
    def of(cls, header: str | None, *, cap_ms: int) -> Deadline:
        """Start the clock: the caller's milliseconds if sent, but never more than `cap_ms`.

        Raises `InvalidRequest` if the header is not a positive whole number.
        """
        if header is None:
            milliseconds = cap_ms
        elif re.fullmatch(r"[ \t]*0*[1-9][0-9]{0,8}[ \t]*", header):
            milliseconds = min(int(header), cap_ms)
        else:
            raise InvalidRequest(f"{TIMEOUT_HEADER} must be a whole number of milliseconds, at least 1")
        return cls(time.monotonic() + milliseconds / 1000)

    @property
    def remaining(self) -> float:
        """Seconds left; negative once it has passed."""
        return self.at - time.monotonic()

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Once the deadline passes, cancel what runs inside and raise `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(self.remaining) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None


class Ticket:
    """The room that one request takes: listings until it is answered, bytes until nothing holds them any more."""

    def __init__(self, admission: Admission, quota: Quota | None) -> None:
        self._admission, self._quota = admission, quota
        self.listings = 0
        self.nbytes = 0
        self._holders = 1  # the request itself

    def add_listings(self, count: int) -> None:
        """Take room for `count` more listings, all or none. Raises `Overloaded` or `RateLimited`."""
        self._admission.check_room(listings=count)
        if self._quota is not None:
            self._quota.take(count)
        self._admission.listings += count
        self.listings += count

    def add_bytes(self, count: int) -> None:
        """Take room for `count` more bytes. Raises `Overloaded`."""
        self._admission.check_room(nbytes=count)
        self._admission.nbytes += count
        self.nbytes += count

    def release(self) -> None:
        """Give the room back: the request has been answered."""
        if self._quota is not None:
            self._quota.give_back(self.listings)
        self._admission.listings -= self.listings
        self.listings = 0
        self.let_go()

    def hold(self) -> None:
        """Keep the bytes counted until `let_go`, even if the request is answered first: a thread works on them."""
        self._holders += 1

    def let_go(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._admission.nbytes -= self.nbytes
            self.nbytes = 0


class Admission:
    """Counts what has been admitted against the limits. Used on the event loop alone, hence without locks."""

    def __init__(
        self,
        *,
        max_listings: int,
        max_bytes: int,
        expected_seconds: Callable[[int], float],
        estimate_age: Callable[[int], float],
    ) -> None:
        """
        expected_seconds: predicts how long until that many listings are answered
        estimate_age: seconds since the newest measurement behind the prediction for that many
        """
        self._max_listings, self._max_bytes = max_listings, max_bytes
        self._expected_seconds, self._estimate_age = expected_seconds, estimate_age
        self.requests = 0
        self.listings = 0
        self.nbytes = 0

    @contextmanager
    def admit(self, deadline: Deadline, *, nbytes: int = 0, quota: Quota | None = None) -> Iterator[Ticket]:
        """Let a request in, if there is room for one listing of `nbytes` bytes; what it takes is released at the end.

        Raises `Overloaded` or `DeadlineExceeded`.
        """
        self.check_room(listings=1, nbytes=nbytes)  # first: another replica may have room, and then also time
        self.check_deadline(deadline, listings=1)
        ticket = Ticket(self, quota)
        self.requests += 1
        try:
            yield ticket
        finally:
            self.requests -= 1
            ticket.release()

    def check_room(self, *, listings: int = 0, nbytes: int = 0) -> None:
        """Raise `Overloaded` if that much more does not fit."""
        if self.listings + listings > self._max_listings:
            full = f"{self.listings} of {self._max_listings} places are taken, {listings} are needed"
        elif self.nbytes + nbytes > self._max_bytes:
            full = f"requests hold {self.nbytes} of {self._max_bytes} bytes, {nbytes} more are needed"
        else:
            return
        raise Overloaded(full, retry_after=self._expected_seconds(self.listings))

    def check_deadline(self, deadline: Deadline, *, listings: int, own: int = 0) -> None:
        """Raise `DeadlineExceeded` if `listings` more cannot be answered in time, after those admitted before.

        own: how many of the admitted listings belong to this request
        """
        if self.listings == own and self._estimate_age(own + listings) > 1.0:
            # No other request is inside and the estimate is old: let this one try. Otherwise a device that was
            # slow once would count as slow for ever.
            return
        expected = self._expected_seconds(self.listings + listings)
        if expected > (left := deadline.remaining):
            raise DeadlineExceeded(
                f"the answer would take about {expected:.3f} s, and the deadline is in {left:.3f} s",
                retry_after=expected - left,
            )
