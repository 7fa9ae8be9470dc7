"""The load generator, against a small server that answers as it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from model.errors import ConfigError
from service.commands.load import Address, Requests, closed_loop, independent_arrivals, open_loop, post_once

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

Reply = Callable[[int, bytes], bytes]
"""From a request's number, counted over all connections, and its bytes to the bytes of the answer; none: hang up."""


class Server:
    """Answers one request after the other, over all connections: what a lock guards can be stalled."""

    def __init__(self, listener: socket.socket, reply: Reply) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.connections = 0
        self._listener, self._reply, self._turn = listener, reply, threading.Lock()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while request := self._read(connection):
                with self._turn:
                    self.requests.append(request)
                    answer = self._reply(len(self.requests) - 1, request)
                if not answer:
                    return
                connection.sendall(answer)
                if b"Connection: close" in answer:
                    return

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        data = b""
        while not data.endswith(b"END"):
            if not (piece := connection.recv(65536)):
                return b""
            data += piece
        return data


@contextlib.contextmanager
def serving(reply: Reply) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener, reply)
        thread = threading.Thread(target=server.accept, daemon=True)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def requests_to(server: Server, *bodies: bytes) -> Requests:
    return Requests(Address.of(server.url), "/a", bodies or (b"END",), {"Content-Type": "text/plain"})


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, ""),
        ("https://shop.example/attributes/", "shop.example", 443, "/attributes"),
        ("http://[::1]:80/", "::1", 80, ""),
    ],
)
def test_an_address_is_taken_apart(url: str, host: str, port: int, prefix: str) -> None:
    address = Address.of(url)
    assert (address.host, address.port, address.prefix) == (host, port, prefix)
    assert address.encrypted == url.startswith("https")


@pytest.mark.parametrize("url", ["", "nonsense", "127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://[::1"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a service"):
        Address.of(url)


def test_a_header_that_http_does_not_allow_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError) as caught:
        Requests(Address.of("http://a"), "/", [b""], {"X-API-Key": "secret\n"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [OK, CHUNKED, UNTIL_CLOSED, b"HTTP/1.1 100 Continue\r\n\r\n" + OK])
def test_an_answer_of_any_form_is_read(answer: bytes) -> None:
    with serving(lambda number, request: answer) as server:
        assert post_once(requests_to(server), timeout=10) == (200, b"hi")
        head = server.requests[0].partition(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"post /a http/1.1\r\n")
        assert b"content-length: 3" in head
        assert b"content-type: text/plain" in head


def test_callers_send_one_request_after_the_other_on_connections_of_their_own() -> None:
    with serving(lambda number, request: OK) as server:
        found = closed_loop(requests_to(server, b"1END", b"2END"), callers=3, seconds=60, limit=30)
        assert Counter(outcome.status for outcome in found.outcomes) == {"200": 30}
        assert server.connections == 3
        assert Counter(request.partition(b"\r\n\r\n")[2] for request in server.requests) == {b"1END": 15, b"2END": 15}
        assert all(outcome.due <= outcome.sent <= outcome.ended <= found.seconds for outcome in found.outcomes)


def test_a_closed_loop_ends_when_its_time_is_over() -> None:
    with serving(lambda number, request: OK) as server:
        found = closed_loop(requests_to(server), callers=2, seconds=0.05)
    assert found.outcomes
    assert all(outcome.sent < 0.05 for outcome in found.outcomes if outcome.due < 0.05)


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"", "disconnected"), (b"nonsense\r\n\r\n", "not an answer in HTTP"), (REFUSED, "503")],
)
def test_what_is_no_answer_is_counted_under_a_name(answer: bytes, status: str) -> None:
    with serving(lambda number, request: answer) as server:
        found = closed_loop(requests_to(server), callers=1, seconds=60, limit=2)
    assert [outcome.status for outcome in found.outcomes] == [status, status]


def test_a_connection_that_the_server_closes_is_made_anew() -> None:
    with serving(lambda number, request: UNTIL_CLOSED) as server:
        found = closed_loop(requests_to(server), callers=1, seconds=60, limit=3)
        assert [outcome.status for outcome in found.outcomes] == ["200"] * 3
        assert server.connections == 3


def test_nobody_who_answers_is_an_error_of_each_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    requests = Requests(Address.of(url), "/", [b""], {})
    with pytest.raises(ConnectionRefusedError):
        post_once(requests, timeout=10)
    found = closed_loop(requests, callers=1, seconds=60, limit=2)
    assert {outcome.status for outcome in found.outcomes} == {"connection refused"}


def test_an_answer_that_does_not_come_in_time_is_given_up() -> None:
    silence = threading.Event()
    with serving(lambda number, request: (silence.wait(10) and b"") or b"") as server:
        found = closed_loop(requests_to(server), callers=1, seconds=60, limit=1, timeout=0.05)
        silence.set()
    assert [outcome.status for outcome in found.outcomes] == ["timed out"]


def test_arrivals_are_as_many_as_the_rate_says_and_the_same_each_time() -> None:
    arrivals = independent_arrivals(50, 4)
    assert len(arrivals) == 200
    assert arrivals == sorted(arrivals) == independent_arrivals(50, 4)
    assert arrivals[0] >= 0
    assert arrivals[-1] <= 4
    assert independent_arrivals(0.1, 1) != []


def test_an_open_loop_counts_the_wait_of_requests_behind_a_stall() -> None:
    """A client that waits for an answer before it sends the next one would see a single slow request."""

    def stall_once(number: int, request: bytes) -> bytes:
        time.sleep(0.3 if number == 0 else 0)
        return OK

    with serving(stall_once) as server:
        arrivals = [0.01 * number for number in range(10)]
        found = open_loop(requests_to(server), arrivals=arrivals)
    assert sorted(outcome.due for outcome in found.outcomes) == arrivals
    slow = [outcome for outcome in found.outcomes if outcome.ended - outcome.due > 0.15]
    assert len(slow) == 10


def test_how_far_a_load_is_can_be_followed() -> None:
    shares: list[float] = []
    with serving(lambda number, request: OK) as server:
        open_loop(requests_to(server), arrivals=[0, 0.3], progress=shares.append)
    assert shares
    assert all(0 <= share <= 1 for share in shares)
