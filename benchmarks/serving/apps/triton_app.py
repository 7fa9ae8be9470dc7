"""Triton, by PyTriton, which carries the server: its dynamic batcher, and Python that computes."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.serving.apps.shared import MAX_BATCH, WAIT_SECONDS, Model

model = Model()


@batch
def classify(title: NDArray[Any], image: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """title: UTF-8, image: base64; bytes `[B, 1]` both."""
    listings = [
        {"title": words[0].decode(), "image": {"base64": encoded[0]}}
        for words, encoded in zip(title, image, strict=True)
    ]
    answers = model.answer([model.prepare(listing) for listing in listings])
    return {"answer": np.array([[json.dumps(answer).encode()] for answer in answers])}


if __name__ == "__main__":
    port = int(sys.argv[1])
    config = TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classify",
            infer_func=classify,
            inputs=[Tensor(name=name, dtype=bytes, shape=(1,)) for name in ("title", "image")],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(1e6 * WAIT_SECONDS)),
            ),
        )
        triton.serve()
