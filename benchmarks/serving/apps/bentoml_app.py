"""BentoML: a service with adaptive batching."""

from __future__ import annotations

import os
import sys
from typing import Any

import bentoml

from benchmarks.serving.apps.shared import MAX_BATCH, Model


@bentoml.service(traffic={"timeout": 60, "concurrency": MAX_BATCH})
class Classify:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=10_000, route="/classify")
    def classify(self, listings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.model.answer([self.model.prepare(listing) for listing in listings])


if __name__ == "__main__":
    program = os.path.join(os.path.dirname(sys.executable), "bentoml")
    arguments = ["serve", f"{__spec__.name}:Classify", "--host", "127.0.0.1", "--port", sys.argv[1]]
    os.execv(program, [program, *arguments])  # noqa: S606 - the framework's own command
