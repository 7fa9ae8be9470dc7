"""The real application with the fake predictor, in this process and on a real port."""

from __future__ import annotations

import asyncio
import atexit
import base64
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from model.inputs.pool import DecodePool, memory_for
from service.app import create_app
from service.errors import NotReady
from service.http.server import configuration
from service.lifecycle import Lifecycle
from service.pipeline.gate import Gate
from service.pipeline.pipeline import Pipeline
from service.scheduling.batcher import MicroBatcher
from service.settings import Settings
from service.store.store import Store
from tests.service.databases import BACKEND, PostgreSQL, running_postgresql
from tests.service.fake_predictor import FakePredictor
from tests.service.tally import TALLY


def encoded(
    colour: Any = (10, 20, 200),
    *,
    size: tuple[int, int] = (60, 80),
    file_format: str = "PNG",
    mode: str = "RGB",
) -> bytes:
    """An image file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, file_format)
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Client(httpx.AsyncClient):
    """An HTTP client that also knows the application behind it."""

    app: FastAPI
    predictor: FakePredictor

    @property
    def lifecycle(self) -> Lifecycle:
        lifecycle: Lifecycle = self.app.state.lifecycle
        return lifecycle

    @property
    def pipeline(self) -> Pipeline:
        pipeline: Pipeline = self.app.state.pipeline
        return pipeline

    @property
    def batcher(self) -> MicroBatcher[Any, Any, Any]:
        return self.pipeline.inference.batcher

    async def classify(self, **listing: Any) -> httpx.Response:
        return await self.post("/v1/classify", json=listing)

    async def metric(self, name: str, **labels: str) -> float:
        """The present value of a metric; 0 where the series does not exist."""
        return self.pipeline.metrics.registry.get_sample_value(name, labels) or 0.0


@cache
def shared_workers() -> DecodePool:
    """Decode workers for all tests of this process: starting some for each would take longer than the tests."""
    pool = DecodePool(workers=2, memory=memory_for(Settings().max_image_pixels))
    atexit.register(pool.close)
    return pool


Start = Callable[..., AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def in_process(
    predictor: FakePredictor | None = None,
    *,
    gate: Gate | None = None,
    decoding: DecodePool | None = None,
    share_workers: bool = True,
    ready: bool = True,
    **settings: Any,
) -> AsyncIterator[Client]:
    """Run the application on this event loop, without a port."""
    predictor = predictor or FakePredictor()
    workers = decoding or (shared_workers() if share_workers else None)
    app = create_app(Settings(**settings), lambda _: predictor, gate=gate, decoding=workers)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        Client(transport=transport, base_url="http://test") as client,
    ):
        client.app, client.predictor = app, predictor
        if ready:
            await until(lambda: is_ready(client))
        try:
            yield client
        finally:
            predictor.free.set()


@asynccontextmanager
async def on_port(
    predictor: FakePredictor | None = None,
    *,
    gate: Gate | None = None,
    ready: bool = True,
    **settings: Any,
) -> AsyncIterator[Client]:
    """Run the application behind uvicorn on a free port of this machine."""
    predictor = predictor or FakePredictor()
    app = create_app(Settings(**settings), lambda _: predictor, gate=gate, decoding=shared_workers())
    server = uvicorn.Server(configuration(app, port=0))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    try:
        async with Client(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=30) as client:
            client.app, client.predictor = app, predictor
            if ready:
                await until(lambda: is_ready(client))
            yield client
    finally:
        if isinstance(predictor, FakePredictor):
            predictor.free.set()
        server.should_exit = True
        await serving


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that must come; a test that waits in vain fails by its time limit."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - whatever the condition is, it knows of no event
            await asyncio.sleep(0.002)


def is_ready(client: Client) -> bool:
    try:
        client.lifecycle.check_ready()
    except NotReady:
        return False
    return True


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with in_process() as client:
        yield client


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A real server, for all tests of this process."""
    with running_postgresql() as server:
        yield server


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: SQLite's, or PostgreSQL's where `TEST_STORE` says so."""
    if BACKEND == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Iterator[Store]:
    """An open store with an empty database, its files in a temporary folder."""
    store = Store.open(store_url, str(tmp_path / "files"))
    yield store
    store.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much the hostile tests tried."""
    for name, count in sorted(TALLY.items()):
        terminalreporter.write_line(f"{name}: {count}")
