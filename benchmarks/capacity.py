"""Throughput, latency and memory of a replica: the figures of docs/operations.md.

    python -m benchmarks.capacity [--out benchmarks/results/capacity.json]
    python -m docs.capacity

Each row is a separate server (`cma-clip serve`), limited to some of this machine's cores, under the load of `cma-clip
bench`. If a core is left over, the client runs on it alone; if the server has all cores, the client shares them, so the
row's figures are lower than the server could reach. Throughput is that of 32 callers, each sending one request after
another, or of two callers with batches of 32; latency is measured at half the throughput of single requests, sent at
fixed times. A row takes a minute: three loads of 15 s, and a start.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.server import Server, server
from model.device import training_dtype
from service.commands.bench import Load, run

TITLE = "Turtle Check Men Navy Blue Shirt"
IMAGE_SIZES = {"60 × 80": (60, 80), "1200 × 1600": (1200, 1600)}
CALLERS = 32
BATCH = 32


@dataclass(frozen=True)
class Setting:
    """One row: the server's cores and number format, and the size of the image that it is sent."""

    cores: int
    dtype: str
    image: str


def settings(cores: int) -> Iterator[Setting]:
    """Yield the rows for a machine with `cores` cores."""
    dtypes = ["float32"]
    if training_dtype(torch.device("cpu")) is torch.bfloat16:  # emulated, it would be a hundred times slower
        dtypes.append("bfloat16")
    for size in IMAGE_SIZES:
        for some in sorted({1, cores}):
            for dtype in dtypes:
                yield Setting(some, dtype, size)


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Restrict this process to `cores` for the duration of the context."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def write_image(path: Path, size: tuple[int, int]) -> None:
    """Write a JPEG of smooth noise, about as many bytes as a photo of its size."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=85)


class Client:
    """Sends one image repeatedly, and records the server's memory."""

    def __init__(self, server: Server, image: Path) -> None:
        self._server, self._image = server, image
        self.held = [self.memory()]

    def memory(self) -> float:
        return round(self._server.pss_mib(), 1)

    def load(
        self, requests: float, *, concurrency: int = CALLERS, listings: int = 1, rate: float | None = None
    ) -> dict[str, Any]:
        """Return the figures of `requests` requests, at least one for each caller.

        Exits with status 1 if any was not answered with 200: the figures would mean nothing.
        """
        load = Load(
            url=self._server.url, requests=max(round(requests), min(concurrency, CALLERS)), concurrency=concurrency,
            rate=rate, listings=listings, image=self._image, title=TITLE, api_key=None, timeout_ms=None,
        )  # fmt: skip
        figures = run(load).summary()
        self.held.append(self.memory())
        if set(figures["statuses"]) != {"200"}:
            sys.exit(f"failed: not every request was answered: {figures['statuses']}")
        return figures


def measure(setting: Setting, image: Path, *, checkpoint: Path, seconds: float) -> dict[str, Any]:
    """Start a server, saturate it, then load it with half of that."""
    cores = sorted(os.sched_getaffinity(0))
    ours, rest = cores[: setting.cores], cores[setting.cores :]
    options = {"dtype": setting.dtype, "request_timeout_ms": 60_000}  # slow answers are measured too
    with server(checkpoint, cores=ours, **options) as running, on_cores(rest or ours):
        client = Client(running, image)
        roughly = client.load(4 * CALLERS)["requests_per_second"]
        single = client.load(seconds * roughly)
        batches = client.load(seconds * single["listings_per_second"] / BATCH, concurrency=2, listings=BATCH)
        rate = single["requests_per_second"] / 2
        # More callers than ever wait at a time, so that every request is sent on time.
        half_load = client.load(seconds * rate, rate=rate, concurrency=256)
        return {
            **asdict(setting),
            "image_bytes": image.stat().st_size,
            "client_has_a_core": bool(rest),
            "single": single,
            "batches": batches,
            "half_load": half_load,
            "memory_mib": {
                "warm": client.held[0], "loaded": max(client.held),
                "peak": max(*client.held, round(running.peak_mib(), 1)),
            },
        }  # fmt: skip


def machine() -> dict[str, Any]:
    """Describe this machine, on which the figures depend."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": len(names), "torch": torch.__version__}


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table("cores", "dtype", "image", "listings/s", "in batches", "p50 ms", "p99 ms", "MiB")
    for row in rows:
        rates = (row[load]["listings_per_second"] for load in ("single", "batches"))
        latency = row["half_load"]["latency_ms"]
        cells = (row["cores"], row["dtype"], row["image"], *rates, latency["p50"], latency["p99"])
        table.add_row(*map(str, cells), str(row["memory_mib"]["loaded"]))
    Console().print(table)


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    seconds: Annotated[float, typer.Option(min=1, help="duration of each load, in seconds")] = 15,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Measure every setting that this machine allows; nothing else should be running on it."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for setting in settings(len(os.sched_getaffinity(0))):
            image = Path(folder) / "image.jpg"
            write_image(image, IMAGE_SIZES[setting.image])
            print(f"{setting} …", file=sys.stderr, flush=True)
            rows.append(measure(setting, image, checkpoint=checkpoint, seconds=seconds))
    draw(rows)
    if out is not None:
        version = json.loads((checkpoint / "metrics.json").read_text())["version"]
        found = {"machine": machine(), "model": version, "seconds": seconds, "rows": rows}
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
