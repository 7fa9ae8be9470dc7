"""Minutes of mixed load on a real server: is its memory flat, and is every request answered?

    python -m benchmarks.soak [--checkpoint weights/fashion] [--seconds 300] [--warm-up 90] [--assert-flat]

The load is bounded: eight callers, one request after the other, to a server on a loopback port that this command
starts and stops. Besides listings of every kind it holds what hurts: large, damaged and hostile images, words never
seen before, bodies over the limit, callers that hang up, deadlines that cannot be met.

Memory is the server's resident set, from its /metrics, once a second. Requests in flight move it by tens of MiB; what
stays is its floor: the least within each half minute, in which the server gives back what it has freed at least once.
A straight line through the floors after the warm-up is the growth. The warm-up fills what is meant to fill up: kernels
compiled for each batch size (0.8 MiB each on a CPU), remembered words, the allocator's own reserves.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.server import is_ready, resident_mib, server

CALLERS = 8
WORDS = ("turtle", "check", "men", "navy", "blue", "shirt", "women", "red", "dress", "summer", "shoes", "watch")
ANSWERS = {200, 413, 415, 422, 424, 499, 503, 504}
"""Statuses that this load may cause; anything else is a bug."""

WINDOW_SECONDS = 30.0
MIB_PER_MINUTE = 4.0
"""What counts as flat: less than this, by the lower end of the slope's interval."""

Samples = list[tuple[float, float]]  # (seconds on time.monotonic's clock, MiB resident)


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
    words = chance.choices(WORDS, k=chance.randint(1, 20))
    listing: dict[str, Any] = {"title": f"{' '.join(words)} {chance.randbytes(6).hex()}"}
    if chance.random() < 0.7:
        listing["image"] = {"base64": chance.choice(images)}
    headers = {"X-Request-Timeout-Ms": chance.choice(("1", "5000", "9000", "9000", "9000"))}
    match chance.randrange(12):
        case 0:
            small = [{"title": f"shirt {n}", "image": {"base64": chance.choice(images[:5])}} for n in range(48)]
            listings = [listing, *small[: chance.randrange(48)]]
            return "/v1/classify/batch", {"json": {"listings": listings}, "headers": headers}
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
        self.samples: Samples = []

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
            self.samples.append((time.monotonic(), resident_mib((await client.get("/metrics")).text)))
            await asyncio.sleep(1)


def floors(samples: Samples, *, warm_up: float) -> Samples:
    """Return the least of each window after the warm-up; a window that was cut short is left out."""
    began = samples[0][0] + warm_up
    windows: dict[int, list[float]] = {}
    for at, memory in samples:
        if at >= began:
            windows.setdefault(int((at - began) / WINDOW_SECONDS), []).append(memory)
    whole = int((samples[-1][0] - began + 2) / WINDOW_SECONDS)  # samples are up to two seconds apart
    return [(WINDOW_SECONDS * n, min(memory)) for n, memory in windows.items() if n < whole]


def growth(samples: Samples, *, warm_up: float) -> dict[str, float]:
    """Return MiB per minute with a 95 % interval, and the floors of both halves and the peak in MiB."""
    at, memory = zip(*floors(samples, warm_up=warm_up), strict=True)
    line = stats.linregress(at, memory)
    margin = float(stats.t.ppf(0.975, len(at) - 2)) * line.stderr
    half = len(memory) // 2
    return {
        "mib_per_minute": 60 * line.slope,
        "low": 60 * (line.slope - margin),
        "high": 60 * (line.slope + margin),
        "first_half_mib": statistics.median(memory[:half]),
        "second_half_mib": statistics.median(memory[-half:]),
        "peak_mib": max(memory for _, memory in samples),
    }


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    seconds: Annotated[float, typer.Option(min=4 * WINDOW_SECONDS, help="how long, after the warm-up")] = 300,
    warm_up: Annotated[float, typer.Option(min=0, help="seconds that are not counted")] = 90,
    assert_flat: Annotated[bool, typer.Option(help="fail if memory grows")] = False,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print what was answered and what memory did; exit status 1 if a request was lost or memory grew."""
    with server(checkpoint) as url:
        soak = Soak(url, warm_up + seconds)
        asyncio.run(soak.run())
        answered_after = is_ready(url)
    memory = growth(soak.samples, warm_up=warm_up)
    table = Table("answer", "requests")
    for answer, count in sorted(soak.answers.items(), key=str):
        table.add_row(str(answer), str(count))
    for name, value in memory.items():
        table.add_row(name, f"{value:.1f}")
    Console().print(table)
    if out is not None:
        began = soak.samples[0][0]
        figures = {
            "seconds": {"warm_up": warm_up, "counted": seconds},
            "answers": {str(answer): count for answer, count in soak.answers.items()},
            "memory": {name: round(value, 2) for name, value in memory.items()},
            "samples": [(round(at - began, 1), round(mib, 1)) for at, mib in soak.samples],
        }
        out.write_text(json.dumps(figures) + "\n")
    lost = set(soak.answers) - ANSWERS - {"hung up"}
    if lost or not answered_after:
        sys.exit(f"failed: unforeseen answers {lost or 'none'}; afterwards ready: {answered_after}")
    if assert_flat and memory["low"] > MIB_PER_MINUTE:
        sys.exit(f"failed: memory grows by {memory['low']:.1f} MiB a minute or more")


if __name__ == "__main__":
    typer.run(main)
