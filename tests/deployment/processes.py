"""Starts the real programs of a deployment on loopback, and stops them: replicas, balancer, Prometheus."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.deployment.tools import ROOT

START_SECONDS = 180.0
"""Loading torch twice on two busy cores is slow; everything else is there within a second."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def nginx_version() -> tuple[int, ...]:
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr  # noqa: S607
    found = re.search(r"nginx/([0-9.]+)", said)
    assert found, said
    return tuple(int(part) for part in found[1].split("."))


class Process:
    """A program in the background, and a URL that says when it is up."""

    def __init__(self, command: Sequence[str | Path], *, up: str, log: Path, **environment: str) -> None:
        self.command, self.up, self.log = command, up, log
        self.environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program without waiting until it is up."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                self.command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            assert self.running, f"{self.command[0]} ended: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.up} is not up: {self.log.read_text()[-2000:]}"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Say whether its URL answers 200 now."""
        try:
            return httpx.get(self.up, timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Return its exit status; `subprocess.TimeoutExpired` if it goes on for longer."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> None:
        """Ask it to end, and insist after 30 s."""
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            self.wait(30)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.wait(5)


@contextmanager
def running(*processes: Process) -> Iterator[None]:
    """Run them side by side while the context lasts."""
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.wait_until_up()
        yield
    finally:
        for process in processes:
            process.signal(signal.SIGTERM)
        for process in processes:
            process.stop()


class Replica(Process):
    """`cma-clip serve` on one thread, with `settings` as `CMA_CLIP_` variables."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.port = free_port()
        super().__init__(
            [Path(sys.executable).with_name("cma-clip"), "serve"],
            up=f"http://127.0.0.1:{self.port}/readyz",
            log=folder / f"replica-{self.port}.log",
            OMP_NUM_THREADS="1",
            CMA_CLIP_PORT=str(self.port),
            **{f"CMA_CLIP_{name.upper()}": str(value) for name, value in settings.items()},
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Stub(Process):
    """A replica without a model: ready, and at a POST it answers `status`, or ends at once where that is 0."""

    PROGRAM = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.answer(200)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        print("POST", flush=True)
        self.answer(int(sys.argv[2])) if int(sys.argv[2]) else os._exit(1)

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

    def __init__(self, folder: Path, status: int) -> None:
        self.port = free_port()
        super().__init__(
            [sys.executable, "-c", self.PROGRAM, str(self.port), str(status)],
            up=f"http://127.0.0.1:{self.port}/readyz",
            log=folder / f"stub-{self.port}.log",
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def posts(self) -> int:
        return self.log.read_text().count("POST\n")


def shipped(name: str, replaced: dict[str, str]) -> str:
    """Return a file of deploy/nginx with each key of `replaced`, which must occur in it, replaced by its value."""
    configuration = (ROOT / "deploy/nginx" / name).read_text()
    for there, here in replaced.items():
        assert there in configuration
        configuration = configuration.replace(there, here)
    return configuration


class Balancer(Process):
    """The balancer of `deploy/nginx` before `replicas`, on a free port, with its files in `folder`."""

    def __init__(self, folder: Path, replicas: Sequence[Replica | Stub], **settings: str) -> None:
        """settings: directives of nginx.conf to be set to another value, such as `client_body_timeout`."""
        self.port = free_port()
        folder = Path(tempfile.mkdtemp(dir=folder))
        self.access_log = folder / "access.log"
        configuration = shipped("nginx.conf", {
            "/run/nginx": str(folder),
            "listen 8080": f"listen 127.0.0.1:{self.port}",
            "/dev/stdout": str(self.access_log),
        })  # fmt: skip
        if nginx_version() < (1, 27, 4):  # Debian's: what the configuration itself says of older ones
            configuration = re.sub(r"keepalive_timeout .*;", "keepalive_timeout 0;", configuration)
            configuration = re.sub(r"keepalive_min_timeout .*;", "", configuration)
        for name, value in settings.items():
            configuration, found = re.subn(rf"(?m)^( *{name}) .*;$", rf"\1 {value};", configuration)
            assert found, name
        # nginx's workers run as nobody.
        folder.chmod(0o755)
        (folder / "nginx.conf").write_text(configuration)
        (folder / "relay.conf").write_text(shipped("relay.conf", {"/run/nginx": str(folder)}))
        (folder / "replica.conf").write_text(shipped("replica.conf", {}))
        super().__init__(
            ["sh", "deploy/nginx/balance.sh"],
            up=f"http://127.0.0.1:{self.port}/healthz",
            log=folder / "balancer.log",
            NGINX_CONF=str(folder / "nginx.conf"),
            RUN_DIR=str(folder),
            REPLICAS=" ".join(replica.address for replica in replicas),
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def chosen(self) -> set[str]:
        """The replicas that it sends to at the moment."""
        upstream = (Path(self.environment["RUN_DIR"]) / "replicas.conf").read_text()
        return set(re.findall(r"server unix:\S+/(\S+)\.sock ", upstream))

    def wait_until_it_sends_to(self, *replicas: Replica | Stub) -> None:
        wanted = {replica.address for replica in replicas}
        deadline = time.monotonic() + START_SECONDS
        while self.chosen != wanted:
            assert time.monotonic() < deadline, f"the balancer sends to {self.chosen}, not {wanted}"
            time.sleep(0.05)
        time.sleep(0.2)  # the new file is there; nginx's workers need a moment to follow

    def served(self, path: str = "/v1/classify") -> list[dict[str, Any]]:
        """Return what the access log says of every request for `path`, oldest first."""
        time.sleep(0.2)  # nginx writes a line after the caller has its answer
        lines = [json.loads(line) for line in self.access_log.read_text().splitlines()]
        return [line for line in lines if line["path"] == path]

    def answers_by_replica(self) -> Counter[str]:
        """Count the requests by the replica that gave the final answer: the last one tried."""
        return Counter(line["replicas"].split(", ")[-1] for line in self.served())
