"""Runs a tool to its end."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path = ROOT, seconds: float = 120) -> str:
    """Return what `command` prints; an assertion fails with it when the command does."""
    result = subprocess.run(  # noqa: S603 - our own programs
        command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout
