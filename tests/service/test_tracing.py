"""Spans, sent to a receiver that reads OTLP by OpenTelemetry's own protocol definitions."""

from __future__ import annotations

import gzip
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from model.inference.output import OutputRow
from service.jobs import jobs, results, worker
from service.observability.tracing import configured_tracing
from tests.service.conftest import Client, encoded, in_process
from tests.service.test_jobs import ended, hand_in

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Receiver(ThreadingHTTPServer):
    """An OTLP receiver on a free port: takes what is posted to /v1/traces, and refuses anything else."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receive)
        self.spans: list[Any] = []
        self.services: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


class Receive(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        right = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            self.server.services |= {
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        reply = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if right else 400)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver
        receiver.shutdown()
        thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def answered(client: Client, **options: Any) -> httpx.Response:
    return await client.post(
        "/v1/classify/upload", files={"image": ("a.png", encoded())}, headers=TRACEPARENT, **options
    )


async def test_a_request_is_a_span_of_the_callers_trace_with_its_stages_below(receiver: Receiver) -> None:
    async with in_process() as client:
        assert (await answered(client, data={"title": "secret coat"})).status_code == 200
    (request,) = receiver.named("POST /v1/classify/upload")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    found = attributes(request)
    assert found.pop("cma_clip.request_id")
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/classify/upload",
        "http.response.status_code": 200,
        "cma_clip.listings": 1,
    }
    stages = [span for span in receiver.spans if span is not request]
    assert [span.name for span in sorted(stages, key=lambda span: span.end_time_unix_nano)] == [
        "decode", "queue", "inference", "respond"
    ]  # fmt: skip
    for span in stages:
        assert (span.trace_id, span.parent_span_id) == (request.trace_id, request.span_id)
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= request.end_time_unix_nano
    assert receiver.services == {"cma-clip"}
    assert b"secret" not in b"".join(span.SerializeToString() for span in receiver.spans)


async def test_fetching_is_a_span_and_each_listing_has_its_own(receiver: Receiver) -> None:
    listings = [{"title": "a"}, {"title": "b"}, {"image": {"url": "http://127.0.0.1/a.png"}}]
    async with in_process() as client:
        reply = await client.post("/v1/classify/batch", json={"listings": listings}, headers=TRACEPARENT)
        assert [bool(each.get("error")) for each in reply.json()["results"]] == [False, False, True]
    assert len(receiver.named("inference")) == 2
    assert len(receiver.named("fetch")) == 1


async def test_shards_of_a_job_are_spans_that_name_it_as_the_request_does(
    receiver: Receiver, store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service.request"):
        async with in_process(store=store_url, store_files=str(tmp_path / "files")) as client:
            job = (await hand_in(client, "id,title\na,secret coat\nb,secret hat\n")).json()["id"]
            await ended(client, job)
    (shard,) = receiver.named("job")
    assert attributes(shard) == {"cma_clip.job": job, "cma_clip.shard": 0, "cma_clip.listings": 2}
    assert shard.status.code == 0
    (request,) = receiver.named("POST /v1/jobs")
    assert attributes(request)["cma_clip.job"] == job
    assert job in [getattr(record, "fields", {}).get("job") for record in caplog.records]
    assert b"secret" not in b"".join(span.SerializeToString() for span in receiver.spans)


async def test_a_shard_that_fails_is_marked(
    receiver: Receiver, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = [True]

    def packed(rows: Sequence[OutputRow]) -> bytes:
        if fails:
            fails.clear()
            raise RuntimeError("the first try fails")
        return results.packed(rows)

    monkeypatch.setattr(worker, "packed", packed)
    monkeypatch.setattr(jobs, "Leases", lambda: worker.Leases(rest=0.01))
    async with in_process(store=store_url, store_files=str(tmp_path / "files")) as client:
        await ended(client, (await hand_in(client, "id,title\na,coat\n")).json()["id"])
    assert [span.status.code for span in receiver.named("job")] == [2, 0]


async def test_a_fault_of_the_service_is_marked_and_a_callers_mistake_is_not(receiver: Receiver) -> None:
    async with in_process() as client:
        await client.classify(titel="x")
        client.lifecycle.drain()
        await client.classify(title="x")
    spans = {attributes(span)["error.type"]: span for span in receiver.named("POST /v1/classify")}
    assert {code: span.status.code for code, span in spans.items()} == {"invalid_request": 0, "draining": 2}


async def test_probes_and_static_files_are_not_traced_and_the_log_names_the_trace(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service.request"):
        async with in_process() as client:
            for path in ("/healthz", "/readyz", "/metrics", "/static/docs.js"):
                await client.get(path)
            await client.get("/v1/model", headers=TRACEPARENT)
    assert {span.name for span in receiver.spans} == {"GET /v1/model"}
    fields = [record.fields for record in caplog.records if record.name == "service.request"]  # type: ignore[attr-defined]
    assert [each["trace_id"] for each in fields if each["route"] == "/v1/model"] == [TRACE]


async def test_what_the_caller_does_not_sample_is_not_sent(receiver: Receiver) -> None:
    async with in_process() as client:
        await client.get("/v1/model", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        await client.get("/v1/model", headers={"traceparent": "nonsense"})
    (span,) = receiver.spans
    assert span.trace_id.hex() != TRACE


async def test_a_collector_that_is_gone_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with in_process() as client:
        assert (await answered(client)).status_code == 200


def test_it_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_tracing() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert configured_tracing() is None


def test_without_the_extra_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert configured_tracing() is None
    assert "pip install 'cma-clip[tracing]'" in caplog.text
