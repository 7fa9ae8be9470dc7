"""Throughput, latency and memory of a replica: the figures of docs/operations.md.

    python -m benchmarks.capacity [--out benchmarks/results/capacity.json]
    python -m benchmarks.capacity --device cuda [--out benchmarks/results/capacity_cuda.json]
    python -m docs.capacity

Each row is a separate server (`cma-clip serve`), under the load of `cma-clip bench`. On CPUs it is limited to some of
this machine's cores. If a core is left over, the client runs on it alone; if the server has all cores, the client
shares them, so the row's figures are lower than the server could reach. Throughput is that of as many callers as fill a
batch, each sending one request after another, or of two callers with full batches; latency is measured at half the
throughput of single requests, sent at times fixed in advance. A row takes a minute: three loads of 15 s, and a start.

On CPUs, the rows differ in the engine: those that the checkpoint carries, and PyTorch. On a GPU, where PyTorch is the
engine, they differ in number format and batch size. They have twice as many callers as fill a batch, for the next batch
is prepared while one computes.
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
from model.device import pick_device, training_dtype
from model.inference.engines.choose import usable_engines
from model.inference.engines.engine import EngineName
from service.commands.bench import Bodies, Listing, Load, run

TITLE = "Turtle Check Men Navy Blue Shirt"
IMAGE_SIZES = {"60 × 80": (60, 80), "1200 × 1600": (1200, 1600)}
BATCH = 32
GPU_BATCHES = (32, 128)
WARM_UP_SECONDS = 2.0
KEPT = ("requests", "statuses", "seconds", "requests_per_second", "listings_per_second", "latency_ms")
BODY_BYTES = 2**27
"""Room for a full batch of photos."""


@dataclass(frozen=True)
class Setting:
    """One row: the server's device, cores, engine, number format, batch size, and the size of the image it is sent."""

    device: str
    cores: int
    engine: str
    dtype: str
    """Only PyTorch's can be chosen; `auto` for another engine."""
    batch: int
    image: str

    @property
    def callers(self) -> int:
        """As many as keep a batch full while it waits, and on a GPU the next one too."""
        return self.batch if self.device == "cpu" else 2 * self.batch


def settings(device: torch.device, cores: int, checkpoint: Path) -> Iterator[Setting]:
    """Yield the rows for a machine with `cores` cores; the default engine first."""
    on_cpu = device.type == "cpu"
    formats = [*((name, "auto") for name in usable_engines(checkpoint)), (EngineName.TORCH, "float32")]
    if not on_cpu:
        natively = training_dtype(device) is torch.bfloat16
        formats = [(EngineName.TORCH, name) for name in ("float32", "float16", *(["bfloat16"] if natively else []))]
    for size in IMAGE_SIZES:
        for some in sorted({1, cores} if on_cpu else {cores}):
            for engine, dtype in formats:
                for batch in (BATCH,) if on_cpu else GPU_BATCHES:
                    yield Setting(str(device), some, engine, dtype, batch, size)


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
        self._server = server
        self._listing = Listing(TITLE, image.read_bytes())
        self.held = [self.memory()]

    def memory(self) -> float:
        return round(self._server.pss_mib(), 1)

    def load(self, seconds: float, *, callers: int = 1, listings: int = 1, rate: float | None = None) -> dict[str, Any]:
        """Return the figures of a load: of `callers`, or at a `rate` of requests per second.

        Exits with status 1 if any was not answered with 200: the figures would mean nothing.
        """
        bodies = Bodies.single([self._listing]) if listings == 1 else Bodies.batches([self._listing], listings)
        figures = run(Load(url=self._server.url, bodies=bodies, callers=callers, rate=rate, seconds=seconds)).summary()
        self.held.append(self.memory())
        if set(figures["statuses"]) != {"200"}:
            sys.exit(f"failed: not every request was answered: {figures['statuses']}")
        return {name: figures[name] for name in KEPT}


def measure(setting: Setting, image: Path, *, checkpoint: Path, seconds: float) -> dict[str, Any]:
    """Start a server, saturate it, then load it with half of that."""
    cores = sorted(os.sched_getaffinity(0))
    ours, rest = cores[: setting.cores], cores[setting.cores :]
    options = {
        "device": setting.device,
        "engine": setting.engine,
        "dtype": setting.dtype,
        "max_batch_size": setting.batch,
        "max_listings": setting.batch,
        "max_body_bytes": BODY_BYTES,
        "request_timeout_ms": 60_000,  # slow answers are measured too
    }
    with server(checkpoint, cores=ours, **options) as running, on_cores(rest or ours):
        client = Client(running, image)
        client.load(WARM_UP_SECONDS, callers=setting.callers)
        single = client.load(seconds, callers=setting.callers)
        batches = client.load(seconds, callers=2, listings=setting.batch)
        half_load = client.load(seconds, rate=single["requests_per_second"] / 2)
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


def machine(device: torch.device) -> dict[str, Any]:
    """Describe this machine and the device that computes, on which the figures depend."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"processor": names[0] if names else "unknown", "cores": len(names), "torch": torch.__version__, **gpu}


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table("cores", "engine", "dtype", "batch", "image", "listings/s", "in batches", "p50 ms", "p99 ms", "MiB")
    for row in rows:
        rates = (row[load]["listings_per_second"] for load in ("single", "batches"))
        latency = row["half_load"]["latency_ms"]
        of = (row[name] for name in ("cores", "engine", "dtype", "batch", "image"))
        cells = (*of, *rates, latency["p50"], latency["p99"])
        table.add_row(*map(str, cells), str(row["memory_mib"]["loaded"]))
    Console().print(table)


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    seconds: Annotated[float, typer.Option(min=1, help="duration of each load, in seconds")] = 15,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Measure every setting that this machine allows; nothing else should be running on it."""
    target, rows = pick_device(device), []
    with tempfile.TemporaryDirectory() as folder:
        for setting in settings(target, len(os.sched_getaffinity(0)), checkpoint):
            image = Path(folder) / "image.jpg"
            write_image(image, IMAGE_SIZES[setting.image])
            print(f"{setting} …", file=sys.stderr, flush=True)
            rows.append(measure(setting, image, checkpoint=checkpoint, seconds=seconds))
    draw(rows)
    if out is not None:
        version = json.loads((checkpoint / "metrics.json").read_text())["version"]
        found = {"machine": machine(target), "model": version, "seconds": seconds, "rows": rows}
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
