"""`OtlpSpans`: spans on their way to a collector, by OTLP over HTTP, in a thread that nobody waits for."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from queue import Empty, SimpleQueue

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tradeloop.common.addresses import address
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.traces import Span, TraceSettings

log = structlog.get_logger(__name__)

_EVERY_S, _AT_ONCE, _REMIND_S = 1.0, 512, 60.0
_KINDS = {"consumer": SpanKind.CONSUMER, "producer": SpanKind.PRODUCER}
_SCOPE = InstrumentationScope("tradeloop")


class OtlpSpans:
    """Takes spans at any rate and sends them in batches. What does not get through is counted, logged and let go."""

    def __init__(self, service: Mapping[str, str], settings: TraceSettings) -> None:
        """`service` has its name, version and commit."""
        if settings.endpoint is None:
            raise ValueError("spans need an endpoint")
        # It would log each failure of its own, with a traceback.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(settings.endpoint, timeout=settings.timeout_s, headers=settings.pairs)
        self._endpoint, self._most, self._timeout_s = address(settings.endpoint), settings.most, settings.timeout_s
        names = {"service": "service.name", "version": "service.version", "commit": "vcs.ref.head.revision"}
        about = {names.get(name, name): value for name, value in service.items()}
        instance = {"service.instance.id": f"{socket.gethostname()}:{os.getpid()}"}
        self._resource = Resource({"service.namespace": "tradeloop", **about, **instance})
        self._waiting: SimpleQueue[Span] = SimpleQueue()
        self._sent, self._lost = 0, {"full": 0, "refused": 0}
        self._said_s: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="spans", daemon=True)
        self._thread.start()
        log.info("records traces", endpoint=self._endpoint, share=settings.share)

    def add(self, span: Span) -> None:
        """Take a span; it is lost where too many wait."""
        if self._waiting.qsize() < self._most:
            self._waiting.put(span)
        else:
            self._lost["full"] += 1

    def figures(self) -> Iterator[Figure]:
        """Its numbers. From any thread."""
        yield Figure("tradeloop_spans_sent_total", self._sent)
        for reason, count in self._lost.items():
            yield Figure("tradeloop_spans_lost_total", count, (reason,))

    def close(self) -> None:
        """Send what waits, for as long as one batch may take, and end."""
        self._stop.set()
        self._thread.join(self._timeout_s)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _send_all(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        while batch := self._batch():
            try:
                taken = self._exporter.export([self._readable(span) for span in batch]) is SpanExportResult.SUCCESS
            except Exception as error:  # noqa: BLE001  whatever a library makes of what a server answers
                taken = False
                log.debug("spans: %s", error)
            if taken:
                self._sent += len(batch)
                self._tell_of_success()
            else:
                self._lost["refused"] += len(batch)
                self._tell_of_loss()
                if self._stop.is_set():
                    return

    def _batch(self) -> list[Span]:
        batch: list[Span] = []
        while len(batch) < _AT_ONCE:
            try:
                batch.append(self._waiting.get_nowait())
            except Empty:
                break
        return batch

    def _tell_of_loss(self) -> None:
        now_s = time.monotonic()
        if self._said_s is None or now_s >= self._said_s + _REMIND_S:
            self._said_s = now_s
            log.warning(
                "spans are lost: the collector of traces does not take them", endpoint=self._endpoint, **self._lost
            )

    def _tell_of_success(self) -> None:
        if self._said_s is not None:
            self._said_s = None
            log.info("spans get through again", endpoint=self._endpoint, **self._lost)

    def _readable(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            _context(span.trace_id, span.span_id),
            parent=_context(span.trace_id, span.parent_id) if span.parent_id else None,
            resource=self._resource,
            attributes=span.attributes,
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, address(span.error)) if span.error else Status(),
            start_time=span.start_us * 1000,
            end_time=span.end_us * 1000,
            instrumentation_scope=_SCOPE,
        )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(1))
