"""Images by URL for bulk labelling: the service's own fetcher, called from threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from model.errors import CatalogueError
from service.errors import ServiceError
from service.pipeline.fetch import Fetcher, configured_fetcher
from service.settings import Settings


@contextmanager
def url_fetcher(settings: Settings) -> Iterator[Callable[[str], bytes]]:
    """Return a function from a URL to its bytes, under the same rules as requests: hosts, addresses, sizes and times.

    It may be called by several threads, and raises `CatalogueError` naming the URL.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fetch", daemon=True)
    thread.start()
    fetcher = asyncio.run_coroutine_threadsafe(_open(settings), loop).result()

    def fetch(url: str) -> bytes:
        try:
            return asyncio.run_coroutine_threadsafe(fetcher.fetch(url), loop).result()
        except ServiceError as error:
            raise CatalogueError(f"{url}: {error.detail}") from None

    try:
        yield fetch
    finally:
        asyncio.run_coroutine_threadsafe(fetcher.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _open(settings: Settings) -> Fetcher:
    return configured_fetcher(settings)
