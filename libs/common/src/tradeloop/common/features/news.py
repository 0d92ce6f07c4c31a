"""Features of news, over the columns that `tradeloop.common.market.flow` makes of them."""

from __future__ import annotations

from tradeloop.common.arrays import Floats
from tradeloop.common.features.feature import Feature
from tradeloop.common.features.windowed import windowed


def news_count(n: int = 1) -> Feature:
    """How many pieces of news named the instrument in the last `n` bars."""
    return windowed(f"news_count_{n}", _count, n, ("news_count",))


def news_mean(n: int = 1) -> Feature:
    """Mean sentiment of the news of the last `n` bars that have one, from -1 to 1; 0 where there were none.

    P. Tetlock, "Giving Content to Investor Sentiment", Journal of Finance 62 (2007).
    """
    return windowed(f"news_mean_{n}", _mean, n, ("news_sentiment_sum", "news_rated_count"))


def _count(news_count: Floats) -> float:
    return float(news_count.sum())


def _mean(news_sentiment_sum: Floats, news_rated_count: Floats) -> float:
    count = float(news_rated_count.sum())
    return float(news_sentiment_sum.sum()) / count if count > 0.0 else 0.0
