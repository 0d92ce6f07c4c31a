"""The statements of a feature about the returns that follow: information coefficients, and how far to trust them.

Everything is pooled over instruments and bars. A coefficient is the correlation of a feature at a close with the log
return of the next h bars (Grinold and Kahn, Active Portfolio Management); the rank coefficient is Spearman's. Returns
over more than a bar overlap, and so do their errors: a standard error is that of Newey and West (A Simple, Positive
Semi-Definite, Heteroskedasticity and Autocorrelation Consistent Covariance Matrix, Econometrica 55, 1987) over the mean
product of both at each close, which also takes instruments that move together for what they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.market import BarArrays

SPANS = 8
"""Equal parts of time in which a coefficient is measured again."""


@dataclass(frozen=True)
class Coefficient:
    """The information coefficients of a feature at one horizon; NaN where there is too little to say."""

    horizon: int
    pairs: int
    """Bars and instruments at which both are known."""
    ic: float
    rank_ic: float
    error: float
    """Standard error of the rank coefficient."""
    p_value: float
    """Two-sided, of the rank coefficient, taken alone."""
    adjusted: float
    """The same by Holm's method, for as many tests as there are features and horizons."""
    spans: tuple[float, ...]
    """The rank coefficient in each of `SPANS` parts of time."""


@dataclass(frozen=True)
class FeatureFacts:
    """A feature by itself, and beside what followed."""

    name: str
    missing: float
    """Share of bars without a value, warm-up included."""
    autocorrelation: float
    """Its correlation with its value one bar before."""
    coefficients: tuple[Coefficient, ...]


def forward_returns(bars: BarArrays, horizon: int) -> Floats:
    """Log returns (T, A) over the next bars; NaN where there are none, or the instrument has no bar."""
    returns = np.full(bars.close.shape, np.nan)
    if horizon < len(bars):
        returns[:-horizon] = np.log(bars.close[horizon:] / bars.close[:-horizon])
        returns[:-horizon][~(bars.present[:-horizon] & bars.present[horizon:])] = np.nan
    return returns


def examine(bars: BarArrays, names: Sequence[str], values: Floats, horizons: Sequence[int]) -> list[FeatureFacts]:
    """The facts of features (T, A, F) over the bars."""
    found = []
    for f, name in enumerate(names):
        own = values[..., f]
        known = ~np.isnan(own)
        found.append(
            FeatureFacts(
                name=name,
                missing=float(1.0 - known[bars.present].mean()),
                autocorrelation=_correlation(own[:-1], own[1:], known[:-1] & known[1:]),
                coefficients=tuple(_coefficient(own, forward_returns(bars, h), h) for h in horizons),
            )
        )
    return _holm(found)


def correlations(values: Floats) -> Floats:
    """Rank correlations (F, F) of features (T, A, F) with each other, where all of them are known."""
    rows = values.reshape(-1, values.shape[2])
    ranked = [ranks(column) for column in rows[~np.isnan(rows).any(axis=1)].T]
    every = np.ones(len(ranked[0]), dtype=np.bool_)
    return np.array([[_correlation(one, other, every) for other in ranked] for one in ranked])


def ranks(values: Floats) -> Floats:
    """Ranks (n,) from 1 on; equal values share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: Floats = (last - (counts - 1) / 2.0)[inverse]
    return shared


def _coefficient(feature: Floats, returns: Floats, horizon: int) -> Coefficient:
    known = ~np.isnan(feature) & ~np.isnan(returns)
    ic = _correlation(feature, returns, known)
    pairs = int(known.sum())
    if math.isnan(ic):
        return Coefficient(horizon, pairs, ic, ic, ic, ic, ic, (ic,) * SPANS)
    product = np.full(feature.shape, np.nan)
    product[known] = _standard(ranks(feature[known])) * _standard(ranks(returns[known]))
    at = known.any(axis=1)
    # Each close counts by its pairs, so that the mean is the coefficient.
    share = np.nansum(product, axis=1)[at] * (at.sum() / pairs)
    rank_ic, error = float(share.mean()), newey_west(share, max(2 * horizon, int(4 * (len(share) / 100) ** (2 / 9))))
    p_value = math.erfc(abs(rank_ic) / error / math.sqrt(2.0)) if error > 0.0 else math.nan
    spans = [
        _ranked(part, later, mask)
        for part, later, mask in zip(*(np.array_split(one, SPANS) for one in (feature, returns, known)), strict=True)
    ]
    return Coefficient(horizon, pairs, ic, rank_ic, error, p_value, p_value, tuple(spans))


def newey_west(series: Floats, lags: int) -> float:
    """Standard error of the mean of a series (n,), with Bartlett's weights for so many lags."""
    n = len(series)
    apart = series - series.mean()
    variance = apart @ apart
    for lag in range(1, min(lags, n - 1) + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1.0)) * (apart[lag:] @ apart[:-lag])
    return math.sqrt(max(float(variance), 0.0)) / n


def _ranked(one: Floats, other: Floats, known: Bools) -> float:
    if known.sum() < 3:
        return math.nan
    return _correlation(ranks(one[known]), ranks(other[known]), np.ones(int(known.sum()), dtype=np.bool_))


def _correlation(one: Floats, other: Floats, known: Bools) -> float:
    """Pearson's, of what is known; NaN where one of them never changes."""
    if known.sum() < 3:
        return math.nan
    a, b = one[known], other[known]
    if np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return math.nan
    return float((_standard(a) * _standard(b)).mean())


def _standard(values: Floats) -> Floats:
    scaled: Floats = (values - values.mean()) / values.std()
    return scaled


def _holm(found: list[FeatureFacts]) -> list[FeatureFacts]:
    """Adjust the p-values for their number (S. Holm, Scandinavian Journal of Statistics 6, 1979)."""
    flat = [c.p_value for facts in found for c in facts.coefficients if not math.isnan(c.p_value)]
    adjusted: dict[float, float] = {}
    most = 0.0
    for place, p_value in enumerate(sorted(flat)):
        most = max(most, min(1.0, (len(flat) - place) * p_value))
        adjusted.setdefault(p_value, most)
    return [
        FeatureFacts(
            facts.name,
            facts.missing,
            facts.autocorrelation,
            tuple(
                Coefficient(**{**vars(c), "adjusted": adjusted.get(c.p_value, math.nan)}) for c in facts.coefficients
            ),
        )
        for facts in found
    ]
