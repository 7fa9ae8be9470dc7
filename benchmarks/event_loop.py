"""How long hostile requests keep the event loop of a real server from other callers.

    python -m benchmarks.event_loop [--checkpoint weights/fashion] [--assert-free]

One kind of request after the other is sent, two at a time. The lag is what the server itself measures ten times a
second, `cma_clip_event_loop_lag_seconds`. With `--assert-free`, a lag of more than 100 ms fails the benchmark: run it
on a machine that does nothing else.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.server import Server, server

MEBI = 2**20
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
LIMIT_SECONDS = 0.1


@dataclass(frozen=True)
class Kind:
    """A kind of request: its body is made when it is sent, since all together would take gigabytes."""

    name: str
    body: Callable[[], bytes]
    path: str = "/v1/classify"
    chunk: int = 0
    """Bytes of each chunk, where the body is sent in chunks."""


def filled(before: bytes, unit: bytes, after: bytes = b"", nbytes: int = 31 * MEBI) -> Callable[[], bytes]:
    return lambda: before + unit * (nbytes // len(unit)) + after


def part(content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\n' + content


KINDS = (
    Kind("nothing", lambda: b'{"title": "shirt"}'),
    Kind("nested brackets", filled(b"", b"[" * 150 + b"]" * 150 + b",")),
    Kind("open brackets", filled(b"", b"[", nbytes=22 * MEBI)),
    Kind("open braces", filled(b"", b'{"a":', nbytes=22 * MEBI)),
    Kind("elements, just few enough", filled(b'{"listings":[', b"{},", b"{}]}", 250_000), "/v1/classify/batch"),
    Kind("elements", filled(b"[", b"{},", b"{}]")),
    Kind("short strings", filled(b"[", b'"",', b'""]')),
    Kind("long digits", filled(b"[", b"1" * 4000 + b",", b"1]")),
    Kind("one string", filled(b'{"title":"', b"a", b'"}')),
    Kind("one string and an emoji", filled(b'{"title":"', b"a", "😀".encode() + b'"}')),
    Kind("escapes, just few enough", filled(b'{"title":"', b"a" * 60 + b"\\/", b'"}')),
    Kind("escapes", filled(b'{"title":"', b"\\u0041", b'"}')),
    Kind("base64", filled(b'{"image":{"base64":"', b"AAAA", b'"}}', 13 * MEBI)),
    Kind("white space", filled(b"", b" ", b"1")),
    Kind("small chunks", filled(b'{"title":"', b"a", b'"}', MEBI), chunk=1),
    Kind("a form's file", lambda: part(b"a" * 31 * MEBI + b"\r\n--b--\r\n"), "/v1/classify/upload"),
    Kind("a form of line ends", lambda: part(b"\r\n" * (15 * MEBI) + b"\r\n--b--\r\n"), "/v1/classify/upload"),
    Kind("a form of near boundaries", lambda: part(b"\r\n--" * (7 * MEBI) + b"\r\n--b--\r\n"), "/v1/classify/upload"),
    Kind("a form of parts", lambda: part(b"\r\n") * 400_000 + b"--b--\r\n", "/v1/classify/upload"),
)


async def send(client: httpx.AsyncClient, kind: Kind) -> str:
    """Send one request; return its status, or `closed` if it was refused before it was sent."""
    body = kind.body()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), kind.chunk):
            yield body[at : at + kind.chunk]

    headers = FORM if kind.path.endswith("upload") else JSON
    try:
        answer = await client.post(kind.path, content=chunks() if kind.chunk else body, headers=headers)
    except httpx.TransportError:
        return "closed"
    return str(answer.status_code)


def looks(exposition: str) -> dict[float, int]:
    """Return from /metrics how often the loop was at most so many seconds late."""
    found = re.findall(r'^cma_clip_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', exposition, re.MULTILINE)
    return {float(seconds): int(float(count)) for seconds, count in found}


@dataclass(frozen=True)
class Seen:
    """What requests of one kind were answered, and how late the loop was meanwhile."""

    kind: str
    answers: str
    lags: dict[float, int]
    """How many of the looks found the loop at most so many seconds late."""
    waited: float
    """Seconds for which the server's threads waited for a core, all together."""

    @property
    def late(self) -> int:
        """How many looks found the loop later than the limit, by more than waiting for a core explains."""
        return self.lags[math.inf] - self.lags[min(at for at in self.lags if at >= LIMIT_SECONDS + self.waited)]

    @property
    def longest(self) -> float:
        """Seconds, rounded up to the histogram's next bound."""
        return min(seconds for seconds, count in self.lags.items() if count == self.lags[math.inf])


async def try_kind(server: Server, kind: Kind) -> Seen:
    """Send two requests of a kind at a time."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        before, waited = looks((await client.get("/metrics")).text), server.waited_seconds()
        answers = await asyncio.gather(*(send(client, kind) for _ in range(2)))
        await asyncio.sleep(0.3)
        after = looks((await client.get("/metrics")).text)
    lags = {seconds: count - before[seconds] for seconds, count in after.items()}
    return Seen(kind.name, " ".join(sorted(set(answers))), lags, server.waited_seconds() - waited)


def main(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint to serve")] = Path("weights/fashion"),
    assert_free: Annotated[bool, typer.Option("--assert-free", help="fail if the loop was late")] = False,
) -> None:
    """Send hostile requests to a server of its own and measure the lag of its event loop."""
    table = Table(
        "request", "answers", "looks", f"later than {1000 * LIMIT_SECONDS:.0f} ms", "longest, up to ms", "no core, ms"
    )
    with server(checkpoint, device="cpu", max_queue=64) as running:
        seen = [asyncio.run(try_kind(running, kind)) for kind in KINDS]
    for each in seen:
        milliseconds = (f"{1000 * seconds:.0f}" for seconds in (each.longest, each.waited))
        table.add_row(each.kind, each.answers, str(each.lags[math.inf]), str(each.late), *milliseconds)
    Console().print(table)
    if assert_free and any(each.late for each in seen):
        sys.exit("the event loop was late")


if __name__ == "__main__":
    typer.run(main)
