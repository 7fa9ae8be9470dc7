"""A caller's image URL to its parts, once: scheme, host as the network has it, port, and the target of the request.

Everything behind works on these parts, and no library gets to read the caller's text again: two parsers of one URL may
disagree about where it leads, and each fails in its own ways.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urljoin

import idna

from service.errors import ImageUrlForbidden, InvalidRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PORTS = {"http": 80, "https": 443}

URL = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL)
"""Scheme, authority, path and query, as RFC 3986 takes any text apart (appendix B)."""

AUTHORITY = re.compile(r"(\[[^\[\]@]*\]|[^:\[\]@]+)(?::([0-9]{0,5}))?")
"""Host, in brackets where it is an IPv6 address, and port; no credentials."""

LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
"""A part of a host name: letters, digits and hyphens (RFC 1123), and underscores, which hosts of images have."""

NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label that makes a host an IPv4 address, as browsers have it: it is one in the usual form, or none at all."""

TARGET = "!$%&'()*+,/:;=@?~"
"""What stays as it is in path and query, besides letters, digits, `-`, `.` and `_`."""


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An http or https URL of an image.

    host: an ASCII name in lower case without a dot at its end, or an address; never both
    target: path and query, in ASCII
    """

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL as a caller or a redirect has it.

        Raises `InvalidRequest` where it is none, `ImageUrlForbidden` for another scheme, no host, or credentials.
        """
        split = URL.fullmatch(text)
        if split is None or any(character < " " or character == "\x7f" for character in text):
            raise _no_url()
        scheme, authority, path, query = (part or "" for part in split.groups())
        if (scheme := scheme.lower()) not in PORTS:
            raise ImageUrlForbidden("image URLs must be http or https")
        if not authority or "@" in authority:
            raise ImageUrlForbidden("image URLs must have a host and no credentials")
        try:
            host, port = _host_and_port(authority)
            target = quote(path or "/", safe=TARGET) + quote(query, safe=TARGET)
        except ValueError:  # idna's and ipaddress's errors are ValueErrors, and that of text which is no Unicode
            raise _no_url() from None
        return cls(scheme, host, PORTS[scheme] if port is None else port, target)

    def join(self, location: str) -> Self:
        """Return where a redirect to `location` leads; raises as `parse` does."""
        try:
            return self.parse(urljoin(str(self), location))
        except ValueError:
            raise _no_url() from None

    @property
    def address(self) -> Address | None:
        """The host as an address; None where it is a name."""
        return as_address(self.host)

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them: without the scheme's usual port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def as_address(host: str) -> Address | None:
    """Return the address that `host` is; None where it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _host_and_port(authority: str) -> tuple[str, int | None]:
    """Return both, the host as the network has it; raises `ValueError`."""
    found = AUTHORITY.fullmatch(authority)
    if found is None or int(found[2] or 0) > 65535:
        raise ValueError("not a host with a port")
    host = str(_ipv6(found[1][1:-1])) if found[1].startswith("[") else _name(found[1])
    return host, int(found[2]) if found[2] else None


def _ipv6(text: str) -> ipaddress.IPv6Address:
    address = ipaddress.IPv6Address(text)
    if address.scope_id is not None:
        raise ValueError("a scope is a matter of this machine")
    return address


def _name(name: str) -> str:
    if not name.isascii():
        name = idna.encode(name, uts46=True, transitional=False).decode("ascii")
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if NUMBER.fullmatch(labels[-1]):
        return str(ipaddress.IPv4Address(name))
    if len(name) > 253 or not all(map(LABEL.fullmatch, labels)):
        raise ValueError("not a host name")
    for label in labels:
        if label.startswith("xn--"):
            idna.ulabel(label)
    return name


def _no_url() -> InvalidRequest:
    return InvalidRequest("image.url is not a URL")
