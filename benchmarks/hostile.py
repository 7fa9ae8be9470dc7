"""All hostile inputs, once, against a real server whose address space is bounded: is each answered, and at what cost?

    python -m benchmarks.hostile [--checkpoint weights/fashion] [--headroom 768] [--out benchmarks/results/hostile.json]

Each hostile image is sent alone and eight times in a batch, each hostile body (`benchmarks.event_loop`) twice at a
time. Once the server is ready, its own process may take `--headroom` MiB of address space more (RLIMIT_AS); the decode
workers have limits of their own. Every request must be answered, with 200 or a refusal that names its own fault, an
honest listing in the same batch with 200, and an honest request after it with 200 within a minute. The memory is that
of all processes of the server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.event_loop import KINDS, send
from benchmarks.hostile_images import HOSTILE, encoded
from benchmarks.server import MemoryWatch, Server, server

EXPECTED = {"200", "400", "408", "413", "415", "422", "closed"}
"""No 503 and no 504: a file at fault is called so before it could make the service busy or late. `closed`: refused by
its head alone, and the connection closed before all of the body was sent."""

RECOVERY_SECONDS = 60

IDLE = "nothing"
BATCH = 8
MEBI = 2**20


@dataclass(frozen=True)
class Seen:
    """What came of one kind of input."""

    name: str
    answers: list[str]
    seconds: float
    peak_mib: float


async def send_image(client: httpx.AsyncClient, data: bytes) -> str:
    """Send an image by itself; return the status, and the code where there is one."""
    return answer(await client.post("/v1/classify", json={"image": in_base64(data)}))


async def send_batch(client: httpx.AsyncClient, data: bytes) -> list[str]:
    """Send an image eight times in one request, with an honest one in the middle, which must be answered."""
    listings: list[dict[str, Any]] = [{"image": in_base64(data)} for _ in range(BATCH)]
    listings.insert(BATCH // 2, HONEST)
    reply = await client.post("/v1/classify/batch", json={"listings": listings})
    if reply.status_code != 200:
        return [answer(reply)]
    results = reply.json()["results"]
    statuses = [str(result["error"]["status"]) if "error" in result else "200" for result in results]
    neighbour = statuses.pop(BATCH // 2)
    return statuses if neighbour == "200" else [*statuses, f"its neighbour: {neighbour}"]


def in_base64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def answer(reply: httpx.Response) -> str:
    return str(reply.status_code)


HONEST = {"title": "shirt", "image": in_base64(encoded(Image.new("RGB", (60, 80), "navy"), "JPEG"))}


async def watched(running: Server, name: str, attack: Callable[[httpx.AsyncClient], Awaitable[list[str]]]) -> Seen:
    """Make an attack, and an honest request after it; return what was answered."""
    async with httpx.AsyncClient(base_url=running.url, timeout=120) as client:
        began = time.monotonic()
        with MemoryWatch(running) as watch:
            answers = await attack(client)
        seconds = time.monotonic() - began
        while (after := answer(await client.post("/v1/classify", json=HONEST))) in ("503", "504"):
            if time.monotonic() - began - seconds > RECOVERY_SECONDS:
                break
            await asyncio.sleep(1)
    if after != "200":
        answers.append(f"afterwards: {after}")
    return Seen(name, answers, seconds, watch.peak_mib)


async def attack_all(running: Server) -> list[Seen]:
    """Try every input in turn."""
    seen = [await watched(running, IDLE, _nothing)]
    for name, make in HOSTILE.items():
        data = make()

        async def alone(client: httpx.AsyncClient, data: bytes = data) -> list[str]:
            return [await send_image(client, data)]

        async def together(client: httpx.AsyncClient, data: bytes = data) -> list[str]:
            return await send_batch(client, data)

        seen += [await watched(running, name, alone), await watched(running, f"{name}, × {BATCH}", together)]
    for kind in KINDS:

        async def twice(client: httpx.AsyncClient, kind: Any = kind) -> list[str]:
            return list(await asyncio.gather(send(client, kind), send(client, kind)))

        seen.append(await watched(running, f"body: {kind.name}", twice))
    return seen


async def _nothing(client: httpx.AsyncClient) -> list[str]:
    return []


def bound_address_space(pid: int, headroom_mib: int) -> None:
    """Let the process take `headroom_mib` MiB of address space more than it has, and no more."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + headroom_mib * MEBI
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, hard))


def main(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint to serve")] = Path("weights/fashion"),
    headroom: Annotated[int, typer.Option(min=1, help="MiB that the server may take once it is ready")] = 768,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print the answers, the time and the memory; exit status 1 if one was not answered as it should be."""
    with server(checkpoint, device="cpu", max_queue=64, request_timeout_ms=60_000) as running:
        bound_address_space(running.pid, headroom)
        seen = asyncio.run(attack_all(running))
    table = Table("input", "answers", "s", "MiB, all processes")
    for each in seen:
        table.add_row(each.name, " ".join(sorted(set(each.answers))), f"{each.seconds:.1f}", f"{each.peak_mib:.0f}")
    Console(width=120).print(table)
    if out is not None:
        version = json.loads((checkpoint / "metrics.json").read_text())["version"]
        found = {"model": version, "images_at_a_time": BATCH, "peak_mib": {each.name: each.peak_mib for each in seen}}
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wrong = [each.name for each in seen if not set(each.answers) <= EXPECTED]
    if wrong:
        sys.exit(f"failed: {', '.join(wrong)}")


if __name__ == "__main__":
    typer.run(main)
