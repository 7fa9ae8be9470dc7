"""What is the same behind every framework: checkpoint, decoding, network, and the answer's content."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.serving.apps import CHECKPOINT, ENGINE
from model.inference.predictor import ModelInput, Predictor
from model.inputs.decode import decode_image

MAX_BATCH = 32

WAIT_SECONDS = 0.005
"""How long frameworks that wait for a batch to fill do so. Their documentation says 0 to 50 ms, mostly 10."""

TARGET_PRECISION, TOP_K = 0.95, 3


def load_predictor(checkpoint: str, engine: str) -> Predictor:
    """Load a checkpoint for CPUs."""
    return Predictor.load(checkpoint, device="cpu", engine=engine)


class Model:
    """The checkpoint that the environment names."""

    def __init__(self) -> None:
        self._predictor = load_predictor(os.environ[CHECKPOINT], os.environ[ENGINE])
        self._predictor.predict(self._predictor.collate([self._predictor.prepare("warm-up", None)]))

    def prepare(self, listing: Mapping[str, Any]) -> ModelInput:
        """Turn a listing, as `POST /v1/classify` takes it, into what `answer` takes: decoded and tokenized."""
        encoded = base64.b64decode(listing["image"]["base64"])
        decoded = decode_image(encoded, self._predictor.info.image_size)
        return self._predictor.prepare(listing["title"], decoded.image, warnings=decoded.warnings)

    def answer(self, prepared: Sequence[ModelInput]) -> list[dict[str, Any]]:
        """Answer a batch, in its order, in plain types for JSON."""
        rows = self._predictor.predict(self._predictor.collate(prepared))
        return [
            {
                "attributes": {
                    task.name: asdict(row.attribute(task.name, target_precision=TARGET_PRECISION, top_k=TOP_K))
                    for task in self._predictor.tasks
                }
            }
            for row in rows
        ]
