"""How many keys a hundred decisions on `/review` take, and how long the page makes a reviewer wait for the next pair.

    python -m benchmarks.reviewing [--out benchmarks/results/reviewing.json]

The shipped checkpoint answers listings of the catalogue's test part, of which every pair is drawn. A scripted reviewer
knows the catalogue's labels, and chooses them by the keyboard alone: a digit where the list shows one, else as many
letters as bring the label to the first place, and Enter. People need time to look as well: what the page leaves of ten
minutes is said. It needs Chromium, as `make test-browser` installs it.
"""

from __future__ import annotations

import base64
import json
import re
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from playwright.sync_api import Locator, Page, expect, sync_playwright

from benchmarks.server import server
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part

CHROMIUM = "/usr/bin/chromium"
DECISIONS = 100
LISTINGS = 40
TEN_MINUTES = 600.0


@dataclass(frozen=True, kw_only=True)
class Report:
    decisions: int
    keys: int
    keys_most: int
    """Of one decision."""
    wait_seconds_median: float
    """From the last key of a decision until the next pair is shown."""
    wait_seconds_largest: float
    seconds_left_for_each: float
    """Of ten minutes, for a person to look and to press the keys."""


def send(url: str, listings: list[Listing], catalogue: Catalogue) -> None:
    """Have listings answered, and wait until all of their pairs wait for a review."""
    sent = [
        {
            "id": each.id,
            "title": each.title,
            "image": {"base64": base64.b64encode(catalogue.image_bytes(each.image or "")).decode()},
        }
        for each in listings
    ]
    httpx.post(f"{url}/v1/classify/batch", json={"listings": sent}, timeout=60).raise_for_status()
    while not httpx.get(f"{url}/v1/reviews/precision", timeout=60).json()["waiting"]["random"] >= DECISIONS:
        time.sleep(0.1)


def heading(attribute: str) -> str:
    """Return how the page calls an attribute."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", attribute).lower().capitalize()


def keys_for(label: str | None, page: Page, options: Locator) -> list[str]:
    """Type what finds a label, and return the keys: the last one, which chooses it, is still to be pressed."""
    shown = options.evaluate_all("each => each.map((option) => option.dataset.label)")
    if label is None or label not in shown:
        return ["ArrowRight"]  # the catalogue has no label that the model knows: skipped
    if len(shown) <= 9:
        return [str(shown.index(label) + 1)]
    keys = []
    for letter in label:
        page.keyboard.type(letter)
        keys.append(letter)
        if options.first.get_attribute("data-label") == label:
            break
    return [*keys, "Enter"]


def judge(page: Page, labels: dict[tuple[str, str], str], named: dict[str, str]) -> tuple[int, float]:
    """Judge the pair that is shown; return how many keys it took, and the seconds until the next one was there."""
    which = page.locator("#sku").inner_text(), named[page.locator("#attribute").inner_text()]
    keys = keys_for(labels.get(which), page, page.get_by_role("option"))
    page.evaluate("document.getElementById('judge').removeAttribute('aria-busy')")
    started = time.monotonic()
    page.keyboard.press(keys[-1])
    expect(page.locator("#judge")).to_have_attribute("aria-busy", "false")
    return len(keys), time.monotonic() - started


def measure(checkpoint: Path, catalogue: Catalogue) -> Report:
    """Judge a hundred pairs."""
    listings = [each for each in catalogue.part(Part.TEST) if each.title and each.image][:LISTINGS]
    labels = {(each.id, name): label for each in listings for name, label in each.labels.items()}
    named = {heading(name): name for name in catalogue.config.attributes}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = f"sqlite:///{folder}/store.db"
        with server(checkpoint, store=store, review_share=1) as running:
            send(running.url, listings, catalogue)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(f"{running.url}/review")
            page.get_by_label("Your name").fill("a script")
            page.keyboard.press("Enter")
            expect(page.locator("#search")).to_be_focused()
            found = [judge(page, labels, named) for _ in range(DECISIONS)]
            browser.close()
    keys, waits = [each for each, _ in found], [wait for _, wait in found]
    return Report(
        decisions=DECISIONS,
        keys=sum(keys),
        keys_most=max(keys),
        wait_seconds_median=round(statistics.median(waits), 3),
        wait_seconds_largest=round(max(waits), 3),
        seconds_left_for_each=round((TEN_MINUTES - sum(waits)) / DECISIONS, 2),
    )


def main(
    checkpoint: Annotated[Path, typer.Option()] = Path("weights/fashion"),
    catalogue: Annotated[Path, typer.Option()] = Path("benchmarks/fashion.toml"),
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures as JSON to this file.")] = None,
) -> None:
    """How many keys a hundred decisions take, and how long the page makes one wait."""
    report = json.dumps(asdict(measure(checkpoint, Catalogue.open(catalogue))), indent=2)
    print(report)
    if out:
        out.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
