"""`tradeloop demo --source simulated`: a market without a network, learnt from its history and then traded live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tradeloop.cli.client.client import Failed
from tradeloop.cli.client.embedded import EmbeddedStack
from tradeloop.cli.inputs import Inputs
from tradeloop.cli.source import Source
from tradeloop.common.clock import Clock, ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import BarArrays, Instrument, Timeframe, joined, to_us
from tradeloop.common.messages import LiveRequested, PortfolioEvent, SignalGenerated
from tradeloop.common.messages.topics import derived_id
from tradeloop.ingest.adapters.simulated_source import SYMBOLS, SimulatedSource

NAMES = ("simulated",)
"""Sources that a demo can trade live."""

_TIMEFRAME = Timeframe.M1
_BARS, _LIVE_BARS = 3_000, 300
_OPENS = datetime(2024, 1, 7, 12, tzinfo=UTC)
"""When live trading begins by the market's clock: a Sunday, so that its calendar is seen to have no weekends."""
_STEP_S = 5.0
"""Market time between two looks at the market: the services settle all that happened before it goes on."""
_LINGERS_S = 20.0
"""How long the market goes on behind the close of the last bar: what was in doubt is confirmed by then."""


class MarketClock:
    """The market's clock, which stands until somebody moves it: as fast as all is decided, and never faster."""

    def __init__(self, wall: Clock, opens: datetime) -> None:
        self._wall, self._opens, self._passed_s = wall, opens, 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass on the market."""
        self._passed_s += seconds

    def now(self) -> datetime:
        return self._opens + timedelta(seconds=self._passed_s)

    def monotonic(self) -> float:
        return self._wall.monotonic() + self._passed_s


@dataclass(frozen=True)
class Simulated:
    """A simulated market: its history in files, and the clock of its live part."""

    inputs: Inputs
    """The options of the demo, with the bars of the history and of the live part."""
    history: Path
    """The file of the history alone, which is all that is known before the market opens."""
    clock: MarketClock

    bars: int = _BARS
    """How many bars of it are history."""
    seed: int = 0

    def sources(self, folder: Path) -> Path:
        """The configuration of the source, as a file of a folder."""
        path = folder / "sources.yaml"
        path.write_text(f"simulated: {{seed: {self.seed}}}\n")
        return path

    def known(self, source: Source) -> Source:
        """The source of all bars, from whose files nobody can load what has not happened yet."""
        return replace(source, files=dict.fromkeys(source.files, self.history))


def simulated(inputs: Inputs, folder: Path, wall: Clock, seed: int) -> Simulated:
    """The market of a seed, its bars in files of a folder. Raises `UserError` for options that name other bars."""
    if inputs.bars or inputs.also or inputs.span != (None, None) or inputs.portfolio is not None:
        raise UserError("--source simulated brings its own bars: leave --bars, --also, --portfolio, --from, --to out")
    end = _OPENS + _LIVE_BARS * _TIMEFRAME.delta
    market = SimulatedSource(ManualClock(end), seed=seed)
    instrument = Instrument(id=f"simulated:{SYMBOLS[0]}")
    start = _OPENS - _BARS * _TIMEFRAME.delta
    bars = joined([page.bars for page in market.history(instrument, _TIMEFRAME, to_us(start), to_us(end))])
    table = pl.DataFrame({name: np.asarray(column) for name, column in bars.items()})
    table = table.with_columns(pl.col("open_us").cast(pl.Datetime("us", "UTC"))).rename({"open_us": "time"})
    whole, history = folder / "simulated.parquet", folder / "simulated-history.parquet"
    table.write_parquet(whole)
    table.head(_BARS).write_parquet(history)
    clock = MarketClock(wall, _OPENS)
    return Simulated(replace(inputs, bars=(f"{instrument.id}={whole}",)), history, clock, seed=seed)


def trade_live(
    stack: EmbeddedStack, market: Simulated, source: Source, traded: BarArrays, on_progress: Callable[[int], None]
) -> None:
    """Let the market go on, and trade its live feed until the last bar has closed and was decided on.

    Raises `Failed` where decisions were missed: the backtest misses none.
    """
    total, clock = len(traded), market.clock
    request = LiveRequested(
        request_id=derived_id("live", source.universe.name),
        universe=source.universe,
        command="start",
        time=clock.now(),
        since=clock.now(),
    )
    stack.client.send(request)
    for _ in range(round((total * _TIMEFRAME.seconds + _LINGERS_S) / _STEP_S)):
        while stack.step():
            pass
        on_progress(stack.count(SignalGenerated))
        clock.advance(_STEP_S)
    while stack.step():
        pass
    missed = [one for one in stack.client.read(PortfolioEvent) if one.kind == "decision_missed"]
    if missed:
        raise Failed(
            f"{len(missed)} of {total:,} decisions were missed, the first on the bar of {missed[0].time.isoformat()} "
            f"({missed[0].reason}): the backtest misses none, and is no proof then"
        )
