"""Sends a table of listings to a running service and writes the labels to a CSV.

    python examples/client.py listings.csv labels.csv --url http://localhost:8000
    python examples/client.py listings.csv labels.csv --sync          # threads instead of coroutines
    python examples/client.py listings.csv labels.csv --as-job --images images.zip     # the service does the rest
    python examples/client.py labels.csv --job 0123456789abcdef0123456789abcdef        # go on with that one

The table has the columns `id`, `title` and `image`, or those that `--id`, `--title` and `--image` name; an image is an
http(s) URL, or a file path relative to the table. Either the title or the image may be empty. Where cma-clip is
installed, its own reader is used, so the table may have any form that `cma-clip label` reads; without it, the table
must be a CSV with commas, in UTF-8.

labels.csv has one row per listing, in the same order: `id`; per attribute `{attribute}`, the label if it is accepted,
or `{attribute}_suggestion`, which a person should look at, and `{attribute}_abstention`, why it is not accepted; and
`{attribute}_confidence`; `familiarity` (how typical the listing is of those that the service was calibrated on, from 0
to 1; empty if the service cannot tell); and `error` (empty if there was none). A cell that a spreadsheet would run as a
formula has an apostrophe before it.

While it runs, the rows are in labels.csv.part. A run that was interrupted goes on from there when it is started again.

With `--as-job` the whole table is handed to the service, with `--images` a zip of the images that it names. The service
computes it while nobody else needs it, also when this program ends; the same command goes on with the same job, whose
id is in labels.csv.job. The output has the columns of `cma-clip label` then, and may also be a .jsonl or .parquet file.

This file needs Python 3.11 and httpx, and nothing else from this project, so you can copy and adapt it. Call `classify`
or `classify_async` from your own code; they differ only in how they send and wait.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import csv
import email.utils
import json
import os
import random
import re
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

Row = dict[str, str]


class RequestFailedError(Exception):
    """A request failed and must not be retried; the message says what the service answered."""


# ── retries ─────────────────────────────────────────────────────────────────────────────────────────────────

Outcome = httpx.Response | httpx.TransportError

CONNECTION_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
"""No connection, or a broken one. A retry is safe even if the service had started: classifying changes nothing."""


BUSY = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)

PASSING = (*BUSY, httpx.codes.GATEWAY_TIMEOUT)
"""Errors of a listing in a batch that it may not have the next time."""

TOO_MUCH = (httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.GATEWAY_TIMEOUT)
"""Answers to a batch that a smaller one may not get."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """When to retry: after 503, 429 and connection errors, but never after another error of the caller (4xx)."""

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
            if outcome.status_code not in BUSY:
                raise RequestFailedError(_description(outcome))
            asked = _retry_after(outcome)
        elif not isinstance(outcome, CONNECTION_ERRORS):
            raise RequestFailedError(_description(outcome))
        if attempt >= self.attempts or asked > self.longest_wait:
            raise RequestFailedError(f"gave up after attempt {attempt}: {_description(outcome)}")
        return self.wait(attempt, asked)

    def wait(self, attempt: int, asked: float = 0.0) -> float:
        """Return the seconds to wait after a failed attempt, at least those that were asked for."""
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
    """Listings per request; the service accepts at most 64 by default."""
    batch_bytes: int = 8 * 2**20
    """Bytes of images per request, in base64; the service accepts 32 MiB by default, and a large body takes long. A
    larger image is sent alone."""
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
    data: bytes | None = None
    """The image file itself, where the table has it."""
    error: str | None = None
    """Why the listing cannot be sent."""

    def payload(self) -> dict[str, Any]:
        """Return the listing as the API expects it. Raises `OSError` if its image file cannot be read."""
        payload: dict[str, Any] = {"id": self.id}
        if self.title:
            payload["title"] = self.title
        if self.data is not None:
            payload["image"] = {"base64": base64.b64encode(self.data).decode()}
        elif self.image.startswith(("http://", "https://")):
            payload["image"] = {"url": self.image}
        elif self.image:
            payload["image"] = {"base64": base64.b64encode(Path(self.image).read_bytes()).decode()}
        return payload


@dataclass(frozen=True)
class Ready:
    """A listing ready to be sent, or why it cannot be."""

    id: str
    payload: dict[str, Any] | None
    error: str | None = None

    @classmethod
    def of(cls, listing: Listing) -> Ready:
        if listing.error is not None:
            return cls(listing.id, None, listing.error)
        try:
            return cls(listing.id, listing.payload())
        except OSError as error:
            return cls(listing.id, None, f"cannot read {listing.image}: {error.strerror}")

    @property
    def nbytes(self) -> int:
        """Bytes of its image, in base64."""
        return len((self.payload or {}).get("image", {}).get("base64", ""))


def batches(listings: Iterable[Listing], options: Options) -> Iterator[list[Ready]]:
    """Yield the listings in batches bounded by number and by bytes, each read only when it is needed."""
    batch: list[Ready] = []
    nbytes = 0
    for ready in map(Ready.of, listings):
        if batch and (len(batch) == options.batch_size or nbytes + ready.nbytes > options.batch_bytes):
            yield batch
            batch, nbytes = [], 0
        batch.append(ready)
        nbytes += ready.nbytes
    if batch:
        yield batch


def request_for(part: Sequence[Ready], client: httpx.Client | httpx.AsyncClient, options: Options) -> httpx.Request:
    """Return the request for some listings; its timeout is the deadline plus 5 s for the network."""
    body: dict[str, Any] = {"listings": [ready.payload for ready in part]}
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


def row_of(ready: Ready, result: dict[str, Any] | None) -> Row:
    """Return a listing's row: accepted labels, suggestions and the reasons why they are no more, or an error."""
    if result is None:
        return {"id": ready.id, "error": ready.error or ""}
    if problem := result.get("error"):
        return {"id": ready.id, "error": f"{problem['code']}: {problem['detail']}"}
    row: Row = {"id": ready.id}
    for name, answer in result["attributes"].items():
        # An attribute with several values has a list of answers, the others are one.
        answers = answer.get("labels", [answer])
        accepted = [each for each in answers if each["accepted"]]
        others = [each for each in answers if not each["accepted"]]
        columns = {
            name: [each["label"] for each in accepted],
            f"{name}_suggestion": [each["label"] for each in others],
            f"{name}_confidence": [f"{each['confidence']:.6g}" for each in [*accepted, *others]],
            f"{name}_abstention": [each["abstention"] for each in others],
        }
        row |= {column: "|".join(values) for column, values in columns.items() if values}
    if (familiarity := result["scope"]["familiarity"]) is not None:
        row["familiarity"] = f"{familiarity:.6g}"
    return row


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────

Steps = Generator[httpx.Request | float, Outcome | None, Any]
"""What has to be done, one after the other: a request to send, whose outcome is sent back, or seconds to wait. So both
ways of sending share all decisions."""


def delivered(request: httpx.Request, retry: Retry) -> Generator[httpx.Request | float, Outcome | None, httpx.Response]:
    """Send a request until it is answered, and return the answer, which may be a refusal.

    Raises `RequestFailedError` where there is none after the last attempt.
    """
    attempt = 0
    while True:
        attempt += 1
        outcome = yield request
        assert outcome is not None
        if isinstance(outcome, httpx.Response) and outcome.status_code not in BUSY:
            return outcome
        yield retry.wait_after(attempt, outcome)


def answered(batch: Sequence[Ready], client: httpx.Client | httpx.AsyncClient, options: Options) -> Steps:
    """Answer a batch, and return its rows. Raises `RequestFailedError`.

    A batch that is too much for the service is halved; a listing that fails because the service is busy is sent again.
    """
    results: dict[int, dict[str, Any]] = {}
    parts = [[at for at, ready in enumerate(batch) if ready.payload is not None]]
    attempt = 0
    while parts:
        if not (part := parts.pop()):
            continue
        response = yield from delivered(request_for([batch[at] for at in part], client, options), options.retry)
        if response.status_code in TOO_MUCH and len(part) > 1:
            yield _retry_after(response)
            half = len(part) // 2
            parts += [part[half:], part[:half]]
        elif response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            results[part[0]] = {"error": response.json()}
        elif not response.is_success:
            raise RequestFailedError(_description(response))
        else:
            found = dict(zip(part, response.json()["results"], strict=True))
            results |= found
            busy = [at for at, result in found.items() if result.get("error", {}).get("status") in PASSING]
            if busy and (attempt := attempt + 1) < options.retry.attempts:
                yield options.retry.wait(attempt)
                parts.append(busy)
    return [row_of(ready, results.get(at)) for at, ready in enumerate(batch)]


def attributes_of(client: httpx.Client, retry: Retry) -> list[str]:
    """Return the attributes that the service predicts. Raises `RequestFailedError`."""
    response = do(client, delivered(client.build_request("GET", "/v1/attributes"), retry))
    if not response.is_success:
        raise RequestFailedError(_description(response))
    return list(response.json()["attributes"])


def do(client: httpx.Client, steps: Steps) -> Any:
    """Send and wait, and return what the steps return."""
    outcome: Outcome | None = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as done:
            return done.value
        outcome = None
        if isinstance(step, httpx.Request):
            try:
                outcome = client.send(step)
            except httpx.TransportError as error:
                outcome = error
        else:
            time.sleep(step)


async def do_async(client: httpx.AsyncClient, steps: Steps) -> Any:
    """Send and wait, and return what the steps return."""
    outcome: Outcome | None = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as done:
            return done.value
        outcome = None
        if isinstance(step, httpx.Request):
            try:
                outcome = await client.send(step)
            except httpx.TransportError as error:
                outcome = error
        else:
            await asyncio.sleep(step)


def classify(client: httpx.Client, listings: Iterable[Listing], options: Options) -> Iterator[Row]:
    """Yield one row per listing, in order, as batches are completed. Raises `RequestFailedError`."""
    pool = ThreadPoolExecutor(options.concurrency)
    pending: deque[Future[list[Row]]] = deque()
    try:
        for batch in batches(listings, options):
            pending.append(pool.submit(do, client, answered(batch, client, options)))
            if len(pending) == options.concurrency:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


async def classify_async(
    client: httpx.AsyncClient, listings: Iterable[Listing], options: Options
) -> AsyncGenerator[Row, None]:
    """Yield one row per listing, in order, as batches are completed. Raises `RequestFailedError`."""
    pending: deque[asyncio.Task[list[Row]]] = deque()
    try:
        for batch in batches(listings, options):
            pending.append(asyncio.create_task(do_async(client, answered(batch, client, options))))
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


# ── cells ───────────────────────────────────────────────────────────────────────────────────────────────────

FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def to_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet runs as a formula: with an apostrophe before it where it would."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """Return the text that a cell stands for."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the table's columns; title or image may be missing."""

    id: str = "id"
    title: str = "title"
    image: str = "image"


@dataclass(frozen=True)
class Cells:
    """A row of the table as it was read."""

    id: str
    title: str
    image: str
    data: bytes | None = None
    error: str | None = None


NO_IMAGE = frozenset({"", "-", "n/a", "nan", "none", "null"})


def read_listings(path: Path, columns: Columns | None = None) -> Iterator[Listing]:
    """Yield the listings of a table; its columns are found when the first one is asked for.

    Raises `OSError` or `ValueError` where the table cannot be read, or lacks the columns.
    """
    columns = columns or Columns()
    for cells in _installed_reader(path, columns) or _plain_csv(path, columns):
        image = "" if cells.image.strip().lower() in NO_IMAGE else _first_image(cells.image, path.parent)
        yield Listing(cells.id, cells.title, image, cells.data, cells.error)


def _first_image(cell: str, folder: Path) -> str:
    """Return the first image that a cell names, as a URL or a path."""
    try:
        name = str(json.loads(cell)[0]) if cell.startswith("[") else cell.partition("|")[0].strip()
    except (ValueError, LookupError):
        name = cell
    if name.startswith(("http://", "https://")):
        return name
    path = folder / name
    return str(path if path.exists() or os.sep == "\\" else folder / name.replace("\\", "/"))


def _installed_reader(path: Path, columns: Columns) -> Iterator[Cells] | None:
    """Read the table by cma-clip's own reader, which knows every form; None where cma-clip is not installed."""
    try:
        from model.catalogue.tables import Wanted, open_table  # noqa: PLC0415
        from model.errors import ModelError  # noqa: PLC0415
    except ImportError:
        return None

    def rows() -> Iterator[Cells]:
        failure: Exception | None = None
        for names in ((columns.title, columns.image), (columns.title,), (columns.image,)):
            title = columns.title if columns.title in names else None
            image = columns.image if columns.image in names else None
            wanted = Wanted(columns=(columns.id, *names), id=columns.id, title=title, image=image)
            try:
                table = open_table(path, wanted)
            except ModelError as error:
                failure = failure or error
                continue
            print(f"{path}: {table.form}", file=sys.stderr)
            for row in table.rows:
                values = row.values
                yield Cells(
                    values.get(columns.id, ""),
                    values.get(columns.title, ""),
                    values.get(columns.image, ""),
                    row.embedded if isinstance(row.embedded, bytes) else None,  # asked for as bytes
                    row.error and f"line {row.line}: {row.error}",
                )
            return
        raise ValueError(str(failure))

    return rows()


def _plain_csv(path: Path, columns: Columns) -> Iterator[Cells]:
    """Read a CSV with commas in UTF-8, which is all that Python's own library can tell for sure."""
    print(f"{path}: read as CSV with commas, in UTF-8, since cma-clip is not installed", file=sys.stderr)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        present = reader.fieldnames or ()
        if columns.id not in present or not {columns.title, columns.image} & set(present):
            raise ValueError(
                f"{path} has no column {columns.id!r}, or neither {columns.title!r} nor {columns.image!r}; where "
                "cma-clip is not installed, only CSV with commas in UTF-8 is read"
            )
        for row in reader:
            id_, title, image = (
                from_cell((row.get(name) or "").strip()) for name in (columns.id, columns.title, columns.image)
            )
            wide = None in row or None in row.values()
            error = f"line {reader.line_num}: as many cells as columns are needed" if wide else None
            yield Cells(id_, title, image, error=error)


# ── the output ──────────────────────────────────────────────────────────────────────────────────────────────


class LabelWriter:
    """Writes rows to a CSV one by one, and counts them: to a file beside it, which gets its name once all are there."""

    def __init__(self, out: Path, attributes: Sequence[str]) -> None:
        """Begin the output, or go on with one that was interrupted. Raises `OSError` or `ValueError`."""
        if out.exists():
            raise ValueError(f"{out} exists already; move it away, or name another file")
        suffixes = ("", "_suggestion", "_confidence", "_abstention")
        columns = ["id", *(f"{name}{suffix}" for name in attributes for suffix in suffixes), "familiarity", "error"]
        self.part, self._out, self._attributes = out.with_name(f"{out.name}.part"), out, attributes
        earlier = _finished_rows(self.part, columns)
        self.ids = [row["id"] for row in earlier]
        """Of the listings that an earlier run has finished."""
        self.rows = self.labels = self.errors = 0
        begun = self.part.with_name(f"{self.part.name}.new")
        self._file = begun.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, restval="")
        self._writer.writerow({name: to_cell(name) for name in columns})
        for row in earlier:
            self._write(row)
        self._file.flush()
        begun.replace(self.part)

    def remaining(self, listings: Iterable[Listing]) -> Iterator[Listing]:
        """Yield the listings that have no row yet. Raises `ValueError` where the table is not the earlier run's."""
        iterator = iter(listings)
        for earlier in self.ids:
            listing = next(iterator, None)
            if listing is None or listing.id != earlier:
                raise ValueError(f"{self.part} is from another table: remove it to begin anew")
        yield from iterator

    def write(self, row: Row) -> None:
        self._write(row)
        self._file.flush()

    def _write(self, row: Row) -> None:
        self._writer.writerow({name: to_cell(text) for name, text in row.items()})
        self.rows += 1
        self.errors += bool(row.get("error"))
        self.labels += sum(bool(row.get(name)) for name in self._attributes)

    def close(self) -> None:
        self._file.close()

    def finish(self) -> None:
        """Give the output its name."""
        self._file.close()
        self.part.replace(self._out)

    def __str__(self) -> str:
        earlier = f", {len(self.ids):,} of them by an earlier run" if self.ids else ""
        return f"{self.rows:,} listings{earlier}, {self.labels:,} labels accepted, {self.errors:,} errors"


def _finished_rows(part: Path, columns: Sequence[str]) -> list[Row]:
    """Return an interrupted run's rows, without one that is half written.

    Raises `ValueError` where its columns are others.
    """
    if not part.exists():
        return []
    with part.open(newline="", encoding="utf-8") as file:
        rows = [[from_cell(cell) for cell in row] for row in csv.reader(file)]
    if rows and rows[0] != list(columns):
        raise ValueError(f"{part} is from a run with other attributes: remove it to begin anew")
    if not part.read_bytes().endswith(b"\r\n"):
        del rows[-1:]
    return [dict(zip(columns, row, strict=True)) for row in rows[1:] if len(row) == len(columns)]


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────

HANDING_IN_SECONDS = 1000.0
"""The service reads the whole table before it answers."""

LOOK_SECONDS = 2.0

PIECE = 2**20


@dataclass
class Handover:
    """A table that is handed to the service as a job, and what is known of it, in a file beside the output.

    The file is there before the table is sent, with the `Idempotency-Key`: so whenever this program ends, the same
    command finds the same job and never makes a second one.
    """

    out: Path
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    id: str | None = None

    @property
    def path(self) -> Path:
        return self.out.with_name(f"{self.out.name}.job")

    @classmethod
    def begun(cls, out: Path) -> Handover:
        """Return what an earlier run has begun, or a new one. Raises `OSError` or `ValueError`."""
        if out.exists():
            raise ValueError(f"{out} exists already; move it away, or name another file")
        if out.suffix not in {".csv", ".jsonl", ".parquet"}:
            raise ValueError(f"{out} must end in .csv, .jsonl or .parquet")
        new = cls(out)
        return cls(out, **json.loads(new.path.read_text(encoding="utf-8"))) if new.path.exists() else new

    def save(self) -> None:
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(json.dumps({"key": self.key, "id": self.id}), encoding="utf-8")
        new.replace(self.path)

    def __str__(self) -> str:
        if self.id is None:
            return "the same command hands the table in; the service makes no second job of it"
        return f"the service goes on with job {self.id}; the same command, or --job {self.id}, waits for its labels"


def hand_in(client: httpx.Client, job: Handover, parsed: argparse.Namespace, options: Options) -> None:
    """Hand a table in, and keep the id of its job. Raises `RequestFailedError` or `OSError`."""
    table: Path = parsed.listings
    columns = {role: getattr(parsed, role) for role in ("id", "title", "image")}
    fields = {role: name for role, name in columns.items() if name != role}
    if options.attributes is not None:
        fields["attributes"] = ",".join(options.attributes)
    if options.target_precision is not None:
        fields["target_precision"] = str(options.target_precision)
    job.save()
    with ExitStack() as stack:
        files = {"table": (table.name, stack.enter_context(table.open("rb")))}
        if parsed.images is not None:
            files["images"] = (parsed.images.name, stack.enter_context(parsed.images.open("rb")))
        timeout = httpx.Timeout(30.0, read=HANDING_IN_SECONDS)
        headers = {"Idempotency-Key": job.key}
        request = client.build_request("POST", "/v1/jobs", data=fields, files=files, headers=headers, timeout=timeout)
        found = _done(do(client, delivered(request, options.retry))).json()
    job.id = found["id"]
    job.save()
    read = found["table"]
    print(f"{table}: {read['form']}; job {job.id} of {found['rows']['total']:,} rows", file=sys.stderr)
    if read["invalid"]:
        print(f"{read['invalid']:,} rows are no listings, for example", file=sys.stderr)
        for problem in read["problems"][:5]:
            print(f"  {problem['reason']} (id {problem['id']!r})", file=sys.stderr)


def wait_for(client: httpx.Client, job: str, retry: Retry) -> dict[str, Any]:
    """Wait until a job has ended, and say how far it is. Raises `RequestFailedError`, also where it failed."""
    said = ""
    while True:
        response = do(client, delivered(client.build_request("GET", f"/v1/jobs/{job}"), retry))
        if response.status_code == httpx.codes.NOT_FOUND:
            raise RequestFailedError(f"the service knows no job {job}, or not any more")
        found: dict[str, Any] = _done(response).json()
        if (says := _progress(found)) != said:
            print(says, file=sys.stderr)
            said = says
        if found["status"] == "done":
            return found
        if found["status"] not in {"queued", "running"}:
            raise RequestFailedError(f"job {job} is {found['status']}: {found['error'] or 'somebody has ended it'}")
        time.sleep(LOOK_SECONDS)


def _progress(job: dict[str, Any]) -> str:
    rows = job["rows"]
    text = f"{job['status']}: {rows['done']:,} of {rows['total']:,} rows"
    if job["status"] != "running" or not job["rate"]:
        return text
    return f"{text}, {job['rate']:.1f} a second, about {job['seconds_left'] / 60:.0f} min left"


def fetch_results(client: httpx.Client, job: Handover) -> None:
    """Write a job's results to its output, which is there whole or not at all. Raises `RequestFailedError`."""
    part = job.out.with_name(f"{job.out.name}.part")
    path = f"/v1/jobs/{job.id}/results?format={job.out.suffix[1:]}"
    try:
        with client.stream("GET", path, timeout=HANDING_IN_SECONDS) as response:
            if not response.is_success:
                response.read()
            _done(response)
            with part.open("wb") as file:
                for piece in response.iter_bytes(PIECE):
                    file.write(piece)
    except httpx.TransportError as error:
        raise RequestFailedError(_description(error)) from None
    part.replace(job.out)
    job.path.unlink(missing_ok=True)


def _done(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise RequestFailedError(_description(response))
    return response


def run_job(client: httpx.Client, job: Handover, parsed: argparse.Namespace, options: Options) -> None:
    """Hand in what has not been, wait, and fetch the results.

    Raises `RequestFailedError`, `OSError` or `ValueError`.
    """
    job.id = parsed.job or job.id
    if job.id is None:
        if parsed.listings is None:
            raise ValueError("name the table, and the file to write the labels to")
        hand_in(client, job, parsed, options)
    assert job.id is not None
    wait_for(client, job.id, options.retry)
    fetch_results(client, job)


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str] | None = None) -> int:
    """Label a table; returns exit status 1 if a request or a file failed, 130 if it was interrupted."""
    parsed = _parser().parse_args(arguments)
    options = Options(
        attributes=parsed.attribute,
        target_precision=parsed.target_precision,
        batch_size=parsed.batch_size,
        batch_bytes=int(parsed.batch_mib * 2**20),
        concurrency=parsed.concurrency,
        timeout_ms=parsed.timeout_ms,
    )
    headers = {"Authorization": f"Bearer {parsed.api_key}"} if parsed.api_key else {}
    connection: dict[str, Any] = {"base_url": parsed.url, "headers": headers}
    columns = Columns(id=parsed.id, title=parsed.title, image=parsed.image)
    if parsed.as_job or parsed.job:
        return _main_of_job(connection, parsed, options)
    if parsed.listings is None:
        print("client: name the table, and the file to write the labels to", file=sys.stderr)
        return 2
    writer: LabelWriter | None = None
    try:
        with httpx.Client(**connection) as client:
            writer = LabelWriter(parsed.out, options.attributes or attributes_of(client, options.retry))
            listings = writer.remaining(read_listings(parsed.listings, columns))
            with closing(writer):
                if parsed.sync:
                    for row in classify(client, listings, options):
                        writer.write(row)
                else:
                    asyncio.run(_label_async(connection, listings, options, writer))
            writer.finish()
    except KeyboardInterrupt:
        print(f"client: stopped; {_how_to_go_on(writer)}", file=sys.stderr)
        return 130
    except (RequestFailedError, OSError, ValueError, csv.Error, httpx.InvalidURL) as error:
        print(f"client: {error}", file=sys.stderr)
        if writer is not None and writer.rows:
            print(f"client: {_how_to_go_on(writer)}", file=sys.stderr)
        return 1
    print(f"{parsed.out}: {writer}", file=sys.stderr)
    return 0


def _main_of_job(connection: dict[str, Any], parsed: argparse.Namespace, options: Options) -> int:
    job: Handover | None = None
    try:
        job = Handover.begun(parsed.out)
        with httpx.Client(**connection) as client:
            run_job(client, job, parsed, options)
    except KeyboardInterrupt:
        print(f"client: stopped; {job}", file=sys.stderr)
        return 130
    except (RequestFailedError, OSError, ValueError, httpx.InvalidURL) as error:
        print(f"client: {error}", file=sys.stderr)
        if job is not None and job.path.exists():
            print(f"client: what is known of the job is in {job.path}; remove it to begin anew", file=sys.stderr)
        return 1
    print(f"{parsed.out}: done", file=sys.stderr)
    return 0


def _how_to_go_on(writer: LabelWriter | None) -> str:
    done = writer.rows if writer is not None else 0
    return f"{done:,} listings are done; the same command goes on from there"


async def _label_async(
    connection: dict[str, Any], listings: Iterable[Listing], options: Options, writer: LabelWriter
) -> None:
    async with httpx.AsyncClient(**connection) as client:
        rows = classify_async(client, listings, options)
        async with aclosing(rows):
            async for row in rows:
                writer.write(row)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("listings", type=Path, nargs="?", help="table of the listings")
    parser.add_argument("out", type=Path, help="CSV to write the labels to; of a job also .jsonl or .parquet")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the service (default: %(default)s)")
    for column in ("id", "title", "image"):
        parser.add_argument(f"--{column}", default=column, metavar="COLUMN", help=f"the table's column of the {column}")
    parser.add_argument("--attribute", action="append", help="predict only this attribute; may be repeated")
    parser.add_argument("--target-precision", type=float, help="for example 0.95 (default: the service's own)")
    parser.add_argument(
        "--batch-size", type=int, default=Options.batch_size, help="listings per request (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-mib", type=float, default=Options.batch_bytes / 2**20, help="MiB per request (default: %(default)g)"
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
    parser.add_argument("--as-job", action="store_true", help="hand the whole table to the service as a job")
    parser.add_argument("--images", type=Path, help="with --as-job: zip of the images that the table names")
    parser.add_argument("--job", metavar="ID", help="wait for this job, and write its labels")
    parser.add_argument("--sync", action="store_true", help="use threads instead of coroutines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
