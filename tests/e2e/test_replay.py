"""`tradeloop replay` over real Kafka: on the topics of running services, then beside them and held against them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.worlds import World
from tradeloop.cli.main import main
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.clock import SystemClock
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.market import from_us
from tradeloop.common.messages import ModelActivated, SignalGenerated
from tradeloop.common.messages.topics import SERVICE_TOPICS, specs, topic_of
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.portfolio import portfolio_yaml
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import Service
from tradeloop.common.strategy import load
from tradeloop.execution.adapters.bus_history import BusHistory as ExecutionHistory
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.adapters.sql_ledger import SqlLedger
from tradeloop.execution.application import Execution
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.application import Inference
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.application import Ingest
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

TRADED = 200
BARS = 600


class Live(NamedTuple):
    """Services that run beside the test, and what they trade."""

    bus: KafkaBus
    models: MlflowModelStore
    world: World
    portfolio: Path


@contextmanager
def serving(bus: KafkaBus, world: World, folder: Path, models: MlflowModelStore) -> Iterator[None]:
    """Four services in a thread, from whose death the test does not recover."""
    clock, books = SystemClock(), [world.portfolio]
    bars = f"sqlite:///{folder / 'bars.db'}"
    pairs = [(world.universe, world.portfolio.strategy)]
    ledger = SqlLedger(f"sqlite:///{folder / 'ledger.db'}")
    services: list[Service] = [
        Ingest(SqlBarStore(bars, clock), read_blocks, BusFrames(bus), clock),
        Preprocess(pairs, load, SqlBarStore(bars, clock), MemoryFeatureStore(), clock, BusSent(bus, clock)),
        Inference(books, load, models, OnnxPolicy, BusHistory(bus), clock),
        Execution(books, load, PaperVenue, ledger, ExecutionHistory(bus), clock),
    ]
    runners = [Runner(service, bus, clock) for service in services]
    stop, died = threading.Event(), []

    def run() -> None:
        try:
            while not stop.is_set():
                if not sum(runner.step() for runner in runners):
                    stop.wait(0.001)
        except BaseException as error:  # noqa: BLE001  raised again below
            died.append(error)
        for runner in runners:
            runner.close()

    thread = threading.Thread(target=run, name="services")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not died


@pytest.fixture
def live(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    prefix = f"{tmp_path.parent.name}-{tmp_path.name}-".replace("_", "-")
    models_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for variable, value in {
        "TRADELOOP_KAFKA__BOOTSTRAP_SERVERS": kafka,
        "TRADELOOP_KAFKA__PREFIX": prefix,
        "TRADELOOP_DATABASE_URL": f"sqlite:///{tmp_path / 'bars.db'}",
        "TRADELOOP_MLFLOW_TRACKING_URI": models_uri,
        "COLUMNS": "120",
    }.items():
        monkeypatch.setenv(variable, value)
    world = World("solo", 1, TRADED, tmp_path / "files")
    models = MlflowModelStore(models_uri)
    register(models, world, world)
    portfolio = tmp_path / "solo.yaml"
    portfolio.write_text(portfolio_yaml(world.portfolio))
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka, prefix=prefix))) as bus:
        bus.create_topics([replace(spec, partitions=2) for spec in specs(SERVICE_TOPICS)])
        with serving(bus, world, tmp_path, models):
            yield Live(bus, models, world, portfolio)


def register(models: MlflowModelStore, world: World, trained_on: World) -> None:
    """Make what another world's bars would teach the policy that a world asks for."""
    manifest = trained_on.policy.manifest.model_copy(update={"universe": world.name})
    policy = replace(trained_on.policy, manifest=manifest)
    registered = models.register(world.model, policy, metrics={}, parameters={})
    models.set_alias(world.model, world.portfolio.model_alias, registered.version)


def correct(folder: Path, world: World) -> None:
    """Correct a bar that was traded, and one before it that its features were made of."""
    clock = SystemClock()
    with closing(SqlBarStore(f"sqlite:///{folder / 'bars.db'}", clock)) as store:
        for row in (5, BARS // 2):
            bar = world.bars.slice(row, row + 1)
            wrong = {name: getattr(bar, name) * 1.5 for name in ("open", "high", "low", "close")}
            store.write(world.universe.timeframe, replace(bar, **wrong), revision=1)


def test_what_was_traded_live_is_traded_again_and_compared(
    live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, command = live.world, ["replay", "--portfolio", str(live.portfolio)]
    beside = [*command, "--out", str(tmp_path), "--prefix"]
    (file,) = world.backfill().files.values()

    assert main(command) == 2
    assert "no 1h bars of universe solo are stored" in capsys.readouterr().err

    assert main([*command, "--bars", file]) == 0
    said = capsys.readouterr().out
    assert f"{BARS} bars to" in said
    assert "dead letters: 0" in said
    rows = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in said.splitlines() if line.startswith("  ")}
    signals = live.bus.end_offsets(topic_of(SignalGenerated).name)
    assert int(rows["bars"]) == int(rows["signals"]) == sum(signals.values()) == BARS
    assert int(rows["fills"]) > 50
    assert int(rows["transitions"]) == BARS - 1 - int(rows["held, warming up"])

    assert main(command) == 0
    assert "All 600 bars were traded already" in capsys.readouterr().err

    register(live.models, world, World("other", 1, TRADED, tmp_path))  # one that live never activated
    assert main([*beside, "check"]) == 0
    said = capsys.readouterr().out
    assert "Parity holds" in said
    assert "Largest relative difference of equity: 0.0e+00" in said
    assert (tmp_path / "check.ledger.db").exists()
    assert sum(live.bus.end_offsets(topic_of(SignalGenerated).name).values()) == BARS, "live is left alone"

    correct(tmp_path, world)
    assert main([*beside, "corrected"]) == 0, "what was decided is never re-made"
    assert "no longer holds" not in capsys.readouterr().err

    assert main([*beside, "check"]) == 2
    assert "--again" in capsys.readouterr().err

    late = from_us(int(world.bars.open_us[BARS - 60]))
    assert main([*beside, "late", "--from", late.isoformat()]) == 1
    shown = capsys.readouterr()
    assert "live's book did not start in this range" in shown.err
    assert "Parity is broken" in shown.out

    activated = ModelActivated(
        universe="solo",
        portfolio=world.portfolio.name,
        time=from_us(int(world.bars.close_us[BARS // 2])),
        model=world.model,
        version="2",
        model_id="another",
    )
    producer = live.bus.producer()
    publish(producer, activated, "test")
    producer.flush()
    assert main([*beside, "check", "--again"]) == 1
    said = capsys.readouterr().out
    first = next(line for line in said.splitlines() if line.startswith("Parity is broken"))
    assert f"SignalGenerated of solo-book, {activated.time:%Y-%m-%d %H:%M} UTC" in first
    assert "live and" in first
