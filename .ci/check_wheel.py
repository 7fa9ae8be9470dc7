"""Checks a wheel that was installed into a folder of its own: nothing is missing that only a checkout has.

python .ci/check_wheel.py build/installed
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STATIC = Path("service/static")


def main(installed: Path) -> None:
    """Raise `SystemExit` naming what is missing or wrong."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [path.relative_to(ROOT) for path in (ROOT / STATIC).rglob("*") if path.is_file()]
    for package in ("model", "service"):
        wanted += [path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")]
        wanted.append(Path(package, "py.typed"))
    wanted += [path.relative_to(ROOT) for path in (ROOT / "model").rglob("*.npy")]
    metadata = Path(f"{project['name'].replace('-', '_')}-{project['version']}.dist-info")
    wanted += [metadata / "METADATA", metadata / "licenses" / "LICENSE"]
    missing = [str(path) for path in wanted if not (installed / path).is_file()]
    extra = {path.name for path in installed.iterdir()} - {"model", "service", "bin", metadata.name}
    if missing or extra:
        raise SystemExit(f"the wheel lacks {sorted(missing)} and has {sorted(extra)} too many")
    check_metadata(message_from_string((installed / metadata / "METADATA").read_text(encoding="utf-8")), project)
    said = command_line(installed, "--version")
    if said != f"{project['name']} {project['version']}":
        raise SystemExit(f"the installed command says {said!r}")
    print(f"the wheel of {said} is complete")


def check_metadata(metadata: Message, project: Mapping[str, Any]) -> None:
    """Raise `SystemExit` unless a package index would show what pyproject.toml and the README say."""
    wanted = {
        "Name": project["name"],
        "Version": project["version"],
        "License-Expression": project["license"],
        "Description-Content-Type": "text/markdown",
    }
    wrong = {field: metadata[field] for field, value in wanted.items() if metadata[field] != value}
    if wrong or metadata.get_payload() != (ROOT / project["readme"]).read_text(encoding="utf-8"):
        raise SystemExit(f"the wheel's metadata is not the project's: {wrong or 'the description'}")


def command_line(installed: Path, *arguments: str) -> str:
    """Run the console script as it was installed, far from the checkout, with our environment's dependencies."""
    with tempfile.TemporaryDirectory() as elsewhere:
        finished = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, installed.resolve() / "bin" / "cma-clip", *arguments],
            cwd=elsewhere, env={"PYTHONPATH": str(installed.resolve())}, check=True, capture_output=True, text=True,
        )  # fmt: skip
    return finished.stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
