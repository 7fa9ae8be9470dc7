"""LitServe: an API process, and a worker that decodes, batches and predicts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import litserve

from benchmarks.serving.apps.shared import MAX_BATCH, WAIT_SECONDS, Model
from model.inference.predictor import ModelInput


class Classify(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model()

    # Annotated, the request would be a parameter that FastAPI looks for in the URL.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return self.model.prepare(request)

    def batch(self, inputs: Sequence[ModelInput]) -> Sequence[ModelInput]:
        return inputs

    def predict(self, batch: Sequence[ModelInput]) -> list[dict[str, Any]]:
        return self.model.answer(batch)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return output


if __name__ == "__main__":
    api = Classify(max_batch_size=MAX_BATCH, batch_timeout=WAIT_SECONDS, api_path="/classify")
    litserve.LitServer(api, accelerator="cpu", timeout=60).run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
