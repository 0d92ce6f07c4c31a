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
from tradeloop.common.messages import LiveRequested, PortfolioEvent, PortfolioMarked, SignalGenerated
from tradeloop.common.messages.topics import derived_id
from tradeloop.ingest.adapters.simulated_source import SYMBOLS, SimulatedSource

NAMES = ("simulated",)
"""Sources that a demo can trade live."""

_TIMEFRAME = Timeframe.M1
_BARS, _LIVE_BARS = 3_000, 300
_OPENS = datetime(2024, 1, 7, 12, tzinfo=UTC)
"""When live trading begins by the market's clock: a Sunday, so that its calendar is seen to have no weekends."""
_LINGERS = timedelta(seconds=20)
"""How long the clock goes on behind the close of the last bar: what was in doubt is confirmed by then."""
_SPEED = 600.0
"""Market time per wall time: a minute takes a tenth of a second."""
_SILENCE_S = 60.0


class MarketClock:
    """A clock that stands until the market opens, runs fast then, and stands when the last bar has closed."""

    def __init__(self, wall: Clock, opens: datetime, length: timedelta) -> None:
        self._wall, self._opens, self._length = wall, opens, length
        self._since: datetime | None = None

    def open(self) -> None:
        """Let the market open."""
        self._since = self._wall.now()

    def now(self) -> datetime:
        if self._since is None:
            return self._opens
        return self._opens + min((self._wall.now() - self._since) * _SPEED, self._length)

    def monotonic(self) -> float:
        return self._wall.monotonic()


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
    clock = MarketClock(wall, _OPENS, end - _OPENS + _LINGERS)
    return Simulated(replace(inputs, bars=(f"{instrument.id}={whole}",)), history, clock, seed=seed)


def trade_live(
    stack: EmbeddedStack, market: Simulated, source: Source, traded: BarArrays, on_progress: Callable[[int], None]
) -> None:
    """Open the market, and trade its live feed until the last bar has closed and was decided on.

    Raises `Failed` where decisions were missed: the backtest misses none.
    """
    total, clock, wall_s = len(traded), market.clock, stack.client.clock.monotonic
    request = LiveRequested(
        request_id=derived_id("live", source.universe.name),
        universe=source.universe,
        command="start",
        time=clock.now(),
        since=clock.now(),
    )
    stack.client.send(request)
    clock.open()
    heard_s, decided = wall_s(), -1
    while (now := stack.count(SignalGenerated)) < total or stack.count(PortfolioMarked) < total:
        stack.step()
        if now != decided:
            heard_s, decided = wall_s(), now
            on_progress(now)
        elif wall_s() - heard_s > _SILENCE_S:
            raise Failed(f"after {now:,} of {total:,} live bars nothing was decided for {_SILENCE_S:.0f} s")
    while stack.step():
        pass
    missed = [one for one in stack.client.read(PortfolioEvent) if one.kind == "decision_missed"]
    if missed:
        raise Failed(
            f"{len(missed)} of {total:,} decisions were missed, the first on the bar of {missed[0].time.isoformat()} "
            f"({missed[0].reason}): this machine was busy, and the backtest, which misses none, is no proof then"
        )
