"""What the project says of itself in several files is the same in each: its version, its licence, its commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def found(pattern: str, name: str) -> str:
    """Return what the pattern's group matches in a file of the project: once, or the test fails."""
    (match,) = re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return str(match)


def test_there_is_one_version() -> None:
    assert found(r"^ARG VERSION=(.+)$", "Dockerfile") == PROJECT["version"]
    assert found(r"^version: (.+)$", "CITATION.cff") == PROJECT["version"]


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    released, date = re.findall(
        r"^## \[(\d[\d.]+)\] - (\d{4}-\d\d-\d\d)$",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )[0]
    assert released == PROJECT["version"]
    assert date == found(r"^date-released: (.+)$", "CITATION.cff")


def test_there_is_one_licence() -> None:
    assert found(r"^license: (.+)$", "CITATION.cff") == PROJECT["license"]
    assert (
        found(r"^\| licence \| (\S+) for the weights and the code", "weights/fashion/README.md") == PROJECT["license"]
    )
    assert found(r"^ +(Apache License)$", "LICENSE") == "Apache License"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_every_target_of_the_makefile_that_ci_runs_exists() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    run = re.findall(r"^run +\d+ +([a-z-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert run
    assert set(run) <= set(targets)
