"""A real server for the benchmarks: `cma-clip serve` in a separate process, on a loopback port."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    url: str
    pid: int

    def peak_mib(self) -> float:
        """Return the peak of the resident memory of its own process, loading included."""
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        if found is None:
            raise ValueError("this system does not report the peak memory of a process")
        return int(found[1]) / 2**10

    def processes(self) -> list[int]:
        """Return the process ids of the server and of all processes that it has started."""
        found = [self.pid]
        for pid in found:  # which grows meanwhile
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, task.read_text().split())
        return found

    def pss_mib(self) -> float:
        """Return the memory of all these processes; what several share is counted once (proportional set size)."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):  # one that has just ended
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)[1])  # type: ignore[index]
        return total / 2**10

    def waited_seconds(self) -> float:
        """Return how long the server's threads have been ready to run, all together, and had no core to run on."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[1])
        return total / 1e9


class MemoryWatch:
    """The peak of a server's memory, of all its processes, while the context lasts; looks ten times a second."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.peak_mib = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, self._server.pss_mib())
            if self._ended.wait(0.1):
                return


@contextlib.contextmanager
def server(checkpoint: Path, *, cores: Collection[int] = (), **settings: object) -> Iterator[Server]:
    """Run the service for the duration of the context; yields it once it is ready.

    cores: the cores that it is restricted to, with one PyTorch thread on each; none: no restriction.
    settings: `CMA_CLIP_` variables.

    Raises `SystemExit` with the server's exit status if it cannot start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = {"OMP_NUM_THREADS": str(len(cores))} if cores else {}
    variables = {f"CMA_CLIP_{name.upper()}": str(value) for name, value in settings.items()}
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
    process = subprocess.Popen(  # noqa: S603 - this project's program
        [*pinned, sys.executable, "-c", "from service.console import main; main()", "serve"],
        env={
            **os.environ, **threads, **variables,
            "CMA_CLIP_CHECKPOINT": str(checkpoint), "CMA_CLIP_PORT": str(port),
        },
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url):
            if process.poll() is not None:
                raise SystemExit(process.returncode)
            time.sleep(0.2)
        yield Server(url, process.pid)  # taskset replaces itself by the command
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the process; raises `subprocess.TimeoutExpired` if it has to be killed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def is_ready(url: str) -> bool:
    """Return whether the server at `url` accepts requests."""
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
