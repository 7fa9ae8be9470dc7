"""How the programs of this folder run: a user's mistake is one line, and exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from model.errors import ModelError


def run_app(app: Callable[[], Any]) -> None:
    """Run a command line; print what is wrong in one line."""
    try:
        app()
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
