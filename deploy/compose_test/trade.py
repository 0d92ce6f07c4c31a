"""Questions to a running stack, through the ports that it publishes on 127.0.0.1."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from deploy.compose_test.engine import Failed, say
from tradeloop.cli.client.client import Client
from tradeloop.cli.source import Source
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import BusError
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import Unavailable
from tradeloop.common.evaluation.backtest import backtest
from tradeloop.common.evaluation.parity import difference_from_backtest
from tradeloop.common.messages import (
    BackfillCompleted,
    BackfillRequested,
    ModelReady,
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    PreprocessCompleted,
    PreprocessRequested,
    ReplayRequested,
    SignalGenerated,
    TrainingRequested,
    Transition,
)
from tradeloop.common.messages.topics import derived_id, topic_of
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import model_name
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy
from tradeloop.training.adapters.random_policy import random_policy

TRAINING_STEPS = 16_384
PART = 60
"""Frames that are asked for at once, where there are as many as something takes."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the stack is, on 127.0.0.1."""

    kafka: int
    mlflow: int
    http: Mapping[str, int]
    """The port of each service."""
    passwords: Mapping[str, str] = field(repr=False)
    """The passwords of deploy/.env, by its variables."""

    @property
    def bus(self) -> KafkaSettings:
        """How a person signs in to Kafka."""
        return self.bus_of("tradeloop", "KAFKA_PASSWORD")

    def bus_of(self, user: str, password: str) -> KafkaSettings:
        """How a user signs in to Kafka, with the password of this name."""
        return KafkaSettings(
            bootstrap_servers=f"localhost:{self.kafka}",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username=user,
            sasl_password=SecretStr(self.passwords[password]),
        )

    @property
    def models(self) -> str:
        """MLflow's address, with what a person signs in with."""
        return f"http://tradeloop:{self.passwords['MLFLOW_PASSWORD']}@127.0.0.1:{self.mlflow}"


def eventually(what: str, holds: Callable[[], bool], timeout_s: float) -> None:
    """Wait until something holds. Raises `Failed` when it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.5)


def get(port: int, path: str) -> tuple[int, Any]:
    """Status and body, decoded where it is JSON, of an HTTP endpoint; status 0 where nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    except OSError:
        return 0, ""
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode()


def look(ports: Ports, commit: str) -> None:
    """See what each service says about itself."""
    for service, port in ports.http.items():
        for path in ("/live", "/ready", "/metrics"):
            status, body = get(port, path)
            if status != 200:
                raise Failed(f"{service} {path}: {status} {body}")
        status, build = get(port, "/build")
        if status != 200 or build["service"] != service or build["commit"] != commit:
            raise Failed(f"{service} /build: {status} {build}, not commit {commit}")
        say(f"{service} is ready: {build}")


def closed_to_strangers(ports: Ports) -> None:
    """See that nobody gets in without a password. Raises `Failed`."""
    stranger = MlflowModelStore(f"http://127.0.0.1:{ports.mlflow}")
    bus = KafkaBus(KafkaSettings(bootstrap_servers=f"localhost:{ports.kafka}", request_timeout_s=3.0))
    asked: list[tuple[str, Callable[[], object]]] = [
        ("MLflow", stranger.versions),
        ("Kafka", lambda: bus.partitions("market.bars.v1")),
    ]
    try:
        for name, ask in asked:
            try:
                ask()
            except Unavailable as error:
                say(f"{name} refuses a stranger: {error}")
            else:
                raise Failed(f"{name} answers without a password")
    finally:
        bus.close()


def closed_to_each_other(ports: Ports) -> None:
    """See that a service cannot publish in another's name. Raises `Failed`."""
    topic = topic_of(SignalGenerated).name
    bus = KafkaBus(ports.bus_of("preprocess", "PREPROCESS_PASSWORD"))
    producer = bus.producer()
    try:
        producer.publish(topic, "nobody", b"{}", {})
        producer.flush()
    except BusError as error:
        if "authorization failed" not in str(error):
            raise
        say(f"Kafka refuses preprocess what is inference's: {error}")
    else:
        raise Failed(f"preprocess may publish on {topic}")
    finally:
        producer.close()
        bus.close()


def portfolio_of(source: Source, strategy: Strategy) -> Portfolio:
    """The portfolio of the test, with a model of random weights: it is sure to trade, a briefly trained one not."""
    return source.portfolio(strategy).model_copy(update={"model_alias": "proof"})


class Feed:
    """Has bars replayed, a part after the other, for as long as it is open: they flow however long something takes."""

    def __init__(self, bus: KafkaBus, source: Source, first: int, speed: float) -> None:
        self.sent, self._source, self._first, self._speed = first, source, first, speed
        self._client, self._closed = Client(bus, SystemClock(), say), threading.Event()
        self._ask()
        self._thread = threading.Thread(target=self._go_on, name="feed", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        universe, end = self._source.universe, min(self.sent + PART, len(self._source.bars))
        identity = derived_id("compose", universe.name, self.sent)
        part = self._source.range(self.sent, end)
        self._client.send(ReplayRequested(request_id=identity, universe=universe, range=part, speed=self._speed))
        self.sent = end

    def _go_on(self) -> None:
        while not self._closed.wait(0.5):
            marked = self._first + len(self._client.read(PortfolioMarked))
            if self.sent - marked <= PART // 2 and self.sent < len(self._source.bars):
                self._ask()

    def close(self) -> None:
        """Ask for no more bars; those that were asked for come."""
        self._closed.set()
        self._thread.join()
        self._client.close()


def trade(
    ports: Ports,
    source: Source,
    strategy: Strategy,
    bars_path: str,
    frames: int,
    interrupt: Callable[[Callable[[], int]], None],
    *,
    trains: bool = True,
    speed: float | None = None,
) -> None:
    """Train on the first bars; replay the last `frames`, with an interruption, and hold that against a backtest.

    `interrupt` may ask how many frames are marked. A stack without a training service trades all the same: the model is
    one of random weights either way. With a `speed` bars are replayed at that, and as many of them as come while the
    interruption goes on.
    """
    bus = KafkaBus(ports.bus)
    client = Client(bus, SystemClock(), say)
    try:
        universe, portfolio = source.universe, portfolio_of(source, strategy)
        first = len(source.bars) - frames
        trained_on = source.range(0, first)
        began = time.monotonic()
        request = derived_id("compose", universe.name)
        backfill = BackfillRequested(
            request_id=request, universe=universe, files=dict.fromkeys(universe.ids, bars_path)
        )
        stored = client.ask(backfill, BackfillCompleted, timeout_s=120)
        say(f"ingest stored {stored.bars} bars of {universe.name}")
        computed = client.ask(
            PreprocessRequested(request_id=request, universe=universe, strategy=strategy.name, range=trained_on),
            PreprocessCompleted,
            timeout_s=180,
        )
        say(f"preprocess wrote {computed.rows} rows of features")
        model = model_name(strategy.name, universe.name)
        if trains:
            training = TrainingRequested(
                request_id=request,
                strategy=strategy.name,
                universe=universe,
                range=trained_on,
                steps=TRAINING_STEPS,
                portfolio=portfolio.model_dump_json(),
            )
            ready = client.ask(training, ModelReady, timeout_s=420)
            say(f"training registered {ready.model} version {ready.version} after {time.monotonic() - began:.0f} s")
        features, models = source.features(strategy), MlflowModelStore(ports.models)
        policy = random_policy(strategy, universe.name, features[:first], gain=20.0)
        models.set_alias(
            model, portfolio.model_alias, models.register(model, policy, metrics={}, parameters={}).version
        )

        began = time.monotonic()
        period = source.range(first, len(source.bars))
        feed = None
        if speed is None:
            client.send(ReplayRequested(request_id=request, universe=universe, range=period))
        else:
            feed = Feed(bus, source, first, speed)

        def marked() -> int:
            return len(client.read(PortfolioMarked))

        early = PART // 2 if feed else frames // 3
        eventually(f"{early} frames", lambda: marked() >= early, 240)
        say(f"{marked()} of {frames} frames are marked")
        try:
            interrupt(marked)
        finally:
            if feed is not None:
                feed.close()
                frames = feed.sent - first
        eventually("execution ready again", lambda: get(ports.http["execution"], "/ready")[0] == 200, 120)
        say("execution is ready again")
        eventually("all frames", lambda: marked() >= frames, 300)
        eventually("all decisions", lambda: len(client.read(SignalGenerated)) >= frames, 60)
        say(f"{frames} frames are marked after {time.monotonic() - began:.0f} s")

        traded = source.bars.slice(first, first + frames)
        expected = backtest(portfolio, strategy, traded, features[first : first + frames], OnnxPolicy(policy))
        marks, fills, orders = client.read(PortfolioMarked), client.read(OrderFilled), client.read(OrderUpdated)
        signals, transitions = client.read(SignalGenerated), client.read(Transition)
        decided = sum(not signal.hold for signal in signals if signal.time < marks[-1].time)
        if not len(marks) == len(signals) == frames or len(transitions) != decided or not fills:
            raise Failed(
                f"{frames} frames gave {len(marks)} marks, {len(signals)} signals, {len(transitions)} transitions and "
                f"{len(fills)} fills: nothing may be missing and nothing doubled"
            )
        difference = difference_from_backtest(marks, fills, traded, expected)
        say(
            f"{len(marks)} marks, {len(signals)} signals, {len({o.order_id for o in orders})} orders, {len(fills)} "
            f"fills, {len(transitions)} transitions; equity equals the backtest's to {difference:.1e}"
        )
    finally:
        client.close()
        bus.close()
