"""Rules without learning, through the same simulator, fills and costs as a policy.

They are what they are called: no no-trade band, no limit of size and no halt stands between a rule and its orders. A
book that loses everything is still halted, since it cannot trade on; its result says where.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.evaluation.backtest import BacktestResult, follow
from tradeloop.common.features import shown
from tradeloop.common.market import BarArrays
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.simulation import Simulator
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.actions import ActionScheme

REBALANCE = 60
"""Decisions between two rebalances of `equal_weight`."""
LOOKBACK = 60
"""Bars over which `momentum` looks back."""


def baselines(portfolio: Portfolio, strategy: Strategy, bars: BarArrays, features: Floats) -> dict[str, BacktestResult]:
    """Named rules over the bars that a policy of `strategy` would trade.

    - `cash`: nothing.
    - `buy_and_hold`: all equity at the first decision, in equal parts, never rebalanced.
    - `equal_weight`, of several instruments: the same, rebalanced at every `REBALANCE`-th decision.
    - `momentum`: an equal part of equity in each instrument, long or short by the sign of its return over `LOOKBACK`
      bars; flat instead of short where the strategy's actions are long-only. It trades when the sign changes.

    `features` is (T, A, F), NaN while an indicator warms up. Every rule decides on the same bars as a policy: from
    the first full window on. What the venue does not fill at once is tried again.

    Where a universe has members in time, parts are those of the members at that moment; what leaves is sold, and
    `equal_weight` and `momentum` rebalance whenever members change, which `buy_and_hold` does not.
    """
    universe = portfolio.universe
    features, _ = shown(features, universe)
    inside = universe.roster.inside(bars.close_us)
    count = np.maximum(inside.sum(axis=1, keepdims=True), 1)
    decides = np.flatnonzero(_decides(features, strategy.window))
    targets = {name: np.full(bars.open.shape, np.nan) for name in ("cash", "buy_and_hold", "equal_weight", "momentum")}
    even = inside / count
    targets["buy_and_hold"][decides[:1]] = even[decides[:1]]
    targets["equal_weight"][decides[::REBALANCE]] = even[decides[::REBALANCE]]
    instruments = len(bars.instruments)
    sides = _momentum(bars, decides, _sells_short(strategy.actions, instruments))
    targets["momentum"][decides] = sides / count[decides]
    if universe.changes:
        # A side that began before its instrument was a member, or with other members, is taken up when these change.
        changed = decides[1:][(inside[decides[1:]] != inside[decides[:-1]]).any(axis=1)]
        targets["equal_weight"][changed] = even[changed]
        place = np.searchsorted(decides, changed)
        targets["momentum"][changed] = _lasting(sides)[place] / count[changed]
        for one in targets.values():
            one[~inside & ~np.isnan(one)] = 0.0
        left = np.zeros_like(inside)
        left[decides[1:]] = inside[decides[:-1]] & ~inside[decides[1:]]
        for one in targets.values():
            one[left] = 0.0
    if instruments == 1:
        del targets["equal_weight"]
    simulator = Simulator(
        len(targets),
        portfolio.universe.instruments,
        capital=portfolio.capital,
        costs=portfolio.costs,
        limits=portfolio.limits.model_copy(
            update={
                "max_position": math.inf,
                "max_leverage": math.inf,
                "max_order_notional": math.inf,
                "max_drawdown": 1.0,
                "maintenance_margin": 0.0,
            }
        ),
        no_trade_band=0.0,
    )
    aims = _Aims(simulator, np.stack(list(targets.values()), axis=1), decides)
    return dict(zip(targets, follow(simulator, bars, aims.weights, universe), strict=True))


class _Aims:
    """Turns target weights (T, N, A) into quantities once, and asks for these until they are held.

    Without the quantity, a target weight would rebalance on every bar.
    """

    def __init__(self, simulator: Simulator, targets: Floats, decides: NDArray[np.int64]) -> None:
        self._books, self._lot = simulator.books, simulator.terms.lot
        self._targets, self._decides = targets, np.zeros(len(targets), dtype=np.bool_)
        self._decides[decides] = True
        self._changes: Bools = np.asarray(~np.isnan(targets).all(axis=(1, 2)))
        self._hold = np.full(targets.shape[1:], np.nan)
        self._asked, self._aim = self._hold.copy(), self._hold.copy()
        """Weights that are still to be sized, and the quantities of those that are."""
        self._busy = False

    def weights(self, t: int) -> Floats:
        """Target weights (N, A) at the close of bar t."""
        if not self._decides[t] or not (self._busy or self._changes[t]):
            return self._hold
        books, new = self._books, self._targets[t]
        equity, price = books.equity[:, None], books.mark
        asked = np.where(np.isnan(new), self._asked, new)
        with np.errstate(divide="ignore", invalid="ignore"):
            quantity = asked * equity / price
            lots = np.copysign(np.floor(np.abs(quantity) / self._lot + 1e-9) * self._lot, quantity)
            quantity = np.where(self._lot > 0.0, lots, quantity)
            # Less than a lot, or of an instrument without a price: tried again on the next bar.
            sized = np.isfinite(quantity) & ((quantity != 0.0) | (asked == 0.0))
            self._aim = np.where(sized, quantity, self._aim)
            self._asked = np.where(sized, np.nan, asked)
            missing = np.abs(self._aim - books.position) > np.maximum(0.5 * self._lot, 1e-9 * np.abs(self._aim))
            self._busy = bool(missing.any() or not np.isnan(self._asked).all())
            # A target without a quantity is given as it is, so that what cannot be sized is counted.
            wanted = np.where(missing, self._aim * price / equity, self._asked)
        return wanted


def _momentum(bars: BarArrays, decides: NDArray[np.int64], short: bool) -> Floats:
    """The side (D, A) of each decision that changes it: 1, -1 or 0; NaN for as before."""
    late = decides[decides >= LOOKBACK]
    side = np.full((len(decides), len(bars.instruments)), np.nan)
    side[len(decides) - len(late) :] = np.sign(bars.close[late] - bars.close[late - LOOKBACK])
    for column in side.T:
        known = np.flatnonzero(np.abs(column) == 1.0)  # a return of exactly 0 changes nothing
        same = known[1:][column[known[1:]] == column[known[:-1]]]
        column[same] = np.nan
        column[column == 0.0] = np.nan
    return side if short else np.maximum(side, 0.0)


def _lasting(sides: Floats) -> Floats:
    """Sides (D, A) with NaN where there was none yet, and otherwise the last one."""
    last = np.maximum.accumulate(np.where(np.isnan(sides), -1, np.arange(len(sides))[:, None]), axis=0)
    lasting: Floats = np.where(last >= 0, np.take_along_axis(sides, np.maximum(last, 0), axis=0), np.nan)
    return lasting


def _sells_short(scheme: ActionScheme, count: int) -> bool:
    """Whether any action means a negative weight."""
    answers = range(scheme.choices) if scheme.kind == "discrete" else (-1.0, 1.0)
    size = (1, scheme.size(count))
    return any((scheme.weights(np.full(size, float(answer))) < 0.0).any() for answer in answers)


def _decides(features: Floats, window: int) -> Bools:
    """(T,): where the last `window` rows of features are known."""
    known = ~np.isnan(features).any(axis=(1, 2))
    full = np.zeros(len(features), dtype=np.bool_)
    if len(features) >= window:
        full[window - 1 :] = sliding_window_view(known, window).all(axis=1)
    return full
