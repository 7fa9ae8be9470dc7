"""`cma-clip bench` on the real application with the fake model, and on a server that refuses."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model.errors import ConfigError, ModelError
from service import cli
from service.commands.bench import (
    Bodies,
    Figures,
    Listing,
    Load,
    check,
    histogram,
    latencies,
    read_listings,
    read_titles,
    sparkline,
)
from service.commands.load import Measured, Outcome
from tests.service.conftest import encoded
from tests.service.test_lifecycle import replica
from tests.service.test_load import OK, serving

END = Bodies(path="/a", content_type="text/plain", bodies=[b"END"], listings=1)
"""What the small server of `tests.service.test_load` takes for a whole request."""


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["bench", *arguments], catch_exceptions=False)


def figures_of(*arguments: str) -> Any:
    return json.loads(bench(*arguments, "--json").stdout)


def a_load(url: str, **settings: Any) -> Load:
    return Load(url=url, bodies=Bodies.single([Listing("END", None)]), seconds=1, **settings)


def test_a_running_service_is_loaded_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "b.png").write_bytes(encoded("red"))
    with replica(0.001) as server:
        listing = (server.url, "--image", str(tmp_path), "--title", "a")
        closed = figures_of(*listing, "--callers", "8", "--requests", "40", "--duration", "60")
        assert (closed["path"], closed["callers"], closed["rate"]) == ("/v1/classify", 8, None)
        assert (closed["requests"], closed["statuses"], closed["shares"]) == (40, {"200": 40}, {"200": 1.0})
        assert 0 < closed["latency_ms"]["p50"] <= closed["latency_ms"]["p99"] <= closed["latency_ms"]["max"]
        assert closed["listings_per_second"] == closed["requests_per_second"]
        assert sum(second["answered"] for second in closed["by_second"]) == 40

        paced = figures_of(*listing, "--rate", "50", "--duration", "0.2", "--upload")
        assert (paced["path"], paced["callers"], paced["rate"]) == ("/v1/classify/upload", None, 50)
        assert paced["statuses"] == {"200": 10}

        batches = figures_of(*listing, "--requests", "3", "--listings", "10")
        assert (batches["path"], batches["listings_per_request"]) == ("/v1/classify/batch", 10)
        assert batches["listings_per_second"] == pytest.approx(10 * batches["requests_per_second"], rel=0.1)

        drawn = bench(*listing, "--requests", "20").output
        for expected in ("answered 200", "20 (100.0 %)", "listings per second", "latency p99", "█", "≤"):
            assert expected in drawn


def test_a_first_request_that_is_refused_ends_it_with_the_reason() -> None:
    with replica(0.001) as server:
        elsewhere = a_load(f"{server.url}/elsewhere")
        with pytest.raises(ModelError, match="answers 404 to /v1/classify: there is no such path"):
            check(elsewhere, elsewhere.requests())
        with pytest.raises(ModelError, match="answers 422"):
            bench(server.url, "--title", "a" * 5000)
    with serving(lambda number, request: b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n") as closed:
        load = Load(url=closed.url, bodies=END, seconds=1)
        with pytest.raises(ModelError, match=r"answers 401 .*--api-key"):
            check(load, load.requests())


def test_a_first_request_may_be_refused_for_the_load_of_others() -> None:
    problem = b'{"code": "overloaded"}'
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(problem)
    with serving(lambda number, request: head + problem) as server:
        load = Load(url=server.url, bodies=END, seconds=1)
        check(load, load.requests())


def test_key_and_deadline_are_sent() -> None:
    with serving(lambda number, request: OK) as server:
        load = Load(url=server.url, bodies=END, seconds=1, api_key="secret", timeout_ms=500)
        check(load, load.requests())
        assert b"X-API-Key: secret\r\n" in server.requests[0]
        assert b"X-Request-Timeout-Ms: 500\r\n" in server.requests[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--image"),
        (["--title", "a", "--rate", "5", "--callers", "3"], "--callers"),
        (["--title", "a", "--rate", "5", "--requests", "3"], "--requests"),
        (["--title", "a", "--upload", "--listings", "3"], "--upload"),
        (["--image", "/no/such/photo.jpg"], "No such file"),
        (["--titles", "/no/such/titles.txt"], "No such file"),
    ],
)
def test_arguments_that_contradict_each_other_are_named(arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        bench("http://127.0.0.1:1", *arguments)


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────


def test_images_and_titles_are_paired_in_turn(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"first")
    (tmp_path / "deep/B.PNG").write_bytes(b"second")
    (tmp_path / "notes.txt").write_text("no image")
    found = read_listings(tmp_path, ["x", "y", "z"])
    assert found == [Listing("x", b"first"), Listing("y", b"second"), Listing("z", b"first")]
    assert read_listings(tmp_path / "a.jpg", []) == [Listing(None, b"first")]
    assert read_listings(None, ["x"]) == [Listing("x", None)]


def test_a_folder_without_images_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no image"):
        read_listings(tmp_path, [])


def test_titles_are_read_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "titles.txt"
    file.write_bytes("\ufeffNavy Shirt\r\n\r\n  Red Dress \n".encode())
    assert read_titles(file) == ["Navy Shirt", "Red Dress"]
    file.write_bytes(b"\n \n")
    with pytest.raises(ConfigError, match="holds no title"):
        read_titles(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_titles(file)


def test_every_listing_takes_part_in_batches() -> None:
    listings = [Listing(str(number), None) for number in range(5)]
    bodies = Bodies.batches(listings, 3)
    titles = [[each["title"] for each in json.loads(body)["listings"]] for body in bodies.bodies]
    assert titles == [["0", "1", "2"], ["3", "4", "0"]]


def test_an_image_is_sent_in_base64() -> None:
    (body,) = Bodies.single([Listing("a", b"\xff\xd8")]).bodies
    assert base64.b64decode(json.loads(body)["image"]["base64"]) == b"\xff\xd8"


# ── the figures ─────────────────────────────────────────────────────────────────────────────────────────────


def outcomes(*latencies: float, status: str = "200") -> list[Outcome]:
    return [
        Outcome(due=number, sent=number, ended=number + each, status=status) for number, each in enumerate(latencies)
    ]


def test_shares_are_of_all_requests_and_latencies_of_those_answered() -> None:
    found = Figures(a_load("http://a"), Measured([*outcomes(0.1, 0.3, 0.2), *outcomes(9.0, status="503")], 10.0))
    summary = found.summary()
    assert summary["statuses"] == {"200": 3, "503": 1}
    assert summary["shares"] == {"200": 0.75, "503": 0.25}
    assert summary["requests_per_second"] == 0.4
    assert summary["listings_per_second"] == 0.3
    assert summary["latency_ms"] == {
        "mean": 200.0, "p50": 200.0, "p90": 300.0, "p95": 300.0, "p99": 300.0, "p99.9": 300.0, "max": 300.0,
    }  # fmt: skip


def test_a_percentile_is_a_latency_that_was_measured() -> None:
    found = latencies([number / 1000 for number in range(1, 1001)])
    assert (found["p50"], found["p99"], found["p99.9"]) == (500.0, 990.0, 999.0)
    assert latencies([]) == {}


@pytest.mark.parametrize(("rate", "sent", "late"), [(5.0, 0.02, True), (5.0, 0.005, False), (None, 0.02, False)])
def test_a_client_that_sends_late_says_so(rate: float | None, sent: float, late: bool) -> None:
    measured = Measured([Outcome(due=0, sent=sent, ended=0.1, status="200")] * 3, 1.0)
    assert Figures(a_load("http://a", rate=rate), measured).late is late


def test_the_histogram_counts_every_latency() -> None:
    lines = histogram([0.001, 0.001, 0.01, 0.1], width=10).splitlines()[1:]
    counts = Counter(int(line.split()[-1]) for line in lines)
    assert sum(number * lines for number, lines in counts.items()) == 4
    assert "█" * 10 in lines[0]
    assert lines[-1].startswith("≤    100.0 ms")
    assert histogram([0.5, 0.5], width=10).splitlines()[1].endswith("2")


def test_a_sparkline_is_as_high_as_its_values() -> None:
    assert sparkline([0, 4, 8]) == " ▄█  (at most 8)"
    assert sparkline([0]) == "   (at most 0)"
