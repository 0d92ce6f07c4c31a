"""`tradeloop kill` and `tradeloop resume`: stop what is traded at once, and trade on by a word of its own."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.cli.commands.topics import Servers
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.cli.client.client import Client
    from tradeloop.cli.client.kills import Answer

Names = Annotated[list[str] | None, typer.Argument(help="Names of portfolios.")]
Every = Annotated[bool, typer.Option("--all", help="All portfolios that execution or Kafka knows.")]
Account = Annotated[str | None, typer.Option("--account", help="All portfolios of an account.")]
Venue = Annotated[
    str | None, typer.Option("--venue", help="All portfolios with an instrument of a venue, whole portfolios.")
]
By = Annotated[str | None, typer.Option("--by", help="Who says so; without it, the user and the machine.")]
Within = Annotated[float, typer.Option("--within", min=0.1, help="Seconds to wait for what execution recorded.")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON object a line.")]


def kill(
    names: Names = None,
    every: Every = False,
    account: Account = None,
    venue: Venue = None,
    flatten: Annotated[
        bool, typer.Option("--flatten", help="Close all positions, too, at the next opens, until none is open.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, in your words; it is recorded.")] = "no reason given",
    by: By = None,
    within_s: Within = 15.0,
    as_json: Json = False,
    bootstrap_servers: Servers = None,
) -> None:
    """Cancel all working orders at once and send none any more, until `tradeloop resume`.

    Exit 1 when execution did not confirm all of it in time. To give it again is safe.
    """
    from tradeloop.cli.client import kills

    scope = kills.Scope(names or (), account, venue, every)
    with _client(bootstrap_servers) as client:
        answers = kills.kill(client, scope, by or _who(), reason, flatten, within_s)
    _tell(answers, within_s, as_json, "killed")


def resume(
    reason: Annotated[str, typer.Option("--reason", help="Why, in your words; it is recorded.")],
    names: Names = None,
    every: Every = False,
    account: Account = None,
    venue: Venue = None,
    by: By = None,
    within_s: Within = 15.0,
    as_json: Json = False,
    bootstrap_servers: Servers = None,
) -> None:
    """Trade on after `tradeloop kill`: decisions are taken again, from the next bar on."""
    from tradeloop.cli.client import kills

    if not reason.strip():
        raise UserError("--reason is empty: say why, since it is recorded")
    scope = kills.Scope(names or (), account, venue, every)
    with _client(bootstrap_servers) as client:
        answers = kills.resume(client, scope, by or _who(), reason, within_s)
    if not answers and not as_json:
        typer.echo("nothing to resume: none of these portfolios is killed, as far as Kafka knows")
    _tell(answers, within_s, as_json, "resumed")


@contextmanager
def _client(servers: str | None) -> Iterator[Client]:
    from tradeloop.cli.client.client import Client
    from tradeloop.cli.client.settings import kafka_bus
    from tradeloop.common.clock import SystemClock

    with kafka_bus(servers) as bus, closing(Client(bus, SystemClock(), lambda _: None)) as client:
        yield client


def _tell(answers: Sequence[Answer], within_s: float, as_json: bool, done: str) -> None:
    """Print what execution recorded. Exit 1 where it did not record all that was waited for."""
    for answer in answers:
        if as_json:
            typer.echo(json.dumps(_described(answer)))
        else:
            for line in _lines(answer, done):
                typer.echo(line)
    silent = [answer for answer in answers if answer.target.runs and not answer.whole]
    for answer in silent:
        typer.echo(
            f"{answer.target.portfolio}: NOT CONFIRMED within {within_s:g} s: execution obeys when it runs and reaches "
            "Kafka and its ledger; without a process of it nothing is ordered",
            err=True,
        )
    if silent:
        raise typer.Exit(1)


def _lines(answer: Answer, done: str) -> Iterator[str]:
    name, event, mark = answer.target.portfolio, answer.event, answer.mark
    if event is None:
        if not answer.target.runs:
            yield f"{name}: commanded; the execution that started last does not trade it, so no answer is waited for"
        return
    seen = f"at the bar of {mark.time:%Y-%m-%d %H:%M} UTC" if mark is not None else "before its first bar"
    yield f"{name}: {done} {seen}, {event.reason}"
    for order in answer.orders.values():
        act = "cancelled" if order.status == "cancelled" else "closes by"
        yield f"  {act}: {order.side} {order.quantity:,.10g} {order.instrument} ({order.order_id}, {order.status})"
    if missing := len(event.orders) - len(answer.orders):
        yield f"  {missing} orders more, which are not published yet: see `tradeloop book show {name}`"
    positions = [one for one in mark.positions if one.quantity != 0.0] if mark is not None else []
    for one in positions:
        yield f"  still open: {one.quantity:+,.10g} {one.instrument}, {one.quantity * one.mark_price:,.2f} at its mark"
    if not positions:
        yield "  no position is open"


def _described(answer: Answer) -> dict[str, object]:
    event, mark = answer.event, answer.mark
    return {
        "portfolio": answer.target.portfolio,
        "universe": answer.target.universe,
        "account": answer.target.account or None,
        "request": answer.request,
        "confirmed": answer.whole,
        "awaited": answer.target.runs,
        "recorded": event.reason if event else None,
        "orders": [
            {"order": one.order_id, "instrument": one.instrument, "side": one.side, "quantity": one.quantity}
            | {"status": one.status}
            for one in answer.orders.values()
        ],
        "marked": mark.time.isoformat() if mark else None,
        "positions": {one.instrument: one.quantity for one in (mark.positions if mark else ()) if one.quantity != 0.0},
    }


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
