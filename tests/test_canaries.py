"""A secret in an error of a library is in no message, no dead letter, no page and no output of the command.

Real libraries make the errors, as far as they quote what they were given; `libs/common/tests/test_logs.py` is about
logs, and `tests/test_native.py` looks for the passwords of a whole stack.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import ccxt
import pytest
import requests
from alpaca.common.exceptions import APIError
from confluent_kafka import KafkaException, Producer
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from structlog.testing import capture_logs

from services.execution.tests.world import World, frame
from tradeloop.cli import main as command
from tradeloop.common.addresses import hide
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.messages import Message, ModelActivated
from tradeloop.common.messages.topics import dead_letter_topic, topic_of
from tradeloop.common.runtime.health import Health, HttpSettings
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.runtime.standing import Standing
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.domain.inputs import VenueFill

KNOWN = "cnry+5f2d/8a1b-9c7e"
"""A secret that the process was told: its value is looked for."""
SHAPED = "cnry-of-somebody-else"
"""One that it was not told: it is found where it stands as a URL, an option or a header has it."""
CLOSED = "127.0.0.1:1"
"""A port on which nobody listens."""
T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Told(BaseModel):
    port: int


def of_pydantic() -> None:
    Told.model_validate({"port": KNOWN})


def of_a_statement() -> None:
    with create_engine("sqlite://").connect() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:secret)"), {"secret": KNOWN})


def of_a_connection() -> None:
    raise ConnectionError(f"postgresql://trader:{SHAPED}@db/ledger?sslpassword={SHAPED} does not answer")


def of_kafka() -> None:
    Producer({"bootstrap.servers": CLOSED, "security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": KNOWN})


def of_an_exchange() -> None:
    raise ccxt.AuthenticationError(f'binance {{"code":-2014,"msg":"API-key {KNOWN} is invalid"}} apiKey={SHAPED}&s=1')


def of_alpaca() -> None:
    raise APIError(json.dumps({"code": 403, "message": f"forbidden for {KNOWN}"}))  # type: ignore[no-untyped-call]


def of_a_webhook() -> None:
    requests.post(f"http://{CLOSED}/services/{KNOWN}", timeout=1)


def of_a_signed_request() -> None:
    requests.get(f"http://me:{SHAPED}@{CLOSED}/v1?token={SHAPED}&n=1", timeout=1)


def of_headers() -> None:
    raise RuntimeError(f"refused: {{'Authorization': 'Bearer {SHAPED}', 'X-Api-Key': '{SHAPED}'}}")


def of_a_user() -> None:
    raise UserError(f"massive refuses {KNOWN}: correct its key")


LEAKS: Sequence[Callable[[], None]] = (
    of_pydantic,
    of_a_statement,
    of_a_connection,
    of_kafka,
    of_an_exchange,
    of_alpaca,
    of_a_webhook,
    of_a_signed_request,
    of_headers,
    of_a_user,
)


@pytest.fixture(params=LEAKS, ids=lambda leak: leak.__name__)
def leak(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """What raises an error that has a secret in it."""
    hide([KNOWN])
    found: Callable[[], None] = request.param
    with pytest.raises((Exception, KafkaException)) as caught:
        found()
    assert KNOWN in str(caught.value) or SHAPED in str(caught.value), "else nothing is shown by it"
    with capture_logs():
        yield found


class Leaking(ServiceDefaults):
    """Fails at each message, and has a portfolio that failed."""

    name = "leaking"
    consumes: tuple[type[Message], ...] = (ModelActivated,)

    def __init__(self, leak: Callable[[], None]) -> None:
        self._leak = leak

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        self._leak()
        return ()

    def not_ready(self) -> Iterable[str]:
        return [said(self._leak)]

    def standings(self) -> Iterable[Standing]:
        yield Standing("u", "p", None, None, None, T0, said(self._leak))


def said(leak: Callable[[], None]) -> str:
    try:
        leak()
    except Exception as error:  # noqa: BLE001
        return str(error)
    raise AssertionError("it raises")


def nothing_in(shown: str) -> bool:
    return not [secret for secret in (KNOWN, SHAPED) if secret in shown]


def test_no_dead_letter_and_no_page_has_it(leak: Callable[[], None]) -> None:
    bus, clock = MemoryBus(), ManualClock(T0)
    runner = Runner(Leaking(leak), bus, clock, RunPolicy(attempts=1))
    publish(
        bus.producer(),
        ModelActivated(universe="u", portfolio="p", time=T0, model="m", version="1", model_id="x"),
        "test",
    )
    pump([runner])
    topic = dead_letter_topic(topic_of(ModelActivated).name, "leaking")
    [letter] = [one for place, end in bus.end_offsets(topic).items() for one in bus.read(place, 0, end)]
    assert len(letter.headers["tl_error"]) > 5
    assert nothing_in(str(letter.headers))
    page = Health(runner, HttpSettings(), threading.Event()).ready()
    assert b"p" in page.body
    assert nothing_in(page.body.decode())


def test_no_event_of_a_portfolio_has_it(leak: Callable[[], None]) -> None:
    class LeakingVenue(PaperVenue):
        def fills(self, bar: Any) -> Sequence[VenueFill]:
            leak()
            raise AssertionError("it raises")

    world = World(venue=LeakingVenue)
    world.give(frame(0))
    world.pass_time(10.0)
    assert world.said("quarantined")
    assert nothing_in(" ".join(message.encode().decode() for message in world.out))


@pytest.mark.parametrize("debug", ["", "1"])
def test_no_command_prints_it(
    leak: Callable[[], None], debug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRADELOOP_DEBUG", debug)
    monkeypatch.setattr(command, "app", lambda arguments: leak())
    assert command.main(["status"]) in (1, 2)
    shown = capsys.readouterr()
    assert "tradeloop: " in shown.err
    assert ("Traceback" in shown.err) == bool(debug)
    assert nothing_in(shown.out + shown.err)
