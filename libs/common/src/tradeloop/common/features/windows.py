"""Windows over the values of a feature, and several features at one bar, as an author writes them."""

from __future__ import annotations

from typing import Literal, get_args

from tradeloop.common.features.composed import composed, over
from tradeloop.common.features.feature import Feature, FeatureError

Rolling = Literal["mean", "total", "deviation", "lowest", "highest", "rank"]


def rolling(what: Rolling, feature: Feature, n: int) -> Feature:
    """The mean, total, deviation, lowest, highest or rank of the feature's last `n` values, the present one among them.

    `deviation` is that of the population (a division by n), computed in two passes. `rank` is that of the present value
    among them, from -1 for the lowest to 1 for the highest; equal values count half. Raises `FeatureError`.
    """
    if what not in get_args(Rolling):
        raise FeatureError(f"rolling({what!r}, ...): it can be {', '.join(get_args(Rolling))}")
    over(f"rolling({what!r}, ...)", feature, n, least=2 if what == "rank" else 1)
    return composed(f"{what}_{_name(feature)}_{n}", what, [feature], n)


def zscore(feature: Feature, n: int) -> Feature:
    """The feature less the mean of its last `n` values, over their deviation (of the population); the present value is
    among them. 0 where all of them are equal."""
    over("zscore(...)", feature, n, least=2)
    return composed(f"zscore_{_name(feature)}_{n}", "zscore", [feature], n)


def lag(feature: Feature, n: int = 1) -> Feature:
    """The feature as it was `n` of the instrument's own bars ago."""
    over("lag(...)", feature, n)
    return composed(f"lag_{_name(feature)}_{n}", "lag", [feature], n + 1)


def change(feature: Feature, n: int = 1) -> Feature:
    """The feature less what it was `n` of the instrument's own bars ago."""
    over("change(...)", feature, n)
    return composed(f"change_{_name(feature)}_{n}", "change", [feature], n + 1)


def difference(one: Feature, other: Feature) -> Feature:
    """One feature less another at the same bar."""
    return composed(f"{_name(one)}_less_{_name(other)}", "difference", [one, other])


def product(one: Feature, other: Feature) -> Feature:
    """One feature times another at the same bar."""
    return composed(f"{_name(one)}_times_{_name(other)}", "product", [one, other])


def ratio(one: Feature, other: Feature, otherwise: float = 0.0) -> Feature:
    """One feature over another at the same bar; `otherwise` where the other is 0."""
    return composed(f"{_name(one)}_per_{_name(other)}", "ratio", [one, other], parameters=[otherwise])


def clip(feature: Feature, low: float, high: float) -> Feature:
    """The feature, but no less than `low` and no more than `high`. Raises `FeatureError` where `low` is the higher."""
    made = composed(f"clip_{_name(feature)}", "clip", [feature], parameters=[low, high])
    if low > high:
        raise FeatureError(f"clip({_name(feature)}, {low}, {high}): its low end is above its high end")
    return made


def _name(feature: object) -> str:
    """The name of a feature inside another's; what is no feature is refused by `composed`."""
    return feature.name if isinstance(feature, Feature) else "?"
