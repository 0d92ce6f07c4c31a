"""`IbSource`: stocks, pairs of currencies and indices of Interactive Brokers, their history, through TWS or IB Gateway.

See the documentation of the TWS API, "Historical Bars". It needs the extra `tradeloop-ingest[ib]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Series, Timeframe, from_us, to_us
from tradeloop.ingest.adapters.ib_gateway import Gateway
from tradeloop.ingest.adapters.ib_pacing import BURST_S, Pacing
from tradeloop.ingest.adapters.ib_symbols import HOW, Listed, Security, listed, security, written
from tradeloop.ingest.adapters.sections import IbSection
from tradeloop.ingest.adapters.symbols import symbol_of, unknown
from tradeloop.ingest.ports import Channel, MarketStream, Page, SourceUnavailable

_DAY_US = Timeframe.D1.us
_PAGES = {
    Timeframe.S1: ("1 secs", "1800 S", 1740),
    Timeframe.S5: ("5 secs", "3600 S", 3540),
    Timeframe.S15: ("15 secs", "14400 S", 14_340),
    Timeframe.S30: ("30 secs", "28800 S", 28_740),
    Timeframe.M1: ("1 min", "5 D", 4 * 86_400),
    Timeframe.M3: ("3 mins", "7 D", 6 * 86_400),
    Timeframe.M5: ("5 mins", "7 D", 6 * 86_400),
    Timeframe.M15: ("15 mins", "14 D", 13 * 86_400),
    Timeframe.M30: ("30 mins", "30 D", 28 * 86_400),
    Timeframe.H1: ("1 hour", "30 D", 28 * 86_400),
    Timeframe.D1: ("1 day", "365 D", 360 * 86_400),
}
"""The bar size and the duration of requests for each timeframe, and the seconds that a page has at most.

A page is shorter than its request, which ends a bar later; and one in days counts a last day that may have just begun.
"""
_SMALL = Timeframe.S30
_SMALL_KEPT = timedelta(days=180)
_PRICES = ("open", "high", "low", "close")


class IbSource:
    """The history of Interactive Brokers. Prices of stocks are adjusted for splits by the venue, and for no dividends.

    Not shared between threads.
    """

    def __init__(self, venue: str, section: IbSection, clock: Clock) -> None:
        """Asks nothing yet."""
        self.venue = venue
        self._regular, self._pace = section.hours == "regular", section.pace
        self._gateway = Gateway(venue, section)
        self._pacing = Pacing(clock, section.pace)
        self._listed: dict[str, Listed] = {}
        self._first_us: dict[str, int] = {}

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        return [self._find(symbol).instrument for symbol in symbols]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        symbol = symbol_of(self.venue, instrument)
        found = self._listed.get(symbol) or self._find(symbol)
        if timeframe not in _PAGES:
            raise UserError(
                f"{self.venue} has no bars of {timeframe} here: fetch one of {', '.join(_PAGES)}; longer ones of a "
                "universe are made of them"
            )
        return self._pages(found, timeframe, start_us, end_us)

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> MarketStream:
        raise UserError(f"{self.venue} has no live stream here: fetch its history with tradeloop backfill")

    def time_us(self) -> int:
        return to_us(self._gateway.time())

    def close(self) -> None:
        self._gateway.close()

    def _find(self, symbol: str) -> Listed:
        wanted = security(self.venue, symbol)
        details = self._gateway.details(**wanted.fields())
        if not details:
            raise self._unknown(symbol, wanted)
        self._listed[symbol] = listed(self.venue, symbol, wanted, details, regular=self._regular)
        return self._listed[symbol]

    def _unknown(self, symbol: str, wanted: Security) -> UserError:
        if wanted.kind == "CASH":
            other = Security(wanted.currency, "CASH", wanted.exchange, wanted.symbol)
            if self._gateway.details(**other.fields()):
                return UserError(f"{self.venue} has no {symbol}: did you mean {other.symbol}.{other.currency}?")
        else:
            like = [one for one in self._gateway.like(wanted.symbol[:3]) if one.secType == wanted.kind]
            elsewhere = [written(one) for one in like if one.symbol == wanted.fields()["symbol"]]
            if elsewhere:
                return UserError(f"{self.venue} has no {symbol}: did you mean {' or '.join(elsewhere[:3])}?")
            if like:
                return unknown(self.venue, symbol, [written(one) for one in like])
        return UserError(f"{self.venue} has no {symbol}: {HOW}")

    def _pages(self, found: Listed, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        at_us, now = start_us, self._gateway.time()
        # By the venue's clock, and before the bars are asked for: one that closes meanwhile is left to the next call.
        stop_us = min(end_us, to_us(now) - timeframe.us + 1)
        small = timeframe.us <= _SMALL.us
        if small and at_us < min(stop_us, to_us(now - _SMALL_KEPT)):
            raise UserError(
                f"{self.venue} keeps bars of {timeframe} for {_SMALL_KEPT.days} days: begin at "
                f"{now - _SMALL_KEPT + timedelta(days=1):%Y-%m-%d}, or fetch bars of 1m"
            )
        if at_us < stop_us and (first_us := min(self._first(found), stop_us)) > at_us:
            yield Page(_series([], found), first_us)
            at_us = first_us
        while at_us < stop_us:
            until_us = min(at_us + _PAGES[timeframe][2] * 1_000_000, stop_us)
            rows = self._rows(found, timeframe, until_us, small)
            yield Page(_series([row for row in rows if at_us <= row[0] < until_us], found), until_us)
            at_us = until_us

    def _first(self, found: Listed) -> int:
        """A time before which there are no bars."""
        name = found.instrument.id
        if name not in self._first_us:
            first = self._gateway.first(found.contract, found.security.shows, regular=self._regular)
            # The day in which the first trade was begins before it.
            self._first_us[name] = to_us(first) // _DAY_US * _DAY_US - _DAY_US if first else -_DAY_US
        return self._first_us[name]

    def _rows(self, found: Listed, timeframe: Timeframe, until_us: int, small: bool) -> list[tuple[int, Any]]:
        """Bars by their open time, in order, each time once: at least those of the page that ends at `until_us`.

        A bar in which a request ends comes cut off there, so it ends a bar later.
        """
        size, duration, _ = _PAGES[timeframe]
        end = from_us(-(-(until_us + timeframe.us) // 1_000_000) * 1_000_000)
        shows = found.security.shows
        self._keep_pace((found.contract.conId, shows), (end, duration, size), small)
        bars = self._gateway.bars(found.contract, end, duration, size, shows, regular=self._regular)
        times = [self._open_us(found, timeframe, bar.date) for bar in bars]
        if timeframe is Timeframe.D1:
            return sorted(dict(zip(times, bars, strict=True)).items())
        return sorted(self._on_the_clock(found, timeframe, dict(zip(times, bars, strict=True))).items())

    def _on_the_clock(self, found: Listed, timeframe: Timeframe, bars: dict[int, Any]) -> dict[int, Any]:
        """Bars by the time at which the exchange's clock begins them.

        The first bar of a session is shorter: an hour from 9:30 ends at 10:00, so it is the hour of 9:00.
        """
        times = {time_us: found.floor_us(time_us, timeframe.us) for time_us in bars}
        off = [time_us for time_us in bars if times[time_us] != time_us]
        if len(set(times.values())) < len(bars) or any(time_us + timeframe.us in bars for time_us in off):
            raise UserError(
                f"{self.venue}: bars of {timeframe} of {found.instrument.id} do not begin by the exchange's clock: "
                "fetch shorter ones"
            )
        return {times[time_us]: bar for time_us, bar in bars.items()}

    def _open_us(self, found: Listed, timeframe: Timeframe, opened: object) -> int:
        if timeframe is Timeframe.D1 and isinstance(opened, date) and not isinstance(opened, datetime):
            return found.day_us(opened)
        if timeframe is not Timeframe.D1 and isinstance(opened, datetime) and opened.tzinfo:
            return to_us(opened)
        raise SourceUnavailable(f"{self.venue}: its answer cannot be read: a bar of {timeframe} is of {opened}")

    def _keep_pace(self, contract: object, request: object, small: bool) -> None:
        """Wait for a moment where pacing asks for it. Raises `SourceUnavailable` for a longer wait, with the rule."""
        wait_s, rule = self._pacing.wait_s(contract, request, small=small)
        if wait_s > BURST_S * self._pace:
            raise SourceUnavailable(f"{self.venue} is not to be asked {rule}", wait_s)
        if wait_s:
            self._gateway.wait(wait_s)
        self._pacing.made(contract, request, small=small)


def _series(rows: Sequence[tuple[int, Any]], found: Listed) -> Series:
    columns = {name: np.array([getattr(bar, name) for _, bar in rows], dtype=np.float64) for name in _PRICES}
    if found.security.shows == "TRADES":
        volumes = [bar.volume if bar.volume >= 0 else math.nan for _, bar in rows]
        columns["volume"] = np.array(volumes, dtype=np.float64)
    return {"open_us": np.array([time_us for time_us, _ in rows], dtype=np.int64), **columns}
