"""Records, orders, fills and outputs as rows, in the order of the columns that the statements name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from pydantic import ConfigDict, TypeAdapter

from tradeloop.common.market import to_us
from tradeloop.common.messages import Message, OrderFilled, OrderUpdated
from tradeloop.common.messages.topics import CATALOGUE, topic_of
from tradeloop.execution.ports import Change
from tradeloop.execution.record import BookRecord, Kill, Quarantine

Row = tuple[object, ...]

_STATE: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object], config=ConfigDict(ser_json_inf_nan="constants"))


def state_of(record: BookRecord) -> str:
    """The part of a record that has no columns of its own, as JSON. What is usual is left out."""
    state: dict[str, object] = {
        "book": record.book,
        "reward": record.reward_state,
        "working": [order.encode().decode() for order in record.working],
    }
    if record.quarantine is not None:
        state["quarantine"] = {"since_us": record.quarantine.since_us, "cause": record.quarantine.cause}
    if record.killed is not None:
        state["killed"] = asdict(record.killed)
    if record.heeded_us >= 0:
        state["heeded_us"] = record.heeded_us
    if record.live:
        state["live"] = True
    if record.catches_up:
        state["catches_up"] = True
    if record.left_out_us >= 0:
        state["left_out_us"] = record.left_out_us
    return _STATE.dump_json(state).decode()  # in a third of json's time


def record_of(revision: int, marked_us: int, decided_us: int, text: str, signal: str) -> BookRecord:
    """The record of a row. What an earlier release did not store is as in a new record."""
    state = json.loads(text)
    quarantine, killed = state.get("quarantine"), state.get("killed")
    return BookRecord(
        revision=revision,
        marked_us=marked_us,
        decided_us=decided_us,
        book=state["book"],
        reward_state=state["reward"],
        signal=signal.encode(),
        working=tuple(OrderUpdated.model_validate_json(order) for order in state["working"]),
        quarantine=Quarantine(**quarantine) if quarantine else None,
        killed=Kill(**killed) if killed else None,
        heeded_us=state.get("heeded_us", -1),
        live=state.get("live", False),
        catches_up=state.get("catches_up", False),
        left_out_us=state.get("left_out_us", -1),
    )


def orders_of(changes: Sequence[Change]) -> list[Row]:
    """Each order as the last of the changes left it."""
    last = {order.order_id: order for change in changes for each in change.effects.values() for order in each.orders}
    return [
        (
            order.order_id,
            order.portfolio,
            order.account,
            to_us(order.decision_time),
            order.instrument,
            order.side,
            order.quantity,
            order.filled_quantity,
            order.status,
        )
        for order in last.values()
    ]


def fills_of(changes: Sequence[Change]) -> list[Row]:
    return [_fill(fill) for change in changes for each in change.effects.values() for fill in each.fills]


def _fill(fill: OrderFilled) -> Row:
    return (
        fill.fill_id,
        fill.order_id,
        fill.portfolio,
        fill.account,
        to_us(fill.time),
        fill.instrument,
        fill.side,
        fill.quantity,
        fill.price,
        fill.fee,
        fill.reason,
    )


def outputs_of(changes: Sequence[Change]) -> list[Row]:
    """The outputs of each input that has any, as lines of topic and body."""
    return [
        (change.portfolio, input_id, change.after.revision, place, "\n".join(_lines(each.outputs)))
        for change in changes
        for place, (input_id, each) in enumerate(change.effects.items())
        if each.outputs
    ]


def _lines(outputs: Sequence[Message]) -> Iterator[str]:
    return (f"{topic_of(type(message)).name} {message.encode().decode()}" for message in outputs)


def messages_of(text: str) -> list[Message]:
    """The outputs of a row."""
    lines = (line.split(" ", 1) for line in text.split("\n"))
    return [CATALOGUE[topic].message.model_validate_json(body) for topic, body in lines]
