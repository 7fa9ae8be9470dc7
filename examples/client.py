"""Sends a CSV of listings to a running service, and writes the labels that it accepts to another CSV.

    python examples/client.py listings.csv labels.csv --url http://localhost:8000
    python examples/client.py listings.csv labels.csv --sync          # threads in place of coroutines

listings.csv has the columns `id`, `title` and `image`: an http(s) URL, or a file's path relative to the CSV.
Title or image may be empty. labels.csv has a row for each listing, in the same order: `id`, a column per
attribute (empty where the service abstained), and `error` (empty where all went well).

Needs Python 3.11 and httpx, and nothing of this project: copy it, and take what you need. `classify` and
`classify_async` are for your own code; all but sending and waiting is shared between them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import csv
import email.utils
import os
import random
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import httpx

Row = dict[str, str]


class RequestFailedError(Exception):
    """A request that is not worth another try, with what the service said about it."""


# ── what to do about each outcome ───────────────────────────────────────────────────────────────────────────

Outcome = httpx.Response | httpx.TransportError

CONNECTION_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
"""No connection, or one that broke. To ask again is safe even if the service had begun: reading changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """When to ask again: after 503 and after connection errors, but never after a mistake of one's own (4xx)."""

    attempts: int = 6
    first_wait: float = 0.5
    """Seconds; doubled each time, and as long as the service's `Retry-After` at the least."""
    longest_wait: float = 60.0
    """Seconds; a service that asks for more patience is given up."""

    def wait_after(self, attempt: int, outcome: Outcome) -> float:
        """Return the seconds to wait after a try, the `attempt`-th, has failed.

        Raises `RequestFailedError` if it was the last.
        """
        asked = 0.0
        if isinstance(outcome, httpx.Response):
            if outcome.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                raise RequestFailedError(_said(outcome))
            asked = _retry_after(outcome)
        elif not isinstance(outcome, CONNECTION_ERRORS):
            raise RequestFailedError(_said(outcome))
        if attempt >= self.attempts or asked > self.longest_wait:
            raise RequestFailedError(f"given up after attempt {attempt}: {_said(outcome)}")
        doubled = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1))
        # At random, so that callers who were refused together do not come back together.
        return max(asked, doubled) * random.uniform(1.0, 1.25)  # noqa: S311 - no secret


def _retry_after(response: httpx.Response) -> float:
    """Return what `Retry-After` asks for in seconds, be it a number or a date; 0 without one."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _said(outcome: Outcome) -> str:
    if not isinstance(outcome, httpx.Response):
        return f"{type(outcome).__name__}: {outcome}"
    try:
        problem = outcome.json()
        return f"{problem['status']} {problem['code']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{outcome.status_code} {outcome.reason_phrase}"


# ── what is sent and what comes back ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is wanted of each listing, and how hard the service is pressed."""

    attributes: Sequence[str] | None = None
    """None: all that the service reads."""
    target_precision: float | None = None
    """None: the service's own."""
    batch_size: int = 16
    """Listings a request: the service takes so many (64), and so many bytes (32 MiB), at a time."""
    concurrency: int = 4
    """Requests that are under way at a time."""
    timeout_ms: int = 10_000
    """A request's deadline. The service refuses at once what it cannot answer in time."""
    retry: Retry = field(default_factory=Retry)


@dataclass(frozen=True)
class Listing:
    id: str
    title: str
    image: str
    """A URL, the path of a file, or nothing."""

    def payload(self) -> dict[str, Any]:
        """Return the listing as the API takes it. Raises `OSError` where its file cannot be read."""
        payload: dict[str, Any] = {"id": self.id}
        if self.title:
            payload["title"] = self.title
        if self.image.startswith(("http://", "https://")):
            payload["image"] = {"url": self.image}
        elif self.image:
            payload["image"] = {"base64": base64.b64encode(Path(self.image).read_bytes()).decode()}
        return payload


class Batch:
    """Listings that go in one request, and those that cannot be sent, with the reason."""

    def __init__(self, listings: Sequence[Listing]) -> None:
        self.listings = listings
        self.payloads: list[dict[str, Any]] = []
        self.unreadable: dict[int, str] = {}
        for position, listing in enumerate(listings):
            try:
                self.payloads.append(listing.payload())
            except OSError as error:
                self.unreadable[position] = f"cannot read {listing.image}: {error.strerror}"

    def request(self, client: httpx.Client | httpx.AsyncClient, options: Options) -> httpx.Request:
        """Return the request; its time limit is the deadline and a moment for the way there and back."""
        body: dict[str, Any] = {"listings": self.payloads}
        if options.attributes is not None:
            body["attributes"] = list(options.attributes)
        if options.target_precision is not None:
            body["target_precision"] = options.target_precision
        return client.build_request(
            "POST",
            "/v1/classify/batch",
            json=body,
            headers={"X-Request-Timeout-Ms": str(options.timeout_ms)},
            timeout=options.timeout_ms / 1000 + 5,
        )

    def rows(self, results: Iterable[dict[str, Any]]) -> list[Row]:
        """Return a row for each listing, in order: its accepted labels, or its error."""
        answers = iter(results)
        return [
            {"id": listing.id, "error": self.unreadable[position]}
            if position in self.unreadable
            else {"id": listing.id, **_columns(next(answers))}
            for position, listing in enumerate(self.listings)
        ]


def _columns(result: dict[str, Any]) -> Row:
    if problem := result.get("error"):
        return {"error": f"{problem['code']}: {problem['detail']}"}
    return {name: answer["label"] for name, answer in result["attributes"].items() if answer["accepted"]}


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────


def classify(client: httpx.Client, listings: Iterable[Listing], options: Options) -> Iterator[Row]:
    """Yield a row for each listing, in order, as the batches are answered. Raises `RequestFailedError`."""
    with ThreadPoolExecutor(options.concurrency) as pool:
        under_way: deque[Future[list[Row]]] = deque()
        for batch in _batches(listings, options.batch_size):
            under_way.append(pool.submit(_answer, client, batch, options))
            if len(under_way) == options.concurrency:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()


def _answer(client: httpx.Client, batch: Batch, options: Options) -> list[Row]:
    if not batch.payloads:
        return batch.rows([])
    return batch.rows(send(client, batch.request(client, options), options.retry)["results"])


def send(client: httpx.Client, request: httpx.Request, retry: Retry) -> Any:
    """Return the JSON of the answer. Raises `RequestFailedError`."""
    attempt = 0
    while True:
        attempt += 1
        outcome: Outcome
        try:
            outcome = client.send(request)
            if outcome.is_success:
                return outcome.json()
        except httpx.TransportError as error:
            outcome = error
        time.sleep(retry.wait_after(attempt, outcome))


async def classify_async(
    client: httpx.AsyncClient, listings: Iterable[Listing], options: Options
) -> AsyncGenerator[Row, None]:
    """Yield a row for each listing, in order, as the batches are answered. Raises `RequestFailedError`."""
    under_way: deque[asyncio.Task[list[Row]]] = deque()
    try:
        for batch in _batches(listings, options.batch_size):
            under_way.append(asyncio.create_task(_answer_async(client, batch, options)))
            if len(under_way) == options.concurrency:
                for row in await under_way.popleft():
                    yield row
        while under_way:
            for row in await under_way.popleft():
                yield row
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _answer_async(client: httpx.AsyncClient, batch: Batch, options: Options) -> list[Row]:
    if not batch.payloads:
        return batch.rows([])
    return batch.rows((await send_async(client, batch.request(client, options), options.retry))["results"])


async def send_async(client: httpx.AsyncClient, request: httpx.Request, retry: Retry) -> Any:
    """Return the JSON of the answer. Raises `RequestFailedError`."""
    attempt = 0
    while True:
        attempt += 1
        outcome: Outcome
        try:
            outcome = await client.send(request)
            if outcome.is_success:
                return outcome.json()
        except httpx.TransportError as error:
            outcome = error
        await asyncio.sleep(retry.wait_after(attempt, outcome))


def _batches(listings: Iterable[Listing], size: int) -> Iterator[Batch]:
    left = iter(listings)
    while batch := list(islice(left, size)):
        yield Batch(batch)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────


def read_listings(path: Path) -> Iterator[Listing]:
    """Yield the listings of a CSV with the columns `id`, `title` and `image`; title or image may be left out.

    Raises `OSError` or `ValueError` where there is no such CSV.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "id" not in (reader.fieldnames or ()):
            raise ValueError(f"{path} has no column called id")
        for row in reader:
            image = (row.get("image") or "").strip()
            if image and not image.startswith(("http://", "https://")):
                image = str(path.parent / image)
            yield Listing(row["id"], (row.get("title") or "").strip(), image)


class LabelWriter:
    """Writes rows to a CSV as they come, and counts them."""

    def __init__(self, file: TextIO, attributes: Iterable[str]) -> None:
        self.rows = self.labels = self.errors = 0
        self._writer = csv.DictWriter(file, ["id", *attributes, "error"], restval="")
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        self._writer.writerow(row)
        self.rows += 1
        self.errors += "error" in row
        self.labels += len(row.keys() - {"id", "error"})

    def __str__(self) -> str:
        return f"{self.rows:,} listings, {self.labels:,} labels accepted, {self.errors:,} errors"


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str] | None = None) -> int:
    """Label a CSV; exit status 1 if the service could not be brought to answer."""
    given = _parser().parse_args(arguments)
    options = Options(
        attributes=given.attribute,
        target_precision=given.target_precision,
        batch_size=given.batch_size,
        concurrency=given.concurrency,
        timeout_ms=given.timeout_ms,
    )
    headers = {"Authorization": f"Bearer {given.api_key}"} if given.api_key else {}
    connection: dict[str, Any] = {"base_url": given.url, "headers": headers}
    try:
        with httpx.Client(**connection) as client:
            attributes = options.attributes or _attributes(client, options.retry)
            with given.out.open("w", newline="", encoding="utf-8") as file:
                writer = LabelWriter(file, attributes)
                if given.sync:
                    for row in classify(client, read_listings(given.listings), options):
                        writer.write(row)
                else:
                    asyncio.run(_label_async(connection, given.listings, options, writer))
    except (RequestFailedError, OSError, ValueError, httpx.InvalidURL) as error:
        print(f"client: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {writer}", file=sys.stderr)
    return 0


async def _label_async(connection: dict[str, Any], path: Path, options: Options, writer: LabelWriter) -> None:
    async with httpx.AsyncClient(**connection) as client:
        rows = classify_async(client, read_listings(path), options)
        async with aclosing(rows):
            async for row in rows:
                writer.write(row)


def _attributes(client: httpx.Client, retry: Retry) -> list[str]:
    return list(send(client, client.build_request("GET", "/v1/attributes"), retry)["attributes"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("listings", type=Path, help="CSV with the columns id, title and image")
    parser.add_argument("out", type=Path, help="CSV to write the accepted labels to")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (%(default)s)")
    parser.add_argument("--attribute", action="append", help="only this one; may be repeated")
    parser.add_argument("--target-precision", type=float, help="such as 0.95; default: the service's own")
    parser.add_argument("--batch-size", type=int, default=Options.batch_size, help="listings a request (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=Options.concurrency, help="requests at a time (%(default)s)")
    parser.add_argument(
        "--timeout-ms", type=int, default=Options.timeout_ms, help="deadline of a request (%(default)s)"
    )
    parser.add_argument(
        "--api-key", default=os.environ.get("CMA_CLIP_API_KEY"), help="default: the variable CMA_CLIP_API_KEY"
    )
    parser.add_argument("--sync", action="store_true", help="threads in place of coroutines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
