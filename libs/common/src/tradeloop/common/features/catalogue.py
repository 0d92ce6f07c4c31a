"""Every definition of a feature with examples: what docs/features.md is generated from, and what is tested."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tradeloop.common.arrays import Floats
from tradeloop.common.features.calendar import day_of_week, month_of_year, quarter_of_year, session, time_of_day
from tradeloop.common.features.cross_section import cross_demean, cross_mean, cross_rank, cross_zscore, of
from tradeloop.common.features.feature import Feature
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
from tradeloop.common.features.simple import column, log_return, named, on, relative, simple_return
from tradeloop.common.features.talib_functions import change_of, talib
from tradeloop.common.features.vectorised import vectorised
from tradeloop.common.features.volatility import volatility
from tradeloop.common.features.windowed import windowed
from tradeloop.common.features.windows import change, clip, difference, lag, product, ratio, rolling, zscore


def reach(high: Floats, low: Floats, close: Floats) -> Floats | float:
    """Where the close stands in the range of the last bars, from 0 to 1; 0.5 where they have none."""
    top, bottom = high.max(axis=0), low.min(axis=0)
    width = top - bottom
    place: Floats | float = (close[-1] - bottom + (width == 0.0)) / (width + 2.0 * (width == 0.0))
    return place


@dataclass(frozen=True)
class Entry:
    """A definition, and features made with it."""

    define: Callable[..., object]
    examples: Sequence[tuple[str, Feature | tuple[Feature, ...]]]
    """As they are written, and what they are."""

    @property
    def name(self) -> str:
        return self.define.__name__

    @property
    def signature(self) -> str:
        """The call, with the names of its parameters and their defaults."""
        parameters = [
            parameter.replace(annotation=parameter.empty)
            for parameter in inspect.signature(self.define).parameters.values()
        ]
        return f"{self.name}{inspect.Signature(parameters)}"

    @property
    def text(self) -> str:
        """Its docstring: what it is, its range and its source."""
        return inspect.getdoc(self.define) or ""

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of all examples."""
        return tuple(feature for _, made in self.examples for feature in (made if isinstance(made, tuple) else (made,)))


_RANGE = ("high", "low", "close")

CATALOGUE: dict[str, Sequence[Entry]] = {
    "Prices and returns": (
        Entry(log_return, [("log_return(1)", log_return(1)), ("log_return(24)", log_return(24))]),
        Entry(simple_return, [("simple_return(5)", simple_return(5))]),
        Entry(relative, [("relative(talib('EMA', timeperiod=20))", relative(talib("EMA", timeperiod=20)))]),
        Entry(column, [("column('volume')", column("volume"))]),
    ),
    "Volatility": (
        Entry(
            volatility,
            [
                ("volatility(20)", volatility(20)),
                ("volatility(20, 'parkinson')", volatility(20, "parkinson")),
                ("volatility(20, 'garman_klass')", volatility(20, "garman_klass")),
                ("volatility(20, 'rogers_satchell')", volatility(20, "rogers_satchell")),
                ("volatility(20, 'yang_zhang')", volatility(20, "yang_zhang")),
            ],
        ),
    ),
    "TA-Lib": (
        Entry(
            talib,
            [
                ("talib('RSI', timeperiod=14)", talib("RSI", timeperiod=14)),
                ("talib('MACD', output='macdhist')", talib("MACD", output="macdhist")),
                ("talib('CDLDOJI')", talib("CDLDOJI")),
            ],
        ),
        Entry(change_of, [("change_of('OBV', 20)", change_of("OBV", 20))]),
    ),
    "Windows over another feature": (
        Entry(
            zscore,
            [
                ("zscore(column('volume'), 60)", zscore(column("volume"), 60)),
                ("zscore(talib('RSI'), 30)", zscore(talib("RSI"), 30)),
            ],
        ),
        Entry(
            rolling,
            [
                ("rolling('mean', log_return(1), 10)", rolling("mean", log_return(1), 10)),
                ("rolling('total', column('volume'), 10)", rolling("total", column("volume"), 10)),
                ("rolling('deviation', talib('RSI'), 10)", rolling("deviation", talib("RSI"), 10)),
                ("rolling('lowest', log_return(1), 10)", rolling("lowest", log_return(1), 10)),
                ("rolling('highest', log_return(1), 10)", rolling("highest", log_return(1), 10)),
                ("rolling('rank', column('volume'), 50)", rolling("rank", column("volume"), 50)),
            ],
        ),
        Entry(lag, [("lag(log_return(1), 3)", lag(log_return(1), 3)), ("lag(talib('ADX'))", lag(talib("ADX")))]),
        Entry(change, [("change(talib('RSI'), 5)", change(talib("RSI"), 5))]),
    ),
    "Several features at one bar": (
        Entry(difference, [("difference(talib('RSI'), talib('MFI'))", difference(talib("RSI"), talib("MFI")))]),
        Entry(product, [("product(log_return(1), column('volume'))", product(log_return(1), column("volume")))]),
        Entry(
            ratio,
            [
                (
                    "ratio(change_of('OBV', 20), rolling('total', column('volume'), 20))",
                    ratio(change_of("OBV", 20), rolling("total", column("volume"), 20)),
                ),
                ("ratio(volatility(5), volatility(50))", ratio(volatility(5), volatility(50))),
            ],
        ),
        Entry(clip, [("clip(zscore(log_return(1), 60), -3, 3)", clip(zscore(log_return(1), 60), -3, 3))]),
        Entry(named, [("named('trend', talib('ADX'))", named("trend", talib("ADX")))]),
    ),
    "Longer timeframes": (
        Entry(
            on,
            [
                ("on('4h', log_return(6))", on("4h", log_return(6))),
                ("on('1d', volatility(20, 'yang_zhang'))", on("1d", volatility(20, "yang_zhang"))),
            ],
        ),
    ),
    "Calendar": (
        Entry(time_of_day, [("time_of_day('America/New_York')", time_of_day("America/New_York"))]),
        Entry(day_of_week, [("day_of_week()", day_of_week())]),
        Entry(month_of_year, [("month_of_year()", month_of_year())]),
        Entry(quarter_of_year, [("quarter_of_year()", quarter_of_year())]),
        Entry(
            session,
            [
                (
                    "session('09:30', '16:00', 'America/New_York')",
                    session("09:30", "16:00", "America/New_York"),
                ),
                ("session(calendar='fx')", session(calendar="fx")),
                ("session(calendar='XNYS')", session(calendar="XNYS")),
            ],
        ),
    ),
    "Other instruments of the universe": (
        Entry(of, [("of(0, log_return(1))", of(0, log_return(1)))]),
        Entry(cross_mean, [("cross_mean(log_return(1))", cross_mean(log_return(1)))]),
        Entry(cross_demean, [("cross_demean(log_return(5))", cross_demean(log_return(5)))]),
        Entry(cross_zscore, [("cross_zscore(volatility(20))", cross_zscore(volatility(20)))]),
        Entry(cross_rank, [("cross_rank(log_return(60))", cross_rank(log_return(60)))]),
    ),
    "Trades and order books": (
        Entry(order_flow_imbalance, [("order_flow_imbalance(5)", order_flow_imbalance(5))]),
        Entry(spread, [("spread(5)", spread(5))]),
        Entry(book_imbalance, [("book_imbalance(5)", book_imbalance(5))]),
        Entry(microprice_deviation, [("microprice_deviation(5)", microprice_deviation(5))]),
        Entry(realised_volatility, [("realised_volatility(5)", realised_volatility(5))]),
        Entry(trade_intensity, [("trade_intensity(5)", trade_intensity(5))]),
        Entry(buy_pressure, [("buy_pressure(5)", buy_pressure(5))]),
    ),
    "News": (
        Entry(news_count, [("news_count(24)", news_count(24))]),
        Entry(news_mean, [("news_mean(24)", news_mean(24))]),
    ),
    "An author's own function": (
        Entry(windowed, [("windowed('reach', reach, 20, _RANGE)", windowed("reach", reach, 20, _RANGE))]),
        Entry(
            vectorised,
            [("vectorised('reach_60', reach, 60, _RANGE)", vectorised("reach_60", reach, 60, _RANGE))],
        ),
    ),
}
"""Definitions by family."""
