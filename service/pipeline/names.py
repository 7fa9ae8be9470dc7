"""Host names to addresses, asked of the name servers over sockets that the event loop owns.

The system's own look-up (getaddrinfo) blocks a thread until the name server answers or the system gives up, and cannot
be cancelled: a few names whose server never answers take all threads, and nobody else's name is looked up. Here a
look-up is a task like any other: it has a time-out, ends with its request, and stands in nobody's way.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.resolver

from service.pipeline.image_url import as_address

Resolve = Callable[[str], Awaitable[list[str]]]
"""Returns the addresses of a name in the order in which to try them: empty where it has none, or none in time."""

RESOLV_CONF, HOSTS = Path("/etc/resolv.conf"), Path("/etc/hosts")


@dataclass(frozen=True, kw_only=True)
class NameLimits:
    """Bounds of one look-up, in seconds, and for how long its answer is used; never for longer than it says itself."""

    seconds: float = 2.0
    server_seconds: float = 0.8
    """For one name server; the next is asked after that."""
    kept_seconds: float = 30.0
    failure_kept_seconds: float = 1.0
    kept_names: int = 4096


class NameServers:
    """Looks names up as /etc/hosts and /etc/resolv.conf say; both are read again when they change."""

    def __init__(
        self, limits: NameLimits | None = None, *, resolv_conf: Path = RESOLV_CONF, hosts: Path = HOSTS, port: int = 53
    ) -> None:
        """port: of the name servers; a file cannot say it."""
        self._limits = limits or NameLimits()
        self._resolv_conf, self._hosts, self._port = resolv_conf, hosts, port
        self._read_at: tuple[int, int] | None = None
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._own: dict[str, list[str]] = {}
        self._kept: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()

    async def __call__(self, name: str) -> list[str]:
        """Return the addresses of a host: its own, if it is one; empty where a name has none, or none in time."""
        if as_address(name):
            return [name]
        self._read_files()
        if own := self._own.get(name):
            return own
        now = asyncio.get_running_loop().time()
        until, addresses = self._kept.get(name, (0.0, []))
        if now >= until:
            addresses, seconds = await self._ask(name)
            self._keep(name, asyncio.get_running_loop().time() + seconds, addresses)
        return addresses

    async def _ask(self, name: str) -> tuple[list[str], float]:
        """Return the addresses, and for how many seconds they may be used."""
        answers = await asyncio.gather(self._records(name, "A"), self._records(name, "AAAA"), return_exceptions=True)
        if unexpected := [each for each in answers if isinstance(each, BaseException) and not _is_failure(each)]:
            raise unexpected[0]
        found = [each for each in answers if not isinstance(each, BaseException)]
        addresses = [address for each in found for address in each[0]]
        if not addresses:
            return [], self._limits.failure_kept_seconds
        return addresses, min(self._limits.kept_seconds, *(seconds for each, seconds in found if each))

    async def _records(self, name: str, kind: str) -> tuple[list[str], float]:
        try:
            answer = await self._resolver.resolve(name, kind, search=True, lifetime=self._limits.seconds)
        except dns.resolver.NoAnswer:
            return [], 0.0
        return [record.address for record in answer], answer.rrset.ttl if answer.rrset else 0.0

    def _keep(self, name: str, until: float, addresses: list[str]) -> None:
        self._kept[name] = until, addresses
        self._kept.move_to_end(name)
        if len(self._kept) > self._limits.kept_names:  # names are callers' text
            self._kept.popitem(last=False)

    def _read_files(self) -> None:
        changed = _changed_at(self._resolv_conf), _changed_at(self._hosts)
        if changed != self._read_at:
            self._read_at = changed
            self._resolver = self._configured()
            self._own = _read_hosts(self._hosts)
            self._kept.clear()

    def _configured(self) -> dns.asyncresolver.Resolver:
        try:
            resolver = dns.asyncresolver.Resolver(str(self._resolv_conf))
        except dns.resolver.NoResolverConfiguration:  # as the system has it, there is one on this machine then
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = ["127.0.0.1"]
        resolver.port = self._port
        resolver.timeout = self._limits.server_seconds
        return resolver


def _is_failure(error: BaseException) -> bool:
    """Whether a look-up failed in a way that a name or its server can cause."""
    return isinstance(error, dns.exception.DNSException | OSError | ValueError)


def _changed_at(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _read_hosts(path: Path) -> dict[str, list[str]]:
    """Return the addresses by name, in lower case, of a file like /etc/hosts; lines that are none are left out."""
    names: dict[str, list[str]] = {"localhost": []}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        address, *aliases = line.partition("#")[0].split() or [""]
        if as_address(address):
            for alias in aliases:
                names.setdefault(alias.lower().removesuffix("."), []).append(address)
    names["localhost"] = names["localhost"] or ["127.0.0.1"]  # RFC 6761: never asked of a name server
    return names
