"""How long the event loop keeps its callers waiting: whatever computes on it delays everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

EVERY_SECONDS = 0.1


async def observe_lag(observe: Callable[[float], object]) -> None:
    """Pass on, ten times a second, how many seconds late the loop was; for as long as the task runs."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + EVERY_SECONDS
        await asyncio.sleep(EVERY_SECONDS)
        observe(max(0.0, loop.time() - due))
