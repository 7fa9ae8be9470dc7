"""Takes the README's screenshot of the playground in Chromium, with the shipped checkpoint.

    python -m docs.screenshot [--out docs/playground.png] [--width 1240] [--scheme dark] [--attribute season]

It needs what the playground's tests need: `make test-browser` installs it. The screenshot shows the first example, with
the explanation of one attribute, the base colour by default.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from service.app import create_app
from service.settings import load_settings

PLAYGROUND = Path(__file__).with_name("playground.png")
CHROMIUM = "/usr/bin/chromium"
TIMEOUT_MS = 300_000
"""Milliseconds; a busy machine needs long to load the model."""
MARGIN = 24


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve, take the screenshot, stop."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=PLAYGROUND)
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/fashion"))
    parser.add_argument("--width", type=int, default=1240, help="of the window, in pixels; 390 for a phone")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--attribute", default="baseColour", help="the attribute to explain")
    options = parser.parse_args(arguments)
    with serving(options.checkpoint) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(
            viewport={"width": options.width, "height": 1000}, color_scheme=options.scheme, reduced_motion="reduce"
        )
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(url)
        take(page, options.attribute, options.out)
        browser.close()
    print(options.out)


@contextmanager
def serving(checkpoint: Path) -> Iterator[str]:
    """Serve the checkpoint on a free loopback port, and yield its URL; the model may still be loading."""
    # Even on a busy machine, the screenshot must show an answer.
    settings = load_settings(checkpoint=checkpoint, request_timeout_ms=TIMEOUT_MS)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise SystemExit("the service did not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def take(page: Page, attribute: str, out: Path) -> None:
    """Choose the first example, select the attribute, and save the page down to what is said below the predictions."""
    expect(page.locator("#state")).to_have_attribute("data-state", "ready", timeout=TIMEOUT_MS)
    page.locator("#examples button").first.click()
    prediction = page.locator(f"#predictions > [data-attribute={attribute}]")
    prediction.locator(".head").click()
    expect(page.locator("#predictions")).to_have_attribute("aria-busy", "false", timeout=TIMEOUT_MS)
    expect(page.locator("#shown.heated, .slot .shown.heated").first).to_be_attached()
    page.mouse.move(0, 0)
    # Scroll to the top of a window as tall as the predictions: the sticky listing would move down otherwise.
    predictions = page.locator(".result").bounding_box()
    assert predictions is not None
    bottom = predictions["y"] + page.evaluate("scrollY") + predictions["height"] + MARGIN
    page.set_viewport_size({"width": page.evaluate("innerWidth"), "height": round(bottom)})
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)  # the heat map is redrawn when the window's size changes
    page.screenshot(path=out)


if __name__ == "__main__":
    main()
