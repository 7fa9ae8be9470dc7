"""Image URLs, against real servers on loopback that misbehave in every way a host can.

Names are resolved by a table, and loopback counts as public where a test needs it to: nothing else is changed.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from service.errors import (
    ImageFetchFailed,
    ImageHostUnreachable,
    ImageUrlForbidden,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
)
from service.pipeline import gate as gate_module
from service.pipeline.call import FETCHES
from service.pipeline.fetch import Fetcher, FetchLimits, HostSlots, configured_fetcher
from service.pipeline.gate import Gate, is_public
from service.pipeline.names import Resolve
from service.settings import PROXY_VARIABLES, Proxy, Settings
from tests.service.conftest import as_base64, encoded, in_process, until
from tests.service.test_routes import check_problem

IMAGE = encoded()
LIMITS = FetchLimits(max_bytes=5000, seconds=1.0, connect_seconds=0.5, read_seconds=0.3)

ANY_PORT = range(1, 65536)

Respond = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class Host:
    """A server on 127.0.0.1 whose answers are written byte by byte."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[str] = []
        self.heads: list[str] = []
        self.connections = 0
        self.open = 0
        self.most_open = 0

    def url(self, path: str = "", *, name: str = "images.test") -> str:
        return f"http://{name}:{self.port}/{path}"


@asynccontextmanager
async def host(respond: Respond, *, address: str = "127.0.0.1") -> AsyncIterator[Host]:
    """Serve while the context lasts; `respond` is given the path and writes whatever it likes."""
    found = Host()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        found.open += 1
        found.most_open = max(found.most_open, found.open)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split()[1].decode()
                found.requests.append(path)
                found.heads.append(head.decode())
                await respond(path, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            found.open -= 1
            writer.close()

    server = await asyncio.start_server(serve, address, 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


def table(**names: list[str]) -> Resolve:
    """A resolver that knows these names, dots written as underscores."""
    known = {name.replace("_", "."): addresses for name, addresses in names.items()}

    async def resolve(name: str) -> list[str]:
        try:
            return [str(ipaddress.ip_address(name))]
        except ValueError:
            return known.get(name, [])

    return resolve


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "is_public", lambda address: str(address) == "127.0.0.1" or is_public(address))


def gate(**options: Any) -> Gate:
    here = {name: ["127.0.0.1"] for name in ("images_test", "bad_test", "slow_test")}
    names = table(**here, inner_test=["127.0.0.2"], two_test=["127.0.0.9", "127.0.0.1"])
    return Gate(resolve=names, **{"ports": ANY_PORT, **options})


@asynccontextmanager
async def fetching(limits: FetchLimits = LIMITS, **options: Any) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(gate(**options), limits)
    try:
        yield fetcher
    finally:
        await fetcher.aclose()


def answer(body: bytes, *, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    fields = {"Content-Type": "image/png", "Content-Length": str(len(body) if length is None else length), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def says(*pieces: bytes) -> Respond:
    async def respond(path: str, writer: asyncio.StreamWriter) -> None:
        writer.writelines(pieces)

    return respond


# ── what is fetched ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("loopback_is_public")
async def test_an_image_is_fetched_and_the_connection_kept() -> None:
    async with host(says(answer(IMAGE))) as origin, fetching() as fetcher:
        for _ in range(5):
            assert await fetcher.fetch(origin.url("a.png")) == IMAGE
        assert origin.requests == ["/a.png"] * 5
        assert origin.connections == 1
        assert f"Host: images.test:{origin.port}" in origin.heads[0]
        assert "cookie" not in origin.heads[-1].lower()


@pytest.mark.usefixtures("loopback_is_public")
async def test_one_hosts_cookies_are_not_kept() -> None:
    async with host(says(answer(IMAGE, Set_Cookie="a=b"))) as origin, fetching() as fetcher:
        for _ in range(2):
            await fetcher.fetch(origin.url())
        assert "cookie" not in origin.heads[-1].lower()


@pytest.mark.usefixtures("loopback_is_public")
async def test_bytes_are_counted_as_they_arrive_and_may_be_refused() -> None:
    counted: list[int] = []
    async with host(says(answer(IMAGE))) as origin, fetching() as fetcher:
        await fetcher.fetch(origin.url(), on_bytes=counted.append)
        assert sum(counted) == len(IMAGE)

        def refuse(count: int) -> None:
            raise Overloaded("no room")

        with pytest.raises(Overloaded):
            await fetcher.fetch(origin.url(), on_bytes=refuse)


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_chunked_answer_is_put_together() -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (IMAGE[:10], IMAGE[10:])) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with host(says(head, chunks)) as origin, fetching() as fetcher:
        assert await fetcher.fetch(origin.url()) == IMAGE


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    "encoding", ["identity", "UTF-8", "utf8", "aws-chunked", "aws-chunked, identity", "", "binary"]
)
async def test_what_object_stores_call_an_encoding_is_none(encoding: str) -> None:
    async with host(says(answer(IMAGE, Content_Encoding=encoding))) as origin, fetching() as fetcher:
        assert await fetcher.fetch(origin.url()) == IMAGE


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize("encoding", ["gzip", "br", "aws-chunked, gzip", "UTF-8,deflate", "zstd"])
async def test_a_compressed_answer_is_refused(encoding: str) -> None:
    async with host(says(answer(IMAGE, Content_Encoding=encoding))) as origin, fetching() as fetcher:
        with pytest.raises(ImageFetchFailed, match="compressed answer"):
            await fetcher.fetch(origin.url())


@pytest.mark.usefixtures("loopback_is_public")
async def test_white_space_around_a_url_is_no_part_of_it() -> None:
    async with host(says(answer(IMAGE))) as origin, in_process(gate=gate()) as client:
        reply = await client.classify(image={"url": f"\n {origin.url()}\u00a0\r\n"})
        assert reply.status_code == 200
        inside = await client.classify(image={"url": "http://images.test/a b\tc"})
        check_problem(inside, 422, "invalid_request")


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_second_address_is_tried_where_the_first_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "is_public", lambda address: address.is_loopback)
    async with host(says(answer(IMAGE))) as origin, fetching() as fetcher:
        assert await fetcher.fetch(origin.url(name="two.test")) == IMAGE  # nobody listens on 127.0.0.9


# ── where it must not lead ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.1",
        "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "203.0.113.1",
        "::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2001:db8::1", "100::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a00:1",
        "2002:7f00:1::", "2002:a00:1::", "2001::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "0x7f.1", "2130706433", "0177.0.0.1", "127.1"]
)
async def test_loopback_is_forbidden_however_it_is_written(name: str) -> None:
    async with host(says(answer(IMAGE))) as origin:
        fetcher = Fetcher(Gate(ports=ANY_PORT), LIMITS)  # the system's own resolver
        with pytest.raises((ImageUrlForbidden, InvalidRequest)):  # httpx knows some spellings to be no address
            await fetcher.fetch(origin.url(name=name))
        assert origin.connections == 0
        await fetcher.aclose()


async def test_a_name_that_resolves_to_loopback_is_forbidden() -> None:
    async with host(says(answer(IMAGE))) as origin, fetching() as fetcher:
        with pytest.raises(ImageUrlForbidden):
            await fetcher.fetch(origin.url())
        assert origin.connections == 0


@pytest.mark.parametrize("addresses", [["8.8.8.8", "10.0.0.1"], ["::1", "8.8.8.8"], ["fe80::1%eth0"]])
async def test_one_forbidden_address_forbids_the_name(addresses: list[str]) -> None:
    fetcher = Fetcher(Gate(resolve=table(mixed_test=addresses)), LIMITS)
    with pytest.raises(ImageUrlForbidden):
        await fetcher.fetch("http://mixed.test/")
    await fetcher.aclose()


@pytest.mark.usefixtures("loopback_is_public")
async def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    """A name server that answers differently the second time gets no second time."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def resolve(name: str) -> list[str]:
        return answers.pop(0)

    async with host(says(answer(IMAGE))) as origin, host(says(answer(b"secret")), address="127.0.0.2") as inner:
        fetcher = Fetcher(Gate(resolve=resolve, ports=ANY_PORT), LIMITS)
        assert await fetcher.fetch(origin.url(name="rebinding.test")) == IMAGE
        assert answers == [["127.0.0.2"]]
        assert inner.connections == 0
        await fetcher.aclose()


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    "location", ["http://127.0.0.2:{port}/", "http://inner.test:{port}/", "//127.0.0.2:{port}/", "http://[::1]:{port}/",
                 "http://169.254.169.254/latest/meta-data/"],
)  # fmt: skip
async def test_a_redirect_passes_the_same_gate(location: str) -> None:
    async with host(says(answer(b"secret")), address="127.0.0.2") as inner:
        redirect = answer(b"", status="302 Found", Location=location.format(port=inner.port))
        async with host(says(redirect)) as origin, fetching() as fetcher:
            with pytest.raises(ImageUrlForbidden):
                await fetcher.fetch(origin.url())
            assert origin.connections == 1
            assert inner.connections == 0


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_redirect_to_loopback_through_the_service_is_the_callers_mistake() -> None:
    redirect = answer(b"", status="301 Moved", Location="http://127.0.0.2:9/")
    async with host(says(redirect)) as origin, in_process(gate=gate()) as client:
        check_problem(await client.classify(image={"url": origin.url()}), 422, "image_url_forbidden")


@pytest.mark.usefixtures("loopback_is_public")
async def test_redirects_are_followed_and_counted() -> None:
    async def respond(path: str, writer: asyncio.StreamWriter) -> None:
        left = int(path[1:])
        body = answer(b"", status="307 Temporary", Location=f"/{left - 1}") if left else answer(IMAGE)
        writer.write(body)

    async with host(respond) as origin, fetching() as fetcher:
        assert await fetcher.fetch(origin.url("3")) == IMAGE
        with pytest.raises(ImageFetchFailed, match="redirects"):
            await fetcher.fetch(origin.url("4"))


@pytest.mark.parametrize(
    "location", ["ftp://images.test/", "file:///etc/passwd", "gopher://x/", "http://a:b@images.test/"]
)
@pytest.mark.usefixtures("loopback_is_public")
async def test_only_http_is_followed(location: str) -> None:
    redirect = answer(b"", status="302 Found", Location=location)
    async with host(says(redirect)) as origin, fetching() as fetcher:
        with pytest.raises((ImageUrlForbidden, ImageFetchFailed)):
            await fetcher.fetch(origin.url())
        assert origin.connections == 1


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/b", "file:///etc/passwd", "data:image/png;base64,AA==", "http://", "http:///a", "//images.test/a",
        "a.png", "", "http://user@images.test/", "http://u:p@images.test/",
    ],
)  # fmt: skip
async def test_urls_that_are_not_for_fetching_are_forbidden(url: str) -> None:
    async with fetching() as fetcher:
        with pytest.raises(ImageUrlForbidden):
            await fetcher.fetch(url)


@pytest.mark.parametrize(
    "url", ["http://[", "http://a:99999999/", "http://a\0b/", "http://\ud800/", "http://a b/", "http://[::1%]/"]
)
async def test_what_is_no_url_is_named(url: str) -> None:
    async with fetching() as fetcher:
        with pytest.raises((InvalidRequest, ImageFetchFailed)):
            await fetcher.fetch(url)


@pytest.mark.usefixtures("loopback_is_public")
async def test_an_allow_list_names_hosts_and_domains() -> None:
    async with host(says(answer(IMAGE))) as origin:
        async with fetching(allowed_hosts=["images.test"]) as fetcher:
            assert await fetcher.fetch(origin.url()) == IMAGE
            for name in ("two.test", "my.images.test", "127.0.0.1", "images.test.evil"):
                with pytest.raises(ImageUrlForbidden):
                    await fetcher.fetch(origin.url(name=name))
        async with fetching(allowed_hosts=[".test"]) as fetcher:
            assert await fetcher.fetch(origin.url()) == IMAGE
            with pytest.raises(ImageUrlForbidden):
                await fetcher.fetch(origin.url(name="imagestest"))


async def test_an_allow_list_names_international_hosts_as_dns_does() -> None:
    for url in ("http://bücher.invalid/a.jpg", "http://xn--bcher-kva.invalid/a.jpg"):
        async with fetching(allowed_hosts=["xn--bcher-kva.invalid"]) as fetcher:
            with pytest.raises(ImageFetchFailed):  # let pass, and there is no such host
                await fetcher.fetch(url)
        async with fetching(allowed_hosts=["xn--bcher-abc.invalid"]) as fetcher:
            with pytest.raises(ImageUrlForbidden):
                await fetcher.fetch(url)


async def test_private_addresses_are_reached_where_that_is_configured() -> None:
    async with host(says(answer(IMAGE))) as origin, fetching(allow_private=True) as fetcher:
        assert await fetcher.fetch(origin.url(name="127.0.0.1")) == IMAGE


# ── hosts that misbehave ─────────────────────────────────────────────────────────────────────────────────────────


async def stall(path: str, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def trickle(path: str, writer: asyncio.StreamWriter) -> None:
    """Never silent for long enough to time out, never done."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def half(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(IMAGE[: len(IMAGE) // 2], length=len(IMAGE)))
    await writer.drain()
    writer.close()


async def endless(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        await writer.drain()


async def endless_head(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: " + b"y" * 1000 + b"\r\n")
        await writer.drain()


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    "respond",
    [
        stall, trickle, half, endless_head,
        says(answer(b"", status="404 Not Found")), says(answer(IMAGE, status="500 Oops")),
        says(answer(IMAGE, status="206 Partial Content")), says(answer(b"", status="204 No Content")),
        says(answer(b"", status="304 Not Modified")), says(answer(b"", status="302 Found")),
        says(answer(b"", status="302 Found", Location="http://[")),
        says(b"nonsense\r\n\r\n"), says(b"\0" * 100 + b"\r\n\r\n"), says(answer(IMAGE, Content_Encoding="gzip")),
        says(answer(IMAGE, length=-1)), says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ],
)  # fmt: skip
async def test_a_host_that_fails_is_a_failed_fetch(respond: Respond) -> None:
    async with host(respond) as origin, fetching() as fetcher:
        async with asyncio.timeout(5):
            with pytest.raises(ImageFetchFailed):
                await fetcher.fetch(origin.url())


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_host_that_is_not_there_is_a_failed_fetch() -> None:
    async with fetching() as fetcher:
        with pytest.raises(ImageFetchFailed):
            await fetcher.fetch("http://images.test:1/")
        with pytest.raises(ImageFetchFailed):
            await fetcher.fetch("http://nowhere.test/")


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize("respond", [endless, says(answer(b"x" * 6000)), says(answer(IMAGE, length=10**12))])
async def test_too_many_bytes_are_too_large(respond: Respond) -> None:
    async with host(respond) as origin, fetching() as fetcher:
        with pytest.raises(PayloadTooLarge):
            await fetcher.fetch(origin.url())
        await until(lambda: origin.open == 0)  # and the connection is not kept


@pytest.mark.usefixtures("loopback_is_public")
async def test_the_bytes_decide_and_not_the_header() -> None:
    async with in_process(gate=gate()) as client:
        async with host(says(answer(IMAGE, Content_Type="text/html"))) as origin:
            by_url = await client.classify(image={"url": origin.url()})
            assert by_url.json() == (await client.classify(image={"base64": as_base64(IMAGE)})).json()
        for body in (b"<html>sorry</html>", b"", IMAGE[:50], b'{"error": 1}'):
            async with host(says(answer(body))) as origin:
                check_problem(await client.classify(image={"url": origin.url()}), 424, "image_fetch_failed")


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_length_that_lies_short_cuts_the_image() -> None:
    async with host(says(answer(IMAGE, length=40))) as origin, in_process(gate=gate()) as client:
        check_problem(await client.classify(image={"url": origin.url()}), 424, "image_fetch_failed")


@pytest.mark.usefixtures("loopback_is_public")
async def test_one_slow_image_does_not_cost_the_others_of_a_batch() -> None:
    async def respond(path: str, writer: asyncio.StreamWriter) -> None:
        await (stall if path == "/slow" else says(answer(IMAGE)))(path, writer)

    async with host(respond) as origin, in_process(gate=gate(), request_timeout_ms=1000) as client:
        listings = [{"image": {"url": origin.url(path)}} for path in ("a", "slow", "b")]
        results = (await client.post("/v1/classify/batch", json={"listings": listings})).json()["results"]
        assert ["error" in result for result in results] == [False, True, False]
        assert results[1]["error"]["code"] == "deadline_exceeded"


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_caller_who_leaves_ends_the_fetch() -> None:
    async with host(stall) as origin, in_process(gate=gate()) as client:
        task = asyncio.create_task(client.classify(image={"url": origin.url()}))
        await until(lambda: origin.open)
        task.cancel()
        await until(lambda: not client.pipeline.admission.listings)
        assert client.pipeline.admission.nbytes == 0


@pytest.mark.usefixtures("loopback_is_public")
async def test_fetches_from_one_host_are_bounded() -> None:
    async def respond(path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(answer(IMAGE))

    limits = FetchLimits(max_bytes=5000, connections_per_host=3)
    async with host(respond) as origin, fetching(limits) as fetcher:
        found = await asyncio.gather(*(fetcher.fetch(origin.url()) for _ in range(20)))
        assert found == [IMAGE] * 20
        assert origin.most_open == 3
        assert fetcher._hosts._slots == {}


async def test_a_cancelled_wait_for_a_host_gives_its_slot_back() -> None:
    slots = HostSlots(1)

    async def hold(seconds: float) -> None:
        async with slots.slot("a"):
            await asyncio.sleep(seconds)

    first, second = asyncio.create_task(hold(0.05)), asyncio.create_task(hold(0))
    await asyncio.sleep(0.01)
    second.cancel()
    await first
    async with asyncio.timeout(1):
        await hold(0)
    assert slots._slots == {}


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_flood_of_bad_hosts_leaves_the_pool_usable() -> None:
    limits = FetchLimits(max_bytes=5000, seconds=4.0)
    async with (
        host(half) as bad,
        host(trickle) as slow,
        host(says(answer(IMAGE))) as good,
        fetching(limits) as fetcher,
    ):
        urls = [bad.url(name="bad.test"), slow.url(name="slow.test"), good.url()] * 20
        found = await asyncio.gather(*(fetcher.fetch(url) for url in urls), return_exceptions=True)
        assert {type(outcome) for outcome in found[0::3] + found[1::3]} == {ImageHostUnreachable}
        assert found[2::3] == [IMAGE] * 20
        assert await fetcher.fetch(good.url()) == IMAGE


@pytest.mark.usefixtures("loopback_is_public")
async def test_names_that_nobody_answers_hold_up_no_other_request() -> None:
    """Of one request they took all connections, since a name was looked up while one was held for it."""

    async def resolve(name: str) -> list[str]:
        if name.endswith(".dead"):
            await asyncio.sleep(60)
        return ["127.0.0.1"]

    here = Gate(resolve=resolve, ports=ANY_PORT)
    async with host(says(answer(IMAGE))) as origin, in_process(gate=here, request_timeout_ms=60_000) as client:
        listings = [{"image": {"url": f"http://{n}.dead/"}} for n in range(64)]
        dead = [asyncio.create_task(client.post("/v1/classify/batch", json={"listings": listings})) for _ in range(2)]
        await until(lambda: client.pipeline.admission.listings == 128)
        good = await client.classify(image={"url": origin.url()})
        assert good.status_code == 200
        assert not any(task.done() for task in dead)
        for task in dead:
            task.cancel()
        await asyncio.gather(*dead, return_exceptions=True)


@pytest.mark.usefixtures("loopback_is_public")
async def test_one_request_does_not_take_all_connections() -> None:
    async with host(stall) as slow, in_process(gate=gate()) as client:
        listings = [{"image": {"url": slow.url(name=f"127.0.0.{n}")}} for n in range(1, 65)]
        await client.post("/v1/classify/batch", json={"listings": listings}, headers={"X-Request-Timeout-Ms": "500"})
        assert slow.most_open <= FETCHES


# ── ports, private networks and the proxy ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", ["http://images.test:22/", "https://images.test:8443/", "http://images.test:0/"])
async def test_only_the_usual_ports_are_dialled(url: str) -> None:
    async with fetching(ports=(80, 443)) as fetcher:
        with pytest.raises(ImageUrlForbidden, match="port"):
            await fetcher.fetch(url)


async def test_where_private_hosts_are_allowed_any_port_is_unless_some_are_named() -> None:
    async with host(says(answer(IMAGE))) as origin:
        url = f"http://127.0.0.1:{origin.port}/a.png"
        fetcher = configured_fetcher(Settings(allow_private_image_hosts=True))
        assert await fetcher.fetch(url) == IMAGE
        await fetcher.aclose()
        for settings in (Settings(allow_private_image_hosts=True, image_ports=(80, 443)), Settings()):
            fetcher = configured_fetcher(settings)
            with pytest.raises(ImageUrlForbidden, match=f"port {origin.port} .CMA_CLIP_IMAGE_PORTS"):
                await fetcher.fetch(url)
            await fetcher.aclose()


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_redirect_to_another_port_is_refused() -> None:
    redirect = answer(b"", status="302 Found", Location="http://127.0.0.1:22/")
    async with host(says(redirect)) as origin, fetching(ports=(origin.port,), allow_private=True) as fetcher:
        with pytest.raises(ImageUrlForbidden, match="port"):
            await fetcher.fetch(origin.url())


@pytest.mark.parametrize(
    ("address", "networks", "allowed"),
    [
        ("10.1.2.3", ["10.1.0.0/16"], True),
        ("10.2.2.3", ["10.1.0.0/16"], False),
        ("::ffff:10.1.2.3", ["10.1.0.0/16"], True),
        ("64:ff9b::a01:203", ["10.1.0.0/16"], False),  # through a gateway, to wherever that leads
        ("2002:a01:203::", ["10.1.0.0/16"], False),
        ("fd00:1::1", ["10.1.0.0/16", "fd00:1::/64"], True),
        ("169.254.169.254", ["10.0.0.0/8"], False),
        ("168.63.129.16", ["168.63.129.16/32"], True),  # named itself
        ("8.8.8.8", ["10.1.0.0/16"], True),
    ],
)
async def test_private_networks_that_are_named_are_reached(address: str, networks: list[str], *, allowed: bool) -> None:
    here = Gate(private_networks=[ipaddress.ip_network(network) for network in networks])
    if allowed:
        assert await here.addresses(address) == [address]
    else:
        with pytest.raises(ImageUrlForbidden):
            await here.addresses(address)


@pytest.mark.parametrize(
    "address",
    ["168.63.129.16", "192.0.0.192", "169.254.169.254", "100.100.100.200", "fe80::1", "fd00:ec2::254",
     "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"],
)  # fmt: skip
async def test_a_clouds_platform_is_never_reached_unless_it_is_named(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(ImageUrlForbidden):
        await Gate(allow_private=True).addresses(address)
    assert await Gate(allow_private=True).addresses("10.0.0.1") == ["10.0.0.1"]


@asynccontextmanager
async def proxied(**options: Any) -> AsyncIterator[tuple[Fetcher, Host]]:
    """A fetcher behind a proxy that answers itself."""
    async with host(says(answer(IMAGE))) as proxy:
        behind = Proxy(url=f"http://127.0.0.1:{proxy.port}", credentials=("me", "secret"))
        fetcher = Fetcher(gate(**options), LIMITS, proxy=behind)
        try:
            yield fetcher, proxy
        finally:
            await fetcher.aclose()


async def test_the_proxy_dials_what_cannot_be_looked_up_from_here() -> None:
    async with proxied() as (fetcher, proxy):
        assert await fetcher.fetch("http://nowhere.test/a.jpg?b") == IMAGE
        assert proxy.requests == ["http://nowhere.test/a.jpg?b"]
        assert "Host: nowhere.test\r\n" in proxy.heads[0]
        assert f"proxy-authorization: basic {as_base64(b'me:secret')}".lower() in proxy.heads[0].lower()


async def test_the_proxy_is_asked_for_a_tunnel_to_https() -> None:
    async with proxied() as (fetcher, proxy):
        with pytest.raises(ImageFetchFailed):  # no TLS behind it
            await fetcher.fetch("https://nowhere.test/a.jpg")
        assert proxy.requests == ["nowhere.test:443"]


@pytest.mark.parametrize("url", ["http://images.test/", "http://10.0.0.1/", "http://[::1]/", "http://169.254.169.254/"])
async def test_the_proxy_is_no_way_around_the_gate(url: str) -> None:
    async with proxied() as (fetcher, proxy):
        with pytest.raises(ImageUrlForbidden):
            await fetcher.fetch(url)
        assert proxy.connections == 0


async def test_a_private_network_that_is_named_is_dialled_past_the_proxy() -> None:
    inside = [ipaddress.ip_network("127.0.0.1/32")]
    async with host(says(answer(IMAGE))) as origin, proxied(private_networks=inside) as (fetcher, proxy):
        assert await fetcher.fetch(origin.url()) == IMAGE
        assert (origin.connections, proxy.connections) == (1, 0)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
async def test_a_proxy_for_other_programs_is_named_where_no_host_is_reached(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for each in PROXY_VARIABLES:
        monkeypatch.delenv(each, raising=False)
        monkeypatch.delenv(each.lower(), raising=False)
    assert Settings().unused_proxy is None
    async with host(says(answer(IMAGE))) as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        fetcher = configured_fetcher(Settings(), gate())
        with pytest.raises(ImageFetchFailed, match=rf"no address; {variable} names a proxy.* set CMA_CLIP_IMAGE_PROXY"):
            await fetcher.fetch("http://nowhere.test/")
        await fetcher.aclose()
        assert proxy.connections == 0
    assert Settings(image_proxy=SecretStr("http://proxy.test:3128")).unused_proxy is None


async def test_a_proxy_that_is_not_there_or_refuses_is_a_failed_fetch() -> None:
    refusing = says(answer(b"", status="407 Proxy Authentication Required"))
    async with host(refusing) as proxy:
        for port in (proxy.port, 1):
            fetcher = Fetcher(gate(), LIMITS, proxy=Proxy(url=f"http://127.0.0.1:{port}"))
            for url in ("http://nowhere.test/", "https://nowhere.test/"):
                with pytest.raises(ImageFetchFailed):
                    await fetcher.fetch(url)
            await fetcher.aclose()
