"""More markets to learn from: bars beside those that a policy is for, and the part of them that it may know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tradeloop.cli.naming import digest
from tradeloop.cli.report import text
from tradeloop.cli.source import Source, check_length, open_source
from tradeloop.cli.span import Span
from tradeloop.common.errors import UserError
from tradeloop.common.market import TimeRange, from_us
from tradeloop.common.messages.ingest import Reading
from tradeloop.common.messages.training import MarketRange
from tradeloop.common.strategy import Strategy


@dataclass(frozen=True)
class Learnt:
    """A market, and how many of its chosen bars, counted from the first, are learnt from."""

    source: Source
    bars: int

    @property
    def range(self) -> TimeRange:
        return self.source.range(0, self.bars)

    @property
    def asked(self) -> MarketRange:
        """The market as a request names it."""
        return MarketRange(universe=self.source.universe, range=self.range)

    @property
    def facts(self) -> dict[str, Any]:
        """The market as `summary.json` has it."""
        return {
            "universe": self.source.universe.name,
            "source": self.source.name,
            "instruments": list(self.source.universe.ids),
            "bars": self.bars,
            "from": self.range.start.isoformat(),
            "to": self.range.end.isoformat(),
        }


def beside(
    source: Source, also: Sequence[str], strategy: Strategy, span: Span, reading: Reading | None = None
) -> Source:
    """The source with more markets, each the value of an `--also`: a file, or `NAME=FILE`.

    Raises `UserError` for one that is not of one instrument and the source's timeframe, or that is given twice.
    """
    if also and len(source.universe.ids) != 1:
        raise UserError(
            f"--also adds markets of one instrument, and universe {source.universe.name} has "
            f"{len(source.universe.ids)}: give one instrument with --bars, or leave --also out"
        )
    markets = [source]
    for value in also:
        one = open_source((value,), strategy, span=span, option="--also", reading=reading)
        if len(one.universe.ids) != 1:
            raise UserError(
                f"--also {value} has {len(one.universe.ids)} instruments, and each market has one: give --also for "
                "each of them, FILE or FILE#SYMBOL"
            )
        if one.universe.timeframe is not source.universe.timeframe:
            raise UserError(
                f"--also {value} has bars of {one.universe.timeframe}, and {source.name} of "
                f"{source.universe.timeframe}: give bars of one timeframe"
            )
        for other in markets:
            _check_apart(value, one, other)
        markets.append(one)
    return replace(source, also=tuple(markets[1:]))


def learnt(source: Source, bars: int, strategy: Strategy) -> list[Learnt]:
    """The markets of a training on the first `bars` of the chosen ones; its own is first.

    Where bars are left to trade, the others are learnt from as far as they closed before the first of those opens: a
    later one could tell of the traded time through another symbol. Raises `UserError` where too few did.
    """
    own = source.bars
    end_us = int(own.open_us[bars]) if bars < len(own) else None
    before = "" if end_us is None else f" before {from_us(end_us):%Y-%m-%d %H:%M} UTC, when trading begins"
    markets = [Learnt(source, bars)]
    for one in source.also:
        closes = one.bars.close_us
        known = len(closes) if end_us is None else int(np.searchsorted(closes, end_us, side="right"))
        markets.append(Learnt(one, known))
    needed = strategy.window + 2
    for market in markets:
        if market.bars < needed:
            raise UserError(
                f"{market.source.path}: {text.count(market.bars, 'bar')} to learn from{before}, strategy "
                f"{strategy.name} needs {needed} for its window of {strategy.window}: give more bars"
            )
        check_length(market.source, strategy, market.bars)
    return markets


def named(markets: Sequence[Learnt]) -> str:
    """The markets of a training, for people: one sentence; empty where there is only its own."""
    if len(markets) == 1:
        return ""
    each = ", ".join(f"{one.source.universe.ids[0].partition(':')[2]} ({one.bars:,} bars)" for one in markets)
    return f"Learnt from {len(markets)} markets: {each}"


def cut(markets: Sequence[Learnt]) -> str:
    """A sentence about what was left out of the other markets, so that nothing of the traded time is known."""
    left = sum(len(one.source.bars) - one.bars for one in markets[1:])
    if not left:
        return ""
    own = markets[0]
    begins = own.source.bars.open_us[own.bars]
    return (
        f"Of the other markets {left:,} bar{'s' * (left != 1)} after {from_us(begins):%Y-%m-%d %H:%M} UTC, when "
        f"trading begins, {'were' if left != 1 else 'was'} left out: they could tell of the traded time"
    )


def _check_apart(value: str, one: Source, other: Source) -> None:
    """Raise `UserError` where two markets are the same one, or are called the same."""
    timeframe = one.universe.timeframe
    if digest(one.history, timeframe) == digest(other.history, timeframe):
        raise UserError(f"--also {value} holds the same bars as {other.name}: give each market once")
    if one.universe.name == other.universe.name or one.universe.ids == other.universe.ids:
        raise UserError(
            f"--also {value} would be {one.universe.ids[0]} in universe {one.universe.name}, and {other.name} is "
            f"{other.universe.ids[0]} in universe {other.universe.name}: give NAME=FILE with another name"
        )
