"""Names are looked up over sockets: what never answers ends in time, and is in nobody's way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from service.pipeline.names import NameLimits, NameServers

LIMITS = NameLimits(seconds=0.5, server_seconds=0.3, failure_kept_seconds=0.05)


class NameServer(asyncio.DatagramProtocol):
    """A name server on a port of this machine: knows a few names, and is silent about those that end in `.dead`."""

    def __init__(self, known: dict[str, list[str]], ttl: int) -> None:
        self.known, self.ttl = known, ttl
        self.asked: Counter[str] = Counter()
        self.port = 0
        self.resolv_conf = Path()

    @classmethod
    @asynccontextmanager
    async def run(cls, ttl: int = 60, **known: list[str]) -> AsyncIterator[Self]:
        """Serve `known`, whose dots are written as underscores."""
        server = cls({name.replace("_", "."): addresses for name, addresses in known.items()}, ttl)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: server, local_addr=("127.0.0.1", 0)
        )
        server.port = transport.get_extra_info("sockname")[1]
        with TemporaryDirectory() as folder:
            server.resolv_conf = Path(folder) / "resolv.conf"
            server.resolv_conf.write_text("nameserver 127.0.0.1\nsearch shop.test\noptions ndots:1\n")
            try:
                yield server
            finally:
                transport.close()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name = str(question.name).rstrip(".")
        self.asked[name] += 1
        if name.endswith(".dead"):
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        kind = question.rdtype.name
        found = [each for each in self.known.get(name, []) if (":" in each) == (kind == "AAAA")]
        if found:
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *found))
        elif name not in self.known:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), sender)

    def names(self, limits: NameLimits = LIMITS, *, hosts: Path = Path("/nowhere")) -> NameServers:
        return NameServers(limits, resolv_conf=self.resolv_conf, hosts=hosts, port=self.port)


async def test_a_name_has_its_addresses_of_both_kinds() -> None:
    async with NameServer.run(both_test=["2001:db8::1", "192.0.2.1"], six_test=["2001:db8::2"]) as server:
        names = server.names()
        assert await names("both.test") == ["192.0.2.1", "2001:db8::1"]
        assert await names("six.test") == ["2001:db8::2"]
        assert await names("none.test") == []
        assert await names("192.0.2.9") == ["192.0.2.9"]
        assert await names("::1") == ["::1"]
        assert server.asked["192.0.2.9"] == server.asked["::1"] == 0


async def test_a_hundred_names_that_nobody_answers_hold_up_no_other() -> None:
    async with NameServer.run(good_test=["192.0.2.1"]) as server:
        names = server.names(NameLimits(seconds=60, server_seconds=60))
        dead = [asyncio.create_task(names(f"{n}.dead")) for n in range(100)]
        assert await names("good.test") == ["192.0.2.1"]
        assert not any(task.done() for task in dead)
        for task in dead:
            task.cancel()
        await asyncio.gather(*dead, return_exceptions=True)


async def test_a_name_that_nobody_answers_has_no_address_in_time() -> None:
    async with NameServer.run() as server, asyncio.timeout(20):
        assert await server.names()("a.dead") == []


async def test_a_look_up_ends_with_who_asked() -> None:
    async with NameServer.run() as server:
        names = server.names(NameLimits(seconds=30, server_seconds=30))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await names("a.dead")
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1


async def test_answers_are_kept_no_longer_than_they_say() -> None:
    async with NameServer.run(ttl=60, kept_test=["192.0.2.1"]) as server:
        names = server.names()
        for _ in range(5):
            await names("kept.test")
        assert server.asked["kept.test"] == 2  # once for each kind of address
    async with NameServer.run(ttl=0, brief_test=["192.0.2.1"]) as server:
        names = server.names()
        for _ in range(5):
            await names("brief.test")
        assert server.asked["brief.test"] == 10


async def test_a_failure_is_kept_for_a_moment_and_not_for_longer() -> None:
    async with NameServer.run() as server:
        names = server.names()
        await names("a.test")
        await names("a.test")
        assert server.asked["a.test"] == 2
        server.known["a.test"] = ["192.0.2.1"]
        await asyncio.sleep(0.1)
        assert await names("a.test") == ["192.0.2.1"]


async def test_callers_names_are_kept_in_a_bounded_number() -> None:
    async with NameServer.run() as server:
        names = server.names(NameLimits(kept_names=3))
        for n in range(10):
            await names(f"{n}.test")
        assert len(names._kept) == 3


async def test_hosts_and_search_domains_are_as_the_files_say(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# by hand\n192.0.2.7 Own.test own # mine\nnonsense here\n127.0.0.1 localhost\n")
    async with NameServer.run(images_shop_test=["192.0.2.8"]) as server:
        names = server.names(hosts=hosts)
        assert await names("own.test") == await names("own") == ["192.0.2.7"]
        assert await names("images") == ["192.0.2.8"]
        assert await names("localhost") == ["127.0.0.1"]
        hosts.write_text("192.0.2.77 own.test\n")
        assert await names("own.test") == ["192.0.2.77"]
        assert await names("localhost") == ["127.0.0.1"]


async def test_without_a_name_server_a_name_has_no_address(tmp_path: Path) -> None:
    names = NameServers(LIMITS, resolv_conf=tmp_path / "none", hosts=tmp_path / "none", port=1)
    assert await names("a.test") == []
