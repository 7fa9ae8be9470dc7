"""Minutes of mixed load on a real server: is its memory constant, and is every request answered?

    python -m benchmarks.soak [--checkpoint weights/fashion] [--minutes 5] [--warm-up 2] [--assert-flat]

The load is bounded: eight callers, each sending one request after another, to a server on a loopback port that this
command starts and stops. Besides listings of every kind it includes difficult requests: large and damaged images, new
words, bodies over the limit, callers that hang up, deadlines that cannot be met, and all hostile images and bodies of
`benchmarks.hostile`.

Memory is that of the server and its decode workers together (proportional set size). Requests in flight change it by a
hundred MiB, so each minute ends with a rest, long enough for the server to return freed memory; the growth is the slope
of a straight line through the rests after the warm-up. The warm-up fills caches that are bounded: kernels compiled for
each batch size (0.8 MiB each on a CPU), the tokenizer's words (which are sent first), the allocator's reserves.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import random
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

from benchmarks.event_loop import KINDS, send
from benchmarks.hostile_images import HOSTILE
from benchmarks.server import MemoryWatch, Server, is_ready, server
from model.inputs.tokenizer import MAX_CACHED_WORDS
from service.memory import EVERY_SECONDS

CALLERS = 8
WORDS = ("turtle", "check", "men", "navy", "blue", "shirt", "women", "red", "dress", "summer", "shoes", "watch")
ANSWERS = {"200", "400", "408", "413", "415", "422", "424", "499", "503", "504", "closed"}
"""What this load may cause; anything else is a bug. `closed`: a hostile body was refused before all of it was sent."""

HOSTILE_IMAGES, HOSTILE_BODIES = 0.02, 0.002
"""Shares of the requests: few, since one of them costs as much as hundreds of others."""

WORDS_OF_A_TITLE, LISTINGS_OF_A_BATCH = 8, 64

REST_SECONDS = 2 * EVERY_SECONDS
LOAD_SECONDS = 60 - REST_SECONDS
MIB_PER_MINUTE = 4.0
"""Memory counts as constant if the lower end of the slope's 95 % interval is below this."""


def images() -> list[str]:
    """Return images in base64: small and large ones of every format, truncated ones, and other bytes."""
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


def hostile_images() -> list[str]:
    """Return the hostile images in base64."""
    return [base64.b64encode(make()).decode() for make in HOSTILE.values()]


def call(chance: random.Random, images: list[str], hostile: list[str]) -> tuple[str, dict[str, Any]]:
    """Choose a request: its path and httpx's arguments."""
    if chance.random() < HOSTILE_IMAGES:
        return "/v1/classify", {"json": {"title": "shirt", "image": {"base64": chance.choice(hostile)}}}
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
    """The callers, the answers that they got, and the server's memory after each minute."""

    def __init__(self, server: Server, client: httpx.AsyncClient) -> None:
        self._server, self._client = server, client
        self._images, self._hostile = images(), hostile_images()
        self._chances = [random.Random(seed) for seed in range(CALLERS)]  # noqa: S311
        self.answers: Counter[str] = Counter()
        self.loaded: list[float] = []  # MiB at the peak of each load, and at the end of the rest after it
        self.rested: list[float] = []

    async def minute(self) -> None:
        """Load the server, then let it rest."""
        end = time.monotonic() + LOAD_SECONDS
        with MemoryWatch(self._server) as watch:
            await asyncio.gather(*(self._caller(chance, end) for chance in self._chances))
        self.loaded.append(watch.peak_mib)
        await asyncio.sleep(REST_SECONDS)
        self.rested.append(self._server.pss_mib())

    async def _caller(self, chance: random.Random, end: float) -> None:
        while time.monotonic() < end:
            if chance.random() < HOSTILE_BODIES:
                self.answers[await send(self._client, chance.choice(KINDS))] += 1
                continue
            path, request = call(chance, self._images, self._hostile)
            try:
                hurry = 0.005 if chance.random() < 0.02 else 30  # some hang up
                async with asyncio.timeout(hurry):
                    self.answers[str((await self._client.post(path, **request)).status_code)] += 1
            except TimeoutError:
                self.answers["hung up"] += 1
            except httpx.TransportError as error:
                self.answers[type(error).__name__] += 1


async def send_new_words(client: httpx.AsyncClient) -> None:
    """Send as many words as the tokenizer remembers; more than a few of a title are not looked at."""
    words = (f"{number:x}" for number in range(MAX_CACHED_WORDS))
    titles = iter(lambda: " ".join(itertools.islice(words, WORDS_OF_A_TITLE)), "")
    while listings := [{"title": title} for title in itertools.islice(titles, LISTINGS_OF_A_BATCH)]:
        (await client.post("/v1/classify/batch", json={"listings": listings})).raise_for_status()


async def soak(server: Server, minutes: int) -> Soak:
    """Load the server for `minutes` minutes."""
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        await send_new_words(client)
        found = Soak(server, client)
        for _ in range(minutes):
            await found.minute()
    return found


def growth(memory: list[float]) -> dict[str, float]:
    """Return the slope of `memory`, MiB at the end of each minute, with its 95 % interval."""
    line = stats.linregress(range(len(memory)), memory)
    margin = float(stats.t.ppf(0.975, len(memory) - 2)) * line.stderr
    return {"mib_per_minute": line.slope, "low": line.slope - margin, "high": line.slope + margin}


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    minutes: Annotated[int, typer.Option(min=4, help="duration after the warm-up")] = 5,
    warm_up: Annotated[int, typer.Option(min=0, help="minutes that are not counted")] = 2,
    assert_flat: Annotated[bool, typer.Option(help="fail if memory grows")] = False,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print the answers and the memory; exit status 1 if a request was lost or memory grew."""
    with server(checkpoint) as running:
        found = asyncio.run(soak(running, warm_up + minutes))
        answered_after = is_ready(running.url)
    grown = growth(found.rested[warm_up:])
    table = Table("minute", "MiB under load", "MiB at rest")
    for minute, (loaded, rested) in enumerate(zip(found.loaded, found.rested, strict=True), 1):
        table.add_row(f"{minute}{' (warm-up)' if minute <= warm_up else ''}", f"{loaded:.0f}", f"{rested:.1f}")
    Console().print(table)
    answers = dict(sorted(found.answers.items()))
    print("answers:", *(f"{answer}: {count}" for answer, count in answers.items()), sep="  ")
    print("at rest, {mib_per_minute:+.2f} MiB per minute, 95 % interval {low:+.2f} to {high:+.2f}".format(**grown))
    if out is not None:
        figures = {"warm_up_minutes": warm_up, "loaded_mib": found.loaded, "rested_mib": found.rested}
        out.write_text(json.dumps({"answers": answers, "growth": grown, **figures}, indent=1) + "\n")
    lost = set(found.answers) - ANSWERS - {"hung up"}
    if lost or not answered_after:
        sys.exit(f"failed: unexpected answers {lost or 'none'}; afterwards ready: {answered_after}")
    if assert_flat and grown["low"] > MIB_PER_MINUTE:
        sys.exit(f"failed: memory grows by {grown['low']:.1f} MiB per minute or more")


if __name__ == "__main__":
    typer.run(main)
