"""What the documents say is so: commands, links, settings, the API reference, and the worked example."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main

from docs import bulk_figures, figures, generate
from model.trust.binomial import binomial_tail
from service import cli
from service.settings import PREFIX, SECRETS, Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ROOMS = "model|service|research|benchmarks|recipes|weights|deploy|examples|docs|tests"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_api_reference_is_up_to_date() -> None:
    written = generate.PAGE.read_text(encoding="utf-8")
    assert written == generate.render(generate.openapi()), "run: python -m docs.generate"


def test_the_scores_of_the_readme_are_the_measured_ones() -> None:
    page = figures.PAGE.read_text(encoding="utf-8")
    assert page == figures.with_scores(page), "run: python -m docs.figures"


def test_the_figures_about_accepted_labels_are_the_measured_ones() -> None:
    page = figures.RESULTS.read_text(encoding="utf-8")
    assert page == figures.with_accepted(page), "run: python -m docs.figures"


def test_the_figures_about_tables_are_the_measured_ones() -> None:
    page = figures.CHECK.read_text(encoding="utf-8")
    assert page == figures.with_tables(page), "run: python -m docs.figures"


def test_the_figures_about_bulk_labelling_are_the_measured_ones() -> None:
    page = bulk_figures.PAGE.read_text(encoding="utf-8")
    assert page == bulk_figures.with_figures(page), "run: python -m docs.bulk_figures"
    page = bulk_figures.TRAINING.read_text(encoding="utf-8")
    assert page == bulk_figures.with_loading(page), "run: python -m docs.bulk_figures"


def test_the_figures_about_small_catalogues_are_the_measured_ones() -> None:
    page = figures.TRAINING.read_text(encoding="utf-8")
    assert page == figures.with_small_catalogues(page), "run: python -m docs.figures"


def test_the_figures_about_live_precision_are_those_that_were_computed() -> None:
    page = figures.REVIEWS.read_text(encoding="utf-8")
    assert page == figures.with_live_precision(page), "run: python -m docs.figures"
    assert page == figures.with_reviewing(page), "run: python -m docs.figures"


def test_the_answer_of_the_readme_is_the_checkpoints() -> None:
    """Nearly: another machine may round the third place otherwise."""
    written, now = (re.findall(r"-?[\d.]+|\w+", text) for text in (_answer(), figures.answer()))
    for shown, found in zip(written, now, strict=True):
        assert shown == found or float(shown) == pytest.approx(float(found), abs=0.0015), "run: python -m docs.figures"


def _answer() -> str:
    (shown,) = re.findall(r"```json\n(.*?)\n```", figures.PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(shown)


def test_the_figures_about_explanations_are_those_that_were_measured() -> None:
    found = json.loads(generate.FAITHFULNESS.read_text(encoding="utf-8"))
    text = generate.EXPLANATIONS.read_text(encoding="utf-8")
    assert text == generate.with_figures(text, found), "run: python -m docs.generate"


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────


def commands(page: Path) -> Iterator[list[str]]:
    """Each command of the `console` blocks, as words; comments and quoted line breaks taken care of."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            yield shlex.split(command, comments=True)


def check(words: list[str]) -> None:
    """Raise unless the command is one of ours that exists, with flags that exist, or a common one."""
    program, *arguments = words
    match program.removeprefix(".venv/bin/"):
        case "cma-clip":
            check_command_line(arguments)
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert arguments[0] in targets, arguments
            for flags in (argument.removeprefix("ARGS=") for argument in arguments[1:]):
                check_command_line([*arguments[:1], *shlex.split(flags)])
        case "torchrun":
            check_command_line(arguments[arguments.index("cma-clip)") + 1 :])
        case "python" if arguments[0] == "-m":
            assert find_spec(arguments[1]) is not None, arguments
        case "python":
            assert (ROOT / arguments[0]).is_file(), arguments
        case "curl" | "docker" | "kubectl" | "pip" | "tensorboard":
            pass
        case _:
            raise AssertionError(f"unknown command: {words}")


def check_command_line(arguments: list[str]) -> None:
    """Raise unless `cma-clip` has the command, and the command the flags."""
    name, *rest = arguments
    known: dict[str, Any] = vars(typer.main.get_command(cli.app))["commands"]
    assert name in known, name
    flags = {flag for parameter in known[name].params for flag in parameter.opts}
    for flag in rest:
        assert not flag.startswith("-") or flag in flags, (name, flag)


@each_page
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        check(words)


def test_every_command_is_shown_somewhere() -> None:
    shown = {words[1] for page in PAGES for words in commands(page) if words[0].endswith("cma-clip")}
    assert {"pretrain", "train", "calibrate", "evaluate", "label", "predict", "serve", "bench"} <= shown


@pytest.mark.parametrize("line", ["cma-clip fly", "cma-clip train x.toml --out x --wings 2", "make coffee", "rm -r x"])
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check(shlex.split(line))


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {generate._anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        assert (page.parent / path).exists(), target
        assert not anchor or path or anchor in headings, target


@each_page
def test_files_and_settings_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(rf"`((?:{ROOMS})/[\w/.-]*)`", text):
        assert (ROOT / name).exists(), name
    settings = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    settings |= {f"{PREFIX}{field.upper()}_FILE" for field in SECRETS}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", text)) <= settings


def test_the_layers_of_the_architecture_are_those_that_are_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    layers = {
        contract["containers"][0]: [re.split(r" [:|] ", layer) for layer in contract["layers"]]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers" and "containers" in contract
    }
    table = re.findall(r"^  \| (`.+`.*) \|$", text, flags=re.MULTILINE)
    assert [re.findall(r"`(\w+)`", re.sub(r"\(.*\)", "", row)) for row in table] == layers["model"]
    (line,) = re.findall(r"^- In `service`, likewise: (.+?)\.$", text, flags=re.MULTILINE | re.DOTALL)
    assert [re.findall(r"`(\w+)`", part) for part in line.split(";")] == layers["service"]


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_worked_example_of_calibration_is_right() -> None:
    text = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| 0\.\d\d \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) % \| (under )?([\d.]+) % \|$", text, flags=re.M)
    assert len(rows) == 5
    for accepted, right, precision, under, chance in rows:
        n, k = int(accepted.replace(",", "")), int(right.replace(",", ""))
        assert f"{100 * k / n:.1f}" == precision
        luck = 100 * binomial_tail(k, n, 0.95)
        assert luck < float(chance) if under else f"{luck:.2f}" == chance
    assert f"{100 * binomial_tail(242, 250, 0.95):.0f}" == "12"
    assert f"{100 * (1 - binomial_tail(400 - 29, 400, 0.95)):.0f}" == "2"  # 30 wrong of 400, or more
    for target, listings in ((0.90, 45), (0.95, 90), (0.99, 460)):
        assert binomial_tail(listings, listings, target) <= 0.01
