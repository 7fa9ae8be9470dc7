"""Every problem is reported, and the page recovers from temporary ones."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from service import errors
from service.http import problems
from tests.browser.conftest import ANY_PORT, OpenPlayground, Playground, PointedPredictor, Site, image_file, serving

REFUSED = ("Failed to load resource",)  # Chromium logs this for every response that is not 2xx


@pytest.fixture
def faulty(playground: Playground) -> Playground:
    playground.expected = REFUSED
    return playground


@pytest.fixture(scope="module")
def strict() -> Iterator[Site]:
    """A service with small limits, which fetches from this machine."""

    def trouble(title: str | None) -> None:
        if title == "poison":
            raise ValueError("boom")

    predictor = PointedPredictor(trouble=trouble)
    with serving(
        predictor,
        max_image_bytes=1000,
        request_timeout_ms=600,
        allow_private_image_hosts=True,
        image_ports=ANY_PORT,
    ) as site:
        yield site


def test_not_an_image(faulty: Playground) -> None:
    faulty.choose({"name": "photo.heic", "mimeType": "image/heic", "buffer": b"not at all"})
    expect(faulty.expect_problem("unsupported_media_type")).to_contain_text("JPEG, PNG, WebP, GIF, AVIF")


def test_a_damaged_image(faulty: Playground) -> None:
    damaged = image_file(size=(400, 400))
    faulty.choose(damaged | {"buffer": damaged["buffer"][:60]})
    problem = faulty.expect_problem("undecodable_image")
    expect(problem).to_contain_text("damaged")
    expect(problem).to_contain_text(re.compile("Request ID [0-9a-f]{32}"))
    faulty.choose(image_file())
    faulty.expect_answer()
    expect(faulty.problem).to_have_count(0)


def test_a_title_that_is_too_long(faulty: Playground) -> None:
    faulty["#title"].fill("word " * 1000)
    expect(faulty.expect_problem("invalid_request")).to_contain_text("4096")


def test_an_image_that_is_too_large(open_playground: OpenPlayground, strict: Site) -> None:
    playground = open_playground(strict)
    playground.expected = REFUSED
    playground.choose(image_file() | {"buffer": b"\x89PNG" + bytes(2000)})
    expect(playground.expect_problem("payload_too_large")).to_contain_text("at most 1,000 bytes are accepted")


def test_a_url_that_does_not_answer(open_playground: OpenPlayground, strict: Site) -> None:
    playground = open_playground(strict)
    playground.expected = REFUSED
    playground["#url"].fill("http://127.0.0.1:9/shirt.jpg")
    expect(playground.expect_problem("image_fetch_failed")).to_contain_text("Check the URL")


def test_a_bug_of_the_service(open_playground: OpenPlayground, strict: Site) -> None:
    playground = open_playground(strict)
    playground.expected = REFUSED
    playground["#title"].fill("poison")
    expect(playground.expect_problem("inference_failed")).to_contain_text("report it")


def test_a_request_that_times_out_is_retried(open_playground: OpenPlayground, strict: Site) -> None:
    playground = open_playground(strict)
    playground.expected = REFUSED
    strict.predictor.free.clear()
    playground["#title"].fill("slow")
    expect(playground.expect_problem("deadline_exceeded")).to_contain_text("Retrying in")
    strict.predictor.free.set()
    playground.expect_answer()


@pytest.mark.parametrize("code", ["unknown_attribute", "internal_error", "not_found", "method_not_allowed", "draining"])
def test_other_codes(faulty: Playground, code: str) -> None:
    failure = next(found for found in all_errors(errors.ServiceError) if found.code == code)
    body = problems.problem(failure("what happened"), "the-id")
    faulty.page.route(
        "**/v1/classify",
        lambda route: route.fulfill(json=body, status=failure.status, content_type=problems.PROBLEM_TYPE),
    )
    faulty["#title"].fill("Red Coat")
    problem = faulty.expect_problem(code)
    expect(problem).to_contain_text("What happened.")
    expect(problem).to_contain_text("the-id")


def all_errors(root: type[errors.ServiceError]) -> list[type[errors.ServiceError]]:
    return [root, *(found for child in root.__subclasses__() for found in all_errors(child))]


def test_every_code_has_a_message() -> None:
    source = (Path(errors.__file__).parent / "static/playground/api.js").read_text()
    for failure in all_errors(errors.ServiceError):
        if failure is not errors.ClientGone:  # nobody is there to see it
            assert f"  {failure.code}: [" in source


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 502, "body": "<h1>Bad Gateway</h1>"},
        {"status": 503, "body": '{"type": ', "content_type": problems.PROBLEM_TYPE},  # truncated
    ],
)
def test_a_response_that_is_not_from_the_service(faulty: Playground, answer: dict[str, Any]) -> None:
    faulty.page.route("**/v1/classify", lambda route: route.fulfill(**answer))
    faulty["#title"].fill("Red Coat")
    expect(faulty.expect_problem("unexpected_response")).to_contain_text(str(answer["status"]))
    faulty.page.unroute("**/v1/classify")
    faulty.page.get_by_role("button", name="Retry now").click()
    faulty.expect_answer()


def test_an_image_deleted_in_the_meantime_is_reported(faulty: Playground) -> None:
    gone = "new DOMException('gone', 'NotFoundError')"
    faulty.page.evaluate(f"() => {{ Blob.prototype.arrayBuffer = () => Promise.reject({gone}); }}")
    faulty.choose(image_file())
    expect(faulty.expect_problem("unreadable")).to_contain_text("Choose it again")


def test_a_missing_api_description_is_reported(faulty: Playground) -> None:
    faulty.page.route("**/openapi.json", lambda route: route.abort())
    faulty.page.goto(faulty.page.url.rstrip("/") + "/docs")
    expect(faulty["#operations"]).to_contain_text("could not be loaded")


def test_an_overloaded_service_is_retried(open_playground: OpenPlayground) -> None:
    with serving(max_queue=1) as site:
        playground = open_playground(site)
        playground.expected = REFUSED
        site.predictor.free.clear()
        body = {"title": "the one inside"}
        inside = threading.Thread(target=lambda: httpx.post(f"{site.url}/v1/classify", json=body, timeout=30))
        inside.start()
        assert site.predictor.started.acquire(timeout=10)
        playground["#title"].fill("Red Coat")
        problem = playground.expect_problem("overloaded")
        expect(problem).to_contain_text("Retrying in 1 s.")
        expect(playground["#state"]).to_have_text("Busy")
        site.predictor.free.set()
        inside.join()
        playground.expect_answer()
        expect(playground["#state"]).to_have_text("Ready")


def test_the_service_goes_away_and_comes_back(open_playground: OpenPlayground) -> None:
    with serving() as site:
        playground = open_playground(site)
        playground.expected = REFUSED
        playground["#title"].fill("Red Coat")
        playground.expect_answer()
        site.stop()
        playground["#title"].fill("Red Coats")
        expect(playground.expect_problem("unreachable")).to_contain_text("Retrying in")
        expect(playground["#state"]).to_have_text("Unavailable")
    with serving(port=int(site.url.rpartition(":")[2])):
        playground.page.get_by_role("button", name="Retry now").click()
        playground.expect_answer()


def test_a_service_that_stops_is_noticed_within_three_seconds(open_playground: OpenPlayground) -> None:
    """Though nothing is sent; and so is its return."""
    with serving() as site:
        playground = open_playground(site)
        playground.expected = REFUSED
        playground["#title"].fill("Red Coat")
        playground.expect_answer()
        site.stop()
        expect(playground["#state"]).to_have_text("Unavailable", timeout=3000)
        expect(playground["#gone"]).to_be_visible()
    with serving(port=int(site.url.rpartition(":")[2])):
        expect(playground["#state"]).to_have_text("Ready", timeout=3000)
        expect(playground["#gone"]).to_be_hidden()


def test_the_model_is_still_loading(open_playground: OpenPlayground) -> None:
    loaded = threading.Event()
    with serving(loaded=loaded) as site:
        playground = open_playground(site, cleared=False)
        playground.expected = REFUSED
        playground["#title"].fill("Red Coat")
        playground.expect_problem("not_ready")
        expect(playground["#state"]).to_have_text("Not ready")
        loaded.set()
        time.sleep(0.3)
        playground.page.get_by_role("button", name="Retry now").click()
        playground.expect_answer()
        expect(playground["#precision"]).to_be_visible()


def test_an_api_key_is_required(open_playground: OpenPlayground) -> None:
    with serving(api_keys=("right", "ключ ✓")) as site:
        playground = open_playground(site, cleared=False)
        playground.expected = REFUSED
        expect(playground["#locked"]).to_be_visible()
        playground["#title"].fill("Red Coat")
        playground.expect_problem("unauthorized")
        playground["#key"].fill("wrong")
        playground["#key"].press("Enter")
        expect(playground["#key-hint"]).to_contain_text("rejected this key")
        playground["#key"].fill("ключ ✓")
        playground["#key"].press("Enter")
        playground.expect_answer()
        playground.page.evaluate("sessionStorage.clear()")
        playground.page.reload()
        playground["#title"].fill("Red Coat")
        playground.expect_problem("unauthorized")
        playground["#key"].fill("right")
        playground.page.get_by_role("button", name="Use this key").click()
        playground.expect_answer()
        expect(playground["#locked"]).to_be_hidden()
        expect(playground["#precision"]).to_be_visible()
        expect(playground["#code-text"]).to_contain_text("Bearer $CMA_CLIP_KEY")
        assert "right" not in playground["#code-text"].inner_text()
        playground.page.reload()
        expect(playground["#state"]).to_have_text("Ready")
