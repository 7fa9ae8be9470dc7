"""Loading, readiness, death and draining: on the real application, and where signals matter on the real process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model.errors import CheckpointError
from service import lifecycle as lifecycle_module
from service.app import create_app
from service.http.server import Server, configuration
from service.lifecycle import Lifecycle
from service.pipeline.pipeline import Pipeline
from service.settings import Settings
from tests.processes import free_port, wait_until_ready
from tests.service.conftest import in_process, is_ready, on_port, until
from tests.service.fake_predictor import FakePredictor
from tests.service.test_routes import check_problem

ROOT = Path(__file__).parents[2]


class SlowToLoad(FakePredictor):
    """Warms up only when it is let."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.may_warm_up = threading.Event()
        self.warmed_up: list[int] = []

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        assert self.may_warm_up.wait(10)
        self.warmed_up.append(max_batch_size)
        return {}


async def test_while_the_model_loads_the_process_is_alive_and_not_ready() -> None:
    predictor = SlowToLoad()
    async with in_process(predictor, ready=False, max_batch_size=8) as client:
        assert (await client.get("/healthz")).status_code == 200
        for path in ("/readyz", "/v1/attributes", "/v1/model"):
            assert int(check_problem_retry(await client.get(path))) >= 1
        check_problem_retry(await client.classify(title="a"))
        assert (await client.get("/metrics")).status_code == 200
        predictor.may_warm_up.set()
        await until(lambda: predictor.warmed_up)
        await until(lambda: is_ready(client))
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.classify(title="a")).status_code == 200
        assert predictor.warmed_up == [8]
        assert client.batcher.cost.seconds(8) > 0  # predictions are possible from the first request on


async def test_what_was_loaded_is_settled_before_requests_are_taken_in() -> None:
    app = create_app(Settings(), lambda _: FakePredictor())
    lifecycle: Lifecycle = app.state.lifecycle
    ready: list[bool] = []
    lifecycle.once_warm = lambda: ready.append(not lifecycle.loading)
    async with app.router.lifespan_context(app):
        await until(lambda: not lifecycle.loading)
    assert ready == [False]


def check_problem_retry(response: httpx.Response) -> str:
    check_problem(response, 503, "not_ready")
    return response.headers["retry-after"]


async def test_a_checkpoint_that_cannot_be_loaded_is_not_alive_either() -> None:
    def load(settings: Settings) -> FakePredictor:
        raise CheckpointError("weights/x: model.safetensors is missing")

    app = create_app(Settings(), load)
    lifecycle: Lifecycle = app.state.lifecycle
    async with app.router.lifespan_context(app):
        await until(lambda: lifecycle.failure)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for path in ("/healthz", "/readyz"):
                body = check_problem(await client.get(path), 503, "not_ready")
                assert "weights" not in body["detail"]


async def test_a_target_precision_that_is_not_calibrated_stops_the_start() -> None:
    async with in_process(ready=False, target_precision=0.8) as client:
        await until(lambda: client.lifecycle.failure)
        assert "0.8" in str(client.lifecycle.failure)


async def test_a_checkpoint_without_calibration_and_scope_gate_answers_and_says_so_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with in_process(FakePredictor(bare=True)) as client:
        assert (await client.classify(title="a")).status_code == 200
        check_problem(await client.classify(title="a", target_precision=0.9), 422, "invalid_request")
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [
        "the checkpoint is not calibrated: it answers, but accepts nothing",
        "the checkpoint has no scope gate: unfamiliar listings are not recognised",
    ]


async def test_a_complete_checkpoint_starts_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with in_process():
            pass
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (ready,) = [record for record in caplog.records if record.getMessage() == "ready"]
    fields = {"model": "fake", "version": "0123456789ab", "engine": "torch", "scope_gate": True}
    assert ready.__dict__["fields"] == fields


async def test_when_the_inference_thread_dies_every_request_is_answered() -> None:
    def trouble(title: str | None) -> None:
        if title == "die":
            raise SystemExit

    async with on_port(FakePredictor(trouble=trouble), max_batch_size=4) as client:
        client.predictor.free.clear()
        tasks = [asyncio.create_task(client.classify(title=title)) for title in ("a", "b", "die", "c", "d", "e")]
        await until(lambda: client.pipeline.admission.listings == 6)
        client.predictor.free.set()
        answers = await asyncio.gather(*tasks)
        assert {answer.status_code for answer in answers} <= {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                check_problem_retry(answer)
        assert answers[2].status_code == 503
        for path in ("/healthz", "/readyz"):
            check_problem_retry(await client.get(path))
        check_problem_retry(await client.classify(title="after"))


async def test_a_batch_that_hangs_makes_the_process_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle_module, "STALL_SECONDS", 0.05)
    async with in_process(request_timeout_ms=100) as client:
        client.predictor.free.clear()
        check_problem(await client.classify(title="a"), 504, "deadline_exceeded")
        await until(lambda: client.batcher.computing_for > 0.05)
        check_problem_retry(await client.get("/healthz"))
        client.predictor.free.set()
        await until(lambda: not client.batcher.computing_for)
        assert (await client.get("/healthz")).status_code == 200


async def test_a_caller_who_hangs_up_is_not_computed_for() -> None:
    async with on_port() as client:
        client.predictor.free.clear()
        first = asyncio.create_task(client.classify(title="first"))
        await until(lambda: client.predictor.batches)
        gone = asyncio.create_task(client.classify(title="gone"))
        await until(lambda: client.batcher.waiting == 1)
        gone.cancel()
        await until(lambda: client.batcher.waiting == 0)
        client.predictor.free.set()
        assert (await first).status_code == 200
        assert client.predictor.batches == [["first"]]
        await until(lambda: client.pipeline.admission.listings == 0)
        counted = {"method": "POST", "route": "/v1/classify", "status": "499"}
        assert await client.metric("cma_clip_http_requests_total", **counted) == 1


async def test_after_draining_begins_nobody_new_is_taken_in_and_the_rest_is_finished() -> None:
    async with in_process() as client:
        client.predictor.free.clear()
        inside = asyncio.create_task(client.classify(title="inside"))
        await until(lambda: client.predictor.batches)
        client.lifecycle.drain()
        response = await client.get("/readyz")
        check_problem(response, 503, "draining")
        assert response.headers["retry-after"]
        check_problem(await client.classify(title="late"), 503, "draining")
        assert (await client.get("/healthz")).status_code == 200
        client.predictor.free.set()
        assert (await inside).status_code == 200


def test_a_drain_waits_for_the_balancer_and_for_those_inside() -> None:
    app = create_app(Settings(), lambda _: FakePredictor())
    lifecycle: Lifecycle = app.state.lifecycle
    pipeline: Pipeline = app.state.pipeline
    server = Server(configuration(app), lifecycle, drain_seconds=8.0)
    lifecycle.drain()
    server._draining_since, server._balancer_seconds = time.monotonic(), 60.0
    assert not server._drained(), "it is still sent requests that want an answer"
    server._balancer_seconds = 0.0
    pipeline.admission.requests = 1
    assert not server._drained()
    pipeline.admission.requests = 0
    assert server._drained()


# ── the real process ─────────────────────────────────────────────────────────────────────────────────────────────

SERVE = textwrap.dedent("""
    import gc
    import sys
    import time
    from service.app import create_app
    from service.http import server
    from service.observability import logs
    from service.settings import load_settings
    from tests.service.fake_predictor import FakePredictor

    settings = load_settings()
    logs.configure(settings.log_format)


    def load(settings):
        time.sleep(float(sys.argv[2]))
        return FakePredictor(seconds=float(sys.argv[1]))


    failure = server.serve(create_app(settings, load), settings)
    print("frozen:", gc.get_freeze_count())
    sys.exit(3 if failure else 0)
""")


class Replica:
    """A server process with the fake model, whose every batch takes `seconds`, and loading it `loading`."""

    def __init__(self, seconds: float, *, loading: float = 0.0, **settings: object) -> None:
        self.port = free_port()
        environment = {f"CMA_CLIP_{name.upper()}": str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-W", "error", "-c", SERVE, str(seconds), str(loading)],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "CMA_CLIP_PORT": str(self.port), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and what was printed."""
        log, _ = self.process.communicate(timeout=30)
        return self.process.returncode, log


@contextlib.contextmanager
def replica(seconds: float, *, loading: float = 0.0, **settings: object) -> Iterator[Replica]:
    found = Replica(seconds, loading=loading, **settings)
    try:
        wait_until_ready(found.url, found.process)
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


async def post(server: Replica, client: httpx.AsyncClient, title: str = "a") -> int:
    return (await client.post(f"{server.url}/v1/classify", json={"title": title})).status_code


async def test_sigterm_refuses_the_new_finishes_the_old_and_ends() -> None:
    with replica(1.0, drain_seconds=8) as server:
        async with httpx.AsyncClient(timeout=30) as client:
            inside = [asyncio.create_task(post(server, client)) for _ in range(8)]
            await asyncio.sleep(0.4)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            for path in ("readyz", "v1/classify"):
                method = "POST" if path == "v1/classify" else "GET"
                refused = await client.request(method, f"{server.url}/{path}", json={"title": "late"})
                check_problem(refused, 503, "draining")
                assert refused.headers["retry-after"]
            assert await asyncio.gather(*inside) == [200] * 8
        assert server.end()[0] == 0


async def test_the_drain_is_bounded_and_those_still_waiting_are_answered() -> None:
    with replica(30.0, drain_seconds=0.5, max_batch_size=1, request_timeout_ms=100_000) as server:
        async with httpx.AsyncClient(timeout=30) as client:
            inside = [asyncio.create_task(post(server, client)) for _ in range(3)]
            await asyncio.sleep(0.4)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.gather(*inside) == [503] * 3
            assert server.end()[0] == 0
            assert time.monotonic() - began < 20  # the batch that computes is not waited for


async def test_those_waiting_for_something_else_than_the_device_are_answered_too() -> None:
    """One waits for an image from a host that does not answer, one is in the middle of its body."""
    over = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    host = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = host.sockets[0].getsockname()[1]
    image = {"url": f"http://127.0.0.1:{port}/shirt.jpg"}
    head = "POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with replica(
        0.0, drain_seconds=0.5, request_timeout_ms=100_000, allow_private_image_hosts=True, image_ports=port
    ) as server:
        async with httpx.AsyncClient(timeout=20) as client, asyncio.timeout(20):
            body = {"image": image}
            fetching = asyncio.create_task(client.post(f"{server.url}/v1/classify", json=body))
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head.encode() + b'{"title": ')
            await asyncio.sleep(0.4)
            server.process.send_signal(signal.SIGTERM)
            check_problem(await fetching, 503, "draining")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after" in answer
            assert b'"code":"draining"' in answer
            writer.close()
        status, log = server.end()
        assert status == 0
        assert "Traceback" not in log
    over.set()
    host.close()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
def test_while_it_loads_a_signal_ends_the_process_at_once_and_with_one_line(
    signals: tuple[signal.Signals, ...],
) -> None:
    """Nothing has been accepted, so nothing can be lost; the thread that loads is not waited for."""
    server = Replica(0.0, loading=60)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/healthz").status_code == 200:
                break
        time.sleep(0.05)
    began = time.monotonic()
    for sig in signals:
        server.process.send_signal(sig)
    status, log = server.end()
    assert time.monotonic() - began < 5
    assert status in {128 + sig for sig in signals}
    (after,) = log.partition("Application startup complete")[2].splitlines()[1:] or [""]
    assert after == f"cma-clip: ended by {signal.Signals(status - 128).name}"


async def test_a_second_sigterm_ends_the_process_at_once() -> None:
    with replica(20.0, drain_seconds=20) as server:
        async with httpx.AsyncClient(timeout=30) as client:
            inside = asyncio.create_task(post(server, client))
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert server.process.poll() is None
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.end()[0] == 128 + signal.SIGTERM
            assert time.monotonic() - began < 5
            with pytest.raises(httpx.TransportError):
                await inside


def test_an_idle_process_ends_soon_after_sigint() -> None:
    with replica(0.0) as server:
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        status, log = server.end()
        assert status == 0
        assert time.monotonic() - began < 5
        assert "Traceback" not in log
        found = re.search(r"^frozen: (\d+)$", log, re.MULTILINE)
        assert found
        assert int(found[1]) > 10_000, "garbage collection passes over what was loaded"


async def test_places_come_back_after_a_client_that_hung_up_in_the_middle_of_its_body() -> None:
    async with on_port() as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        head = "POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode() + b'{"title": ')
        await until(lambda: client.pipeline.admission.nbytes > 0)
        writer.close()
        await until(lambda: client.pipeline.admission.requests == 0)
        assert client.pipeline.admission.nbytes == 0
        counted = {"method": "POST", "route": "/v1/classify", "status": "499"}
        assert await client.metric("cma_clip_http_requests_total", **counted) == 1
