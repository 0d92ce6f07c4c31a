"""Round trips: a position from its opening to the fill that closes it, or turns it to the other side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.market import BarArrays


@dataclass(frozen=True)
class RoundTrip:
    """One position, however often it was added to or reduced."""

    instrument: int
    """Its column."""
    opened: int
    """The bar at whose open the position was opened."""
    closed: int | None
    """The bar at whose open it was closed; None for one that was still open at the end, valued at the last close."""
    bars: int
    """Closes at which it was held."""
    gain: float
    """Profit in quote currency, after fees, slippage and funding."""
    result: float
    """`gain` as a share of the equity at the decision that opened it."""


@dataclass(frozen=True)
class TradeFigures:
    """Figures of round trips. None where there are no trips, or none of that kind."""

    count: int
    still_open: int
    """Trips of `count` that were open at the end."""
    win_rate: float | None
    """The share of trips that gained."""
    average_win: float | None
    average_loss: float | None
    """Average `result` of the trips that gained, and of those that did not."""
    profit_factor: float | None
    """All gains over all losses, in quote currency; None without losses."""
    average_bars: float | None
    """Average number of closes at which a trip was held."""


def round_trips(
    position: Floats,
    fill_quantity: Floats,
    fill_price: Floats,
    fill_fee: Floats,
    equity: Floats,
    bars: BarArrays,
) -> list[RoundTrip]:
    """The round trips of a book in the order of their opening; all gains together are what equity gained.

    Positions are (T, A), at each close; fills are (T, A), at the open of each bar and signed; `equity` is (T,), at each
    close. A fill that flips a position belongs to both trips, its fee in proportion to the quantities.
    """
    trips = [
        trip
        for a in range(position.shape[1])
        for trip in _of_one(a, position[:, a], fill_quantity[:, a], fill_price[:, a], fill_fee[:, a], equity, bars)
    ]
    return sorted(trips, key=lambda trip: (trip.opened, trip.instrument))


def _of_one(
    a: int, position: Floats, quantity: Floats, price: Floats, fee: Floats, equity: Floats, bars: BarArrays
) -> list[RoundTrip]:
    close = np.nan_to_num(bars.close[:, a])
    paid = np.cumsum(np.where(bars.present[:, a], position * close * bars.funding_rate[:, a], 0.0))
    trips: list[RoundTrip] = []
    opened, cash, before = 0, 0.0, 0.0

    def end(row: int, value: float, closed: int | None) -> None:
        funding = paid[row - 1] - (paid[opened - 1] if opened else 0.0)
        gain = float(cash + value - funding)
        trips.append(RoundTrip(a, opened, closed, row - opened, gain, gain / float(equity[max(opened - 1, 0)])))

    for row in np.flatnonzero(quantity).tolist():
        after, spent = float(position[row]), float(quantity[row] * price[row] + fee[row])
        flipped = before * after < 0.0
        closing = abs(before / float(quantity[row])) if flipped else 1.0
        if before == 0.0:
            opened, cash = row, 0.0
        cash -= closing * spent
        if before != 0.0 and (after == 0.0 or flipped):
            end(row, 0.0, row)
            opened, cash = row, -(1.0 - closing) * spent
        before = after
    if before != 0.0:
        end(len(quantity), before * float(close[-1]), None)
    return trips


def trade_figures(trips: list[RoundTrip]) -> TradeFigures:
    """Figures of round trips."""
    gains = np.array([trip.gain for trip in trips])
    results = np.array([trip.result for trip in trips])
    won = gains > 0.0
    lost = float(-gains[~won].sum())
    return TradeFigures(
        count=len(trips),
        still_open=sum(trip.closed is None for trip in trips),
        win_rate=float(won.mean()) if len(trips) else None,
        average_win=float(results[won].mean()) if won.any() else None,
        average_loss=float(results[~won].mean()) if (~won).any() else None,
        profit_factor=float(gains[won].sum()) / lost if lost > 0.0 else None,
        average_bars=float(np.mean([trip.bars for trip in trips])) if len(trips) else None,
    )
