"""`tradeloop explain`: an order back to its bar, and why there is none where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.cli.commands.topics import Servers
from tradeloop.cli.options import PortfolioFolder
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.common.bus.port import Bus
    from tradeloop.common.portfolio import Portfolio


def explain(
    wanted: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help="Id of an order, a fill, a decision or any message about a bar, or of a trace, as in the ledger, in "
            "reports and in logs.",
        ),
    ] = None,
    portfolio: Annotated[
        str | None, typer.Option("--portfolio", help="Name of a portfolio; with --time in the place of an id.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option("--time", help="When a bar closed, ISO 8601, UTC: what was decided on it is filled from then on."),
    ] = None,
    folder: PortfolioFolder = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of a demo, in the place of a running stack.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON object.")] = False,
    bootstrap_servers: Servers = None,
) -> None:
    """Explain an order back to the bar: features, model, decision, limits, fills and reward. Or why there is none.

    All is told by the messages on Kafka, and by the files of the portfolios, which have the limits.
    """
    from datetime import UTC, datetime

    from tradeloop.cli.explain.chain import Explained
    from tradeloop.cli.explain.evidence import Evidence
    from tradeloop.cli.explain.subject import subject_at, subject_of_id, with_portfolio

    if (wanted is None) == (time is None):
        raise UserError("name an id, or a portfolio and a time: --portfolio NAME --time 2024-01-31T14:05")
    if time is not None and portfolio is None:
        raise UserError("--time is of a portfolio: name it with --portfolio")
    when = None
    if time is not None:
        try:
            when = datetime.fromisoformat(time)
        except ValueError:
            raise UserError(f"--time {time}: give an ISO 8601 time, such as 2024-01-31T14:05") from None
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    with _messages(run, bootstrap_servers) as bus:
        evidence = Evidence(bus)
        if portfolio is not None and when is not None:
            subject = subject_at(evidence, portfolio, when)
        else:
            subject = with_portfolio(evidence, subject_of_id(evidence, wanted or ""), portfolio)
        explained = Explained(evidence, subject, _configured(subject.portfolio, folder, run))
    if as_json:
        typer.echo(json.dumps(explained.described))
        return
    for line in explained.words:
        typer.echo(line)


@contextmanager
def _messages(run: Path | None, servers: str | None) -> Iterator[Bus]:
    """The bus of a running stack, or the messages of a demo."""
    from tradeloop.cli.client.settings import kafka_bus
    from tradeloop.cli.report.messages import read_messages

    if run is not None:
        yield read_messages(run)
        return
    with kafka_bus(servers) as bus:
        yield bus


def _configured(name: str, folder: Path | None, run: Path | None) -> Portfolio | None:
    """The portfolio of a name among the files that there are; None where there are none of it."""
    from tradeloop.cli.report.messages import PORTFOLIO
    from tradeloop.common.portfolio import PortfolioSettings, read_portfolio

    if run is not None and (run / PORTFOLIO).exists():
        portfolio = read_portfolio(run / PORTFOLIO)
        return portfolio if portfolio.name == name else None
    if folder is None:
        return None
    found = PortfolioSettings(portfolio_folder=folder).read_portfolios()
    return next((each for each in found if each.name == name), None)
