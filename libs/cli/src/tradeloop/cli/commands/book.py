"""`tradeloop book` and `tradeloop status`: how far portfolios are, and an operator's word to one that stands still."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tradeloop.cli.commands.topics import Servers
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.cli.client.books import BookState, Command

app = typer.Typer(help="Look at portfolios, and let one that stands still go on.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the portfolio.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in your words; it is recorded.")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON object a line.")]

_ANSWER_S = 15.0
_OF_A_MODEL = {"model", "version", "model_id", "time"}


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(help="Name of a portfolio; all without it.")] = None,
    as_json: Json = False,
    bootstrap_servers: Servers = None,
) -> None:
    """Show how far portfolios are: what was marked and decided last, what is awaited, what is in quarantine and why."""
    from tradeloop.cli.client.books import book_states
    from tradeloop.cli.client.settings import kafka_bus

    with kafka_bus(bootstrap_servers) as bus:
        books = book_states(bus)
    if name is not None:
        books = {name: _known(books, name)}
    for book in books.values():
        typer.echo(json.dumps(_described(book)) if as_json else _line(book))
    if not books and not as_json:
        typer.echo("no portfolio has been traded yet, as far as Kafka still knows")


@app.command()
def skip(name: Name, reason: Reason, bootstrap_servers: Servers = None) -> None:
    """Go on without the decision that a portfolio waits for: it is recorded as missed, and nothing is ordered."""
    _command("skip", name, reason, bootstrap_servers)


@app.command()
def release(name: Name, reason: Reason, bootstrap_servers: Servers = None) -> None:
    """Take a portfolio's decisions again, which something that failed put into quarantine."""
    _command("release", name, reason, bootstrap_servers)


def status(
    as_json: Json = False,
    watch_s: Annotated[
        float | None, typer.Option("--watch", min=0.5, help="Show it again every so many seconds, until Ctrl-C.")
    ] = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Show services, live feeds, portfolios and what was given up on. Exit 1 when anything stands still.

    A service stands still when messages wait and no process of it is there. Services that differ in what they run, or
    start often, are warned of. All is told by Kafka: no service is asked.
    """
    if watch_s is not None:
        _watch(lambda: _status(as_json, bootstrap_servers, clear=not as_json), watch_s)
    if _status(as_json, bootstrap_servers, clear=False):
        raise typer.Exit(1)


def _watch(show: Callable[[], object], every_s: float) -> NoReturn:
    """Show it again and again, until Ctrl-C."""
    came: list[int] = []
    former = signal.getsignal(signal.SIGINT)

    def take(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if callable(former):
            former(number, frame)

    signal.signal(signal.SIGINT, take)
    try:
        while True:
            show()
            if came:  # within a library's callback or a finalizer, which swallow what is raised
                raise KeyboardInterrupt
            time.sleep(every_s)
    finally:
        signal.signal(signal.SIGINT, former)


def _status(as_json: bool, bootstrap_servers: str | None, clear: bool) -> bool:
    """Print it once. Whether anything stands still."""
    from tradeloop.cli.client.books import book_states
    from tradeloop.cli.client.client import count_dead_letters
    from tradeloop.cli.client.feeds import feed_states
    from tradeloop.cli.client.manifests import runs_of, warnings_of
    from tradeloop.cli.client.services import service_states
    from tradeloop.cli.client.settings import kafka_bus
    from tradeloop.common.clock import SystemClock

    with kafka_bus(bootstrap_servers) as bus:
        services = service_states(bus)
        books, letters, feeds = book_states(bus), count_dead_letters(bus), feed_states(bus, SystemClock())
        runs = runs_of(bus, {one.service: one.processes for one in services}, SystemClock().now())
    if clear:
        typer.echo("\033[2J\033[H", nl=False)  # an empty screen, from its top
    for service in services:
        told = runs[service.service]
        words = f"{service.words}; {told.words}" if told.words else service.words
        typer.echo(json.dumps(service.described | told.described) if as_json else words)
    for warning in warnings_of(runs):
        typer.echo(json.dumps({"warning": warning}) if as_json else f"Warning: {warning}")
    for feed in feeds:
        typer.echo(json.dumps(feed.described) if as_json else feed.words)
    for book in books.values():
        typer.echo(json.dumps(_described(book)) if as_json else _line(book))
    if as_json:
        typer.echo(json.dumps({"dead_letters": letters}))
    else:
        if not books:
            typer.echo("no portfolio has been traded yet, as far as Kafka still knows")
        typer.echo(f"{letters} dead letters{': see `tradeloop dlq list`' if letters else ''}")
    still = [*(service.stands_still for service in services), *(feed.stands_still for feed in feeds)]
    return any(still) or any(book.quarantine or book.killed for book in books.values())


def _command(command: Command, name: str, reason: str, servers: str | None) -> None:
    """Send a command about what a portfolio waits for now, and print what execution recorded of it."""
    from tradeloop.cli.client.books import book_states, obeyed
    from tradeloop.cli.client.client import Client
    from tradeloop.cli.client.settings import kafka_bus
    from tradeloop.common.clock import SystemClock

    if not reason.strip():
        raise UserError("--reason is empty: say why, since it is recorded")
    with kafka_bus(servers) as bus, closing(Client(bus, SystemClock(), lambda _: None)) as client:
        event = obeyed(client, _known(book_states(bus), name), command, reason, _ANSWER_S)
    if event is None:
        typer.echo(f"{name}: execution has recorded nothing within {_ANSWER_S:.0f} s; it obeys when it runs", err=True)
        raise typer.Exit(1)
    typer.echo(f"{name}: {event.kind.replace('_', ' ')} at the bar of {event.time.isoformat()}: {event.reason}")


def _known(books: dict[str, BookState], name: str) -> BookState:
    if name not in books:
        there = ", ".join(books) or "none at all"
        raise UserError(f"no portfolio {name} is known to Kafka; there is {there}")
    return books[name]


def _line(book: BookState) -> str:
    mark = book.mark
    told = f"{book.portfolio} ({book.universe}): {book.words}"
    if mark is not None:
        held = sum(position.quantity != 0.0 for position in mark.positions)
        told += f"; marked {mark.time:%Y-%m-%d %H:%M} UTC, equity {mark.equity:,.2f}, {held} positions open"
    if book.model is not None:
        told += f"; model {book.model.model} version {book.model.version}, since {book.model.time:%Y-%m-%d %H:%M} UTC"
    told += "".join(f"; {id_}: {', '.join(words)}" for id_, words in sorted(book.instruments.items()))
    counted = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(book.events.items()))
    return f"{told}; on record: {counted}" if counted else told


def _described(book: BookState) -> dict[str, object]:
    mark, quarantine = book.mark, book.quarantine
    return {
        "portfolio": book.portfolio,
        "universe": book.universe,
        "state": mark.state if mark else None,
        "equity": mark.equity if mark else None,
        "marked": mark.time.isoformat() if mark else None,
        "decided": book.decided.isoformat() if book.decided else None,
        "awaits": book.awaits.isoformat() if book.awaits else None,
        "quarantined_since": quarantine.time.isoformat() if quarantine else None,
        "cause": quarantine.reason if quarantine else None,
        "killed": book.killed.reason if book.killed else None,
        "model": None if book.model is None else book.model.model_dump(mode="json", include=_OF_A_MODEL),
        "events": book.events,
        "instruments": book.instruments,
    }
