"""`cma-clip check`: one page on the terminal, in HTML and in JSON; and the warnings that `train` repeats."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from model.catalogue.check import CatalogueCheck, check_catalogue
from model.training.advice import Advice
from service.cli import main
from service.commands import check_page

EVIL = '<script>alert("x")</script>'

ADVICE = Advice(
    start="ImageNet weights", epochs=12, batch_size=32, steps=500, pretrain=False, device="cpu", minutes=100.0
)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    rows = "".join(f"{n},{EVIL if n < 2 else f'Shirt {n}'},{'Red' if n % 2 else 'Blue & white'}\n" for n in range(900))
    (tmp_path / "table.csv").write_text(f"id,title,colour\n{rows}5,Again,Red\n901,Shirt,<b>[red]Mauve</b>\n")
    path = tmp_path / "shop.toml"
    path.write_text('[catalogue]\ntable = "table.csv"\nid = "id"\ntitle = "title"\nattributes = ["colour"]\n')
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["cma-clip", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def drawn(check: CatalogueCheck, advice: Advice | None, width: int = 160) -> str:
    out = io.StringIO()
    check_page.draw(check, advice, Console(width=width, file=out))
    return out.getvalue()


class Page(HTMLParser):
    """Collects what a browser would load or run, text, and where headings and cells are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_terminal_names_what_to_mend(toml: Path) -> None:
    text = drawn(check_catalogue(toml), ADVICE)
    assert "Training would take this catalogue, with warnings." in text
    assert "1 of 902 rows are left out: duplicate id (1)" in text
    assert "left out: duplicate id" in text
    assert "Red 450" in text
    assert re.search(r"colour +901 +2 +1 +0", text)
    assert f"cma-clip train {toml} --out runs/shop" in text.replace("\n", " ")
    assert "about 1.7 hours" in text
    assert "<b>[red]Mauve</b> 1" in text


def test_the_html_page_says_the_same_and_loads_nothing(toml: Path) -> None:
    check = check_catalogue(toml)
    page = Page(check_page.as_html(check, ADVICE))
    names = [tag for tag, _ in page.tags]
    assert not {"script", "img", "link", "iframe", "b"} & {*names}
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & {*attrs}]
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "<b>[red]Mauve</b> 1" in page.text
    for section in check_page.sections(check, ADVICE, labels_shown=None):
        assert all(cell in page.text for row in section.rows for cell in row)
    assert ("html", {"lang": "en"}) in page.tags
    assert names.count("h1") == 1
    assert sum(tag == "th" and attrs.get("scope") == "col" for tag, attrs in page.tags) > 10


def test_json_has_the_facts(toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "check", toml, "--json", "--no-time") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["listings"], facts["trainable"]) == (902, 901, True)
    assert facts["left_out"] == {"duplicate id": {"rows": 1, "lines": [902], "example": None}}
    assert facts["needed"] == {"0.9": 57, "0.95": 117, "0.99": 597}
    assert facts["attributes"]["colour"]["labels"] == {"Blue & white": 450, "Red": 450, "<b>[red]Mauve</b>": 1}
    assert facts["recommendation"]["minutes"] is None
    assert facts["recommendation"]["start"] == "ImageNet weights"


def test_the_page_goes_to_a_file(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "check.html"
    assert run(monkeypatch, "check", toml, "--no-time", "--html", page) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert str(page) in capsys.readouterr().err
    assert run(monkeypatch, "check", toml, "--html", tmp_path / "nowhere" / "check.html") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_what_training_refuses_has_another_exit_status(
    toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml.write_text(toml.read_text() + "min_label_count = 5000\n")
    assert run(monkeypatch, "check", toml, "--no-time") == 1
    out = capsys.readouterr().out
    assert "Training would refuse this catalogue." in out
    assert "Recommendation" not in out


def test_a_mistake_in_the_file_is_one_line(
    toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml.write_text(toml.read_text().replace('"colour"', '"color"'))
    assert run(monkeypatch, "check", toml) == 2
    assert "has no column 'color'; it has 'id', 'title', 'colour'" in capsys.readouterr().err


def test_training_repeats_the_warnings(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.training.train.train", lambda *_, **__: tmp_path)
    assert run(monkeypatch, "train", toml, "--out", tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert "warning: 1 of 902 rows are left out: duplicate id (1)" in err
    assert f"what to do: cma-clip check {toml}" in err
    assert len(err.splitlines()) <= 6
