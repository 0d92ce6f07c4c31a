"""The log: what each line says by itself, what none says, and how its level changes while a service runs."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.waiting import until
from tradeloop.common.addresses import address, hide
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import ManualClock
from tradeloop.common.messages import Message, PortfolioMarked
from tradeloop.common.messages.topics import event_id, specs
from tradeloop.common.runtime import logs
from tradeloop.common.runtime.headers import trace_id
from tradeloop.common.runtime.levels import LogSettings, level_by_signals
from tradeloop.common.runtime.logs import change_level, configure_logging
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults

T0 = datetime(2024, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    factory, root = logging.getLogRecordFactory(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.setLogRecordFactory(factory)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    change_level(logging.INFO)
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


class Talks(ServiceDefaults):
    """Says a line of ours and one of a library's about each message, and one about none."""

    name = "talks"
    consumes = (PortfolioMarked,)

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        structlog.get_logger().info("ours", portfolio="another")
        logging.getLogger("a.library").warning("theirs")
        return ()

    def advance(self) -> Iterable[Message]:
        structlog.get_logger().info("about none")
        return ()


def mark(portfolio: str = "p") -> PortfolioMarked:
    numbers = {"cash": 1.0, "equity": 1.0, "peak_equity": 1.0, "drawdown": 0.0}
    return PortfolioMarked(universe="u", portfolio=portfolio, time=T0, state="active", positions=(), **numbers)


def handle_one(*messages: Message) -> None:
    bus = MemoryBus()
    bus.create_topics(specs({}))
    for message in messages:
        publish(bus.producer(), message, "test")
    runner = Runner(Talks(), bus, ManualClock(T0), RunPolicy(commit_interval_s=0.0))
    runner.step()
    runner.close()


def test_each_line_within_a_message_says_which_one(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("plain")  # without the hooks of a process
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], structlog.processors.JSONRenderer()])
    message = mark()
    handle_one(message)
    said = capsys.readouterr().err.splitlines()
    ours = json.loads(said[0])
    where = {"topic": "execution.portfolio.v1", "offset": 0, "service": "talks", "event_id": event_id(message)}
    about = {"trace_id": trace_id(message), "universe": "u", "portfolio": "another", "time": T0.isoformat()}
    assert ours.items() >= (where | about).items(), "what the line says itself stands"
    assert "portfolio=p" in said[1]
    assert f"trace_id={trace_id(message)}" in said[1], "a library's too"
    assert json.loads(said[2]).keys() == {"event", "level", "timestamp"}, "nothing of what was handled before"
    assert len(said) == 3, "and nothing for each message by itself"


def test_signals_change_the_level_and_it_returns(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("plain")
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGUSR2)}
    with level_by_signals(LogSettings(level="warning", debug_s=300)):
        handle_one(mark())
        assert capsys.readouterr().err.count("ours") == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: logs.level == logging.DEBUG)
        handle_one(mark("p"), mark("q"))
        os.kill(os.getpid(), signal.SIGUSR2)
        until(lambda: logs.level == logging.WARNING)
        handle_one(mark())
    said = capsys.readouterr().err
    assert said.count("handled ") == 2, "a line for each message"
    assert "offset=0" in said
    assert f"by=SIGUSR1 for_s=300.0 may_send='user {os.getuid()} and root' to=debug" in said
    assert "by=SIGUSR2" in said
    assert not logging.getLogger("urllib3").isEnabledFor(logging.DEBUG)
    with level_by_signals(LogSettings(debug_s=0.01)):
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: "the usual one again" in capsys.readouterr().err)
        assert logs.level == logging.INFO
    assert {signum: signal.getsignal(signum) for signum in before} == before


PASSWORD, TOKEN = "Tr0ub4dor&3/äöü?", "tk-0123456789abcdef"
LEAKS = """
import logging, os, sys, threading, traceback, warnings
from dataclasses import dataclass
import structlog
from pydantic import BaseModel, SecretStr
from pydantic_settings import SettingsConfigDict
from tradeloop.common.runtime.logs import configure_logging
from tradeloop.common.settings import EnvironmentSettings, load_settings

class Kafka(BaseModel):
    sasl_password: SecretStr

class Settings(EnvironmentSettings):
    model_config = SettingsConfigDict(env_prefix="LEAKS_")
    kafka: Kafka
    url: SecretStr
    registry: dict[str, object]
    roles: dict[str, SecretStr] = {}

@dataclass
class Client:
    given: str

configure_logging()
settings = load_settings(Settings)
password, token = settings.kafka.sasl_password.get_secret_value(), settings.roles["a"].get_secret_value()
log = structlog.get_logger()
log.info("by type", secret=settings.kafka.sasl_password, deep={"a": [settings.kafka, {"b": settings.url}]})
log.info(f"by value {password} and {token}", client=Client(password), within={"x": [password.encode(), {token: 1}]})
log.info("by url", url=settings.url.get_secret_value(), registry=settings.registry)
log.info("by name", password="short", headers={"Authorization": "Basic " + "abcdefgh", "X-Api-Key": "short"})
library = logging.getLogger("library")
library.warning("signs in with %r", {"password": "short", "token": token})
library.warning("%s", f"GET /x?y=1 Authorization: Bearer {'opaque' * 3}")
library.error("too few %s %s", password)
own = logging.getLogger("own")
own.propagate = False
own.addHandler(logging.StreamHandler(sys.stderr))
try:
    raise ValueError(f"cannot sign in as {password}")
except ValueError:
    own.exception("with a handler of its own: %s", token)
    log.exception("ours")
warnings.warn(f"deprecated: {password}")
def fails():
    raise RuntimeError(f"redis:6379,password=short {token}")
thread = threading.Thread(target=fails)
thread.start()
thread.join()
raise SystemError(password)
"""


def test_no_line_has_a_secret(tmp_path: Path) -> None:
    encoded = "Tr0ub4dor%263%2F%C3%A4%C3%B6%C3%BC%3F"
    variables = {
        "LEAKS_KAFKA__SASL_PASSWORD": PASSWORD,
        "LEAKS_URL": f"postgresql://me:{encoded}@here/d?sslpassword=short",
        "LEAKS_REGISTRY": json.dumps({"path": f"postgresql://me:{encoded}@here/d"}),
        "LEAKS_ROLES": json.dumps({"a": TOKEN}),
    }
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", LEAKS], env=os.environ | variables, capture_output=True, text=True
    )
    for secret in (PASSWORD, encoded, TOKEN, "short", "opaque", "abcdefgh"):
        assert secret not in done.stderr, secret
    assert done.stdout == ""
    own = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert own[0] == "with a handler of its own: ***"
    assert own[-1] == "ValueError: cannot sign in as ***"
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["event"] for line in said[:4]] == ["by type", "by value *** and ***", "by url", "by name"]
    assert said[0]["secret"] == said[0]["deep"]["a"][1]["b"] == "***"
    assert said[1]["client"] == "Client(given='***')"
    assert said[2]["registry"] == {"path": "postgresql://me:***@here/d"}
    assert said[3]["headers"] == {"Authorization": "***", "X-Api-Key": "***"}
    assert [line["level"] for line in said[-2:]] == ["error", "critical"]
    assert said[-2]["thread"].startswith("Thread-")
    assert any("deprecated: ***" in line["event"] for line in said)


def test_a_secret_is_known_however_a_url_encodes_it() -> None:
    hide(["redis://me:p%40ss/word+long@h", "short"])
    for text in ("p@ss/word+long", "p%40ss/word+long", "p%40ss%2Fword%2Blong"):
        assert address(f"x {text} y") == "x *** y", text
    assert address("a short word") == "a short word"
