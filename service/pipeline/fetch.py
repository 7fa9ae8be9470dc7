"""Image URL to bytes, without letting callers use this machine to reach what they cannot reach themselves.

The rules (server-side request forgery): http and https only; a port, and a host from the allow-list, that images are
accepted from; every address that the name resolves to must be public, or in a private network that is configured.
A URL is parsed once (`image_url`); at every redirect its name is looked up and its addresses are checked (`gate`). A
connection is made to those very addresses: there is no second look-up that could answer differently, and pooled
connections went through the same gate. The connection keeps the host name, so that the Host header and the TLS
certificate refer to the name, not to the address.

Where a proxy is configured, it dials. The name's addresses are checked all the same where they can be looked up from
here; what lies in a private network that is configured is dialled directly.

Names are looked up before a fetch takes one of the pool's connections, and of one request a few listings at a time are
fetched: names or hosts that never answer hold up those who asked for them, and nobody else.

Bytes are counted as they arrive. Compressed answers are neither requested nor accepted, so nothing can expand in
memory.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpcore

from service.content_encoding import is_compressed
from service.errors import ImageFetchFailed, ImageHostUnreachable, ImageUrlForbidden, InvalidRequest, PayloadTooLarge
from service.pipeline.gate import Gate
from service.pipeline.image_url import PORTS, ImageUrl
from service.settings import Proxy, Settings

Headers = Mapping[str, str]

IMAGE_SETTING = "CMA_CLIP_MAX_IMAGE_BYTES"

IMAGES_ALONE = {"Accept": "image/*"}

REDIRECTS = frozenset({301, 302, 303, 307, 308})

FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    OSError,
    ValueError,
)
"""What a host can do to a connection; httpcore's errors have no common base, and TLS's are OSErrors."""


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """Bounds of one fetch, in bytes and seconds; the request's deadline bounds it too."""

    max_bytes: int
    seconds: float = 5.0
    connect_seconds: float = 2.0
    read_seconds: float = 3.0
    redirects: int = 3
    connections: int = 64
    connections_per_host: int = 8


class AddressBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to the addresses that `addresses` returns for a host, and to no others."""

    def __init__(self, addresses: Callable[[str], Awaitable[Sequence[str]]]) -> None:
        self._addresses = addresses
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception | None = None
        for address in await self._addresses(host):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error  # the next address may answer
        raise failure or httpcore.ConnectError("no address")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class CheckedAddresses:
    """The addresses of the hosts to which requests are being sent: what may be dialled, while they are."""

    def __init__(self) -> None:
        self._addresses: dict[str, Sequence[str]] = {}
        self._users: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def hold(self, host: str, addresses: Sequence[str]) -> Iterator[None]:
        self._addresses[host] = addresses
        self._users[host] += 1
        try:
            yield
        finally:
            self._users[host] -= 1
            if not self._users[host]:
                del self._addresses[host], self._users[host]

    async def of(self, host: str) -> Sequence[str]:
        return self._addresses.get(host, ())


class Connections:
    """Pools of connections to images' hosts: direct ones, and those through the proxy where there is one."""

    def __init__(self, gate: Gate, limits: FetchLimits, proxy: Proxy | None) -> None:
        self._gate = gate
        self._checked = CheckedAddresses()
        pool: dict[str, Any] = {
            "ssl_context": ssl.create_default_context(),
            "max_connections": limits.connections,
            "max_keepalive_connections": limits.connections,
            "keepalive_expiry": 10,
        }
        self._direct = httpcore.AsyncConnectionPool(network_backend=AddressBackend(self._checked.of), **pool)
        self._proxied: httpcore.AsyncConnectionPool | None = None
        if proxy is not None:
            self._proxied = httpcore.AsyncHTTPProxy(
                proxy.url, proxy.credentials, network_backend=AddressBackend(gate.resolve), **pool
            )

    async def send(
        self, method: str, url: ImageUrl, *, headers: Headers, content: bytes | None, extensions: dict[str, Any]
    ) -> httpcore.Response:
        """Send a request once the host's addresses have been checked, and return the answer, whose body is to be read.

        Raises `ImageUrlForbidden`, `ImageFetchFailed` or one of `FAILURES`.
        """
        if self._proxied is None:
            pool, addresses = self._direct, await self._gate.addresses(url.host)
        else:
            addresses = await self._gate.known_addresses(url.host)
            pool = self._direct if self._gate.is_inside(addresses) else self._proxied
        # httpcore writes a proxy's request line without brackets of its own.
        host = f"[{url.host}]" if ":" in url.host and pool is self._proxied else url.host
        port = None if url.port == PORTS[url.scheme] else url.port
        target = httpcore.URL(scheme=url.scheme, host=host, port=port, target=url.target)
        with self._checked.hold(url.host, addresses):
            return await pool.handle_async_request(
                httpcore.Request(method, target, headers=[*headers.items()], content=content, extensions=extensions)
            )

    async def aclose(self) -> None:
        await self._direct.aclose()
        if self._proxied is not None:
            await self._proxied.aclose()


class Fetcher:
    """Fetches images, a bounded number at a time, over pooled connections."""

    def __init__(
        self, gate: Gate, limits: FetchLimits, *, proxy: Proxy | None = None, unused_proxy: str | None = None
    ) -> None:
        """unused_proxy: a variable that names a proxy which other programs would use: told where no host is reached"""
        self._gate, self._limits = gate, limits
        hint = f"; {unused_proxy} names a proxy, which is not used for images: set CMA_CLIP_IMAGE_PROXY"
        self._hint = hint if unused_proxy else ""
        self._connections = Connections(gate, limits, proxy)
        self._hosts = HostSlots(limits.connections_per_host)
        self._timeouts = {
            "timeout": {
                "connect": limits.connect_seconds,
                "read": limits.read_seconds,
                "write": limits.read_seconds,
                "pool": limits.seconds,
            }
        }

    async def fetch(self, text: str, *, on_bytes: Callable[[int], None] = lambda count: None) -> bytes:
        """Return the bytes behind the URL `text`.

        on_bytes: called with the size of each piece as it arrives; may raise to stop
        Raises `InvalidRequest` (not a URL), `ImageUrlForbidden`, `PayloadTooLarge` or `ImageFetchFailed`.
        """
        try:
            return await self._fetch(ImageUrl.parse(text), on_bytes)
        except ImageHostUnreachable as error:
            raise ImageHostUnreachable(error.detail + self._hint) from None

    async def _fetch(self, url: ImageUrl, on_bytes: Callable[[int], None]) -> bytes:
        try:
            async with asyncio.timeout(self._limits.seconds):
                for _ in range(self._limits.redirects + 1):
                    self._gate.check(url)
                    async with self._hosts.slot(url.host), self._sent(url) as response:
                        location = _header(response, b"location")
                        if response.status not in REDIRECTS or not location:
                            return await self._read(response, on_bytes)
                        url = _redirected(url, location)
        except (TimeoutError, httpcore.TimeoutException):
            raise ImageHostUnreachable("the image's host did not answer in time") from None
        except FAILURES:
            raise ImageHostUnreachable("the connection to the image's host failed") from None
        raise ImageFetchFailed(f"the image's host redirects more than {self._limits.redirects} times")

    async def check(self, text: str) -> None:
        """Raise `InvalidRequest` or `ImageUrlForbidden` for a URL that would be refused whatever its host answers."""
        url = ImageUrl.parse(text)
        self._gate.check(url)
        await self._gate.known_addresses(url.host)

    async def post(self, text: str, body: bytes, headers: Headers) -> int:
        """Send a body to a URL by the same rules, follow no redirect, and return the status of the answer.

        Raises `InvalidRequest`, `ImageUrlForbidden` or `ImageFetchFailed`.
        """
        url = ImageUrl.parse(text)
        self._gate.check(url)
        own = {**headers, "Content-Length": str(len(body))}
        try:
            async with (
                asyncio.timeout(self._limits.seconds),
                self._hosts.slot(url.host),
                self._sent(url, "POST", own, body) as response,
            ):
                return int(response.status)
        except (TimeoutError, httpcore.TimeoutException):
            raise ImageHostUnreachable("the host did not answer in time") from None
        except FAILURES:
            raise ImageHostUnreachable("the connection to the host failed") from None

    async def aclose(self) -> None:
        await self._connections.aclose()

    @asynccontextmanager
    async def _sent(
        self,
        url: ImageUrl,
        method: str = "GET",
        own: Headers = IMAGES_ALONE,
        content: bytes | None = None,
    ) -> AsyncIterator[httpcore.Response]:
        # Nothing of one caller is sent with another's: no cookie, no credentials.
        headers: Headers = {
            "Host": url.authority,
            "Accept-Encoding": "identity",
            "User-Agent": "cma-clip",
            **own,
        }
        response = await self._connections.send(
            method, url, headers=headers, content=content, extensions=self._timeouts
        )
        try:
            yield response
        finally:
            await response.aclose()

    async def _read(self, response: httpcore.Response, on_bytes: Callable[[int], None]) -> bytes:
        if response.status != 200:
            raise ImageFetchFailed(f"the image's host answered with status {response.status}")
        if is_compressed(_header(response, b"content-encoding")):
            raise ImageFetchFailed("the image's host sent a compressed answer, which was not asked for")
        declared = _header(response, b"content-length")
        if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > self._limits.max_bytes:
            raise self._too_large(int(declared))
        body = bytearray()
        async for chunk in response.aiter_stream():
            if len(body) + len(chunk) > self._limits.max_bytes:
                raise self._too_large()
            on_bytes(len(chunk))
            body += chunk
        return bytes(body)

    def _too_large(self, nbytes: int | None = None) -> PayloadTooLarge:
        return PayloadTooLarge.bytes_of("the image behind the URL", nbytes, self._limits.max_bytes, IMAGE_SETTING)


def _header(response: httpcore.Response, name: bytes) -> str:
    """Return a header as UTF-8, what is none replaced; empty where it is missing."""
    return next((value.decode("utf-8", "replace") for key, value in response.headers if key.lower() == name), "")


def _redirected(url: ImageUrl, location: str) -> ImageUrl:
    """Return where a redirect leads; raises `ImageUrlForbidden`, or `ImageFetchFailed` where that is no URL."""
    try:
        return url.join(location)
    except ImageUrlForbidden:
        raise
    except InvalidRequest:
        raise ImageFetchFailed("the image's host redirects to what is not a URL") from None


class HostSlots:
    """Bounds the concurrent fetches from each host, so that one slow host does not take every connection."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._users: defaultdict[str, int] = defaultdict(int)

    @asynccontextmanager
    async def slot(self, host: str) -> AsyncIterator[None]:
        semaphore = self._slots.setdefault(host, asyncio.Semaphore(self._per_host))
        self._users[host] += 1
        try:
            async with semaphore:
                yield
        finally:
            self._users[host] -= 1
            if not self._users[host]:  # hosts are named by callers, so the number of entries must stay bounded
                del self._slots[host], self._users[host]


def configured_fetcher(settings: Settings, gate: Gate | None = None) -> Fetcher:
    """Return a fetcher under the rules of `settings`, or of `gate` where one is given."""
    gate = gate or Gate(
        allowed_hosts=settings.image_hosts,
        ports=settings.open_image_ports,
        private_networks=settings.image_networks,
        allow_private=settings.allow_private_image_hosts,
    )
    limits = FetchLimits(max_bytes=settings.max_image_bytes)
    return Fetcher(gate, limits, proxy=settings.proxy, unused_proxy=settings.unused_proxy)
