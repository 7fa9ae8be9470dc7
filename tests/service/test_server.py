"""What the server is given by the system: open files, and with them connections."""

from __future__ import annotations

import errno
import logging
import resource
import socket
import time
from collections import Counter

import pytest

from model.errors import ConfigError
from service.errors import MalformedRequest, Overloaded
from service.http import server


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The soft and the hard limit of open files."""
    limits = [256, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(slice(None), new))
    return limits


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one(limit: list[int]) -> None:
    server.raise_limit_of_files()
    assert limit == [4096, 4096]


def test_there_are_no_more_connections_than_files_for_them(limit: list[int], caplog: pytest.LogCaptureFixture) -> None:
    assert server.connections_within_files(100) == 100
    assert not caplog.records
    assert server.connections_within_files(1000) == 256 - server.RESERVED_FILES
    assert "128 connections, not 1000" in caplog.text
    limit[0] = server.RESERVED_FILES
    with pytest.raises(ConfigError, match="ulimit -n"):
        server.connections_within_files(1000)
    limit[0] = resource.RLIM_INFINITY
    assert server.connections_within_files(10**6) == 10**6


def test_refusals_are_all_counted_and_logged_once_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    counted: Counter[str] = Counter()
    refusals = server.Refusals(lambda code: counted.update([code]))
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            refusals(Overloaded("full"))
            refusals(MalformedRequest("no HTTP"))
        assert len(caplog.records) == 1
        now[0] += 1
        refusals(Overloaded("full"))
    assert counted == {"overloaded": 101, "malformed_request": 100}
    assert caplog.records[1].fields == {"refused": {"overloaded": 100, "malformed_request": 100}}  # type: ignore[attr-defined]


def reached(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_every_interface_is_both_families() -> None:
    with server.listen("::", 0) as listener:
        port = listener.getsockname()[1]
        assert reached("::1", port)
        assert reached("127.0.0.1", port)
    with server.listen("::1", 0) as listener:
        assert not reached("127.0.0.1", listener.getsockname()[1])


def test_without_ipv6_the_error_says_what_to_listen_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ConfigError, match=r"cannot listen on :: port 8000.* 0\.0\.0\.0 is every interface"):
        server.listen("::", 8000)
