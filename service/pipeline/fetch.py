"""Image URL to bytes, without letting callers use this machine to reach what they cannot reach themselves.

The rules (server-side request forgery): http and https only; a host from the allow-list, if there is one;
every address that the name resolves to must be public, unless private networks are allowed. The check sits in
the network backend, where the connection is made: the very address that was checked is dialled, there is no
second look-up that could answer differently, and redirects and pooled connections pass the same gate. The URL
keeps its host name, so that the Host header and the TLS certificate refer to the name, not to the address.

Bytes are counted as they arrive. Compressed answers are neither requested nor accepted, so nothing can expand in
memory.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx

from service.errors import ImageFetchFailed, ImageUrlForbidden, InvalidRequest, PayloadTooLarge

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

Resolve = Callable[[str, int], Awaitable[list[str]]]

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses in this network lead to the IPv4 address in their last 32 bits."""


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


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, in the order in which to try them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet; IPv4 addresses inside IPv6 ones are judged too."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address.sixtofour:
            return is_public(address.sixtofour)
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.teredo or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class Gate:
    """Which hosts and addresses may be dialled."""

    def __init__(
        self, *, allowed_hosts: Iterable[str] = (), allow_private: bool = False, resolve: Resolve = resolve
    ) -> None:
        """allowed_hosts: names, or `.example.com` for that name and all below it; empty: every host."""
        self._allowed_hosts = tuple(allowed_hosts)
        self._allow_private = allow_private
        self._resolve = resolve

    def check_host(self, host: str) -> None:
        """Raise `ImageUrlForbidden` if there is an allow-list and the host is not on it."""
        host = host.lower().rstrip(".")
        if self._allowed_hosts and not any(
            host == allowed.lstrip(".") or (allowed.startswith(".") and host.endswith(allowed))
            for allowed in self._allowed_hosts
        ):
            raise ImageUrlForbidden("images are not accepted from this host")

    async def addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses that may be dialled for `host`.

        One forbidden address among them forbids them all: a public name has none.
        Raises `ImageUrlForbidden`, or `ImageFetchFailed` if the name has no address.
        """
        self.check_host(host)
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise ImageFetchFailed("the image's host has no address")
        for address in found:
            # A scope (fe80::1%eth0) is not part of the address.
            if not self._allow_private and not is_public(ipaddress.ip_address(address.partition("%")[0])):
                raise ImageUrlForbidden("the image's host leads to an address that is not public")
        return found


class GatedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to checked addresses only."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
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
        for address in await self._gate.addresses(host, port):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error  # the next address may answer
        raise failure or httpcore.ConnectError("no address")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _Stream(httpx.AsyncByteStream):
    """A response's body, its errors translated to httpx's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for chunk in self._stream:
                yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class GatedTransport(httpx.AsyncBaseTransport):
    """httpx over a pool of connections that all went through the gate."""

    def __init__(self, gate: Gate, limits: FetchLimits) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=limits.connections,
            max_keepalive_connections=limits.connections,
            keepalive_expiry=10,
            network_backend=GatedBackend(gate),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        with _translated():
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status, headers=response.headers, stream=_Stream(response.stream), request=request
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


@contextmanager
def _translated() -> Any:
    """Translate httpcore's errors, which have no common base, to httpx's."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise httpx.TimeoutException("timed out") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise httpx.TransportError("connection failed") from error


class Fetcher:
    """Fetches images, a bounded number at a time, over pooled connections."""

    def __init__(self, gate: Gate, limits: FetchLimits) -> None:
        self._gate, self._limits = gate, limits
        self._client = httpx.AsyncClient(
            transport=GatedTransport(gate, limits),
            timeout=httpx.Timeout(limits.read_seconds, connect=limits.connect_seconds, pool=limits.seconds),
            headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "cma-clip"},
            cookies=CookieJar(
                DefaultCookiePolicy(allowed_domains=())
            ),  # no cookie of one caller's fetch is sent with another's
            trust_env=False,  # a proxy would dial unchecked addresses; a .netrc would add our credentials
            follow_redirects=False,
        )
        self._hosts = HostSlots(limits.connections_per_host)

    async def fetch(self, url: str, *, on_bytes: Callable[[int], None] = lambda count: None) -> bytes:
        """Return the bytes behind `url`.

        on_bytes: called with the size of each piece as it arrives; may raise to stop
        Raises `InvalidRequest` (not a URL), `ImageUrlForbidden`, `PayloadTooLarge` or `ImageFetchFailed`.
        """
        request = self._client.build_request("GET", self._parse(url))
        try:
            async with asyncio.timeout(self._limits.seconds):
                for _ in range(self._limits.redirects + 1):
                    self._check(request.url)
                    async with self._hosts.slot(request.url.host), self._sent(request) as response:
                        if response.next_request is None:
                            return await self._read(response, on_bytes)
                        request = response.next_request
        except (TimeoutError, httpx.TimeoutException):
            raise ImageFetchFailed("the image's host did not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError):
            raise ImageFetchFailed("the connection to the image's host failed") from None
        raise ImageFetchFailed(f"the image's host redirects more than {self._limits.redirects} times")

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def _sent(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    @staticmethod
    def _parse(url: str) -> httpx.URL:
        try:
            return httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise InvalidRequest("image.url is not a URL") from None

    def _check(self, url: httpx.URL) -> None:
        if url.scheme not in {"http", "https"}:
            raise ImageUrlForbidden("image URLs must be http or https")
        if not url.host or url.userinfo:
            raise ImageUrlForbidden("image URLs must have a host and no credentials")
        self._gate.check_host(url.raw_host.decode("ascii"))  # as the resolver gets it; `host` is its readable form

    async def _read(self, response: httpx.Response, on_bytes: Callable[[int], None]) -> bytes:
        if response.status_code != 200:
            raise ImageFetchFailed(f"the image's host answered with status {response.status_code}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ImageFetchFailed("the image's host sent a compressed answer, which was not asked for")
        declared = response.headers.get("Content-Length", "")
        if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > self._limits.max_bytes:
            raise self._too_large()
        body = bytearray()
        async for chunk in response.aiter_raw():
            if len(body) + len(chunk) > self._limits.max_bytes:
                raise self._too_large()
            on_bytes(len(chunk))
            body += chunk
        return bytes(body)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the image behind the URL has more than {self._limits.max_bytes} bytes")


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
