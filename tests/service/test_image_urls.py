"""What `cma-clip label` fetches images with: the service's fetcher, under the same rules, from several threads."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.errors import CatalogueError
from service.commands.image_urls import url_fetcher
from service.settings import Settings, load_settings


class Images(http.server.BaseHTTPRequestHandler):
    """Answers with the path; what has `gone` in it isn't there."""

    def do_GET(self) -> None:
        data = self.path.encode()
        self.send_response(404 if "gone" in self.path else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def settings_for(host: str, *, private: bool = True) -> Settings:
    port = int(host.rpartition(":")[2])
    return load_settings(allow_private_image_hosts=private, image_ports=(port,))


def test_several_threads_fetch_at_once(host: str) -> None:
    with url_fetcher(settings_for(host)) as fetch, ThreadPoolExecutor(4) as threads:
        urls = [f"{host}/{n}.jpg" for n in range(20)]
        assert list(threads.map(fetch, urls)) == [f"/{n}.jpg".encode() for n in range(20)]


def test_a_failure_names_the_url(host: str) -> None:
    with url_fetcher(settings_for(host)) as fetch:
        with pytest.raises(CatalogueError, match=r"http://127\.0\.0\.1:\d+/gone\.jpg: .*404"):
            fetch(f"{host}/gone.jpg")
        assert fetch(f"{host}/1.jpg") == b"/1.jpg"


def test_the_rules_of_the_service_hold(host: str) -> None:
    with url_fetcher(settings_for(host, private=False)) as fetch, pytest.raises(CatalogueError, match="not public"):
        fetch(f"{host}/1.jpg")
