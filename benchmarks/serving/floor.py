"""The least that a listing costs: decoded, tokenized and computed, without a server, in batches and alone.

    python -m benchmarks.serving.floor CHECKPOINT ENGINE IMAGE_SIZE

A process of its own, on one thread, which measures for each line on its standard input, the seconds, and answers with
a line of JSON. So it takes its turn among the servers without loading the checkpoint anew.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.serving.environments import ROOT

BATCH = 32


class Floor:
    """The process, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure(self, seconds: float) -> dict[str, float]:
        """Return milliseconds a listing, of the processor and by the clock. Raises `RuntimeError` if it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(seconds, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the floor cannot be measured: its process has ended")
        found: dict[str, float] = json.loads(line)
        return found


@contextlib.contextmanager
def floor(checkpoint: Path, engine: str, image: str) -> Iterator[Floor]:
    """Run the process for the duration of the context."""
    with subprocess.Popen(  # noqa: S603 - this project's program
        [sys.executable, "-m", "benchmarks.serving.floor", str(checkpoint), engine, image],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield Floor(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def main(checkpoint: str, engine: str, image: str) -> None:
    """Measure for each line of the standard input."""
    # Not above: whoever only starts this process needs no model.
    from benchmarks.serving.apps.shared import load_predictor  # noqa: PLC0415
    from benchmarks.serving.material import listings  # noqa: PLC0415
    from model.inputs.decode import decode_image  # noqa: PLC0415

    predictor = load_predictor(checkpoint, engine)
    sent = itertools.cycle(listings(image))

    def answer(count: int) -> Any:
        chosen = list(itertools.islice(sent, count))
        images = [decode_image(each.image or b"", predictor.info.image_size) for each in chosen]
        items = [predictor.prepare(each.title, one.image) for each, one in zip(chosen, images, strict=True)]
        return predictor.predict(predictor.collate(items))

    answer(BATCH), answer(1)  # warm
    for line in sys.stdin:
        batches, alone = timed(lambda: answer(BATCH), float(line) / 2), timed(lambda: answer(1), float(line) / 2)
        print(
            json.dumps({
                "batch_cpu_ms": batches["cpu"] / BATCH, "batch_ms": batches["wall"] / BATCH,
                "alone_cpu_ms": alone["cpu"], "alone_ms": alone["wall"],
            }),
            flush=True,
        )  # fmt: skip


def timed(work: Callable[[], object], seconds: float) -> dict[str, float]:
    """Repeat the work for a while; return its mean milliseconds, of the processor and by the clock."""
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while not count or time.perf_counter() - began < seconds:
        work()
        count += 1
    return {
        "wall": 1000 * (time.perf_counter() - began) / count,
        "cpu": 1000 * (time.process_time() - cpu) / count,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
