"""The pages: `/`, `/docs` and `/review`. All that they are made of comes from the service, so they work offline and
under a strict policy. Only an image that the user names by its URL is loaded from elsewhere, once the service has
accepted the URL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

STATIC = Path(__file__).parents[1] / "static"

INDEX, DOCS, REVIEW = (
    (STATIC / name).read_text(encoding="utf-8") for name in ("index.html", "docs.html", "review.html")
)

REVIEWS, LINK = "<!-- reviews -->", '<a class="docs" href="review">Review</a>'
"""Where a page links to `/review`, if the service has a store."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data: http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RevalidatedFiles(StaticFiles):
    """Static files that browsers revalidate each time, so that a page and its modules are of one version."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


NOTHING_STORED = "Nothing is stored: the table exists only in this tab."
STORED = "The table exists only in this tab, but the service keeps some listings for people to review."


def _with_store(page: str) -> str:
    return page.replace(REVIEWS, LINK).replace(NOTHING_STORED, STORED)


def add_to(app: FastAPI, *, store: bool) -> None:
    """Add the pages; store: whether the service has one, so that listings are kept and there is something to review."""
    start, reference = ((_with_store(page) if store else page.replace(REVIEWS, "")) for page in (INDEX, DOCS))

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(start, headers=HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference, headers=HEADERS)

    @app.get("/review", include_in_schema=False)
    async def review() -> HTMLResponse:
        return HTMLResponse(REVIEW, headers=HEADERS)

    app.mount("/static", RevalidatedFiles(directory=STATIC), name="static")
