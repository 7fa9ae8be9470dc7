"""The page of reviewers: by keyboard alone, without the model's answer on the random share, and without barriers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect
from sqlalchemy import select, update

from service.store.database import Database
from service.store.tables import review_items as items
from tests.browser.conftest import Site, serving, until
from tests.browser.test_label_sets import PointedSets
from tests.browser.test_looks import SCREENS
from tests.service.conftest import as_base64, encoded
from tests.service.fake_predictor import TASKS

LISTINGS = 6
LABELS = {task.name: task.labels for task in TASKS}


@pytest.fixture(params=[1.0])
def share(request: pytest.FixtureRequest) -> float:
    chosen: float = request.param
    return chosen


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def site(database: str, share: float) -> Iterator[Site]:
    """A service that has answered some listings, which wait for a review."""
    with serving(store=database, review_share=share) as site:
        for number in range(LISTINGS):
            image = {"base64": as_base64(encoded((40 * number, 80, 160), size=(300, 400)))}
            listing = {"id": f"sku-{number}", "title": f"Shirt number {number}", "image": image}
            httpx.post(f"{site.url}/v1/classify", json=listing).raise_for_status()
        until(lambda: _waiting(site) > 0)
        yield site


def _waiting(site: Site) -> int:
    waiting: dict[str, int] = httpx.get(f"{site.url}/v1/reviews/precision").json()["waiting"]
    return sum(waiting.values())


def decided(database: str) -> list[Any]:
    """The items that have been decided, in the order of the decisions."""
    opened = Database(database)
    with opened.snapshot() as connection:
        rows = connection.execute(select(items).where(items.c.verdict.is_not(None)).order_by(items.c.decided)).all()
    opened.close()
    return list(rows)


class Reviewer:
    """A visit of the page."""

    def __init__(self, page: Page, context: BrowserContext, site: Site) -> None:
        self.page, self.context, self.site = page, context, site
        self.logged: list[str] = []
        page.on("console", lambda said: self.logged.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.logged.append(str(error)))

    def start(self, name: str = "anna") -> Reviewer:
        self.page.goto(f"{self.site.url}/review")
        self.page.keyboard.press("Tab")  # the link that skips the header
        self.page.get_by_label("Your name").fill(name)
        self.page.keyboard.press("Enter")
        expect(self.search).to_be_focused()
        return self

    @property
    def search(self) -> Any:
        return self.page.get_by_role("combobox", name="Label")

    @property
    def announced(self) -> Any:
        return self.page.locator("#announce")

    @property
    def shown(self) -> str:
        return f"{self.page.locator('#sku').inner_text()} {self.page.locator('#attribute').inner_text()}"

    def press(self, *keys: str) -> None:
        """Press keys one after the other, and wait until the next item is there."""
        for key in keys:
            with self.page.expect_response("**/v1/reviews"):
                self.page.keyboard.press(key)
            expect(self.page.locator("#judge")).to_have_attribute("aria-busy", "false")


@pytest.fixture(params=SCREENS)
def screen(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SCREENS[request.param]


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def open_page(browser: Browser, site: Site) -> Iterator[Any]:
    visits: list[Reviewer] = []

    def visit(**options: Any) -> Reviewer:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        visits.append(Reviewer(context.new_page(), context, site))
        return visits[-1]

    yield visit
    for each in visits:
        each.context.close()
        assert each.logged == []


def test_the_random_share_is_judged_by_keyboard_without_the_models_answer(open_page: Any, database: str) -> None:
    reviewer = open_page().start()
    page = reviewer.page
    expect(page.locator("#why")).to_contain_text("without the model's answer")
    expect(page.locator("#suggestion")).to_be_hidden()
    expect(page.get_by_role("button", name="Accept")).to_be_hidden()
    attribute = "season" if "Season" in reviewer.shown else "baseColour"
    options = page.get_by_role("option")
    assert options.locator("span").all_inner_texts() == list(LABELS[attribute])  # in the order of the vocabulary
    expect(page.locator("#labels .number")).to_have_count(0)
    reviewer.press("2")
    (first,) = decided(database)
    assert (first.decision, first.decided_by) == ([LABELS[attribute][1]], "anna")
    expect(reviewer.announced).to_contain_text(f"Saved: {LABELS[attribute][1]}.")
    expect(reviewer.search).to_be_focused()


def test_a_label_is_searched_and_chosen(open_page: Any, database: str) -> None:
    reviewer = open_page().start()
    page = reviewer.page
    while "Base colour" not in reviewer.shown:
        reviewer.press("ArrowRight")
    page.keyboard.type("blu")
    expect(page.get_by_role("option")).to_have_text(["1Blue", "2Navy Blue"])
    expect(page.get_by_role("option", selected=True)).to_have_text("1Blue")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("option", selected=True)).to_have_text("2Navy Blue")
    page.keyboard.type("x")
    expect(page.locator("#none-found")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("option")).to_have_count(4)
    page.keyboard.type("nav")
    reviewer.press("Enter")
    assert decided(database)[-1].decision == ["Navy Blue"]


def test_skipping_finding_none_and_undoing(open_page: Any, database: str) -> None:
    reviewer = open_page().start()
    undo = reviewer.page.get_by_role("button", name="Undo", exact=False)
    expect(undo.first).to_be_disabled()
    first = reviewer.shown
    reviewer.press("ArrowRight")
    second = reviewer.shown
    reviewer.press("0")
    assert [row.verdict for row in decided(database)] == ["skipped", "wrong"]
    reviewer.press("ArrowLeft")
    assert reviewer.shown == second
    expect(reviewer.announced).to_contain_text("Undone.")
    reviewer.press("ArrowLeft")
    assert reviewer.shown == first
    assert decided(database) == []
    reviewer.press("1")
    assert reviewer.shown == second
    assert [row.decision is not None for row in decided(database)] == [True]


def test_all_that_waits_is_judged_and_the_last_can_be_undone(open_page: Any, database: str) -> None:
    reviewer = open_page().start()
    reviewer.press(*["1"] * (2 * LISTINGS))
    expect(reviewer.page.get_by_role("heading", name="Nothing waits for a review")).to_be_focused()
    expect(reviewer.page.locator("#progress")).to_have_text(f"anna: {2 * LISTINGS} decisions made · 0 waiting")
    assert len({row.item for row in decided(database)}) == 2 * LISTINGS
    with reviewer.page.expect_response("**/v1/reviews"):
        reviewer.page.get_by_role("button", name="Undo the last decision").click()
    expect(reviewer.page.locator("#judge")).to_have_attribute("aria-busy", "false")
    expect(reviewer.search).to_be_focused()
    assert len(decided(database)) == 2 * LISTINGS - 1


def test_two_reviewers_share_the_pairs_out(open_page: Any, database: str) -> None:
    anna, ben = open_page().start("anna"), open_page().start("ben")
    for _ in range(3):
        anna.press("1")
        ben.press("1")
    found = decided(database)
    assert len({row.item for row in found}) == 6
    assert {row.decided_by for row in found} == {"anna", "ben"}


def test_a_pair_that_somebody_else_has_decided_is_passed_over(open_page: Any, database: str) -> None:
    reviewer = open_page().start()
    opened = Database(database)
    with opened.transaction() as connection:
        connection.execute(update(items).values(leased_to="ben"))
    opened.close()
    first = reviewer.shown
    reviewer.press("1")
    expect(reviewer.page.get_by_role("alert")).to_contain_text("go on with the next")
    expect(reviewer.search).to_be_focused()
    assert reviewer.shown != first
    reviewer.logged.clear()  # the browser says that the request was refused


@pytest.mark.parametrize("share", [0.0], indirect=True)
def test_the_models_label_of_an_abstention_is_accepted_by_enter(open_page: Any, database: str) -> None:
    reviewer = open_page().start()
    page = reviewer.page
    suggested = page.locator("#label").inner_text()
    expect(page.locator("#why")).to_contain_text("can teach it")
    expect(page.get_by_role("option").first).to_contain_text(suggested)
    expect(page.locator("#labels .number").first).to_contain_text("%")
    reviewer.press("Enter")
    (row,) = decided(database)
    assert (row.decision, row.verdict, row.kind) == ([suggested], "right", "abstained")


def test_all_labels_that_fit_are_chosen_where_several_may(open_page: Any, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'sets.db'}"
    with serving(PointedSets(), store=database, review_share=1.0) as site:
        httpx.post(f"{site.url}/v1/classify", json={"title": "Wool", "attributes": ["material"]}).raise_for_status()
        until(lambda: _waiting(site) > 0)
        reviewer = open_page()
        reviewer.site = site
        reviewer.start()
        page, options = reviewer.page, reviewer.page.get_by_role("option")
        save, none = (page.get_by_role("button", name=name) for name in ("Save", "No label fits"))
        expect(save).to_be_disabled()
        page.keyboard.press("1")
        page.keyboard.type("woo")
        page.keyboard.press("Enter")
        page.keyboard.press("2")
        page.keyboard.press("2")
        expect(page.locator("#chosen")).to_have_text("Cotton, Wool")
        expect(reviewer.announced).to_have_text("Chosen: Cotton, Wool.")
        expect(page.get_by_role("option", selected=True)).to_have_text(["1Cotton", "3Wool"])
        expect(none).to_be_disabled()
        assert not Axe().run(page).violations_count
        page.keyboard.press("0")
        expect(options).to_have_count(3)
        reviewer.press("Enter")
        expect(page.get_by_role("heading", name="Nothing waits for a review")).to_be_focused()
        (row,) = decided(database)
        page.keyboard.press("Tab")
        assert (row.decision, row.verdict) == (["Cotton", "Wool"], "right")
        reviewer.press("Enter")  # on the button that undoes the last decision
        expect(none).to_be_enabled()


def test_a_service_that_stops_is_noticed_and_nothing_is_lost(open_page: Any, database: str) -> None:
    reviewer = open_page().start()
    shown = reviewer.shown
    reviewer.site.stop()
    expect(reviewer.page.locator("#gone")).to_be_visible(timeout=3_000)
    reviewer.page.keyboard.press("1")
    expect(reviewer.page.get_by_role("alert")).to_contain_text("cannot be reached")
    assert reviewer.shown == shown
    assert decided(database) == []
    reviewer.logged.clear()  # the browser says that requests have failed


def test_what_was_found_is_shown_and_what_is_broken_comes_first(open_page: Any) -> None:
    reviewer = open_page().start()

    def break_the_last(route: Route) -> None:
        found = route.fetch().json()
        judged = [promise for promise in found["promises"] if promise["judged"]]
        assert len(judged) > 1
        judged[-1]["broken"] = judged[-1]["withdrawn"] = True
        route.fulfill(json=found)

    reviewer.page.route("**/v1/reviews/precision", break_the_last)
    reviewer.press(*["1"] * 8)
    reviewer.page.get_by_role("tab", name="Precision found").click()
    table = reviewer.page.locator("#promises")
    expect(table.get_by_role("row").nth(1)).to_contain_text("Not kept: nothing is accepted")
    expect(table.get_by_role("columnheader").nth(8)).to_have_text("At most")
    expect(table).to_contain_text("95 %")


def test_the_page_has_no_barriers_and_nothing_overflows(open_page: Any, screen: dict[str, Any], scheme: str) -> None:
    reviewer = open_page(color_scheme=scheme, reduced_motion="reduce", **screen)
    reviewer.page.goto(f"{reviewer.site.url}/review")
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

    def check() -> None:
        results = Axe().run(reviewer.page)
        assert not results.violations_count, results.generate_report()
        assert reviewer.page.evaluate(overflow) <= 0

    check()
    reviewer.start()
    check()
    reviewer.page.keyboard.type("u")
    check()
    reviewer.page.get_by_role("tab", name="Precision found").click()
    expect(reviewer.page.locator("#promises td").first).to_be_visible()
    check()


def test_a_key_is_asked_for_where_one_is_required(browser: Browser, database: str) -> None:
    with serving(store=database, api_keys=("shop:other", "team:right"), review_keys=("team",)) as site:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{site.url}/review")
        key = page.locator("#key")
        key.fill("other")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Your name")).to_be_focused()
        expect(page.locator("#with-key")).to_be_visible()
        page.keyboard.press("Enter")  # no name: that of the key is enough
        expect(page.get_by_role("alert")).to_contain_text("may not review")
        key.fill("right")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Nothing waits for a review")).to_be_visible()
        expect(page.locator("#progress")).to_contain_text("team: 0 decisions made")
        expect(page.locator("#locked")).to_be_hidden()
        context.close()


def test_without_a_store_the_page_says_so(browser: Browser) -> None:
    with serving() as site:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{site.url}/review")
        page.get_by_label("Your name").fill("anna")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("CMA_CLIP_STORE names no database")
        context.close()
