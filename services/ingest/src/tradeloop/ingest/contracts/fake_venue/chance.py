"""Chance that is a pure function of a key and a counter, and the trades that are made of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SLOTS = 2
"""Trades that a second has at most. It has one at least, so that no bar is empty."""
_SLOT_US = 1_000_000 // SLOTS

COLUMNS = ("open", "high", "low", "close", "lots", "value", "trades", "buy_lots", "buy_value")
Columns = dict[str, NDArray[np.int64]]
"""Bars in whole ticks and lots; `value` is their product, summed over the trades."""

_PERIODS = (1, 7, 60, 420, 2880, 20_160, 131_400)
"""Minutes between the knots of each wave of the price."""
_MOVE = 5e-4
"""How far a wave of a minute moves the price; longer ones move it by the root of their period, as in a random walk."""
_NOISE = 5e-5
"""How far a trade is from the price of its second, at most."""


@lru_cache(maxsize=65_536)
def key(text: str) -> int:
    """A key of 63 bits from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def bits(key: int, counter: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each counter: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
    OOPSLA 2014), started at the key and asked for its n-th number."""
    state = counter.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def uniform(key: int, counter: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in [0, 1)."""
    return np.asarray((bits(key, counter) >> np.uint64(11)) * 2.0**-53)


@dataclass(frozen=True, slots=True)
class Ticks:
    """The slots of consecutive seconds, (n, SLOTS) each; a slot that is not `present` has no trade."""

    price: NDArray[np.int64]
    lots: NDArray[np.int64]
    buy: NDArray[np.bool_]
    present: NDArray[np.bool_]
    offset_us: NDArray[np.int64]
    """Since the second's begin; rising from slot to slot."""

    def columns(self) -> Columns:
        """The bars of the seconds."""
        price, lots = self.price, np.where(self.present, self.lots, 0)
        value, bought = price * lots, np.where(self.buy, lots, 0)
        last = np.where(self.present[:, 1], price[:, 1], price[:, 0])
        return {
            "open": price[:, 0],
            "high": np.maximum(price[:, 0], last),
            "low": np.minimum(price[:, 0], last),
            "close": last,
            "lots": lots.sum(axis=1),
            "value": value.sum(axis=1),
            "trades": self.present.sum(axis=1, dtype=np.int64),
            "buy_lots": bought.sum(axis=1),
            "buy_value": (price * bought).sum(axis=1),
        }


def ticks(key: int, price: float, first: int, last: int) -> Ticks:
    """The trades of the seconds `[first, last)`, at about a price in ticks."""
    seconds = np.arange(first, max(last, first), dtype=np.int64)
    minutes = np.arange(first // 60, max(last, first) // 60 + 2, dtype=np.int64)
    at = price * np.exp(_wave(key, minutes))
    level = np.interp(seconds, minutes * 60, at)
    random = bits(key, seconds[:, None] * SLOTS + np.arange(SLOTS))
    noise = (random & np.uint64(0xFFFFF)).astype(np.float64) * (2.0 / 2**20) - 1.0
    size = ((random >> np.uint64(20)) & np.uint64(0xFFFF)).astype(np.float64) / 2**16
    present = ((random >> np.uint64(36)) & np.uint64(1)).astype(np.bool_)
    present[:, 0] = True
    offset = ((random >> np.uint64(38)) % np.uint64(_SLOT_US)).astype(np.int64) + _SLOT_US * np.arange(SLOTS)
    return Ticks(
        np.maximum(np.rint(level[:, None] * (1.0 + _NOISE * noise)), 1.0).astype(np.int64),
        1 + (999.0 * size**3).astype(np.int64),
        ((random >> np.uint64(37)) & np.uint64(1)).astype(np.bool_),
        present,
        offset,
    )


def grouped(columns: Columns, size: int) -> Columns:
    """Bars of `size` bars each."""
    if size == 1:
        return columns
    rows = {name: column.reshape(-1, size) if size else column.reshape(0, 1) for name, column in columns.items()}
    sums = {name: rows[name].sum(axis=1) for name in COLUMNS[4:]}
    return {
        "open": rows["open"][:, 0],
        "high": rows["high"].max(axis=1),
        "low": rows["low"].min(axis=1),
        "close": rows["close"][:, -1],
        **sums,
    }


def levels(key: int, step: int, price: int, bought: bool, depth: int) -> tuple[list[int], list[int], list[int]]:
    """The prices of bids and of asks around a last trade, and the sizes of both in this order; ticks and lots.

    The size at a price stays for some steps, so that a book changes in parts.
    """
    spread = 1 + int(bits(key, np.array([step // 10], np.int64))[0] % np.uint64(3))
    ask = price if bought else price + spread
    bid = max(ask - spread, 1)
    bids = np.maximum(bid - np.arange(depth, dtype=np.int64), 1)
    asks = ask + np.arange(depth, dtype=np.int64)
    prices = np.r_[bids, asks]
    lots = 1 + (bits(key ^ 1, prices * 1_048_576 + step // (5 + prices % 7)) % np.uint64(5000)).astype(np.int64)
    return bids.tolist(), asks.tolist(), lots.tolist()


def _wave(key: int, minutes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The logarithm of the price at each minute, around 0."""
    total = np.zeros(len(minutes))
    for number, period in enumerate(_PERIODS):
        knots = np.arange(minutes[0] // period, minutes[-1] // period + 2, dtype=np.int64)
        heights = 2.0 * uniform(key + 2 * number + 1, knots) - 1.0
        total += _MOVE * np.sqrt(period) * np.interp(minutes, knots * period, heights)
    return total
