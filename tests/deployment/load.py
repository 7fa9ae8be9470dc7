"""A bounded load on loopback: so many callers, one request after the other, until the test has seen enough."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import httpx

LONGEST_SECONDS = 600.0
"""So that a test that hangs ends; what a test waits for takes longer the busier the machine is."""

LISTING = {"id": "sku-1", "title": "Turtle Check Men Navy Blue Shirt"}


class Load:
    """Callers in the background while the context lasts, ten minutes at most; `statuses` tells how it went."""

    def __init__(self, url: str, *, callers: int = 8, pause: float = 0.0) -> None:
        self.url, self.callers, self.pause = url, callers, pause
        self.statuses: Counter[int | str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, requests: int) -> None:
        """Wait until so many more requests have been answered."""
        wanted = self.statuses.total() + requests
        while self.statuses.total() < wanted:
            assert self._thread.is_alive(), f"the load has ended: {self.statuses}"
            time.sleep(0.02)

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=self.callers)
        async with httpx.AsyncClient(base_url=self.url, timeout=30, limits=limits) as client:
            end = time.monotonic() + LONGEST_SECONDS
            await asyncio.gather(*(self._call(client, end) for _ in range(self.callers)))

    async def _call(self, client: httpx.AsyncClient, end: float) -> None:
        while not self._stop.is_set() and time.monotonic() < end:
            try:
                reply = await client.post("/v1/classify", json=LISTING)
                outcome: int | str = reply.status_code
            except httpx.TransportError as error:
                outcome = type(error).__name__
            self.statuses[outcome] += 1
            await asyncio.sleep(self.pause)
