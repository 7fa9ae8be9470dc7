"""Real nginx before two real replicas: what deploy/nginx promises holds while replicas come and go."""

from __future__ import annotations

import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.http.middleware import SANE_ID
from service.http.problems import PROBLEM_TYPE
from tests.deployment.load import LISTING, Load
from tests.deployment.processes import Balancer, Replica, Stub, running
from tests.deployment.tools import ROOT


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that nginx's workers, who are nobody, can look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[tuple[Replica, Replica]]:
    replicas = Replica(folder, drain_seconds=5), Replica(folder, drain_seconds=5)
    with running(*replicas):
        yield replicas


@pytest.fixture
def replicas(pair: tuple[Replica, Replica]) -> tuple[Replica, Replica]:
    """Two replicas that are up, whatever the test before did to them."""
    for replica in pair:
        if not replica.running:
            replica.start()
    for replica in pair:
        replica.wait_until_up()
    return pair


@pytest.fixture
def balancer(folder: Path, replicas: tuple[Replica, Replica]) -> Iterator[Balancer]:
    balancer = Balancer(folder, replicas)
    with running(balancer):
        balancer.wait_until_it_sends_to(*replicas)
        yield balancer


def test_load_is_shared(balancer: Balancer, replicas: tuple[Replica, Replica]) -> None:
    with Load(balancer.url) as load:
        load.wait_for(200)
    assert set(load.statuses) == {200}
    shares = balancer.answers_by_replica()
    assert set(shares) == {replica.address for replica in replicas}
    assert min(shares.values()) > 0.3 * shares.total()


def test_a_killed_replica_costs_no_more_than_what_was_in_it(
    balancer: Balancer, replicas: tuple[Replica, Replica]
) -> None:
    with Load(balancer.url) as load:
        load.wait_for(100)
        replicas[0].signal(signal.SIGKILL)
        load.wait_for(100)
        balancer.wait_until_it_sends_to(replicas[1])
        load.wait_for(100)
    assert set(load.statuses) <= {200, 502}
    assert load.statuses[502] <= load.callers
    lost = [line for line in balancer.served() if line["status"] == 502]
    assert {line["replicas"] for line in lost} <= {replicas[0].address}  # and were sent to nobody else


def test_a_request_that_ends_a_replica_is_not_sent_to_the_next(folder: Path) -> None:
    stubs = [Stub(folder, 0), Stub(folder, 0), Stub(folder, 0)]
    balancer = Balancer(folder, stubs)
    with running(*stubs), running(balancer):
        balancer.wait_until_it_sends_to(*stubs)
        reply = httpx.post(f"{balancer.url}/v1/classify", json=LISTING)
        expect_problem(reply, 502, "replica_failed")
        assert "retry-after" not in reply.headers
        (ended,) = (stub for stub in stubs if stub.posts)
        assert ended.posts == ended.wait(30) == 1
        assert [stub.running for stub in stubs].count(True) == 2


def test_what_a_replica_refuses_or_cannot_be_told_goes_to_the_next(folder: Path) -> None:
    gone, refusing, serving = Stub(folder, 200), Stub(folder, 503), Stub(folder, 200)
    balancer = Balancer(folder, [gone, refusing, serving])
    with running(gone, refusing, serving), running(balancer):
        balancer.wait_until_it_sends_to(gone, refusing, serving)
        gone.signal(signal.SIGKILL)
        gone.wait(5)
        replies = [httpx.post(f"{balancer.url}/v1/classify", json=LISTING) for _ in range(10)]
        assert [reply.status_code for reply in replies] == [200] * 10
        assert serving.posts == 10
        assert all(line["replicas"].endswith(serving.address) for line in balancer.served())
        assert any(", " in line["replicas"] for line in balancer.served())


def test_one_caller_cannot_take_every_connection(folder: Path) -> None:
    stub = Stub(folder, 200)
    balancer = Balancer(folder, [stub])
    head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with running(stub), running(balancer), ExitStack() as opened:
        for _ in range(300):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", balancer.port)))
            connection.sendall(head)
        reply = httpx.post(f"{balancer.url}/v1/classify", json=LISTING)
        expect_problem(reply, 429, "rate_limited")
        assert reply.headers["retry-after"] == "1"


def test_one_caller_cannot_send_requests_without_end(folder: Path) -> None:
    stub = Stub(folder, 200)
    balancer = Balancer(
        folder,
        [stub],
        limit_req_zone="$binary_remote_addr zone=requests:10m rate=1r/m",
        limit_req="zone=requests burst=9 nodelay",
    )
    with running(stub), running(balancer):
        replies = [httpx.get(f"{balancer.url}/v1/model") for _ in range(12)]
        served = [reply.status_code for reply in replies].count(200)
        assert served <= 10  # fewer, by as many as it took to see that the balancer is up
        assert [reply.status_code for reply in replies] == [200] * served + [429] * (12 - served)
        expect_problem(replies[-1], 429, "rate_limited")
        assert replies[-1].headers["retry-after"] == "1"


def begun(balancer: Balancer) -> socket.socket:
    """A connection whose request the balancer has begun to read, and lacks the last byte of its body."""
    caller = socket.create_connection(("127.0.0.1", balancer.port), 60)
    caller.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert caller.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    caller.sendall(b"{")
    return caller


def test_a_body_that_stops_coming_is_given_up(folder: Path) -> None:
    stub = Stub(folder, 200)
    balancer = Balancer(folder, [stub])
    with running(stub), running(balancer), begun(balancer) as caller:
        started = time.monotonic()
        while caller.recv(1000):
            pass
        assert time.monotonic() - started < 15
    assert stub.posts == 0


def test_a_body_that_is_on_its_way_when_the_balancer_is_told_to_end_is_answered(folder: Path) -> None:
    stub = Stub(folder, 200)
    balancer = Balancer(folder, [stub], client_body_timeout="60s")
    with running(stub), running(balancer), begun(balancer) as caller:
        balancer.signal(signal.SIGTERM)
        while balancer.answers():
            time.sleep(0.05)
        balancer.signal(signal.SIGTERM)  # again: that does not hurry it
        caller.sendall(b"}")
        assert caller.recv(1000).startswith(b"HTTP/1.1 200")
        assert balancer.wait(60) == 0


def test_a_rolling_restart_under_load_loses_no_request(balancer: Balancer, replicas: tuple[Replica, Replica]) -> None:
    with Load(balancer.url, pause=0.01) as load:
        for restarted in replicas:
            load.wait_for(50)
            restarted.signal(signal.SIGTERM)
            restarted.wait(60)
            restarted.start()
            restarted.wait_until_up()
            balancer.wait_until_it_sends_to(*replicas)
        load.wait_for(50)
    assert set(load.statuses) == {200}


def test_what_an_overloaded_replica_refuses_is_served_by_the_other(folder: Path) -> None:
    # One listing at a time against plenty: by least connections alone the small one gets more than it takes.
    small, large = Replica(folder, max_queue=1), Replica(folder)
    balancer = Balancer(folder, [small, large])
    with running(small, large), running(balancer):
        with Load(balancer.url, callers=16) as load:
            load.wait_for(300)
        assert set(load.statuses) == {200}
        refused = [line for line in balancer.served() if line["replica_statuses"].startswith("503")]
        assert {(line["replicas"], line["replica_statuses"]) for line in refused} == {
            (f"{small.address}, {large.address}", "503, 200")
        }
        # Refusing is no reason to be taken out: the small one goes on serving what it can.
        assert balancer.chosen == {small.address, large.address}
        assert balancer.answers_by_replica()[small.address] > 0


def test_when_all_are_overloaded_the_refusal_reaches_the_caller(folder: Path) -> None:
    replicas = Replica(folder, max_queue=1), Replica(folder, max_queue=1)
    balancer = Balancer(folder, replicas)
    with running(*replicas), running(balancer):
        with Load(balancer.url, callers=16) as load:
            load.wait_for(300)
        assert set(load.statuses) == {200, 503}
        refused = [line for line in balancer.served() if line["status"] == 503]
        # Each was asked once, and no one again.
        assert {line["replica_statuses"] for line in refused} == {"503, 503"}


def test_a_replica_that_is_not_ready_gets_nothing(balancer: Balancer, replicas: tuple[Replica, Replica]) -> None:
    unready, other = replicas
    # Stopped in its tracks: it still accepts connections, and answers nothing.
    unready.signal(signal.SIGSTOP)
    try:
        balancer.wait_until_it_sends_to(other)
        before = len(balancer.served())
        with Load(balancer.url) as load:
            load.wait_for(100)
        assert set(load.statuses) == {200}
        assert {line["replicas"] for line in balancer.served()[before:]} == {other.address}
    finally:
        unready.signal(signal.SIGCONT)
    balancer.wait_until_it_sends_to(*replicas)


def test_what_a_hanging_replica_has_begun_is_not_computed_by_another(
    balancer: Balancer, replicas: tuple[Replica, Replica]
) -> None:
    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{balancer.url}/v1/classify", json=LISTING, timeout=30)

    hanging, other = replicas
    before = len(balancer.served())
    hanging.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as callers:
            answers = list(callers.map(ask, range(4)))
    finally:
        hanging.signal(signal.SIGCONT)
    tried = {(line["replicas"], line["status"]) for line in balancer.served()[before:]}
    # After 15 s the caller hears of it; nobody else was bothered with the same listing.
    assert tried == {(hanging.address, 504), (other.address, 200)}
    late = [reply for reply in answers if reply.status_code == 504]
    assert {reply.json()["code"] for reply in late} == {"deadline_exceeded"}


def test_a_draining_replica_gets_nothing_new(balancer: Balancer, replicas: tuple[Replica, Replica]) -> None:
    draining, other = replicas
    with Load(balancer.url) as load:
        load.wait_for(50)
        draining.signal(signal.SIGTERM)
        balancer.wait_until_it_sends_to(other)
        load.wait_for(100)
    assert set(load.statuses) == {200}
    draining.wait(60)


def classify_as(balancer: Balancer, request_id: str) -> httpx.Response:
    return httpx.post(f"{balancer.url}/v1/classify", json=LISTING, headers={"X-Request-ID": request_id})


def test_without_any_replica_the_balancer_says_so_as_the_service_would(
    balancer: Balancer, replicas: tuple[Replica, Replica]
) -> None:
    for replica in replicas:
        replica.signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    # What was sent on a connection that ended with its replica may have ended it: 502, and not repeated.
    while (reply := classify_as(balancer, "abc-1")).status_code == 502:
        assert reply.json()["code"] == "replica_failed"
        assert time.monotonic() < deadline
    assert reply.status_code == 503
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["retry-after"] == "1"
    assert reply.headers["x-request-id"] == reply.json()["request_id"] == "abc-1"


def test_a_body_over_the_limit_is_refused_by_the_balancer(balancer: Balancer) -> None:
    reply = httpx.post(f"{balancer.url}/v1/classify", content=b" " * (32 * 2**20 + 1))
    assert reply.status_code == 413
    assert reply.json()["code"] == "payload_too_large"
    assert balancer.served()[-1]["replicas"] == ""


def test_a_job_may_be_larger_than_a_request_and_passes_through_without_being_kept(folder: Path) -> None:
    stub = Stub(folder, 202)
    with running(stub):
        balancer = Balancer(folder, [stub])
        with running(balancer):
            balancer.wait_until_it_sends_to(stub)
            body = bytes(40 * 2**20)
            assert httpx.post(f"{balancer.url}/v1/jobs", content=body, timeout=30).status_code == 202
            bodies = Path(balancer.environment["RUN_DIR"], "body")
            assert not [path for path in bodies.rglob("*") if path.is_file()]
            head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {2**31 + 1}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", balancer.port), timeout=10) as raw:
                raw.sendall(head.encode())
                refused = raw.makefile("rb").read()
            assert refused.startswith(b"HTTP/1.1 413 ")
            assert b"The job is over 2 GiB." in refused
            stub.stop()
            assert httpx.get(f"{balancer.url}/v1/jobs").json()["code"] == "not_ready"


def test_the_request_id_is_the_same_everywhere(balancer: Balancer) -> None:
    reply = httpx.post(f"{balancer.url}/v1/classify", json=LISTING)
    assert reply.headers["x-request-id"] == balancer.served()[-1]["request_id"]


def test_a_callers_sane_request_id_is_kept(balancer: Balancer) -> None:
    assert f'"~^{SANE_ID.pattern}$"' in (ROOT / "deploy/nginx/nginx.conf").read_text()
    sane = "order/2026+11=a@b~c"
    reply = httpx.post(f"{balancer.url}/v1/classify", json=LISTING, headers={"X-Request-ID": sane})
    assert reply.headers["x-request-id"] == balancer.served()[-1]["request_id"] == sane


def test_metrics_are_not_public(balancer: Balancer) -> None:
    expect_problem(httpx.get(f"{balancer.url}/metrics"), 404, "not_found")


def test_what_is_no_http_is_refused_as_the_service_would(balancer: Balancer) -> None:
    reply = httpx.get(f"{balancer.url}/v1/model", headers={"X-Long": "a" * 40_000})
    expect_problem(reply, 400, "malformed_request")


def test_a_body_that_there_is_no_room_for_is_refused_and_not_lost(balancer: Balancer) -> None:
    bodies = Path(balancer.environment["RUN_DIR"]) / "body"
    elsewhere = bodies.rename(bodies.with_name("elsewhere"))  # writing there fails, as it does on a full disk
    try:
        reply = httpx.post(f"{balancer.url}/v1/classify", content=b" " * 2**20)
    finally:
        elsewhere.rename(bodies)
    expect_problem(reply, 503, "overloaded")
    assert reply.headers["retry-after"] == "1"


def expect_problem(reply: httpx.Response, status: int, code: str) -> None:
    problem = reply.json()
    assert reply.headers["content-type"] == PROBLEM_TYPE
    assert (reply.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:cma-clip:problem:{code}"
    assert reply.headers["x-request-id"] == problem["request_id"]


def test_the_balancer_finishes_what_it_has_begun(balancer: Balancer) -> None:
    with Load(balancer.url, callers=4) as load:
        load.wait_for(20)
        balancer.signal(signal.SIGTERM)
        assert balancer.wait(60) == 0
    # Whole answers to all that it took in, and then nobody there; who knocked at the last moment was not let in.
    assert set(load.statuses) <= {200, "ConnectError", "ReadError", "RemoteProtocolError"}
    assert [line["status"] for line in balancer.served()] == [200] * load.statuses[200]
