"""Features of trades and order books, over the columns that `tradeloop.common.market.flow` makes of them.

They are NaN where a bar of their window lacks a column: its source does not give it, or the stream was away.
"""

from __future__ import annotations

import math

from tradeloop.common.arrays import Floats
from tradeloop.common.features.feature import Feature
from tradeloop.common.features.windowed import windowed


def order_flow_imbalance(n: int = 1) -> Feature:
    """Order flow imbalance of the last `n` bars in units of the mean depth: how far the flow would move the price.

    R. Cont, A. Kukanov, S. Stoikov, "The Price Impact of Order Book Events", Journal of Financial Econometrics 12
    (2014): the price moves with the flow, in inverse proportion to the depth.
    """
    return windowed(f"order_flow_imbalance_{n}", _flow, n, ("order_flow_imbalance", "depth_mean"))


def spread(n: int = 1) -> Feature:
    """Mean spread of the last `n` bars as a share of the mid price."""
    return windowed(f"spread_{n}", _spread, n, ("spread_mean",))


def book_imbalance(n: int = 1) -> Feature:
    """Mean imbalance of the best sizes over the last `n` bars, from -1 for asks alone to 1 for bids alone.

    M. Gould, J. Bonart, "Queue Imbalance as a One-Tick-Ahead Price Predictor", Market Microstructure and Liquidity 2
    (2016).
    """
    return windowed(f"book_imbalance_{n}", _imbalance, n, ("book_imbalance_mean",))


def microprice_deviation(n: int = 1) -> Feature:
    """Mean of the weighted mid price less the mid price, as a share of that, over the last `n` bars.

    S. Stoikov, "The Micro-Price", Quantitative Finance 18 (2018), whose first approximation it is.
    """
    return windowed(f"microprice_deviation_{n}", _deviation, n, ("microprice_deviation_mean",))


def realised_volatility(n: int = 1) -> Feature:
    """Square root of the realised variance of the last `n` bars, from trade to trade.

    T. Andersen, T. Bollerslev, "Answering the Skeptics", International Economic Review 39 (1998). Trades that bounce
    between bid and ask add to it.
    """
    return windowed(f"realised_volatility_{n}", _volatility, n, ("realised_variance",))


def trade_intensity(n: int = 1) -> Feature:
    """Trades a second, the mean of the last `n` bars."""
    return windowed(f"trade_intensity_{n}", _intensity, n, ("trade_intensity",))


def buy_pressure(n: int = 1) -> Feature:
    """Volume of buyers less that of sellers who took liquidity in the last `n` bars, as a share of both: -1 to 1.

    It is 0 where nothing traded. T. Chordia, R. Roll, A. Subrahmanyam, "Order Imbalance, Liquidity, and Market
    Returns", Journal of Financial Economics 65 (2002).
    """
    return windowed(f"buy_pressure_{n}", _pressure, n, ("buy_volume", "sell_volume"))


def _flow(order_flow_imbalance: Floats, depth_mean: Floats) -> float:
    return float(order_flow_imbalance.sum() / depth_mean.mean())


def _spread(spread_mean: Floats) -> float:
    return float(spread_mean.mean())


def _imbalance(book_imbalance_mean: Floats) -> float:
    return float(book_imbalance_mean.mean())


def _deviation(microprice_deviation_mean: Floats) -> float:
    return float(microprice_deviation_mean.mean())


def _volatility(realised_variance: Floats) -> float:
    return math.sqrt(realised_variance.sum())


def _intensity(trade_intensity: Floats) -> float:
    return float(trade_intensity.mean())


def _pressure(buy_volume: Floats, sell_volume: Floats) -> float:
    bought, sold = float(buy_volume.sum()), float(sell_volume.sum())
    return (bought - sold) / (bought + sold) if bought + sold > 0.0 else 0.0
