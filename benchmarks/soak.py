"""Minutes of mixed load on a real server: is its memory flat, and is every request answered?

    python -m benchmarks.soak [--checkpoint weights/fashion] [--seconds 300] [--warm-up 60] [--assert-mib 32]

The load is bounded: eight callers, one request after the other, to a server on a loopback port that this command
starts and stops. Besides listings of every kind it holds what hurts: large, damaged and hostile images, bodies over
the limit, callers that hang up, deadlines that cannot be met. Memory is the server's resident set, from its /metrics;
growth is measured between the medians of the first and last quarter after the warm-up.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

CALLERS = 8
WORDS = ("turtle", "check", "men", "navy", "blue", "shirt", "women", "red", "dress", "summer", "shoes", "watch")
ANSWERS = {200, 413, 415, 422, 424, 499, 503, 504}
"""Statuses that this load may cause; anything else is a bug."""


@contextlib.contextmanager
def server(checkpoint: Path) -> Iterator[str]:
    """Run `cma-clip serve` on a free port of this machine; yields its URL once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", "from service.cli import main; main()", "serve"],
        env={**os.environ, "CMA_CLIP_CHECKPOINT": str(checkpoint), "CMA_CLIP_PORT": str(port)},
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _ready(url):
            if process.poll() is not None:
                raise SystemExit(process.returncode)
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def pictures() -> list[str]:
    """Images good and bad, in base64: small, large, of every format, cut short, and no images at all."""
    chance = random.Random(1)  # noqa: S311 - reproducible, not secret
    files = []
    for size in ((60, 80), (300, 400), (1200, 1600)):
        for file_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
            buffer = io.BytesIO()
            image = Image.new("RGB", size, (chance.randrange(256), chance.randrange(256), 90))
            image.putpixel((1, 1), (255, 255, 255))
            image.save(buffer, file_format)
            files.append(buffer.getvalue())
    files += [file[: len(file) // 2] for file in files[:5]]
    files += [chance.randbytes(5000), b"GIF89a" + chance.randbytes(300), b"\xff\xd8\xff" + chance.randbytes(3000)]
    return [base64.b64encode(file).decode() for file in files]


def call(chance: random.Random, images: list[str]) -> tuple[str, dict[str, Any]]:
    """Choose what to send: a path and httpx's arguments."""
    listing: dict[str, Any] = {"title": " ".join(chance.choices(WORDS, k=chance.randint(1, 20)))}
    if chance.random() < 0.7:
        listing["image"] = {"base64": chance.choice(images)}
    headers = {"X-Request-Timeout-Ms": chance.choice(("1", "5000", "9000", "9000", "9000"))}
    match chance.randrange(12):
        case 0:
            return "/v1/classify/batch", {"json": {"listings": [listing] * chance.randint(1, 16)}, "headers": headers}
        case 1:
            files = {"image": ("a", base64.b64decode(chance.choice(images)))}
            return "/v1/classify/upload", {"data": {"title": "shirt"}, "files": files, "headers": headers}
        case 2:
            return "/v1/classify", {"json": {"title": "shirt", "image": {"url": "http://127.0.0.1:9/a.png"}}}
        case 3:
            return "/v1/classify", {"content": chance.randbytes(200), "headers": {"Content-Type": "application/json"}}
        case _:
            return "/v1/classify", {"json": {**listing, "explain": chance.random() < 0.2}, "headers": headers}


class Soak:
    """The callers, the samples of memory, and what was answered."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url, self._end = url, time.monotonic() + seconds
        self._images = pictures()
        self.answers: Counter[int | str] = Counter()
        self.samples: list[tuple[float, float]] = []  # (monotonic seconds, MiB resident)

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            await asyncio.gather(self._watch(client), *(self._caller(client, seed) for seed in range(CALLERS)))

    async def _caller(self, client: httpx.AsyncClient, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        while time.monotonic() < self._end:
            path, request = call(chance, self._images)
            try:
                hurry = 0.005 if chance.random() < 0.02 else 30  # some hang up
                async with asyncio.timeout(hurry):
                    self.answers[(await client.post(path, **request)).status_code] += 1
            except TimeoutError:
                self.answers["hung up"] += 1
            except httpx.TransportError as error:
                self.answers[type(error).__name__] += 1

    async def _watch(self, client: httpx.AsyncClient) -> None:
        while time.monotonic() < self._end:
            for line in (await client.get("/metrics")).text.splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    self.samples.append((time.monotonic(), float(line.split()[1]) / 2**20))
            await asyncio.sleep(1)


def growth(samples: list[tuple[float, float]], *, warm_up: float) -> dict[str, float]:
    """Compare the first and last quarter of what was sampled after the warm-up, in MiB."""
    settled = [memory for at, memory in samples if at - samples[0][0] >= warm_up]
    quarter = max(1, len(settled) // 4)
    first, last = statistics.median(settled[:quarter]), statistics.median(settled[-quarter:])
    return {"first": first, "last": last, "growth": last - first, "peak": max(settled)}


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    seconds: Annotated[float, typer.Option(min=8, help="how long")] = 300,
    warm_up: Annotated[float, typer.Option(min=0, help="what is not counted")] = 60,
    assert_mib: Annotated[float | None, typer.Option(help="fail if memory grows by more")] = None,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print what was answered and what memory did; exit status 1 if memory grew or a request was lost."""
    with server(checkpoint) as url:
        soak = Soak(url, seconds)
        asyncio.run(soak.run())
        answered_after = _ready(url)
    memory = growth(soak.samples, warm_up=min(warm_up, seconds / 2))
    table = Table("answer", "requests")
    for answer, count in sorted(soak.answers.items(), key=str):
        table.add_row(str(answer), str(count))
    for name, value in memory.items():
        table.add_row(f"memory, {name}", f"{value:.1f} MiB")
    Console().print(table)
    if out is not None:
        figures = {"answers": {str(key): count for key, count in soak.answers.items()}, "memory_mib": memory}
        out.write_text(json.dumps(figures, indent=2) + "\n")
    lost = set(soak.answers) - ANSWERS - {"hung up"}
    if lost or not answered_after or (assert_mib is not None and memory["growth"] > assert_mib):
        print(f"failed: lost {lost or 'nothing'}, memory grew by {memory['growth']:.1f} MiB", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
