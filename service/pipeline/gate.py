"""Which hosts, ports and addresses images may be fetched from: a caller must not reach through this machine what it
cannot reach itself (server-side request forgery).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence

from service.errors import ImageFetchFailed, ImageHostUnreachable, ImageUrlForbidden
from service.pipeline.image_url import Address, ImageUrl, as_address
from service.pipeline.names import NameServers, Resolve

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses in this network lead to the IPv4 address in their last 32 bits."""

RESERVED: tuple[Network, ...] = (
    *map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24")),  # protocol assignments; relays of 6to4
    # The local use of NAT64; documentation; identifiers of segment routing.
    *map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "3fff::/20", "5f00::/16")),
)
"""Not on the public internet, besides those that `ipaddress` knows, which differ between releases of Python."""

PLATFORM: tuple[Network, ...] = (
    # Link-local, where most clouds have it; Azure; Oracle; Alibaba.
    *map(ipaddress.IPv4Network, ("169.254.0.0/16", "168.63.129.16/32", "192.0.0.0/24", "100.100.100.200/32")),
    *map(ipaddress.IPv6Network, ("fe80::/10", "fd00:ec2::254/128")),  # link-local; Amazon
)
"""Where a cloud's platform gives a machine its credentials: never an image's host, unless it is named itself."""


def embedded(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one leads to, as a mapped one, 6to4 and NAT64 do; else the address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet; IPv4 addresses inside IPv6 ones are judged too."""
    inner = embedded(address)
    if isinstance(inner, ipaddress.IPv6Address) and (inner.teredo or inner.is_site_local):
        return False
    return (
        inner.is_global
        and not inner.is_multicast
        and not inner.is_reserved
        and not _within(inner, RESERVED)
        and not _within(inner, PLATFORM)
    )


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


class Gate:
    """What may be dialled."""

    def __init__(
        self,
        *,
        allowed_hosts: Iterable[str] = (),
        ports: Collection[int] = (80, 443),
        private_networks: Iterable[Network] = (),
        allow_private: bool = False,
        resolve: Resolve | None = None,
    ) -> None:
        """Keep the rules.

        allowed_hosts: names, or `.example.com` for that name and all below it; empty: every host
        private_networks: networks that may be reached although they are not public
        allow_private: the same for all, except where a cloud's platform answers
        """
        self._allowed_hosts = tuple(allowed_hosts)
        self._ports = ports
        self._private_networks = tuple(private_networks)
        self._allow_private = allow_private
        self.resolve = resolve or NameServers()

    def check(self, url: ImageUrl) -> None:
        """Raise `ImageUrlForbidden` for a port, or a host, that images are not accepted from."""
        if url.port not in self._ports:
            raise ImageUrlForbidden(f"images are not accepted from port {url.port} (CMA_CLIP_IMAGE_PORTS)")
        if self._allowed_hosts and not any(
            url.host == allowed.lstrip(".") or (allowed.startswith(".") and url.host.endswith(allowed))
            for allowed in self._allowed_hosts
        ):
            raise ImageUrlForbidden("images are not accepted from this host (CMA_CLIP_IMAGE_HOSTS)")

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the addresses that may be dialled for `host`.

        Raises `ImageUrlForbidden`, or `ImageHostUnreachable` if the name has no address.
        """
        if not (found := await self.known_addresses(host)):
            raise ImageHostUnreachable("the image's host has no address")
        return found

    async def known_addresses(self, host: str) -> Sequence[str]:
        """Return the addresses that may be dialled for `host`: none where it cannot be looked up from here.

        One forbidden address among them forbids them all: a public name has none. Raises `ImageUrlForbidden`.
        """
        found = await self.resolve(host)
        if not all(self._allows(address) for address in found):
            raise ImageUrlForbidden("the image's host leads to an address that is not public")
        return found

    def is_inside(self, addresses: Sequence[str]) -> bool:
        """Whether there are addresses, and all lie in the private networks that were named."""
        return bool(addresses) and all(_within(_parsed(address), self._private_networks) for address in addresses)

    def _allows(self, text: str) -> bool:
        address = _parsed(text)
        if is_public(address) or _within(address, self._private_networks):
            return True
        return self._allow_private and not _within(embedded(address), PLATFORM)


def _parsed(text: str) -> Address:
    # A scope (fe80::1%eth0) is not part of the address. What is mapped is the very same address.
    address = as_address(text.partition("%")[0])
    if address is None:
        raise ImageFetchFailed("the image's host has no address")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
