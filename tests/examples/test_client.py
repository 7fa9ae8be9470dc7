"""The example client against the real application, on a real port."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.client import (
    Columns,
    Listing,
    Options,
    Ready,
    RequestFailedError,
    Retry,
    Row,
    batches,
    classify,
    classify_async,
    main,
    read_listings,
    row_of,
)
from tests.service.conftest import Client, encoded, in_process, on_port, until
from tests.service.fake_predictor import UNFAMILIAR, FakePredictor
from tests.service.test_label_sets import SetPredictor

Label = Callable[[Client, Iterable[Listing], Options], Coroutine[Any, Any, list[Row]]]


async def label_async(service: Client, listings: Iterable[Listing], options: Options) -> list[Row]:
    async with httpx.AsyncClient(base_url=service.base_url) as client:
        return [row async for row in classify_async(client, listings, options)]


async def label_sync(service: Client, listings: Iterable[Listing], options: Options) -> list[Row]:
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
    row = {"id": listing.id, "familiarity": "0.5"}
    for name, answer in reply.json()["attributes"].items():
        row[f"{name}_confidence"] = f"{answer['confidence']:.6g}"
        if answer["accepted"]:
            row[name] = answer["label"]
        else:
            row |= {f"{name}_suggestion": answer["label"], f"{name}_abstention": answer["abstention"]}
    return row


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
    assert {name: row[name] for name in reasons} == reasons
    assert row["familiarity"] == "0.001"
    assert not {"baseColour", "season", "error"} & set(row)


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

    def torn() -> Iterator[Listing]:
        yield from titled(2)
        raise ValueError("the table is torn")

    async with on_port(predictor) as service:
        predictor.free.clear()
        with pytest.raises(ValueError, match="torn"):
            await label_async(service, torn(), Options(batch_size=1, concurrency=3))
        await until(lambda: service.pipeline.admission.listings == 0)  # the service noticed the disconnect


def response(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_waits_double_up_to_a_limit_and_respect_retry_after() -> None:
    retry = Retry(attempts=9, first_wait=1, longest_wait=5)
    waits = [retry.wait_after(attempt, response(503)) for attempt in range(1, 6)]
    for wait, least in zip(waits, (1, 2, 4, 5, 5), strict=True):
        assert least <= wait <= 1.25 * least
    for status in (429, 503):
        assert retry.wait_after(1, response(status, retry_after="4")) >= 4
    assert retry.wait_after(3, response(503, retry_after="1")) >= 4
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
    assert retry.wait_after(1, response(503, retry_after=soon)) > 2.5
    assert retry.wait_after(1, response(503, retry_after="when we like")) < 1.3


@pytest.mark.parametrize(
    ("attempt", "outcome"),
    [
        (3, response(503)),
        (1, response(503, retry_after="6")),
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
        "id", "baseColour", "baseColour_suggestion", "baseColour_confidence", "baseColour_abstention",
        "season", "season_suggestion", "season_confidence", "season_abstention", "familiarity", "error",
    ]  # fmt: skip
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert rows[1]["error"].startswith("invalid_request")
    reply = await service.classify(title="shirt", target_precision=0.9)
    for name, answer in reply.json()["attributes"].items():
        assert rows[2][name] == (answer["label"] if answer["accepted"] else "")
        assert rows[2][f"{name}_suggestion"] == ("" if answer["accepted"] else answer["label"])
        assert rows[2][f"{name}_abstention"] == (answer["abstention"] or "")


async def test_an_api_key_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_csv(tmp_path / "listings.csv", [["id", "title"], ["1", "shirt"]])
    out = tmp_path / "labels.csv"
    async with on_port(api_keys="secret") as service:
        arguments = [str(table), str(out), "--url", str(service.base_url), "--attribute", "season"]
        assert await asyncio.to_thread(main, arguments) == 1
        assert "401 unauthorized" in capsys.readouterr().err
        assert await asyncio.to_thread(main, [*arguments, "--api-key", "secret"]) == 0
    assert out.read_text().startswith("id,season,season_suggestion,season_confidence,")


@pytest.mark.parametrize(("content", "message"), [("sku,title\n1,x\n", "has no column 'id'"), (None, "No such file")])
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


@both_ways
async def test_batches_are_bounded_by_bytes(service: Client, label: Label, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded() + bytes(30_000))
    (tmp_path / "large.png").write_bytes(encoded() + bytes(90_000))
    photos = [Listing(str(n), "", str(tmp_path / ("large.png" if n == 4 else "photo.png"))) for n in range(9)]
    assert [len(batch) for batch in batches(photos, Options(batch_bytes=100_000))] == [2, 2, 1, 2, 2]
    assert not any("error" in row for row in await label(service, photos, Options(batch_bytes=100_000)))


@both_ways
async def test_a_batch_that_is_too_much_is_halved(label: Label, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded() + bytes(30_000))
    (tmp_path / "large.png").write_bytes(encoded() + bytes(200_000))
    photos = [Listing(str(n), "", str(tmp_path / ("large.png" if n == 4 else "photo.png"))) for n in range(9)]
    async with on_port(max_body_bytes=100_000) as service:
        rows = await label(service, photos, Options())
    assert [row["id"] for row in rows] == [photo.id for photo in photos]
    assert [row["id"] for row in rows if "error" in row] == ["4"]
    assert rows[4]["error"].startswith("payload_too_large: the body has ")


@both_ways
async def test_a_listing_that_fails_in_passing_is_sent_again(label: Label) -> None:
    asked: list[list[str]] = []
    busy = {"status": 503, "code": "overloaded", "detail": "no room"}

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append([listing["id"] for listing in json.loads(request.content)["listings"]])
        answered = {"attributes": {}, "scope": {"familiarity": None}}
        return httpx.Response(200, json={"results": [
            {"id": id, "error": busy} if id in ("sku-1", "sku-3") and len(asked) == 1 else {"id": id, **answered}
            for id in asked[-1]
        ]})  # fmt: skip

    async with httpx.AsyncClient(base_url="http://x", transport=httpx.MockTransport(reply)) as client:
        rows = [row async for row in classify_async(client, titled(4), Options(retry=Retry(first_wait=0.01)))]
    assert asked == [["sku-0", "sku-1", "sku-2", "sku-3"], ["sku-1", "sku-3"]]
    assert rows == [{"id": f"sku-{n}"} for n in range(4)]


def test_an_attribute_with_several_values_has_them_in_one_cell() -> None:
    labels = [("Cotton", 0.9, None), ("Silk", 0.8, None), ("Wool", 0.4, "low_confidence")]
    answers = [
        {"label": label, "confidence": confidence, "accepted": reason is None, "abstention": reason}
        for label, confidence, reason in labels
    ]
    result = {"attributes": {"material": {"labels": answers}}, "scope": {"familiarity": 0.25}}
    assert row_of(Ready("1", {}), result) == {
        "id": "1",
        "material": "Cotton|Silk",
        "material_suggestion": "Wool",
        "material_confidence": "0.9|0.8|0.4",
        "material_abstention": "low_confidence",
        "familiarity": "0.25",
    }


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["csv", "jsonl", "cp1252"])
def test_any_table_is_read_that_label_reads(tmp_path: Path, form: str) -> None:
    table = tmp_path / "listings.table.csv"
    text = "sku;name;photo\r\n1;Robe d'été;a.jpg|b.jpg\r\n2;Blue shirt;https://x.example/y.png\r\n"
    table.write_text(text, encoding="cp1252" if form == "cp1252" else "utf-8")
    if form == "jsonl":
        rows = [{"sku": 1, "name": "Robe d'été", "photo": ["a.jpg"]}, {"sku": 2, "name": "Blue shirt"}]
        rows[1]["photo"] = "https://x.example/y.png"
        table.write_text("\n".join(map(json.dumps, rows)))
    assert list(read_listings(table, Columns(id="sku", title="name", image="photo"))) == [
        Listing("1", "Robe d'été", str(tmp_path / "a.jpg")),
        Listing("2", "Blue shirt", "https://x.example/y.png"),
    ]


def test_a_row_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    table = tmp_path / "listings.csv"
    table.write_text("id,image,title\n1,a.jpg,Red\n2,b, c,Blue\n3,nan,Green\n")
    found = list(read_listings(table))
    assert [(listing.id, listing.error) for listing in found] == [
        ("1", None), ("2", "line 3: too many fields"), ("3", None)
    ]  # fmt: skip
    assert found[2].image == ""


def test_without_cma_clip_plain_csv_is_read_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "model.catalogue.tables", None)
    table = tmp_path / "listings.csv"
    table.write_text('\ufeffid,title\n\'=1,"Red, long\ndress"\n2,a,b\n')
    assert list(read_listings(table)) == [
        Listing("=1", "Red, long\ndress", ""),
        Listing("2", "a", "", error="line 4: as many cells as columns are needed"),
    ]
    assert "cma-clip is not installed" in capsys.readouterr().err
    table.write_text("id;title\n1;Red\n")
    with pytest.raises(ValueError, match="only CSV with commas in UTF-8 is read"):
        list(read_listings(table))


@pytest.mark.parametrize("more", [[], ["--sync"]])
@pytest.mark.parametrize("torn", ["", '9,"a cell that was', "9,Red,,0.9,,,,0"])
async def test_an_interrupted_run_goes_on(
    service: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], torn: str
) -> None:
    table = write_csv(tmp_path / "listings.csv", [["id", "title"], *([f"=sku-{n}", f"shirt {n}"] for n in range(9))])
    whole, part = tmp_path / "whole.csv", tmp_path / "labels.csv.part"
    command = ["--url", str(service.base_url), "--batch-size", "2", *more]
    assert await asyncio.to_thread(main, [str(table), str(whole), *command]) == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:5]) + torn.encode())
    service.predictor.batches.clear()
    assert await asyncio.to_thread(main, [str(table), str(tmp_path / "labels.csv"), *command]) == 0
    assert (tmp_path / "labels.csv").read_bytes() == whole.read_bytes()
    assert not part.exists()
    assert {title for batch in service.predictor.batches for title in batch} == {f"shirt {n}" for n in range(4, 9)}
    assert "9 listings, 4 of them by an earlier run" in capsys.readouterr().err
    assert await asyncio.to_thread(main, [str(table), str(whole), *command]) == 1
    assert "exists already" in capsys.readouterr().err


async def test_what_another_table_began_is_not_continued(
    service: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_csv(tmp_path / "listings.csv", [["id", "title"], ["1", "shirt"], ["2", "shirt"]])
    out = tmp_path / "labels.csv"
    columns = "id,season,season_suggestion,season_confidence,season_abstention,familiarity,error\r\n"
    command = [str(table), str(out), "--url", str(service.base_url), "--attribute", "season"]
    for begun, said in ((f"{columns}7,,,,,,\r\n", "is from another table"), ("id,x\r\n", "with other attributes")):
        out.with_name("labels.csv.part").write_bytes(begun.encode())
        assert await asyncio.to_thread(main, command) == 1
        assert said in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Iterator[Row]:
        yield {"id": "1", "season": "Winter"}
        raise KeyboardInterrupt

    monkeypatch.setattr("examples.client.classify", interrupted)
    table = write_csv(tmp_path / "listings.csv", [["id", "title"], ["1", "shirt"], ["2", "shirt"]])
    command = [str(table), str(tmp_path / "labels.csv"), "--attribute", "season", "--sync"]
    assert main(command) == 130
    assert "stopped; 1 listings are done; the same command goes on from there" in capsys.readouterr().err
    assert (tmp_path / "labels.csv.part").read_text().splitlines()[1].startswith("1,Winter,")


async def test_classify_async_takes_any_client() -> None:
    async with in_process() as client:
        rows = [row async for row in classify_async(client, titled(3), Options())]
    assert [row["id"] for row in rows] == ["sku-0", "sku-1", "sku-2"]


@both_ways
async def test_a_service_with_a_multi_valued_attribute_is_understood(label: Label) -> None:
    """Accepted labels in one column, what is only suggested in another, confidences in the same order."""
    async with on_port(SetPredictor()) as service:
        (row,) = await label(service, [Listing("1", "Wool and cotton", "")], Options(attributes=["material"]))
    assert row == {
        "id": "1",
        "material": "Wool|Cotton",
        "material_suggestion": "Linen",
        "material_confidence": "0.99|0.7|0.1",
        "material_abstention": "low_confidence",
        "familiarity": "0.5",
    }
