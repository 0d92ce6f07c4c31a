from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common.arrays import Floats
from tradeloop.common.market import BarArrays, Instrument
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.risk import Halt, Verdict
from tradeloop.common.simulation import (
    Books,
    EpisodeCursors,
    Market,
    Simulator,
    TrainingBars,
    market_of,
    observe,
)
from tradeloop.common.strategy.observations import ObservationBuilder, observation_size
from tradeloop.common.strategy.rewards import LEAST_EQUITY

FREE = Instrument(id="test:X", taker_bps=0.0)
LOOSE = RiskLimits(max_position=100, max_leverage=100, max_order_notional=1000, max_drawdown=1, maintenance_margin=0)
NO_COSTS = Costs(slippage_bps=0.0)


# --- random worlds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Bars, rules and decisions of a random run: T frames, N books, A instruments."""

    market: Market
    instruments: list[Instrument]
    costs: Costs
    limits: RiskLimits
    band: float
    weights: Floats
    """(T, N, A)"""

    @property
    def length(self) -> int:
        return len(self.weights)

    def simulator(self, books: int | None = None) -> Simulator:
        return simulator(
            self.instruments,
            costs=self.costs,
            limits=self.limits,
            band=self.band,
            books=self.weights.shape[1] if books is None else books,
        )


def simulator(
    instruments: list[Instrument],
    costs: Costs = NO_COSTS,
    limits: RiskLimits = LOOSE,
    band: float = 0.0,
    books: int = 1,
    capital: float = 1000.0,
) -> Simulator:
    return Simulator(books, instruments, capital=capital, costs=costs, limits=limits, no_trade_band=band)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    length, books, count = 40, 4, draw(st.integers(1, 3))
    shape = (length, count)
    close = 50.0 * np.exp(np.cumsum(generator.normal(0, draw(st.sampled_from([0.002, 0.03, 0.15])), shape), axis=0))
    open_ = np.vstack([close[:1], close[:-1]]) * np.exp(generator.normal(0, 0.002, shape))
    volume = np.exp(generator.normal(3, 3, shape))
    volume[generator.random(shape) < 0.1] = 0.0
    if draw(st.booleans()):
        volume[:] = np.nan
    present = generator.random(shape) >= draw(st.sampled_from([0.0, 0.2]))
    weights = generator.normal(0, draw(st.sampled_from([0.3, 1.0, 4.0])), (length, books, count))
    weights[generator.random(weights.shape) < 0.15] = np.nan
    weights[generator.random(weights.shape) < 0.15] = 0.0
    instruments = [
        Instrument(
            id=f"test:{a}",
            lot_size=draw(st.sampled_from([0.0, 0.001, 1.0])),
            tick_size=draw(st.sampled_from([0.0, 0.01, 0.5])),
            min_notional=draw(st.sampled_from([0.0, 10.0])),
            taker_bps=draw(st.sampled_from([0.0, 7.5])),
        )
        for a in range(count)
    ]
    costs = Costs(
        slippage_bps=draw(st.sampled_from([0.0, 3.0])),
        impact_bps=draw(st.sampled_from([0.0, 20.0])),
        max_participation=draw(st.sampled_from([None, 0.1])),
        fee_multiplier=draw(st.sampled_from([0.0, 1.0, 5.0])),
    )
    limits = draw(
        st.sampled_from([LOOSE, RiskLimits(), RiskLimits(max_drawdown=0.1, max_price_age_bars=1, max_leverage=2)])
    )
    funding = generator.normal(0, 1e-3, shape)
    return World(
        Market(open_, close, volume, funding, present),
        instruments,
        costs,
        limits,
        draw(st.sampled_from([0, 0.1])),
        weights,
    )


@settings(deadline=None, max_examples=30)
@given(worlds())
def test_money_is_conserved(world: World) -> None:
    simulated, rows = world.simulator(), np.zeros(world.weights.shape[1], dtype=np.int64)
    simulated.reset(world.market, rows)
    b = simulated.books
    paid = np.zeros(len(rows))
    for t in range(world.length - 1):
        before = b.position.copy()
        simulated.step(world.market, rows, world.weights[t])
        np.testing.assert_allclose(b.position, before + b.fill_quantity, atol=0.5001, rtol=1e-9)
        traded = b.fill_quantity != 0.0
        paid += np.where(traded, b.fill_quantity * b.fill_price + b.fill_fee, 0.0).sum(axis=1) + b.funding
        scale = 1000.0 + np.abs(paid)
        np.testing.assert_array_less(np.abs(b.cash - (1000.0 - paid)), 1e-9 * scale)
        worth = b.cash + np.where(b.position != 0.0, b.position * b.mark, 0.0).sum(axis=1)
        np.testing.assert_array_less(np.abs(b.equity - worth), 1e-9 * scale)
        np.testing.assert_allclose(b.turnover * b.equity_prev, np.where(b.equity_prev > 0, b.traded, 0.0), atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(worlds(), st.permutations(range(4)))
def test_books_do_not_touch_each_other(world: World, order: list[int]) -> None:
    together, permuted = world.simulator(), world.simulator()
    alone = [world.simulator(1) for _ in order]
    rows = [np.zeros(4, dtype=np.int64) for _ in range(2)] + [np.zeros(1, dtype=np.int64) for _ in order]
    for one, row in zip((together, permuted, *alone), rows, strict=True):
        one.reset(world.market, row)
    for weights in world.weights[:-1]:
        together.step(world.market, rows[0], weights)
        permuted.step(world.market, rows[1], weights[order])
        for n, one in enumerate(alone):
            one.step(world.market, rows[2 + n], weights[n : n + 1])
    for name in Books._fields:
        mine = getattr(together.books, name)
        np.testing.assert_array_equal(getattr(permuted.books, name), mine[order], err_msg=name)
        for n, one in enumerate(alone):
            np.testing.assert_array_equal(getattr(one.books, name)[0], mine[n], err_msg=name)


@settings(deadline=None, max_examples=20)
@given(worlds(), st.integers(1, 38), st.booleans())
def test_a_restored_book_goes_on_as_if_nothing_had_happened(world: World, pause: int, decided: bool) -> None:
    whole, restored = world.simulator(), world.simulator()
    rows = np.zeros(4, dtype=np.int64)
    whole.reset(world.market, rows)
    for weights in world.weights[: pause - 1]:
        whole.step(world.market, rows, weights)
    if decided:
        whole.decide(world.weights[pause])
    for n in range(4):
        text = json.dumps(whole.snapshot(n), allow_nan=False)
        restored.restore(json.loads(text), n)
    np.testing.assert_array_equal(restored.books.account, whole.books.account)
    for one in (whole, restored):
        row = rows.copy()
        if not decided:
            one.decide(world.weights[pause])
        row += 1
        one.fill_and_mark(world.market, row)
        for weights in world.weights[row[0] : -1]:
            one.step(world.market, row, weights)
    published = {"measured", "limit", "halt_measured"}  # with the verdict, and not remembered
    for name in set(Books._fields) - {"fill_price", "fill_fee", "fill_slippage"} - published:
        np.testing.assert_array_equal(getattr(restored.books, name), getattr(whole.books, name), err_msg=name)
    filled = whole.books.fill_quantity != 0.0
    for name in ("fill_price", "fill_fee", "fill_slippage"):  # what they were before means nothing
        np.testing.assert_array_equal(getattr(restored.books, name)[filled], getattr(whole.books, name)[filled])


def test_fill_then_account_is_settle() -> None:
    market = prices([100.0, 101.0, 99.0], [100.0, 101.0, 99.0])
    together, apart = simulator([FREE]), simulator([FREE])
    for one in (together, apart):
        one.reset(market, np.array([0]))
        one.decide(np.array([[0.7]]))
    together.fill_and_mark(market, np.array([1]))
    apart.fill(market, np.array([1]))
    assert apart.books.position[0, 0] == 0.0, "the venue's side leaves the owner's books alone"
    apart.account(market, np.array([1]))
    for name in Books._fields:
        np.testing.assert_array_equal(getattr(apart.books, name), getattr(together.books, name), err_msg=name)


# --- one thing at a time --------------------------------------------------------------------------


def prices(
    open_: list[float],
    close: list[float],
    volume: list[float] | None = None,
    funding: list[float] | None = None,
    present: list[bool] | None = None,
) -> Market:
    length = len(open_)
    return Market(
        np.array(open_)[:, None],
        np.array(close)[:, None],
        np.array(volume or [math.nan] * length)[:, None],
        np.array(funding or [0.0] * length)[:, None],
        np.array([True] * length if present is None else present)[:, None],
    )


def walk(one: Simulator, market: Market, weights: list[float]) -> Books:
    """Follow the weights from row 0 on, for one book of one instrument."""
    rows = np.zeros(1, dtype=np.int64)
    one.reset(market, rows)
    for weight in weights:
        one.step(market, rows, np.array([[weight]]))
    return one.books


def test_orders_fill_at_the_next_open_not_at_the_close_that_was_decided_on() -> None:
    b = walk(simulator([FREE]), prices([100, 110], [100, 120]), [1.0])
    assert b.fill_price[0, 0] == 110.0
    assert b.position[0, 0] == 10.0, "sized at the close of 100"
    assert b.equity[0] == 1000.0 + 10.0 * (120.0 - 110.0)


def test_fees_slippage_and_ticks_are_against_the_taker() -> None:
    instrument = Instrument(id="test:X", taker_bps=10.0, tick_size=0.25)
    one = simulator([instrument], costs=Costs(slippage_bps=10.0))
    b = walk(one, prices([100] * 3, [100] * 3), [0.5])
    assert b.fill_price[0, 0] == 100.25, "100.10 rounded up to a tick"
    assert b.slippage[0] == pytest.approx(5 * 0.25)
    assert b.fees[0] == pytest.approx(5 * 100.25 * 0.001)
    rows = np.array([1])
    one.step(prices([100] * 3, [100] * 3), rows, np.array([[0.0]]))
    assert b.fill_price[0, 0] == 99.75
    assert b.position[0, 0] == 0.0
    assert b.entry[0, 0] == 0.0


def test_a_thin_bar_fills_in_part_and_the_rest_is_cancelled() -> None:
    instrument = Instrument(id="test:X", taker_bps=0.0, lot_size=0.5)
    one = simulator([instrument], costs=Costs(slippage_bps=0.0, max_participation=0.1))
    market = prices([100] * 4, [100] * 4, volume=[1000, 37, 4, 1000])
    b = walk(one, market, [1.0])
    assert b.position[0, 0] == 3.5, "a tenth of 37 is 3.7, in lots 3.5"
    assert b.pending[0, 0] == 0.0
    rows = np.array([1])
    one.step(market, rows, np.array([[1.0]]))
    assert b.fill_quantity[0, 0] == 0.0, "a tenth of 4 is less than a lot"
    one.step(market, rows, np.array([[1.0]]))
    assert b.position[0, 0] == 10.0


def test_impact_grows_with_the_square_root_of_the_share_taken() -> None:
    market = prices([100, 100], [100, 100], volume=[40, 40])
    b = walk(simulator([FREE], costs=Costs(slippage_bps=0.0, impact_bps=100.0)), market, [1.0])
    assert b.fill_price[0, 0] == pytest.approx(100 * (1 + 0.01 * math.sqrt(10 / 40)))


@pytest.mark.parametrize("weights", [[0.0, -1.0], [1.0, 0.0]])
def test_a_sale_never_costs_the_seller_money(weights: list[float]) -> None:
    """An order of a million times the bar's volume moves the price by ten times itself, but a price ends at 0."""
    market = prices([100] * 3, [100] * 3, volume=[1e12, 1e12, 1e-5])
    b = walk(simulator([FREE], costs=Costs(slippage_bps=0.0, impact_bps=100.0)), market, weights)
    assert b.fill_price[0, 0] == 0.0
    assert b.cash[0] == pytest.approx(1000.0 * (1.0 - weights[0]), abs=1e-3), "it brings nothing, and takes nothing"
    assert np.isfinite(b.account).all(), "nor is the return of a short position that was sold for 0 a number"


def test_a_ruined_book_has_a_finite_reward_and_an_honest_equity() -> None:
    """Short of all that it has, and the price triples: the book owes, and log returns are still numbers."""
    one = simulator([FREE])
    market = prices([100, 100, 300, 300, 300], [100, 100, 300, 300, 300])
    rows = np.zeros(1, dtype=np.int64)
    one.reset(market, rows)
    contexts = []
    for weight in (-1.0, -1.0, -1.0, -1.0):
        one.step(market, rows, np.array([[weight]]))
        made = one.context(np.zeros((1, 1)), rows, rows, one.books.halt != 0, one.books.halt != 0, {})
        contexts.append((made.equity_prev[0], made.equity[0], float(one.books.equity[0]), float(made.drawdown[0])))
    assert contexts[0] == (1000.0, 1000.0, 1000.0, 0.0)
    assert contexts[1] == (1000.0, 1000.0 * LEAST_EQUITY, -1000.0, 2.0)
    assert contexts[2] == (1000.0 * LEAST_EQUITY, 1000.0 * LEAST_EQUITY, -1000.0, 2.0)
    restored = simulator([FREE])
    restored.restore(one.snapshot())
    assert restored.books.worth[0] == 1000.0 * LEAST_EQUITY


def test_quantities_are_whole_lots_rounded_towards_zero() -> None:
    instrument = Instrument(id="test:X", taker_bps=0.0, lot_size=3.0)
    b = walk(simulator([instrument]), prices([100] * 2, [100] * 2), [-1.0])
    assert b.position[0, 0] == -9.0
    b = walk(simulator([Instrument(id="test:X", lot_size=0.1)], costs=NO_COSTS), prices([10] * 2, [10] * 2), [0.003])
    assert b.position[0, 0] == pytest.approx(0.3), "0.3 / 0.1 is a hair less than 3 in floats"


def test_small_moves_inside_the_band_and_small_orders_are_left_out() -> None:
    one = simulator([FREE], band=0.1)
    b = walk(one, prices([100] * 4, [100] * 4), [0.5, 0.55])
    assert b.position[0, 0] == 5.0
    assert Verdict(b.verdict[0, 0]) is Verdict.UNCHANGED
    b = walk(one, prices([100] * 4, [100] * 4), [0.5, 0.45, 0.0])
    assert b.position[0, 0] == 0.0, "a target of zero closes, however small the position"
    small = simulator([Instrument(id="test:X", min_notional=100.0)])
    assert walk(small, prices([100] * 2, [100] * 2), [0.09]).position[0, 0] == 0.0


def test_a_short_gains_when_the_price_falls_and_receives_funding() -> None:
    market = prices([100, 100, 90], [100, 100, 90], funding=[0, 0.01, 0])
    b = walk(simulator([FREE]), market, [-1.0, math.nan])
    assert b.position[0, 0] == -10.0
    assert b.cash[0] == 1000 + 1000 + 10
    assert b.equity[0] == 1000 + 10 + 100
    assert b.unrealised[0] == pytest.approx(100)
    assert b.account[0].tolist() == pytest.approx([-900 / 1110, 0.1, 2 / 34, 0.0])


def test_adding_averages_the_entry_reducing_keeps_it_flipping_renews_it() -> None:
    one = simulator([FREE])
    market = prices([100, 100, 120, 120, 120], [100, 120, 120, 120, 120])
    b = walk(one, market, [0.5])
    assert (b.position[0, 0], b.entry[0, 0], b.holding[0, 0]) == (5.0, 100.0, 1.0)
    rows = np.array([1])
    one.step(market, rows, np.array([[1.0]]))
    assert b.position[0, 0] == pytest.approx(1100 / 120)
    assert b.entry[0, 0] == pytest.approx((5 * 100 + (1100 / 120 - 5) * 120) / (1100 / 120))
    entry = b.entry[0, 0]
    one.step(market, rows, np.array([[0.25]]))
    assert (b.entry[0, 0], b.holding[0, 0]) == (entry, 3.0)
    one.step(market, rows, np.array([[-0.25]]))
    assert (b.entry[0, 0], b.holding[0, 0]) == (120.0, 1.0)


def test_a_drawdown_halts_the_book_which_flattens_at_the_next_open() -> None:
    one = simulator([FREE], limits=RiskLimits(max_drawdown=0.2, max_position=2, max_leverage=2))
    market = prices([100, 100, 90, 80, 80], [100, 90, 79, 80, 80])
    b = walk(one, market, [1.0])
    assert Halt(b.halt[0]) is Halt.NONE
    rows = np.array([1])
    one.step(market, rows, np.array([[1.0]]))
    assert Halt(b.halt[0]) is Halt.DRAWDOWN_HALT
    assert b.position[0, 0] != 0.0
    one.step(market, rows, np.array([[1.0]]))
    assert Verdict(b.verdict[0, 0]) is Verdict.FLATTENED
    assert b.position[0, 0] == 0.0
    one.step(market, rows, np.array([[1.0]]))
    assert Verdict(b.verdict[0, 0]) is Verdict.HALTED
    assert b.position[0, 0] == 0.0


def test_too_little_margin_is_a_margin_call() -> None:
    limits = LOOSE.model_copy(update={"maintenance_margin": 0.1})
    b = walk(simulator([FREE], limits=limits), prices([100, 100, 90], [100, 100, 90]), [5.0, math.nan])
    assert (b.equity[0], Halt(b.halt[0])) == (500.0, Halt.NONE), "500 of 4500 is 11 percent"
    b = walk(simulator([FREE], limits=limits), prices([100, 100, 88], [100, 100, 88]), [5.0, math.nan])
    assert (b.equity[0], Halt(b.halt[0])) == (400.0, Halt.MARGIN_CALL), "400 of 4400 is 9 percent"


def test_a_missing_bar_fills_nothing_keeps_the_mark_and_makes_the_price_stale() -> None:
    market = prices([100] * 5, [100, 101, 102, 103, 104], present=[True, False, True, False, True])
    one = simulator([FREE])
    rows = np.zeros(1, dtype=np.int64)
    one.reset(market, rows)
    b = one.books
    one.step(market, rows, np.array([[1.0]]))
    assert (b.position[0, 0], b.pending[0, 0], b.mark[0, 0], b.age[0, 0]) == (0.0, 0.0, 100.0, 1.0)
    one.step(market, rows, np.array([[1.0]]))
    assert Verdict(b.verdict[0, 0]) is Verdict.STALE_PRICE
    assert (b.mark[0, 0], b.age[0, 0]) == (102.0, 0.0)
    patient = simulator([FREE], limits=LOOSE.model_copy(update={"max_price_age_bars": 1}))
    b = walk(patient, market, [1.0, 1.0])
    assert b.position[0, 0] == 10.0


def test_before_its_first_bar_an_instrument_is_not_traded() -> None:
    market = prices([math.nan, 100, 100], [math.nan, 100, 100], present=[False, True, True])
    b = walk(simulator([FREE]), market, [1.0, 1.0])
    assert b.position[0, 0] == 10.0, "ordered at the first close, filled at the open after it"
    assert b.equity[0] == 1000.0


@pytest.mark.parametrize(
    ("limits", "weight", "verdict"),
    [
        ({"max_order_notional": 0.4}, 0.5, Verdict.MAX_ORDER_NOTIONAL),
        ({"max_position": 0.4}, 0.5, Verdict.MAX_POSITION),
        ({"max_position": 0.4}, -0.5, Verdict.MAX_POSITION),
        ({"max_leverage": 0.4}, 0.5, Verdict.MAX_LEVERAGE),
        ({"max_leverage": 0.4}, 0.4, Verdict.ORDERED),
    ],
)
def test_limits_deny_orders(limits: dict[str, float], weight: float, verdict: Verdict) -> None:
    one = simulator([FREE], limits=LOOSE.model_copy(update=limits))
    b = walk(one, prices([100] * 2, [100] * 2), [weight])
    assert Verdict(b.verdict[0, 0]) is verdict
    assert (b.position[0, 0] != 0.0) == (verdict is Verdict.ORDERED)


def test_a_flip_too_small_for_the_venue_leaves_the_position_alone() -> None:
    one = simulator([Instrument(id="test:X", min_notional=10.0, taker_bps=0.0)], limits=LOOSE)
    b = walk(one, prices([100, 100, 50, 50], [100, 50, 50, 50]), [0.01, -0.001, -0.001])
    assert Verdict(b.verdict[0, 0]) is Verdict.UNCHANGED, "an order of 6 where 10 is the least"
    assert b.position[0, 0] == 0.1


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        ({"max_order_notional": 1.5}, Verdict.MAX_ORDER_NOTIONAL),
        ({"max_position": 1.2}, Verdict.MAX_POSITION),
        ({"max_leverage": 1.2}, Verdict.MAX_LEVERAGE),
    ],
)
def test_a_flip_that_is_denied_still_closes_the_position(limits: dict[str, float], verdict: Verdict) -> None:
    one = simulator([FREE], limits=LOOSE.model_copy(update=limits))
    b = walk(one, prices([100] * 4, [100] * 4), [1.0, -1.5, -1.0])
    assert Verdict(b.verdict[0, 0]) is Verdict.ORDERED
    assert b.position[0, 0] == -10.0, "flat by then, it opens the other side within the limits"
    one = simulator([FREE], limits=LOOSE.model_copy(update=limits))
    b = walk(one, prices([100] * 3, [100] * 3), [1.0, -1.5])
    assert Verdict(b.verdict[0, 0]) is verdict
    assert b.position[0, 0] == 0.0
    assert b.measured[0, 0] > b.limit[0, 0]


def test_leverage_denies_what_opens_and_lets_through_what_closes() -> None:
    instruments = [FREE, Instrument(id="test:Y", taker_bps=0.0)]
    flat = np.full((4, 2), 100.0)
    market = Market(flat, flat, np.full((4, 2), np.nan), np.zeros((4, 2)), np.ones((4, 2), dtype=np.bool_))
    one = simulator(instruments, limits=LOOSE.model_copy(update={"max_leverage": 1.0}))
    rows = np.zeros(1, dtype=np.int64)
    one.reset(market, rows)
    one.step(market, rows, np.array([[0.8, 0.0]]))
    one.step(market, rows, np.array([[0.7, 0.9]]))
    assert [Verdict(v) for v in one.books.verdict[0]] == [Verdict.ORDERED, Verdict.MAX_LEVERAGE]
    assert one.books.position[0].tolist() == [7.0, 0.0]


def test_weights_of_another_shape_are_refused() -> None:
    one = simulator([FREE], books=2)
    for shape in ((1, 1), (2, 2), (3, 1), (2,)):
        with pytest.raises(ValueError, match="shape"):
            one.decide(np.zeros(shape))


@settings(deadline=None, max_examples=20)
@given(worlds())
def test_a_bound_step_is_a_step_and_an_observation(world: World) -> None:
    books, count, window = world.weights.shape[1], len(world.instruments), 3
    plain, bound = world.simulator(), world.simulator()
    seen = np.random.default_rng(0).normal(size=(world.length, 2 * count)).astype(np.float32)
    close_us = np.arange(world.length, dtype=np.int64) * 60
    walk, weights = walk_of(books), np.zeros((books, count))
    out = np.zeros((books, observation_size(window, count, 2)), dtype=np.float32)
    step = bound.bind(TrainingBars(world.market, close_us, seen, window), walk, weights, out)
    rows = np.full(books, window)
    walk.rows[:], walk.ends[:] = window, [10, 10, 12, 99]
    for one, at in ((plain, rows), (bound, walk.rows)):
        one.reset(world.market, at)
    for t in range(window, 12):
        weights[:] = world.weights[t]
        ended = step()
        plain.step(world.market, rows, world.weights[t])
        for name in Books._fields:
            np.testing.assert_array_equal(getattr(bound.books, name), getattr(plain.books, name), err_msg=name)
        np.testing.assert_array_equal(walk.rows, rows)
        np.testing.assert_array_equal(out, observe(seen, window, rows, plain.books.account, np.empty_like(out)))
        halted = plain.books.halt != 0
        np.testing.assert_array_equal(walk.terminated, halted)
        np.testing.assert_array_equal(walk.truncated, (rows == walk.ends) & ~halted)
        assert ended == np.count_nonzero(halted | (rows == walk.ends))
        np.testing.assert_array_equal(walk.ts, close_us[rows])
        np.testing.assert_array_equal(walk.ts_prev, 0 if t == window else close_us[rows - 1])


def walk_of(books: int) -> EpisodeCursors:
    ints, flags = np.zeros((4, books), dtype=np.int64), np.zeros((2, books), dtype=np.bool_)
    return EpisodeCursors(ints[0], ints[1], ints[2], ints[3], flags[0], flags[1])


def test_arrays_that_do_not_fit_are_not_bound() -> None:
    market = prices([100.0] * 5, [100.0] * 5)
    one = simulator([FREE], books=2)
    course = TrainingBars(market, np.zeros(5, dtype=np.int64), np.zeros((5, 3), dtype=np.float32), 2)
    weights, out = np.zeros((2, 1)), np.zeros((2, 2 * 3 + 4), dtype=np.float32)
    one.bind(course, walk_of(2), weights, out)
    for wrong in (
        (course, walk_of(3), weights, out),
        (course, walk_of(2), weights[:1], out),
        (course, walk_of(2), weights, out.astype(np.float64)),
        (course, walk_of(2), weights, np.zeros((2, 20), dtype=np.float32)[:, ::2]),
        (course._replace(window=3), walk_of(2), weights, out),
        (course._replace(close_us=np.zeros(4, dtype=np.int64)), walk_of(2), weights, out),
    ):
        with pytest.raises(ValueError, match="an array of shape"):
            one.bind(*wrong)


def test_a_reset_of_some_books_leaves_the_others_alone() -> None:
    market = prices([100, 110, 120], [100, 110, 120])
    one = simulator([FREE], books=3)
    rows = np.zeros(3, dtype=np.int64)
    one.reset(market, rows)
    one.step(market, rows, np.array([[1.0], [1.0], [1.0]]))
    rows[1] = 0
    one.reset(market, rows, np.array([1]))
    assert one.books.position[:, 0].tolist() == [10.0, 0.0, 10.0]
    assert one.books.mark[:, 0].tolist() == [110.0, 100.0, 110.0]
    assert one.books.equity[1] == 1000.0


def test_a_market_can_be_refilled_in_place() -> None:
    market = prices([math.nan], [math.nan], present=[False])
    market.open[0, 0] = market.close[0, 0] = 7.0
    market.present[:] = True
    assert market.bars[0, 0, :2].tolist() == [7.0, 7.0]
    one = simulator([FREE])
    one.reset(market, np.array([0]))
    assert one.books.mark[0, 0] == 7.0


def test_observations_are_those_that_the_live_builder_makes() -> None:
    generator = np.random.default_rng(7)
    length, count, width, window = 30, 2, 3, 5
    features = generator.normal(size=(length, count, width))
    account = generator.normal(size=(4, 3 * count + 1))
    rows = np.array([window - 1, 10, length - 1, 17])
    flat = features.reshape(length, -1).astype(np.float32)
    out = np.empty((4, observation_size(window, count, width)), dtype=np.float32)
    observe(flat, window, rows, account, out)
    for n, row in enumerate(rows):
        builder = ObservationBuilder(window, count, width)
        for t in range(row + 1):
            builder.append(features[t])
        np.testing.assert_array_equal(out[n], builder.build(account[n])[0])


def test_bars_become_a_market() -> None:
    times = np.arange(3) * 60_000_000
    column = np.arange(6, dtype=np.float64).reshape(3, 2) + 1
    present = np.array([[True, False], [True, True], [False, True]])
    bars = BarArrays(
        ("a:X", "a:Y"), times, times + 60_000_000, column, column, column, column + 1, column + 2, column + 3, present
    )
    market = market_of(bars)
    np.testing.assert_array_equal(market.close, column + 1)
    np.testing.assert_array_equal(market.funding_rate, column + 3)
    np.testing.assert_array_equal(market.present, present)
