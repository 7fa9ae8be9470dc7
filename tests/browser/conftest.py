"""The real application on a real port, with a small fake model, and Debian's Chromium in front of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from model.inference.predictions import Explanation, ImageExplanation, TokenWeight
from service.app import create_app
from service.engine import Engine
from service.http.server import configuration
from service.settings import Settings
from tests.service.conftest import encoded
from tests.service.fake_predictor import WARM_UP, WHOLE, FakePrediction, FakePredictor, FakePrepared

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",  # which needs more rights than a container has
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ROWS, COLUMNS = 5, 4


class PointedPrediction(FakePrediction):
    """Looks at the picture's upper left, and at each word more than at the one before."""

    def _explanation(self) -> Explanation:
        listing = self.listing
        cells = [[1.0 + 30 * (row == 1 and column == 0) for column in range(COLUMNS)] for row in range(ROWS)]
        total = sum(map(sum, cells))
        words = listing.title.split() if listing.title else []
        halves = [2.0**position for position in range(len(words))]
        return Explanation(
            image=None
            if listing.pixel is None
            else ImageExplanation(ROWS, COLUMNS, [[weight / total for weight in row] for row in cells], WHOLE),
            text=tuple(TokenWeight(word, half / sum(halves)) for word, half in zip(words, halves, strict=True)) or None,
        )


class PointedPredictor(FakePredictor):
    """Says when a batch has come in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.started = threading.Semaphore(0)  # released at each batch's start

    def predict(self, batch: list[FakePrepared]) -> list[FakePrediction]:
        if any(listing.title != WARM_UP for listing in batch):
            self.started.release()
        return [PointedPrediction(prediction.listing) for prediction in super().predict(batch)]


@dataclass
class Site:
    """A running service."""

    url: str
    app: FastAPI
    predictor: PointedPredictor
    stop: Callable[[], None]

    @property
    def engine(self) -> Engine:
        engine: Engine = self.app.state.engine
        return engine


@contextmanager
def serving(
    predictor: PointedPredictor | None = None, *, loaded: threading.Event | None = None, port: int = 0, **settings: Any
) -> Iterator[Site]:
    """Serve in a thread. `loaded`: the model is loaded once this is set; None: at once."""
    predictor = predictor or PointedPredictor()

    def load(_: Settings) -> PointedPredictor:
        assert loaded is None or loaded.wait(30)
        return predictor

    app = create_app(Settings(**settings), load)
    server = uvicorn.Server(configuration(app, port=port))
    thread = threading.Thread(target=server.run)

    def stop() -> None:
        server.should_exit = True
        thread.join()

    thread.start()
    try:
        until(lambda: server.started and (loaded is not None or app.state.engine._batcher is not None))
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Site(f"http://127.0.0.1:{port}", app, predictor, stop)
    finally:
        predictor.free.set()
        stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A service that nothing goes wrong with."""
    with serving() as site:
        yield site


@dataclass
class Playground:
    """A visit to the page, and what the browser complained about meanwhile."""

    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Beginnings of the complaints that belong to the test."""

    def visit(self, site: Site) -> Playground:
        self.page.goto(site.url)
        return self

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    @property
    def readings(self) -> Locator:
        return self["#readings > .reading"]

    @property
    def problem(self) -> Locator:
        return self["#trouble .problem"]

    def choose(self, *files: Path | dict[str, Any]) -> None:
        self["#file"].set_input_files(files)  # type: ignore[arg-type]

    def expect_answer(self) -> None:
        expect(self.readings).to_have_count(2)
        expect(self["#readings"]).to_have_attribute("aria-busy", "false")

    def expect_problem(self, code: str) -> Locator:
        expect(self.problem).to_have_attribute("data-code", code)
        expect(self.problem.get_by_role("alert")).to_be_visible()
        expect(self.readings).to_have_count(0)
        return self.problem


OpenPlayground = Callable[..., Playground]


@pytest.fixture
def open_playground(browser: Browser) -> Iterator[OpenPlayground]:
    """Open the page in a fresh browser profile; afterwards, nothing may have been logged or loaded from elsewhere."""
    visits: list[tuple[Playground, Site]] = []

    def visit(site: Site, **options: Any) -> Playground:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        playground = Playground(context.new_page(), context)
        page, complaints = playground.page, playground.complaints
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: playground.requests.append(request.url))
        visits.append((playground, site))
        return playground.visit(site)

    yield visit
    for playground, site in visits:
        playground.context.close()
        assert [said for said in playground.complaints if not said.startswith(playground.expected or "\0")] == []
        assert [url for url in playground.requests if not url.startswith((f"{site.url}/", "blob:", "data:"))] == []


@pytest.fixture
def playground(open_playground: OpenPlayground, site: Site) -> Playground:
    return open_playground(site)


def picture(name: str = "shirt.png", **options: Any) -> dict[str, Any]:
    """A file of one colour, as Playwright takes them."""
    return {"name": name, "mimeType": "image/png", "buffer": encoded(**options)}
