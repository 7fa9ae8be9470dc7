"""The lowest versions that pyproject.toml declares, for `make test-lowest`.

python .ci/lowest.py constraints    prints them as a constraints file for pip
python .ci/lowest.py check          fails unless this interpreter runs exactly them
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("excel", "gpu", "parquet", "train", "test")
TOOLS = {"ruff", "mypy", "import-linter", "types-openpyxl", "types-pyyaml"}
"""Run by `make lint` and `make types`, not by the tests: another version finds other faults."""


def lowest() -> Iterator[tuple[str, Version]]:
    """Yield each dependency that the tests need, with its lowest version.

    Raises `SystemExit` for a dependency without one.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][extra] for extra in EXTRAS]
    for requirement in map(Requirement, chain(project["dependencies"], *extras)):
        if requirement.name in TOOLS | {project["name"]}:
            continue
        found = [each.version for each in requirement.specifier if each.operator in {">=", "=="}]
        if len(found) != 1:
            raise SystemExit(f"pyproject.toml names no lowest version of {requirement.name}")
        yield requirement.name, Version(found[0])


def check() -> None:
    """Raise `SystemExit` unless every dependency is installed in its lowest version."""
    found = {name: (Version(version(name)), wanted) for name, wanted in lowest()}
    # A local build of torch, such as 2.14.1+cpu, is that version too.
    wrong = [f"{name} {here}, not {wanted}" for name, (here, wanted) in found.items() if Version(here.public) != wanted]
    if wrong:
        raise SystemExit(f"not the lowest versions: {', '.join(wrong)}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["constraints"]:
            print(*(f"{name}=={wanted}" for name, wanted in lowest()), sep="\n")
        case ["check"]:
            check()
        case _:
            raise SystemExit(__doc__)
