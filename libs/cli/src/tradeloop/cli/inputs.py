"""The options that say what a command works on: the same ones for `demo`, `train` and `backtest`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tradeloop.cli.adjusting import adjusted_view
from tradeloop.cli.events import renamed, with_events
from tradeloop.cli.markets import beside
from tradeloop.cli.members import with_members
from tradeloop.cli.progress import Stages
from tradeloop.cli.source import EVERYTHING, Source, open_source
from tradeloop.cli.span import Span
from tradeloop.cli.understood import understood
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument
from tradeloop.common.market.event_file import read_events
from tradeloop.common.messages.ingest import Reading
from tradeloop.common.portfolio import Portfolio, read_portfolio
from tradeloop.common.strategy import Strategy, load

_DEFAULT_STRATEGY = "example"


@dataclass(frozen=True)
class Inputs:
    """The values of these options, as they were given."""

    bars: tuple[str, ...] = ()
    strategy: str | None = None
    portfolio: Path | None = None
    span: Span = EVERYTHING
    name: str | None = None
    also: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)
    actions: Path | None = None
    as_known: str | None = None
    members: Path | None = None
    terms: Mapping[str, Instrument] = field(default_factory=dict)
    """The terms of stored bars' instruments as their venues told them, by id."""
    events: Path | None = None

    def open(self, stages: Stages, stage: str) -> tuple[Strategy, Source]:
        """Read and check all of it, and say what was understood. Raises `UserError` for what is wrong."""
        if self.as_known is not None and self.actions is None:
            raise UserError(f"--as-known {self.as_known} is of splits and dividends: give their file by --actions, too")
        portfolio = None if self.portfolio is None else read_portfolio(self.portfolio)
        strategy = load(_strategy_of(portfolio, self.strategy))
        with stages.stage(stage):
            events = None if self.events is None else read_events(self.events)
            ends = events is not None and any(
                one.kind == "delisting" for ones in events.events.values() for one in ones
            )
            source = open_source(
                self.bars,
                strategy,
                portfolio,
                name=self.name,
                span=self.span,
                reading=self.reading,
                members_change=self.members is not None or ends,
                terms=self.terms,
                joins=lambda named, ids: renamed(named, events, ids),
            )
            source = beside(source, self.also, strategy, self.span, self.reading)
            if self.actions is not None:
                source = adjusted_view(source, self.actions, self.as_known, named=self.name is not None)
            source = with_members(source, self.members)
            source = with_events(source, events)
        for market in source.markets:
            for line in understood(market):
                stages.say(line)
        costs = source.portfolio(strategy).costs
        stages.warn([said for market in source.markets if (said := costs.uncharged(market.bars))])
        return strategy, source


def _strategy_of(portfolio: Portfolio | None, name: str | None) -> str:
    """The strategy's name: the portfolio's, or the given one. Raises `UserError` where they disagree."""
    if portfolio is None:
        return name or _DEFAULT_STRATEGY
    if name not in (None, portfolio.strategy):
        raise UserError(
            f"portfolio {portfolio.name} is for strategy {portfolio.strategy}, --strategy says {name}: leave it out"
        )
    return portfolio.strategy
