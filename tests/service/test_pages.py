"""The pages' files: all there, all shipped, and under a policy that lets nothing in from elsewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from service.http.pages import NOTHING_STORED, STATIC, STORED
from tests.service.conftest import Client, in_process

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"""(?:href|src)="(?!https?:)([^"#]+)"|from "(\./[^"]+)";""")


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_runs_only_what_the_service_sends(client: Client, path: str) -> None:
    reply = await client.get(path)
    assert reply.status_code == 200
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|<style|style=|\son\w+=", reply.text)


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_leads_to_reviews_where_there_is_a_store(client: Client, tmp_path: Path, path: str) -> None:
    assert 'href="review"' not in (await client.get(path)).text
    async with in_process(store=f"sqlite:///{tmp_path / 'store.db'}") as reviewing:
        page = (await reviewing.get(path)).text
        assert '<a class="docs" href="review">Review</a>' in page
        assert NOTHING_STORED not in page
        assert (STORED in page) is (path == "/")
    assert (NOTHING_STORED in (await client.get(path)).text) is (path == "/")


async def test_every_file_that_a_page_names_is_there(client: Client) -> None:
    for path in STATIC.rglob("*.*"):
        if path.suffix in {".html", ".js"}:
            base = "" if path.suffix == ".html" else f"static/{path.parent.relative_to(STATIC)}/"
            for names in REFERENCE.findall(path.read_text()):
                for name in filter(None, names):
                    reply = await client.get(f"/{base}{name.removeprefix('./')}")
                    assert reply.status_code == 200, name
                    assert reply.headers["X-Content-Type-Options"] == "nosniff"


async def test_modules_are_asked_for_anew(client: Client) -> None:
    reply = await client.get("/static/playground/main.js")
    assert reply.headers["Content-Type"].startswith("text/javascript")
    assert reply.headers["Cache-Control"] == "no-cache"
    again = await client.get("/static/playground/main.js", headers={"If-None-Match": reply.headers["ETag"]})
    assert again.status_code == 304


def test_the_examples_are_those_of_the_repository() -> None:
    shown = {path.name: path.read_bytes() for path in (STATIC / "examples").iterdir()}
    assert shown == {path.name: path.read_bytes() for path in (ROOT / "examples/images").iterdir()}
    named = set(re.findall(r'\["([\w-]+\.jpg)"', (STATIC / "playground/single.js").read_text()))
    assert named == set(shown)


def test_every_file_is_packaged() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["service"]
    packaged = {path for pattern in patterns for path in (ROOT / "service").glob(pattern) if path.is_file()}
    assert packaged == {ROOT / "service" / "py.typed", *(path for path in STATIC.rglob("*") if path.is_file())}
