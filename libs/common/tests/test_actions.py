"""Action schemes: actions to target weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.simulation import Simulator
from tradeloop.common.strategy.actions import SCHEMES, ActionScheme, Discrete, PortfolioWeights, TargetPosition


def weights(scheme: ActionScheme, *actions: list[float]) -> list[list[float]]:
    found: list[list[float]] = scheme.weights(np.array(actions)).tolist()
    return found


def test_target_positions_share_the_leverage() -> None:
    assert weights(TargetPosition(), [0.5], [-1.0], [7.0]) == [[0.5], [-1.0], [1.0]]
    assert weights(TargetPosition(leverage=3.0), [1.0, -1.0, 0.5]) == [[1.0, -1.0, 0.5]]
    assert weights(TargetPosition(long_only=True), [-1.0], [0.0], [1.0]) == [[0.0], [0.5], [1.0]]


def test_choices_are_levels() -> None:
    assert weights(Discrete(), [0.0, 1.0], [2.0, 2.0]) == [[-0.5, 0.0], [0.5, 0.5]]
    assert weights(Discrete(levels=(0.0, 1.0)), [1.0]) == [[1.0]]
    assert (Discrete().kind, Discrete().choices, Discrete().size(4)) == ("discrete", 3, 4)


def test_portfolio_weights_are_a_softmax_with_cash_first() -> None:
    scheme = PortfolioWeights(temperature=0.5)
    assert scheme.size(2) == 3
    [found] = weights(scheme, [0.0, 0.5, -0.5])
    scores = np.exp([0.0, 1.0, -1.0])
    np.testing.assert_allclose(found, scores[1:] / scores.sum(), rtol=1e-15)
    assert weights(scheme, [0.0, 0.0, 0.0]) == [[1 / 3, 1 / 3]]
    assert weights(PortfolioWeights(temperature=1e-6), [-1.0, 1.0, -1.0]) == [[1.0, 0.0]]


@pytest.mark.parametrize(
    "scheme", [*SCHEMES.values(), TargetPosition(leverage=2.0, long_only=True)], ids=lambda s: s.name
)
@given(data=st.data(), instruments=st.integers(1, 20), books=st.integers(1, 5))
def test_weights_of_a_book_are_bounded_and_its_own(
    scheme: ActionScheme, data: st.DataObject, instruments: int, books: int
) -> None:
    shape = (books, scheme.size(instruments))
    if scheme.kind == "discrete":
        action = data.draw(arrays(np.int64, shape, elements=st.integers(0, scheme.choices - 1))).astype(np.float64)
    else:
        action = data.draw(arrays(np.float64, shape, elements=st.floats(allow_nan=False)))
    found = scheme.weights(action)
    assert found.shape == (books, instruments)
    assert found.dtype == np.float64
    assert (np.abs(found).sum(axis=1) <= getattr(scheme, "leverage", 1.0) * (1 + 1e-12)).all()
    for n in range(books):
        assert scheme.weights(action[n : n + 1].copy()).tolist() == [found[n].tolist()]
    assert scheme.weights(np.asfortranarray(action)).tolist() == found.tolist()


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize(
    ("scheme", "largest"),
    [
        (TargetPosition(leverage=3.0, no_trade_band=0.5), 3.0),
        (Discrete((-1.0, 0.0, 2.0), no_trade_band=0.5), 2.0),
        (PortfolioWeights(no_trade_band=0.5), 1.0),
    ],
)
def test_a_band_is_a_part_of_an_even_share(scheme: ActionScheme, largest: float, count: int) -> None:
    assert scheme.band(count) == 0.5 * (largest / count)


@pytest.mark.parametrize("band", [0.05, 0.1, 0.5, 0.3])
def test_the_band_of_one_instrument_without_leverage_is_its_number(band: float) -> None:
    for scheme in (TargetPosition(no_trade_band=band), Discrete(no_trade_band=band), PortfolioWeights(0.5, band)):
        assert scheme.band(1) == band


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize(
    "scheme",
    [TargetPosition(no_trade_band=0.5), TargetPosition(2.0, no_trade_band=1.0), Discrete(no_trade_band=1.0)],
    ids=lambda scheme: scheme.name,
)
def test_any_number_of_instruments_trades(scheme: ActionScheme, count: int) -> None:
    simulator = Simulator(
        1,
        [Instrument(id=f"x:{a}") for a in range(count)],
        capital=100.0,
        costs=Costs(),
        limits=RiskLimits(max_position=3.0, max_leverage=3.0),
        no_trade_band=scheme.band(count),
    )
    simulator.books.mark[:] = 7.0
    everything = np.full((1, count), 1.0 if scheme.kind == "box" else scheme.choices - 1.0)
    simulator.decide(scheme.weights(everything))
    assert (simulator.books.pending > 0.0).all()


def test_what_is_no_number_holds() -> None:
    """The simulator takes a weight of NaN for: leave the position."""
    assert np.isnan(TargetPosition().weights(np.array([[np.nan]]))).all()


def test_names_tell_schemes_apart() -> None:
    schemes = [
        *SCHEMES.values(),
        TargetPosition(no_trade_band=0.1),
        TargetPosition(long_only=True),
        Discrete((0.0, 1.0)),
    ]
    assert len({scheme.name for scheme in schemes}) == len(schemes)


def test_a_policy_of_when_bands_were_shares_of_equity_is_another() -> None:
    names = {"target_position(1.0,0.05,False)", "discrete(-1.0,0.0,1.0;0.05)", "portfolio_weights(0.5,0.05)"}
    assert not names & {scheme.name for scheme in SCHEMES.values()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TargetPosition(leverage=0.0), r"TargetPosition: leverage is 0\.0; it must be above 0"),
        (lambda: TargetPosition(leverage=float("nan")), "leverage is nan"),
        (lambda: Discrete(levels=(1.0,)), "a choice needs at least two"),
        (lambda: PortfolioWeights(temperature=-1.0), "temperature is -1.0; it must be above 0"),
        (lambda: Discrete(no_trade_band=-0.1), r"Discrete: no_trade_band is -0\.1; it must be 0 or more"),
    ],
)
def test_wrong_parameters_are_refused(make: Callable[[], ActionScheme], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
