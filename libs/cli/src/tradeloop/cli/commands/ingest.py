"""`tradeloop ingest live`: begin or end the live feed of a universe on a running stack."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.cli.client.client import Client
    from tradeloop.common.market import Universe
    from tradeloop.common.messages import Channel

app = typer.Typer(help="Live market data of a running stack.", no_args_is_help=True)

_ANSWER_S = 60.0


@app.callback()
def options() -> None:
    """Live market data of a running stack."""


@app.command()
def live(
    portfolio_file: Annotated[
        Path | None, typer.Option("--portfolio", help="YAML file of a portfolio: its universe is fed.")
    ] = None,
    universe: Annotated[
        str | None, typer.Option("--universe", help="A universe of the portfolios in the --portfolios folder.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--portfolios", envvar="TRADELOOP_PORTFOLIO_FOLDER", help="Folder of the stack's portfolios."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            help="Open time, ISO 8601, UTC, from which on bars are published, filled from the venues' history. Without "
            "it: those behind the newest live ones; or those that close from now on, where there are none.",
        ),
    ] = None,
    channels: Annotated[
        str,
        typer.Option(
            "--channels",
            help="What the feed brings: bars, and maybe trades, books, news, which become columns of bars.",
        ),
    ] = "bars",
    stop: Annotated[bool, typer.Option("--stop", help="End the feed.")] = False,
) -> None:
    """Feed a universe from the venues that its instruments' ids name, over restarts, until it is stopped.

    `tradeloop status` shows the feed. Exit 2 where a venue refuses it.
    """
    from tradeloop.cli.client.client import running
    from tradeloop.cli.commands.replay import chosen
    from tradeloop.cli.progress import Stages, quiet_logs
    from tradeloop.cli.span import span_us
    from tradeloop.common.market import from_us
    from tradeloop.common.messages import Channel

    quiet_logs()
    if stop and since is not None:
        raise UserError("--stop ends a feed, and --since begins one: leave one of them out")
    if stop and channels != "bars":
        raise UserError("--stop ends a feed, and --channels is for one that begins: leave one of them out")
    asked_for = tuple(dict.fromkeys(name.strip() for name in channels.split(",")))
    if unknown := ", ".join(name or "''" for name in asked_for if name not in get_args(Channel)):
        raise UserError(f"--channels: there is no channel {unknown}; give some of {', '.join(get_args(Channel))}")
    if "bars" not in asked_for:
        raise UserError("--channels: a feed needs bars: they carry what the others bring")
    fed = chosen(portfolio_file, universe, folder)[0].universe
    start_us, _ = span_us((since, None))
    wanted = cast(tuple[Channel, ...], asked_for)
    with running(Stages().say) as stack:
        ask_for_feed(stack, fed, wanted, None if since is None else from_us(start_us), stop=stop)


def ask_for_feed(
    stack: Client, fed: Universe, channels: tuple[Channel, ...], since: datetime | None, *, stop: bool
) -> None:
    """Let ingest begin or end a feed, and say what came of it. Raises as `Client.ask`, and `UserError` if refused."""
    from tradeloop.cli.client.client import Failed
    from tradeloop.common.messages import LiveReported, LiveRequested
    from tradeloop.common.messages.topics import derived_id

    now = stack.clock.now()
    request = LiveRequested(
        request_id=derived_id("live", fed.name, now.isoformat(), stop),
        universe=fed,
        command="stop" if stop else "start",
        time=now,
        channels=channels,
        since=since,
    )
    try:
        report = stack.ask(request, LiveReported, timeout_s=_ANSWER_S)
    except Failed as error:
        if stop:
            raise
        raise Failed(f"{error}; the request holds, and ingest takes it up when it can: see its page /ready") from error
    if report.state == "failed":
        raise UserError(report.reason)
    typer.echo(f"live feed of {fed.name}: {report.state}; `tradeloop status` shows how far it is")
