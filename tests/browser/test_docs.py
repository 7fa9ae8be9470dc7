"""The page `/docs`: an example for each call, navigation, and the way back to the playground."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPlayground, Playground, Site
from tests.browser.test_looks import SCREENS, check


def read_docs(open_playground: OpenPlayground, site: Site, **options: Any) -> Playground:
    playground = open_playground(site, cleared=False, **options)
    playground.page.get_by_role("link", name="API").click()
    expect(playground["#operations section >> nth=0"]).to_be_visible()
    return playground


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_it_looks_like_the_playground_and_leads_back(
    open_playground: OpenPlayground, site: Site, screen: str, scheme: str
) -> None:
    docs = read_docs(open_playground, site, color_scheme=scheme, reduced_motion="reduce", **SCREENS[screen])
    check(docs)
    docs.page.get_by_role("link", name="Playground").click()
    docs.expect_answer()


def test_each_call_has_an_example_and_a_place_in_the_contents(open_playground: OpenPlayground, site: Site) -> None:
    docs = read_docs(open_playground, site)
    calls = [f"{method.upper()} {path}" for path, methods in site.app.openapi()["paths"].items() for method in methods]
    sections = docs["#operations section:not(.type)"]
    expect(sections.locator("h2")).to_have_text(calls)
    for section in sections.all():
        example = section.locator("pre").first.inner_text()
        assert example.startswith(f"curl '{site.url}/")
        assert "{}" not in example  # a body needs an example in its schema
    for link in docs["#contents a"].all():
        address = link.get_attribute("href")
        assert address
        expect(docs[f"section{address}"]).to_have_count(1)


def test_an_example_runs_on_the_page_and_in_a_shell(open_playground: OpenPlayground, site: Site) -> None:
    docs = read_docs(open_playground, site)
    for path in ("v1-classify", "v1-classify-batch"):
        section = docs[f"#post-{path}"]
        section.get_by_role("button", name="Run it here").click()
        expect(section.get_by_label("Response").filter(has_text="200")).to_contain_text('"baseColour"')
        shown = section.locator("pre[aria-label=Response]").inner_text().partition("\n")[2]
        words = shlex.split(section.locator("pre").first.inner_text().replace("\\\n", ""))
        done = subprocess.run(words, capture_output=True, check=True, timeout=20)  # noqa: S603 - our own command
        assert json.loads(done.stdout) == json.loads(shown)
