"""A load of HTTP requests, sent at little cost to the processor: by callers in turn, or at times fixed in advance.

*Closed loop*: each caller sends its next request once the last one is answered, so a slow service is asked less.
*Open loop*: requests arrive whether or not earlier ones have been answered, as those of independent callers do, and the
latency of each counts from the moment it was due. So a service that falls behind is measured as such, and so is a
request that had to wait for this client.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import h11
import uvloop

from model.errors import ConfigError

MAX_CONNECTIONS = 512
"""Of the open loop: requests beyond wait for a connection, and their waiting counts."""

PAUSE_SECONDS = 0.05
"""After a request that could not even be sent, so that a caller doesn't keep the processor busy with failing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a service is."""

    host: str
    port: int
    prefix: str
    """What each path begins with; empty, or it begins with `/`."""
    encrypted: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises `ConfigError` unless it is an http or https URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"{url!r} is not the address of a service, such as http://127.0.0.1:8000")
        encrypted = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=port or (443 if encrypted else 80),
            prefix=parts.path.rstrip("/"),
            encrypted=encrypted,
        )

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Requests:
    """POST requests to one path; their bodies take turns."""

    def __init__(self, address: Address, path: str, bodies: Sequence[bytes], headers: Mapping[str, str]) -> None:
        """
        headers: besides Host and Content-Length

        Raises `ConfigError` for a header that HTTP does not allow.
        """
        self.address = address
        self._bodies = bodies
        try:
            self._heads = [
                h11.Request(
                    method="POST",
                    target=address.prefix + path,
                    headers=[("Host", address.authority), ("Content-Length", str(len(body))), *headers.items()],
                )
                for body in bodies
            ]
        except (h11.LocalProtocolError, UnicodeEncodeError):
            # Not which: it may be a key.
            raise ConfigError("a header, such as the API key, holds characters that HTTP doesn't allow") from None

    def __getitem__(self, number: int) -> tuple[h11.Request, bytes]:
        at = number % len(self._bodies)
        return self._heads[at], self._bodies[at]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request, in seconds since the load began."""

    due: float
    sent: float
    """Later than due where this client was late, or had to wait for a connection."""
    ended: float
    status: str
    """The answer's status, or in words why there was none."""


@dataclass(frozen=True, slots=True)
class Measured:
    """All requests of a load, in the order in which they ended, and how long it took."""

    outcomes: Sequence[Outcome]
    seconds: float


# ── one connection ──────────────────────────────────────────────────────────────────────────────────────────


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection, which carries one request after the other."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._status = 0
        self._body = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def reusable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and self._http.our_state is h11.IDLE

    async def post(self, head: h11.Request, body: bytes) -> tuple[int, bytes]:
        """Send a request; return its answer's status and body. Raises `ConnectionError`."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        start, end = self._http.send(head) or b"", self._http.send(h11.Data(body)) or b""
        self._http.send(h11.EndOfMessage())
        self._transport.write(start + end)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def eof_received(self) -> None:
        self._received(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("disconnected")

    def _received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while self._read_event():
                pass
        except h11.RemoteProtocolError:
            self._fail("not an answer in HTTP" if data else "disconnected")

    def _read_event(self) -> bool:
        """Take one event of the answer; whether there may be more."""
        match self._http.next_event():
            case h11.Response() as response:
                self._status = response.status_code
            case h11.Data() as piece:
                self._body += piece.data
            case h11.EndOfMessage():
                self._finish()
                return False
            case h11.InformationalResponse():
                pass
            case _:  # more data is needed, or the connection is closed
                return False
        return True

    def _finish(self) -> None:
        answer, body = self._answer, bytes(self._body)
        self._answer, self._body = None, bytearray()
        if self._http.their_state is h11.DONE and self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()
        if answer is not None and not answer.done():
            answer.set_result((self._status, body))

    def _fail(self, reason: str) -> None:
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None and not answer.done():
            answer.set_exception(ConnectionError(reason))


class Client:
    """Connections to one address, kept open between requests."""

    def __init__(self, address: Address, *, timeout: float) -> None:
        """timeout: seconds in which an answer must be there, connecting included"""
        self._address, self._timeout = address, timeout
        self._encryption = ssl.create_default_context() if address.encrypted else None
        self._idle: list[Connection] = []

    async def post(self, head: h11.Request, body: bytes) -> tuple[int, bytes]:
        """Send a request; return its answer's status and body. Raises `OSError` (`TimeoutError` among them)."""
        connection = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = self._take() or await self._connect()
                answer = await connection.post(head, body)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._idle.append(connection)
        return answer

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, self._address.host, self._address.port, ssl=self._encryption
        )
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


def post_once(requests: Requests, *, timeout: float) -> tuple[int, bytes]:
    """Send the first of the requests; return its answer's status and body. Raises `OSError`."""

    async def post() -> tuple[int, bytes]:
        client = Client(requests.address, timeout=timeout)
        try:
            return await client.post(*requests[0])
        finally:
            client.close()

    return uvloop.run(post())


# ── the two loops ───────────────────────────────────────────────────────────────────────────────────────────


def independent_arrivals(rate: float, seconds: float, *, seed: int = 0) -> list[float]:
    """Return the times, in seconds, of `rate * seconds` requests of independent callers.

    They are those of a Poisson process whose count is given, and the same for the same arguments: what is compared is
    the service.
    """
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    return sorted(chance.uniform(0, seconds) for _ in range(max(1, round(rate * seconds))))


def closed_loop(
    requests: Requests,
    *,
    callers: int,
    seconds: float,
    limit: int | None = None,
    timeout: float = 60.0,
    progress: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Let `callers` send one request after the other until the time is over, or `limit` have been sent.

    progress: told now and then which share is done
    """

    async def load(sender: _Sender) -> None:
        numbers = iter(range(limit)) if limit is not None else itertools.count()

        async def caller() -> None:
            while sender.now < seconds and (number := next(numbers, None)) is not None:
                outcome = await sender.send(number, due=sender.now)
                if not outcome.status.isdigit():
                    await asyncio.sleep(PAUSE_SECONDS)

        await asyncio.gather(*(caller() for _ in range(callers)))

    return _run(load, requests, timeout, lambda sender: _share(sender, seconds, limit), progress)


def open_loop(
    requests: Requests,
    *,
    arrivals: Sequence[float],
    timeout: float = 60.0,
    progress: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Send a request at each of the `arrivals`, in seconds from the start, whatever has become of those before."""

    async def load(sender: _Sender) -> None:
        connections = asyncio.Semaphore(MAX_CONNECTIONS)

        async def one(number: int, due: float) -> None:
            async with connections:
                await sender.send(number, due=due)

        async with asyncio.TaskGroup() as group:
            for number, due in enumerate(arrivals):
                if (early := due - sender.now) > 0:
                    await asyncio.sleep(early)
                group.create_task(one(number, due))

    return _run(load, requests, timeout, lambda sender: _share(sender, arrivals[-1], len(arrivals)), progress)


class _Sender:
    """Sends requests, and writes down what became of them."""

    def __init__(self, requests: Requests, client: Client) -> None:
        self._requests, self._client = requests, client
        self._began = time.perf_counter()
        self.outcomes: list[Outcome] = []

    @property
    def now(self) -> float:
        return time.perf_counter() - self._began

    async def send(self, number: int, *, due: float) -> Outcome:
        sent = self.now
        try:
            status = str((await self._client.post(*self._requests[number]))[0])
        except OSError as error:
            status = in_words(error)
        outcome = Outcome(due, sent, self.now, status)
        self.outcomes.append(outcome)
        return outcome


def in_words(error: OSError) -> str:
    """Say in a few words, the same each time, why there was no answer."""
    match error:
        case TimeoutError():
            return "timed out"
        case ConnectionRefusedError():
            return "connection refused"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number).lower()
    return str(error)


def _share(sender: _Sender, seconds: float, limit: int | None) -> float:
    return min(1.0, max(sender.now / seconds if seconds else 1.0, len(sender.outcomes) / limit if limit else 0.0))


def _run(
    load: Callable[[_Sender], Coroutine[Any, Any, None]],
    requests: Requests,
    timeout: float,
    share: Callable[[_Sender], float],
    progress: Callable[[float], None],
) -> Measured:
    async def run() -> Measured:
        client = Client(requests.address, timeout=timeout)
        sender = _Sender(requests, client)
        telling = asyncio.create_task(_tell(lambda: progress(share(sender))))
        try:
            await load(sender)
            return Measured(sender.outcomes, sender.now)
        finally:
            telling.cancel()
            client.close()

    return uvloop.run(run())


async def _tell(tell: Callable[[], None]) -> None:
    while True:
        tell()
        await asyncio.sleep(0.25)
