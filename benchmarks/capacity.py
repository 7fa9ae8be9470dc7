"""How many listings a second a replica classifies, how soon, and in how much memory: the figures of docs/operations.md.

    python -m benchmarks.capacity [--out benchmarks/results/capacity.json]

Each row is a server of its own (`cma-clip serve`) that may run on some of this machine's cores only, and `cma-clip
bench` before it. Where a core is left over, the client has it to itself; where the server has them all, the client
takes its share of them, so that row says less than the server could. Saturation is 32 callers, one request after the
other, or two with batches of 32; latency is at half of what was reached with single requests, each sent at its moment.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.server import resident_mib, server
from service.bench import Load, run

TITLE = "Turtle Check Men Navy Blue Shirt"
PICTURES = {"60 x 80": (60, 80), "1200 x 1600": (1200, 1600)}


@dataclass(frozen=True)
class Setting:
    """One row: what the server runs on and what it is sent."""

    cores: int
    dtype: str
    picture: str


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Run this process on `cores` alone for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def write_picture(path: Path, size: tuple[int, int]) -> None:
    """Write a JPEG of smooth noise, which takes about as many bytes as a photo of its size."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=85)


def measure(setting: Setting, picture: Path, *, checkpoint: Path, seconds: float) -> dict[str, Any]:
    """Start a server, saturate it, then load it by half."""
    cores = sorted(os.sched_getaffinity(0))
    ours, rest = cores[: setting.cores], cores[setting.cores :]
    with server(checkpoint, cores=ours, dtype=setting.dtype) as url, on_cores(rest or ours):

        def load(requests: float, **options: Any) -> dict[str, Any]:
            given = {"concurrency": 32, "listings": 1, "title": TITLE, "image": picture, "api_key": None}
            return run(Load(url=url, requests=int(requests), timeout_ms=None, **given | options)).summary()

        def memory() -> float:
            return round(resident_mib(httpx.get(f"{url}/metrics").text))

        warm = memory()
        first = load(200)  # how fast, roughly
        single = load(seconds * first["requests_per_second"])
        in_batches = load(seconds * single["listings_per_second"] / 32, concurrency=2, listings=32)
        half = single["requests_per_second"] / 2
        return {
            **asdict(setting),
            "client_has_a_core": bool(rest),
            "listings_per_second": single["listings_per_second"],
            "listings_per_second_in_batches": in_batches["listings_per_second"],
            "saturated": single,
            "half_load": load(seconds * half, rate=half, concurrency=256),
            "resident_mib": {"warm": warm, "loaded": memory()},
        }


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    seconds: Annotated[float, typer.Option(min=1, help="of each load")] = 30,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Measure every setting that this machine allows."""
    numbers = sorted({1, len(os.sched_getaffinity(0))})
    # Multiplied natively or not at all: emulated, it is a hundred times slower than float32.
    dtypes = ["float32", *(["bfloat16"] if torch.cpu._is_amx_tile_supported() else [])]
    table = Table("cores", "dtype", "picture", "listings/s", "in batches", "p50 ms", "p99 ms", "MiB")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for picture, size in PICTURES.items():
            path = Path(folder) / "picture.jpg"
            write_picture(path, size)
            for cores in numbers:
                for dtype in dtypes:
                    row = measure(Setting(cores, dtype, picture), path, checkpoint=checkpoint, seconds=seconds)
                    rows.append(row)
                    latency = row["half_load"]["latency_ms"]
                    rates = row["listings_per_second"], row["listings_per_second_in_batches"]
                    shown = (
                        cores,
                        dtype,
                        picture,
                        *rates,
                        latency["p50"],
                        latency["p99"],
                        row["resident_mib"]["loaded"],
                    )
                    table.add_row(*map(str, shown))
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": len(names), "torch": torch.__version__}


if __name__ == "__main__":
    typer.run(main)
