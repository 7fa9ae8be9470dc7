"""Time per listing of the forward pass, by batch size, situation and number format.

    python -m benchmarks.forward [--checkpoint weights/fashion] [--dtype float32] [--assert-ms 3]

Variants take turns within each round, so that changes of the machine's speed affect all of them alike; the median of
the rounds is printed. `ratio` is relative to the first row.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from model.inference.predictor import Batch, Predictor

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


def measure(predictor: Predictor, *, rounds: int) -> dict[str, float]:
    """Return the median milliseconds per listing of each variant, from the forward pass to calibrated predictions."""
    batches = variants(predictor)
    times: dict[str, list[float]] = {name: [] for name in batches}
    for counted in (False, *[True] * rounds):
        for name, batch in batches.items():
            began = time.perf_counter()
            predictor.predict(batch)
            if counted:
                times[name].append((time.perf_counter() - began) / len(batch.items) * 1000)
    return {name: statistics.median(each) for name, each in times.items()}


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    device: str = "auto",
    dtype: str = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="counted rounds")] = 15,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
    assert_ms: Annotated[float | None, typer.Option(help="fail above this, at batch 32")] = None,
) -> None:
    """Time the forward pass."""
    predictor = Predictor.load(checkpoint, device=device, dtype=dtype)
    figures = measure(predictor, rounds=rounds)
    reference = next(iter(figures.values()))
    threads = torch.get_num_threads()
    table = Table(
        title=f"{predictor.info.backbone}, {predictor.info.device}, {predictor.info.dtype}, {threads} threads"
    )
    for heading in ("variant", "ms per listing", "ratio"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}", f"{value / reference:.2f}")
    Console().print(table)
    if out:
        out.write_text(json.dumps({"dtype": predictor.info.dtype, "threads": threads, "ms": figures}, indent=1) + "\n")
    if assert_ms is not None and reference > assert_ms:
        raise SystemExit(f"{reference:.2f} ms per listing at batch 32, more than {assert_ms} ms")


if __name__ == "__main__":
    typer.run(main)
