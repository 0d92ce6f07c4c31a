"""A policy decides only for what sees and acts as in its training."""

from __future__ import annotations

from typing import Any

import pytest

from tradeloop.common.arrays import Floats
from tradeloop.common.contracts.model_store import sample_policy
from tradeloop.common.market import Instrument, Timeframe, Universe
from tradeloop.common.model_store.port import ModelUnfit, PolicyManifest
from tradeloop.common.strategy import RewardContext, Strategy, log_return, reward
from tradeloop.common.strategy.fit import check_fit


@reward(version="1")
class Gain:
    def __call__(self, c: RewardContext) -> Floats:
        return c.equity / c.equity_prev - 1.0


STRATEGY = Strategy("edge", [log_return(1)], Gain(), window=4)


def manifest(**changes: object) -> PolicyManifest:
    fitting: dict[str, Any] = {
        "feature_set": STRATEGY.feature_set.id,
        "window": 4,
        "instruments": 2,
        "action_scheme": STRATEGY.actions.name,
        "observation_size": STRATEGY.observation_size(2),
        "action_size": 2,
    }
    return sample_policy(**(fitting | changes)).manifest


def test_what_was_trained_for_the_same_fits() -> None:
    check_fit(manifest(), STRATEGY, 2, "model m", "portfolio p")
    check_fit(manifest(reward_id="another", universe="another"), STRATEGY, 2, "model m", "portfolio p")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feature_set", "fs-other"),
        ("window", 8),
        ("instruments", 3),
        ("action_scheme", "discrete"),
        ("observation_size", 12),
        ("action_size", 3),
    ],
)
def test_what_differs_is_named(field: str, value: object) -> None:
    with pytest.raises(ModelUnfit, match=f"model m was trained with {field} {value}, portfolio p has ") as raised:
        check_fit(manifest(**{field: value}), STRATEGY, 2, "model m", "portfolio p")
    assert isinstance(raised.value, ValueError), "a service that cannot use a model catches this"


GOLD, OIL = Instrument(id="x:GOLD"), Instrument(id="x:OIL")
UNIVERSE = Universe(name="metals", instruments=(GOLD, OIL), timeframe=Timeframe.H1)
OWN = {"strategy": "edge", "universe": "metals", "timeframe": "1h", "instrument_ids": UNIVERSE.ids}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strategy", "other"),
        ("universe", "other"),
        ("timeframe", "1d"),
        ("instrument_ids", ("x:OIL", "x:GOLD")),
        ("instrument_ids", ("x:GOLD", "x:TIN")),
    ],
)
def test_M1_whoever_trades_takes_a_policy_of_its_own_strategy_and_instruments(field: str, value: object) -> None:
    mine = manifest(**OWN)
    check_fit(mine, STRATEGY, 2, "model m", "portfolio p", UNIVERSE)
    other = mine.model_copy(update={field: value})
    check_fit(other, STRATEGY, 2, "model m", "portfolio p")  # to try it on other bars is no mistake
    with pytest.raises(ModelUnfit) as raised:
        check_fit(other, STRATEGY, 2, "model m", "portfolio p", UNIVERSE)
    assert str(raised.value).startswith(f"model m was trained with {field} {value}, portfolio p has {OWN[field]}")


def test_a_manifest_from_before_says_less_and_fits() -> None:
    check_fit(manifest(strategy="edge", universe="metals"), STRATEGY, 2, "model m", "portfolio p", UNIVERSE)
