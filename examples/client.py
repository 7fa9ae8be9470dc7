"""Sends a CSV of listings to a running service and writes the accepted labels to another CSV.

    python examples/client.py listings.csv labels.csv --url http://localhost:8000
    python examples/client.py listings.csv labels.csv --sync          # threads instead of coroutines

listings.csv has the columns `id`, `title` and `image`; an image is an http(s) URL, or a file path relative to the CSV.
Either the title or the image may be empty. labels.csv has one row per listing, in the same order: `id`; per attribute
the label if it is accepted, and `{attribute}_abstention`, the reason if it is not; `familiarity` (how typical the
listing is of those that the service was calibrated on, from 0 to 1; empty if the service cannot tell); and `error`
(empty if there was none). In both files, a cell that a spreadsheet would run as a formula has an apostrophe before it.

This file needs Python 3.11 and httpx, and nothing else from this project, so you can copy and adapt it. Call `classify`
or `classify_async` from your own code; they differ only in how they send and wait.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import csv
import email.utils
import os
import random
import re
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
    """A request failed and must not be retried; the message says what the service answered."""


# ── retries ─────────────────────────────────────────────────────────────────────────────────────────────────

Outcome = httpx.Response | httpx.TransportError

CONNECTION_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
"""No connection, or a broken one. A retry is safe even if the service had started: classifying changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """When to retry: after 503 and connection errors, but never after an error of the caller (4xx)."""

    attempts: int = 6
    first_wait: float = 0.5
    """Seconds; doubled for each attempt, and never less than the service's `Retry-After`."""
    longest_wait: float = 60.0
    """Seconds; the request fails if the service asks for a longer wait."""

    def wait_after(self, attempt: int, outcome: Outcome) -> float:
        """Return the seconds to wait before the next attempt; `attempt` is the number of the one that failed, from 1.

        Raises `RequestFailedError` if the request must not be retried.
        """
        asked = 0.0
        if isinstance(outcome, httpx.Response):
            if outcome.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                raise RequestFailedError(_description(outcome))
            asked = _retry_after(outcome)
        elif not isinstance(outcome, CONNECTION_ERRORS):
            raise RequestFailedError(_description(outcome))
        if attempt >= self.attempts or asked > self.longest_wait:
            raise RequestFailedError(f"gave up after attempt {attempt}: {_description(outcome)}")
        doubled = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1))
        # Random, so that callers who were refused at the same time don't all retry at the same time.
        return max(asked, doubled) * random.uniform(1.0, 1.25)  # noqa: S311 - not for cryptography


def _retry_after(response: httpx.Response) -> float:
    """Return the value of `Retry-After` in seconds, from a number or a date; 0 if there is none."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _description(outcome: Outcome) -> str:
    if not isinstance(outcome, httpx.Response):
        return f"{type(outcome).__name__}: {outcome}"
    try:
        problem = outcome.json()
        return f"{problem['status']} {problem['code']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{outcome.status_code} {outcome.reason_phrase}"


# ── requests and responses ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to ask for each listing, and how much load to put on the service."""

    attributes: Sequence[str] | None = None
    """None: all attributes."""
    target_precision: float | None = None
    """None: the service's default."""
    batch_size: int = 16
    """Listings per request; the service accepts at most 64, and at most 32 MiB, by default."""
    concurrency: int = 4
    """Requests in progress at the same time."""
    timeout_ms: int = 10_000
    """The deadline of a request. The service refuses at once what it cannot answer in time."""
    retry: Retry = field(default_factory=Retry)


@dataclass(frozen=True)
class Listing:
    id: str
    title: str
    image: str
    """A URL, a file path, or an empty string."""

    def payload(self) -> dict[str, Any]:
        """Return the listing as the API expects it. Raises `OSError` if its image file cannot be read."""
        payload: dict[str, Any] = {"id": self.id}
        if self.title:
            payload["title"] = self.title
        if self.image.startswith(("http://", "https://")):
            payload["image"] = {"url": self.image}
        elif self.image:
            payload["image"] = {"base64": base64.b64encode(Path(self.image).read_bytes()).decode()}
        return payload


class Batch:
    """The listings of one request; `unreadable` maps the positions of those that cannot be sent to the reason."""

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
        """Return the request; its timeout is the deadline plus 5 s for the network."""
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
        """Return one row per listing, in order: accepted labels and reasons why others are not, or an error."""
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
    columns: Row = {}
    for name, answer in result["attributes"].items():
        if answer["accepted"]:
            columns[name] = answer["label"]
        else:
            columns[f"{name}_abstention"] = answer["abstention"]
    if (familiarity := result["scope"]["familiarity"]) is not None:
        columns["familiarity"] = f"{familiarity:.6g}"
    return columns


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────


def classify(client: httpx.Client, listings: Iterable[Listing], options: Options) -> Iterator[Row]:
    """Yield one row per listing, in order, as batches are completed. Raises `RequestFailedError`."""
    with ThreadPoolExecutor(options.concurrency) as pool:
        pending: deque[Future[list[Row]]] = deque()
        for batch in _batches(listings, options.batch_size):
            pending.append(pool.submit(_answer, client, batch, options))
            if len(pending) == options.concurrency:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _answer(client: httpx.Client, batch: Batch, options: Options) -> list[Row]:
    if not batch.payloads:
        return batch.rows([])
    return batch.rows(send(client, batch.request(client, options), options.retry)["results"])


def send(client: httpx.Client, request: httpx.Request, retry: Retry) -> Any:
    """Return the JSON of the response, after retries. Raises `RequestFailedError`."""
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
    """Yield one row per listing, in order, as batches are completed. Raises `RequestFailedError`."""
    pending: deque[asyncio.Task[list[Row]]] = deque()
    try:
        for batch in _batches(listings, options.batch_size):
            pending.append(asyncio.create_task(_answer_async(client, batch, options)))
            if len(pending) == options.concurrency:
                for row in await pending.popleft():
                    yield row
        while pending:
            for row in await pending.popleft():
                yield row
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _answer_async(client: httpx.AsyncClient, batch: Batch, options: Options) -> list[Row]:
    if not batch.payloads:
        return batch.rows([])
    return batch.rows((await send_async(client, batch.request(client, options), options.retry))["results"])


async def send_async(client: httpx.AsyncClient, request: httpx.Request, retry: Retry) -> Any:
    """Return the JSON of the response, after retries. Raises `RequestFailedError`."""
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
    remaining = iter(listings)
    while batch := list(islice(remaining, size)):
        yield Batch(batch)


# ── cells ───────────────────────────────────────────────────────────────────────────────────────────────────

FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def to_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet runs as a formula: with an apostrophe before it where it would."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """Return the text that a cell stands for."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────


def read_listings(path: Path) -> Iterator[Listing]:
    """Yield the listings of a CSV with the columns `id`, `title` and `image`; one of the last two may be missing.

    Raises `OSError` if the file cannot be read, `ValueError` if it has no column `id`.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "id" not in (reader.fieldnames or ()):
            raise ValueError(f"{path} has no column named id")
        for row in reader:
            image, title = (from_cell((row.get(column) or "").strip()) for column in ("image", "title"))
            if image and not image.startswith(("http://", "https://")):
                image = str(path.parent / image)
            yield Listing(from_cell(row["id"]), title, image)


class LabelWriter:
    """Writes rows to a CSV one by one, and counts them."""

    def __init__(self, file: TextIO, attributes: Sequence[str]) -> None:
        self.rows = self.labels = self.errors = 0
        self._attributes = attributes
        columns = [
            "id",
            *(f"{name}{suffix}" for name in attributes for suffix in ("", "_abstention")),
            "familiarity",
            "error",
        ]
        self._writer = csv.DictWriter(file, columns, restval="")
        self._writer.writerow({name: to_cell(name) for name in columns})

    def write(self, row: Row) -> None:
        self._writer.writerow({name: to_cell(text) for name, text in row.items()})
        self.rows += 1
        self.errors += "error" in row
        self.labels += sum(name in row for name in self._attributes)

    def __str__(self) -> str:
        return f"{self.rows:,} listings, {self.labels:,} labels accepted, {self.errors:,} errors"


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str] | None = None) -> int:
    """Label a CSV; returns exit status 1 if a request or a file failed."""
    parsed = _parser().parse_args(arguments)
    options = Options(
        attributes=parsed.attribute,
        target_precision=parsed.target_precision,
        batch_size=parsed.batch_size,
        concurrency=parsed.concurrency,
        timeout_ms=parsed.timeout_ms,
    )
    headers = {"Authorization": f"Bearer {parsed.api_key}"} if parsed.api_key else {}
    connection: dict[str, Any] = {"base_url": parsed.url, "headers": headers}
    try:
        with httpx.Client(**connection) as client:
            attributes = options.attributes or _attributes(client, options.retry)
            with parsed.out.open("w", newline="", encoding="utf-8") as file:
                writer = LabelWriter(file, attributes)
                if parsed.sync:
                    for row in classify(client, read_listings(parsed.listings), options):
                        writer.write(row)
                else:
                    asyncio.run(_label_async(connection, parsed.listings, options, writer))
    except (RequestFailedError, OSError, ValueError, httpx.InvalidURL) as error:
        print(f"client: {error}", file=sys.stderr)
        return 1
    print(f"{parsed.out}: {writer}", file=sys.stderr)
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
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the service (default: %(default)s)")
    parser.add_argument("--attribute", action="append", help="predict only this attribute; may be repeated")
    parser.add_argument("--target-precision", type=float, help="for example 0.95 (default: the service's own)")
    parser.add_argument(
        "--batch-size", type=int, default=Options.batch_size, help="listings per request (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrency", type=int, default=Options.concurrency, help="requests at the same time (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout-ms", type=int, default=Options.timeout_ms, help="deadline of a request (default: %(default)s)"
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("CMA_CLIP_API_KEY"),
        help="default: the environment variable CMA_CLIP_API_KEY",
    )
    parser.add_argument("--sync", action="store_true", help="use threads instead of coroutines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
