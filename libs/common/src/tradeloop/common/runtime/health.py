"""The health of a service over HTTP: `/live`, `/ready`, `/metrics` (Prometheus) and `/build`.

Every answer is made from memory, so that none waits for what is down. Nothing here needs to be kept secret from who
reaches the port, which by default is this machine alone.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from http import HTTPStatus
from typing import Protocol

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field

from tradeloop.common.addresses import address
from tradeloop.common.bus.port import BusError, Partition
from tradeloop.common.errors import Unavailable
from tradeloop.common.messages import ServiceStarted
from tradeloop.common.runtime.access import Tokens
from tradeloop.common.runtime.exposition import exposed, of_runner
from tradeloop.common.runtime.levels import LogSettings, level_by_signals
from tradeloop.common.runtime.manifest import Announced, manifest_of, version_of
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.server import Door, Page, listening
from tradeloop.common.runtime.settings import ServiceSettings
from tradeloop.common.runtime.stopping import stopped_by_signals
from tradeloop.common.runtime.traces import Tracer, TraceSettings

log = structlog.get_logger(__name__)

_RESTART_S = 1.0
_OK, _UNAVAILABLE = HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE


class HttpSettings(BaseModel):
    """Where a service tells of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """The address to listen at; `0.0.0.0` is every one of the machine."""
    port: int | None = Field(default=None, ge=0, le=65535)
    """Nothing is served without one; 0 takes one that is free."""
    live_within_s: float | None = Field(default=None, gt=0)
    """How long the run loop may be silent before the process counts as stuck: in one message, unless its service says
    that it goes on, or in one wait for something unavailable. By default as long as the group lets a step take,
    `KAFKA__LONGEST_STEP_S`: a restart before that would only repeat the message."""
    sample_interval_s: float = Field(default=5.0, gt=0)
    """How often the bus is asked how far its topics are."""
    operate_tokens: Tokens = None
    """The tokens of those who may change how a running process works, such as the level of its log; without one nobody
    may. `access.Guard` lets them in."""
    commit: str = Field(default_factory=lambda: os.environ.get("TRADELOOP_COMMIT", "unknown"))
    """The source this was built from; an image says it in `TRADELOOP_COMMIT`."""


class Counts(Protocol):
    """Something beside the run loop that counts what it did."""

    def figures(self) -> Iterable[Figure]:
        """Its numbers. From any thread."""
        ...


class CountedDoor(Door, Counts, Protocol):
    """A door that counts what it did."""


class Health:
    """Answers for one runner. Shared between threads."""

    def __init__(
        self,
        runner: Runner,
        settings: HttpSettings,
        stop: threading.Event,
        beside: Iterable[Counts] = (),
        manifest: ServiceStarted | None = None,
    ) -> None:
        self._manifest = manifest
        self._runner, self._settings, self._stop, self._beside = runner, settings, stop, tuple(beside)
        self._lag: Mapping[Partition, int] = {}
        self._dead_letters: Mapping[str, int] = {}
        self._bus_trouble = ""
        self._registry = CollectorRegistry()
        self._registry.register(_Metrics(self))
        ProcessCollector(registry=self._registry)
        self.pages: Mapping[str, Callable[[], Page]] = {
            "/live": self.live,
            "/ready": self.ready,
            "/metrics": self.metrics,
            "/build": self.build,
        }

    def live(self) -> Page:
        """Whether the run loop moves on: 503 asks for a restart."""
        idle_s = self._runner.clock.monotonic() - self._runner.active
        live = idle_s <= (self._settings.live_within_s or self._runner.bus.longest_step_s)
        return _json(_OK if live else _UNAVAILABLE, {"live": live, "idle_s": round(idle_s, 3)})

    def ready(self) -> Page:
        """Whether messages are handled now: 503 says what is in the way.

        A portfolio in quarantine, or one that waits, is named and is in nobody's way: no restart would help it. So are
        live feeds that do not go on, and messages that retention deleted before they were finished.
        """
        reasons = list(map(address, self.not_ready()))
        portfolios = {each.portfolio: address(each.trouble) for each in self._runner.standings if each.trouble}
        feeds = {each.universe: address(each.trouble) for each in self._runner.feeds if each.trouble}
        lost = {f"{partition.topic}/{partition.number}": count for partition, count in self._runner.lost.items()}
        content = {"ready": not reasons, "reasons": reasons, "portfolios": portfolios, "feeds": feeds, "lost": lost}
        return _json(_UNAVAILABLE if reasons else _OK, content)

    def metrics(self) -> Page:
        """All numbers, for Prometheus."""
        return Page(_OK, CONTENT_TYPE_LATEST, generate_latest(self._registry))

    def build(self) -> Page:
        """The build that runs here, and its manifest."""
        told = self._manifest.model_dump(mode="json") if self._manifest else {}
        return _json(_OK, {**self.names, **told})

    @property
    def names(self) -> dict[str, str]:
        return names_of(self._runner.service.name, self._settings)

    def not_ready(self) -> list[str]:
        """Why messages are not handled now; nothing when they are."""
        stopping = ["it stops"] if self._stop.is_set() else []
        trouble = [self._bus_trouble] if self._bus_trouble else []
        return [*dict.fromkeys([*stopping, *self._runner.not_ready(), *trouble])]

    def figures(self) -> Iterator[Figure]:
        """All that is measured here."""
        yield from of_runner(self._runner)
        for each in self._beside:
            yield from each.figures()
        yield Figure("tradeloop_ready", float(not self.not_ready()))
        for partition, behind in self._lag.items():
            yield Figure("tradeloop_consumer_lag_messages", behind, (partition.topic, str(partition.number)))
        for topic, count in self._dead_letters.items():
            yield Figure("tradeloop_dead_letters", count, (topic,))
        yield Figure("tradeloop_build_info", 1, tuple(self.names.values()))

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample again and again, in a thread of its own, for the time of the context."""
        done = threading.Event()

        def sample() -> None:
            while not done.wait(self._settings.sample_interval_s):
                self.sample()

        threading.Thread(target=sample, name="lag", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def sample(self) -> None:
        """Ask the bus how far its topics are. Waits while it does not answer."""
        try:
            self._lag = self._behind()
            self._dead_letters = self._given_up_on()
            self._bus_trouble = ""
        except BusError as error:
            self._bus_trouble = str(error)

    def _behind(self) -> dict[Partition, int]:
        """How many messages of each assigned partition are not finished."""
        committed, assigned = self._runner.committed, self._runner.assigned or ()
        lag = {}
        for topic in self._runner.topics:
            ends = self._runner.bus.end_offsets(topic)
            mine = [partition for partition in assigned if partition.topic == topic]
            begins = {} if committed.keys() >= set(mine) else self._runner.bus.begin_offsets(topic)
            for partition in mine:
                lag[partition] = max(ends[partition] - committed.get(partition, begins.get(partition, 0)), 0)
        return lag

    def _given_up_on(self) -> dict[str, int]:
        """How many messages each dead-letter topic of the service holds, replayed ones included."""
        bus, held = self._runner.bus, {}
        for topic in self._runner.dead_letter_topics:
            held[topic] = sum(bus.end_offsets(topic).values()) - sum(bus.begin_offsets(topic).values())
        return held


class _Metrics(Collector):
    """The numbers of a runner, read when they are asked for."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterable[Metric]:
        return exposed(self._health.names["service"], self._health.figures())


def serve(
    start: Callable[[], Runner],
    settings: HttpSettings | None = None,
    stop: threading.Event | None = None,
    doors: Mapping[str, CountedDoor] | None = None,
    of: ServiceSettings | None = None,
) -> None:
    """Run until SIGTERM or SIGINT, then drain: finish what was taken, flush, commit, leave the group.

    `start` is called again while it finds something unavailable: a service may come up before what it needs. The
    signals set `stop`, for a service that can cut short what it is doing. `doors` answer at their paths from the first
    moment. `of` has what else it tells of itself. Raises `UserError` for an address that cannot be listened on.
    """
    stop = stop or threading.Event()
    settings, doors = settings or HttpSettings(), doors or {}
    with (
        stopped_by_signals(stop),
        level_by_signals(of.logs if of else LogSettings()),
        listening(settings.host, settings.port, starting("it has not started"), doors) as endpoint,
    ):
        while not stop.is_set():
            try:
                runner = start()
            except Unavailable as error:
                log.warning("cannot start yet", error=str(error), retry_s=_RESTART_S)
                endpoint.pages = starting(str(error))
                stop.wait(_RESTART_S)
                continue
            manifest = manifest_of(runner.service.name, settings.commit, of, runner.service.parts(), runner.clock)
            with (
                closing(Announced(runner, manifest)) as announced,
                traced(runner, settings, of.traces if of else TraceSettings()) as spans,
            ):
                health = Health(runner, settings, stop, (*doors.values(), announced, *spans), manifest)
                endpoint.pages = health.pages
                with health.sampling() if endpoint.port is not None else nullcontext():
                    runner.run(stop)


@contextmanager
def traced(runner: Runner, settings: HttpSettings, traces: TraceSettings) -> Iterator[Sequence[Counts]]:
    """Let a runner record spans, where there is an endpoint for them."""
    if traces.endpoint is None:
        yield ()
        return
    from tradeloop.common.runtime.otlp import OtlpSpans  # which few need

    names = names_of(runner.service.name, settings)
    with closing(OtlpSpans(names, traces)) as spans:
        runner.trace(Tracer(runner.service.name, runner.clock, spans.add, traces.share))
        yield (spans,)


def names_of(service: str, settings: HttpSettings) -> dict[str, str]:
    """The names of a service and of what runs there."""
    return {"service": service, "version": version_of(service), "commit": settings.commit}


def starting(reason: str) -> Mapping[str, Callable[[], Page]]:
    """The pages of a service that waits for what it needs to start: alive, but no more."""
    not_ready = _json(_UNAVAILABLE, {"ready": False, "reasons": [reason]})
    alive = _json(_OK, {"live": True})
    return {"/live": lambda: alive, **dict.fromkeys(("/ready", "/metrics", "/build"), lambda: not_ready)}


def _json(status: HTTPStatus, content: Mapping[str, object]) -> Page:
    return Page(status, "application/json", json.dumps(content).encode() + b"\n")
