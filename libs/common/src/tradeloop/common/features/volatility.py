"""Volatility: how far a price moves in a bar, estimated over a window from closes or from ranges."""

from __future__ import annotations

from typing import Literal, get_args

from tradeloop.common.features.composed import composed, over
from tradeloop.common.features.feature import Feature, FeatureError
from tradeloop.common.features.simple import log_ratio

Estimator = Literal["close", "parkinson", "garman_klass", "rogers_satchell", "yang_zhang"]


def volatility(n: int, estimator: Estimator = "close") -> Feature:
    """The standard deviation of a bar's log return over the last `n` bars, per bar, never annualised.

    - `close`: the sample deviation of `n` log returns from close to close, about their mean.
    - `parkinson`: from high and low, for a walk without drift or jumps. M. Parkinson, The Extreme Value Method for
      Estimating the Variance of the Rate of Return, Journal of Business 53 (1980).
    - `garman_klass`: from all four prices, for a walk without drift or jumps. M. B. Garman and M. J. Klass, On the
      Estimation of Security Price Volatilities from Historical Data, Journal of Business 53 (1980), in
      its usual short form.
    - `rogers_satchell`: from all four prices, whatever the drift. L. C. G. Rogers and S. E. Satchell, Estimating
      Variance from High, Low and Closing Prices, Annals of Applied Probability 1 (1991).
    - `yang_zhang`: that of opening jumps, of open to close, and Rogers and Satchell's, weighted for the least variance.
      D. Yang and Q. Zhang, Drift-Independent Volatility Estimation Based on High, Low, Open, and Close Prices, Journal
      of Business 73 (2000).

    Raises `FeatureError`.
    """
    if estimator not in get_args(Estimator):
        raise FeatureError(f"volatility({n}, {estimator!r}): the estimators are {', '.join(get_args(Estimator))}")
    over(f"volatility({n}, {estimator!r})", log_ratio("close", "close", 1), n, least=2)
    return composed(f"volatility_{estimator}_{n}", estimator, _TERMS[estimator], n)


_RANGES = [log_ratio(*pair) for pair in (("high", "close"), ("high", "open"), ("low", "close"), ("low", "open"))]
_WITHIN = log_ratio("close", "open")
_TERMS: dict[str, list[Feature]] = {
    "close": [log_ratio("close", "close", 1)],
    "parkinson": [log_ratio("high", "low")],
    "garman_klass": [log_ratio("high", "low"), _WITHIN],
    "rogers_satchell": _RANGES,
    "yang_zhang": [*_RANGES, log_ratio("open", "close", 1), _WITHIN],
}
