"""What one API key may take of the service: listings per second, and places in the queue."""

from __future__ import annotations

import time

from service.errors import RateLimited

BURST_SECONDS = 1.0
"""A key that has been silent may send that many seconds' listings at once."""


class Quota:
    """One key's. Used on the event loop alone, hence without locks."""

    def __init__(self, *, rate: float, places: int) -> None:
        """
        rate: listings per second, on average; 0: any number
        places: listings admitted and not yet answered
        """
        self._rate, self._places = rate, places
        self._listings = 0
        # A batch larger than the balance is let in while that is positive, and then paid off: the average holds, and
        # no batch is too large for ever.
        self._balance, self._balanced_at = self._most, time.monotonic()

    @property
    def _most(self) -> float:
        return max(1.0, self._rate * BURST_SECONDS)

    def take(self, listings: int) -> None:
        """Count `listings` more. Raises `RateLimited`."""
        if self._listings + listings > self._places:
            full = f"{self._listings} of this key's {self._places} places are taken, {listings} are needed"
            raise RateLimited(full, retry_after=1)
        if self._rate:
            now = time.monotonic()
            self._balance = min(self._most, self._balance + (now - self._balanced_at) * self._rate)
            self._balanced_at = now
            if self._balance <= 0:
                over = f"this key may send {self._rate:g} listings per second"
                raise RateLimited(over, retry_after=-self._balance / self._rate)
            self._balance -= listings
        self._listings += listings

    def give_back(self, listings: int) -> None:
        """Free the places of listings that have been answered."""
        self._listings -= listings
