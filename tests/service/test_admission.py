"""Admission by room, bytes and deadline: before the body is decoded, and in the same way on every route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

import httpx
import pytest

from service.errors import DeadlineExceeded, Overloaded
from service.http import body as body_module
from service.pipeline.admission import Admission, Deadline
from tests.service.conftest import Client, as_base64, encoded, in_process, on_port, until
from tests.service.test_routes import check_problem

IMAGE = {"base64": as_base64(encoded())}


async def fill(client: Client, count: int) -> list[asyncio.Task[httpx.Response]]:
    """Let `count` listings in while the device is stuck."""
    client.predictor.free.clear()
    tasks = [asyncio.create_task(client.classify(title=f"inside {n}")) for n in range(count)]
    await until(lambda: client.pipeline.admission.listings == count)
    return tasks


def requests(title: str = "late") -> list[tuple[str, dict[str, Any]]]:
    """The same listing by every route."""
    return [
        ("/v1/classify", {"json": {"title": title}}),
        ("/v1/classify/batch", {"json": {"listings": [{"title": title}]}}),
        ("/v1/classify/upload", {"data": {"title": title}, "files": {"image": ("a.png", encoded())}}),
    ]


async def test_an_overload_is_reported_on_every_route_with_a_time_to_retry() -> None:
    async with in_process(max_queue=3, max_batch_size=1) as client:
        inside = await fill(client, 3)
        for path, request in requests():
            response = await client.post(path, **request)
            check_problem(response, 503, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
        client.predictor.free.set()
        assert [answer.status_code for answer in await asyncio.gather(*inside)] == [200] * 3
        assert "late" not in chain(*client.predictor.batches)
        for path, request in requests():
            assert (await client.post(path, **request)).status_code == 200


async def test_retry_after_is_the_time_in_which_what_is_inside_will_be_answered() -> None:
    async with in_process(max_queue=8, max_batch_size=2, request_timeout_ms=60_000) as client:
        for size in (1, 2) * 3:
            client.batcher.cost.observe(size, 5.0)
        client.predictor.free.clear()
        first = asyncio.create_task(client.classify(title="first"))
        await until(lambda: client.predictor.batches)
        inside = [first, *(asyncio.create_task(client.classify(title="inside")) for _ in range(7))]
        await until(lambda: client.pipeline.admission.listings == 8)
        response = await client.classify(title="late")
        assert 23 <= int(response.headers["retry-after"]) <= 25  # batches of 1, 2, 2, 2 and 1
        client.predictor.free.set()
        await asyncio.gather(*inside)


async def test_a_batch_counts_its_listings_and_comes_in_whole_or_not_at_all() -> None:
    async with in_process(max_queue=4) as client:
        inside = await fill(client, 2)
        batches = [{"listings": [{"title": "late"}] * count} for count in (3, 2)]
        refused = await client.post("/v1/classify/batch", json=batches[0])
        check_problem(refused, 503, "overloaded")
        assert client.pipeline.admission.listings == 2
        accepted = asyncio.create_task(client.post("/v1/classify/batch", json=batches[1]))
        await until(lambda: client.pipeline.admission.listings == 4)
        client.predictor.free.set()
        assert (await accepted).status_code == 200
        await asyncio.gather(*inside)


async def test_a_batch_that_could_never_fit_is_too_large() -> None:
    async with in_process(max_queue=4) as client:
        check_problem(
            await client.post("/v1/classify/batch", json={"listings": [{"title": "a"}] * 5}), 413, "payload_too_large"
        )


async def test_a_refusal_costs_no_look_at_the_body() -> None:
    async with in_process(max_queue=1) as client:
        inside = await fill(client, 1)
        read = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(10):
                read += 1
                yield b"nonsense"

        for path in ("/v1/classify", "/v1/classify/batch"):
            response = await client.post(path, content=body(), headers={"Content-Type": "application/json"})
            check_problem(response, 503, "overloaded")
        assert read == 0
        client.predictor.free.set()
        await asyncio.gather(*inside)


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_body_over_the_limit_is_refused_whatever_its_header_says() -> None:
    async with on_port(max_body_bytes=10_000) as client:
        big = json.dumps({"title": "a", "id": "x" * 11_000}).encode()

        async def chunked() -> AsyncIterator[bytes]:
            for start in range(0, len(big), 1000):
                yield big[start : start + 1000]

        json_type = {"Content-Type": "application/json"}
        check_problem(await client.post("/v1/classify", content=big, headers=json_type), 413, "payload_too_large")
        check_problem(await client.post("/v1/classify", content=chunked(), headers=json_type), 413, "payload_too_large")
        upload = await client.post("/v1/classify/upload", files={"image": ("a.png", big)})
        check_problem(upload, 413, "payload_too_large")
        # Over the limit by its header alone: refused without waiting for what will never come.
        answer = await raw(client, b"Content-Type: application/json\r\nContent-Length: 999999999999\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413")
        assert client.pipeline.admission.nbytes == client.pipeline.admission.listings == 0


async def raw(client: Client, head_and_body: bytes) -> bytes:
    """Send bytes as they are; return what comes back until the other side is done."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + head_and_body)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "lie", [b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: x\r\n", b"Content-Length: 1e9\r\n"]
)
async def test_lengths_that_lie_end_in_an_answer(lie: bytes) -> None:
    async with on_port() as client:
        answer = await raw(client, b"Content-Type: application/json\r\n" + lie + b'\r\n{"title": "a"}')
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 422"))


async def test_a_body_that_never_ends_meets_the_deadline() -> None:
    async with on_port(request_timeout_ms=200) as client:
        answer = await raw(client, b'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"title": ')
        assert answer.startswith(b"HTTP/1.1 504")
        assert client.pipeline.admission.listings == 0


async def test_a_body_that_hardly_arrives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "BODY_SECONDS", 0.3)
    head = b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    async with on_port() as client:
        for sent in (b"", b'{"title": ', b"x" * 50_000):
            answer = await raw(client, head + sent)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"body_too_slow" in answer
            assert client.pipeline.admission.nbytes == 0


async def test_a_body_that_takes_long_but_arrives_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(body_module, "LEAST_BODY_BYTES", 1000)

    async def slowly() -> AsyncIterator[bytes]:
        text = json.dumps({"title": "a" * 3000}).encode().ljust(8000)
        for start in range(0, 8000, 1000):
            yield text[start : start + 1000]
            await asyncio.sleep(0.1)

    async with on_port() as client:
        response = await client.post("/v1/classify", content=slowly(), headers={"Content-Type": "application/json"})
        assert response.status_code == 200


async def test_those_who_only_announce_take_nothing_from_the_others() -> None:
    async with on_port(max_queue=4) as client:
        head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        silent = []
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(head + b"Content-Length: 33554432\r\n\r\n{")
            silent.append(writer)
        await until(lambda: client.pipeline.admission.requests == 20)
        assert (client.pipeline.admission.listings, client.pipeline.admission.nbytes) == (0, 20)
        assert (await client.classify(title="a")).status_code == 200
        for writer in silent:
            writer.transport.abort()
        await until(lambda: client.pipeline.admission.requests == 0)
        assert client.pipeline.admission.nbytes == 0


async def test_bytes_in_flight_are_bounded_over_all_requests() -> None:
    async with in_process(max_body_bytes=4000) as client:  # 32,000 in flight
        client.predictor.free.clear()
        tasks = [asyncio.create_task(client.classify(id="i" * 256, title="t" * 3000)) for _ in range(15)]
        await until(lambda: sum(task.done() for task in tasks) + client.pipeline.admission.listings == 15)
        refused = [task.result() for task in tasks if task.done()]
        for response in refused:
            check_problem(response, 503, "overloaded")
        assert len(refused) == 6  # nine bodies of 3,3 kB fit into 32 kB
        assert client.pipeline.admission.nbytes <= 32_000
        client.predictor.free.set()
        assert {(await task).status_code for task in tasks} == {200, 503}
        assert client.pipeline.admission.nbytes == 0


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hopeless_request_is_refused_on_arrival_on_every_route() -> None:
    async with in_process(max_batch_size=1) as client:
        for _ in range(5):
            client.batcher.cost.observe(1, 2.0)
        inside = await fill(client, 3)  # six seconds' work
        for path, request in requests():
            response = await client.post(path, **request, headers={"X-Request-Timeout-Ms": "3000"})
            check_problem(response, 504, "deadline_exceeded")
            assert 4 <= int(response.headers["retry-after"]) <= 6
        hopeful = asyncio.create_task(
            client.post("/v1/classify", json={"title": "hopeful"}, headers={"X-Request-Timeout-Ms": "9000"})
        )
        await until(lambda: client.pipeline.admission.listings == 4)
        client.predictor.free.set()
        assert (await hopeful).status_code == 200
        await asyncio.gather(*inside)
        assert "late" not in chain(*client.predictor.batches)


async def test_a_batch_too_long_for_its_deadline_is_refused() -> None:
    async with in_process(max_batch_size=1) as client:
        for _ in range(5):
            client.batcher.cost.observe(1, 1.0)
        headers = {"X-Request-Timeout-Ms": "5000"}
        body = {"listings": [{"title": "a"}] * 6}
        check_problem(await client.post("/v1/classify/batch", json=body, headers=headers), 504, "deadline_exceeded")
        assert client.predictor.batches == []


async def test_an_old_estimate_of_large_batches_does_not_refuse_them_for_ever() -> None:
    """Single listings keep the estimate of small batches fresh, and say nothing about large ones."""
    async with in_process() as client:
        cost = client.batcher.cost
        for _ in range(5):
            cost.observe(32, 60.0)
        body = {"listings": [{"title": "a"}] * 30}
        check_problem(await client.post("/v1/classify/batch", json=body), 504, "deadline_exceeded")
        cost._updated[32] -= 2
        assert (await client.classify(title="a")).status_code == 200
        assert (await client.post("/v1/classify/batch", json=body)).status_code == 200


def admission(seconds: float, *, age: float = 0.0) -> Admission:
    return Admission(
        max_listings=10,
        max_bytes=1000,
        expected_seconds=lambda listings: seconds * listings,
        estimate_age=lambda _: age,
    )


def test_an_old_estimate_does_not_keep_an_idle_service_closed() -> None:
    soon = Deadline.of("100", cap_ms=10_000)
    with pytest.raises(DeadlineExceeded), admission(5.0).admit(soon):
        pass
    late = admission(5.0, age=2.0)
    with late.admit(soon) as ticket:
        ticket.add_listings(1)
        with pytest.raises(DeadlineExceeded), late.admit(soon):
            pass  # one is enough to refresh the estimate
    with late.admit(soon):
        pass


def test_an_overload_is_reported_before_the_deadline_is_checked() -> None:
    """Another replica may have room, and then time as well; a deadline that cannot be met is final."""
    soon = Deadline.of("100", cap_ms=10_000)
    house = admission(0.001)
    with house.admit(Deadline.of(None, cap_ms=10_000)) as ticket:
        ticket.add_listings(10)
        house._expected_seconds = lambda _: 5.0
        with pytest.raises(Overloaded), house.admit(soon):
            pass


def test_room_is_taken_all_or_none_and_given_back() -> None:
    house = admission(0.0)
    with house.admit(Deadline.of(None, cap_ms=1000), nbytes=0) as ticket:
        assert (house.requests, house.listings, house.nbytes) == (1, 0, 0)
        ticket.add_listings(10)
        ticket.add_bytes(1000)
        with pytest.raises(Overloaded):
            ticket.add_listings(1)
        with pytest.raises(Overloaded):
            ticket.add_bytes(1)
        assert (house.listings, house.nbytes) == (10, 1000)
    assert (house.requests, house.listings, house.nbytes) == (0, 0, 0)
    with pytest.raises(Overloaded), house.admit(Deadline.of(None, cap_ms=1000), nbytes=1001):
        pass
