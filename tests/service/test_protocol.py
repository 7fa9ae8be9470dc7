"""What arrives over a connection before there is a request: arbitrary bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time

import pytest

from service.http import protocol
from service.observability import logs
from tests.service.conftest import Client, on_port, until

BODY = b'{"title": "shirt"}'
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)


async def talk(client: Client, *parts: bytes, hang_up: bool = True) -> bytes:
    """Send the parts, one packet each, and read until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.02)
    if hang_up:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
@pytest.mark.parametrize("apart", [False, True])
async def test_a_request_that_would_rather_upgrade_is_answered_as_any_other(upgrade: bytes, apart: bool) -> None:
    """Java's HttpClient asks for h2c by default. What follows is its body, never a request of its own."""
    more = b"Connection: Upgrade, close\r\nUpgrade: " + upgrade + b"\r\n\r\n"
    async with on_port() as client:
        parts = (HEAD + more, BODY) if apart else (HEAD + more + BODY,)
        answer = await talk(client, *parts, hang_up=False)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert client.predictor.batches == [["shirt"]]


async def test_a_request_to_upgrade_is_not_worth_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """Clients that send one do so with each request."""
    logs.configure("text")
    async with on_port() as client:
        await talk(client, HEAD + b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n" + BODY, hang_up=False)
    logging.getLogger("uvicorn.error").warning("something else")
    printed = capfd.readouterr().out
    assert "route=/v1/classify" in printed
    assert "something else" in printed
    assert "upgrade" not in printed
    assert "WebSocket" not in printed


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),  # TLS
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    ],
)
async def test_what_is_no_request_is_refused_with_a_problem(sent: bytes) -> None:
    async with on_port() as client:
        head, _, body = (await talk(client, sent)).partition(b"\r\n\r\n")
        problem = json.loads(body)
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in head
        assert problem["code"] == "malformed_request"
        assert problem["request_id"].encode() in head
        assert await client.metric("cma_clip_rejected_total", reason="malformed_request") == 1


@pytest.mark.parametrize("more", [b"a: b\r\n" * 10_000, b"a" * 60_000])
async def test_headers_without_end_are_not_read_to_the_end(more: bytes) -> None:
    async with on_port() as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)

        async def send() -> None:
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nLong: a")
            for _ in range(1000):  # 60 MB, of which buffers on the way take a few
                writer.write(more)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await send()
        writer.transport.abort()


@pytest.mark.parametrize("sent", [(), (b"GET / HT",), (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HT")])
async def test_silent_connections_are_closed(sent: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.5)
    async with on_port() as client:
        answer = await talk(client, *sent, hang_up=False)
        assert answer.count(b"HTTP/1.1 200") == max(0, len(sent) - 1)


async def test_connections_that_wait_for_an_answer_or_idle_between_requests_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.5)
    async with on_port() as client:
        client.predictor.free.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        for _ in range(2):
            client.predictor.free.clear()
            writer.write(HEAD + b"\r\n" + BODY)
            await until(lambda: client.predictor.batches)
            await asyncio.sleep(0.8)
            client.predictor.free.set()
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.8)  # answered, and idle for longer than headers may take
            await reader.read(100_000)
            client.predictor.batches.clear()
        writer.close()
        await writer.wait_closed()


# ── connections that end ────────────────────────────────────────────────────────────────────────────────────

ENDLESS = b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [ENDLESS, b"GET /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n"],
)
async def test_a_connection_whose_request_is_answered_and_whose_body_never_ends_is_closed(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REST_SECONDS", 0.4)
    async with on_port() as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(head)
        await reader.readuntil(b"\r\n\r\n")

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 10)
        dripping.cancel()
        writer.close()


async def test_a_body_that_ends_after_the_answer_leaves_a_connection_of_use_and_not_for_ever() -> None:
    async with on_port(keep_alive_seconds=1) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
        await reader.readuntil(b"}")
        writer.write(b"abc" + GET)
        await reader.readuntil(b"}")
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
        await reader.readuntil(b"}")
        writer.write(b"abc")
        began = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert time.monotonic() - began > 0.8
        writer.close()


async def test_idle_connections_are_kept_as_long_as_configured() -> None:
    async with on_port(keep_alive_seconds=1) as client:
        began = time.monotonic()
        answer = await talk(client, GET, hang_up=False)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert 0.9 < time.monotonic() - began < 8


async def test_a_caller_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SEND_SECONDS", 0.4)
    async with on_port() as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port, limit=1000)
        writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def ask() -> None:
            while True:
                writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
                await writer.drain()
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask(), 15)
        writer.transport.abort()


async def test_what_follows_an_answer_and_is_no_body_ends_the_connection_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with on_port() as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.readuntil(b"}")
        writer.write(b"what is this\r\n")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_body_that_breaks_off_being_http_is_refused_once(caplog: pytest.LogCaptureFixture) -> None:
    head = HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked") + b"\r\n"
    async with on_port() as client:
        answer = await talk(client, head, b"5\r\n{    \r\n", b"nonsense\r\n", hang_up=False)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 400 ") == 1
        assert client.pipeline.admission.nbytes == 0
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_new_connection_takes_the_place_of_one_that_waits_for_its_caller() -> None:
    async with on_port(max_connections=3, ready=False) as client:
        silent = [await asyncio.open_connection("127.0.0.1", client.base_url.port) for _ in range(10)]
        answers = [await talk(client, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) for _ in range(5)]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        for reader, _ in silent[:8]:
            assert await asyncio.wait_for(reader.read(), 5) == b"", "the longest waiting ones went first"
        for _, writer in silent:
            writer.close()


async def test_over_the_limit_of_connections_with_requests_in_progress_new_ones_are_refused_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with on_port(max_connections=3) as client:
        client.predictor.free.clear()
        inside = [asyncio.create_task(client.classify(title="a")) for _ in range(3)]
        await until(lambda: client.pipeline.admission.listings == 3)
        for _ in range(5):
            head, _, body = (await talk(client, GET, hang_up=False)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1" in head
            assert json.loads(body)["code"] == "overloaded"
        client.predictor.free.set()
        assert [(await call).status_code for call in inside] == [200] * 3
        assert (await client.get("/healthz")).status_code == 200
        assert await client.metric("cma_clip_rejected_total", reason="overloaded") == 5
    logged = [record for record in caplog.records if record.getMessage().startswith("refused: 3 connections are open")]
    assert 1 <= len(logged) < 5
