"""Ray Serve: a deployment with dynamic request batching."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.apps.shared import MAX_BATCH, WAIT_SECONDS, Model
from model.inference.predictor import ModelInput


@serve.deployment(max_ongoing_requests=4 * MAX_BATCH, ray_actor_options={"num_cpus": 1})
class Classify:
    def __init__(self) -> None:
        self.model = Model()

    async def __call__(self, request: Request) -> dict[str, Any]:
        prepared = await asyncio.to_thread(self.model.prepare, await request.json())
        answer: dict[str, Any] = await self.answer(prepared)
        return answer

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def answer(self, prepared: list[ModelInput]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.model.answer, prepared)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classify.bind(), route_prefix="/classify")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
