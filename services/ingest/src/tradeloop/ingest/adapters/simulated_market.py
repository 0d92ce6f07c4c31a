"""`SimulatedMarket`: prices, trades and order books that are a pure function of a seed, a symbol and a time.

There is one trade a second. The logarithm of the price is a Brownian motion by Lévy's construction (the value half way
between two known ones is their mean and a normal deviate), so that any second can be had without those before it;
the deviates are hashes of their place: the same ones in any order, any process and any year.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import Series, Timeframe

SECOND_US = 1_000_000
TICK_SIZE = 0.01
LOT_SIZE = 0.001
LEVELS = 10
"""Levels on each side of an order book."""

_COARSEST_S = 1 << 26
"""Distance of the values that all others lie between, some two years; they do not depend on each other."""
_BLOCK_S = 1 << 12
_KEPT_BLOCKS = 2048
_YEARLY_VOLATILITY = 0.6
_VARIANCE = _YEARLY_VOLATILITY**2 / (365 * 86_400)
"""The variance of the logarithm of the price, a second."""

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]

_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Trades:
    """The trades of a range of seconds, one each; arrays of one length."""

    time_us: _Ints
    price: _Floats
    lots: _Ints
    """Sizes in lots."""
    bought: NDArray[np.bool_]
    """Whether the buyer took liquidity."""


class SimulatedMarket:
    """The market of a seed. Any symbol has one; it is not shared between threads."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._blocks: OrderedDict[tuple[str, int], Trades] = OrderedDict()
        self._keys: dict[str, np.uint64] = {}

    def trades(self, symbol: str, start_s: int, stop_s: int) -> Trades:
        """The trades of the seconds `[start_s, stop_s)` since the epoch."""
        parts = []
        for block in range(start_s // _BLOCK_S, -(-stop_s // _BLOCK_S)):
            first_s = block * _BLOCK_S
            inside = slice(max(start_s - first_s, 0), min(stop_s - first_s, _BLOCK_S))
            trades = self._block(symbol, block)
            parts.append((trades.time_us[inside], trades.price[inside], trades.lots[inside], trades.bought[inside]))
        if not parts:
            return Trades(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), np.empty(0, np.bool_))
        time_us, price, lots, bought = zip(*parts, strict=True)
        return Trades(np.concatenate(time_us), np.concatenate(price), np.concatenate(lots), np.concatenate(bought))

    def bars(self, symbol: str, timeframe: Timeframe, open_us: _Ints, until_us: int | None = None) -> Series:
        """The bars that open at these times, of the trades before `until_us` where it is given.

        The times follow each other without a gap, and each bar has at least one trade.
        """
        length_s = timeframe.us // SECOND_US
        if not len(open_us):
            return {name: np.empty(0) for name in ("open", "high", "low", "close", "volume")} | {"open_us": open_us}
        start_s = int(open_us[0]) // SECOND_US
        stop_s = start_s + len(open_us) * length_s
        if until_us is not None:
            stop_s = min(stop_s, until_us // SECOND_US)
        trades = self.trades(symbol, start_s, stop_s)
        first = np.arange(0, stop_s - start_s, length_s)
        last = np.minimum(first + length_s, stop_s - start_s) - 1
        return {
            "open_us": open_us,
            "open": trades.price[first],
            "high": np.maximum.reduceat(trades.price, first),
            "low": np.minimum.reduceat(trades.price, first),
            "close": trades.price[last],
            # Lots are whole numbers: their sum does not depend on an order.
            "volume": np.add.reduceat(trades.lots, first) * LOT_SIZE,
        }

    def book(self, symbol: str, second: int) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        """Bids and asks, price and size of each level, the best first, after the trade of a second."""
        trade = self.trades(symbol, second, second + 1)
        ticks = round(float(trade.price[0]) / TICK_SIZE)
        # Level 0 is the touch: a buyer paid the ask, a seller got the bid, and the other side is 1 to 3 ticks away.
        words = _hash(self._key(symbol), np.uint64(3), np.arange(2 * LEVELS + 1, dtype=np.uint64), second)
        spread = 1 + int(words[-1] % np.uint64(3))
        bid = ticks - spread if trade.bought[0] else ticks
        lots = (1 + words[:-1] % np.uint64(5000)).astype(np.int64).tolist()
        bids = tuple((round((bid - i) * TICK_SIZE, 2), lots[i] * LOT_SIZE) for i in range(LEVELS))
        asks = tuple((round((bid + spread + i) * TICK_SIZE, 2), lots[LEVELS + i] * LOT_SIZE) for i in range(LEVELS))
        return bids, asks

    def _block(self, symbol: str, block: int) -> Trades:
        place = (symbol, block)
        if place in self._blocks:
            self._blocks.move_to_end(place)
            return self._blocks[place]
        key, start_s = self._key(symbol), block * _BLOCK_S
        seconds = np.arange(start_s, start_s + _BLOCK_S)
        middle = 20.0 * math.exp(float(_uniform(_hash(key, np.uint64(0), np.zeros(1, np.uint64)))[0]) * 8.0)
        # Rounded to whole ticks, and 100 of them away from zero whatever happens.
        ticks = np.maximum(np.rint(middle * np.exp(_brownian(key, start_s, _BLOCK_S)) / TICK_SIZE), 100.0)
        moves = np.diff(ticks, prepend=ticks[:1])
        words = _hash(key, np.uint64(1), seconds.astype(np.uint64))
        even = (words & np.uint64(1)).astype(np.bool_)
        # A long tail: the inverse of a uniform number, up to some hundred times the median.
        lots = np.rint(200.0 / (1e-2 + _uniform(words))).astype(np.int64)
        within_us = (_hash(key, np.uint64(2), seconds.astype(np.uint64)) % np.uint64(SECOND_US)).astype(np.int64)
        trades = Trades(
            seconds * SECOND_US + within_us, np.round(ticks * TICK_SIZE, 2), lots, np.where(moves == 0, even, moves > 0)
        )
        self._blocks[place] = trades
        if len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return trades

    def _key(self, symbol: str) -> np.uint64:
        if symbol not in self._keys:
            told = blake2b(f"{self._seed}|{symbol}".encode(), digest_size=8).digest()
            self._keys[symbol] = np.uint64(int.from_bytes(told, "big"))
        return self._keys[symbol]


def _brownian(key: np.uint64, start_s: int, count: int) -> _Floats:
    """Values at the seconds `[start_s, start_s + count)` of a motion whose variance grows by `_VARIANCE` a second."""
    first = start_s // _COARSEST_S
    nodes = np.arange(first, (start_s + count - 1) // _COARSEST_S + 2)
    values = _normal(key, _COARSEST_S, nodes * _COARSEST_S) * math.sqrt(_VARIANCE * _COARSEST_S / 2)
    at_s, step_s = first * _COARSEST_S, _COARSEST_S
    while step_s > 1:
        middles = at_s + step_s // 2 + np.arange(len(values) - 1) * step_s
        deviates = _normal(key, step_s, middles) * math.sqrt(_VARIANCE * step_s / 4)
        finer = np.empty(2 * len(values) - 1)
        finer[0::2], finer[1::2] = values, (values[:-1] + values[1:]) / 2 + deviates
        step_s //= 2
        # Of all seconds so far, only those around the range.
        low = (start_s - at_s) // step_s
        high = -(-(start_s + count - at_s) // step_s) + 1
        values, at_s = finer[low : high + 1], at_s + low * step_s
    return values[:count]


def _normal(key: np.uint64, level: int, places: _Ints) -> _Floats:
    """A standard normal deviate for each place, by the Box-Muller transform."""
    words = places.astype(np.uint64)
    # Away from zero, whose logarithm there is not.
    radius = np.sqrt(-2.0 * np.log(1.0 - _uniform(_hash(key, np.uint64(2 * level), words))))
    return np.asarray(radius * np.cos(2.0 * np.pi * _uniform(_hash(key, np.uint64(2 * level + 1), words))))


def _uniform(words: _Words) -> _Floats:
    """Numbers in `[0, 1)` from 53 bits each."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hash(key: np.uint64, stream: np.uint64, places: _Words, more: int = 0) -> _Words:
    """SplitMix64 (Steele, Lea and Flood, 2014) of a key, a stream and each place."""
    with np.errstate(over="ignore"):
        words = _mixed(_mixed(np.full(1, key ^ np.uint64(more)) + stream * _GOLDEN) ^ places)
        return _mixed(words + _GOLDEN)


def _mixed(words: _Words) -> _Words:
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return np.asarray(words ^ (words >> np.uint64(31)))
