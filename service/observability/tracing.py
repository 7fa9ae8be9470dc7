"""Spans of requests for OpenTelemetry: off unless a collector is named, by OpenTelemetry's own variables.

A request is a span, the child of the caller's where it sent a `traceparent` (W3C Trace Context); each stage of each of
its listings is a span below it. A shard of a job is a span in a trace of its own, since the request that handed the job
in ended long before; both name the job. `OTEL_EXPORTER_OTLP_ENDPOINT` names the collector, which gets them by OTLP over
HTTP, with protobuf; sampling, service name and headers are OpenTelemetry's variables too. Spans hold no titles, images,
URLs or keys. The libraries are an extra: without it, and without a collector, nothing of this runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

SERVICE_NAME = "cma-clip"
"""What the service is called where `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say nothing else."""

FLUSH_SECONDS = 2.0
"""How long the end of the process waits for the last spans to be sent."""

log = logging.getLogger(__name__)


class RequestTrace:
    """The span of one request, and those of its stages."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing, self._span = tracing, span

    @property
    def id(self) -> str:
        """The trace's id, as collectors show it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def stage(self, name: str, seconds: float, *, ago: float = 0.0) -> None:
        """Add a stage that took `seconds` and ended `ago` seconds before now."""
        end = time.time_ns() - int(ago * 1e9)
        span = self._tracing.span(name, parent=self._span, start=end - int(seconds * 1e9))
        span.end(end)

    def end(
        self, *, method: str, route: str | None, status: int, code: str | None, listings: int, job: str | None
    ) -> None:
        """End the request's span. `code`: the problem's, if it was answered with one; `job`: what was handed in."""
        span = self._span
        span.update_name(f"{method} {route}" if route else method)
        fields = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "error.type": code,
            "cma_clip.listings": listings or None,
            "cma_clip.job": job,
        }
        span.set_attributes({name: value for name, value in fields.items() if value is not None})
        if status >= 500:
            self._tracing.mark_failed(span)
        span.end()


class Tracing:
    """Makes the spans of requests and sends them; one per process."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - an extra, imported where it is used
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._trace, self._provider = trace, provider
        self._no_context = Context()
        self._tracer = provider.get_tracer("service")
        self._propagator = TraceContextTextMapPropagator()

    def request(self, headers: Mapping[str, str], request_id: str) -> RequestTrace:
        """Begin a request's span, below the one that its `traceparent` names."""
        sent = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            "request",
            context=self._propagator.extract(sent),
            kind=self._trace.SpanKind.SERVER,
            attributes={"cma_clip.request_id": request_id},
        )
        return RequestTrace(self, span)

    @contextmanager
    def shard(self, job: str, place: int, listings: int) -> Iterator[None]:
        """Trace what computes a shard of a job: it has failed if it raises, and when it is left to another replica."""
        attributes: dict[str, str | int] = {"cma_clip.job": job, "cma_clip.shard": place, "cma_clip.listings": listings}
        span = self._tracer.start_span("job", context=self._no_context, attributes=attributes)
        try:
            yield
        except BaseException:
            self.mark_failed(span)
            raise
        finally:
            span.end()

    def span(self, name: str, *, parent: Span, start: int) -> Span:
        """Begin a span at `start`, in nanoseconds since 1970."""
        return self._tracer.start_span(name, context=self._trace.set_span_in_context(parent), start_time=start)

    def mark_failed(self, span: Span) -> None:
        """Mark a span as an error of the service."""
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))

    def close(self) -> None:
        """Send what is left, for `FLUSH_SECONDS` at most: a collector that is gone must not hold up the end."""
        last = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)


def configured_tracing() -> Tracing | None:
    """Return what traces requests, None where no collector is named or the extra is not installed (which is logged)."""
    variable = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if variable is None or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME as KEY  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError:
        log.warning("%s is set, but requests are not traced: pip install 'cma-clip[tracing]'", variable)
        return None
    named = OTELResourceDetector().detect().attributes.get(KEY) is not None
    resource = Resource.create(None if named else {KEY: SERVICE_NAME})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("tracing", extra={"fields": {"collector": variable}})
    return Tracing(provider)
