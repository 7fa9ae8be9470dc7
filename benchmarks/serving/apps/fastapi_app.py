"""FastAPI and a batcher of 20 lines, as users write it: a queue, a task that empties it, a thread that computes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import Body, FastAPI

from benchmarks.serving.apps.shared import MAX_BATCH, Model
from model.inference.predictor import ModelInput

Waiting = tuple[ModelInput, asyncio.Future[dict[str, Any]]]


async def batch_forever(model: Model, queue: asyncio.Queue[Waiting]) -> None:
    """Compute whatever waits, at most `MAX_BATCH` at a time; nobody waits for a batch to fill."""
    while True:
        waiting = [await queue.get()]
        while len(waiting) < MAX_BATCH and not queue.empty():
            waiting.append(queue.get_nowait())
        answers = await asyncio.to_thread(model.answer, [prepared for prepared, _ in waiting])
        for (_, future), answer in zip(waiting, answers, strict=True):
            future.set_result(answer)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.model, app.state.queue = Model(), asyncio.Queue()
    batching = asyncio.create_task(batch_forever(app.state.model, app.state.queue))
    yield
    batching.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(listing: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008 - FastAPI's way
    prepared = await asyncio.to_thread(app.state.model.prepare, listing)
    future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    app.state.queue.put_nowait((prepared, future))
    return await future


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
