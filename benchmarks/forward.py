"""Time per listing of the forward pass, by batch size, situation and engine.

    python -m benchmarks.forward [--checkpoint weights/fashion] [--engine torch --engine openvino-int8] [--assert-ms 3]

Variants and engines take turns within each round, so that changes of the machine's speed affect all of them alike; the
median of the rounds is printed.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from model.inference.predictor import Batch, Predictor
from model.threads import thread_count

TITLE = "Turtle Check Men Navy Blue Shirt"
BATCH_SIZES = (32, 1, 8, 64)


def variants(predictor: Predictor) -> dict[str, Batch]:
    """Return the batches to time, by name; the first is the reference."""
    image = Image.new("RGB", (60, 80), "navy")
    both = predictor.prepare(TITLE, image)
    batches = {f"image and title, batch {size}": [both] * size for size in BATCH_SIZES}
    batches["image alone, batch 32"] = [predictor.prepare(None, image)] * 32
    batches["title alone, batch 32"] = [predictor.prepare(TITLE, None)] * 32
    batches["title of full length, batch 32"] = [predictor.prepare("word " * 100, image)] * 32
    batches["explained, batch 1"] = [predictor.prepare(TITLE, image, explain=True)]
    return {name: predictor.collate(items) for name, items in batches.items()}


def measure(predictors: Mapping[str, Predictor], *, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median milliseconds per listing of each variant on each engine, from the forward pass to calibrated
    predictions; by variant, then by engine.
    """
    batches = {engine: variants(predictor) for engine, predictor in predictors.items()}
    names = list(next(iter(batches.values())))
    times: dict[str, dict[str, list[float]]] = {name: {engine: [] for engine in predictors} for name in names}
    for counted in (False, *[True] * rounds):
        for name in names:
            for engine, predictor in predictors.items():
                batch = batches[engine][name]
                began = time.perf_counter()
                predictor.predict(batch)
                if counted:
                    times[name][engine].append((time.perf_counter() - began) / len(batch.items) * 1000)
    return {name: {engine: statistics.median(each) for engine, each in own.items()} for name, own in times.items()}


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    device: str = "auto",
    dtype: str = "auto",
    engine: Annotated[
        list[str] | None, typer.Option(help="each to time, the first is the reference", show_default="auto")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="counted rounds")] = 15,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
    assert_ms: Annotated[float | None, typer.Option(help="fail above this, at batch 32, on the first engine")] = None,
) -> None:
    """Time the forward pass."""
    predictors = {}
    for name in engine or ["auto"]:
        options = {} if name.startswith("openvino") else {"device": device, "dtype": dtype}
        loaded = Predictor.load(checkpoint, engine=name, **options)
        predictors[f"{loaded.info.engine} {loaded.info.dtype}"] = loaded
    figures = measure(predictors, rounds=rounds)
    info, threads = next(iter(predictors.values())).info, thread_count()
    Console().print(_table(f"{info.backbone}, {info.device}, {threads} threads: ms per listing", figures))
    if out:
        out.write_text(json.dumps({"threads": threads, "ms": figures}, indent=1) + "\n")
    reference = next(iter(next(iter(figures.values())).values()))
    if assert_ms is not None and reference > assert_ms:
        raise SystemExit(f"{reference:.2f} ms per listing at batch 32, more than {assert_ms} ms")


def _table(title: str, figures: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the figures, and beside each but the first engine's what share of the first one's time it takes."""
    table = Table(title=title)
    table.add_column("variant")
    for engine in next(iter(figures.values())):
        table.add_column(engine, justify="right")
    for name, own in figures.items():
        first, *others = own.values()
        table.add_row(name, f"{first:.2f}", *(f"{value:.2f}  ({value / first:.2f} x)" for value in others))
    return table


if __name__ == "__main__":
    typer.run(main)
