"""The manifest of a start: what it follows from, where it is shown, and a bus that is away."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NoReturn
from urllib.request import urlopen

import pytest
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from tests.waiting import until
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import BusUnavailable, LogPosition
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.messages import Message, ServiceStarted, SignalGenerated, TrainingProgressed
from tradeloop.common.messages.topics import specs
from tradeloop.common.runtime.headers import MANIFEST
from tradeloop.common.runtime.health import HttpSettings, serve
from tradeloop.common.runtime.manifest import Announced, manifest_of
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages, all_records
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.runtime.settings import ServiceSettings

T0 = datetime(2024, 3, 1, 12, tzinfo=UTC)
POLICY = RunPolicy(commit_interval_s=0.0)


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="MANIFEST_TEST_")

    url: SecretStr = SecretStr("postgresql://me:first-password@here/d")
    registry: Mapping[str, str] = {}
    window: int = 1


def manifest(settings: Settings, parts: Mapping[str, Sequence[str]] | None = None) -> ServiceStarted:
    return manifest_of("execution", "c0ffee", settings, parts or {"strategies": ["b", "a"]}, ManualClock(T0))


def test_a_manifest_follows_from_what_decides_and_from_no_secret() -> None:
    one = manifest(Settings())
    assert (one.service, one.commit, one.started, one.parts) == ("execution", "c0ffee", T0, {"strategies": ("a", "b")})
    assert one.version != "unknown"
    later = manifest_of("execution", "c0ffee", Settings(), {"strategies": ["a", "b"]}, SystemClock())
    assert later.manifest == one.manifest, "not from the time, nor from an order"
    other_secrets = Settings(
        url=SecretStr("postgresql://me:other-password@here/d"), registry={"path": "redis://:third-password@h"}
    )
    assert manifest(other_secrets).manifest == manifest(Settings(registry={"path": "redis://:4th-password@h"})).manifest
    louder = Settings.model_validate({"logs": {"level": "debug"}, "traces": {"endpoint": "http://c:4318"}})
    assert manifest(louder).manifest == one.manifest, "how much it tells is not what it does"
    changed = [manifest(Settings(window=2)), manifest(Settings(), {"strategies": ["a"]})]
    assert len({one.manifest, *(each.manifest for each in changed)}) == 3
    assert "password" not in one.encode().decode()


class Answers(ServiceDefaults):
    name = "execution"
    consumes = (TrainingProgressed,)

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        return (SignalGenerated(universe="u", portfolio="p", time=T0, instruments=(), targets=()),)

    def parts(self) -> Mapping[str, Sequence[str]]:
        return {"strategies": ["example"]}


def test_a_service_publishes_its_manifest_and_names_it_in_its_records() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    bus, stop, shown = MemoryBus(), threading.Event(), list[str]()
    bus.create_topics(specs({}))
    publish(bus.producer(), TrainingProgressed(run_id="r", strategy="s", step=1, total=2), "test")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    class Asked(Answers):
        def advance(self) -> Iterable[Message]:
            build = json.loads(urlopen(f"http://127.0.0.1:{port}/build").read())
            metrics = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
            shown[:] = [build["manifest"], metrics]
            stop.set()
            return ()

    try:
        serve(lambda: Runner(Asked(), bus, SystemClock(), POLICY), HttpSettings(port=port), stop, of=Settings())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    [started] = all_messages(bus, ServiceStarted)
    assert started.parts == {"strategies": ("example",)}
    [record] = all_records(bus, "inference.signals.v1")
    assert record.headers[MANIFEST] == started.manifest == shown[0]
    assert f'tradeloop_manifest_info{{commit="{started.commit}",manifest="{started.manifest}"' in shown[1]


class Away(MemoryBus):
    """A bus that takes nothing."""

    def producer(self) -> NoReturn:
        raise BusUnavailable("the bus is away")


def test_a_bus_that_is_away_holds_nobody_up_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    bus = MemoryBus()
    bus.create_topics(specs({}))
    runner = Runner(Answers(), bus, SystemClock(), POLICY)
    runner.bus = Away()
    announced = Announced(runner, manifest(Settings()))
    until(lambda: "not published yet" in capsys.readouterr().out)
    assert [figure.value for figure in announced.figures()] == [1, 0.0]
    announced.close()
    assert "the manifest was not published" in capsys.readouterr().out
    runner.close()
