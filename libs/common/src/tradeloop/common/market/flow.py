"""Trades, order books and news within a bar as further columns of it. Pure: by the venue's own times.

Sources: R. Cont, A. Kukanov, S. Stoikov, "The Price Impact of Order Book Events", Journal of Financial Econometrics 12
(2014), for order flow imbalance and depth; T. Andersen, T. Bollerslev, "Answering the Skeptics", International Economic
Review 39 (1998), for realised variance; S. Stoikov, "The Micro-Price", Quantitative Finance 18 (2018), whose weighted
mid price is taken here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Traded:
    """A trade of others."""

    time_us: int
    price: float
    size: float
    side: Literal["buy", "sell"] | None
    """The side of whoever took liquidity; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Quoted:
    """The best prices of an order book, and their sizes; the ask is above the bid, and all are positive."""

    time_us: int
    bid: float
    bid_size: float
    ask: float
    ask_size: float


def trade_columns(trades: Sequence[Traded], open_us: int, close_us: int) -> dict[str, float]:
    """Columns from all trades of a bar, in the order of time.

    `trade_count`; `trade_intensity`, trades a second; `realised_variance`, the sum of squared logarithmic returns from
    trade to trade; `vwap`, the mean price by size, absent without a trade; `buy_volume` and `sell_volume` by the side
    that took liquidity, absent where the venue does not tell it of one.
    """
    columns = {
        "trade_count": float(len(trades)),
        "trade_intensity": len(trades) / ((close_us - open_us) / _SECOND_US),
        "realised_variance": 0.0,
    }
    size = value = 0.0
    taken = {"buy": 0.0, "sell": 0.0}
    before: float | None = None
    for trade in trades:
        size += trade.size
        value += trade.size * trade.price
        if trade.side is not None:
            taken[trade.side] += trade.size
        if before is not None:
            columns["realised_variance"] += math.log(trade.price / before) ** 2
        before = trade.price
    if size > 0.0:
        columns["vwap"] = value / size
    if all(trade.side is not None for trade in trades):
        columns |= {"buy_volume": taken["buy"], "sell_volume": taken["sell"]}
    return columns


def book_columns(books: Sequence[Quoted], before: Quoted | None, open_us: int, close_us: int) -> dict[str, float]:
    """Columns from all states of a bar's order book, in the order of time; `before` is the last one before the bar.

    `order_flow_imbalance` sums what each change of the best prices adds to demand and takes from supply (Cont, Kukanov
    and Stoikov, equations 3 and 4). The others are means over the time for which a state is known: `spread_mean`, ask
    less bid, `microprice_deviation_mean`, microprice less mid price, both as a share of the mid price; `depth_mean`,
    half of what stands at both best prices; `book_imbalance_mean`, from -1, all of that asks, to 1, all of it bids.
    Nothing at all where no state came within the bar.
    """
    if not books:
        return {}
    flow = known = spread = depth = imbalance = deviation = 0.0
    states = list(books) if before is None else [before, *books]
    for one, book in enumerate(states):
        until_us = states[one + 1].time_us if one + 1 < len(states) else close_us
        share = float(until_us - max(book.time_us, open_us))
        mid, both = (book.bid + book.ask) / 2.0, book.bid_size + book.ask_size
        microprice = (book.ask * book.bid_size + book.bid * book.ask_size) / both
        known += share
        spread += share * ((book.ask - book.bid) / mid)
        depth += share * (both / 2.0)
        imbalance += share * ((book.bid_size - book.ask_size) / both)
        deviation += share * ((microprice - mid) / mid)
        if one:
            flow += _change(states[one - 1], book)
    return {
        "order_flow_imbalance": flow,
        "spread_mean": spread / known,
        "depth_mean": depth / known,
        "book_imbalance_mean": imbalance / known,
        "microprice_deviation_mean": deviation / known,
    }


def _change(before: Quoted, book: Quoted) -> float:
    """The demand that a change of the best prices adds, less the supply."""
    demand = (book.bid_size if book.bid >= before.bid else 0.0) - (before.bid_size if book.bid <= before.bid else 0.0)
    supply = (book.ask_size if book.ask <= before.ask else 0.0) - (before.ask_size if book.ask >= before.ask else 0.0)
    return demand - supply


def news_columns(sentiments: Sequence[float | None]) -> dict[str, float]:
    """Columns from all news of a bar: `news_count`, how many have a sentiment, and the sum of these sentiments.

    Their quotient is the mean, over any number of bars.
    """
    rated = [one for one in sentiments if one is not None]
    return {
        "news_count": float(len(sentiments)),
        "news_rated_count": float(len(rated)),
        "news_sentiment_sum": float(sum(rated)),
    }
