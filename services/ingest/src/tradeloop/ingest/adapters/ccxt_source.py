"""`CcxtSource`: any exchange that ccxt knows, its history through REST; live data are from `ccxt_stream`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ccxt
import numpy as np

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Series, Timeframe, to_us
from tradeloop.ingest.adapters.ccxt_exchange import opened, strict, translated
from tradeloop.ingest.adapters.ccxt_stream import CcxtStream, check_channels
from tradeloop.ingest.adapters.sections import CcxtSection
from tradeloop.ingest.adapters.streaming import ThreadedStream
from tradeloop.ingest.adapters.symbols import symbol_of, unknown
from tradeloop.ingest.ports import Channel, Page, SourceUnavailable

R = TypeVar("R")

_COLUMNS = ("open", "high", "low", "close", "volume")
_USUAL_PAGE = 500
_CLOCK_S = 60.0
"""How long the difference to the venue's clock is believed."""


class CcxtSource:
    """The market data of an exchange. Symbols are ccxt's; that of a perpetual goes without its settlement currency.

    Not shared between threads, but for its streams, which have connections of their own.
    """

    def __init__(self, venue: str, section: CcxtSection, clock: Clock) -> None:
        """Asks nothing yet. Raises `UserError` for an exchange that ccxt does not know, and for missing secrets."""
        self.venue = venue
        self._section, self._clock = section, clock
        self._exchange = opened(ccxt, venue, section, strict)
        self._ahead_us: int | None = None
        self._measured_s = 0.0

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        return [self._instrument(symbol, self._market(symbol)) for symbol in symbols]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        market = self._market(symbol_of(self.venue, instrument))
        self._check_timeframe(timeframe)
        return self._pages(market["symbol"], timeframe, start_us, end_us)

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> ThreadedStream:
        check_channels(self.venue, self._section, channels)
        self._check_timeframe(timeframe)
        symbols = {}
        for instrument in instruments:
            market = self._market(symbol_of(self.venue, instrument))
            if market.get("active") is False:
                raise UserError(f"{instrument.id} is no longer traded: leave it out of the stream")
            symbols[market["symbol"]] = instrument.id
        run = CcxtStream(self.venue, self._section, self._exchange.markets, symbols, timeframe, channels)
        return ThreadedStream(self.venue, run, self._clock)

    def time_us(self) -> int:
        """The venue's clock; this machine's where the venue does not tell it."""
        here_us, now_s = to_us(self._clock.now()), self._clock.monotonic()
        if self._ahead_us is None or now_s - self._measured_s > _CLOCK_S:
            there_us = here_us
            if self._exchange.has["fetchTime"]:
                there_us = self._asked(lambda: int(self._exchange.fetch_time())) * 1000
                here_us = to_us(self._clock.now())
            self._ahead_us, self._measured_s = there_us - here_us, now_s
        return here_us + self._ahead_us

    def close(self) -> None:
        session = self._exchange.session
        if session is not None:
            session.close()

    def _pages(self, symbol: str, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        at_us, length_us = start_us, timeframe.us
        size = self._page_size(symbol)
        # By the venue's clock, and before the bars are asked for: one that closes meanwhile is left to the next call.
        stop_us = min(end_us, self.time_us() - length_us + 1)
        while at_us < stop_us:
            rows = self._rows(symbol, timeframe, at_us, size)
            while rows and rows[0][0] * 1000 - at_us >= length_us:
                # Either there is nothing before the first row, or the venue cut the page at the wrong end.
                before = self._rows(symbol, timeframe, at_us, size, rows[0][0] - 1)
                before = [row for row in before if row[0] < rows[0][0]]
                if not before:
                    break
                rows = before + rows
            # Without rows: some venues look no further than a page from where they are asked.
            until_us = rows[-1][0] * 1000 + length_us if rows else at_us + size * length_us
            until_us = min(until_us, stop_us)
            yield Page(_series([row for row in rows if row[0] * 1000 < until_us]), until_us)
            at_us = until_us

    def _rows(
        self, symbol: str, timeframe: Timeframe, at_us: int, size: int, until_ms: int | None = None
    ) -> list[list[Any]]:
        """Rows of ccxt from a time on, in order, each time once."""
        since = -(-at_us // 1000)
        params = {} if until_ms is None else {"until": until_ms}
        found = self._asked(lambda: self._exchange.fetch_ohlcv(symbol, timeframe.value, since, size, params))
        if not isinstance(found, list) or not all(_is_row(row) for row in found):
            raise SourceUnavailable(f"{self.venue}: its answer cannot be read as bars: {str(found)[:100]}")
        rows = {int(row[0]): [int(row[0]), *row[1:]] for row in found if row[0] >= since}
        return [rows[time] for time in sorted(rows)]

    def _page_size(self, symbol: str) -> int:
        limit = self._asked(lambda: self._exchange.feature_value(symbol, "fetchOHLCV", "limit", _USUAL_PAGE))
        return int(limit or _USUAL_PAGE)

    def _check_timeframe(self, timeframe: Timeframe) -> None:
        known = self._exchange.timeframes or {}
        if timeframe.value not in known:
            raise UserError(f"{self.venue} has no bars of {timeframe}: it has {', '.join(map(str, known))}")

    def _market(self, symbol: str) -> dict[str, Any]:
        markets = self._asked(self._exchange.load_markets)
        wanted = {one["symbol"].partition(":")[0]: one for one in markets.values() if one[self._section.market]}
        if symbol not in wanted:
            raise unknown(f"{self.venue} ({self._section.market})", symbol, wanted)
        found: dict[str, Any] = wanted[symbol]
        return found

    def _instrument(self, symbol: str, market: dict[str, Any]) -> Instrument:
        precision, limits = market["precision"], market["limits"]
        return Instrument(
            id=f"{self.venue}:{symbol}",
            tick_size=self._step(precision.get("price")),
            lot_size=self._step(precision.get("amount")),
            min_notional=float((limits.get("cost") or {}).get("min") or 0.0),
            maker_bps=_bps(market.get("maker"), Instrument.model_fields["maker_bps"].default),
            taker_bps=_bps(market.get("taker"), Instrument.model_fields["taker_bps"].default),
        )

    def _step(self, precision: float | None) -> float:
        """A step in the unit of the thing, whichever way the exchange says it."""
        if precision is None:
            return 0.0
        return float(precision) if self._exchange.precisionMode == ccxt.TICK_SIZE else 10.0**-precision

    def _asked(self, ask: Callable[[], R]) -> R:
        try:
            return ask()
        except Exception as error:
            raise translated(self.venue, error, self._exchange.last_response_headers) from error


def _is_row(row: object) -> bool:
    return (
        isinstance(row, list)
        and len(row) >= 6
        and isinstance(row[0], (int, float))
        and all(value is None or isinstance(value, (int, float)) for value in row)
    )


def _series(rows: Sequence[Sequence[Any]]) -> Series:
    columns = {
        name: np.array([math.nan if row[place] is None else row[place] for row in rows], dtype=np.float64)
        for place, name in enumerate(_COLUMNS, start=1)
    }
    return {"open_us": np.array([row[0] * 1000 for row in rows], dtype=np.int64), **columns}


def _bps(share: float | None, default: float) -> float:
    """A fee in basis points; rebates are taken for no fee."""
    return default if share is None else max(round(float(share) * 1e4, 6), 0.0)
