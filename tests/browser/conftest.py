"""The real application on a real port with a small fake model, opened in Debian's Chromium."""

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
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect, sync_playwright

from model.inference.predictions import Explanation, ImageExplanation, TokenWeight
from service.app import create_app
from service.errors import NotReady
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
    """Its explanation weighs the upper left of the image most, and each word of the title more than the one before."""

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
    """Signals the start of each batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.started = threading.Semaphore(0)  # released at the start of each batch

    def forget(self) -> None:
        """Forget the batches so far."""
        self.batches.clear()
        while self.started.acquire(blocking=False):
            pass

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


ANY_PORT = tuple(range(1, 65536))


@contextmanager
def serving(
    predictor: PointedPredictor | None = None, *, loaded: threading.Event | None = None, port: int = 0, **settings: Any
) -> Iterator[Site]:
    """Serve in a thread. `loaded`: loading the model waits for this event; None: it does not wait."""
    predictor = predictor or PointedPredictor()

    def load(_: Settings) -> PointedPredictor:
        assert loaded is None or loaded.wait(30)
        return predictor

    app = create_app(Settings(**settings), load)
    server = uvicorn.Server(configuration(app, port=port))
    thread = threading.Thread(target=server.run)

    def ready() -> bool:
        try:
            app.state.lifecycle.check_ready()
        except NotReady:
            return False
        return True

    def stop() -> None:
        server.should_exit = True
        thread.join()

    thread.start()
    try:
        until(lambda: server.started and (loaded is not None or ready()))
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Site(f"http://127.0.0.1:{port}", app, predictor, stop)
    finally:
        predictor.free.set()
        stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met within 10 s"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A service without faults."""
    with serving() as site:
        yield site


@dataclass
class Playground:
    """A visit to the page, with the errors and warnings that the browser logged."""

    page: Page
    context: BrowserContext
    logged: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Prefixes of the messages that the test expects."""

    def visit(self, site: Site, *, cleared: bool = True) -> Playground:
        """Open the page. `cleared`: wait for the example that it opens with, and remove it."""
        self.page.goto(site.url)
        if cleared:
            expect(self["#predictions > .prediction, #problem .problem"].first).to_be_visible()
            self["#clear"].click()
            expect(self.predictions).to_have_count(0)
            site.predictor.forget()
        return self

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    @property
    def predictions(self) -> Locator:
        return self["#predictions > .prediction"]

    @property
    def problem(self) -> Locator:
        return self["#problem .problem"]

    def choose(self, *files: Path | dict[str, Any]) -> None:
        self["#file"].set_input_files(files)  # type: ignore[arg-type]

    def expect_answer(self) -> None:
        expect(self.predictions).to_have_count(2)
        expect(self["#predictions"]).to_have_attribute("aria-busy", "false")

    def expect_problem(self, code: str) -> Locator:
        expect(self.problem).to_have_attribute("data-code", code)
        expect(self.problem.get_by_role("alert")).to_be_visible()
        expect(self.predictions).to_have_count(0)
        return self.problem


OpenPlayground = Callable[..., Playground]


@pytest.fixture
def open_playground(browser: Browser) -> Iterator[OpenPlayground]:
    """Open the page in a new browser profile, without its example; fails if anything was logged, or loaded from another
    site.
    """
    visits: list[tuple[Playground, Site]] = []

    def visit(site: Site, *, cleared: bool = True, **options: Any) -> Playground:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        playground = Playground(context.new_page(), context)
        page, logged = playground.page, playground.logged

        def note(said: ConsoleMessage) -> None:
            # The page asks whether the service is there, also after a test has stopped it.
            if said.type in ("error", "warning") and not said.location["url"].endswith("/readyz"):
                logged.append(said.text)

        page.on("console", note)
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.on("request", lambda request: playground.requests.append(request.url))
        visits.append((playground, site))
        return playground.visit(site, cleared=cleared)

    yield visit
    for playground, site in visits:
        playground.context.close()
        assert [said for said in playground.logged if not said.startswith(playground.expected or "\0")] == []
        assert [url for url in playground.requests if not url.startswith((f"{site.url}/", "blob:", "data:"))] == []


@pytest.fixture
def playground(open_playground: OpenPlayground, site: Site) -> Playground:
    return open_playground(site)


def image_file(name: str = "shirt.png", **options: Any) -> dict[str, Any]:
    """An image file of a single colour, in the form that Playwright uploads."""
    return {"name": name, "mimeType": "image/png", "buffer": encoded(**options)}
