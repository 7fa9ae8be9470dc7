"""The example client against the real application, on a real port."""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.client import (
    Listing,
    Options,
    RequestFailedError,
    Retry,
    Row,
    classify,
    classify_async,
    main,
    read_listings,
)
from tests.service.conftest import Client, encoded, in_process, on_port, until
from tests.service.fake_predictor import UNFAMILIAR, FakePredictor

Label = Callable[[Client, list[Listing], Options], Coroutine[Any, Any, list[Row]]]


async def label_async(service: Client, listings: list[Listing], options: Options) -> list[Row]:
    async with httpx.AsyncClient(base_url=service.base_url) as client:
        return [row async for row in classify_async(client, listings, options)]


async def label_sync(service: Client, listings: list[Listing], options: Options) -> list[Row]:
    def run() -> list[Row]:
        with httpx.Client(base_url=service.base_url) as client:
            return list(classify(client, listings, options))

    return await asyncio.to_thread(run)


both_ways = pytest.mark.parametrize("label", [label_async, label_sync])


@pytest.fixture
async def service() -> AsyncIterator[Client]:
    async with on_port() as client:
        yield client


def titled(count: int) -> list[Listing]:
    return [Listing(f"sku-{number}", f"shirt {number}", "") for number in range(count)]


async def expected(service: Client, listing: Listing) -> Row:
    """The row for a listing that is sent alone."""
    reply = await service.classify(title=listing.title)
    answers = reply.json()["attributes"].items()
    accepted = {name: answer["label"] for name, answer in answers if answer["accepted"]}
    reasons = {f"{name}_abstention": answer["abstention"] for name, answer in answers if not answer["accepted"]}
    return {"id": listing.id, **accepted, **reasons, "familiarity": "0.5"}


@both_ways
async def test_rows_are_in_order_with_accepted_labels_and_the_reasons_for_others(service: Client, label: Label) -> None:
    listings = titled(23)
    rows = await label(service, listings, Options(batch_size=4, concurrency=3))
    assert rows == [await expected(service, listing) for listing in listings]
    assert 0 < sum("baseColour" in row for row in rows) < len(rows)
    assert {row.get("baseColour_abstention", "") for row in rows} == {"", "low_confidence"}


@both_ways
async def test_of_an_unfamiliar_listing_the_row_has_reasons_alone(service: Client, label: Label) -> None:
    (row,) = await label(service, [Listing("sku", UNFAMILIAR, "")], Options())
    reasons = dict.fromkeys(("baseColour_abstention", "season_abstention"), "unfamiliar_listing")
    assert row == {"id": "sku", **reasons, "familiarity": "0.001"}


@both_ways
async def test_without_a_scope_gate_the_row_has_no_familiarity(label: Label) -> None:
    async with on_port(FakePredictor(bare=True)) as service:
        (row,) = await label(service, titled(1), Options())
    assert "familiarity" not in row


@both_ways
async def test_a_listing_that_fails_has_its_error_in_its_place(service: Client, label: Label, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encoded())
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbut not really")
    listings = [
        Listing("good", "", str(tmp_path / "good.png")),
        Listing("bad", "", str(tmp_path / "bad.png")),
        Listing("missing", "a title", str(tmp_path / "missing.png")),
        Listing("private", "", "http://127.0.0.1/x.png"),
        Listing("empty", "", ""),
        Listing("last", "a title", ""),
    ]
    rows = await label(service, listings, Options(batch_size=6))
    assert [row["id"] for row in rows] == [listing.id for listing in listings]
    assert [row.get("error", "").partition(":")[0] for row in rows] == [
        "",
        "undecodable_image",
        f"cannot read {tmp_path / 'missing.png'}",
        "image_url_forbidden",
        "invalid_request",
        "",
    ]


@both_ways
async def test_a_batch_without_readable_listings_is_not_sent(service: Client, label: Label, tmp_path: Path) -> None:
    rows = await label(service, [Listing("a", "", str(tmp_path / "missing.png"))], Options())
    assert rows[0]["error"].startswith("cannot read")


@both_ways
async def test_concurrency_is_limited(label: Label) -> None:
    predictor = FakePredictor(seconds=0.02)
    async with on_port(predictor, max_batch_size=64) as service:
        rows = await label(service, titled(30), Options(batch_size=2, concurrency=3))
    assert len(rows) == 30
    # A batch of the service contains all waiting listings: those of at most three requests.
    assert 2 < max(len(batch) for batch in predictor.batches) <= 6


@both_ways
async def test_it_waits_as_long_as_an_overloaded_service_asks(label: Label) -> None:
    predictor = FakePredictor()
    async with on_port(predictor, max_queue=4) as service:
        predictor.free.clear()
        first = [asyncio.create_task(service.classify(title=f"first {number}")) for number in range(4)]
        await until(lambda: service.pipeline.admission.listings == 4)
        began = time.monotonic()
        labelling = asyncio.create_task(label(service, titled(2), Options(retry=Retry(first_wait=0.01))))
        await until(lambda: overloaded(service) == 1)
        predictor.free.set()
        rows = await labelling
        assert time.monotonic() - began >= 1.0  # Retry-After counts whole seconds
        assert overloaded(service) == 1  # it did not retry before that
        assert not any("error" in row for row in rows)
        assert all(reply.status_code == 200 for reply in await asyncio.gather(*first))


def overloaded(service: Client) -> float:
    return service.pipeline.metrics.registry.get_sample_value("cma_clip_rejected_total", {"reason": "overloaded"}) or 0


@both_ways
async def test_it_fails_after_the_last_attempt(label: Label) -> None:
    async with on_port() as service:
        listings, gone = titled(1), service.base_url
    refused = httpx.AsyncClient(base_url=gone)  # the port is closed by now
    with pytest.raises(RequestFailedError, match="gave up after attempt 3: ConnectError"):
        await label(refused, listings, Options(retry=Retry(attempts=3, first_wait=0.01)))  # type: ignore[arg-type]
    await refused.aclose()


@both_ways
async def test_a_client_error_is_not_retried(service: Client, label: Label) -> None:
    with pytest.raises(RequestFailedError, match="422 unknown_attribute: unknown attribute 'colour'"):
        await label(service, titled(2), Options(attributes=["colour"]))
    assert await service.metric("cma_clip_rejected_total", reason="unknown_attribute") == 1


@both_ways
async def test_the_deadline_is_sent(label: Label) -> None:
    predictor = FakePredictor(seconds=0.3)
    async with on_port(predictor) as service:
        with pytest.raises(RequestFailedError, match="504 deadline_exceeded"):
            await label(service, titled(1), Options(timeout_ms=100))


async def test_a_failure_cancels_the_other_batches() -> None:
    predictor = FakePredictor()
    async with on_port(predictor, max_listings=2) as service:
        predictor.free.clear()
        with pytest.raises(RequestFailedError, match="413 payload_too_large"):
            await label_async(service, titled(5), Options(batch_size=3, concurrency=2))
        await until(lambda: service.pipeline.admission.listings == 0)  # the service noticed the disconnect


def response(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_waits_double_up_to_a_limit_and_respect_retry_after() -> None:
    retry = Retry(attempts=9, first_wait=1, longest_wait=5)
    waits = [retry.wait_after(attempt, response(503)) for attempt in range(1, 6)]
    for wait, least in zip(waits, (1, 2, 4, 5, 5), strict=True):
        assert least <= wait <= 1.25 * least
    assert retry.wait_after(1, response(503, retry_after="4")) >= 4
    assert retry.wait_after(3, response(503, retry_after="1")) >= 4
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
    assert retry.wait_after(1, response(503, retry_after=soon)) > 2.5
    assert retry.wait_after(1, response(503, retry_after="when we like")) < 1.3


@pytest.mark.parametrize(
    ("attempt", "outcome"),
    [
        (3, response(503)),
        (1, response(503, retry_after="6")),
        (1, response(429, retry_after="1")),
        (1, response(401)),
        (1, response(500)),
        (1, response(504, retry_after="1")),
        (1, httpx.ReadTimeout("too slow")),
    ],
)
def test_outcomes_that_are_not_retried(attempt: int, outcome: httpx.Response | httpx.TransportError) -> None:
    with pytest.raises(RequestFailedError):
        Retry(attempts=3, longest_wait=5).wait_after(attempt, outcome)


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize("more", [[], ["--sync"]])
async def test_from_csv_to_csv(service: Client, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "blue.png").write_bytes(encoded())
    table = write_csv(
        tmp_path / "listings.csv",
        [["id", "title", "image"], ["1", "Turtle, a shirt", "images/blue.png"], ["2", "", ""], ["3", "shirt", ""]],
    )
    out = tmp_path / "labels.csv"
    arguments = [str(table), str(out), "--url", str(service.base_url), "--target-precision", "0.9", *more]
    assert await asyncio.to_thread(main, arguments) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "id", "baseColour", "baseColour_abstention", "season", "season_abstention", "familiarity", "error",
    ]  # fmt: skip
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert rows[1]["error"].startswith("invalid_request")
    reply = await service.classify(title="shirt", target_precision=0.9)
    for name, answer in reply.json()["attributes"].items():
        assert rows[2][name] == (answer["label"] if answer["accepted"] else "")
        assert rows[2][f"{name}_abstention"] == (answer["abstention"] or "")


async def test_an_api_key_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_csv(tmp_path / "listings.csv", [["id", "title"], ["1", "shirt"]])
    out = tmp_path / "labels.csv"
    async with on_port(api_keys="secret") as service:
        arguments = [str(table), str(out), "--url", str(service.base_url), "--attribute", "season"]
        assert await asyncio.to_thread(main, arguments) == 1
        assert "401 unauthorized" in capsys.readouterr().err
        assert await asyncio.to_thread(main, [*arguments, "--api-key", "secret"]) == 0
    assert out.read_text().startswith("id,season,season_abstention,familiarity,error\n1,")


@pytest.mark.parametrize(
    ("content", "message"), [("sku,title\n1,x\n", "has no column named id"), (None, "No such file")]
)
def test_an_unusable_csv_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    table = tmp_path / "listings.csv"
    if content is not None:
        table.write_text(content)
    assert main([str(table), str(tmp_path / "out.csv"), "--attribute", "season"]) == 1
    assert message in capsys.readouterr().err


def test_a_csv_from_excel_and_relative_paths(tmp_path: Path) -> None:
    table = tmp_path / "listings.csv"
    table.write_bytes("\ufeffid,title,image\n1, shirt ,a/b.png\n2,,https://x.example/y.png\n".encode())
    assert list(read_listings(table)) == [
        Listing("1", "shirt", str(tmp_path / "a" / "b.png")),
        Listing("2", "", "https://x.example/y.png"),
    ]


async def test_classify_async_takes_any_client() -> None:
    async with in_process() as client:
        rows = [row async for row in classify_async(client, titled(3), Options())]
    assert [row["id"] for row in rows] == ["sku-0", "sku-1", "sku-2"]
