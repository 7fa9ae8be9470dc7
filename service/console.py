"""The console script's entry point: the command line, behind a Ctrl-C that is heeded from the first moment on.

The command line takes a second to import. Meanwhile Python would answer Ctrl-C with a traceback.
"""

from __future__ import annotations

import signal

from service.signals import end_at_once


def main() -> None:
    """Run the command line. While it is being imported, Ctrl-C ends the process with one line."""
    before = signal.signal(signal.SIGINT, end_at_once)
    from service.cli import main as run  # noqa: PLC0415 - the signal's handler comes first

    signal.signal(signal.SIGINT, before)
    run()
