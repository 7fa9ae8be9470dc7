"""Accessibility and layout: axe reports no violations on any screen, light or dark, and nothing overflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Route, expect

from tests.browser.conftest import OpenPlayground, Playground, Site, image_file, serving
from tests.service.fake_predictor import CONTEXT, DISAGREEING, UNFAMILIAR

SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
}


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(params=SCREENS)
def visit(request: pytest.FixtureRequest, open_playground: OpenPlayground, site: Site, scheme: str) -> Playground:
    return open_playground(site, color_scheme=scheme, reduced_motion="reduce", **SCREENS[request.param])


def check(playground: Playground) -> None:
    results = Axe().run(playground.page)
    assert not results.violations_count, results.generate_report()
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert playground.page.evaluate(overflow) <= 0


def expect_in_reach(playground: Playground, *selectors: str) -> None:
    """Fail unless all of these are on the screen without scrolling."""
    size = playground.page.viewport_size
    assert size is not None
    for selector in selectors:
        box = playground[selector].bounding_box()
        assert box is not None, selector
        assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"], selector  # noqa: PT018


def test_on_a_phone_the_page_opens_with_an_example_whose_answer_is_in_reach(
    open_playground: OpenPlayground, site: Site
) -> None:
    playground = open_playground(site, cleared=False, **SCREENS["phone"])
    playground.expect_answer()
    expect(playground["#title"]).to_have_value("Turtle Check Men Navy Blue Shirt")
    expect_in_reach(playground, "#shown", "#predictions-title", ".head >> nth=0", ".verdict >> nth=0")


def test_seven_attributes_fit_beside_the_image_on_a_laptop(open_playground: OpenPlayground, site: Site) -> None:
    """At 1366 x 820: six that are accepted, and one with a longer line that says why not."""
    verdict = {"label": "Navy Blue", "confidence": 0.96, "accepted": True, "abstention": None, "threshold": 0.72}
    certain = verdict | {
        "target_precision": 0.95,
        "candidates": [{"label": label, "confidence": share} for label, share in (("Navy Blue", 0.96), ("Blue", 0.03))],
        "modality_attention": {"image": 0.3, "text": 0.7},
    }
    doubtful = certain | {"confidence": 0.6, "accepted": False, "abstention": "low_confidence"}
    names = ["gender", "masterCategory", "subCategory", "articleType", "baseColour", "usage"]

    def seven(route: Route) -> None:
        reply = route.fetch()
        attributes = {**dict.fromkeys(names, certain), "season": doubtful}
        route.fulfill(response=reply, json=reply.json() | {"attributes": attributes})

    playground = open_playground(site, viewport={"width": 1366, "height": 820})
    playground.page.route("**/v1/classify/upload", seven)
    playground.page.get_by_role("button", name="Navy shirt").click()
    expect(playground.predictions).to_have_count(7)
    expect_in_reach(playground, "#shown", ".prediction >> nth=0", ".prediction >> nth=6")


def test_the_empty_page(visit: Playground) -> None:
    expect(visit["#precision"]).to_be_visible()
    check(visit)


def test_with_an_answer_and_an_explanation(visit: Playground) -> None:
    visit.page.get_by_role("button", name="Navy shirt").click()
    visit.expect_answer()
    visit[".head >> nth=0"].click()
    expect(visit[".head >> nth=0"]).to_have_attribute("aria-pressed", "true")
    check(visit)


def test_with_an_unfamiliar_listing_and_a_warning(visit: Playground) -> None:
    visit["#title"].fill(f"{UNFAMILIAR} " + "word " * CONTEXT)
    visit.expect_answer()
    expect(visit[".remark"]).to_have_count(2)
    check(visit)


def test_with_a_contradiction(visit: Playground) -> None:
    visit["#title"].fill(f"shirt that {DISAGREEING}")
    visit.choose(image_file())
    visit.expect_answer()
    expect(visit[".remark"]).to_have_count(1)
    check(visit)


@pytest.mark.parametrize("size", [(60, 80), (900, 1200), (1600, 300)])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_whole_image_is_visible(
    open_playground: OpenPlayground, site: Site, screen: str, size: tuple[int, int]
) -> None:
    playground = open_playground(site, **SCREENS[screen])
    playground.choose(image_file(size=size))
    playground.expect_answer()
    frame, shown = (playground[name].bounding_box() for name in ("#frame", "#shown"))
    assert frame is not None
    assert shown is not None
    assert shown["width"] / shown["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    assert max(shown["width"] / frame["width"], shown["height"] / frame["height"]) == pytest.approx(1, abs=0.01)


def test_with_a_problem(visit: Playground) -> None:
    visit.expected = ("Failed to load resource",)
    visit.choose(image_file("notes.png") | {"buffer": b"hello"})
    visit.expect_problem("unsupported_media_type")
    check(visit)


def test_with_a_table(visit: Playground, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("id,title\n" + "".join(f"{number},Coat number {number}\n" for number in range(40)) + "x,\n")
    visit["#tab-many"].click()
    visit["#files"].set_input_files(table)
    expect(visit["#progress-text"]).to_have_text("41 of 41 listings processed.")
    check(visit)


def test_with_an_api_key_required(open_playground: OpenPlayground, scheme: str) -> None:
    with serving(api_keys=("right",)) as site:
        playground = open_playground(site, cleared=False, color_scheme=scheme)
        playground.expected = ("Failed to load resource",)
        expect(playground["#locked"]).to_be_visible()
        check(playground)


def test_a_tap_shows_the_explanation_below_the_answer(open_playground: OpenPlayground, site: Site) -> None:
    playground = open_playground(site, **SCREENS["phone"])
    playground.page.get_by_role("button", name="Navy shirt").tap()
    playground.expect_answer()
    playground[".head >> nth=1"].tap()
    slot = playground[".prediction >> nth=1"].locator(".slot")
    expect(slot.locator("canvas")).to_be_visible()
    expect(slot.locator(".word").last).to_contain_text("Shirt")
    playground[".head >> nth=1"].tap()
    expect(slot).to_be_hidden()


def test_buttons_are_large_enough_to_press(open_playground: OpenPlayground, site: Site) -> None:
    playground = open_playground(site, **SCREENS["phone"])
    playground.page.get_by_role("button", name="Navy shirt").tap()
    playground.expect_answer()
    boxes = [button.bounding_box() for button in playground.page.get_by_role("button").all() if button.is_visible()]
    assert boxes
    assert all(box is not None and min(box["width"], box["height"]) >= 24 for box in boxes)
