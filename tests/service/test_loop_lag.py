"""The lag of the event loop is what it kept others waiting."""

from __future__ import annotations

import asyncio
import contextlib
import time

from service.observability import loop_lag
from tests.service.conftest import in_process, until


async def test_what_blocks_the_loop_is_seen() -> None:
    seen: list[float] = []
    watching = asyncio.create_task(loop_lag.observe_lag(seen.append))
    await until(lambda: seen)
    seen.clear()
    time.sleep(0.4)  # noqa: ASYNC251 - the very thing
    await until(lambda: seen)
    assert seen[0] > 0.25
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def test_the_service_measures_it() -> None:
    async with in_process() as client:
        await until(lambda: client.pipeline.metrics.registry.get_sample_value("cma_clip_event_loop_lag_seconds_count"))
