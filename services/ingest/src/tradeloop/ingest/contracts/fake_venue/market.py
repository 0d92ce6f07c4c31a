"""The market behind a fake venue: trades, bars, books and news that are pure functions of a seed and of time.

Whoever holds the same seed can say what the venue must have said: `Market.bars` is the truth that tests compare with.
Nothing is remembered, so a venue that is killed and started again says the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import Series, to_us
from tradeloop.ingest.contracts.fake_venue.chance import (
    COLUMNS,
    SLOTS,
    Columns,
    Ticks,
    grouped,
    key,
    levels,
    ticks,
    uniform,
)
from tradeloop.ingest.contracts.fake_venue.clock import VenueClock

TIMEFRAMES = {
    "1s": 1,
    "5s": 5,
    "10s": 10,
    "30s": 30,
    "1m": 60,
    "2m": 120,
    "3m": 180,
    "5m": 300,
    "10m": 600,
    "15m": 900,
    "30m": 1800,
    "1h": 3600,
    "2h": 7200,
    "3h": 10_800,
    "4h": 14_400,
    "6h": 21_600,
    "8h": 28_800,
    "12h": 43_200,
    "1d": 86_400,
    "1w": 604_800,
}
"""Seconds of each timeframe. Bars open at multiples of them since the epoch; weeks open on Mondays."""

US = 1_000_000
_DAY = 86_400
_MONDAY = 4 * _DAY
_KEPT = 1024
"""Days of minutes that are remembered: some 100 MB."""


@dataclass(frozen=True, slots=True)
class Listing:
    """An instrument of the fake venue: `BTC/USDT` is a pair of cryptocurrencies, `AAPL` is a stock."""

    symbol: str
    price: float = 100.0
    """About what it costs."""
    price_digits: int = 2
    size_digits: int = 3
    begins: datetime | None = None
    """The day from which there are trades; None for the market's."""
    ends: datetime | None = None
    """The day from which it is delisted."""

    @property
    def crypto(self) -> bool:
        return "/" in self.symbol


DEFAULT = (
    Listing("BTC/USDT", 60_000.0, 2, 5),
    Listing("ETH/USDT", 3_000.0, 2, 4),
    Listing("AAPL", 190.0, 2, 0),
    Listing("MSFT", 420.0, 2, 0),
)


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of one instrument, column by column. Numbers are those that their decimal texts stand for, to the bit."""

    open_us: NDArray[np.int64]
    close_us: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    """The unit is the base currency, or a share."""
    quote_volume: NDArray[np.float64]
    trades: NDArray[np.int64]
    taker_buy: NDArray[np.float64]
    """The volume of which the buyer took liquidity."""
    taker_buy_quote: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.open_us)

    def series(self) -> Series:
        """The columns that every source has, as sources give them."""
        return {name: getattr(self, name) for name in ("open_us", "open", "high", "low", "close", "volume")}


@dataclass(frozen=True, slots=True)
class Trade:
    """A trade."""

    id: int
    time_us: int
    price: float
    size: float
    buy: bool
    """Whether the buyer took liquidity."""


@dataclass(frozen=True, slots=True)
class Book:
    """The best levels of an order book: price and size, the best first."""

    step: int
    """The number of the state: of each 100 ms since the epoch."""
    bids: tuple[tuple[float, float], ...]
    asks: tuple[tuple[float, float], ...]


BOOK_US = 100_000
"""How often a book changes."""


@dataclass(frozen=True, slots=True)
class News:
    """A piece of news."""

    id: int
    time_us: int
    symbol: str
    headline: str
    sentiment: float


class Market:
    """Instruments that trade around the clock, from `begins` on, as chance has it by `seed`.

    `corrections` is the share of minutes that the venue publishes without the trades of their last second, and
    corrects `correction_delay_s` after their close; longer bars are corrected with the minutes in them.
    """

    def __init__(
        self,
        symbols: Sequence[str | Listing] = DEFAULT,
        *,
        seed: int = 0,
        begins: datetime = datetime(2024, 1, 1, tzinfo=UTC),
        clock: VenueClock | None = None,
        corrections: float = 0.0,
        correction_delay_s: float = 120.0,
        news_per_day: float = 24.0,
    ) -> None:
        listings = [Listing(one) if isinstance(one, str) else one for one in symbols]
        self.listings = {one.symbol: one for one in listings}
        if len(self.listings) < len(listings) or not listings:
            raise ValueError("the symbols of a fake market are to be one or more, and all different")
        self.seed = seed
        self.begins_us = _day(begins, "begins")
        for one in listings:
            _ = one.begins and _day(one.begins, one.symbol), one.ends and _day(one.ends, one.symbol)
        self.clock = clock or VenueClock()
        self.corrections = corrections
        self.correction_delay_us = round(correction_delay_s * US)
        self._news_chance = news_per_day / 1440.0
        self._days: OrderedDict[tuple[str, int], tuple[Columns, Columns, NDArray[np.bool_]]] = OrderedDict()
        self._lock = Lock()

    def now_us(self) -> int:
        """The time at the venue."""
        return self.clock.now_us()

    def lifetime(self, symbol: str) -> tuple[int, int]:
        """When an instrument's first second begins, and when its last one ends, in microseconds."""
        listing = self.listings[symbol]
        begins = self.begins_us if listing.begins is None else to_us(listing.begins)
        return begins, 2**62 if listing.ends is None else to_us(listing.ends)

    def trades_now(self, symbol: str) -> bool:
        """Whether an instrument is listed, and not yet delisted."""
        begins_us, ends_us = self.lifetime(symbol)
        return begins_us <= self.now_us() < ends_us

    def bars(
        self,
        symbol: str,
        timeframe: str,
        start_us: int,
        end_us: int,
        *,
        known_us: int | None = None,
        part: bool = False,
    ) -> Bars:
        """The bars that open in `[start_us, end_us)`, from the listing on: the truth, after all corrections.

        With `known_us`, as the venue has them at that time: closed bars only, and, with `part`, the open one too, as
        it is after the last whole second.
        """
        length = TIMEFRAMES[timeframe]
        begins, ends = (time // US for time in self.lifetime(symbol))
        first = _ceiling(max(-(-start_us // US), begins), length)
        last = _ceiling(min(-(-end_us // US), ends), length)
        partial_end = None
        if known_us is not None:
            whole = _floor(min(known_us // US, ends), length)
            if part and whole < last and known_us // US > whole >= first:
                partial_end = min(known_us // US, ends)
            last = min(last, whole)
        count = max((last - first) // length, 0)
        columns = self._columns(symbol, first, first + count * length, length, known_us)
        opens = first + length * np.arange(count, dtype=np.int64)
        if partial_end is not None:
            opens = np.r_[opens, whole]
            rest = self._span(symbol, whole, partial_end, known_us)
            columns = {name: np.r_[columns[name], rest[name]] for name in COLUMNS}
        return self._bars(symbol, opens, columns, length)

    def bar(self, symbol: str, timeframe: str, open_us: int, until_us: int) -> Bars:
        """One bar as it is at a time, closed or not; its seconds that have begun before `until_us`."""
        length = TIMEFRAMES[timeframe]
        opened = open_us // US
        end = min(max(until_us // US, opened + 1), opened + length)
        columns = self._span(symbol, opened, end, until_us)
        return self._bars(symbol, np.array([opened], np.int64), columns, length)

    def corrected(self, symbol: str, start_us: int, end_us: int) -> NDArray[np.int64]:
        """Open times of the minutes that are corrected in `[start_us, end_us)` of the venue's time."""
        delay = 60 * US + self.correction_delay_us
        begins, ends = (time // US for time in self.lifetime(symbol))
        first = _ceiling(max(-(-(start_us - delay) // US), begins), 60)
        last = _ceiling(min(-(-(end_us - delay) // US), ends), 60)
        minutes = np.arange(first, max(last, first), 60, dtype=np.int64)
        return minutes[self._is_corrected(symbol, minutes)] * US

    def trades(self, symbol: str, start_us: int, end_us: int) -> list[Trade]:
        """The trades of `[start_us, end_us)`, in their order. Their bars are those of `bars`."""
        listing = self.listings[symbol]
        begins, ends = self.lifetime(symbol)
        start_us, end_us = max(start_us, begins), min(end_us, ends)
        if end_us <= start_us:
            return []
        first, last = start_us // US, -(-end_us // US)
        found = self._ticks(symbol, first, last)
        times = (first + np.arange(last - first, dtype=np.int64))[:, None] * US + found.offset_us
        ids = (first + np.arange(last - first, dtype=np.int64))[:, None] * SLOTS + np.arange(SLOTS)
        chosen = found.present & (times >= start_us) & (times < end_us)
        prices = found.price[chosen] / 10.0**listing.price_digits
        sizes = found.lots[chosen] / 10.0**listing.size_digits
        columns = (ids[chosen].tolist(), times[chosen].tolist(), prices.tolist(), sizes.tolist())
        return [Trade(*row) for row in zip(*columns, found.buy[chosen].tolist(), strict=True)]

    def book(self, symbol: str, step: int, depth: int = 20) -> Book:
        """The order book of a step, around the last trade before its end."""
        time_us = (step + 1) * BOOK_US
        last = self.trades(symbol, (time_us // US - 1) * US, time_us)[-1:]
        if not last:
            return Book(step, (), ())
        listing = self.listings[symbol]
        ticks_, lots = 10.0**listing.price_digits, 10.0**listing.size_digits
        price = round(last[0].price * ticks_)
        bid, ask, sizes = levels(self._key(symbol, "book"), step, price, last[0].buy, depth)
        side = [(price / ticks_, size / lots) for price, size in zip((*bid, *ask), sizes, strict=True)]
        return Book(step, tuple(side[:depth]), tuple(side[depth:]))

    def news(self, symbol: str, start_us: int, end_us: int) -> list[News]:
        """The news of `[start_us, end_us)` about an instrument."""
        begins, ends = self.lifetime(symbol)
        minutes = np.arange(max(start_us, begins) // US // 60, -(-min(end_us, ends) // US // 60) + 1, dtype=np.int64)
        key = self._key(symbol, "news")
        found = []
        for minute in minutes[uniform(key, minutes) < self._news_chance].tolist():
            detail = uniform(key ^ 1, np.arange(minute * 4, minute * 4 + 4, dtype=np.int64))
            time_us = minute * 60 * US + int(detail[0] * 60 * US)
            if start_us <= time_us < end_us:
                feeling = float(np.round(2.0 * detail[1] - 1.0, 3))
                verb = "falls" if feeling < -0.3 else "rises" if feeling > 0.3 else "rests"
                found.append(News(minute, time_us, symbol, f"{symbol} {verb}, number {minute} says", feeling))
        return found

    def _bars(self, symbol: str, opens: NDArray[np.int64], columns: Columns, length: int) -> Bars:
        listing = self.listings[symbol]
        prices, lots = 10.0**listing.price_digits, 10.0**listing.size_digits
        return Bars(
            open_us=opens * US,
            close_us=(opens + length) * US,
            open=columns["open"] / prices,
            high=columns["high"] / prices,
            low=columns["low"] / prices,
            close=columns["close"] / prices,
            volume=columns["lots"] / lots,
            quote_volume=columns["value"] / (prices * lots),
            trades=columns["trades"],
            taker_buy=columns["buy_lots"] / lots,
            taker_buy_quote=columns["buy_value"] / (prices * lots),
        )

    def _span(self, symbol: str, first: int, last: int, known_us: int | None) -> Columns:
        """All seconds of `[first, last)` as one bar."""
        whole = min(_ceiling(first, 60), last), max(_floor(last, 60), min(_ceiling(first, 60), last))
        parts = [
            self._columns(symbol, first, whole[0], 1, known_us),
            self._columns(symbol, whole[0], whole[1], 60, known_us) if whole[1] > whole[0] else None,
            self._columns(symbol, whole[1], last, 1, known_us),
        ]
        joined = {name: np.concatenate([part[name] for part in parts if part is not None]) for name in COLUMNS}
        return grouped(joined, len(joined["open"]))

    def _columns(self, symbol: str, first: int, last: int, length: int, known_us: int | None) -> Columns:
        if length < 60 or last <= first:
            found = self._ticks(symbol, first, last)
            return grouped(found.columns(), length)
        days = range(first // _DAY, -(-last // _DAY))
        blocks = []
        for day in days:
            final, early, late = self._minutes(symbol, day)
            since = 60 * np.arange(day * 1440, day * 1440 + 1440, dtype=np.int64)
            # Whoever asks for the truth comes after all corrections.
            late = late & (known_us is not None) & ((since + 60) * US + self.correction_delay_us > (known_us or 0))
            inside = (since >= first) & (since < last)
            blocks.append({name: np.where(late, early[name], final[name])[inside] for name in COLUMNS})
        return grouped({name: np.concatenate([one[name] for one in blocks]) for name in COLUMNS}, length // 60)

    def _minutes(self, symbol: str, day: int) -> tuple[Columns, Columns, NDArray[np.bool_]]:
        """The minutes of a day: all trades, without those of the last second, and whether the latter come first."""
        with self._lock:
            if kept := self._days.get((symbol, day)):
                self._days.move_to_end((symbol, day))
                return kept
        seconds = self._ticks(symbol, day * _DAY, (day + 1) * _DAY).columns()
        final = grouped(seconds, 60)
        late = self._is_corrected(symbol, 60 * np.arange(day * 1440, day * 1440 + 1440, dtype=np.int64))
        early = final
        if late.any():
            early = grouped({name: seconds[name].reshape(-1, 60)[:, :59].ravel() for name in COLUMNS}, 59)
        made = final, early, late
        with self._lock:
            self._days[symbol, day] = made
            if len(self._days) > _KEPT:
                self._days.popitem(last=False)
        return made

    def _is_corrected(self, symbol: str, minutes: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(uniform(self._key(symbol, "corrections"), minutes) < self.corrections)

    def _ticks(self, symbol: str, first: int, last: int) -> Ticks:
        listing = self.listings[symbol]
        return ticks(self._key(symbol, "trades"), listing.price * 10.0**listing.price_digits, first, last)

    def _key(self, symbol: str, use: str) -> int:
        return key(f"{self.seed}/{symbol}/{use}")


def _day(time: datetime, what: str) -> int:
    time_us = to_us(time)
    if time_us % (_DAY * US):
        raise ValueError(f"{what}: {time.isoformat()} is no midnight UTC; a fake market lists by whole days")
    return time_us


def _anchor(length: int) -> int:
    return _MONDAY if length == TIMEFRAMES["1w"] else 0


def _floor(second: int, length: int) -> int:
    return (second - _anchor(length)) // length * length + _anchor(length)


def _ceiling(second: int, length: int) -> int:
    return -(-(second - _anchor(length)) // length) * length + _anchor(length)
