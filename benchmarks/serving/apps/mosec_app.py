"""mosec: processes that decode, and one that computes batches."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mosec import Server, Worker

from benchmarks.serving.apps.shared import MAX_BATCH, WAIT_SECONDS, Model
from model.inference.predictor import ModelInput


class Prepare(Worker):
    """Decodes and tokenizes; in processes of its own, as in the documentation's examples."""

    def __init__(self) -> None:
        self.model = Model()

    def forward(self, data: Mapping[str, Any]) -> ModelInput:
        return self.model.prepare(data)

    def serialize_ipc(self, data: ModelInput) -> bytes:
        return pickle.dumps(data)


class Compute(Worker):
    def __init__(self) -> None:
        self.model = Model()

    def deserialize_ipc(self, data: bytes) -> ModelInput:
        prepared: ModelInput = pickle.loads(data)  # noqa: S301 - from the process above
        return prepared

    def forward(self, data: Sequence[ModelInput]) -> list[dict[str, Any]]:
        return self.model.answer(data)


if __name__ == "__main__":
    port = sys.argv[1]
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--timeout", "60000", "--log-level", "warning"]
    server = Server()
    server.append_worker(Prepare, num=2)
    server.append_worker(Compute, max_batch_size=MAX_BATCH, max_wait_time=round(1000 * WAIT_SECONDS))
    server.run()
