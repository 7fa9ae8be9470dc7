"""The servers that are compared, how each is started, and how each wants a listing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.server import server as this_service
from benchmarks.serving.apps import CHECKPOINT, ENGINE
from benchmarks.serving.environments import ROOT, python_of, version_of
from benchmarks.serving.processes import stop
from service.commands.bench import Bodies, Listing
from service.commands.load import Address, Requests, post_once

BATCH = 32
START_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row of the tables: a server, and a route of it."""

    name: str
    title: str
    server: str
    """Several routes may belong to one server."""
    bodies: Callable[[Sequence[Listing]], Bodies]


def _plain(path: str, wrap: Callable[[Listing], object] = Listing.as_json) -> Callable[[Sequence[Listing]], Bodies]:
    def bodies(listings: Sequence[Listing]) -> Bodies:
        return Bodies(
            path=path,
            content_type="application/json",
            bodies=[json.dumps(wrap(listing)).encode() for listing in listings],
            listings=1,
        )

    return bodies


def _for_triton(listing: Listing) -> object:
    sent = listing.as_json()
    values = {"title": sent["title"], "image": sent["image"]["base64"]}
    return {
        "inputs": [
            {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]} for name, value in values.items()
        ]
    }


OURS = "service"

CONTENDERS = (
    Contender(name="json", title="this service, JSON", server=OURS, bodies=Bodies.single),
    Contender(name="multipart", title="this service, multipart", server=OURS, bodies=Bodies.forms),
    Contender(
        name="batch", title=f"this service, batches of {BATCH}", server=OURS,
        bodies=lambda listings: Bodies.batches(listings, BATCH),
    ),
    Contender(name="fastapi", title="FastAPI, 20-line batcher", server="fastapi", bodies=_plain("/classify")),
    Contender(name="litserve", title="LitServe", server="litserve", bodies=_plain("/classify")),
    Contender(
        name="bentoml", title="BentoML", server="bentoml",
        bodies=_plain("/classify", lambda listing: {"listings": [listing.as_json()]}),
    ),
    Contender(name="ray", title="Ray Serve", server="ray", bodies=_plain("/classify")),
    Contender(name="mosec", title="mosec", server="mosec", bodies=_plain("/inference")),
    Contender(
        name="triton", title="Triton (PyTriton)", server="triton",
        bodies=_plain("/v2/models/classify/infer", _for_triton),
    ),
)  # fmt: skip

PACKAGES = {
    "litserve": "litserve", "bentoml": "bentoml", "ray": "ray", "mosec": "mosec", "triton": "nvidia-pytriton",
}  # fmt: skip


def version(server: str) -> str:
    """Return the version of a framework; empty for this service, and for FastAPI, which has it in common."""
    return version_of(server, PACKAGES[server]) if server in PACKAGES else ""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    url: str
    pid: int
    start_seconds: float


@contextlib.contextmanager
def running(server: str, checkpoint: Path, engine: str, probe: Bodies) -> Iterator[Running]:
    """Run a server for the duration of the context; yields it once it has answered `probe`.

    Raises `NotInstallableError` or, with the last line of what the server said, `StartError`.
    """
    began = time.monotonic()
    if server == OURS:
        # An overloaded replica would refuse, and a refusal is quick: here each answer is waited for.
        with contextlib.ExitStack() as stack:
            try:
                ours = stack.enter_context(this_service(checkpoint, engine=engine, request_timeout_ms=60_000))
            except SystemExit as ended:
                raise StartError(f"this service did not start: exit status {ended.code}") from None
            yield Running(ours.url, ours.pid, time.monotonic() - began)
        return
    port = _free_port()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - this project's program
            [str(python_of(server)), "-m", f"benchmarks.serving.apps.{server}_app", str(port)],
            cwd=ROOT, env=_environment(checkpoint, engine), stdout=said, stderr=said,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            if not _wait(url, probe, lambda: process.poll() is None):
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                raise StartError(f"{server} did not start: {lines[-1]}")
            yield Running(url, process.pid, time.monotonic() - began)
        finally:
            stop(process)


class StartError(Exception):
    """A server did not answer."""


def _wait(url: str, probe: Bodies, alive: Callable[[], bool]) -> bool:
    """Send the first of the bodies until it is answered; False if the server ends or takes too long."""
    requests = Requests(Address.of(url), probe.path, probe.bodies, {"Content-Type": probe.content_type})
    deadline = time.monotonic() + START_SECONDS
    while alive() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if post_once(requests, timeout=30)[0] == 200:
                return True
        time.sleep(0.2)
    return False


def _environment(checkpoint: Path, engine: str) -> dict[str, str]:
    # Triton's Python must find the interpreter's own library, not the system's.
    library = str(Path(sys.base_prefix) / "lib")
    return {
        **os.environ,
        CHECKPOINT: str(checkpoint),
        ENGINE: engine,
        "PYTHONPATH": str(ROOT),
        # As this service does: the familiarity is a product of numpy's, whose threads would spin after it.
        "OPENBLAS_NUM_THREADS": "1",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [library, os.environ.get("LD_LIBRARY_PATH")])),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "True",
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
