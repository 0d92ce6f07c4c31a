"""Features: defined once, computed in batch for training and bar by bar for trading, bit-identical.

A recursive indicator (EMA, RSI, ...) depends in its last bits on where its series began. So every feature is
restarted at fixed anchors in event time, every `ANCHOR_BARS` bars of its timeframe, from a bounded number of
bars before the anchor (`Feature.history`): a value is a function of bounded history, the same in a batch, in a
stream that never stopped, and in one that was opened a moment ago.
"""

from __future__ import annotations

from tradeloop.common.features.basis import basis_in_steps
from tradeloop.common.features.calendar import day_of_week, month_of_year, quarter_of_year, session, time_of_day
from tradeloop.common.features.cross_section import (
    CrossSection,
    cross_demean,
    cross_mean,
    cross_rank,
    cross_zscore,
    of,
)
from tradeloop.common.features.feature import ANCHOR_BARS, BarValues, Feature, FeatureError
from tradeloop.common.features.feature_set import FeatureSet
from tradeloop.common.features.from_store import (
    bars_with_history,
    check_columns,
    compute_in_steps,
    compute_stored,
    no_bars,
)
from tradeloop.common.features.microstructure import (
    book_imbalance,
    buy_pressure,
    microprice_deviation,
    order_flow_imbalance,
    realised_volatility,
    spread,
    trade_intensity,
)
from tradeloop.common.features.news import news_count, news_mean
from tradeloop.common.features.shown import shown
from tradeloop.common.features.simple import column, log_return, named, on, relative, simple_return
from tradeloop.common.features.stream import FeatureStream, Values
from tradeloop.common.features.talib_functions import change_of, talib
from tradeloop.common.features.vectorised import vectorised
from tradeloop.common.features.volatility import volatility
from tradeloop.common.features.windowed import windowed
from tradeloop.common.features.windows import change, clip, difference, lag, product, ratio, rolling, zscore

__all__ = [
    "ANCHOR_BARS",
    "BarValues",
    "CrossSection",
    "Feature",
    "FeatureError",
    "FeatureSet",
    "FeatureStream",
    "Values",
    "bars_with_history",
    "basis_in_steps",
    "book_imbalance",
    "buy_pressure",
    "change",
    "change_of",
    "check_columns",
    "clip",
    "column",
    "compute_in_steps",
    "compute_stored",
    "cross_demean",
    "cross_mean",
    "cross_rank",
    "cross_zscore",
    "day_of_week",
    "difference",
    "lag",
    "log_return",
    "microprice_deviation",
    "month_of_year",
    "named",
    "news_count",
    "news_mean",
    "no_bars",
    "of",
    "on",
    "order_flow_imbalance",
    "product",
    "quarter_of_year",
    "ratio",
    "realised_volatility",
    "relative",
    "rolling",
    "session",
    "shown",
    "simple_return",
    "spread",
    "talib",
    "time_of_day",
    "trade_intensity",
    "vectorised",
    "volatility",
    "windowed",
    "zscore",
]
