"""`cma-clip bench`: a bounded load on a running service, and how it answered."""

from __future__ import annotations

import base64
import json
import math
import statistics
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from model.errors import ConfigError, ModelError
from service.commands.load import (
    Address,
    Measured,
    Outcome,
    Requests,
    closed_loop,
    in_words,
    independent_arrivals,
    open_loop,
    post_once,
)
from service.pipeline.admission import TIMEOUT_HEADER

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".bmp"}

MAX_FILES = 1000
"""Images of a folder that are sent, the first by name: all are held in memory."""

PERCENTILES = (50, 90, 95, 99, 99.9)

OVERLOADED = {"overloaded", "rate_limited", "deadline_exceeded"}
"""Problems that a first request may meet because of the load of others: no mistake of this command's user."""

BARS = " ▁▂▃▄▅▆▇█"
ROWS = 12
LATE_SHARE = 0.1


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Listing:
    title: str | None
    image: bytes | None

    def as_json(self) -> dict[str, Any]:
        title = {} if self.title is None else {"title": self.title}
        image = {} if self.image is None else {"image": {"base64": base64.b64encode(self.image).decode()}}
        return {**title, **image}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """A route, and the bodies that it is sent in turn."""

    path: str
    content_type: str
    bodies: Sequence[bytes]
    listings: int
    """How many are in each."""

    @classmethod
    def single(cls, listings: Sequence[Listing]) -> Self:
        bodies = [json.dumps(listing.as_json()).encode() for listing in listings]
        return cls(path="/v1/classify", content_type="application/json", bodies=bodies, listings=1)

    @classmethod
    def batches(cls, listings: Sequence[Listing], size: int) -> Self:
        """`size` listings in each body; all listings take part."""
        ready = [listing.as_json() for listing in listings]
        bodies = [
            json.dumps({"listings": [ready[(start + at) % len(ready)] for at in range(size)]}).encode()
            for start in range(0, len(ready), size)
        ]
        return cls(path="/v1/classify/batch", content_type="application/json", bodies=bodies, listings=size)

    @classmethod
    def forms(cls, listings: Sequence[Listing]) -> Self:
        """One listing in each body, as a multipart form."""
        boundary = uuid.uuid4().hex
        return cls(
            path="/v1/classify/upload",
            content_type=f"multipart/form-data; boundary={boundary}",
            bodies=[_form(listing, boundary) for listing in listings],
            listings=1,
        )


def _form(listing: Listing, boundary: str) -> bytes:
    parts = []
    if listing.title is not None:
        parts.append(b'name="title"\r\n\r\n' + listing.title.encode())
    if listing.image is not None:
        head = b'name="image"; filename="image"\r\nContent-Type: application/octet-stream\r\n\r\n'
        parts.append(head + listing.image)
    between = f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
    return b"".join(between + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()


def read_listings(image: Path | None, titles: Sequence[str]) -> list[Listing]:
    """Pair the images (one file, or all of a folder) with the titles, each in turn as often as needed.

    Raises `ConfigError` if there is neither, or a file cannot be read.
    """
    if image is None and not titles:
        raise ConfigError("give an --image (a file or a folder), a --title, or both")
    images: list[bytes | None] = [None] if image is None else [_read(file) for file in _image_files(image)]
    texts: Sequence[str | None] = titles or [None]
    count = max(len(images), len(texts))
    return [Listing(texts[at % len(texts)], images[at % len(images)]) for at in range(count)]


def read_titles(file: Path) -> list[str]:
    """Read titles, one a line. Raises `ConfigError`."""
    try:
        text = _read(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not a text file in UTF-8, with a title on each line") from None
    titles = [line.strip() for line in text.splitlines() if line.strip()]
    if not titles:
        raise ConfigError(f"{file} holds no title")
    return titles


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ConfigError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files[:MAX_FILES]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None


# ── the load ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent, where, and how fast: by `callers`, each one request after the other, or `rate` a second."""

    url: str
    bodies: Bodies
    callers: int = 1
    rate: float | None = None
    seconds: float
    limit: int | None = None
    """The most requests that callers send."""
    api_key: str | None = None
    timeout_ms: int | None = None
    """The deadline that each request names."""

    def requests(self) -> Requests:
        """Raises `ConfigError` for an address or a key that cannot be used."""
        headers = {"Content-Type": self.bodies.content_type}
        if self.api_key is not None:
            headers["X-API-Key"] = self.api_key
        if self.timeout_ms is not None:
            headers[TIMEOUT_HEADER] = str(self.timeout_ms)
        return Requests(Address.of(self.url), self.bodies.path, self.bodies.bodies, headers)


def run(load: Load) -> Figures:
    """Send the load. Raises `ModelError` if the service cannot be reached, or refuses what is sent."""
    requests = load.requests()
    check(load, requests)
    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("requests", total=1.0)
        return Figures(load, measure(load, requests, lambda share: bar.update(task, completed=share)))


def measure(load: Load, requests: Requests, progress: Callable[[float], None] = lambda share: None) -> Measured:
    """Send the load, in an open loop if it has a rate, else in a closed one."""
    if load.rate is None:
        return closed_loop(requests, callers=load.callers, seconds=load.seconds, limit=load.limit, progress=progress)
    return open_loop(requests, arrivals=independent_arrivals(load.rate, load.seconds), progress=progress)


def check(load: Load, requests: Requests) -> None:
    """Send one request, and raise `ModelError` if it shows that no other will be answered."""
    try:
        status, body = post_once(requests, timeout=60.0)
    except OSError as error:
        raise ModelError(f"nobody answers at {load.url}: {in_words(error)}") from None
    problem = _problem(body)
    if status == 200 or problem.get("code") in OVERLOADED:
        return
    said = problem.get("detail") or "that is not this service"
    if status == 401:
        said += " (--api-key)"
    raise ModelError(f"{load.url} answers {status} to {load.bodies.path}: {said}")


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


# ── the figures ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Figures:
    """How a load was answered."""

    load: Load
    measured: Measured

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.measured.outcomes if outcome.status == "200"]

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints: seconds where nothing else is said, latencies in milliseconds."""
        outcomes, seconds, answered = self.measured.outcomes, self.measured.seconds, self.answered
        statuses = Counter(outcome.status for outcome in outcomes)
        return {
            "path": self.load.bodies.path,
            "listings_per_request": self.load.bodies.listings,
            "callers": self.load.callers if self.load.rate is None else None,
            "rate": self.load.rate,
            "requests": len(outcomes),
            "statuses": dict(sorted(statuses.items())),
            "shares": {status: round(count / len(outcomes), 4) for status, count in sorted(statuses.items())},
            "seconds": round(seconds, 3),
            "requests_per_second": round(len(outcomes) / seconds, 1),
            "listings_per_second": round(len(answered) * self.load.bodies.listings / seconds, 1),
            "latency_ms": latencies([outcome.ended - outcome.due for outcome in answered]),
            "sent_late_ms": latencies([outcome.sent - outcome.due for outcome in outcomes]),
            "by_second": self.by_second(),
        }

    def by_second(self) -> list[dict[str, Any]]:
        """Return what was answered with 200 in each second of the load."""
        found: list[list[float]] = [[] for _ in range(math.floor(self.measured.seconds) + 1)]
        for outcome in self.answered:
            found[min(int(outcome.ended), len(found) - 1)].append(outcome.ended - outcome.due)
        return [
            {"answered": len(each), "p50_ms": round(1000 * statistics.median(each), 2) if each else None}
            for each in found
        ]

    @property
    def late(self) -> bool:
        """Whether requests were sent so late that the latencies say something of this client, too."""
        answered = self.answered
        if self.load.rate is None or not answered:
            return False
        late, latency = (
            statistics.median(times)
            for times in ([each.sent - each.due for each in answered], [each.ended - each.due for each in answered])
        )
        return late > LATE_SHARE * latency


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """Return mean, percentiles and maximum in milliseconds; empty where there is no value."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    named = {"mean": statistics.fmean(ordered), **{f"p{share:g}": percentile(ordered, share) for share in PERCENTILES}}
    return {name: round(1000 * value, 2) for name, value in {**named, "max": ordered[-1]}.items()}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of the ordered values that at least `share` per cent of them don't exceed."""
    # Divided by 100 before, 99.9 % of 1,000 values would be more than 999.
    return ordered[max(0, math.ceil(share * len(ordered) / 100) - 1)]


# ── on the terminal ─────────────────────────────────────────────────────────────────────────────────────────


def draw(figures: Figures) -> None:
    """Print the figures, the distribution of latencies, and the course of the load."""
    screen, summary = Console(), figures.summary()
    table = Table(show_header=False)
    table.add_row("requests", f"{summary['requests']} in {summary['seconds']} s")
    for status, count in summary["statuses"].items():
        table.add_row(f"  answered {status}" if status.isdigit() else f"  {status}", _of(count, summary["requests"]))
    table.add_row("requests per second", str(summary["requests_per_second"]))
    table.add_row("listings per second", str(summary["listings_per_second"]))
    for name, value in summary["latency_ms"].items():
        table.add_row(f"  latency {name}", f"{value} ms")
    screen.print(table)
    times = [outcome.ended - outcome.due for outcome in figures.answered]
    if times:
        screen.print(histogram(times, width=max(10, min(60, screen.width - 30))))
        seconds = summary["by_second"]
        screen.print(f"answers in each second  {sparkline([each['answered'] for each in seconds])}")
        screen.print(f"their median latency    {sparkline([each['p50_ms'] or 0 for each in seconds])}")
    if figures.late:
        screen.print("This machine could not send the requests on time; its own delay is part of the latencies.")


def _of(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.1f} %)"


def histogram(seconds: Sequence[float], *, width: int) -> str:
    """Return a line for each of `ROWS` ranges of latency, whose bounds grow by the same factor."""
    low, high = min(seconds), max(seconds)
    factor = max((high / low) ** (1 / ROWS), 1.0001) if low > 0 else 2.0
    bounds = [low * factor**row for row in range(1, ROWS)] + [high]
    counts = [0] * ROWS
    for value in seconds:
        counts[next(row for row, bound in enumerate(bounds) if value <= bound or row == ROWS - 1)] += 1
    most = max(counts)
    lines = ["latency"]
    for bound, count in zip(bounds, counts, strict=True):
        filled, rest = divmod(round(8 * width * count / most), 8)
        bar = "█" * filled + " ▏▎▍▌▋▊▉"[rest].strip()
        lines.append(f"≤ {1000 * bound:>8.1f} ms  {bar} {count}".rstrip())
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """Return one character for each value, as high as its share of the largest, which is named at the end."""
    most = max(values)
    line = "".join(BARS[math.ceil(8 * value / most) if most else 0] for value in values)
    return f"{line}  (at most {most:g})"
