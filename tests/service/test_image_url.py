"""A caller's URL is parsed once, and whatever it says, it is one, or a mistake that is named."""

from __future__ import annotations

import contextlib
import ipaddress
from urllib.parse import urlsplit

import httpcore
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import ImageFetchFailed, ImageHostUnreachable, ImageUrlForbidden, InvalidRequest
from service.pipeline.fetch import Fetcher, FetchLimits
from service.pipeline.gate import Gate
from service.pipeline.image_url import ImageUrl
from service.pipeline.names import NameServers
from tests.service.conftest import in_process
from tests.service.test_names import NameServer
from tests.service.test_routes import check_problem

HOSTILE = [
    "http://xn--/", "http://xn--a/", "http://a.xn--b-.c/", "http://xn--a.xn--/", "http://XN--A/", "http://\u200d/",
    "http://ß..de/", "http://a..b/", "http://.a/", "http://-a/", "http://a%00b/", "http://1.2.3.4.5/", "http://0x/",
    "http://[::1]evil.com/", "http://evil[::1]/", "http://[::1", "http://[v1.a]/", "http://[fe80::1%25eth0]/",
    "http://a:b/", "http://a:99999/", "http://a:٣/", "http://" + "a" * 64 + ".com/", "http://" + "a." * 127 + "com/",
    "http://a\\.b/", "http://a b/", "http://a\tb/", "http://\ud800/", "http://a/\ud800", "http://a\n.b/",
]  # fmt: skip

LABELS = st.one_of(
    st.sampled_from(["xn--", "xn--a", "xn--bcher-kva", "bücher", "127", "0x7f", "a", "localhost", "１２７", "", "-"]),
    st.text(max_size=8),
    st.text("abcxn-0123456789.", max_size=12),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)

URLS = st.one_of(
    st.text(max_size=60),
    st.builds(
        lambda scheme, labels, port, path: f"{scheme}://{'.'.join(labels)}{port}{path}",
        st.sampled_from(["http", "https", "HTTP", "ftp", ""]),
        st.lists(LABELS, min_size=1, max_size=4),
        st.sampled_from(["", ":", ":80", ":0", ":65536", ":x"]),
        st.one_of(st.just(""), st.text(max_size=20).map(lambda text: f"/{text}"), st.text("?#@:/\\%", max_size=6)),
    ),
)


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("http://images.test", "images.test", 80, "/"),
        ("HTTPS://Images.Test./a.jpg?w=1#top", "images.test", 443, "/a.jpg?w=1"),
        ("http://a_b.test:8080?x", "a_b.test", 8080, "/?x"),
        ("http://bücher.test/ä b.jpg", "xn--bcher-kva.test", 80, "/%C3%A4%20b.jpg"),
        ("http://xn--bcher-kva.test:/", "xn--bcher-kva.test", 80, "/"),
        ("http://127.0.0.1/%41%", "127.0.0.1", 80, "/%41%"),
        ("http://１２７.０.０.１/", "127.0.0.1", 80, "/"),
        ("http://[0:0::1]:81/", "::1", 81, "/"),
        ("http://a/\\..\\b", "a", 80, "/%5C..%5Cb"),
    ],
)
def test_a_url_is_its_parts(text: str, host: str, port: int, target: str) -> None:
    url = ImageUrl.parse(text)
    assert (url.host, url.port, url.target) == (host, port, target)
    assert ImageUrl.parse(str(url)) == url


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_url_is_the_callers_mistake(text: str) -> None:
    with pytest.raises(InvalidRequest):
        ImageUrl.parse(text)


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "1.2.3", "0"])
def test_an_address_has_one_form(host: str) -> None:
    with pytest.raises(InvalidRequest):
        ImageUrl.parse(f"http://{host}/")


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/b?c", "https://a.test/b?c"),
        ("b.jpg", "https://a.test/x/b.jpg"),
        ("//b.test", "https://b.test/"),
        ("HTTP://b.test:81/c", "http://b.test:81/c"),
    ],
)
def test_a_redirect_is_read_against_its_url(location: str, leads_to: str) -> None:
    assert str(ImageUrl.parse("https://a.test/x/y").join(location)) == leads_to


@settings(max_examples=1000, deadline=None)
@given(text=URLS, location=URLS)
@example(text="http://xn--a/", location="http://xn--/")
@example(text="http://a/", location="http://[")
def test_any_text_is_a_url_or_a_mistake_that_is_named(text: str, location: str) -> None:
    try:
        url = ImageUrl.parse(text)
    except InvalidRequest:
        return
    assert url.host.isascii()
    assert url.target.isascii()
    assert not any(character <= " " for character in str(url))
    assert ImageUrl.parse(str(url)) == url
    # Whoever reads what was parsed finds the same host in it: nobody is led elsewhere.
    found = urlsplit(str(url)).hostname
    assert found == url.host
    assert httpcore.URL(str(url)).host.decode().strip("[]") == url.host
    try:
        assert httpx.URL(str(url)).raw_host.decode() == url.host
    except httpx.InvalidURL:
        ipaddress.ip_address(url.host)  # httpx takes fewer forms of addresses
    with contextlib.suppress(InvalidRequest):
        url.join(location)


async def test_any_url_passes_every_library_behind() -> None:
    """Each is fetched by the real resolver, whose name server knows no name: all that raises is a service's error."""
    async with NameServer.run() as server:
        names = NameServers(resolv_conf=server.resolv_conf, port=server.port)
        fetcher = Fetcher(Gate(resolve=names), FetchLimits(max_bytes=100, seconds=0.2, connect_seconds=0.1))
        found = []
        for text in [*HOSTILE, *(f"http://{'a' * 63}.{label}.test/é" for label in ("b", "a_b", "xn--bcher-kva"))]:
            with pytest.raises((InvalidRequest, ImageFetchFailed, ImageUrlForbidden)) as caught:
                await fetcher.fetch(text)
            found.append(type(caught.value))
        assert found == [InvalidRequest] * len(HOSTILE) + [ImageHostUnreachable] * 3
        await fetcher.aclose()


@pytest.mark.parametrize("url", HOSTILE)
async def test_no_url_is_a_fault_of_the_service(url: str) -> None:
    async with in_process() as client:
        if "\ud800" not in url:  # JSON's own matter
            check_problem(await client.classify(image={"url": url}), 422, "invalid_request")
