"""Servers that tests start in processes of their own."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import Any

from benchmarks.server import is_ready


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(url: str, process: subprocess.Popen[Any], *, seconds: float = 60) -> None:
    """Wait for the server at `url`; fail, with what it printed, where it ends or takes longer."""
    deadline = time.monotonic() + seconds
    while not is_ready(url):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"not ready after {seconds:.0f} s"
        time.sleep(0.05)
