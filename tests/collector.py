"""A collector of traces for tests: a real HTTP server that takes OTLP, and remembers what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """A span as it came."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str]
    error: str
    resource: dict[str, str]


def chain(span: Seen, spans: Mapping[str, Seen]) -> list[str]:
    """A span and those that caused it, by service and name, back to the one that nobody caused."""
    found = [f"{span.service}: {span.name}"]
    while span.parent_id:
        before, span = span, spans[span.parent_id]
        assert (span.trace_id, span.start_ns <= before.start_ns) == (before.trace_id, True)
        found.append(f"{span.service}: {span.name}")
    return found


class Collector(ThreadingHTTPServer):
    """Answers at `/v1/traces`, with a status that a test may change."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200
        self.spans: list[Seen] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            resource = {each.key: each.value.string_value for each in group.resource.attributes}
            for span in (span for scope in group.scope_spans for span in scope.spans):
                values = ((each.key, each.value) for each in span.attributes)
                self.spans.append(
                    Seen(
                        resource["service.name"],
                        span.name,
                        span.kind,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        {key: value.string_value or str(value.int_value) for key, value in values},
                        span.status.message,
                        resource,
                    )
                )


class _Answer(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            if self.server.status == 200 and self.path == "/v1/traces":
                self.server.take(body)
                self.server.headers.append(dict(self.headers.items()))
            self.send_response(self.server.status if self.path == "/v1/traces" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nobody wants to read that."""


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector that listens."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
