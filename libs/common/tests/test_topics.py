"""The catalogue, and ids that follow from what they name."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradeloop.common import messages
from tradeloop.common.arrays import shortest
from tradeloop.common.market import iso, spoken
from tradeloop.common.messages import (
    BackfillCompleted,
    Message,
    ModelActivated,
    OrderUpdated,
    TrainingProgressed,
    Transition,
)
from tradeloop.common.messages.topics import CATALOGUE, dead_letter_topic, derived_id, event_id, retry_topic, topic_of

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def test_every_message_has_exactly_one_topic_and_every_topic_a_version() -> None:
    concrete = {
        value
        for name, value in vars(messages).items()
        if isinstance(value, type) and issubclass(value, Message) and value is not Message and not name.startswith("_")
    }
    assert {topic.message for topic in CATALOGUE.values()} == concrete
    assert all(topic.name.endswith(".v1") and topic is topic_of(topic.message) for topic in CATALOGUE.values())
    assert all(topic.writers and topic.readers for topic in CATALOGUE.values())


def test_ids_are_uuid5_of_topic_and_identity() -> None:
    message = TrainingProgressed(run_id="r", strategy="s", step=1, total=2)
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "https://tradeloop.dev/events")
    assert event_id(message) == str(uuid.uuid5(namespace, "training.progressed.v1|r|1"))
    assert uuid.UUID(event_id(message)).version == 5
    assert derived_id("order", 1, "ü") == str(uuid.uuid5(namespace, "order|1|ü"))
    assert event_id(message) != event_id(message.model_copy(update={"step": 2}))


def test_a_copy_of_a_message_does_not_keep_its_encoding() -> None:
    order = OrderUpdated(
        universe="u", portfolio="p", account="paper", order_id="o", decision_time=T0, instrument="x:Y", side="buy",
        quantity=1.0, status="working",
    )  # fmt: skip
    first = order.encode()
    filled = order.model_copy(update={"status": "filled", "filled_quantity": 1.0})
    assert b'"filled"' in filled.encode()
    assert order.encode() is first
    assert order == OrderUpdated.model_validate_json(first), "an encoding is no part of what a message says"
    assert OrderUpdated.model_validate_json(first).encode() == first


def test_H5_a_transition_says_only_what_follows_from_nothing_else() -> None:
    """No older record is lost by it: what they have, they keep, and what is left out is at its default."""
    fields: dict[str, Any] = {
        "universe": "u", "portfolio": "p", "decision_time": T0, "time": T0, "action": (0.5,), "executed": (0.25,),
        "reward": 0.1, "components": {"pnl": 0.1}, "terminated": False, "reward_id": "rw", "equity_prev": 1.0,
        "equity": 1.1,
    }  # fmt: skip
    brief = Transition(**fields, account=shortest(np.array([0.25, 1 / 3, 0.1, 0.0])))
    assert brief.encode().endswith(b'"equity_prev":1.0,"equity":1.1}')
    assert b'"account":[0.25,0.33333334,0.1,0.0],' in brief.encode()
    assert Transition.model_validate_json(brief.encode()) == brief
    whole = brief.model_copy(update={"observation": (1.0,), "model": "m"})
    assert Transition.model_validate_json(whole.encode()) == whole


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1))
def test_the_shortest_decimals_are_the_same_float32(values: list[float]) -> None:
    exact = np.array(values, dtype=np.float32)
    assert (np.array(shortest(exact.astype(np.float64)), dtype=np.float32) == exact).all()


def test_a_copy_of_a_message_does_not_keep_its_id() -> None:
    message = TrainingProgressed(run_id="r", strategy="s", step=1, total=2)
    first = event_id(message)
    assert event_id(message) is first, "it is computed once"
    assert event_id(message.model_copy(update={"step": 2})) != first
    assert message == TrainingProgressed(run_id="r", strategy="s", step=1, total=2), "an id is no part of what it says"
    assert b"event id" not in message.encode()


def test_equal_times_of_different_zones_keep_their_own_words() -> None:
    there = T0.astimezone(timezone(timedelta(hours=9)))
    assert there == T0
    for _ in range(2):
        assert (iso(T0), iso(there)) == (T0.isoformat(), there.isoformat())
        assert (spoken(T0), spoken(there)) == (str(T0), str(there))


def test_nan_is_refused_and_unknown_fields_are_ignored() -> None:
    with pytest.raises(ValueError, match="finite"):
        TrainingProgressed(run_id="r", strategy="s", step=1, total=2, metrics={"x": float("nan")})
    text = b'{"run_id": "r", "strategy": "s", "step": 1, "total": 2, "added_later": [1]}'
    assert TrainingProgressed.model_validate_json(text).step == 1


def test_traces_follow_a_bar_and_requests_have_their_own() -> None:
    activated = ModelActivated(universe="u", portfolio="p", time=T0, model="m", version="1", model_id="x")
    order = OrderUpdated(
        universe="u", portfolio="p", account="paper", order_id="o", decision_time=T0, instrument="x:Y", side="buy",
        quantity=1.0, status="working",
    )  # fmt: skip
    assert activated.trace == order.trace
    assert BackfillCompleted.__name__ in {topic.message.__name__ for topic in CATALOGUE.values()}


def test_names_of_retry_and_dead_letter_topics() -> None:
    assert retry_topic("a.v1", "g") == "a.v1.retry.g"
    assert dead_letter_topic("a.v1", "g") == "a.v1.dlq.g"
