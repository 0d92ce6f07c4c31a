from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from tradeloop.common.arrays import Floats
from tradeloop.training.domain.gate import judge, required_errors

FLAT = np.ones(501)


def curve(returns: Floats) -> Floats:
    return np.asarray(np.exp(np.r_[0.0, np.cumsum(returns)]))


def test_the_errors_are_those_of_the_mean_difference() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(0.002, 0.01, 500), generator.normal(0.0, 0.01, 500)
    verdict = judge([curve(ours)], {"cash": [FLAT], "hold": [curve(theirs)]}, checkpoints=1)
    for name, rival in (("cash", np.zeros(500)), ("hold", theirs)):
        difference = (ours - rival).tolist()
        expected = statistics.mean(difference) / (statistics.stdev(difference) / math.sqrt(500))
        assert verdict.errors[name] == pytest.approx(expected)


def test_every_rival_must_be_beaten() -> None:
    generator = np.random.default_rng(0)
    good = curve(generator.normal(0.003, 0.01, 500))
    assert judge([good], {"cash": [FLAT]}, checkpoints=1).passed
    assert "standard errors above cash" in judge([good], {"cash": [FLAT]}, checkpoints=1).reason
    assert "standard errors below good" in judge([FLAT], {"good": [good]}, checkpoints=1).reason
    assert not judge([good], {"cash": [FLAT], "hold": [good]}, checkpoints=1).passed, "it does what holding does"
    assert not judge([FLAT], {"cash": [FLAT]}, checkpoints=1).passed, "it does nothing"


def test_a_policy_that_went_broke_or_was_never_judged_is_no_champion() -> None:
    broke = np.r_[np.linspace(1.0, 3.0, 400), np.zeros(101)]
    assert not judge([broke], {"cash": [FLAT]}, checkpoints=1).passed
    verdict = judge([], {"cash": []}, checkpoints=10)
    assert not verdict.passed
    assert "no bars were kept apart" in verdict.reason


def test_luck_alone_passes_as_seldom_as_it_says() -> None:
    """Of many policies without any edge, the best of 20 passes in about 5 of 100 cases."""
    generator = np.random.default_rng(1)
    trials, passed = 400, 0
    for _ in range(trials):
        candidates = generator.normal(0.0, 0.01, (20, 250))
        best = candidates[candidates.sum(axis=1).argmax()]
        passed += judge([curve(best)], {"cash": [FLAT[:251]]}, checkpoints=20).passed
    assert passed / trials == pytest.approx(0.05, abs=0.03)
    assert required_errors(1) == pytest.approx(1.645, abs=1e-3)
    assert required_errors(20) > 2.7


def test_several_markets_are_judged_together() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(0.002, 0.01, 300), generator.normal(0.002, 0.01, 200)
    together = judge([curve(np.r_[one, other])], {"cash": [FLAT]}, checkpoints=3)
    apart = judge([curve(one), curve(other)], {"cash": [FLAT[:301], FLAT[:201]]}, checkpoints=3)
    assert apart.errors["cash"] == pytest.approx(together.errors["cash"])
    assert apart.reason == together.reason
    assert apart.reason.startswith("on the 500 bars kept apart it was ")
