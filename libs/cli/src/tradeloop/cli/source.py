"""The bars that a command works on: a file of the user's, or the one that is installed with Tradeloop."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import UserError
from tradeloop.common.market import BarArrays, Calendar, Instrument, Timeframe, TimeRange, Universe, from_us, resample
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy
from tradeloop.ingest.adapters.files import read_bars
from tradeloop.ingest.ports import FileReport

_PACKAGE, _FILE = "gym-anytrading", "FOREX_EURUSD_1H_ASK.csv"
_DAY_US = 86_400_000_000
_SATURDAY = 2
"""The number of a Saturday, in days since the epoch, which was a Thursday, modulo 7."""


@dataclass(frozen=True)
class Source:
    """Bars of one instrument, checked, and what they are called."""

    path: Path
    name: str
    """The name that people know it by."""
    bars: BarArrays
    report: FileReport
    universe: Universe
    given: Portfolio | None = None
    """The portfolio that the bars were opened for."""

    def portfolio(self, strategy: Strategy) -> Portfolio:
        """The given portfolio, or a paper one of the platform's default capital, costs and limits."""
        return self.given or Portfolio(name=self.universe.name, universe=self.universe, strategy=strategy.name)

    def features(self, strategy: Strategy) -> NDArray[np.float64]:
        """The strategy's features (T, A, F) over all of the bars, computed in one go."""
        base = self.universe.timeframe
        bars = {base: self.bars}
        for timeframe in strategy.feature_set.timeframes:
            bars[timeframe] = resample(self.bars, base, timeframe)
        return strategy.feature_set.compute(bars, base).values

    def range(self, start: int, stop: int) -> TimeRange:
        """The open times of bars `start` to `stop` (exclusive)."""
        end = self.bars.close_us[stop - 1]
        return TimeRange(start=from_us(self.bars.open_us[start]), end=from_us(end))


def open_source(path: Path | None, strategy: Strategy, portfolio: Portfolio | None = None) -> Source:
    """Read and check a file of bars; the installed one without a path. A portfolio says which instrument they are of.

    Raises `UserError`, one line that names the file, the row and the remedy.
    """
    if path is None:
        path, symbol, name = _installed(), "EUR/USD", f"EUR/USD hourly, from the package {_PACKAGE} (MIT)"
    else:
        symbol = re.sub(r"[^A-Za-z0-9_.\-]+", "-", path.name.split(".")[0]).strip("-") or "bars"
        name = path.name
    universe = _derived(path, symbol, strategy) if portfolio is None else portfolio.universe
    if len(universe.instruments) > 1:
        raise UserError(
            f"universe {universe.name} has {len(universe.instruments)} instruments and {name} the bars of one: give a "
            "portfolio of one instrument"
        )
    bars, report = read_bars(str(path), universe.instruments[0], universe.timeframe)
    if strategy.feature_set.requires_volume and np.isnan(bars.volume).any():
        raise UserError(
            f"{path}: strategy {strategy.name} has a feature that needs volumes and the file lacks them: "
            "choose another strategy, or a file with a volume column"
        )
    return Source(path.absolute(), name, bars, report, universe, portfolio)


def _derived(path: Path, symbol: str, strategy: Strategy) -> Universe:
    """The universe of a file's instrument: its timeframe and calendar as its rows show them."""
    bars, report = read_bars(str(path), Instrument(id=f"file:{symbol}"))
    calendar: Calendar = "continuous"
    if report.timeframe is Timeframe.D1:
        calendar = "sessions"
    elif not (bars.open_us // _DAY_US % 7 == _SATURDAY).any():
        calendar = "weekdays"
    return Universe(
        name=re.sub(r"[^a-z0-9_\-]+", "-", symbol.lower()).strip("-_") or "bars",
        instruments=(Instrument(id=f"file:{symbol}", lot_size=1e-6, taker_bps=2.0, calendar=calendar),),
        timeframe=report.timeframe,
        higher_timeframes=strategy.feature_set.timeframes,
    )


def split(source: Source, strategy: Strategy, train_share: float = 0.7) -> int:
    """How many of the bars are for training; the rest is traded. Raises `UserError` for too few."""
    total = len(source.bars)
    train = int(total * train_share)
    needed = strategy.window + 2
    if total - train < needed:
        raise UserError(
            f"{source.path}: {total} bars leave {total - train} to trade after training on {train}, strategy "
            f"{strategy.name} needs {needed} for its window of {strategy.window}: give it a longer file"
        )
    return train


def _installed() -> Path:
    """The file inside the installed package, found without importing it."""
    for file in files(_PACKAGE) or ():
        if file.name == _FILE:
            return Path(str(file.locate()))
    raise UserError(f"the package {_PACKAGE} lacks {_FILE}: install it again, or name a file with --bars")
