"""`cma-clip bench`: a bounded load on a running service, and how it answered."""

from __future__ import annotations

import asyncio
import base64
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from model.errors import ConfigError, ModelError
from service.pipeline.admission import TIMEOUT_HEADER

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent: `concurrency` callers, each one request after the other, until `requests` have been sent.

    With a `rate`, in requests per second, each request has a scheduled time, whether or not earlier ones have been
    answered, and its latency counts from then: a service that falls behind is measured as such.
    """

    url: str
    requests: int
    concurrency: int
    rate: float | None = None
    listings: int
    image: Path | None
    title: str | None
    api_key: str | None
    timeout_ms: int | None

    @property
    def path(self) -> str:
        return "/v1/classify" if self.listings == 1 else "/v1/classify/batch"

    @property
    def body(self) -> dict[str, Any]:
        """Raises `ConfigError` if the image cannot be read."""
        listing: dict[str, Any] = {"title": self.title} if self.title is not None else {}
        if self.image is not None:
            try:
                listing["image"] = {"base64": base64.b64encode(self.image.read_bytes()).decode()}
            except OSError as error:
                raise ConfigError(f"cannot read {self.image}: {error.strerror}") from None
        return listing if self.listings == 1 else {"listings": [listing] * self.listings}

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["X-API-Key"] = self.api_key
        if self.timeout_ms is not None:
            headers[TIMEOUT_HEADER] = str(self.timeout_ms)
        return headers


@dataclass
class Figures:
    """The outcome: statuses (or the names of transport errors), and the seconds of each request answered with 200."""

    listings_per_request: int
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        answered = self.statuses["200"]
        return {
            "requests": self.statuses.total(),
            "statuses": dict(sorted(self.statuses.items())),
            "seconds": round(self.seconds, 3),
            "requests_per_second": round(self.statuses.total() / self.seconds, 1),
            "listings_per_second": round(answered * self.listings_per_request / self.seconds, 1),
            "latency_ms": self._latencies(),
        }

    def _latencies(self) -> dict[str, float]:
        if len(self.latencies) < 2:
            return {}
        cuts = statistics.quantiles(self.latencies, n=100, method="inclusive")
        named = {"mean": statistics.fmean(self.latencies), **{f"p{p}": cuts[p - 1] for p in PERCENTILES}}
        return {name: round(1000 * value, 2) for name, value in {**named, "max": max(self.latencies)}.items()}


def run(load: Load) -> Figures:
    """Send the load. Raises `ModelError` if nobody answers at the address."""
    figures = Figures(load.listings)
    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("requests", total=load.requests)
        asyncio.run(_run(load, figures, lambda: progress.advance(bar)))
    return figures


async def _run(load: Load, figures: Figures, advance: Any) -> None:
    limits = httpx.Limits(max_connections=load.concurrency, max_keepalive_connections=load.concurrency)
    # Encoded once: what is measured is the service, not this client's JSON.
    content = httpx.Request("POST", load.url, json=load.body).content
    async with httpx.AsyncClient(base_url=load.url, limits=limits, timeout=60, headers=load.headers) as client:
        try:
            await client.get("/healthz")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ModelError(f"nobody answers at {load.url}: {error}") from None
        left = iter(range(load.requests))
        began = time.perf_counter()

        async def caller() -> None:
            for number in left:
                due = time.perf_counter()
                if load.rate is not None:
                    due = began + number / load.rate
                    await asyncio.sleep(due - time.perf_counter())
                try:
                    status = str((await client.post(load.path, content=content)).status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                figures.statuses[status] += 1
                if status == "200":
                    figures.latencies.append(time.perf_counter() - due)
                advance()

        await asyncio.gather(*(caller() for _ in range(load.concurrency)))
        figures.seconds = time.perf_counter() - began


def draw(figures: Figures) -> None:
    """Print the figures as a table."""
    summary = figures.summary()
    table = Table(show_header=False)
    table.add_row("requests", f"{summary['requests']} in {summary['seconds']} s")
    for status, count in summary["statuses"].items():
        table.add_row(f"  answered {status}", str(count))
    table.add_row("requests per second", str(summary["requests_per_second"]))
    table.add_row("listings per second", str(summary["listings_per_second"]))
    for name, value in summary["latency_ms"].items():
        table.add_row(f"  latency {name}", f"{value} ms")
    Console().print(table)
