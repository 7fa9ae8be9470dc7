"""The comparison with serving frameworks: what is planned, sent, counted and kept; no framework is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import __main__ as program
from benchmarks.serving import environments
from benchmarks.serving.contenders import CONTENDERS, PACKAGES, Running, version
from benchmarks.serving.material import IMAGE_SIZES, LISTINGS, listings
from benchmarks.serving.plan import Cell, LoadCase, Plan, plan
from benchmarks.serving.processes import cpu_seconds, resident_mib, stop, tree
from benchmarks.serving.results import Results
from service.commands.bench import Listing

CELL = Cell("fashion", "60x80", "torch")
BY_NAME = {contender.name: contender for contender in CONTENDERS}


# ── what is planned ─────────────────────────────────────────────────────────────────────────────────────────


def test_everything_is_both_checkpoints_both_sizes_and_every_engine() -> None:
    full = plan(quick=False, engines=["torch", "openvino-f32"], seconds=None, rounds=None)
    assert len(set(full.cells)) == 2 * len(IMAGE_SIZES) * 2
    assert [load.name for load in full.loads if load.share] == ["open 25", "open 50", "open 75", "open 90"]
    quick = plan(quick=True, engines=["torch"], seconds=None, rounds=None)
    assert quick.cells == [CELL]
    assert quick.rounds < full.rounds


def test_no_load_asks_for_more_listings_than_the_service_takes_in_at_once() -> None:
    full = plan(quick=False, engines=["torch"], seconds=None, rounds=None)
    single, batch = (
        [load.callers for load in full.loads_of(CELL, BY_NAME[name]) if load.callers] for name in ("json", "batch")
    )
    assert (single, batch) == ([1, 4, 16, 64, 512], [1, 4, 16])
    slow = Cell("ViT-B-32", "60x80", "torch")
    assert max(load.callers or 0 for load in full.loads_of(slow, BY_NAME["json"])) == 64


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_server_is_sent_the_same_listings_in_its_own_form() -> None:
    sent = [Listing("Navy Shirt", b"\xff\xd8")]
    encoded = base64.b64encode(b"\xff\xd8").decode()
    for contender in CONTENDERS:
        bodies = contender.bodies(sent)
        assert bodies.path.startswith("/")
        (body,) = bodies.bodies
        assert b"Navy Shirt" in body
        assert encoded.encode() in body or contender.name == "multipart"
        if contender.name != "multipart":
            json.loads(body)


def test_listings_differ_and_are_the_same_each_time() -> None:
    made = listings("60x80")
    assert made == listings("60x80")
    assert len({listing.title for listing in made}) == len({listing.image for listing in made}) == LISTINGS


# ── environments ────────────────────────────────────────────────────────────────────────────────────────────


def test_each_framework_pins_all_it_needs() -> None:
    servers = {contender.server for contender in CONTENDERS} - {"service", "fastapi"}
    assert set(PACKAGES) == servers == {file.stem for file in environments.REQUIREMENTS.glob("*.txt")}
    for server in servers:
        lines = (environments.REQUIREMENTS / f"{server}.txt").read_text().split()
        assert all("==" in line for line in lines)
        assert not any(line.startswith("torch") for line in lines)
        assert version(server)
    assert version("fastapi") == ""
    assert environments.python_of("fastapi") == Path(sys.executable)


def test_what_cannot_be_installed_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    (tmp_path / "broken.txt").write_text(f"{tmp_path / 'nothing.whl'}\n")
    with pytest.raises(environments.NotInstallableError, match=r"^broken: ERROR.*nothing.whl"):
        environments.python_of("broken")


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_is_counted_and_ended_with_its_descendants() -> None:
    child = "sum(range(10**7)); print('ready', flush=True); import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)  # noqa: S603 - these lines
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    family = tree(process.pid)
    assert len(family) == 2
    assert cpu_seconds(process.pid) > 0.01
    assert resident_mib(process.pid) > 5
    stop(process, seconds=2)
    process.stdout.close()
    assert not any(_alive(pid) for pid in family)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ── a run ───────────────────────────────────────────────────────────────────────────────────────────────────


class NoFloor:
    def measure(self, seconds: float) -> dict[str, float]:
        return {"batch_cpu_ms": 1.0}


class AnswersAnything(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Takes as many connections at once as an open loop may open: by default, more than 5 that wait are refused."""

    request_queue_size = 1024


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The servers that a run starts, by name: one that answers anything, and LitServe, which cannot be had."""
    names = []

    @contextlib.contextmanager
    def running(server: str, *_: object) -> Iterator[Running]:
        names.append(server)
        if server == "litserve":
            raise environments.NotInstallableError("litserve: ERROR: no such package")
        yield Running(f"http://127.0.0.1:{server_of_all.server_port}", os.getpid(), 0.5)

    with Server(("127.0.0.1", 0), AnswersAnything) as server_of_all:
        threading.Thread(target=server_of_all.serve_forever, daemon=True).start()
        monkeypatch.setattr(program, "running", running)
        monkeypatch.setattr(program, "floor", lambda *_: contextlib.nullcontext(NoFloor()))
        yield names
        server_of_all.shutdown()


def test_a_run_measures_what_is_missing_and_says_what_cannot_be(started: list[str], tmp_path: Path) -> None:
    file = tmp_path / "results/serving.json"
    small = Plan(cells=[CELL], loads=[LoadCase(callers=2), LoadCase(share=50)], rounds=1, seconds=0.2)
    chosen = [BY_NAME["json"], BY_NAME["batch"], BY_NAME["litserve"]]
    program.CellRun(CELL, small, chosen, Results(file)).run()
    assert started == ["service", "litserve"]

    found: Any = json.loads(file.read_text())
    assert found["servers"][CELL.name]["litserve"]["error"] == "litserve: ERROR: no such package"
    assert found["floor"][CELL.name] == [{"batch_cpu_ms": 1.0}]
    for name in ("json", "batch"):
        for load in ("closed 2", "open 50"):
            (measured,) = found["cases"][CELL.name][name][load]
            assert set(measured["statuses"]) == {"200"}
            assert measured["cpu_ms_per_listing"] > 0
        closed, opened = (found["cases"][CELL.name][name][load][0] for load in ("closed 2", "open 50"))
        assert opened["rate"] == pytest.approx(closed["requests_per_second"] / 2)

    program.CellRun(CELL, small, chosen[:2], Results(file)).run()
    assert started == ["service", "litserve"]  # nothing was missing
    again = Plan(cells=[CELL], loads=small.loads, rounds=2, seconds=0.2)
    program.CellRun(CELL, again, chosen[:1], Results(file)).run()
    assert len(json.loads(file.read_text())["cases"][CELL.name]["json"]["closed 2"]) == 2


def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    program.warn_if_busy()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    program.warn_if_busy()
    assert "load average 99.0" in capsys.readouterr().err
