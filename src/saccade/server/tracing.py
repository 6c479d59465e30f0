"""OpenTelemetry spans: one per request, one per stage inside it.

What is recorded was measured anyway; spans are made when the answer is written, with the times
that the engine process told, so that a request that is not sampled costs one decision. Where spans
go, how many are kept and what the service is called is said by OpenTelemetry's own environment
variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME).

Source: OpenTelemetry, "Semantic conventions for HTTP spans" and "for gRPC"; W3C, "Trace Context".
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from typing import Any

from saccade.errors import BackendUnavailable
from saccade.server.messages import METHODS, SERVICE
from saccade.server.wire import Done

__all__ = ["Tracer", "make_tracer"]

# Codes that semantic conventions count as errors of a server.
_FAULTS = (2, 4, 12, 13, 14, 15)
_STAGES = ("decode", "prepare", "infer", "suppress")
_INSTALL = "pip install 'saccade[otel]'"


class Tracer:
    """Makes spans and hands them to a thread that sends them.

    Raises:
        BackendUnavailable: The packages are missing.
    """

    def __init__(self, version: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as exc:
            raise BackendUnavailable(
                f"spans need the packages of OpenTelemetry, {exc.name} is missing; run: {_INSTALL}"
            ) from exc
        name = os.environ.get("OTEL_SERVICE_NAME", "saccade")
        resource = Resource.create({"service.name": name, "service.version": version})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("saccade", version)
        self._extract = TraceContextTextMapPropagator().extract
        self._trace = trace
        # From perf_counter to the clock of the day, taken together once.
        self._offset_ns = time.time_ns() - time.perf_counter_ns()

    def http(self, request: Any, status: int) -> None:
        """One answered HTTP request.

        Args:
            request: An HttpRequest, whose `done` holds what the engine process told, if it ran.
            status: Of the answer.
        """
        head = request.head
        # Paths hold names that clients choose; the name of a span must be one of few.
        route = getattr(head.endpoint, "name", "") or _route(head.path)
        attributes = {
            "http.request.method": head.method,
            "http.route": route,
            "url.path": head.path,
            "http.response.status_code": status,
            "http.request.body.size": request.num_bytes,
            "saccade.request_id": request.id,
        }
        self.record(
            f"{head.method} {route}",
            head.headers,
            request.arrived_s,
            request.done,
            attributes,
            is_fault=status >= 500,
        )

    def grpc(self, headers: dict[str, str], code: int, arrived_s: float, done: Done | None) -> None:
        """One answered message of a call.

        Args:
            headers: Of the call, with ":path".
            code: The gRPC status.
            arrived_s: When the message was complete, by `time.perf_counter`.
            done: What the engine process told, if it ran.
        """
        # Whatever a client made up is no name of a span.
        service, _, method = headers.get(":path", "")[1:].partition("/")
        is_known = service == SERVICE and method in METHODS
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service if is_known else "",
            "rpc.method": method if is_known else "",
            "rpc.grpc.status_code": code,
            "saccade.request_id": headers.get("x-request-id", "")[:128],
        }
        name = f"{service}/{method}" if is_known else "unknown"
        self.record(name, headers, arrived_s, done, attributes, is_fault=code in _FAULTS)

    def record(
        self,
        name: str,
        carrier: Any,
        arrived_s: float,
        done: Done | None,
        attributes: dict[str, Any],
        *,
        is_fault: bool,
    ) -> None:
        """One answered request of any protocol.

        Args:
            name: Of the span.
            carrier: Headers, in lower case; "traceparent" names the caller's span.
            arrived_s: When the request was complete, by `time.perf_counter`.
            done: What the engine process told, or None.
            attributes: Of the span.
            is_fault: Whether the server is to blame.
        """
        trace = self._trace
        end_ns = time.perf_counter_ns() + self._offset_ns
        start_ns = int(arrived_s * 1e9) + self._offset_ns
        parent = self._extract(carrier) if "traceparent" in carrier else None
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=start_ns,
        )
        if span.is_recording():
            if is_fault:
                span.set_status(trace.StatusCode.ERROR)
            if done is not None:
                self._stages(span, done, start_ns, end_ns)
        span.end(end_ns)

    def _stages(self, span: Any, done: Done, start_ns: int, end_ns: int) -> None:
        """Stages one after the other; all waiting is put before the first."""
        span.set_attribute("saccade.batch_size", done.batch)
        context = self._trace.set_span_in_context(span)
        at_ns = max(start_ns, end_ns - sum(done.times_ns))
        self._child("queue", context, start_ns, at_ns)
        for stage, spent_ns in zip(_STAGES, done.times_ns, strict=True):
            if spent_ns:
                self._child(stage, context, at_ns, at_ns + spent_ns)
                at_ns += spent_ns

    def _child(self, name: str, context: Any, start_ns: int, end_ns: int) -> None:
        self._tracer.start_span(name, context=context, start_time=start_ns).end(end_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def make_tracer() -> Tracer:
    """A tracer for this version of saccade.

    Raises:
        BackendUnavailable: The packages are missing.
    """
    return Tracer(importlib.metadata.version("saccade"))


def _route(path: str) -> str:
    """The path without the names in it."""
    parts = path.split("/")
    for i in range(1, len(parts)):
        if parts[i - 1] in ("models", "versions", "region") and parts[i] not in ("stats",):
            parts[i] = "{}"
    return "/".join(parts[:8])
